"""Cross-entropy, plain and without ever holding the logits.

Every loss returns sums and the sum of the weights (`CrossEntropy`). Micro-batches, devices and evaluation batches then
add up to the same mean, and padding has weight 0.

B batch, T length, D width, V vocabulary, t positions in a tile.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from transformer_jax import sharding
from transformer_jax.errors import InputError

# Of float32 logits that `linear_cross_entropy` holds at once on one device. Each tile reads and writes the kernel's
# whole gradient: on TPUs, whose memory is large, few tiles take a quarter off the head's time (docs/performance.md).
TILE_BYTES = {"cpu": 128 * 2**20, "gpu": 128 * 2**20, "tpu": 256 * 2**20}
# A chip that gains from smaller tiles, whose logits stay in its vector memory: of so many positions of all rows
# together, and bytes. With fewer positions, the kernel's gradient costs more than that saves (docs/performance.md).
SMALL_TILES = {"TPU v5 lite": (512, 48 * 2**20)}


class CrossEntropy(NamedTuple):
    """What a loss returns, float32 scalars.

    sum      the weighted sum of the losses in nats, which training minimises
    weight   the sum of the weights
    plain    the same sum without label smoothing and z-loss, to report; it has no gradient
    """

    sum: jax.Array
    weight: jax.Array
    plain: jax.Array


def cross_entropy(
    logits_BTV: jax.Array,
    labels_BT: jax.Array,
    weights_BT: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Weighted sum of -log softmax(logits)[label] in nats, and the sum of the weights.

    Label smoothing e trains towards (1 - e) one-hot + e uniform (Szegedy et al. 2016, section 7). z_loss adds
    z log(Z)^2 per token, Z the softmax's denominator (Chowdhery et al. 2022, section 5).
    """
    labels_BT, weights_BT = _targets(labels_BT, weights_BT, logits_BTV.shape[-1])
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT, mean_BT = jax.nn.logsumexp(logits_BTV, axis=-1), jnp.mean(logits_BTV, axis=-1)
    picked_BT = _picked_by_comparison(logits_BTV, labels_BT)
    losses_BT, plain_BT = _token_losses(log_z_BT, picked_BT, mean_BT, label_smoothing, z_loss)
    plain = jax.lax.stop_gradient(jnp.sum(plain_BT * weights_BT))
    return CrossEntropy(jnp.sum(losses_BT * weights_BT), jnp.sum(weights_BT), plain)


def linear_cross_entropy(
    x_BTD: jax.Array,
    kernel_DV: jax.Array,
    labels_BT: jax.Array,
    weights_BT: jax.Array | None = None,
    *,
    bias_V: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    tile_bytes: int | None = None,
) -> CrossEntropy:
    """`cross_entropy` of the logits x @ kernel + bias, the same values and gradients, in tiles over the positions.

    About `tile_bytes` of float32 logits (None: by the chip, `num_tiles`) exist at once on a device: tiles divide the
    length, and hold at least one position of the batch. Differentiable in reverse mode only. The forward pass of a
    differentiated call computes each tile's gradients while its logits are at hand, so nothing is computed twice (the
    idea of Cut Cross-Entropy and Liger's fused linear cross-entropy). x is in the compute dtype, to which kernel and
    bias are cast.
    """
    labels_BT, weights_BT = _targets(labels_BT, weights_BT, kernel_DV.shape[1])
    B, T = labels_BT.shape
    rows, length = B // sharding.shards("batch"), T // sharding.shards("length")
    columns = kernel_DV.shape[1] // sharding.shards("vocab")
    tiles = num_tiles(rows, length, columns, sharding.target_platform(), sharding.target_chip(), tile_bytes)
    settings = (tiles, label_smoothing, z_loss)
    operands = sharding.vary_together(x_BTD, kernel_DV.astype(x_BTD.dtype), bias_V, labels_BT, weights_BT)
    with jax.named_scope("loss"):
        total, plain = _tiled(settings, *operands)
    return CrossEntropy(total, jnp.sum(weights_BT), jax.lax.stop_gradient(plain))


def _targets(labels_BT: jax.Array, weights_BT: jax.Array | None, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """int32 labels and float32 weights (None: all 1), of whatever dtypes they come in, laid out alike.

    A label that is none, such as the -100 of other libraries, has to have weight 0. Otherwise it is an `InputError`
    where the values are known, and in a compiled function its weight is infinite, so that the mean is not a number.
    """
    labels_BT = jnp.asarray(labels_BT, jnp.int32)
    weights_BT = jnp.ones_like(labels_BT, jnp.float32) if weights_BT is None else jnp.asarray(weights_BT, jnp.float32)
    is_none_BT = (labels_BT < 0) | (labels_BT >= vocab_size)
    wrong_BT = is_none_BT & (weights_BT != 0)
    if not isinstance(wrong_BT, jax.core.Tracer) and wrong_BT.is_fully_addressable and wrong_BT.any():
        raise InputError(
            f"label {labels_BT[wrong_BT][0]} is none of the {vocab_size} there are, from 0 on; give weight 0 to "
            "positions that do not count"
        )
    labels_BT, weights_BT = jnp.where(is_none_BT, 0, labels_BT), weights_BT / jnp.where(wrong_BT, 0.0, 1.0)
    return sharding.constrain(labels_BT, ("batch", "length")), sharding.constrain(weights_BT, ("batch", "length"))


def _logits(x_BTD: jax.Array, kernel_DV: jax.Array, bias_V: jax.Array | None) -> jax.Array:
    axes = ("batch", "length", "vocab")
    logits_BTV = sharding.einsum("BTD,DV->BTV", x_BTD, kernel_DV, out=axes, dtype=jnp.float32)
    return logits_BTV if bias_V is None else logits_BTV + bias_V.astype(jnp.float32)


def _token_losses(
    log_z_BT: jax.Array, picked_BT: jax.Array, mean_BT: jax.Array | float, label_smoothing: float, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """Each token's loss and its plain cross-entropy, [B, T] each, from what they need to know of its logits: the log of
    the softmax's denominator, the label's logit, and the mean of all."""
    plain_BT = losses_BT = log_z_BT - picked_BT
    if label_smoothing:
        losses_BT = losses_BT + label_smoothing * (picked_BT - mean_BT)
    if z_loss:
        losses_BT = losses_BT + z_loss * jnp.square(log_z_BT)
    return losses_BT, plain_BT


def _picked_by_comparison(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """The label's logit, [B, T]: its gradient is no scatter, and a vocabulary split over devices needs no gather."""
    return jnp.sum(jnp.where(_is_label(labels_BT, logits_BTV.shape[-1]), logits_BTV, 0.0), axis=-1)


def _is_label(labels_BT: jax.Array, vocab_size: int) -> jax.Array:
    return labels_BT[..., None] == jnp.arange(vocab_size, dtype=jnp.int32)


def num_tiles(rows: int, length: int, columns: int, platform: str, chip: str, tile_bytes: int | None = None) -> int:
    """Into how many tiles a device cuts its length: the smallest divisor that makes a tile's logits fit, and where that
    is several and the chip gains from small ones, the largest that leaves them large enough.

    Arguments: rows of its batch; their length and the columns of the vocabulary that it has; the device's platform and
    kind, by which a tile's size goes, and what replaces that.
    """
    positions = rows * length
    needed = math.ceil(4 * positions * columns / (TILE_BYTES[platform] if tile_bytes is None else tile_bytes))
    divisors = [n for n in range(1, length + 1) if length % n == 0]
    tiles = next((n for n in divisors if n >= needed), length)
    if tiles > 1 and tile_bytes is None and chip in SMALL_TILES:
        fewest, nbytes = SMALL_TILES[chip]
        fewest = max(fewest, nbytes // (4 * columns))
        tiles = max(tiles, 1, *(n for n in divisors if n * fewest <= positions))
    return tiles


class _Tile(NamedTuple):
    """What is made of a tile's logits; every pass over them costs, on a CPU a twentieth of the head's time."""

    losses_Bt: jax.Array
    plain_Bt: jax.Array
    exps_BtV: jax.Array  # of the logits less their maximum: the softmax, but for the denominator
    z_Bt: jax.Array
    log_z_Bt: jax.Array


def _tile(settings, x_BtD, kernel_DV, kernel_mean_D, bias_V, labels_Bt) -> _Tile:
    _, label_smoothing, z_loss = settings
    logits_BtV = _logits(x_BtD, kernel_DV, bias_V)
    top_Bt = jnp.max(logits_BtV, axis=-1)
    exps_BtV = jnp.exp(logits_BtV - top_Bt[..., None])
    whole = sharding.shards("vocab") == 1  # on each device; else devices have parts of each sum
    z_Bt = sharding.sum_last(exps_BtV) if whole else jnp.sum(exps_BtV, axis=-1)
    log_z_Bt = top_Bt + jnp.log(z_Bt)
    # The mean of the logits is the product with the mean of the kernel: no pass at all.
    mean_Bt = jnp.sum(x_BtD.astype(jnp.float32) * kernel_mean_D, axis=-1)
    mean_Bt += 0.0 if bias_V is None else jnp.mean(bias_V.astype(jnp.float32))
    if whole:
        picked_Bt = jnp.take_along_axis(logits_BtV, labels_Bt[..., None], axis=-1, mode="clip")[..., 0]
    else:
        picked_Bt = _picked_by_comparison(logits_BtV, labels_Bt)
    losses_Bt, plain_Bt = _token_losses(log_z_Bt, picked_Bt, mean_Bt, label_smoothing, z_loss)
    return _Tile(losses_Bt, plain_Bt, exps_BtV, z_Bt, log_z_Bt)


def _kernel_mean(kernel_DV: jax.Array) -> jax.Array:
    return sharding.constrain(jnp.mean(kernel_DV, axis=1, dtype=jnp.float32), (None,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(settings, x_BTD, kernel_DV, bias_V, labels_BT, weights_BT):
    kernel_DV = sharding.constrain(kernel_DV, (None, "vocab"))  # gathered once, and not for each tile
    mean_D = _kernel_mean(kernel_DV)

    def tile(sums, xs):
        x_BtD, labels_Bt, weights_Bt = xs
        made = _tile(settings, x_BtD, kernel_DV, mean_D, bias_V, labels_Bt)
        total, plain = (jnp.sum(losses_Bt * weights_Bt) for losses_Bt in (made.losses_Bt, made.plain_Bt))
        return (sums[0] + total, sums[1] + plain), None

    xs = tuple(_cut(a, settings[0]) for a in (x_BTD, labels_BT, weights_BT))
    zero = jnp.zeros_like(x_BTD, jnp.float32, shape=())
    return jax.lax.scan(tile, (zero, zero), xs)[0]


def _tiled_forward(settings, x_BTD, kernel_DV, bias_V, labels_BT, weights_BT):
    """The sums, and the gradients of the first: each tile's logits are turned into their gradient and used at once."""
    tiles, label_smoothing, z_loss = settings
    kernel_DV = sharding.constrain(kernel_DV, (None, "vocab"))
    V, mean_D = kernel_DV.shape[1], _kernel_mean(kernel_DV)

    def tile(carry, xs):
        d_kernel, d_bias_V = carry
        x_BtD, labels_Bt, weights_Bt = xs
        made = _tile(settings, x_BtD, kernel_DV, mean_D, bias_V, labels_Bt)
        target_BtV = jnp.where(_is_label(labels_Bt, V), 1.0 - label_smoothing, 0.0) + label_smoothing / V
        weight_Bt1, scale_Bt = weights_Bt[..., None], (1.0 + 2.0 * z_loss * made.log_z_Bt) * weights_Bt / made.z_Bt
        d_logits_BtV = made.exps_BtV * scale_Bt[..., None] - target_BtV * weight_Bt1
        narrow_BtV = d_logits_BtV.astype(x_BtD.dtype)
        d_x_BtD = sharding.einsum("BTV,DV->BTD", narrow_BtV, kernel_DV, out=("batch", "length", None))
        d_kernel += _kernel_gradient(x_BtD, narrow_BtV, parts)
        d_bias_V += jnp.sum(d_logits_BtV, axis=(0, 1))
        return (d_kernel, d_bias_V), (d_x_BtD, made.losses_Bt, made.plain_Bt)

    parts = _parts(tiles)
    xs = tuple(_cut(a, tiles) for a in (x_BTD, labels_BT, weights_BT))
    # zeros_like: zeros that vary over the manual mesh axes that x varies over.
    shape, axes = (kernel_DV.shape, ("embed", "vocab")) if parts is None else ((*parts, *kernel_DV.shape), PARTIAL)
    zeros = sharding.constrain(jnp.zeros_like(x_BTD, jnp.float32, shape=shape), axes)
    zeros_V = sharding.constrain(jnp.zeros_like(x_BTD, jnp.float32, shape=(V,)), ("vocab",))
    (d_kernel, d_bias_V), (d_x, losses, plain) = jax.lax.scan(tile, (zeros, zeros_V), xs)
    losses_BT, plain_BT = _join(losses), _join(plain)
    total, plain = jnp.sum(losses_BT * weights_BT), jnp.sum(plain_BT * weights_BT)
    if parts is not None:
        d_kernel = sharding.constrain(jnp.sum(d_kernel, axis=(0, 1)), ("embed", "vocab"))
    d_bias_V = None if bias_V is None else d_bias_V.astype(bias_V.dtype)
    return (total, plain), (_join(d_x), d_kernel.astype(kernel_DV.dtype), d_bias_V, losses_BT)


PARTIAL = ("batch", "length", None, "vocab")  # what each device's tokens add to the kernel's gradient


def _parts(tiles: int) -> tuple[int, int] | None:
    """Into how many parts the mesh cuts the batch and the length, where there are several tiles; else None.

    The kernel's gradient is then kept apart for each part and summed over the devices once, after the last tile, and
    not in every one. On Explicit axes, where a batch cannot be split in two dimensions as it lies, each tile sums.
    """
    parts = (sharding.shards("batch"), sharding.shards("length"))
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return None if tiles == 1 or parts == (1, 1) or explicit else parts


def _kernel_gradient(x_BtD: jax.Array, d_BtV: jax.Array, parts: tuple[int, int] | None) -> jax.Array:
    """What a tile adds to the kernel's gradient, float32: [D, V], or apart by batch and length, [n, m, D, V]."""
    if parts is None:
        return sharding.einsum("BTD,BTV->DV", x_BtD, d_BtV, out=("embed", "vocab"), dtype=jnp.float32)
    (n, m), (B, t) = parts, d_BtV.shape[:2]

    def cut(x: jax.Array, last: str | None) -> jax.Array:
        return sharding.constrain(x.reshape(n, B // n, m, t // m, -1), ("batch", None, "length", None, last))

    x, d = cut(x_BtD, None), cut(d_BtV, "vocab")
    return sharding.constrain(jnp.einsum("nbmtD,nbmtV->nmDV", x, d, preferred_element_type=jnp.float32), PARTIAL)


def _tiled_backward(settings, residuals, d_sums):
    d_total, _ = d_sums  # the plain sum has no gradient
    d_x_BTD, d_kernel_DV, d_bias_V, losses_BT = residuals
    scaled = (None if d is None else (d * d_total).astype(d.dtype) for d in (d_x_BTD, d_kernel_DV, d_bias_V))
    return (*scaled, None, losses_BT * d_total)


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _cut(x: jax.Array, tiles: int) -> jax.Array:
    """[B, T, ...] -> [tiles, B, t, ...]: each tile has a run of positions of every device's length."""
    B, T, *rest = x.shape
    parts = sharding.shards("length")
    x = jnp.moveaxis(x.reshape(B, parts, tiles, T // (parts * tiles), *rest), 2, 0)
    return x.reshape(tiles, B, T // tiles, *rest)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    tiles, B, t, *rest = x.shape
    parts = sharding.shards("length")
    return jnp.moveaxis(x.reshape(tiles, B, parts, t // parts, *rest), 0, 2).reshape(B, tiles * t, *rest)
