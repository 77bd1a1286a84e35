"""The task against the whole logits, against itself without packing, and against hand-made numbers."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import config_json, losses
from transformer_jax import experiment as experiments
from transformer_jax.contracts import Evaluation
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.models import bert, gpt
from transformer_jax.objectives.masking import Masking
from transformer_jax.tasks import MaskedLM, masked_lm

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "box")
T = 16
CFG = bert.Config(
    vocab_size=300, max_length=T, width=16, num_layers=1, num_heads=2, init_std=0.3, scan_layers=False, dropout=0.0
)
LAYOUTS = {
    "full": MaskedLM(),
    "packed": MaskedLM(packed=True),
    "next_sentence": MaskedLM(pairs="next_sentence"),
    "sentence_order": MaskedLM(masking=Masking(unit="ngram"), pairs="sentence_order"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for i in range(40):
        sentences = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) + "." for _ in range(rng.integers(1, 8))]
        (folder / f"{i:02d}.txt").write_text(" ".join(sentences) + "\n")
    spec = tokenizers.TrainBPE(300, special=ROBERTA)
    return corpus.TextCorpus(sources.TextFiles((str(folder),)), spec, length=T)


@pytest.fixture(scope="module")
def params():
    return bert.init(jax.random.key(0), CFG)


@pytest.fixture(scope="module")
def made(data):
    return {name: task.prepare(data, CFG, seed=0) for name, task in LAYOUTS.items()}


def batch(prepared, rows=4, padding=1):
    """Training rows and a row past the end, which is zeros."""
    examples = [prepared.train[i] for i in range(rows)]
    stacked = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {name: np.concatenate([a, np.zeros_like(a[:padding])]) for name, a in stacked.items()}


# ---- Loss


@pytest.mark.parametrize("name", LAYOUTS)
def test_examples_have_the_promised_shapes(name, data, made):
    promised = {key: (x.shape, x.dtype) for key, x in LAYOUTS[name].example(data).items()}
    for row in (made[name].train[7], made[name].validation.examples[0]):
        assert {key: (np.shape(x), x.dtype) for key, x in row.items()} == promised


def first(f):
    """What f returns, after the first of it: the form that jax.grad wants."""
    return lambda x: (f(x)[0], f(x))


def whole_logits_loss(params, task, rows):
    """The same sums from the logits of every position, with weights scattered to [B, T]."""
    given = {name: rows[name] for name in ("types", "lengths", "segments") if name in rows}
    x_BTD = bert.apply(params, CFG, rows["tokens"], **given)
    labels_BT, weights_BT = np.zeros((len(x_BTD), T), np.int32), np.zeros((len(x_BTD), T), np.float32)
    for b, p in zip(*np.nonzero(rows["weights"]), strict=True):
        at = rows["positions"][b, p]
        labels_BT[b, at], weights_BT[b, at] = rows["labels"][b, p], 1
    total, weight, _ = losses.cross_entropy(bert.mlm(params, CFG, x_BTD), labels_BT, weights_BT)
    if task.pairs != "none":
        log_probs_B2 = jax.nn.log_softmax(bert.pair(params, CFG, x_BTD))
        picked_B = jnp.take_along_axis(log_probs_B2, rows["pair"][:, None], axis=-1)[:, 0]
        total += weight * -jnp.sum(picked_B * rows["pair_weights"]) / jnp.sum(rows["pair_weights"])
    return total, weight


def test_gathered_loss_is_the_whole_logits_loss(params, made):
    """Value and gradients, a padding row included; what is reported of the batch as well."""
    task, rows = LAYOUTS["next_sentence"], batch(made["next_sentence"])

    @jax.jit
    def both(params):
        gradient, (total, weight, sums) = jax.grad(first(lambda p: task.loss(p, CFG, rows)), has_aux=True)(params)
        whole, whole_gradient = jax.value_and_grad(lambda p: whole_logits_loss(p, task, rows)[0])(params)
        return total, weight, sums, gradient, whole, whole_gradient

    total, weight, sums, gradient, whole, whole_gradient = both(params)
    assert weight == rows["weights"].sum() > 4
    np.testing.assert_allclose(total, whole, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole_gradient))
    for leaf, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(whole_gradient), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6 * largest)
    assert sums["pair_loss"][1] == sums["pair_accuracy"][1] == 4
    mean = {key: float(a) / float(b) for key, (a, b) in sums.items()}
    np.testing.assert_allclose(float(total) / float(weight), mean["loss"] + mean["pair_loss"], rtol=1e-5)


def test_evaluation_is_that_of_the_whole_logits(params, made):
    """Loss and accuracy, of packed rows."""
    rows = batch(made["packed"])

    @jax.jit
    def both(params):
        evaluated = LAYOUTS["packed"].evaluate(params, CFG, rows)
        x_BTD = bert.apply(params, CFG, rows["tokens"], segments=rows["segments"])
        return evaluated, whole_logits_loss(params, LAYOUTS["packed"], rows)[0], bert.mlm(params, CFG, x_BTD)

    (sums, outputs), whole, logits_BTV = jax.device_get(both(params))
    best_BP = np.take_along_axis(logits_BTV.argmax(-1), rows["positions"], axis=1)
    assert set(sums) == {"loss", "accuracy"} and outputs == {}
    np.testing.assert_allclose(sums["loss"][0], whole, rtol=1e-5)
    assert sums["accuracy"][0] == ((best_BP == rows["labels"]) * rows["weights"]).sum()
    assert sums["accuracy"][1] == sums["loss"][1] == rows["weights"].sum()


def test_a_packed_document_is_as_if_alone(params, made):
    """Acceptance 7: float32, 1e-5. Every segment of two rows, on its own and in its row."""
    rows = batch(made["packed"], rows=2, padding=0)
    apply = jax.jit(bert.apply, static_argnums=1)
    x_BTD = np.asarray(apply(params, CFG, rows["tokens"], segments=rows["segments"]))
    alone, lengths, found = [], [], []
    for b, segments_T in enumerate(rows["segments"]):
        for segment in range(1, segments_T.max() + 1):
            at = segments_T == segment
            alone.append(np.pad(rows["tokens"][b, at], (0, T - at.sum())))
            lengths.append(at.sum())
            found.append(x_BTD[b, at])
    assert len(alone) > 2, "rows hold several documents"
    x_STD = np.asarray(apply(params, CFG, np.stack(alone), lengths=np.array(lengths, np.int32)))
    for n, packed_TD, alone_TD in zip(lengths, found, x_STD, strict=True):
        np.testing.assert_allclose(packed_TD, alone_TD[:n], atol=1e-5)


# ---- Numbers


def test_report_in_its_units():
    evaluation = Evaluation(None, masked_lm.Unigram(5.0, 0.04))
    sums = {"loss": (75.0, 50.0), "accuracy": (20.0, 50.0), "pair_loss": (3.0, 6.0), "pair_accuracy": (5.0, 6.0)}
    assert LAYOUTS["next_sentence"].report(sums, {}, evaluation) == {
        "loss_nats_per_masked_token": 1.5,
        "perplexity_per_masked_token": pytest.approx(math.e**1.5),
        "accuracy": 0.4,
        "unigram_loss_nats_per_masked_token": 5.0,
        "unigram_accuracy": 0.04,
        "pair_loss_nats": 0.5,
        "pair_accuracy": pytest.approx(5 / 6),
    }
    assert "pair_accuracy" not in MaskedLM().report(sums, {}, evaluation)


def test_unigram_by_hand():
    """Counts plus one of ids 1, 2, 3 (0 is special): 4, 2, 1 of 7. Of the labels 1, 1, 3, two are the most frequent."""
    tokens, ordinary = np.array([1, 0, 2, 1, 0, 1], np.uint16), np.array([False, True, True, True])
    scored = masked_lm.unigram(tokens, ordinary, np.array([1, 1, 3]))
    assert scored.loss == pytest.approx(-(2 * math.log(4 / 7) + math.log(1 / 7)) / 3)
    assert scored.accuracy == pytest.approx(2 / 3)


def test_the_baseline_is_a_model_that_knows_frequencies_alone(data, params, made):
    """Zero states leave the head's bias: with log frequencies there, the model scores what the baseline does."""
    prepared, task = made["full"], LAYOUTS["full"]
    counts = np.ones(CFG.vocab_size)
    for _, text in data.source.documents("train"):
        ids, times = np.unique(prepared.tokenizer.encode(text), return_counts=True)
        counts[ids] += times
    bias = np.log(counts)
    bias[: len(ROBERTA)] = -1e9
    blind = jax.tree.map(jnp.zeros_like, params)
    blind["mlm"]["bias"] = jnp.asarray(bias, jnp.float32)
    rows = [prepared.validation.examples[i] for i in range(len(prepared.validation.examples))]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    sums, _ = jax.jit(lambda params: task.evaluate(params, CFG, stacked))(blind)
    report = task.report({key: (float(a), float(b)) for key, (a, b) in sums.items()}, {}, prepared.validation)
    assert report["loss_nats_per_masked_token"] == pytest.approx(report["unigram_loss_nats_per_masked_token"], rel=1e-5)
    assert report["accuracy"] == pytest.approx(report["unigram_accuracy"], abs=1e-6)
    assert prepared.facts["unigram_accuracy"] == report["unigram_accuracy"]


def test_flops_of_bert_base():
    """6 * 12 layers of 12 * 768^2, attention, and the head on 20 of 128 tokens."""
    cfg = bert.Config()
    trunk, data = 128 * (6 * 12 * 12 * 768**2 + 12 * 12 * 768 * 128), corpus.TextCorpus(length=128)
    head = 6 * (768**2 + 768 * 30522) * 20
    assert MaskedLM().flops(cfg, data) == pytest.approx(trunk + head)
    albert = dataclasses.replace(cfg, embedding_width=128, share_layers=True)  # shared parameters still multiply
    head = 6 * (768 * 128 + 128 * 30522) * 20
    assert MaskedLM().flops(albert, data) == pytest.approx(trunk + 128 * 6 * 128 * 768 + head)


# ---- Prediction


@jax.jit
def logits_of(params, tokens_BT, n):
    return bert.mlm(params, CFG, bert.apply(params, CFG, tokens_BT, lengths=n))


def log_probs(params, tokenizer, ids, at):
    """float64 log-probabilities at one position, from the whole logits of this text alone."""
    special, n = tokenizer.special, len(ids) + 2
    row = np.array([[special.cls, *ids, special.sep, *[0] * (T - n)]], np.int32)
    logits_V = np.asarray(logits_of(params, row, np.array([n], np.int32)), np.float64)[0, at + 1]
    return logits_V - np.log(np.exp(logits_V - logits_V.max()).sum()) - logits_V.max()


def test_predict_fills_masks(params, made):
    tokenizer = made["full"].tokenizer
    text = "the <mask> fox <mask>."
    (answer,) = LAYOUTS["full"].predict(params, CFG, tokenizer, [text], top=3)
    ids = tokenizer.encode_prompt(text)
    places = np.flatnonzero(ids == tokenizer.special.mask)
    assert len(answer["masks"]) == len(places) == 2 and answer["pseudo_perplexity_per_token"] is None
    for at, best in zip(places, answer["masks"], strict=True):
        expected = log_probs(params, tokenizer, ids, at)
        order = np.argsort(-expected)[:3]
        assert [a["token"] for a in best] == [tokenizer.decode([i]) for i in order]
        np.testing.assert_allclose([a["probability"] for a in best], np.exp(expected[order]), rtol=1e-4)
    assert LAYOUTS["full"].describe(answer).startswith(f"{text}\n  mask 1: {answer['masks'][0][0]['token']!r} ")


def test_pseudo_log_likelihood(params, made):
    """Salazar et al. 2020: each token masked by itself. Several lengths, and more tokens than a batch has rows."""
    tokenizer = made["full"].tokenizer
    texts = ["the quick brown fox", "a lazy dog.", "wizards box with"] * 3
    scores = masked_lm.pseudo_log_likelihood(params, CFG, tokenizer, texts)
    assert sum(map(len, scores)) > masked_lm.filling.PREDICT_ROWS and len(scores) == 9
    for text, found in zip(texts[:2], scores, strict=False):
        ids = tokenizer.encode(text)
        for at, label in enumerate(ids):
            hidden = ids.copy()
            hidden[at] = tokenizer.special.mask
            np.testing.assert_allclose(found[at], log_probs(params, tokenizer, hidden, at)[label], rtol=1e-4)
    np.testing.assert_allclose(scores[0], scores[3], rtol=1e-5)
    compiled = masked_lm.filling._scores._cache_size()
    answer, *others = LAYOUTS["full"].predict(params, CFG, tokenizer, texts[:3], top=3)
    assert len(others) == 2 and masked_lm.filling._scores._cache_size() == compiled, "no text is compiled for"
    assert answer["pseudo_perplexity_per_token"] == pytest.approx(math.exp(-scores[0].mean()), rel=1e-5)
    assert answer["masks"] == [] and "no mask token" in LAYOUTS["full"].describe(answer)


def test_a_long_text_is_cut_and_said(params, made, capsys):
    (answer,) = LAYOUTS["full"].predict(params, CFG, made["full"].tokenizer, ["<mask> fox" + " dog" * 40], top=1)
    assert len(answer["masks"]) == 1
    assert "1 of 1 texts truncated to the model's 14 tokens" in capsys.readouterr().err


def test_masks_beyond_the_cut_are_filled(params, made):
    """The part of a long text around its masks is read; the fox of 13 tokens before it is that of any text before."""
    task, tokenizer = LAYOUTS["full"], made["full"].tokenizer
    before, after = tokenizer.encode(" dog" * 40), tokenizer.encode(" fox" * 40)
    mask = tokenizer.special.mask
    for ids, wanted in (
        ([*before, mask], [*before[-13:], mask]),
        ([*before, mask, *after], [*before[-6:], mask, *after[:7]]),
        ([mask, *after], [mask, *after[:13]]),
    ):
        assert masked_lm.filling._around_masks(np.array(ids), mask, 14).tolist() == wanted
    (answer,) = task.predict(params, CFG, tokenizer, ["the fox" * 40 + " <mask>"], top=1)
    assert len(answer["masks"]) == 1
    asked = ["the <mask>" + " dog" * 40 + "<mask>", "<mask>"]
    apart, good = task.predict(params, CFG, tokenizer, asked, top=1)
    assert (
        re.fullmatch(r"its masks span \d+ tokens, but the model reads 14; give a shorter text", apart["error"])
        and good["masks"]
    )


@pytest.mark.parametrize("spelled", ["[MASK]", "[mask]", "<MASK>"])
def test_the_mask_of_another_tokenizer_is_said(params, made, spelled):
    (found,) = LAYOUTS["full"].predict(params, CFG, made["full"].tokenizer, [f"the {spelled} fox"], top=1)
    assert found["error"] == f"{spelled} is not this tokenizer's mask token; write <mask>"


# ---- What is refused


def test_refused(data, params, made):
    with pytest.raises(InputError, match=r"task.pairs = 'both'"):
        MaskedLM(pairs="both")
    with pytest.raises(InputError, match=r"task.packed with task.pairs = 'next_sentence'"):
        MaskedLM(pairs="next_sentence", packed=True)
    with pytest.raises(InputError, match=r"the family gpt, and this task needs an encoder"):
        MaskedLM().prepare(data, gpt.Config(vocab_size=300), seed=0)
    with pytest.raises(InputError, match=r"heads are mlm; this task needs --model.heads pair"):
        MaskedLM(pairs="sentence_order").prepare(data, dataclasses.replace(CFG, heads=("mlm",)), seed=0)
    with pytest.raises(InputError, match=r"ids up to 299, but model.vocab_size is 200; give --model.vocab-size 300"):
        MaskedLM().prepare(data, dataclasses.replace(CFG, vocab_size=200), seed=0)
    (found,) = MaskedLM().predict(params, CFG, made["full"].tokenizer, [""], top=1)
    assert found["error"] == "it has no token; give some text"
    with pytest.raises(InputError, match=r"no token for \[CLS\], \[SEP\], \[MASK\]"):
        list(MaskedLM().predict(params, CFG, tokenizers.ByteTokenizer(), ["text"], top=1))


def test_round_trip(data):
    whole = experiments.Experiment(model=CFG, data=data, task=LAYOUTS["sentence_order"])
    assert config_json.from_json(config_json.to_json(whole)) == whole
