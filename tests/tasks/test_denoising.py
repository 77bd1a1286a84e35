"""The task against whole logits, its examples against their own text, and a model that learns to fill gaps."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from transformer_jax import config_json, losses
from transformer_jax import experiment as experiments
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.models import gpt, seq2seq
from transformer_jax.objectives.spans import PrefixLM, SpanCorruption, TextInfilling
from transformer_jax.tasks import Denoising
from transformer_jax.tasks import denoising as denoising_task
from transformer_jax.tasks.denoising import corrupted

BART = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
T5 = tokenizers.t5_special(8)
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box")
S = 48
OBJECTIVES = {"spans": (SpanCorruption(), T5), "infilling": (TextInfilling(), BART), "prefix": (PrefixLM(), T5)}


def model(special, **changes):
    ids = {"pad_id": special.index("<pad>"), "eos_id": special.index("</s>"), "decoder_start_id": 0}
    settings = {"max_length": S, "width": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0, "scan_layers": False}
    return seq2seq.Config(vocab_size=320, **settings | ids | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for i in range(40):
        sentences = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) + "." for _ in range(rng.integers(4, 12))]
        (folder / f"{i:02d}.txt").write_text(" ".join(sentences) + "\n")
    return sources.TextFiles((str(folder),))


def data(text, special, **changes):
    return corpus.TextCorpus(text, tokenizers.TrainBPE(320, special=special), **{"length": S} | changes)


@pytest.fixture(scope="module")
def made(text):
    return {
        name: Denoising(objective).prepare(data(text, special), model(special), seed=0)
        for name, (objective, special) in OBJECTIVES.items()
    }


def batch(prepared, rows=4, padding=1):
    """Training rows and a row past the end, which is zeros."""
    examples = [prepared.train[i] for i in range(rows)]
    stacked = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {name: np.concatenate([a, np.zeros_like(a[:padding])]) for name, a in stacked.items()}


# ---- Examples


@pytest.mark.parametrize("name", OBJECTIVES)
def test_examples_have_the_promised_shapes(name, text, made):
    objective, special = OBJECTIVES[name]
    promised = Denoising(objective).example(data(text, special))
    for row in (made[name].train[7], made[name].validation.examples[0]):
        assert {key: (x.shape, x.dtype) for key, x in row.items()} == {
            key: (x.shape, x.dtype) for key, x in promised.items()
        }
        used = row["weights"] == 1
        assert (row["target_segments"] == used).all() and row["targets"][used][-1] == model(special).eos_id
        np.testing.assert_array_equal(row["inputs"][1:][used[1:]], row["targets"][:-1][used[1:]])
        assert row["inputs"][0] == model(special).decoder_start_id


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_are_the_corpus(name, made):
    """Every validation pair tells its stretch; side by side they are the token file, as far as whole rows go."""
    examples = made[name].validation.examples
    stretches = []
    for i in range(len(examples)):
        row = examples[i]
        source, target = row["source"][row["source_segments"] == 1], row["targets"][row["weights"] == 1]
        stretches.append(examples.objective.restore(source, target, examples.marks))
    told = np.concatenate(stretches)
    np.testing.assert_array_equal(told, examples.tokens[: len(told)])
    assert len(examples.tokens) - len(told) < examples.sizes.raw


def test_gaps_are_drawn_anew_in_training_and_once_in_validation(text, made):
    again, other = (corrupted.prepare(data(text, T5), SpanCorruption(), model(T5), seed=seed) for seed in (0, 1))
    rows, size = made["spans"], made["spans"].facts["training_rows"]
    same = next(j for j in range(size, 2 * size) if rows.train.order[j] == rows.train.order[0])
    assert (rows.train[0]["source"] != rows.train[same]["source"]).any(), "the second epoch has other gaps"
    for i in range(3):
        np.testing.assert_array_equal(rows.train[i]["source"], again.train[i]["source"])
        np.testing.assert_array_equal(rows.validation.examples[i]["source"], other.validation[i]["source"])
    assert any((rows.train[i]["source"] != other.train[i]["source"]).any() for i in range(3))


def test_sentinels_of_a_text_are_text():
    tokenizer = tokenizers.build(tokenizers.TrainBPE(320, special=T5), [("a", "the <extra_id_0> box " * 9)])
    sentinels = tokenizers.sentinels(tokenizer)
    assert sentinels.tolist() == list(range(3, 11)) and tokenizer.eos_id == 1
    assert not np.isin(tokenizer.encode("the <extra_id_0> box"), sentinels).any()
    ids = tokenizer.encode_prompt("the <extra_id_0> box")
    assert ids[np.isin(ids, sentinels)].tolist() == [3] and tokenizer.decode(ids) == "the<extra_id_0> box"
    assert len(tokenizers.sentinels(tokenizers.build(tokenizers.Bytes(), []))) == 0


# ---- Loss


def test_the_loss_is_that_of_the_whole_logits(made):
    """A padding row weighs nothing; dropout needs a key."""
    cfg, rows = model(BART), batch(made["infilling"])
    params = seq2seq.init(jax.random.key(0), cfg)

    @jax.jit
    def both(params):
        segments = {name: rows[name] for name in ("source_segments", "target_segments")}
        logits_BTV = seq2seq.apply(params, cfg, rows["source"], rows["inputs"], **segments)
        whole = losses.cross_entropy(logits_BTV, rows["targets"], rows["weights"])
        return Denoising().loss(params, cfg, rows), whole

    (total, weight, sums), expected = both(params)
    np.testing.assert_allclose(total, expected.sum, rtol=1e-5)
    assert weight == expected.weight == sums["loss"][1] == rows["weights"].sum() == 4 * S
    assert Denoising().report({"loss": (8.0, 4.0)}, {}, made["infilling"].validation)["loss_nats_per_token"] == 2.0


def test_the_unigram_baseline(made):
    """Against counting by hand."""

    def targets(examples, count):
        rows = [examples[i] for i in range(count)]
        return [token for row in rows for token, weight in zip(row["targets"], row["weights"], strict=True) if weight]

    prepared = made["spans"]
    seen = targets(prepared.train, denoising_task.COUNTED)
    total = len(seen) + prepared.tokenizer.vocab_size
    share = {token: (seen.count(token) + 1) / total for token in set(seen)}
    asked = targets(prepared.validation.examples, len(prepared.validation.examples))
    expected = -np.mean([np.log(share.get(token, 1 / total)) for token in asked])
    assert prepared.validation.reference == pytest.approx(expected, rel=1e-6)


# ---- Prediction


@pytest.fixture(scope="module")
def learned():
    """A model that has learned one sentence by heart, and its tokenizer."""
    tokenizer = tokenizers.build(tokenizers.TrainBPE(320, special=T5), [("a", "the quick brown fox jumps. " * 9)])
    cfg, objective = model(T5, norm_order="pre", max_length=32), SpanCorruption(0.5, 1.5)
    ids, marks = tokenizer.encode("the quick brown fox jumps."), corrupted.marks(tokenizer, objective, cfg, raw=8)
    params, optimizer = seq2seq.init(jax.random.key(0), cfg), optax.adam(1e-2)
    sizes = corrupted.spans.Sizes(len(ids), len(ids) + 1, len(ids) + 1)
    rows = corrupted.Examples(np.tile(ids, 2), [0] * 512, objective, sizes, marks, 0, 0, 0)
    batches = [[rows[i] for i in range(at, at + 8)] for at in range(0, 512, 8)]

    @jax.jit
    def step(params, state, batch):
        def loss(params):
            total, weight, _ = Denoising().loss(params, cfg, batch)
            return total / weight

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for batch in batches:
        params, state = step(params, state, {name: np.stack([row[name] for row in batch]) for name in batch[0]})
    return params, cfg, tokenizer, objective


def test_gaps_are_filled(learned):
    params, cfg, tokenizer, objective = learned
    texts = ["the<extra_id_0> brown fox<extra_id_1>", "the quick<extra_id_0> fox<extra_id_1>"]
    found = list(Denoising(objective).predict(params, cfg, tokenizer, texts, top=2))
    assert [one["text"] for one in found] == texts
    assert [one["answers"][0]["text"] for one in found] == ["the quick brown fox jumps."] * 2
    assert all(len(one["answers"]) == 2 and one["answers"][0]["score"] >= one["answers"][1]["score"] for one in found)
    assert Denoising(objective).describe(found[0]).splitlines()[1].endswith("'the quick brown fox jumps.'")


def test_an_empty_input_ends_nothing(learned):
    params, cfg, tokenizer, objective = learned
    found = Denoising(objective).predict(params, cfg, tokenizer, ["", "the quick", ""], top=1)
    assert ["error" in answer for answer in found] == [True, False, True]


# ---- Refused


@pytest.mark.parametrize(
    ("objective", "special", "changes", "message"),
    [
        (
            SpanCorruption(),
            BART,
            {},
            r"the tokenizer has 0 sentinels <extra_id_n>, but span corruption needs 3 for a",
        ),
        (
            SpanCorruption(0.4, 2.0),
            T5[:6],
            {},
            r"has 3 sentinels .* needs 12 for a text of 59 tokens; use TrainBPE",
        ),
        (TextInfilling(), T5, {}, r"no token for <s>, </s> or <mask>, which text infilling needs"),
        (
            SpanCorruption(),
            T5,
            {"length": 10_000},
            r"sources of 10000 and targets of \d+ tokens, but model.max_length is",
        ),
        (SpanCorruption(), T5, {"sampling": "random"}, r"denoising goes over epochs; give"),
        (SpanCorruption(), ("<pad>", "<unk>", "</s>", *T5[3:]), {}, r"model.eos_id = 1, but the tokenizer has 2"),
    ],
)
def test_what_does_not_fit_is_refused(objective, special, changes, message, text):
    cfg = model(T5 if "but the tokenizer" in message else special)
    with pytest.raises(InputError, match=message):
        Denoising(objective).prepare(data(text, special, **changes), cfg, seed=0)


def test_more_text_is_asked_for(text):
    with pytest.raises(InputError, match=r"tokens, but one row needs 1199; give more text or lower data.length = 1200"):
        Denoising(PrefixLM()).prepare(data(text, T5, length=1200), model(T5, max_length=1200), seed=0)


def test_only_an_encoder_decoder_denoises(text):
    cfg = gpt.Config(vocab_size=320, max_length=S, width=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match=r"family gpt, and this task needs an encoder-decoder"):
        Denoising().prepare(data(text, T5), cfg, seed=0)


# ---- As a value


@pytest.mark.parametrize("name", OBJECTIVES)
def test_round_trip(name, text):
    objective, special = OBJECTIVES[name]
    experiment = experiments.Experiment(model=model(special), data=data(text, special), task=Denoising(objective))
    assert config_json.from_json(config_json.to_json(experiment), where="x") == experiment
    assert dataclasses.replace(experiment).task.tokens(experiment.data) == sum(objective.sizes(S)[1:])
