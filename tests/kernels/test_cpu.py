"""The forms of the layers that CPUs compute faster, against the plain ones."""

import contextlib

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from transformer_jax import sharding
from transformer_jax.kernels import cpu
from transformer_jax.nn import layers


@pytest.mark.parametrize("kind", [None, AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("rows", "length", "first"), [(8, 1, True), (8, 5, False), (4 * 2 * cpu.FEW_ROWS, 1, False)])
def test_transposed_kernels_give_the_same_product(rows, length, first, kind):
    """Few rows take the kernel first; also where a mesh shards rows and kernel."""
    rng = np.random.default_rng(0)
    p = {"kernel": rng.normal(size=(6, 10)).astype(np.float32), "bias": rng.normal(size=10).astype(np.float32)}
    x_BTD = rng.normal(size=(rows, length, 6)).astype(np.float32)
    layer = cpu.decoding_layout(list, [{"query": p, "norm": {"scale": p["bias"]}}])[0]
    assert layer.keys() == {"query", "norm"} and layer["query"].keys() == {"transposed", "bias"}
    dense = jax.jit(lambda p, x_BTD: layers.dense(p, x_BTD, out="mlp"))
    mesh = contextlib.nullcontext()
    if kind is not None:
        mesh = jax.set_mesh(jax.make_mesh((2, 2, 1, 2), sharding.MESH_AXES, axis_types=(kind,) * 4))
    with mesh:
        if kind is AxisType.Explicit:
            x_BTD = jax.device_put(x_BTD, jax.P(("data", "fsdp")))
            layer["query"]["transposed"] = jax.device_put(layer["query"]["transposed"], jax.P("tensor", "fsdp"))
        got = dense(layer["query"], x_BTD)
        assert ("optimization_barrier" in str(dense.trace(layer["query"], x_BTD).jaxpr)) == first
    np.testing.assert_allclose(got, x_BTD @ p["kernel"] + p["bias"], atol=1e-5)
