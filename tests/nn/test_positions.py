"""Positions against the papers' formulas and the numbers they print."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn import reference
from transformer_jax import kernels
from transformer_jax.errors import InputError
from transformer_jax.nn import positions


def test_sinusoids():
    ours = positions.sinusoidal(jnp.arange(50), 16)
    np.testing.assert_allclose(ours, [reference.sinusoid(t, 16) for t in range(50)], atol=1e-5)
    halves = positions.sinusoidal(jnp.arange(50), 16, halves=True)
    np.testing.assert_allclose(halves, [reference.sinusoid(t, 16, True) for t in range(50)], atol=1e-5)
    np.testing.assert_array_equal(halves[0], [0] * 8 + [1] * 8)
    np.testing.assert_array_equal(ours[0], [0, 1] * 8)  # sin(0) at even columns, cos(0) at odd ones
    np.testing.assert_allclose(ours[1, :2], [0.8414710, 0.5403023], atol=1e-6)


@pytest.mark.parametrize("scaling", [None, positions.RopeScaling(factor=8.0, original_length=64)])
def test_rotary_turns_pairs_by_their_angle(scaling):
    x_TH = np.random.default_rng(0).standard_normal((20, 16))
    cos, sin = positions.rotary_angles(jnp.arange(20), 16, theta=500.0, scaling=scaling)
    frequencies = reference.rotary_frequencies(16, 500.0, scaling)
    for platform in ("plain", "tpu"):
        with kernels.use(platform):
            ours = positions.rotate(jnp.asarray(x_TH, jnp.float32)[None, :, None], cos, sin)[0, :, 0]
        np.testing.assert_allclose(ours, reference.rotate(x_TH, frequencies), atol=1e-5, err_msg=platform)


def test_llama_31_frequencies():
    """theta 500,000, heads of 128, 8,192 tokens times 8: the first are kept, the last divided by 8, some between."""
    plain = np.array(reference.rotary_frequencies(128, 500_000.0))
    scaled = np.array(reference.rotary_frequencies(128, 500_000.0, positions.RopeScaling()))
    cos, sin = positions.rotary_angles(jnp.array([1]), 128, theta=500_000.0, scaling=positions.RopeScaling())
    np.testing.assert_allclose(np.arctan2(sin, cos)[0], scaled, rtol=1e-5)
    # 8192 / 4 = 2048 positions is the wavelength of column 28.2, 8192 that of column 35.0 (2 pi 500000^(i/64)).
    assert (scaled == plain).nonzero()[0].max() == 28
    assert np.isclose(scaled, plain / 8).nonzero()[0].min() == 35


def test_rotary_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(at, other):
        rotated = [positions.rotate(x, *positions.rotary_angles(jnp.array([t]), 8)) for x, t in ((q, at), (k, other))]
        return float(jnp.sum(rotated[0] * rotated[1]))

    np.testing.assert_allclose(score(3, 1), score(103, 101), rtol=1e-4)
    assert abs(score(3, 1) - score(1, 3)) > 1e-2


@pytest.mark.parametrize("bad", [{"low_freq_factor": 4.0}, {"factor": 0.0}, {"original_length": 0}])
def test_rope_scaling_that_cannot_be_computed(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        positions.RopeScaling(**bad)


@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (32, 64), (16, 50)])
def test_t5_buckets(buckets, far):
    distances = np.arange(-5, 300)
    ours = positions.relative_buckets(jnp.asarray(distances), num_buckets=buckets, max_distance=far)
    assert np.asarray(ours).tolist() == [reference.bucket(d, buckets, far) for d in distances]


def test_t5_buckets_as_published():
    """Raffel et al. 2020, 2.1: 32 buckets, logarithmic "up to an offset of 128 beyond which ... the same embedding"."""
    ours = positions.relative_buckets(jnp.array([-3, 0, 1, 15, 16, 127, 128, 999]), num_buckets=32, max_distance=128)
    assert np.asarray(ours).tolist() == [0, 0, 1, 15, 16, 31, 31, 31]


def test_t5_buckets_on_both_sides():
    """The encoder's. Numbers as the released code and Transformers give them, borders of the logarithm included."""
    distances = np.arange(-300, 300)
    ours = positions.relative_buckets(jnp.asarray(distances), num_buckets=32, max_distance=128, bidirectional=True)
    assert np.asarray(ours).tolist() == [reference.two_sided_bucket(d, 32, 128) for d in distances]
    published = {0: 0, 1: 1, 7: 7, 8: 8, 11: 8, 16: 10, 32: 12, 64: 14, 91: 15, 128: 15, 299: 15}
    published |= {-1: 17, -7: 23, -8: 24, -12: 25, -16: 26, -31: 27, -32: 28, -63: 29, -64: 30, -90: 30, -91: 31}
    assert {d: int(ours[300 + d]) for d in published} == published


def test_relative_bias_looks_up_each_heads_bucket():
    table = jnp.arange(64.0).reshape(32, 2)
    bias_NTS = positions.relative_bias(table, jnp.arange(3), jnp.arange(4))
    assert bias_NTS[1].tolist() == [[1, 1, 1, 1], [3, 1, 1, 1], [5, 3, 1, 1]]
    both_NTS = positions.relative_bias(table, jnp.arange(2), jnp.arange(3), bidirectional=True)
    assert both_NTS[0].tolist() == [[0, 34, 36], [2, 0, 34]]


def test_debertas_buckets_as_published():
    """256 on each side for distances up to 511: one for each distance up to 128, then growing (Transformers' rows)."""
    distances = np.array([-511, -129, -1, 0, 1, 128, 129, 200, 300, 400, 511])
    rows = positions.log_buckets(distances, span=256, max_distance=512)
    np.testing.assert_array_equal(rows, [1, 127, 255, 256, 257, 384, 385, 425, 463, 489, 511])


def test_disentangled_bias_compares_with_the_distance():
    rng = np.random.default_rng(0)
    B, T, N, H = 2, 5, 3, 4
    q_BTNH, k_BTNH = rng.standard_normal((2, B, T, N, H))
    key_dNH, query_dNH = rng.standard_normal((2, 2 * T - 1, N, H))
    found = positions.disentangled_bias(*(np.float32(x) for x in (q_BTNH, k_BTNH, key_dNH, query_dNH)))
    for t in range(T):
        for s in range(T):
            row = T - 1 - (t - s)  # the first row is of distance T - 1
            expected = np.einsum("bnh,nh->bn", q_BTNH[:, t], key_dNH[row])
            expected += np.einsum("bnh,nh->bn", k_BTNH[:, s], query_dNH[row])
            np.testing.assert_allclose(found[:, :, t, s], expected, atol=1e-5)


def test_alibi_slopes_as_published():
    """Press et al. 2022, section 3: 8 heads have 1/2, 1/4, ..., 1/256; 16 heads start at 2^-0.5; 12 mix the two."""
    eighths = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert positions.alibi_slopes(8) == eighths
    np.testing.assert_allclose(positions.alibi_slopes(16), [2 ** (-0.5 * i) for i in range(1, 17)])
    np.testing.assert_allclose(positions.alibi_slopes(12), eighths + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    for heads in (1, 2, 3, 6, 20):
        np.testing.assert_allclose(positions.alibi_slopes(heads), reference.alibi_slopes(heads))


def test_alibi_bias():
    bias_NTS = positions.alibi_bias(2, jnp.arange(3), jnp.arange(3))
    assert (bias_NTS[0] * 16).tolist() == [[0, -1, -2], [-1, 0, -1], [-2, -1, 0]]
    assert (bias_NTS[1] * 256).tolist() == [[0, -1, -2], [-1, 0, -1], [-2, -1, 0]]
