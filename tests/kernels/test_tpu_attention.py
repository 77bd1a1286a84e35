"""The TPU's attention kernel, interpreted on the CPU: values and gradients against the plain implementation, with
and without a mesh, and which sizes it takes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import kernels, sharding
from transformer_jax.errors import InputError
from transformer_jax.kernels import tpu, tpu_attention
from transformer_jax.models import gpt
from transformer_jax.nn import attention, block, positions
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask

SEGMENTS = np.sort(np.random.default_rng(4).integers(0, 3, (2, 32)), axis=1)
KEY_SEGMENTS = np.sort(np.random.default_rng(5).integers(0, 3, (2, 48)), axis=1)  # each has all three
CASES = {  # sizes T, S, N, K, H, and the mask
    "two heads of 64 in 128 lanes": ((32, 32, 2, 2, 64), Mask(causal=True)),
    "a head of 128": ((32, 32, 1, 1, 128), Mask(causal=True)),
    "heads that fit no lanes": ((32, 32, 3, 3, 16), Mask(causal=True)),
    "a key head of 128 for two query heads": ((32, 48, 4, 2, 128), Mask(end_B=jnp.array([48, 13]))),
    "grouped, causal segments": ((32, 32, 4, 2, 64), Mask(causal=True, segment_BT=jnp.asarray(SEGMENTS))),
    "another number of keys": ((32, 48, 2, 2, 64), Mask(end_B=jnp.array([48, 13]))),
    "cross-attention of packed pairs": (
        (32, 48, 2, 2, 64),
        Mask(segment_BT=jnp.asarray(SEGMENTS), key_segment_BS=jnp.asarray(KEY_SEGMENTS)),
    ),
    "window": ((32, 32, 4, 4, 32), Mask(window=5)),
    "causal window": ((32, 32, 2, 2, 64), Mask(causal=True, window=jnp.array(9))),
}


def operands(T, S, N, K, H, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((2, T, N, H), (2, S, K, H), (2, S, K, H), (2, T, N, H))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@partial(jax.jit, static_argnums=0)
def run(implementation, mask, q, k, v, d_out):
    out, pull = jax.vjp(partial(attention.attend, mask=mask, implementation=implementation), q, k, v)
    return out, *pull(d_out)


@pytest.fixture
def small_blocks(monkeypatch):
    """16 queries and keys to a block, so that 32 are several: loops, skipped blocks and the online softmax are used."""
    monkeypatch.setattr(tpu_attention, "block", lambda length, narrow=False: 16)


def test_a_narrow_window_has_smaller_blocks():
    """A block of 8,192 queries visits 3 of 32 blocks of keys; of 512, it would visit 3 of 16."""
    assert tpu_attention.block(8192) == 512 and tpu_attention.block(8192, narrow=True) == 256
    assert tpu_attention.block(384, narrow=True) == 128 and tpu_attention.block(200, narrow=True) == 200


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_plain_attention(name, small_blocks):
    sizes, mask = CASES[name]
    arrays = operands(*sizes)
    for one, other in zip(run("tpu", mask, *arrays), run("xla", mask, *arrays), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, ((T, S, N, K, _), _) in CASES.items() if (T, N) == (S, K)])
def test_queries_keys_and_values_may_be_one_array(name, monkeypatch):
    monkeypatch.setattr(tpu_attention, "block", lambda length, narrow=False: 32 if name == "a head of 128" else 16)
    (T, _, N, _, H), mask = CASES[name]
    q, k, v, d_out = operands(T, T, N, N, H)
    qkv_3BTD = jnp.stack([x.reshape(2, T, N * H) for x in (q, k, v)])

    @jax.jit
    def fused(qkv_3BTD, d_out):
        attend = partial(tpu.attend_fused, mask=mask, head_width=H, scale=H**-0.5)
        out, pull = jax.vjp(attend, qkv_3BTD)
        return out, *pull(d_out)[0]

    got = fused(qkv_3BTD, d_out.reshape(2, T, N * H))
    for one, other in zip(got, run("xla", mask, q, k, v, d_out), strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, atol=1e-5)


def test_a_block_makes_them_of_one_product():
    """Values and gradients of a block, its biases among them, are those of three products and the plain attention."""
    cfg = gpt.Config(vocab_size=16, width=64, num_layers=1, num_heads=4, max_length=16, dropout=0.0)
    params = params_lib.init(jax.random.key(0), block.declare(cfg))
    leaves, tree = jax.tree.flatten(params)
    noise = [0.1 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    params = jax.tree.unflatten(tree, [x + y for x, y in zip(leaves, noise, strict=True)])
    x_BTD, d_out = (jax.random.normal(jax.random.key(i), (4, 16, 64)) for i in (1, 2))

    def values(platform, params, x_BTD):
        with kernels.use(platform):
            out, pull = jax.vjp(lambda p, x: block.apply(p, cfg, x, mask=Mask(causal=True))[0], params, x_BTD)
            return out, pull(d_out)

    with jax.set_mesh(sharding.make_mesh(data=2, tensor=2, fsdp=2)):
        program = jax.make_jaxpr(partial(values, "tpu"))(params, x_BTD)
        got = jax.jit(partial(values, "tpu"))(params, x_BTD)
    assert "3,4,16,64]" in str(program)
    expected = jax.jit(partial(values, "plain"))(params, x_BTD)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_what_is_made_of_one_product():
    cases: dict[str, Any] = {
        "rotary": {"position": "rotary"},
        "grouped": {"num_kv_heads": 2},
        "normed": {"qk_norm": True},
        "dropped": {"dropout": 0.5},
        "named": {"attention": "xla"},
        "plain": {},
    }
    assert [name for name, changes in cases.items() if _is_fused(gpt.Config(vocab_size=16, **(SMALL | changes)))] == [
        "plain"
    ]
    with jax.set_mesh(sharding.make_mesh(data=4, sequence=2)):
        assert not _is_fused(gpt.Config(vocab_size=16, **SMALL))  # queries are sharded, keys are not
    with jax.set_mesh(sharding.make_mesh(data=4, tensor=2)), pytest.raises(InputError, match="'heads' of size 3"):
        _is_fused(gpt.Config(vocab_size=16, **(SMALL | {"width": 48, "num_heads": 3})))


SMALL: dict[str, Any] = {
    "width": 64,
    "num_layers": 1,
    "num_heads": 4,
    "max_length": 16,
    "dropout": 0.0,
}


def _is_fused(cfg):
    params = jax.eval_shape(lambda: params_lib.init(jax.random.key(0), block.declare(cfg)))
    x_BTD = jax.ShapeDtypeStruct((4, 16, cfg.width), jnp.float32)
    rope = jax.eval_shape(lambda: positions.rotary_angles(jnp.arange(16), cfg.head_width))
    rope = rope if cfg.position == "rotary" else None

    def apply(p, x, rope):
        key = jax.random.key(0)
        return block.apply(p, cfg, x, mask=Mask(causal=True), rope=rope, key=key)[0]

    attended = []
    with pytest.MonkeyPatch.context() as patch, kernels.use("tpu"):
        for module, name in ((attention, "attend"), (tpu, "attend_fused")):
            patch.setattr(module, name, partial(_noted, attended, name, cfg))
        jax.eval_shape(apply, params, x_BTD, rope)
    return attended == ["attend_fused"]


def _noted(attended, name, cfg, *arrays, **_):
    attended.append(name)
    return jnp.zeros((4, 16, 64) if name == "attend_fused" else (4, 16, cfg.num_heads, cfg.head_width))


def test_a_length_of_one_block_need_not_divide():
    arrays = operands(37, 37, 2, 2, 64)
    for one, other in zip(run("tpu", Mask(), *arrays), run("xla", Mask(), *arrays), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_float64_as_the_plain_attention(small_blocks):
    """Both round probabilities and their gradients to bfloat16 before the products, and nothing else."""
    arrays = operands(32, 32, 2, 2, 64)
    exact = run("xla", Mask(causal=True), *arrays)
    narrow = [a.astype(jnp.bfloat16) for a in arrays]
    ours, plain = run("tpu", Mask(causal=True), *narrow), run("xla", Mask(causal=True), *narrow)
    for one, other, reference in zip(ours, plain, exact, strict=True):
        assert one.dtype == jnp.bfloat16
        error, usual = (np.abs(np.asarray(a, np.float32) - reference).max() for a in (one, other))
        assert error < max(1.5 * usual, 2**-7), (error, usual)


def test_a_query_that_sees_nothing_is_finite_and_has_no_gradient(small_blocks):
    arrays = operands(32, 32, 2, 2, 64)
    out, *grads = run("tpu", Mask(causal=True, start_B=jnp.array([20, 32])), *arrays)
    assert np.isfinite(out).all()
    dq, dk, dv = grads
    assert np.abs(dq[0, 20:]).max() > 0 and not dq[0, :20].any() and not dq[1].any()
    assert np.abs(dk[0, 20:]).max() > 0 and not dk[0, :20].any() and not dk[1].any() and not dv[1].any()


def test_extreme_scores_do_not_overflow(small_blocks):
    q, k, v, _ = operands(32, 32, 2, 2, 64)
    out = attention.attend(q * 1e4, k * 1e4, v, Mask(causal=True), implementation="tpu")
    np.testing.assert_allclose(out[0, 0], v[0, 0], rtol=1e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("sizes", "kv_heads", "width"),
    [
        ({"data": 2, "tensor": 4}, 4, 64),
        ({"data": 2, "sequence": 2, "fsdp": 2}, 4, 64),
        ({"data": 4, "tensor": 2}, 2, 128),  # each device has two query heads and the key head that they share
    ],
)
def test_each_device_has_its_rows_queries_and_heads(sizes, kv_heads, width, small_blocks):
    """A sharded length: each device's queries have an offset, and the keys' gradients are summed."""
    keys = jax.random.split(jax.random.key(1), 4)
    arrays = [
        jax.random.normal(key, (4, 32, N, width)) for key, N in zip(keys, (4, kv_heads, kv_heads, 4), strict=True)
    ]
    mask = Mask(causal=True, end_B=jnp.array([32, 20, 32, 9]))
    whole = run("xla", mask, *arrays)
    with jax.set_mesh(sharding.make_mesh(**sizes)):
        parts = jax.jit(partial(run, "tpu", mask))(*arrays)
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_in_an_explicit_mesh(small_blocks):
    """Each operand has a sharding in its type, also the ids that are made of lengths."""
    *arrays, d_out = operands(32, 32, 2, 2, 64)
    lengths_B, axes = jnp.array([32, 20]), ("data", "fsdp", "sequence", "tensor")
    whole = run("xla", Mask(end_B=lengths_B), *arrays, d_out)
    mesh = jax.make_mesh((2, 1, 1, 1), axes, (jax.sharding.AxisType.Explicit,) * 4, devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))) for x in (*arrays, d_out, lengths_B)]
        parts = jax.jit(lambda *a: run("tpu", Mask(end_B=a[-1]), *a[:-1]))(*placed)
    for one, other in zip(parts, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_inside_a_shard_map_of_the_caller(small_blocks):
    arrays = operands(32, 32, 2, 2, 64)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec("rows")

    def loss(*arrays):
        def local(q, k, v):
            return attention.attend(q, k, v, Mask(causal=True), implementation="tpu")

        return jnp.sum(
            jnp.sin(jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(*arrays))
        )

    plain = jax.grad(lambda *a: jnp.sum(jnp.sin(attention.attend(*a, Mask(causal=True), implementation="xla"))))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(*arrays[:3]), plain(*arrays[:3]), atol=1e-5)


def test_which_sizes_it_takes():
    def fits(T, S, N, H, chip="TPU v5 lite", **changes):
        return tpu_attention.fits(T, S, N, H, bytes_each=2, chip=chip, **changes)

    assert fits(1024, 1024, 12, 64) and fits(197, 197, 6, 64) and fits(257, 257, 16, 80) and fits(512, 512, 12, 64)
    assert fits(8192, 8192, 32, 128) and fits(1024, 77, 12, 64) and fits(1000, 1000, 12, 64)
    assert not fits(1500, 1500, 12, 64)  # no block divides it, and it is too long to be one
    assert not fits(1, 197, 12, 64)  # of one query the scores are few
    assert not fits(1024, 1024, 12, 60)  # not a multiple of 16
    assert not fits(2**17, 2**17, 12, 64)  # more than the vector memory holds
    assert not fits(8192, 8192, 32, 128, "TPU v4")
    assert fits(1024, 1024, 12, 64, "TPU v4")
    assert fits(16384, 16384, 12, 64) and not fits(16384, 16384, 12, 64, fused=True)  # all gradients whole
    assert fits(8192, 8192, 32, 128, grouped=True) and not fits(8192, 8192, 32, 64, grouped=True)
