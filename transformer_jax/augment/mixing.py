"""MixUp and CutMix: each image is combined with another one of its batch, and the targets in the same shares.

The partner of a row is the row before it; that of the first row is the last. If the batch is sharded, each device
receives one row from its neighbour (a collective permute). Several augmented copies of one image (Hoffer et al. 2020)
must not be adjacent, or an image is mixed with itself. The share of a row is drawn from fold_in(key, row), so that a
row depends on itself, its partner and its number, but not on the batch size.

B batch, Y, X pixels, C channels, K classes.
"""

import jax
import jax.numpy as jnp

from transformer_jax.augment import geometry
from transformer_jax.errors import InputError

Batch = tuple[jax.Array, jax.Array]
"""Images [B, Y, X, C] and targets [B, K]."""


def mixup(key: jax.Array, images_BYXC: jax.Array, targets_BK: jax.Array, alpha: float) -> Batch:
    """MixUp (Zhang et al. 2018): s of each image and target plus 1 - s of its partner's, s from Beta(alpha, alpha).

    s is replaced by max(s, 1 - s), as in big_vision, so that a row keeps most of its own image.

    Args:
      key: the random key of the step.
      images_BYXC: float32 in [0, 1].
      targets_BK: float32.
      alpha: above 0.
    """
    uniform_B2 = _uniform(key, len(images_BYXC), 2)
    share_B = symmetric_beta(uniform_B2, alpha)
    share_B = jnp.maximum(share_B, 1.0 - share_B)
    return _blend(share_B, images_BYXC), _blend(share_B, targets_BK)


def cutmix(key: jax.Array, images_BYXC: jax.Array, targets_BK: jax.Array, alpha: float) -> Batch:
    """CutMix (Yun et al. 2019, appendix A): a box of each image is its partner's, and targets are mixed by area.

    Each side of the box is sqrt(1 - s) of the image's, s from Beta(alpha, alpha), and its centre is uniform. The box is
    clipped to the image, and the shares of the targets are those of the pixels after clipping.

    Args:
      key: the random key of the step.
      images_BYXC: float32 in [0, 1].
      targets_BK: float32.
      alpha: above 0.
    """
    B, Y, X, _ = images_BYXC.shape

    uniform_B4 = _uniform(key, B, 4)
    side_B1 = jnp.sqrt(1.0 - symmetric_beta(uniform_B4[:, :2], alpha))[:, None]
    half_B2 = (side_B1 * jnp.array([Y, X]) / 2).astype(jnp.int32)
    corner_B2 = (uniform_B4[:, 2:] * jnp.array([Y, X])).astype(jnp.int32) - half_B2
    boxes = geometry.Box(*corner_B2.T, *(2 * half_B2).T)
    pasted_BYX = jax.vmap(lambda box: geometry.in_box(box, Y, X))(boxes)
    share_B = 1.0 - jnp.mean(pasted_BYX, axis=(1, 2))
    return jnp.where(pasted_BYX[..., None], _partner(images_BYXC), images_BYXC), _blend(share_B, targets_BK)


def mix(
    key: jax.Array,
    images_BYXC: jax.Array,
    targets_BK: jax.Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> Batch:
    """MixUp, CutMix, or per row one of the two with probability 1/2; the sums of target rows are unchanged.

    Args:
      key: the random key of the step.
      images_BYXC: float32 in [0, 1].
      targets_BK: float32.
      mixup_alpha: 0: no MixUp.
      cutmix_alpha: 0: no CutMix.

    Raises:
      InputError: an alpha is negative.
    """
    if min(mixup_alpha, cutmix_alpha) < 0:
        raise InputError(f"mixup alpha is {mixup_alpha} and cutmix alpha {cutmix_alpha}; they must be 0 (off) or more")
    if mixup_alpha and cutmix_alpha:
        choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
        blended = mixup(mixup_key, images_BYXC, targets_BK, mixup_alpha)
        pasted = cutmix(cutmix_key, images_BYXC, targets_BK, cutmix_alpha)
        choice_B = _uniform(choice_key, len(images_BYXC), 1) < 0.5
        return jax.tree.map(lambda a, b: jnp.where(_column(choice_B, a), a, b), blended, pasted)
    if mixup_alpha:
        return mixup(key, images_BYXC, targets_BK, mixup_alpha)
    if cutmix_alpha:
        return cutmix(key, images_BYXC, targets_BK, cutmix_alpha)
    return images_BYXC, targets_BK


def symmetric_beta(uniform_B2: jax.Array, alpha: float) -> jax.Array:
    """Numbers from Beta(alpha, alpha), [B], each an exact transformation of two uniform numbers.

    It is 1/2 + t / (2 sqrt(2 alpha + t^2)), where t is Student's t with 2 alpha degrees of freedom, in the polar form
    of Bailey (1994). `jax.random.beta` uses rejection instead, in a loop that ends when the last row on any device is
    done.

    Args:
      uniform_B2: in [0, 1).
      alpha: above 0.
    """
    cosine_B = jnp.cos(2 * jnp.pi * uniform_B2[:, 1])
    ratio_B = jnp.expm1(-jnp.log(uniform_B2[:, 0]) / alpha) * cosine_B**2  # t^2 / (2 alpha); may be 0 or inf
    return 0.5 + 0.5 * jnp.sign(cosine_B) / jnp.sqrt(1.0 + 1.0 / ratio_B)


def _uniform(key: jax.Array, rows: int, count: int) -> jax.Array:
    """[rows, count] in [0, 1); row r is drawn from fold_in(key, r)."""
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (count,)))(jnp.arange(rows))


def _partner(x_B: jax.Array) -> jax.Array:
    return jnp.roll(x_B, 1, axis=0)


def _blend(share_B: jax.Array, x_B: jax.Array) -> jax.Array:
    partner_B = _partner(x_B)
    return partner_B + _column(share_B, x_B) * (x_B - partner_B)  # this form is exact where both are equal


def _column(of_B: jax.Array, x_B: jax.Array) -> jax.Array:
    """One number per row, [B, 1, ...], to broadcast with x_B."""
    return of_B.reshape(-1, *(1,) * (x_B.ndim - 1))
