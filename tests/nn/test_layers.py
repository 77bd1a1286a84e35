"""Norms, activations, the MLP and dropout against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn import reference
from transformer_jax.nn import layers

X = np.random.default_rng(0).standard_normal((2, 3, 8)) * 3 + 1
SCALE, BIAS = np.random.default_rng(1).standard_normal((2, 8))


def f32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def test_norms():
    both, scale = f32({"scale": SCALE, "bias": BIAS}), f32({"scale": SCALE})
    x = f32(X)
    np.testing.assert_allclose(
        layers.norm(both, x, "layer", 1e-5), reference.layer_norm(X, SCALE, BIAS, 1e-5), atol=1e-5
    )
    np.testing.assert_allclose(
        layers.norm(scale, x, "layer", 0.1), reference.layer_norm(X, SCALE, None, 0.1), atol=1e-5
    )
    np.testing.assert_allclose(layers.norm(scale, x, "rms", 0.1), reference.rms_norm(X, SCALE, 0.1), atol=1e-5)


def test_a_dense_layer_and_its_gradients():
    """On CPUs the kernel's and the bias's gradients are written out; both orders of the widths are."""
    rng = np.random.default_rng(0)
    for D, F in ((8, 5), (6, 5), (5, 8)):  # 6 rows: only the second is a transposed product
        x, kernel, bias, dy = (rng.standard_normal(s) for s in ((2, 3, D), (D, F), (F,), (2, 3, F)))
        p = f32({"kernel": kernel, "bias": bias})
        y, pull = jax.vjp(lambda p, x: layers.dense(p, x, out=None), p, f32(x))
        dp, dx = pull(f32(dy))
        np.testing.assert_allclose(y, x @ kernel + bias, atol=1e-5)
        np.testing.assert_allclose(dx, dy @ kernel.T, atol=1e-5)
        np.testing.assert_allclose(dp["kernel"], np.einsum("BTD,BTF->DF", x, dy), atol=1e-5)
        np.testing.assert_allclose(dp["bias"], dy.sum((0, 1)), atol=1e-5)


def test_statistics_of_norms_are_float32():
    """In bfloat16 the mean of 1000 + noise would have an error of 4 and drown the noise."""
    x = (1000 + 8 * np.arange(8)).astype(jnp.bfloat16)[None, None]
    y = layers.norm(f32({"scale": np.ones(8)}), jnp.asarray(x), "layer", 1e-5)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, reference.layer_norm(x.astype(np.float64), 1.0, None, 1e-5), atol=0.01)


@pytest.mark.parametrize("name", list(layers.ACTIVATIONS))
def test_activations(name):
    x = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(layers.ACTIVATIONS[name](f32(x)), reference.activate(x, name), atol=1e-6)


def test_the_gate_gates():
    rng = np.random.default_rng(2)
    p = {name: {"kernel": rng.standard_normal((8, 8))} for name in ("up", "gate", "down")}
    gated = reference.activate(X @ p["gate"]["kernel"], "silu") * (X @ p["up"]["kernel"]) @ p["down"]["kernel"]
    np.testing.assert_allclose(layers.mlp(f32(p), f32(X), "silu"), gated, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_statistics(rate):
    x = jnp.ones((200, 500))
    y = np.asarray(layers.dropout(x, rate, jax.random.key(0)))
    kept = y != 0
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / y.size)
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=2e-4)  # the rate is a multiple of 2^-16
    np.testing.assert_array_equal(y, layers.dropout(x, rate, jax.random.key(0)))
    assert (y != layers.dropout(x, rate, jax.random.key(1))).any()


def test_dropout_off_is_the_identity_itself():
    x = jnp.ones(3)
    assert layers.dropout(x, 0.5, None) is x and layers.dropout(x, 0.0, jax.random.key(0)) is x


def test_the_highest_rates_stay_finite():
    y = layers.dropout(jnp.ones(1000), 0.999999, jax.random.key(0))
    assert np.isfinite(y).all()


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_and_its_own_derivative_are_those_of_jax(name: str) -> None:
    x = jnp.linspace(-6.0, 6.0, 241)
    approximate = name == "gelu_tanh"
    ours = jax.vmap(jax.value_and_grad(layers.ACTIVATIONS[name]))(x)
    theirs = jax.vmap(jax.value_and_grad(lambda v: jax.nn.gelu(v, approximate=approximate)))(x)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)  # each is within 3e-6 of float64
    assert layers.ACTIVATIONS[name](x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_ids_out_of_range_are_refused_outside_jit():
    table = {"embedding": jnp.ones((5, 2))}
    for id in (5, -1):
        for ids in (np.array([[0, id]]), jnp.array([[0, id]])):
            with pytest.raises(ValueError, match=rf"id {id} is not in a table of 5 rows, 0 to 4"):
                layers.embed(table, ids, jnp.float32)
    assert layers.embed(table, np.array([[0, 4]]), jnp.float32).shape == (1, 2, 2)
    assert jax.jit(lambda ids: layers.embed(table, ids, jnp.float32))(np.array([[0, 4]])).shape == (1, 2, 2)
    known = jnp.array([[0, 4]])
    assert jax.jit(lambda table: layers.embed(table, known, jnp.float32))(table).shape == (1, 2, 2)
