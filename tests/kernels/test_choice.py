"""The choice between the plain form and the platforms' kernels, which compute the same."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax
from transformer_jax import kernels, losses
from transformer_jax.models import gpt
from transformer_jax.nn import layers

CFG = gpt.Config(vocab_size=32, max_length=16, width=32, num_layers=2, num_heads=2)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 16))


def loss(params):
    x_BTD = gpt.hidden(params, CFG, TOKENS[:, :-1])
    return losses.linear_cross_entropy(x_BTD, gpt.head(params, CFG), TOKENS[:, 1:], label_smoothing=0.1).sum


@pytest.fixture(scope="module")
def params():
    leaves, tree = jax.tree.flatten(gpt.init(jax.random.key(0), CFG))
    return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(jax.random.key(1), x.shape) for x in leaves])


@pytest.mark.parametrize("platform", kernels.PLATFORMS)
def test_a_platforms_kernels_give_the_plain_values_and_gradients(platform, params):
    with kernels.use("plain"):
        plain = jax.jit(jax.value_and_grad(loss))(params)
    with kernels.use(platform):
        other = jax.jit(jax.value_and_grad(loss))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), other, plain)


def test_the_plain_form_has_forward_mode_derivatives(params):
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), params)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(loss, (params,), (direction,))
    with kernels.use("plain"):
        _, slope = jax.jit(lambda p: jax.jvp(loss, (p,), (direction,)))(params)
    gradient = jax.grad(loss)(params)
    expected = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, expected, rtol=1e-3)


def test_another_choice_is_another_compilation():
    dense = jax.jit(lambda p, x_BTD: layers.dense(p, x_BTD, out=None))
    p, x_BTD = {"kernel": jnp.ones((4, 3))}, jnp.ones((1, 2, 4))
    assert "custom_vjp" in str(dense.trace(p, x_BTD).jaxpr)
    with kernels.use("plain"):
        assert "custom_vjp" not in str(dense.trace(p, x_BTD).jaxpr)
        assert kernels.find("dense") is None and kernels.find("dense", "cpu") is not None


def test_an_unknown_platform():
    with pytest.raises(ValueError, match="kernels.use\\('npu'\\): give auto, plain, cpu, tpu, gpu"):
        kernels.use("npu")


def test_every_kernel_is_in_place_of_a_plain_form():
    sources = [path.read_text() for path in Path(transformer_jax.__file__).parent.rglob("*.py")]
    asked = {name for text in sources for name in re.findall(r'kernels\.(?:choose|find)\("(\w+)"', text)}
    asked |= {"row_sums", "attention_fits"}
    for platform in kernels.PLATFORMS:
        module = importlib.import_module(f"transformer_jax.kernels.{platform}")
        assert set(module.__all__) <= asked, f"kernels/{platform}.py has kernels that no plain form is marked with"
