"""The TPU's attention kernel, interpreted on the CPU: values and gradients against the plain implementation, whole and
on meshes, and which sizes it takes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import sharding
from transformer_jax.nn import attention, attention_tpu
from transformer_jax.nn.masks import Mask

SEGMENTS = np.sort(np.random.default_rng(4).integers(0, 3, (2, 32)), axis=1)
KEY_SEGMENTS = np.sort(np.random.default_rng(5).integers(0, 3, (2, 48)), axis=1)  # each has all three
CASES = {  # sizes T, S, N, K, H, and the mask
    "two heads of 64 in 128 lanes": ((32, 32, 2, 2, 64), Mask(causal=True)),
    "a head of 128": ((32, 32, 1, 1, 128), Mask(causal=True)),
    "heads that fit no lanes": ((32, 32, 3, 3, 16), Mask(causal=True)),
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
    monkeypatch.setattr(attention_tpu, "block", lambda length: 16)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_plain_attention(name, small_blocks):
    sizes, mask = CASES[name]
    arrays = operands(*sizes)
    for one, other in zip(run("tpu", mask, *arrays), run("xla", mask, *arrays), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


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


@pytest.mark.parametrize("sizes", [{"data": 2, "tensor": 4}, {"data": 2, "sequence": 2, "fsdp": 2}])
def test_each_device_has_its_rows_queries_and_heads(sizes, small_blocks):
    """A length that is cut: each device's queries have an offset, and the keys' gradients are summed."""
    keys = jax.random.split(jax.random.key(1), 4)
    arrays = [jax.random.normal(key, (4, 32, 4, 64)) for key in keys]
    mask = Mask(causal=True, end_B=jnp.array([32, 20, 32, 9]))
    whole = run("xla", mask, *arrays)
    with jax.set_mesh(sharding.make_mesh(**sizes)):
        parts = jax.jit(partial(run, "tpu", mask))(*arrays)
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
    def fits(T, S, N, H, chip="TPU v5 lite"):
        return attention_tpu.fits(T, S, N, H, bytes_each=2, chip=chip)

    assert fits(1024, 1024, 12, 64) and fits(197, 197, 6, 64) and fits(257, 257, 16, 80) and fits(512, 512, 12, 64)
    assert fits(8192, 8192, 32, 128) and fits(1024, 77, 12, 64) and fits(1000, 1000, 12, 64)
    assert not fits(1500, 1500, 12, 64)  # no block divides it, and it is too long to be one
    assert not fits(1, 197, 12, 64)  # of one query the scores are few
    assert not fits(1024, 1024, 12, 60)  # not a multiple of 16
    assert not fits(2**17, 2**17, 12, 64)  # more than the vector memory holds
    assert not fits(8192, 8192, 32, 128, "TPU v4")
    assert fits(1024, 1024, 12, 64, "TPU v4")
