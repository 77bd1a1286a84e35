"""How a model encodes the position of a token: six published ways beside a learned table.

A learned table is declared by the families. The others are functions of the positions:

- sinusoidal    added to the embeddings; Vaswani et al. 2017, section 3.5
- sincos_2d     the same for the rows and columns of an image; Chen et al. 2021 ("MoCo v3"), section 5
- rotary        queries and keys rotated by an angle; Su et al. 2021 (arXiv 2104.09864), in the "rotate half" pairing
                of GPT-NeoX and Llama, with Llama 3.1's frequency scaling
- relative      a learned bias on the scores per bucket of distance; Raffel et al. 2020 (T5), section 2.1
- disentangled  queries and keys are also compared with learned vectors of their distance; He et al. 2021 (DeBERTa)
- ALiBi         a fixed linear bias on the scores; Press et al. 2022 (arXiv 2108.12409), section 3

B batch, T queries, S keys, D width, N heads, H head width, d distances.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import kernels, sharding
from transformer_jax.errors import InputError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling of the rotary frequencies for contexts beyond the pre-training length.

    Attributes:
      factor: divides the frequencies of wavelengths above original_length / low_freq_factor.
      low_freq_factor: see `factor`.
      high_freq_factor: wavelengths below original_length / high_freq_factor are not scaled; those between the two are
        interpolated.
      original_length: tokens of a context in pre-training.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise InputError(
                f"rope_scaling.low_freq_factor {self.low_freq_factor} and high_freq_factor {self.high_freq_factor}: "
                "the first must be positive and below the second"
            )
        if self.factor <= 0 or self.original_length < 1:
            raise InputError(
                f"rope_scaling.factor {self.factor} and original_length {self.original_length} must be positive"
            )


def sinusoidal(positions: jax.Array, width: int, *, halves: bool = False) -> jax.Array:
    """Sines and cosines of the positions, float32 [..., D]: sin at even and cos at odd columns.

    Args:
      positions: [...], any numbers.
      width: D, even.
      halves: all sines first, then all cosines (Marian).
    """
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(0, width, 2) / width)
    angles = positions[..., None].astype(jnp.float32) * rates
    if halves:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, width)


def sincos_2d(rows: int, columns: int, width: int) -> jax.Array:
    """Positions of the patches of an image, row by row, float32 [rows * columns, D].

    A quarter of the features each are the sines and cosines of the column, and those of the row, in big_vision's order.

    Args:
      rows: the number of rows of patches.
      columns: the number of columns of patches.
      width: D, a multiple of 4 and at least 8.
    """
    rates = 10_000.0 ** -(jnp.arange(width // 4) / (width // 4 - 1))
    row, column = (i.reshape(-1, 1) * rates for i in jnp.mgrid[:rows, :columns])
    return jnp.concatenate([jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)], axis=-1)


def restarted(segments_BT: jax.Array) -> jax.Array:
    """Positions [B, T] that start at 0 in each segment of the packed rows `segments_BT`."""
    # The length is not sharded here, because a cumulative maximum over its shards would move data between devices.
    segments_BT = sharding.constrain(segments_BT, ("batch", None))
    columns_T = jnp.arange(segments_BT.shape[1])
    begins_BT = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    where_BT = columns_T - jax.lax.cummax(jnp.where(begins_BT, columns_T, 0), axis=1)
    return sharding.constrain(where_BT, ("batch", "length"))


def rotary_angles(
    positions: jax.Array, head_dim: int, *, theta: float = 10_000.0, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the angles by which heads are rotated, float32 [..., H/2] each.

    Args:
      positions: [...], integers.
      head_dim: H, even.
      theta: the base of the frequencies.
      scaling: how the frequencies are scaled; None: not at all.
    """
    rates = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        wavelengths = 2 * math.pi / rates
        kept = scaling.original_length / wavelengths - scaling.low_freq_factor
        kept = jnp.clip(kept / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
        rates = rates * (kept + (1.0 - kept) / scaling.factor)
    angles = positions[..., None].astype(jnp.float32) * rates
    return jnp.cos(angles), jnp.sin(angles)


@kernels.choose("rotate")
def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x with each pair (column i, column i + H/2) rotated by its angle, in x's dtype.

    Args:
      x_BTNH: queries or keys; computed in float32.
      cos: [T, H/2] or [B, T, H/2], of `rotary_angles`.
      sin: as for `cos`.
    """
    cos, sin = cos[..., None, :], sin[..., None, :]  # the same angle for every head
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated_BTNH = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated_BTNH.astype(x_BTNH.dtype)


def relative_buckets(
    distance: jax.Array, *, num_buckets: int, max_distance: int, bidirectional: bool = False
) -> jax.Array:
    """T5's bucket of each distance, int32 of the same shape.

    Half of the buckets hold one distance each, the other half grow logarithmically.

    Args:
      distance: query position - key position, integers of any shape.
      num_buckets: in all.
      max_distance: distances from here on share the last bucket.
      bidirectional: keys after the query have the second half of the buckets; else they share bucket 0.
    """
    if bidirectional:
        half = num_buckets // 2
        bucket = relative_buckets(jnp.abs(distance), num_buckets=half, max_distance=max_distance)
        return jnp.where(distance < 0, half + bucket, bucket)
    exact = num_buckets // 2
    far = num_buckets - exact
    # The first distance of each logarithmic bucket, computed here: a logarithm rounded on the device would differ.
    begins = [math.ceil(exact * (max_distance / exact) ** (i / far) - 1e-9) for i in range(1, far)]
    distance = jnp.maximum(distance, 0)
    return jnp.minimum(distance, exact) + sum((distance >= begin).astype(jnp.int32) for begin in begins)


def relative_bias(
    table: jax.Array,
    queries_T: jax.Array,
    keys_S: jax.Array,
    *,
    max_distance: int = 128,
    bidirectional: bool = False,
) -> jax.Array:
    """T5's bias on the scores [N, T, S].

    Args:
      table: learned, [buckets, N].
      queries_T: positions of the queries.
      keys_S: positions of the keys.
      max_distance: as for `relative_buckets`.
      bidirectional: as for `relative_buckets`.
    """
    buckets_TS = relative_buckets(
        queries_T[:, None] - keys_S[None, :],
        num_buckets=table.shape[0],
        max_distance=max_distance,
        bidirectional=bidirectional,
    )
    return jnp.moveaxis(table[buckets_TS], -1, 0)


def log_buckets(distance: np.ndarray, *, span: int, max_distance: int) -> np.ndarray:
    """DeBERTa's bucket of each distance, int32 from 0 to 2 span - 1, `span` for distance 0.

    The nearest span / 2 distances of each side have a bucket each. The others share buckets that grow logarithmically.

    Args:
      distance: query position - key position, integers of any shape.
      span: buckets of each side.
      max_distance: the distance of the last bucket, about.
    """
    exact, far = span // 2, np.abs(distance)
    # In float32 and in this order, as the published models were trained: another rounding moves a distance by a bucket.
    ratio = np.log(np.float32((max_distance - 1) / exact))
    steps = np.log(np.maximum(far, exact).astype(np.float32) / np.float32(exact)) / ratio
    shared = np.ceil(steps * np.float32(exact - 1)) + exact
    bucket = np.where(far <= exact, distance, shared * np.sign(distance))
    return np.clip(bucket + span, 0, 2 * span - 1).astype(np.int32)


def disentangled_bias(q_BTNH: jax.Array, k_BTNH: jax.Array, key_dNH: jax.Array, query_dNH: jax.Array) -> jax.Array:
    """What DeBERTa adds to the product of queries and keys, float32 [B, N, T, T]: each query's product with the key of
    its distance to each position, and each key's product with the query of that distance (He et al. 2021, equation 4).

    Args:
      q_BTNH: queries.
      k_BTNH: keys.
      key_dNH: the keys of the distances T - 1, T - 2, ..., 1 - T, query position less key position.
      query_dNH: the queries of the same distances.
    """
    axes = ("batch", "heads", None, None)
    with sharding.replicated_length():
        at_key = sharding.einsum("BTNH,dNH->BNTd", q_BTNH, key_dNH, out=axes, dtype=jnp.float32)
        at_query = sharding.einsum("BTNH,dNH->BNTd", k_BTNH, query_dNH[::-1], out=axes, dtype=jnp.float32)
    return _by_position(at_key) + jnp.swapaxes(_by_position(at_query), 2, 3)


def _by_position(x_BNTd: jax.Array) -> jax.Array:
    """x[..., t, T - 1 - t + s] for each t and s, [B, N, T, T], by reshapes alone: each row starts one later than the
    one above it (Dai et al. 2019, appendix B). Indexing would cost a scatter in the gradient."""
    B, N, T, d = x_BNTd.shape
    flat = jnp.pad(x_BNTd, [(0, 0)] * 3 + [(0, 1)]).reshape(B, N, -1)
    return flat[..., T - 1 : T - 1 + T * d].reshape(B, N, T, d)[..., :T]


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each of `num_heads` heads.

    For a power of two n it is the geometric sequence from 2^(-8/n); other numbers take the rest from the next power's.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    extra = [2.0 ** (-8.0 * (i + 1) / (2 * power)) for i in range(0, 2 * (num_heads - power), 2)]
    return slopes + extra


def alibi_bias(num_heads: int, queries_T: jax.Array, keys_S: jax.Array) -> jax.Array:
    """ALiBi's bias on the scores, float32 [N, T, S]: minus slope times distance.

    Args:
      num_heads: N.
      queries_T: positions of the queries.
      keys_S: positions of the keys.
    """
    distance_TS = (queries_T[:, None] - keys_S[None, :]).astype(jnp.float32)
    return -jnp.asarray(alibi_slopes(num_heads))[:, None, None] * jnp.abs(distance_TS)
