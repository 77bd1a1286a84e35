"""The task against hand-made numbers: the loss in float64, the report's units, gzip byte for byte."""

import gzip
import math

import jax
import numpy as np
import pytest

from transformer_jax.contracts import Evaluation
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Sample
from transformer_jax.models import gpt
from transformer_jax.tasks import CausalLM
from transformer_jax.tasks.causal_lm import Reference, gzip_bits_per_byte

CFG = gpt.Config(vocab_size=11, max_length=8, width=8, num_layers=1, num_heads=2, init_std=0.5)


def batch():
    tokens_BT = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
    weights_BT = np.ones((3, 5), np.float32)
    weights_BT[2, 1:] = 0
    return {"inputs": tokens_BT[:, :-1], "targets": tokens_BT[:, 1:], "weights": weights_BT}


def test_loss_is_the_weighted_sum_of_nats():
    params, rows = gpt.init(jax.random.key(0), CFG), batch()
    total, weight, sums = CausalLM().loss(params, CFG, rows)
    logits_BTV = np.asarray(gpt.apply(params, CFG, rows["inputs"]), np.float64)
    log_probs = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, rows["targets"][..., None], -1)[..., 0]
    assert float(weight) == 11
    np.testing.assert_allclose(float(total), -(picked * rows["weights"]).sum(), rtol=1e-5)
    assert sums["loss"] == (total, weight)


def test_smoothing_trains_but_is_not_reported():
    params, rows = gpt.init(jax.random.key(0), CFG), batch()
    plain, _, _ = CausalLM().loss(params, CFG, rows)
    smooth, _, sums = CausalLM(label_smoothing=0.1).loss(params, CFG, rows)
    assert abs(float(smooth) - float(plain)) > 1e-2
    np.testing.assert_allclose(float(sums["loss"][0]), float(plain), rtol=1e-6)


def test_report_in_its_units():
    """100 bytes cost 50 tokens * 1.5 nats = 75 nats = 108.2 bits: 1.082 bits per byte."""
    report = CausalLM().report({"loss": (75.0, 50.0)}, {}, Evaluation(None, Reference(100, gzip_bits_per_byte=2.5)))
    assert report["loss_nats_per_token"] == 1.5
    assert report["perplexity_per_token"] == pytest.approx(math.e**1.5)
    assert report["bits_per_byte"] == pytest.approx(75 / math.log(2) / 100)
    assert report["gzip_bits_per_byte"] == 2.5


def test_uniform_model_costs_eight_bits_per_byte(tmp_path):
    """Zero parameters on a byte vocabulary of 257: log2(257) bits for each byte and each end of text."""
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog " * 40)
    data = corpus.TextCorpus(sources.TextFiles((str(tmp_path / "a.txt"),)), tokenizers.Bytes(), length=16)
    cfg = gpt.Config(vocab_size=257, max_length=16, width=8, num_layers=1, num_heads=1)
    task = CausalLM()
    prepared = task.prepare(data, cfg, seed=0)
    params = jax.tree.map(np.zeros_like, gpt.init(jax.random.key(0), cfg))
    rows = [prepared.validation.examples[i] for i in range(len(prepared.validation.examples))]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    total, weight, _ = task.loss(params, cfg, stacked)
    report = task.report({"loss": (float(total), float(weight))}, {}, prepared.validation)
    assert report["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-5)
    assert weight == prepared.validation.reference.predicted_bytes
    assert {name: (x.shape, x.dtype) for name, x in rows[0].items()} == {
        name: (x.shape, x.dtype) for name, x in task.example(data).items()
    }


def test_gzip_is_gzip_nine_of_each_file():
    texts = {"a": "spam and eggs\n" * 50, "b": "é" * 7, "c": "x = 1\n" * 9}
    bits = 8 * sum(len(gzip.compress(t.encode(), 9, mtime=0)) for t in texts.values())
    whole = sum(len(t.encode()) for t in texts.values())
    pieces = [("a", texts["a"][:100]), ("a", texts["a"][100:]), ("b", texts["b"]), ("c", texts["c"])]
    assert gzip_bits_per_byte(pieces) == bits / whole


def test_vocabulary_smaller_than_a_token_id(tmp_path):
    (tmp_path / "a.txt").write_text("some text to learn from\n" * 20)
    data = corpus.TextCorpus(sources.TextFiles((str(tmp_path / "a.txt"),)), tokenizers.Bytes(), length=8)
    with pytest.raises(InputError, match=r"ids up to 256.*model.vocab_size is 11.*--model.vocab-size 257"):
        CausalLM().prepare(data, CFG, seed=0)


def test_flops_of_gpt2_small():
    """6 * (12 layers of 12 * 768^2, and the 768 x 50,257 output) + 12 * 12 * 768 * 1,024 (PaLM, appendix B)."""
    data = corpus.TextCorpus(length=1024)
    flops = CausalLM().flops(gpt.Config(vocab_size=50257), data)
    assert flops == 1024 * (6 * (12 * 12 * 768**2 + 768 * 50257) + 12 * 12 * 768 * 1024)
    assert CausalLM().tokens(data) == 1024
    untied = gpt.Config(vocab_size=50257, tie_embeddings=False)
    assert CausalLM().flops(untied, data) == flops


def test_a_sample_ends_at_any_stop_token():
    """Imported models have the end of a turn besides the end of the text."""
    params, letters = gpt.init(jax.random.key(0), CFG), tokenizers.CharacterTokenizer("abcdefghijk")
    options = Sample(prompt="a", max_new_tokens=6)
    whole = "".join(CausalLM().sample(params, CFG, letters, options, seed=1))
    stop = letters.encode(whole)[3]
    ended = "".join(CausalLM(stop_ids=(int(stop),)).sample(params, CFG, letters, options, seed=1))
    assert len(whole) == 7 and ended == "a" + whole[1:].split(whole[3])[0]


def test_a_prompt_is_checked_before_the_first_step():
    """Characters alone can be encoded that the training text has; nothing asked is never refused."""
    tokenizer = tokenizers.build(tokenizers.Characters(), sources.in_memory([("a", "no line end here")]))
    with pytest.raises(InputError, match="'K'"):
        CausalLM().check_sample(gpt.Config(vocab_size=64), tokenizer, Sample(prompt="KING:"))
    CausalLM().check_sample(gpt.Config(vocab_size=64), tokenizer, Sample(prompt="KING:", max_new_tokens=0))
    CausalLM().check_sample(gpt.Config(vocab_size=64), tokenizer, Sample())
    assert tokenizers.prompt_ids(tokenizer, "") == [0]
