"""One pair of functions, gpt.apply and the gradient of a loss on gpt.hidden, everywhere JAX can put them.

Every mode must give what plain jit gives: to float32 rounding; on eight devices within 1e-6.
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.nn import reference
from transformer_jax import losses, sharding
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib

B, T, V = 8, 8, 32
GPT2 = gpt.Config(vocab_size=V, max_length=9, width=16, num_layers=2, num_heads=4, num_kv_heads=2)
LLAMA = dataclasses.replace(
    GPT2, norm="rms", position="rotary", gated=True, activation="silu", bias=False, qk_norm=True, tie_embeddings=False
)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T)).astype(np.int32)


def loss(params, cfg, tokens, key=None):
    """Mean loss in four tiles: 2 positions of 8 rows at a time."""
    x = gpt.hidden(params, cfg, tokens, key=key)
    total, weight, _ = losses.linear_cross_entropy(x, gpt.head(params, cfg), tokens, tile_bytes=4 * B * 2 * V)
    return total / weight


def everything(params, cfg, tokens):
    """Logits, loss and gradients."""
    return gpt.apply(params, cfg, tokens), *jax.value_and_grad(loss)(params, cfg, tokens)


def single(cfg):
    return jax.tree.map(lambda a: np.asarray(a / 4, np.float32), reference.random_params(gpt.declare(cfg), seed=2))


def same(got, expected, tolerance=1e-6):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * max(1.0, np.abs(other).max()))


@pytest.fixture(scope="module")
def expected():
    """What one device gives, under plain jit, for both families' parameters."""
    return {cfg: jax.jit(everything, static_argnums=1)(single(cfg), cfg, TOKENS) for cfg in (GPT2, LLAMA)}


def test_bare(expected):
    """No transformation at all, and NumPy arrays."""
    same(gpt.apply(single(GPT2), GPT2, TOKENS), expected[GPT2][0], 1e-5)


def test_checkpoint(expected):
    saved = jax.jit(jax.value_and_grad(jax.checkpoint(loss, static_argnums=1)), static_argnums=1)
    same(saved(single(GPT2), GPT2, TOKENS), expected[GPT2][1:], 2e-6)


def test_vmap_over_a_stack_of_parameter_sets(expected):
    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a, a]), single(GPT2))
    got = jax.jit(jax.vmap(lambda params: everything(params, GPT2, TOKENS)))(several)
    for i in (0, 2):
        same(jax.tree.map(lambda a: a[i], got), expected[GPT2], 2e-6)
    assert np.abs(np.asarray(got[0][1]) - expected[GPT2][0]).max() > 0.1


def test_pmap(expected):
    """Eight replicas of one row each; the mean of their losses and gradients is the batch's."""

    def replica(params, tokens):
        logits, *rest = everything(params, GPT2, tokens)
        return logits, *jax.lax.pmean(tuple(rest), "i")

    logits, value, grads = jax.pmap(replica, axis_name="i", in_axes=(None, 0))(single(GPT2), TOKENS[:, None])
    same((logits[:, 0], value[0], jax.tree.map(lambda g: g[0], grads)), expected[GPT2], 2e-6)


def on_mesh(mesh, cfg):
    """Everything, from sharded parameters and tokens."""
    places = params_lib.shardings(gpt.declare(cfg), mesh)
    params = jax.device_put(single(cfg), places)
    batch = NamedSharding(mesh, sharding.partition_spec(("batch", "length"), TOKENS.shape, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(everything, static_argnums=1)(params, cfg, jax.device_put(TOKENS, batch)), params, places


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("shape", "cfg"), [((2, 2, 1, 2), GPT2), ((1, 2, 2, 2), LLAMA)], ids=["gpt2", "llama"])
def test_eight_devices_are_one(shape, cfg, kind, expected):
    mesh = jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(kind,) * 4)
    (logits, value, grads), params, places = on_mesh(mesh, cfg)
    same((logits, value, grads), expected[cfg])
    # Really cut: a kernel's shards are a quarter of it, by fsdp and tensor.
    up = params["blocks"]["mlp"]["up"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 16 // 2, 64 // 2)}
    table = params["embed"]["token"]["embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(V // 2, 16 // 2)}
    if (
        kind == AxisType.Explicit
    ):  # a gradient is laid out as its parameter; the Auto compiler lays it out as it is used
        for name, kernel in params_lib.flatten(grads).items():
            assert kernel.sharding.is_equivalent_to(params_lib.flatten(places)[name], kernel.ndim), name


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 2, 2, 2)])
def test_prefill_and_decode_on_a_mesh(shape, kind, expected):
    """Also where the length is cut: the one new token is on every device of the sequence axis."""
    mesh = jax.make_mesh(shape, sharding.MESH_AXES, axis_types=(kind,) * 4)
    params = jax.device_put(single(GPT2), params_lib.shardings(gpt.declare(GPT2), mesh))

    @jax.jit
    def decode(params, prompts, start_B, token_B):
        logits, cache = gpt.prefill(params, GPT2, prompts, gpt.init_cache(GPT2, B, 8), start_B=start_B)
        return logits, *gpt.decode_step(params, GPT2, token_B, cache)

    with jax.set_mesh(mesh):
        start_B = jnp.zeros(B, jnp.int32)
        first, second, cache = decode(params, jnp.asarray(TOKENS[:, :6]), start_B, jnp.asarray(TOKENS[:, 6]))
    same((first, second), (expected[GPT2][0][:, 5], expected[GPT2][0][:, 6]), 5e-6)
    assert cache.k_LBKSH.sharding.shard_shape(cache.k_LBKSH.shape) == (2, B // (shape[0] * shape[1]), 1, 8, 4)


def test_dropout_on_a_mesh_is_dropout_on_one_device():
    """The draws do not depend on the layout; and the model with dropout is well typed where layouts are types."""
    x = np.ones((8, 16, 4), np.float32)
    f = jax.jit(lambda x: layers.dropout(sharding.constrain(x, ("batch", "length", None)), 0.3, jax.random.key(0)))
    one = f(x)
    cfg = dataclasses.replace(GPT2, dropout=0.3)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2, 1, 2), sharding.MESH_AXES, axis_types=(kind,) * 4)
        params = params_lib.abstract(gpt.declare(cfg), mesh)
        with jax.set_mesh(mesh):
            np.testing.assert_allclose(f(jnp.asarray(x)), one, rtol=1e-6)  # the same zeros, and 1 / 0.7 elsewhere
            jax.eval_shape(jax.grad(lambda params: loss(params, cfg, TOKENS, key=jax.random.key(0))), params)


@pytest.mark.parametrize(
    ("manual", "check"),
    [(set(sharding.MESH_AXES), True), ({"data", "fsdp"}, True), ({"data", "fsdp"}, False)],
    ids=["fully-checked", "partially-checked", "partially-unchecked"],
)
def test_shard_map_over_the_batch(manual, check, expected):
    """Fully manual, and manual over the batch with the tensor axis left to the compiler.

    Where JAX checks what varies, the gradient of what is shared comes out summed; where not, the caller sums.
    """
    mesh = sharding.make_mesh(2, 2, 1, 2)
    batch = ("data", "fsdp")

    def shard(params, tokens):
        logits, value, grads = everything(params, GPT2, tokens)
        mean = jax.tree.map(lambda g: g / 4, grads) if check else jax.lax.pmean(grads, batch)
        return logits, jax.lax.pmean(value, batch), mean

    specs = {"in_specs": (P(), P(batch)), "out_specs": (P(batch), P(), P())}
    f = jax.shard_map(shard, mesh=mesh, axis_names=manual, check_vma=check, **specs)
    same(jax.jit(f)(single(GPT2), TOKENS), expected[GPT2], 2e-6)


def test_a_callers_mesh_with_other_names(expected):
    mesh = jax.make_mesh((4, 2), ("rows", "model"), axis_types=(AxisType.Auto,) * 2)
    table = {
        **dict.fromkeys(sharding.RULES),
        **{"batch": "rows", "heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"},
    }
    with sharding.rules(table):
        got, params, _ = on_mesh(mesh, GPT2)
    same(got, expected[GPT2])
    assert params["blocks"]["mlp"]["up"]["kernel"].sharding.spec[2] == "model"


def test_an_unmatched_mesh_is_an_error():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(InputError, match=r"the mesh has \('model',\); .*sharding.rules"):
        jax.eval_shape(lambda params: gpt.apply(params, GPT2, TOKENS), single(GPT2))


def test_a_batch_that_does_not_divide_is_an_error():
    with jax.set_mesh(sharding.make_mesh()), pytest.raises(InputError, match="axis 'batch' of size 3 does not divide"):
        jax.eval_shape(lambda params: gpt.apply(params, GPT2, TOKENS[:3]), single(GPT2))


def test_heads_are_cut_whole():
    """Six heads of 4 divide over 4 devices as 24 columns, but not as heads."""
    cfg = dataclasses.replace(GPT2, num_heads=6, num_kv_heads=6, head_dim=4)
    with (
        jax.set_mesh(sharding.make_mesh(-1, tensor=4)),
        pytest.raises(InputError, match="axis 'heads' of size 6 does not divide"),
    ):
        jax.eval_shape(lambda params: gpt.apply(params, cfg, TOKENS), single(cfg))


def test_the_page_about_flax():
    """docs/use_in_flax.md runs as it stands; its modules give apply's logits, dropout and gradients."""
    page = (Path(__file__).resolve().parents[2] / "docs/use_in_flax.md").read_text()
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    cfg, tokens, linen, nnx = (names[name] for name in ("cfg", "tokens_BT", "module", "nnx"))
    weights = names["variables"]["params"]["gpt"]
    assert params_lib.flatten(weights).keys() == params_lib.flatten(gpt.declare(cfg)).keys()

    plain = jax.jit(jax.value_and_grad(lambda params: jnp.sum(jnp.sin(gpt.apply(params, cfg, tokens)))))(weights)
    in_linen = jax.jit(jax.value_and_grad(lambda v: jnp.sum(jnp.sin(linen.apply(v, tokens)))))(names["variables"])
    same((in_linen[0], in_linen[1]["params"]["gpt"]), plain, 1e-5)
    model = names["model"]
    model.params = nnx.data(jax.tree.map(nnx.Param, weights))
    in_nnx = nnx.jit(nnx.value_and_grad(lambda model: jnp.sum(jnp.sin(model(tokens)))))(model)
    same(jax.tree.leaves(in_nnx), jax.tree.leaves(plain), 1e-5)
    quiet, noisy = names["apply"](names["variables"], tokens), names["noisy_logits_BTV"]
    assert (np.asarray(quiet) != noisy).any()
