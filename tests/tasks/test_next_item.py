"""The task NextItem: its loss and ranks by definition, its predictions by name, what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from tests.data_room.test_interactions import of
from transformer_jax import hub, restore
from transformer_jax.errors import InputError
from transformer_jax.models import bert, gpt
from transformer_jax.models.bert import encoders
from transformer_jax.tasks import NextItem
from transformer_jax.tasks.next_item.histories import Histories

GPT = gpt.Config(vocab_size=14, max_length=5, width=8, num_layers=1, num_heads=2)
BERT = bert.Config(
    vocab_size=14, max_length=5, width=8, num_layers=1, num_heads=2, num_types=0, heads=("mlm",), dropout=0.0
)
DATA = Histories(of(ann="abcdefghij", bob="aabcabd", cyd="bac", dot="jjihg"), length=5, min_user=1, min_item=1)


def made(task, cfg):
    family = gpt if cfg is GPT else bert
    prepared = task.prepare(DATA, cfg, seed=0)
    params = jax.tree.map(lambda x: 20.0 * x, family.init(jax.random.key(1), cfg))
    return prepared, params


@pytest.mark.parametrize(("task", "cfg"), [(NextItem(unseen=True), GPT), (NextItem(objective="masked"), BERT)])
def test_loss_and_ranks_by_definition(task, cfg):
    prepared, params = made(task, cfg)
    rows = prepared.validation.examples.stacked(range(4))
    assert {name: (row.shape[1:], row.dtype) for name, row in rows.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in task.example(DATA).items()
    }
    sums, outputs = jax.jit(task.evaluate, static_argnums=1)(params, cfg, rows)
    total, weight, row = jax.jit(task.loss, static_argnums=1)(params, cfg, rows)
    if cfg is GPT:
        logits = np.asarray(gpt.apply(params, cfg, rows["tokens"]), np.float64)
    else:
        x = bert.apply(params, cfg, rows["tokens"], lengths=(rows["tokens"] > 0).sum(1))
        logits = np.asarray(bert.mlm(params, cfg, x), np.float64)
    nats, gain = [], []
    for b, (targets, weights) in enumerate(zip(rows["targets"], rows["weights"], strict=True)):
        (at,) = np.flatnonzero(weights)
        nats.append(-log_softmax(logits[b, at])[targets[at]])
        gain.append(-rows["popularity"][b, at] - nats[-1])
        scores = logits[b, at].copy()
        scores[[0, 1]] = -np.inf
        if task.unseen:
            scores[rows["seen"][b]] = -np.inf
        is_candidate = np.isfinite(scores[targets[at]])
        assert outputs["rank"][b] == (sum(scores >= scores[targets[at]]) if is_candidate else 14)
    np.testing.assert_allclose(total / weight, np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(row["gain_on_popularity"][0] / 4, np.mean(gain), rtol=1e-4)
    assert float(sums["loss"][0]) <= float(total)  # evaluation gives no probability to padding and mask
    report = task.report({name: tuple(map(float, x)) for name, x in sums.items()}, outputs, prepared.validation)
    end = "full_unseen" if task.unseen else "full"
    assert 0 <= report[f"hit_rate_10_{end}"] <= 1
    assert {f"{name}_ndcg_10_{end}" for name in ("popularity", "markov", "item_item")} <= report.keys()


@pytest.mark.parametrize("unseen", [False, True])
def test_predictions_have_names_and_unknown_items_are_said(unseen):
    task = NextItem(unseen=unseen)
    prepared, params = made(task, GPT)
    asked = ["a, b, what, c", "zz", " ,", 'a, "b']
    answers = list(task.predict(params, GPT, prepared.tokenizer, asked, top=10))
    first = answers[0]
    assert (first["history"], first["unknown"]) == (["a", "b", "c"], ["what"])
    names = [one["name"] for one in first["items"]]
    assert set(names) == set("defghij" if unseen else "abcdefghij")
    assert sum(one["probability"] for one in first["items"]) == pytest.approx(1, rel=1e-4)
    logits = np.asarray(gpt.apply(params, GPT, prepared.tokenizer.encode("a, b, c")[None]), np.float64)[0, -1]
    best = [prepared.tokenizer.decode([i]) for i in np.argsort(-logits) if i in range(2, 12)]
    assert names == [name for name in best if name in names]
    assert "(unknown, ignored: what)" in task.describe(first)
    assert "'zz' is none of the 10 items" in answers[1]["error"]
    assert "nothing is known of a user without a history" in answers[2]["error"]
    assert len(answers) == 4


def test_an_exported_recommender_answers_as_the_run(tmp_path):
    task = NextItem()
    prepared, params = made(task, GPT)
    hub.export(tmp_path / "out", GPT, params, prepared.tokenizer)
    loaded = restore.load(tmp_path / "out")
    assert loaded.task == task
    (here,) = task.predict(params, GPT, prepared.tokenizer, ["a, b, c"], top=3)
    (there,) = loaded.task.predict(loaded.params, loaded.config, loaded.tokenizer, ["a, b, c"], top=3)
    assert [item["name"] for item in there["items"]] == [item["name"] for item in here["items"]]
    assert encoders.task(tmp_path / "out", BERT) == NextItem(objective="masked")


def test_what_is_refused():
    with pytest.raises(InputError, match="needs a model with mlm_states"):
        NextItem(objective="masked").check(GPT, DATA)
    with pytest.raises(InputError, match="needs a model with hidden"):
        NextItem().check(BERT, DATA)
    with pytest.raises(InputError, match="longer than model.max_length"):
        NextItem().check(GPT, dataclasses.replace(DATA, length=6))
    with pytest.raises(InputError, match=r"the tokenizer has ids up to 11, but model.vocab_size is 9"):
        NextItem().prepare(DATA, dataclasses.replace(GPT, vocab_size=9), seed=0)
    with pytest.raises(InputError, match="task.objective = 'both'"):
        NextItem(objective="both")
