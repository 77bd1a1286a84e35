"""The two ways of running a stack, and what the backward pass keeps, on a block small enough to know the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import kernels
from transformer_jax.models import seq2seq
from transformer_jax.nn import block as blocks
from transformer_jax.nn import params as params_lib
from transformer_jax.nn import stack
from transformer_jax.nn.masks import Mask

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


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_tpu_keeps_sums_and_products_that_are_read_and_computes_the_rest_again(order, capsys):
    cfg = seq2seq.Config(
        vocab_size=16, width=8, num_layers=1, num_heads=2, norm_order=order, attention="xla", dropout=0.0
    )
    params = params_lib.init(jax.random.key(0), params_lib.stack(blocks.declare(cfg), 1))
    x_BTD = jax.random.normal(jax.random.key(1), (2, 6, 8))

    def loss(params):
        def one(p, x, layer, key):
            return blocks.apply(p, cfg, x, mask=Mask())[0]

        return jnp.sum(stack.run(one, params, x_BTD, num_layers=1, scan=False, remat="none", key=None) ** 2)

    plain = jax.jit(jax.grad(loss))(params)
    with kernels.use("tpu"):
        again = jax.jit(jax.grad(loss))(params)
        jax.ad_checkpoint.print_saved_residuals(loss, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, plain)
    kept = [line for line in capsys.readouterr().out.splitlines() if "reduce_precision" in line or "named" in line]
    count = {  # as "shape, the function that it comes from"
        (shape, name): sum(line.startswith(f"f32[{shape}]") and f"({name})" in line for line in kept)
        for shape in ("2,6,8", "2,6,32")
        for name in ("dense", "residual")
    }
    # Queries, keys and values; the sum with attention, and where a norm reads it the sum with the MLP; the MLP's first
    # product. Not what was added to the sums, no norm's result and no activation's.
    assert count == {
        ("2,6,8", "dense"): 3,
        ("2,6,8", "residual"): {"pre": 1, "post": 2}[order],
        ("2,6,32", "dense"): 1,
        ("2,6,32", "residual"): 0,
    }
    assert len(kept) == sum(count.values()) + 4  # and two statistics of each of two norms
