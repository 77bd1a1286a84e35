"""How a model knows where a token stands: six published answers.

Learned positions are a table like any other (see the families). The rest are functions of the positions:

- sinusoidal    added to the embeddings; Vaswani et al. 2017, section 3.5
- sincos_2d     the same for the rows and columns of an image; Chen et al. 2021 ("MoCo v3"), section 5
- rotary        queries and keys turned by an angle; Su et al. 2021 (arXiv 2104.09864), in the "rotate half" pairing
                of GPT-NeoX and Llama, with Llama 3.1's frequency scaling
- relative      a learned bias on the scores per bucket of distance; Raffel et al. 2020 (T5), section 2.1
- ALiBi         a fixed linear bias on the scores; Press et al. 2022 (arXiv 2108.12409), section 3

B batch, T queries, S keys, D width, N heads, H head width.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.errors import InputError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary frequencies for contexts beyond the pre-training length.

    Wavelengths above original_length / low_freq_factor are slowed by `factor`, those below
    original_length / high_freq_factor are kept, and the ones between are interpolated.
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

    Arguments: positions [...], any numbers; width D, even; halves: all sines first, then all cosines (Marian).
    """
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(0, width, 2) / width)
    angles = positions[..., None].astype(jnp.float32) * rates
    if halves:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, width)


def sincos_2d(rows: int, columns: int, width: int) -> jax.Array:
    """Positions of the patches of an image, row by row, float32 [rows * columns, D]: a quarter of the features each for
    the sines and cosines of the column, and those of the row, as big_vision lays them out.

    Arguments: width D, a multiple of 4 and at least 8.
    """
    rates = 10_000.0 ** -(jnp.arange(width // 4) / (width // 4 - 1))
    row, column = (i.reshape(-1, 1) * rates for i in jnp.mgrid[:rows, :columns])
    return jnp.concatenate([jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)], axis=-1)


def restarted(segments_BT: jax.Array) -> jax.Array:
    """Positions [B, T] that start at 0 with each segment of a packed row."""
    segments_BT = sharding.constrain(segments_BT, ("batch", None))  # a cut length would shift its parts back and forth
    columns_T = jnp.arange(segments_BT.shape[1])
    begins_BT = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    where_BT = columns_T - jax.lax.cummax(jnp.where(begins_BT, columns_T, 0), axis=1)
    return sharding.constrain(where_BT, ("batch", "length"))


def rotary_angles(
    positions: jax.Array, head_dim: int, *, theta: float = 10_000.0, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), float32 [..., H/2] each, to turn heads at these positions by."""
    rates = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        wavelengths = 2 * math.pi / rates
        kept = scaling.original_length / wavelengths - scaling.low_freq_factor
        kept = jnp.clip(kept / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0)
        rates = rates * (kept + (1.0 - kept) / scaling.factor)
    angles = positions[..., None].astype(jnp.float32) * rates
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x with each pair (column i, column i + H/2) turned by its angle, in float32, returned in x's dtype.

    Arguments: x_BTNH, queries or keys; cos and sin [T, H/2] or [B, T, H/2] from `rotary_angles`.
    """
    cos, sin = cos[..., None, :], sin[..., None, :]  # the same angle for every head
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def relative_buckets(
    distance: jax.Array, *, num_buckets: int, max_distance: int, bidirectional: bool = False
) -> jax.Array:
    """T5's bucket of each distance (query position - key position), int32, same shape.

    Half of the buckets hold one distance each, the other half grow logarithmically up to `max_distance`. In causal
    attention, keys after the query share bucket 0; bidirectional, they have the second half of the buckets, cut the
    same way.
    """
    if bidirectional:
        half = num_buckets // 2
        near = relative_buckets(jnp.abs(distance), num_buckets=half, max_distance=max_distance)
        return jnp.where(distance < 0, half + near, near)
    exact = num_buckets // 2
    far = num_buckets - exact
    # Where the logarithmic buckets begin, as whole numbers: a logarithm rounded on the device would move borders.
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
    """The scores' bias [N, T, S] from a learned table [buckets, N]."""
    buckets_TS = relative_buckets(
        queries_T[:, None] - keys_S[None, :],
        num_buckets=table.shape[0],
        max_distance=max_distance,
        bidirectional=bidirectional,
    )
    return jnp.moveaxis(table[buckets_TS], -1, 0)


def alibi_slopes(num_heads: int) -> list[float]:
    """Each head's slope: a geometric sequence from 2^(-8/n), interleaved with the next power's for other counts."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    extra = [2.0 ** (-8.0 * (i + 1) / (2 * power)) for i in range(0, 2 * (num_heads - power), 2)]
    return slopes + extra


def alibi_bias(num_heads: int, queries_T: jax.Array, keys_S: jax.Array) -> jax.Array:
    """The scores' bias float32 [N, T, S]: minus slope times distance."""
    distance_TS = (queries_T[:, None] - keys_S[None, :]).astype(jnp.float32)
    return -jnp.asarray(alibi_slopes(num_heads))[:, None, None] * jnp.abs(distance_TS)
