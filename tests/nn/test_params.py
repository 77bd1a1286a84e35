"""Declarations: what is drawn, what stays when the tree grows, and what is derived from it."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from transformer_jax import sharding
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.nn import params
from transformer_jax.nn.params import Param, normal, ones, zeros

KEY = jax.random.key(0)
SMALL = {
    "a": {"kernel": Param((4, 6), ("embed", "mlp"), normal(1.0))},
    "blocks": params.stack(
        {"kernel": Param((4, 4), ("embed", "heads"), normal(1.0)), "scale": Param((4,), (None,), ones)}, 3
    ),
}


def test_a_new_leaf_and_a_new_layer_change_no_other_draw():
    larger = {
        "0_first": {"kernel": Param((4, 6), ("embed", "mlp"), normal(1.0))},
        "a": {**SMALL["a"], "bias": Param((6,), ("mlp",), normal(1.0))},
        "blocks": params.stack(
            {"kernel": SMALL["a"]["kernel"], "new": Param((2,), (None,), zeros), "scale": Param((4,), (None,), ones)}, 5
        ),
    }
    larger["blocks"]["kernel"] = Param((5, 4, 4), ("layers", "embed", "heads"), normal(1.0))
    before, after = params.init(KEY, SMALL), params.init(KEY, larger)
    np.testing.assert_allclose(before["a"]["kernel"], after["a"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(before["blocks"]["kernel"], after["blocks"]["kernel"][:3], rtol=1e-6)
    draws = [np.asarray(a).ravel()[:4] for a in (after["0_first"]["kernel"], after["a"]["kernel"])]
    draws += [np.asarray(layer).ravel()[:4] for layer in after["blocks"]["kernel"]]
    assert len({tuple(draw) for draw in draws}) == len(draws), "two leaves or layers were drawn alike"


def test_no_two_leaves_of_a_model_share_a_key():
    """The key is folded in from crc32 of the path, which could collide."""
    cfg = gpt.Config(vocab_size=8, position="relative", gated=True, qk_norm=True, tie_embeddings=False)
    names = {*params.flatten(gpt.declare(cfg)), *params.flatten(gpt.declare(gpt.Config(vocab_size=8)))}
    assert len({zlib.crc32(name.encode()) for name in names}) == len(names) > 20


def test_counts_and_paths():
    assert params.count(SMALL) == 4 * 6 + 3 * (4 * 4 + 4)
    assert list(params.flatten(SMALL)) == ["a/kernel", "blocks/kernel", "blocks/scale"]
    assert params.flatten(SMALL)["blocks/kernel"].axes == ("layers", "embed", "heads")


def test_decay_is_for_matrices():
    tree = {"bias": Param((3,), (None,), zeros), "table": Param((3, 4), ("vocab", "embed"), normal(1.0)), **SMALL}
    mask = params.decay_mask(tree)
    assert params.flatten(mask) == {
        "a/kernel": True,
        "bias": False,
        "blocks/kernel": True,
        "blocks/scale": False,  # [layers, D] is a stack of vectors
        "table": True,
    }


def test_abstract_values_and_shardings():
    mesh = sharding.make_mesh(1, 2, 2, 2)
    abstract = params.flatten(params.abstract(SMALL, mesh, jnp.bfloat16))
    assert abstract["a/kernel"].sharding.spec == P("fsdp", "tensor")
    assert abstract["blocks/kernel"].sharding.spec == P(None, "fsdp", "tensor")
    assert abstract["blocks/scale"].sharding.spec in (P(), P(None, None))
    assert abstract["a/kernel"].dtype == jnp.bfloat16
    assert params.abstract(SMALL)["a"]["kernel"] == jax.ShapeDtypeStruct((4, 6), jnp.float32)
    values = jax.jit(lambda: params.init(KEY, SMALL), out_shardings=params.shardings(SMALL, mesh))()
    assert values["a"]["kernel"].sharding.shard_shape((4, 6)) == (2, 3)
    assert {shard.data.shape for shard in values["blocks"]["kernel"].addressable_shards} == {(3, 2, 2)}
    for one, many in zip(jax.tree.leaves(params.init(KEY, SMALL)), jax.tree.leaves(values), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-6)  # the same draw on one device and on eight


def test_errors_name_the_leaf():
    tree = {"mlp": {"up": {"kernel": Param((4, 5), ("embed", "mlp"), zeros)}}}
    with pytest.raises(
        InputError, match=r"^mlp/up/kernel: axis 'mlp' of size 5 does not divide .*'tensor'.* 2 devices"
    ):
        params.shardings(tree, sharding.make_mesh(-1, tensor=2))
    with pytest.raises(AssertionError, match="names 1 axes"):
        Param((4, 5), ("embed",), zeros)


def test_unstack_is_the_inverse_of_stacking():
    tree = {"k": jnp.arange(24.0).reshape(3, 2, 4), "b": jnp.arange(3.0)}
    for i, layer in enumerate(params.unstack(tree, 3)):
        np.testing.assert_array_equal(layer["k"], tree["k"][i])
        assert layer["b"].shape == () and layer["b"] == i


def test_gpt2s_initial_values():
    """Radford et al. 2019 and its code: N(0, 0.02), residual projections scaled by 1/sqrt(2 L), biases 0, scales 1."""
    cfg = gpt.Config(vocab_size=512, width=128, num_layers=8, num_heads=4, max_length=64)
    values = params.flatten(jax.jit(gpt.init, static_argnums=1)(KEY, cfg))
    draws: list[float] = []
    for name, value in values.items():
        value = np.asarray(value)
        if name.endswith(("bias", "scale")):
            assert (value == float(name.endswith("scale"))).all(), name
        else:
            std = 0.02 / np.sqrt(2 * 8) if name.endswith(("out/kernel", "down/kernel")) else 0.02
            error = 4 / np.sqrt(2 * value.size)  # four standard deviations of an estimated standard deviation
            assert abs(value.std() / std - 1) < error, name
            assert abs(value.mean()) < 4 * std / np.sqrt(value.size), name
            first = value.reshape(value.shape[0], -1)[:, 0] if name.startswith("blocks") else value[0, :1]
            draws += (first / std).round(4).tolist()
    assert len(set(draws)) == len(draws) == 6 * 8 + 2, "two leaves or layers were drawn alike"
