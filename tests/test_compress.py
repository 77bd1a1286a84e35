"""Kernels of eight bits and of low rank, pruning: what is computed, how far it is from float32, the declared tree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import adapters, compress, kernels
from transformer_jax.adapters import Lora
from transformer_jax.compress import Int8, pruning
from transformer_jax.compress.low_rank import LowRank
from transformer_jax.compress.pruning import Prune
from transformer_jax.errors import InputError
from transformer_jax.kernels import cpu
from transformer_jax.models import gpt
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib

MODEL = gpt.Config(vocab_size=64, max_length=16, width=16, num_layers=2, num_heads=2, scan_layers=False)


def drawn(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("form", ["plain", "cpu", "decoding", "adapted"])
def test_a_dense_layer_of_eight_bits_is_the_formula(form, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", 20)  # several blocks
    p = Int8("a").apply({"a": {"kernel": drawn((6, 12)), "bias": drawn((12,), 1)}})["a"]
    q, scale = np.asarray(p["kernel"], np.float64), np.asarray(p["scale"], np.float64)
    matrix, x = q * scale, drawn((3, 1, 6), 2)
    if form == "adapted":
        p |= {"lora_a": drawn((6, 2), 3), "lora_b": drawn((2, 12), 4), "lora_scale": jnp.float32(0.5)}
        matrix = matrix + 0.5 * np.asarray(p["lora_a"], np.float64) @ np.asarray(p["lora_b"], np.float64)
    np.testing.assert_allclose(layers.matrix(p), matrix, rtol=1e-5, atol=1e-5)
    if form == "decoding":
        p["transposed"] = p.pop("kernel").T
    assert cpu._blocks(6, 12) > 1
    with kernels.use("plain" if form == "plain" else "cpu"):
        found = jax.jit(lambda p, x: layers.dense(p, x, out=None))(p, x)
    expected = np.asarray(x, np.float64) @ matrix + np.asarray(p["bias"], np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_each_column_is_rounded_by_its_own_scale():
    kernel = np.array([[0.0, 1.27, -254.0], [0.0, 0.013, 3.1], [0.0, -0.004, 100.9]], np.float32)
    p = Int8("a").apply({"a": {"kernel": jnp.asarray(kernel)}})["a"]
    np.testing.assert_array_equal(p["kernel"], [[0, 127, -127], [0, 1, 2], [0, 0, 50]])
    np.testing.assert_allclose(p["scale"], [1.0, 0.01, 2.0], rtol=1e-6)
    assert p["kernel"].dtype == jnp.int8
    again = Int8("a").apply(compress.unpack({"a": p}))["a"]
    np.testing.assert_array_equal(again["kernel"], p["kernel"])


def test_the_declared_tree_is_the_tree():
    rule, params = Int8("blocks/"), gpt.init(jax.random.key(0), MODEL)
    declaration = rule.declare(gpt.declare(MODEL))
    small = rule.apply(params)
    wanted = params_lib.flatten(params_lib.abstract(declaration))
    assert {path: (x.shape, x.dtype) for path, x in params_lib.flatten(small).items()} == {
        path: (x.shape, x.dtype) for path, x in wanted.items()
    }
    kernels_of = lambda tree: sum(x.nbytes for p, x in params_lib.flatten(tree["blocks"]).items() if "kernel" in p)  # noqa: E731
    assert 4 * kernels_of(small) == kernels_of(params)
    assert not any(p.trained for p in params_lib.flatten(declaration).values())
    assert params_lib.flatten(compress.unpack(small)).keys() == params_lib.flatten(params).keys()
    logits = jax.jit(gpt.apply, static_argnums=1)
    tokens = np.arange(8)[None]
    exact = logits(params, MODEL, tokens)
    np.testing.assert_allclose(logits(small, MODEL, tokens), logits(compress.unpack(small), MODEL, tokens), atol=1e-5)
    assert 0 < np.abs(logits(small, MODEL, tokens) - exact).max() < 0.02 * np.abs(exact).max()


def test_an_adapter_of_a_model_of_eight_bits():
    rule, lora = Int8("blocks/"), Lora(rank=2, target="attention/query/", dora=True)
    params = rule.apply(gpt.init(jax.random.key(0), MODEL))
    declaration = adapters.declare(rule.declare(gpt.declare(MODEL)), lora)
    adapted = adapters.attach(params, declaration, jax.random.key(1))
    trained, frozen = params_lib.split(adapted, declaration)
    names = {path.rpartition("/")[2] for path in params_lib.flatten(trained)}
    assert names == {"lora_a", "lora_b", "lora_magnitude"}
    assert frozen["blocks"]["attention"]["query"]["kernel"].dtype == jnp.int8
    merged = compress.unpack(adapters.merge(adapted))
    assert params_lib.flatten(merged).keys() == params_lib.flatten(gpt.declare(MODEL)).keys()
    expected = params_lib.flatten(compress.unpack(params))
    for path, leaf in params_lib.flatten(merged).items():
        np.testing.assert_allclose(leaf, expected[path], atol=1e-6, err_msg=path)


# ---- Low rank ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "cpu", "adapted"])
def test_two_factors_are_the_nearest_product_of_their_rank(form):
    rule, kernel, x = LowRank("a", share=0.5), drawn((12, 20)), drawn((3, 2, 12), 2)
    p = rule.apply({"a": {"kernel": kernel, "bias": drawn((20,), 1)}})["a"]
    assert p["low_a"].shape == (12, 3) and p["low_b"].shape == (3, 20)  # 96 of 240 numbers; of rank 4 it would be 128
    left, values, right = np.linalg.svd(np.asarray(kernel, np.float64))
    matrix = left[:, :3] * values[:3] @ right[:3]
    np.testing.assert_allclose(layers.matrix(p), matrix, atol=1e-5)
    if form == "adapted":
        p |= {"lora_a": drawn((12, 2), 3), "lora_b": drawn((2, 20), 4), "lora_scale": jnp.float32(0.5)}
        matrix = matrix + 0.5 * np.asarray(p["lora_a"], np.float64) @ np.asarray(p["lora_b"], np.float64)
    with kernels.use("plain" if form == "plain" else "cpu"):
        found = jax.jit(lambda p, x: layers.dense(p, x, out=None))(p, x)
    np.testing.assert_allclose(found, np.asarray(x, np.float64) @ matrix + np.asarray(p["bias"]), atol=1e-5)


def test_the_declared_factors_are_the_factors():
    rule, params = LowRank("blocks/mlp/", share=0.25), gpt.init(jax.random.key(0), MODEL)
    declaration, small = rule.declare(gpt.declare(MODEL)), rule.apply(params)
    for tree in (small, params_lib.init(jax.random.key(0), declaration)):
        assert {path: x.shape for path, x in params_lib.flatten(tree).items()} == {
            path: p.shape for path, p in params_lib.flatten(declaration).items()
        }
    assert all(p.trained for p in params_lib.flatten(declaration).values())
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree["blocks"]["mlp"]))  # noqa: E731
    biases = sum(x.size for path, x in params_lib.flatten(params["blocks"]["mlp"]).items() if "bias" in path)
    assert 0.2 < (count(small) - biases) / (count(params) - biases) <= 0.25
    assert params_lib.flatten(compress.unpack(small)).keys() == params_lib.flatten(params).keys()
    with pytest.raises(InputError, match=r"compress.share is 1.5; it must be above 0 and below 1"):
        LowRank(share=1.5)


# ---- Pruning -------------------------------------------------------------------------------------------------------


def test_the_smallest_weights_of_all_kernels_become_zero():
    params = {"a": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.1]])}, "b": {"kernel": jnp.array([[-0.2, 8.0]])}}
    found = Prune("", share=0.5).apply(params)
    np.testing.assert_array_equal(found["a"]["kernel"], [[0, -2], [3, 0]])
    np.testing.assert_array_equal(found["b"]["kernel"], [[0, 8]])
    assert pruning.zeros(found) == 0.5


def test_heads_that_change_nothing_are_removed():
    """Layer 0 loses its first head and layer 1 its second, whose output projections are zero: the logits are equal."""
    params = gpt.init(jax.random.key(0), MODEL)
    out = params["blocks"]["attention"]["out"]
    H = MODEL.head_width
    out["kernel"] = out["kernel"].at[0, :H].set(0.0).at[1, H:].set(0.0)
    cfg, small = pruning.without_heads(MODEL, params, gpt.declare, keep=1)
    assert cfg.num_heads == 1 and cfg.head_width == H
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(gpt.apply(small, cfg, tokens), gpt.apply(params, MODEL, tokens), atol=1e-6)
    kept = np.asarray(params["blocks"]["attention"]["query"]["kernel"])
    np.testing.assert_array_equal(small["blocks"]["attention"]["query"]["kernel"][0], kept[0, :, H:])
    np.testing.assert_array_equal(small["blocks"]["attention"]["query"]["kernel"][1], kept[1, :, :H])


@pytest.mark.parametrize(
    ("changes", "keep", "words"),
    [
        ({}, 3, "keep is 3; the model has 2 heads in each layer"),
        ({"position": "alibi"}, 1, "give each head its own numbers"),
        ({"num_kv_heads": 1}, 1, "no groups"),
    ],
)
def test_heads_that_cannot_be_removed(changes, keep, words):
    cfg = dataclasses.replace(MODEL, **changes)
    with pytest.raises(InputError, match=words):
        pruning.without_heads(cfg, gpt.init(jax.random.key(0), cfg), gpt.declare, keep)


@pytest.mark.parametrize(
    ("target", "words"),
    [("blcoks", "'blcoks' matches nothing; the kernels are blocks/"), ("(", "no regular expression")],
)
def test_a_rule_is_refused(target, words):
    with pytest.raises(InputError, match=".") as error:
        Int8(target).declare(gpt.declare(MODEL))
    assert words in str(error.value) and "\n" not in str(error.value)
