"""Cross-entropy, of logits and of the hidden states that they are a product of.

Every loss returns sums and the sum of the weights (`CrossEntropy`). Micro-batches, devices and evaluation batches then
add up to the same mean, and padding has weight 0.

B batch, T length, D width, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import kernels, sharding
from transformer_jax.errors import InputError


class CrossEntropy(NamedTuple):
    """What a loss returns, float32 scalars.

    Attributes:
      sum: the weighted sum of the losses in nats, which training minimises.
      weight: the sum of the weights.
      plain: the same sum without label smoothing and z-loss, to report; it has no gradient.
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
    """The weighted sum of -log softmax(logits)[label] in nats, and the sum of the weights.

    Args:
      logits_BTV: logits of any float dtype; the computation is in float32.
      labels_BT: integers below V, from 0 on. Others must have weight 0, such as the -100 of other libraries.
      weights_BT: None: all 1.
      label_smoothing: e; the target is (1 - e) one-hot + e uniform (Szegedy et al. 2016, section 7).
      z_loss: z; adds z log(Z)^2 per token, Z the softmax's denominator (Chowdhery et al. 2022, section 5).

    Raises:
      InputError: a label out of range has a weight. In a compiled function, where values are not known, the weight
        becomes infinite, so that the mean is not a number.
    """
    labels_BT, weights_BT = _targets(labels_BT, weights_BT, logits_BTV.shape[-1])
    total, plain = _sums(logits_BTV, labels_BT, weights_BT, label_smoothing, z_loss)
    return CrossEntropy(total, jnp.sum(weights_BT), jax.lax.stop_gradient(plain))


def linear_cross_entropy(
    x_BTD: jax.Array,
    kernel_DV: jax.Array,
    labels_BT: jax.Array,
    weights_BT: jax.Array | None = None,
    *,
    bias_V: jax.Array | None = None,
    cap: float = 0.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    tile_bytes: int | None = None,
) -> CrossEntropy:
    """`cross_entropy` of the logits x @ kernel + bias: the same values and gradients, without ever holding the logits.

    They are computed in tiles of positions (`kernels.cross_entropy`), which is differentiable in reverse mode, once.

    Args:
      x_BTD: hidden states, in the compute dtype, to which kernel and bias are cast.
      kernel_DV: the output matrix.
      labels_BT: as for `cross_entropy`.
      weights_BT: as for `cross_entropy`.
      bias_V: the bias of the logits.
      cap: the soft cap of the logits (`kernels.soft_cap`); 0: none.
      label_smoothing: as for `cross_entropy`.
      z_loss: as for `cross_entropy`.
      tile_bytes: the most bytes of float32 logits that exist at once on a device, at least one position of the batch;
        None: chosen by the chip.

    Raises:
      InputError: as `cross_entropy`.
    """
    labels_BT, weights_BT = _targets(labels_BT, weights_BT, kernel_DV.shape[1])
    kernel_DV = kernel_DV.astype(x_BTD.dtype)
    options: Any = {"cap": cap, "label_smoothing": label_smoothing, "z_loss": z_loss}
    with jax.named_scope("loss"):
        total, plain = _linear_sums(x_BTD, kernel_DV, bias_V, labels_BT, weights_BT, **options, tile_bytes=tile_bytes)
    return CrossEntropy(total, jnp.sum(weights_BT), jax.lax.stop_gradient(plain))


def logits(x_BTD: jax.Array, kernel_DV: jax.Array, bias_V: jax.Array | None = None, *, cap: float = 0.0) -> jax.Array:
    """The logits x @ kernel + bias, float32 [B, T, V], all at once.

    Args:
      x_BTD: hidden states in the compute dtype.
      kernel_DV: the output matrix.
      bias_V: the bias of the logits.
      cap: their soft cap (`kernels.soft_cap`); 0: none.
    """
    axes, kernel_DV = ("batch", "length", "vocab"), kernel_DV.astype(x_BTD.dtype)
    logits_BTV = sharding.einsum("BTD,DV->BTV", x_BTD, kernel_DV, out=axes, dtype=jnp.float32)
    logits_BTV = logits_BTV if bias_V is None else logits_BTV + bias_V
    return kernels.soft_cap(logits_BTV, cap) if cap else logits_BTV


def log_likelihoods(
    x_BTD: jax.Array, kernel_DV: jax.Array, labels_BT: jax.Array, *, cap: float = 0.0, chunk: int = 256
) -> jax.Array:
    """log softmax(x @ kernel)[label] at each position, float32 [B, T], for losses of whole sequences.

    The logits exist for `chunk` positions at a time, and are recomputed for the gradient.

    Args:
      x_BTD: hidden states in the compute dtype.
      kernel_DV: the output matrix.
      labels_BT: integers in [0, V).
      cap: the soft cap of the logits; 0: none.
      chunk: positions; a length that it does not divide is computed at once.
    """

    @jax.checkpoint
    def of(x_BTD: jax.Array, labels_BT: jax.Array) -> jax.Array:
        logits_BTV = logits(x_BTD, kernel_DV, cap=cap)
        is_label_BTV = labels_BT[..., None] == jnp.arange(logits_BTV.shape[-1], dtype=jnp.int32)
        picked_BT = jnp.sum(jnp.where(is_label_BTV, logits_BTV, 0.0), axis=-1)
        return picked_BT - jax.nn.logsumexp(logits_BTV, axis=-1)

    B, T = labels_BT.shape
    if chunk >= T or T % chunk:
        return of(x_BTD, labels_BT)
    parts = lambda x: jnp.moveaxis(x.reshape(B, T // chunk, chunk, *x.shape[2:]), 1, 0)  # noqa: E731
    _, made = jax.lax.scan(lambda none, part: (none, of(*part)), None, (parts(x_BTD), parts(labels_BT)))
    return jnp.moveaxis(made, 0, 1).reshape(B, T)


@kernels.choose("linear_cross_entropy")
def _linear_sums(
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
    return _sums(logits(x_BTD, kernel_DV, bias_V, cap=cap), labels_BT, weights_BT, label_smoothing, z_loss)


def _sums(
    logits_BTV: jax.Array, labels_BT: jax.Array, weights_BT: jax.Array, label_smoothing: float, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """The weighted sums of the losses, and of the cross-entropy without label smoothing and z-loss."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT, mean_BT = jax.nn.logsumexp(logits_BTV, axis=-1), jnp.mean(logits_BTV, axis=-1)
    # The label's logit by comparison: its gradient is no scatter, and a sharded vocabulary needs no gather.
    is_label_BTV = labels_BT[..., None] == jnp.arange(logits_BTV.shape[-1], dtype=jnp.int32)
    picked_BT = jnp.sum(jnp.where(is_label_BTV, logits_BTV, 0.0), axis=-1)
    plain_BT = losses_BT = log_z_BT - picked_BT
    if label_smoothing:
        losses_BT = losses_BT + label_smoothing * (picked_BT - mean_BT)
    if z_loss:
        losses_BT = losses_BT + z_loss * jnp.square(log_z_BT)
    return jnp.sum(losses_BT * weights_BT), jnp.sum(plain_BT * weights_BT)


def _targets(labels_BT: jax.Array, weights_BT: jax.Array | None, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """int32 labels and float32 weights (None: all 1), sharded alike; labels out of range as `cross_entropy` says."""
    labels_BT = jnp.asarray(labels_BT, jnp.int32)
    weights_BT = jnp.ones_like(labels_BT, jnp.float32) if weights_BT is None else jnp.asarray(weights_BT, jnp.float32)
    outside_BT = (labels_BT < 0) | (labels_BT >= vocab_size)
    wrong_BT = outside_BT & (weights_BT != 0)
    if not isinstance(wrong_BT, jax.core.Tracer) and wrong_BT.is_fully_addressable and wrong_BT.any():
        raise InputError(
            f"label {labels_BT[wrong_BT][0]} is none of the {vocab_size} there are, from 0 on; give weight 0 to "
            "positions that do not count"
        )
    labels_BT, weights_BT = jnp.where(outside_BT, 0, labels_BT), weights_BT / jnp.where(wrong_BT, 0.0, 1.0)
    return sharding.constrain(labels_BT, ("batch", "length")), sharding.constrain(weights_BT, ("batch", "length"))
