"""Translation: the loss and its FLOPs by hand, text that is scored as sacreBLEU scores its files, runs that go on."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax import restore, sharding
from transformer_jax.contracts import Observer
from transformer_jax.data import tokenizers
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Experiment, Predict, Train
from transformer_jax.models import gpt, seq2seq
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.tasks import Translation, text_to_text
from transformer_jax.tasks.translation import bitext, parallel
from transformer_jax.train import loop

CFG = seq2seq.Config(
    vocab_size=257,
    max_length=32,
    width=16,
    num_layers=1,
    num_heads=2,
    dropout=0.2,
    tie_embeddings=False,
    initializer="normal",
    init_std=0.3,
    eos_id=256,
    decoder_start_id=256,
)
TASK = Translation(beam=Beam(2, max_new_tokens=6, length_penalty=0.6, length_convention="gnmt"))
PARAMS = seq2seq.init(jax.random.key(0), CFG)
WORDS = ["to", "be", "or", "is", "it", "he"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> parallel.ParallelText:
    """Sentences of three words, all of one length, so that few searches are compiled; the target turns them round."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    files = []
    for side, count in (("train", 60), ("validation", 9), ("test", 5)):
        sentences = [rng.choice(WORDS, 3).tolist() for _ in range(count)]
        paths = folder / f"{side}.a", folder / f"{side}.b"
        paths[0].write_text("".join(" ".join(words) + "\n" for words in sentences))
        paths[1].write_text("".join(" ".join(reversed(words)) + "\n" for words in sentences))
        files.append((str(paths[0]), str(paths[1])))
    return parallel.ParallelText(
        bitext.Lines(files[0], files[1], files[2]), tokenizers.Bytes(), source_length=32, target_length=32
    )


@pytest.fixture(scope="module")
def prepared(data):
    return TASK.prepare(data, CFG, seed=0)


# ---- Loss


def test_the_loss_of_a_packed_row_is_that_of_its_pairs(data, prepared):
    """In float64 from the logits of each pair by itself; the end of each text is predicted too."""
    held = prepared.validation.reference
    rows = [held.rows[i] for i in range(len(held.rows))]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in TASK.example(data).items()
    }
    smooth, weight, sums = TASK.loss(PARAMS, CFG, batch)
    nats, uniform, tokens = 0.0, 0.0, 0
    for source, target in zip(held.sources, held.references, strict=True):
        source_S, target_T = (np.array([*text.encode(), 256]) for text in (source, target))
        inputs_T = np.array([256, *target_T[:-1]])
        padded = [np.pad(ids, (0, 32 - len(ids)))[None] for ids in (source_S, inputs_T)]
        logits_TV = np.asarray(apply(PARAMS, CFG, *padded, source_lengths=np.array([len(source_S)])), np.float64)[0]
        log_probs_TV = (logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True)))[: len(target_T)]
        nats -= log_probs_TV[np.arange(len(target_T)), target_T].sum()
        uniform -= log_probs_TV.mean(-1).sum()
        tokens += len(target_T)
    assert weight == sums["loss"][1] == tokens
    assert float(sums["loss"][0]) == pytest.approx(nats, rel=1e-5)
    assert float(smooth) == pytest.approx(0.9 * nats + 0.1 * uniform, rel=1e-5), "label smoothing 0.1"
    report = TASK.report({"loss": (nats, tokens)}, {}, prepared.validation)
    assert report == {"loss_nats_per_token": nats / tokens, "perplexity_per_token": np.exp(nats / tokens)}


apply = jax.jit(seq2seq.apply, static_argnums=1)


def test_flops_by_hand():
    """Vaswani's base model on 100 source and 60 target slots, from its count of parameters: norms and biases do not
    count, the table does as the head."""
    data = parallel.ParallelText(bitext.Columns("a.tsv", "a.tsv"), tokenizers.Bytes(), 100, 60)
    cfg = seq2seq.Config(vocab_size=37000)
    D, L, V, S, T = 512, 6, 37000, 100, 60
    attention, mlp = 4 * D * D, 8 * D * D
    kernels = L * (attention + mlp) + L * (2 * attention + mlp)
    biases = L * (4 * D + 5 * D) + L * (8 * D + 5 * D)
    norms = L * 4 * D + L * 6 * D
    assert params_lib.count(seq2seq.declare(cfg)) == kernels + biases + norms + V * D
    encoder = L * (attention + mlp) * S
    decoder = L * (attention + mlp + 2 * D * D) * T + L * 2 * D * D * S  # cross keys and values are of the source
    scores = L * D * (S * S + T * T + T * S)
    assert Translation().flops(cfg, data) == 6 * (encoder + decoder + V * D * T) + 12 * scores
    deep = dataclasses.replace(cfg, num_decoder_layers=1, tie_embeddings=False)
    one = (attention + mlp + 2 * D * D) * T + 2 * D * D * S
    assert Translation().flops(deep, data) == 6 * (encoder + one + V * D * T) + 12 * D * (L * S * S + T * T + T * S)
    assert Translation().tokens(data) == 60


def test_what_does_not_fit_the_model_is_refused(data):
    with pytest.raises(InputError, match=r"of the family gpt, and this task needs an encoder-decoder: seq2seq.Config"):
        TASK.prepare(data, gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=1, num_heads=2), seed=0)
    with pytest.raises(InputError, match=r"model.eos_id is None; give the id of the token that ends a text"):
        TASK.prepare(data, dataclasses.replace(CFG, eos_id=None), seed=0)
    with pytest.raises(InputError, match=r"task.metrics has 'blue'; there are bleu, chrf, rouge, exact_match"):
        Translation(metrics=("blue",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"task.label_smoothing = 1.0"):
        Translation(label_smoothing=1.0)


# ---- Text


def score(task, prepared, folder, **options):
    said = []
    mesh = sharding.make_mesh()
    scores = task.score(
        *(PARAMS, CFG, prepared.tokenizer, prepared.validation, folder, "validation"),
        **{"mesh": mesh, "log": said.append, **options},
    )
    return scores, said


def test_the_scores_are_those_of_the_files(prepared, tmp_path):
    import sacrebleu

    task = dataclasses.replace(TASK, metrics=("chrf", "exact_match", "bleu"))
    scores, said = score(task, prepared, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"validation.{kind}.txt" for kind in ("sources", "references", "hypotheses")} | {
        "validation_by_length.png"
    }
    lines = {
        kind: (tmp_path / f"validation.{kind}.txt").read_text(encoding="utf-8").split("\n")
        for kind in ("sources", "references", "hypotheses")
    }
    held = prepared.validation.reference
    assert lines["sources"] == [*held.sources, ""] and lines["references"] == [*held.references, ""]
    hypotheses = lines["hypotheses"][:-1]
    assert len(hypotheses) == len(held.sources) and any(hypotheses)
    assert scores["chrf"] == sacrebleu.corpus_chrf(hypotheses, [held.references]).score
    assert scores["bleu"] == sacrebleu.corpus_bleu(hypotheses, [held.references]).score
    assert "chrf_signature" in scores and scores["exact_match"] == 0
    assert sum("hypothesis" in line for line in said) == 9, "all examples, where there are fewer than ten"
    again, _ = score(task, prepared, tmp_path)
    assert again == scores


def test_predictions_do_not_depend_on_the_others_and_blank_lines_stay_blank(prepared, capsys):
    texts = ["to be", "", "he is or", "or", " \t", "not", "x" * 50, "to be"]

    def predict(texts, top=2):
        return list(TASK.predict(PARAMS, CFG, prepared.tokenizer, texts, top=top))

    answers = predict(texts)
    assert [answer["source"] for answer in answers] == texts
    assert [len(answer["hypotheses"]) for answer in answers] == [2, 0, 2, 2, 0, 2, 2, 2]
    assert "1 of 8 sources exceed the model's 32 tokens, the longest with 51" in capsys.readouterr().err
    backwards = predict(texts[::-1])[::-1]
    for one, other in zip(answers, backwards, strict=True):
        assert one["hypotheses"] == other["hypotheses"]
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)
        assert one["scores"] == sorted(one["scores"], reverse=True)
        assert not any("\n" in text or "\r" in text for text in one["hypotheses"])
    assert TASK.describe(answers[0]) == answers[0]["hypotheses"][0] and TASK.describe(answers[1]) == ""
    assert predict(["x" * 31])[0]["hypotheses"] == answers[6]["hypotheses"], "cut to 31 and the end"


def test_the_prefix_stands_before_every_source_and_on_no_blank_line(prepared):
    asked = dataclasses.replace(TASK, prefix="is ")
    (one, blank), (other,) = (
        list(task.predict(PARAMS, CFG, prepared.tokenizer, texts, top=1))
        for task, texts in ((asked, ["to be", ""]), (TASK, ["is to be"]))
    )
    assert one["hypotheses"] == other["hypotheses"] and one["source"] == "to be" and blank["hypotheses"] == []


# ---- Runs


@pytest.fixture(scope="module")
def tiny(data) -> Experiment:
    return Experiment(
        model=CFG,
        data=data,
        task=TASK,
        optim=Optim(peak_lr=1e-2, decay_steps=4),
        train=Train(steps=4, batch_size=8, log_every=1),
        checkpoint=Checkpoint(every=2),
        sample=Predict(("to be or", ""), top=1),
    )


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert loop.run(tiny, folder, load=restore.load).step == 4
    return folder


def test_a_run_reports_the_scores_of_validation_and_test(whole):
    results = json.loads((whole / "results.json").read_text())
    for scores in (results["report"], results["test"]):
        assert {"loss_nats_per_token", "bleu", "bleu_low", "chrf", "chrf_signature"} <= scores.keys()
        assert scores["bleu_signature"].startswith("nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert len((whole / "validation.hypotheses.txt").read_text(encoding="utf-8").split("\n")) == 9 + 1
    assert len((whole / "test.hypotheses.txt").read_text(encoding="utf-8").split("\n")) == 5 + 1
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    (scored,) = [row for row in rows if "validation/bleu" in row]
    assert scored["validation/bleu"] == results["report"]["bleu"] and scored["step"] == 4


def test_stopped_by_a_signal_and_taken_up_gives_the_same_bits(tiny, whole, tmp_path, monkeypatch):
    """With dropout: once in training, once while the text is made, which leaves the complete run's checkpoint."""

    class Stops(Observer):
        def row(self, row):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = loop.run(dataclasses.replace(tiny, observers=(Stops(),)), tmp_path / "run", load=restore.load)
    assert stopped.signal == signal.SIGTERM and 1 <= stopped.step < 4
    with monkeypatch.context() as patch:
        patch.setattr(text_to_text, "report", lambda sums, of=text_to_text.report: (of(sums), kill())[0])
        evaluations = []

        def kill():  # of the names before training, and of the last evaluation
            evaluations.append(1)
            if len(evaluations) == 2:
                os.kill(os.getpid(), signal.SIGINT)

        stopped = loop.run(tiny, tmp_path / "run", load=restore.load)
    assert (stopped.signal, stopped.step) == (signal.SIGINT, 4)
    assert not (tmp_path / "run/results.json").exists()
    results = loop.run(tiny, tmp_path / "run", load=restore.load)
    assert (results.signal, results.step) == (0, 4)
    done = json.loads((whole / "results.json").read_text())
    assert results.report == done["report"] and results.test == done["test"]
    ours, theirs = (restore.load(folder).params for folder in (tmp_path / "run", whole))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, theirs)
