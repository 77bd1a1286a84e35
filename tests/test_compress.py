"""Kernels of eight bits: what is computed, how far it is from float32, and the tree that declares it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import adapters, compress, kernels
from transformer_jax.adapters import Lora
from transformer_jax.compress import Int8
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
    p = compress.quantize({"a": {"kernel": drawn((6, 12)), "bias": drawn((12,), 1)}}, Int8("a"))["a"]
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
    p = compress.quantize({"a": {"kernel": jnp.asarray(kernel)}}, Int8("a"))["a"]
    np.testing.assert_array_equal(p["kernel"], [[0, 127, -127], [0, 1, 2], [0, 0, 50]])
    np.testing.assert_allclose(p["scale"], [1.0, 0.01, 2.0], rtol=1e-6)
    assert p["kernel"].dtype == jnp.int8
    again = compress.quantize(compress.unpack({"a": p}), Int8("a"))["a"]
    np.testing.assert_array_equal(again["kernel"], p["kernel"])


def test_the_declared_tree_is_the_tree():
    rule, params = Int8("blocks/"), gpt.init(jax.random.key(0), MODEL)
    declaration = compress.declare(gpt.declare(MODEL), rule)
    small = compress.quantize(params, rule)
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
    params = compress.quantize(gpt.init(jax.random.key(0), MODEL), rule)
    declaration = adapters.declare(compress.declare(gpt.declare(MODEL), rule), lora)
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


@pytest.mark.parametrize(
    ("target", "words"),
    [("blcoks", "'blcoks' matches nothing; the kernels are blocks/"), ("(", "no regular expression")],
)
def test_a_rule_is_refused(target, words):
    with pytest.raises(InputError, match=".") as error:
        compress.declare(gpt.declare(MODEL), Int8(target))
    assert words in str(error.value) and "\n" not in str(error.value)
