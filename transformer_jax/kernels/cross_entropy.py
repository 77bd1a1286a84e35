"""Cross-entropy of a product, in tiles of positions: the logits of all positions never exist at once.

The forward pass of a differentiated call computes each tile's gradients while its logits are there, so nothing is
computed twice (the idea of `Cut Cross-Entropy` and of Liger's fused linear cross-entropy).

B batch, T length, D width, V vocabulary, t positions of a tile, n parts of the batch, m of the length.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from transformer_jax import kernels, sharding
from transformer_jax.kernels.gradients import vary_alike

# Of float32 logits that exist at once on one device. Each tile reads and writes the whole gradient of the kernel. TPUs
# have much memory, and with few tiles the head takes a quarter less time there (docs/performance.md).
TILE_BYTES = {"cpu": 128 * 2**20, "gpu": 128 * 2**20, "tpu": 256 * 2**20}
# (positions of all rows, bytes): with fewer positions in a tile, reading and writing the kernel's gradient takes longer
# than the product that adds to it, on a chip of 400 TFLOP/s and 2.8 TB/s with fewer than 600. So a tile of a large
# vocabulary may have more bytes, but not more than these.
LARGE_TILES = {"tpu": (1024, 2**30)}
# (positions of all rows, bytes): the smallest tiles on a chip that keeps the logits of small tiles in its vector
# memory. With fewer positions, the gradient of the kernel costs more than that saves (docs/performance.md).
SMALL_TILES = {"TPU v5 lite": (512, 48 * 2**20)}

PARTIAL = ("batch", "length", None, "vocab")  # one summand of the kernel's gradient for each part of batch and length


class Settings(NamedTuple):
    """What is static."""

    tiles: int
    cap: float
    label_smoothing: float
    z_loss: float


def linear_cross_entropy(
    plain: Callable[..., Any],
    x_BTD: jax.Array,
    kernel_DV: jax.Array,
    bias_V: jax.Array | None,
    labels_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    cap: float,
    label_smoothing: float,
    z_loss: float,
    tile_bytes: int | None,
) -> tuple[jax.Array, jax.Array]:
    """`losses.linear_cross_entropy`'s two sums, in tiles: the loss, and the plain cross-entropy without a gradient.

    Args:
      plain: not used.
      x_BTD: hidden states in the compute dtype.
      kernel_DV: in the same dtype.
      bias_V: the bias of the logits.
      labels_BT: int32, each below V.
      weights_BT: float32.
      cap: the soft cap of the logits; 0: none.
      label_smoothing: the share of the uniform distribution in the target.
      z_loss: the factor of log(Z)^2.
      tile_bytes: the most bytes of a tile's float32 logits on one device; None: chosen by the chip (`num_tiles`).
    """
    B, T = labels_BT.shape
    rows, length = B // sharding.shards("batch"), T // sharding.shards("length")
    columns = kernel_DV.shape[1] // sharding.shards("vocab")
    tiles = num_tiles(rows, length, columns, kernels.target_platform(), kernels.target_chip(), tile_bytes)
    operands = vary_alike(x_BTD, kernel_DV, bias_V, labels_BT, weights_BT)
    return _tiled(Settings(tiles, cap, label_smoothing, z_loss), *operands)


def num_tiles(rows: int, length: int, columns: int, platform: str, chip: str, tile_bytes: int | None = None) -> int:
    """The number of tiles that a device splits its length into: the smallest divisor whose tiles fit.

    Where that is more than one and the chip gains from small tiles, it is the largest divisor whose tiles are not too
    small.

    Args:
      rows: the number of rows of the batch on one device.
      length: positions of each row on one device.
      columns: the number of columns of the vocabulary on one device.
      platform: "cpu", "tpu" or "gpu".
      chip: its kind, as `jax.Device.device_kind`.
      tile_bytes: the most bytes of a tile's logits; None: chosen by platform and chip.
    """
    positions = rows * length
    limit = TILE_BYTES.get(platform, TILE_BYTES["cpu"]) if tile_bytes is None else tile_bytes
    if tile_bytes is None and platform in LARGE_TILES:
        fewest, most = LARGE_TILES[platform]
        limit = max(limit, min(4 * fewest * columns, most))
    needed = math.ceil(4 * positions * columns / limit)
    divisors = [n for n in range(1, length + 1) if length % n == 0]
    tiles = next((n for n in divisors if n >= needed), length)
    if tiles > 1 and tile_bytes is None and chip in SMALL_TILES:
        fewest, nbytes = SMALL_TILES[chip]
        fewest = max(fewest, nbytes // (4 * columns))
        tiles = max(tiles, 1, *(n for n in divisors if n * fewest <= positions))
    return tiles


# ------------------------------------------------------------------------------------------------------------ one tile


class _Tile(NamedTuple):
    """What one pass over a tile's logits gives. On a CPU each further pass is a twentieth of the head's time."""

    logits_BtV: jax.Array  # after the cap
    losses_Bt: jax.Array
    plain_Bt: jax.Array
    exps_BtV: jax.Array  # exp(logits - their maximum): the softmax without its denominator
    z_Bt: jax.Array
    log_z_Bt: jax.Array


def _tile(settings: Settings, x_BtD, kernel_DV, kernel_mean_D, bias_V, labels_Bt) -> _Tile:
    axes = ("batch", "length", "vocab")
    logits_BtV = sharding.einsum("BTD,DV->BTV", x_BtD, kernel_DV, out=axes, dtype=jnp.float32)
    logits_BtV = logits_BtV if bias_V is None else logits_BtV + bias_V.astype(jnp.float32)
    logits_BtV = kernels.soft_cap(logits_BtV, settings.cap) if settings.cap else logits_BtV
    top_Bt = jnp.max(logits_BtV, axis=-1)
    exps_BtV = jnp.exp(logits_BtV - top_Bt[..., None])
    replicated = sharding.shards("vocab") == 1  # else each device has a part of each sum
    z_Bt = kernels.row_sums(exps_BtV) if replicated else jnp.sum(exps_BtV, axis=-1)
    log_z_Bt = top_Bt + jnp.log(z_Bt)
    if settings.cap:
        mean_Bt = jnp.mean(logits_BtV, axis=-1)
    else:  # the product with the mean of the kernel, which needs no pass over the logits
        mean_Bt = jnp.sum(x_BtD.astype(jnp.float32) * kernel_mean_D, axis=-1)
        mean_Bt += 0.0 if bias_V is None else jnp.mean(bias_V.astype(jnp.float32))
    if replicated:
        picked_Bt = jnp.take_along_axis(logits_BtV, labels_Bt[..., None], axis=-1, mode="clip")[..., 0]
    else:
        picked_Bt = jnp.sum(jnp.where(_is_label(labels_Bt, logits_BtV.shape[-1]), logits_BtV, 0.0), axis=-1)
    plain_Bt = losses_Bt = log_z_Bt - picked_Bt
    if settings.label_smoothing:
        losses_Bt = losses_Bt + settings.label_smoothing * (picked_Bt - mean_Bt)
    if settings.z_loss:
        losses_Bt = losses_Bt + settings.z_loss * jnp.square(log_z_Bt)
    return _Tile(logits_BtV, losses_Bt, plain_Bt, exps_BtV, z_Bt, log_z_Bt)


def _is_label(labels_BT: jax.Array, vocab_size: int) -> jax.Array:
    return labels_BT[..., None] == jnp.arange(vocab_size, dtype=jnp.int32)


def _kernel_mean(kernel_DV: jax.Array) -> jax.Array:
    return sharding.constrain(jnp.mean(kernel_DV, axis=1, dtype=jnp.float32), (None,))


# ----------------------------------------------------------------------------------------------------------- all tiles


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(settings: Settings, x_BTD, kernel_DV, bias_V, labels_BT, weights_BT):
    kernel_DV = sharding.constrain(kernel_DV, (None, "vocab"))  # gathered once, not for each tile
    mean_D = _kernel_mean(kernel_DV)

    def tile(sums, xs):
        x_BtD, labels_Bt, weights_Bt = xs
        made = _tile(settings, x_BtD, kernel_DV, mean_D, bias_V, labels_Bt)
        total, plain = (jnp.sum(losses_Bt * weights_Bt) for losses_Bt in (made.losses_Bt, made.plain_Bt))
        return (sums[0] + total, sums[1] + plain), None

    xs = tuple(_split(a, settings.tiles) for a in (x_BTD, labels_BT, weights_BT))
    zero = jnp.zeros_like(x_BTD, jnp.float32, shape=())
    return jax.lax.scan(tile, (zero, zero), xs)[0]


def _tiled_forward(settings: Settings, x_BTD, kernel_DV, bias_V, labels_BT, weights_BT):
    """The sums, and the gradients of the first. Each tile's logits become their gradient, which is used at once."""
    tiles, cap, label_smoothing, z_loss = settings
    kernel_DV = sharding.constrain(kernel_DV, (None, "vocab"))
    V, mean_D = kernel_DV.shape[1], _kernel_mean(kernel_DV)

    def tile(carry, xs):
        d_kernel, d_bias_V = carry
        x_BtD, labels_Bt, weights_Bt = xs
        made = _tile(settings, x_BtD, kernel_DV, mean_D, bias_V, labels_Bt)
        target_BtV = jnp.where(_is_label(labels_Bt, V), 1.0 - label_smoothing, 0.0) + label_smoothing / V
        weight_Bt1, scale_Bt = weights_Bt[..., None], (1.0 + 2.0 * z_loss * made.log_z_Bt) * weights_Bt / made.z_Bt
        d_logits_BtV = made.exps_BtV * scale_Bt[..., None] - target_BtV * weight_Bt1
        if cap:  # the slope of cap * tanh(x / cap)
            d_logits_BtV *= 1.0 - jnp.square(made.logits_BtV / cap)
        narrow_BtV = d_logits_BtV.astype(x_BtD.dtype)
        d_x_BtD = sharding.einsum("BTV,DV->BTD", narrow_BtV, kernel_DV, out=("batch", "length", None))
        d_kernel += _kernel_gradient(x_BtD, narrow_BtV, parts)
        d_bias_V += jnp.sum(d_logits_BtV, axis=(0, 1))
        return (d_kernel, d_bias_V), (d_x_BtD, made.losses_Bt, made.plain_Bt)

    parts = _parts(tiles)
    xs = tuple(_split(a, tiles) for a in (x_BTD, labels_BT, weights_BT))
    # zeros_like: zeros that vary over the Manual mesh axes that x varies over.
    shape, axes = (kernel_DV.shape, ("embed", "vocab")) if parts is None else ((*parts, *kernel_DV.shape), PARTIAL)
    zeros = sharding.constrain(jnp.zeros_like(x_BTD, jnp.float32, shape=shape), axes)
    zeros_V = sharding.constrain(jnp.zeros_like(x_BTD, jnp.float32, shape=(V,)), ("vocab",))
    (d_kernel, d_bias_V), (d_x, losses, plain) = jax.lax.scan(tile, (zeros, zeros_V), xs)
    losses_BT, plain_BT = _join(losses), _join(plain)
    total, plain = jnp.sum(losses_BT * weights_BT), jnp.sum(plain_BT * weights_BT)
    if parts is not None:
        d_kernel = sharding.constrain(jnp.sum(d_kernel, axis=(0, 1)), ("embed", "vocab"))
    d_bias = None if bias_V is None else d_bias_V.astype(bias_V.dtype)
    return (total, plain), (_join(d_x), d_kernel.astype(kernel_DV.dtype), d_bias, losses_BT)


def _tiled_backward(settings: Settings, residuals, d_sums):
    d_total, _ = d_sums  # the plain sum has no gradient
    d_x_BTD, d_kernel_DV, d_bias_V, losses_BT = residuals
    scaled = (None if d is None else (d * d_total).astype(d.dtype) for d in (d_x_BTD, d_kernel_DV, d_bias_V))
    return (*scaled, None, losses_BT * d_total)


_tiled.defvjp(_tiled_forward, _tiled_backward)


# ------------------------------------------------------------------------------------------------------------ on meshes


def _parts(tiles: int) -> tuple[int, int] | None:
    """The parts into which the mesh shards the batch and the length, where there are several tiles; else None.

    Each part then has a gradient of the kernel of its own, and these are summed over the devices once, after the last
    tile. In an Explicit mesh, where a sharded batch cannot be reshaped to two dimensions, each tile sums.
    """
    parts = (sharding.shards("batch"), sharding.shards("length"))
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return None if tiles == 1 or parts == (1, 1) or explicit else parts


def _kernel_gradient(x_BtD: jax.Array, d_BtV: jax.Array, parts: tuple[int, int] | None) -> jax.Array:
    """What a tile adds to the kernel's gradient, float32: [D, V], or one for each part, [n, m, D, V]."""
    if parts is None:
        return sharding.einsum("BTD,BTV->DV", x_BtD, d_BtV, out=("embed", "vocab"), dtype=jnp.float32)
    (n, m), (B, t) = parts, d_BtV.shape[:2]

    def by_part(x: jax.Array, last: str | None) -> jax.Array:
        return sharding.constrain(x.reshape(n, B // n, m, t // m, -1), ("batch", None, "length", None, last))

    x, d = by_part(x_BtD, None), by_part(d_BtV, "vocab")
    return sharding.constrain(jnp.einsum("nbmtD,nbmtV->nmDV", x, d, preferred_element_type=jnp.float32), PARTIAL)


def _split(x: jax.Array, tiles: int) -> jax.Array:
    """[B, T, ...] -> [tiles, B, t, ...]: each tile has a run of positions of every device's length."""
    B, T, *rest = x.shape
    parts = sharding.shards("length")
    x = jnp.moveaxis(x.reshape(B, parts, tiles, T // (parts * tiles), *rest), 2, 0)
    return x.reshape(tiles, B, T // tiles, *rest)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    tiles, B, t, *rest = x.shape
    parts = sharding.shards("length")
    return jnp.moveaxis(x.reshape(tiles, B, parts, t // parts, *rest), 0, 2).reshape(B, tiles * t, *rest)
