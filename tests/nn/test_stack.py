"""The two ways of running a stack, and what the backward pass keeps, on a block small enough to know the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.nn import stack

PARAMS = {"w": jnp.array([2.0, 3.0, 5.0])}


def block(p, x, layer, key):
    noise = 0.0 if key is None else jax.random.uniform(key)
    return jnp.sin(p["w"] * x) + layer + noise


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", list(stack.REMAT))
def test_layers_run_in_order_with_their_own_keys(scan, remat):
    def ours(params, x, key):
        return stack.run(block, params, x, num_layers=3, scan=scan, remat=remat, key=key)

    def by_hand(params, x, key):
        for i in range(3):
            x = block({"w": params["w"][i]}, x, i, None if key is None else jax.random.fold_in(key, i))
        return x

    for key in (None, jax.random.key(0)):
        got = jax.value_and_grad(ours)(PARAMS, 0.7, key)
        expected = jax.value_and_grad(by_hand)(PARAMS, 0.7, key)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(got[1]["w"], expected[1]["w"], rtol=1e-4)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_layer_may_be_another_function(scan, layers):
    def last(p, x, layer, key):
        return jnp.stack([x, 10.0 * block(p, x, layer, key)])

    p, key, x = {"w": PARAMS["w"][:layers]}, jax.random.key(0), 0.7
    got = stack.run(block, p, x, num_layers=layers, scan=scan, remat="none", key=key, last=last)
    for i in range(layers - 1):
        x = block({"w": p["w"][i]}, x, i, jax.random.fold_in(key, i))
    np.testing.assert_allclose(
        got, last({"w": p["w"][-1]}, x, layers - 1, jax.random.fold_in(key, layers - 1)), rtol=1e-5
    )
