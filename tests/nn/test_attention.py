"""Attention against its definition in float64, the implementations against each other, and the cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from tests.nn import reference
from transformer_jax import kernels, sharding
from transformer_jax.kernels import gpu
from transformer_jax.models import gpt
from transformer_jax.nn import attention, block
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask


def operands(B, T, S, N, K, H, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def by_definition(q, k, v, allowed_BTS, bias_NTS=None):
    """[B, T, N, H] in float64, head by head; query head n shares the keys of head n K / N."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out, N, K = np.zeros(q.shape), q.shape[2], k.shape[2]
    for b, n in np.ndindex(q.shape[0], N):
        bias = 0.0 if bias_NTS is None else np.asarray(bias_NTS[n], np.float64)
        head = n * K // N
        out[b, :, n] = reference.attention_head(q[b, :, n], k[b, :, head], v[b, :, head], allowed_BTS[b], bias)
    return out


def test_cross_attention_with_grouped_heads_bias_and_padding():
    q, k, v = operands(B=2, T=3, S=5, N=4, K=2, H=8)
    bias_NTS = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3, 5)), jnp.float32)
    mask = Mask(start_B=jnp.array([0, 1]), end_B=jnp.array([5, 3]))
    allowed_BTS = np.broadcast_to([[[1, 1, 1, 1, 1]], [[0, 1, 1, 0, 0]]], (2, 3, 5)).astype(bool)
    ours = jax.jit(attention.attend)(q, k, v, mask, bias_NTS=bias_NTS)
    np.testing.assert_allclose(ours, by_definition(q, k, v, allowed_BTS, bias_NTS), atol=2e-6)


@pytest.mark.parametrize("T", [5, 130])
def test_causal_attention_of_both_implementations(T):
    """130 queries are blocks of 44, 44 and 42 on the CPU's own implementation."""
    q, k, v = operands(B=1, T=T, S=T, N=4, K=2, H=8)
    d_out = jnp.asarray(np.random.default_rng(2).standard_normal(q.shape), jnp.float32)

    @jax.jit
    def both(*qkv):
        results = []
        for name in ("xla", "cpu"):
            out, pull = jax.vjp(partial(attention.attend, mask=Mask(causal=True), implementation=name), *qkv)
            results.append((out, *pull(d_out)))
        return results

    xla, cpu = both(q, k, v)
    np.testing.assert_allclose(xla[0], by_definition(q, k, v, np.tri(T, dtype=bool)[None]), atol=5e-6)
    for one, other in zip(xla, cpu, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


SEGMENTS = np.sort(np.random.default_rng(4).integers(0, 3, (2, 70)), axis=1)
MASKS = {
    "none": (Mask(), 5),
    "lengths": (Mask(end_B=jnp.array([5, 2])), 5),
    "prefix": (Mask(causal=True, prefix_B=jnp.array([3, 66])), 70),
    "segments": (Mask(segment_BT=jnp.asarray(SEGMENTS)), 70),
    "causal segments": (Mask(causal=True, segment_BT=jnp.asarray(SEGMENTS)), 70),
    "left padding": (Mask(causal=True, start_B=jnp.array([0, 9])), 70),
    "window": (Mask(window=3, end_B=jnp.array([70, 40])), 70),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_mask_in_both_implementations(name):
    """70 queries are two blocks; 5 keys are another number than the queries. Values and gradients."""
    mask, S = MASKS[name]
    q, k, v = operands(B=2, T=70, S=S, N=4, K=2, H=8)
    d_out = jnp.asarray(np.random.default_rng(2).standard_normal(q.shape), jnp.float32)

    @partial(jax.jit, static_argnums=3)
    def run(q, k, v, implementation):
        out, pull = jax.vjp(partial(attention.attend, mask=mask, implementation=implementation), q, k, v)
        return out, *pull(d_out)

    xla, cpu = run(q, k, v, "xla"), run(q, k, v, "cpu")
    dense = mask.dense(70, S)
    sees_BT = np.ones((2, 70), bool) if dense is None else np.broadcast_to(np.asarray(dense).any(-1), (2, 70))
    allowed_BTS = np.ones((2, 70, S), bool) if dense is None else np.broadcast_to(dense, (2, 70, S))
    with np.errstate(invalid="ignore"):
        expected = by_definition(q, k, v, allowed_BTS)
    np.testing.assert_allclose(np.asarray(cpu[0])[sees_BT], expected[sees_BT], atol=5e-6)
    if sees_BT.all() or not mask.causal:  # causal, the two differ in what they give a query that sees nothing
        for one, other in zip(xla, cpu, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


LONG = np.sort(np.random.default_rng(4).integers(0, 3, (2, 200)), axis=1)
LOCAL = {
    "both sides": {},
    "lengths": {"end_B": jnp.array([200, 77])},
    "causal": {"causal": True, "start_B": jnp.array([0, 9])},
    "segments": {"segment_BT": jnp.asarray(LONG)},
}


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("window", [0, 3])
def test_local_attention_in_blocks_is_the_whole_one(name, window):
    """200 queries are four blocks, the last one padded. A window that is traced is computed whole."""
    blocks, whole = Mask(window=window, **LOCAL[name]), Mask(window=jnp.asarray(window), **LOCAL[name])
    assert blocks.local_block(200) == 64 and whole.local_block(200) is None and blocks.local_block(100) is None
    q, k, v = operands(B=2, T=200, S=200, N=4, K=2, H=8)
    d_out = jnp.asarray(np.random.default_rng(2).standard_normal(q.shape), jnp.float32)
    dense_BTS = np.broadcast_to(whole.dense(200, 200), (2, 200, 200))
    sees_BT = dense_BTS.any(-1)
    d_out = d_out * sees_BT[:, :, None, None]

    @jax.jit
    def run(*qkv):
        results = []
        for mask, implementation in ((blocks, "auto"), (blocks, "cpu"), (whole, "xla")):
            out, pull = jax.vjp(partial(attention.attend, mask=mask, implementation=implementation), *qkv)
            results.append((out, *pull(d_out)))
        return results

    results = run(q, k, v)
    with np.errstate(invalid="ignore"):
        expected = by_definition(q, k, v, dense_BTS)
    for result in results:
        np.testing.assert_allclose(np.asarray(result[0])[sees_BT], expected[sees_BT], atol=5e-6)
        for one, other in zip(result[1:], results[2][1:], strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


def test_local_attention_holds_no_scores_of_all_pairs():
    q, k, v = operands(B=1, T=4096, S=4096, N=1, K=1, H=8)
    compiled = jax.jit(partial(attention.attend, mask=Mask(window=64))).lower(q, k, v).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 4096 * 4 / 8


def test_many_queries_without_a_diagonal():
    """270 queries are two blocks where nothing is causal. Values and gradients."""
    q, k, v = operands(B=1, T=270, S=9, N=2, K=1, H=4)

    @jax.jit
    def both(*qkv):
        results = []
        for name in ("xla", "cpu"):
            out, pull = jax.vjp(partial(attention.attend, mask=Mask(), implementation=name), *qkv)
            results.append((out, *pull(jnp.cos(out))))
        return results

    for one, other in zip(*both(q, k, v), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)  # sums over 270 queries


def test_grouped_queries_equal_repeated_heads():
    q, k, v = operands(B=2, T=6, S=6, N=6, K=2, H=4)
    attend = jax.jit(partial(attention.attend, mask=Mask(causal=True), implementation="xla"))
    repeated = attend(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2))
    np.testing.assert_allclose(attend(q, k, v), repeated, atol=1e-6)


def test_a_row_that_sees_nothing_is_finite_and_so_is_its_gradient():
    q, k, v = operands(B=2, T=4, S=4, N=2, K=2, H=4)
    mask = Mask(causal=True, start_B=jnp.array([2, 4]))  # two queries, and all four, see no key
    out, pull = jax.jit(partial(jax.vjp, partial(attention.attend, mask=mask)))(q, k, v)
    assert np.isfinite(out).all()
    assert all(np.isfinite(d).all() for d in pull(jnp.ones_like(out)))


def test_extreme_scores_do_not_overflow():
    q, k, v = operands(B=1, T=8, S=8, N=2, K=2, H=4)
    for name in ("xla", "cpu"):
        out = attention.attend(q * 1e4, k * 1e4, v, Mask(causal=True), implementation=name)
        np.testing.assert_allclose(out[0, 0], v[0, 0], rtol=1e-6)
        assert np.isfinite(out).all()


def test_dropout_of_probabilities():
    """With one-hot values the output is the dropped probabilities themselves."""
    q, k, _ = operands(B=4, T=32, S=32, N=2, K=2, H=32)
    v = jnp.broadcast_to(jnp.eye(32)[None, :, None], (4, 32, 2, 32))
    attend = jax.jit(lambda key, rate: attention.attend(q, k, v, Mask(), dropout_rate=rate, key=key), static_argnums=1)
    whole, dropped = attend(None, 0.25), attend(jax.random.key(0), 0.25)
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(dropped[kept], (whole / 0.75)[kept], rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / kept.size)  # four standard deviations
    np.testing.assert_array_equal(dropped, attend(jax.random.key(0), 0.25))
    assert (np.asarray(attend(jax.random.key(1), 0.25)) != dropped).any()
    np.testing.assert_allclose(whole, attend(jax.random.key(0), 0.0), atol=1e-7)


def test_bfloat16_keeps_the_softmax_in_float32():
    q, k, v = (a.astype(jnp.bfloat16) for a in operands(B=1, T=16, S=16, N=2, K=1, H=16))
    attend = partial(attention.attend, mask=Mask(causal=True))
    out = attend(q, k, v)
    assert out.dtype == jnp.bfloat16
    expected = by_definition(q, k, v, np.tri(16, dtype=bool)[None])
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=0.02)
    program = str(jax.make_jaxpr(attend)(q, k, v))
    exponentials = [line for line in program.splitlines() if " = exp " in line]
    assert exponentials and all(":f32[" in line for line in exponentials), exponentials


def test_the_cache_is_written_where_it_says():
    cache = attention.empty_cache(2, batch=1, num_slots=4, kv_heads=2, head_width=3, dtype=jnp.float32)
    assert cache.k_LBKSH.shape == (2, 1, 2, 4, 3) and int(cache.index) == 0
    k_BTKH = jnp.arange(12.0).reshape(1, 2, 2, 3) + 1
    cache = attention.write(cache.replace(index=jnp.array(1)), 1, k_BTKH, -k_BTKH)
    assert int(cache.index) == 1
    assert cache.k_LBKSH[1, 0, 1].tolist() == [[0, 0, 0], [4, 5, 6], [10, 11, 12], [0, 0, 0]]
    np.testing.assert_array_equal(cache.v_LBKSH, -cache.k_LBKSH)
    assert not cache.k_LBKSH[0].any()


@pytest.mark.parametrize("slots", [5, 16, 37])
def test_rows_move_with_all_their_filled_slots(slots):
    rng, reorder = np.random.default_rng(0), jax.jit(attention.reorder)
    k, v = rng.normal(size=(2, 2, 6, 2, slots, 3)).astype(np.float32)
    rows, start = np.array([1, 1, 0, 5, 3, 3]), np.arange(6, dtype=np.int32)
    for filled in (1, slots // 2, slots - 1, slots):
        moved = reorder(attention.KVCache(k, v, np.int32(filled), start), rows)
        np.testing.assert_array_equal(moved.k_LBKSH[:, :, :, :filled], k[:, rows, :, :filled])
        np.testing.assert_array_equal(moved.v_LBKSH[:, :, :, :filled], v[:, rows, :, :filled])
        np.testing.assert_array_equal(moved.start_B, rows)
        assert moved.index == filled
    repeated = reorder(attention.KVCache(k, v, np.int32(1), start), np.repeat(np.arange(6), 2))
    np.testing.assert_array_equal(repeated.v_LBKSH, v.repeat(2, axis=1))


def test_an_empty_cache_can_be_donated():
    """Keys and values are two buffers: one buffer cannot be given away twice."""
    cache = attention.empty_cache(1, batch=1, num_slots=2, kv_heads=1, head_width=2, dtype=jnp.float32)
    jax.jit(lambda cache: cache.replace(index=cache.index + 1), donate_argnums=0)(cache)


# ---- Which implementation ------------------------------------------------------------------------------------------


def on(platform, shape=(1, 1, 1, 1)):
    """A mesh of devices of another platform; nothing can run on it, everything can be decided."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    types = (AxisType.Auto,) * 4
    return jax.sharding.use_abstract_mesh(AbstractMesh(shape, sharding.MESH_AXES, types, abstract_device=device))


def decide(mask, dtype=jnp.bfloat16, T=16, S=16, H=64, bias=False, dropout=False):
    """The implementation that "auto" is here."""
    q_BTNH = jax.ShapeDtypeStruct((8, T, 2, H), dtype)
    fits = kernels.find("attention_fits")(q_BTNH, mask, num_keys=S, bias=bias, dropout=dropout)
    return {"gpu": "cudnn"}.get(kernels.target_platform(), kernels.target_platform()) if fits else "xla"


CAUSAL = Mask(causal=True)
INTS = jnp.ones(1, int)
F32 = {"dtype": jnp.float32}


@pytest.mark.parametrize(
    ("mask", "case", "gpu", "cpu", "tpu"),
    [
        (CAUSAL, {}, "cudnn", "xla", "tpu"),
        (CAUSAL, {"dtype": jnp.float16}, "cudnn", "xla", "xla"),
        (CAUSAL, F32, "xla", "cpu", "tpu"),
        (CAUSAL, {"H": 128}, "cudnn", "xla", "tpu"),
        (CAUSAL, {"H": 136}, "xla", "xla", "xla"),
        (CAUSAL, {"H": 60}, "xla", "xla", "xla"),
        (CAUSAL, {"bias": True}, "xla", "xla", "xla"),
        (CAUSAL, {"bias": True, **F32}, "xla", "xla", "xla"),
        (CAUSAL, {"dropout": True}, "xla", "xla", "xla"),
        (CAUSAL, {"dropout": True, **F32}, "xla", "xla", "xla"),
        (Mask(), {}, "cudnn", "xla", "tpu"),
        (Mask(), {"T": 197, "S": 197}, "cudnn", "xla", "tpu"),
        (Mask(), {"S": 197}, "cudnn", "xla", "tpu"),
        (Mask(end_B=INTS), {"T": 1}, "xla", "xla", "xla"),
        (Mask(), F32, "xla", "cpu", "tpu"),
        (Mask(end_B=INTS), {}, "cudnn", "xla", "tpu"),
        (Mask(causal=True, end_B=INTS), F32, "xla", "cpu", "tpu"),
        (Mask(causal=True, start_B=INTS), {}, "cudnn", "xla", "tpu"),
        (Mask(window=2), {}, "cudnn", "xla", "tpu"),
        (Mask(window=2), {"T": 197, "S": 197}, "xla", "xla", "tpu"),  # in blocks
        (Mask(causal=True, window=2), {"T": 197, "S": 197}, "cudnn", "xla", "tpu"),
        (Mask(window=2), F32, "xla", "cpu", "tpu"),
        (Mask(causal=True, prefix_B=INTS), {}, "cudnn", "xla", "xla"),
        (Mask(causal=True, prefix_B=INTS), F32, "xla", "cpu", "xla"),
        (Mask(causal=True, segment_BT=INTS[None]), {}, "cudnn", "xla", "tpu"),
        (Mask(causal=True, segment_BT=INTS[None]), F32, "xla", "cpu", "tpu"),
    ],
)
def test_what_is_chosen(mask, case, gpu, cpu, tpu):
    for platform, expected in (("gpu", gpu), ("cuda", gpu), ("cpu", cpu), ("tpu", tpu)):
        with on(platform):
            assert decide(mask, **case) == expected, platform


@pytest.mark.parametrize(
    "mask",
    [
        CAUSAL,
        Mask(end_B=jnp.array([5, 8])),
        Mask(causal=True, window=2),
        Mask(window=2),
        Mask(causal=True, prefix_B=jnp.array([3, 0])),
        Mask(causal=True, segment_BT=jnp.array([[1, 1, 1, 2, 2, 2, 3, 3], [1] * 8])),
        Mask(causal=True, start_B=jnp.array([2, 0]), end_B=jnp.array([8, 7])),
    ],
)
@pytest.mark.parametrize("S", [8, 7])
def test_what_cudnn_is_asked_for(monkeypatch, mask, S):
    """JAX's own implementation takes the same arguments, so it stands in for cuDNN, which needs a GPU."""
    plain = jax.nn.dot_product_attention

    def even(q_BTNH, k_BSKH, v_BSKH, *, implementation, **described):
        assert q_BTNH.shape[1] % 2 == k_BSKH.shape[1] % 2 == 0
        return plain(q_BTNH, k_BSKH, v_BSKH, **described)

    monkeypatch.setattr(jax.nn, "dot_product_attention", even)
    mask = jax.tree.map(lambda x: x[:, :S] if jnp.ndim(x) == 2 else x, mask)
    q, k, v = operands(B=2, T=S, S=S, N=4, K=2, H=8)
    with on("gpu"):
        assert decide(mask, T=S, S=S) == "cudnn"

    def loss(attend):
        def mean(q, k, v):
            out_BTNH = attend(q, k, v)
            seen_BT = mask.dense(S, S).any(-1) & jnp.ones((2, S), bool)
            return jnp.sum(jnp.sin(out_BTNH) * seen_BT[:, :, None, None])

        return jax.value_and_grad(mean, (0, 1, 2))(q, k, v)

    found = loss(lambda q, k, v: gpu._cudnn(q, k, v, mask, 0.3))
    wanted = loss(lambda q, k, v: attention.attend(q, k, v, mask, scale=0.3, implementation="xla"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_sharded_length_takes_the_plain_implementation_on_a_cpu():
    with on("cpu", (1, 1, 2, 1)):
        assert decide(CAUSAL, jnp.float32) == "xla"
    with on("cpu", (2, 2, 1, 2)):
        assert decide(CAUSAL, jnp.float32) == "cpu"


def test_the_platform_is_the_meshs_or_the_default():
    assert kernels.target_platform() == jax.default_backend()
    with jax.set_mesh(sharding.make_mesh()):
        assert kernels.target_platform() == jax.default_backend()
    for written, meant in (("tpu", "tpu"), ("rocm", "gpu")):
        with on(written):
            assert kernels.target_platform() == meant
    with jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("data",), (AxisType.Auto,))
    ):  # of no platform in particular
        assert kernels.target_platform() == jax.default_backend()


@pytest.mark.parametrize(
    ("name", "mask", "options"),
    [
        ("cudnn", Mask(causal=True, segment_BT=jnp.ones((2, 4), int)), {}),  # float32
        ("cudnn", CAUSAL, {}),  # float32
        ("tpu", CAUSAL, {"bias_NTS": jnp.zeros((2, 4, 4))}),
        ("tpu", Mask(causal=True, prefix_B=jnp.ones(2, int)), {}),
        ("tpu", CAUSAL, {}),  # heads 8 wide
        ("cpu", CAUSAL, {"bias_NTS": jnp.zeros((2, 4, 4))}),
        ("cpu", CAUSAL, {"dropout_rate": 0.1, "key": jax.random.key(0)}),
        ("flash", CAUSAL, {}),
    ],
)
def test_a_named_implementation_never_leaves_something_out(name, mask, options):
    q, k, v = operands(B=2, T=4, S=4, N=2, K=2, H=8)
    with pytest.raises(ValueError, match=f"attention '{name}' does not compute this case"):
        attention.attend(q, k, v, mask, implementation=name, **options)


@pytest.mark.parametrize("name", ["auto", "xla", "cpu"])
def test_causal_needs_as_many_queries_as_keys(name):
    with pytest.raises(ValueError, match="got 4 and 5"):
        attention.attend(*operands(B=1, T=4, S=5, N=2, K=2, H=8), CAUSAL, implementation=name)


@pytest.mark.parametrize(("platform", "name"), [("cpu", "transposed"), ("tpu", "kernel"), ("gpu", "kernel")])
def test_kernels_are_transposed_for_decoding_on_cpus(platform, name):
    cfg = gpt.Config(vocab_size=16, width=8, num_layers=2, num_heads=2, max_length=8)
    params = params_lib.abstract(params_lib.stack(block.declare(cfg), 2))
    with on(platform):
        blocks = jax.eval_shape(lambda params: block.for_decoding(params, 2), params)
    assert len(blocks) == 2 and set(blocks[0]["attention"]["query"]) == {name, "bias"}
