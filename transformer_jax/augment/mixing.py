"""What joins an image with another of its batch: MixUp and CutMix, which mix the targets in the same shares.

A row's partner is the row before it, the first row's the last. When the batch lies on several devices, each receives
one row from its neighbour (a collective permute) and nothing else moves. Every row has a share of its own, drawn from
fold_in(key, row), so a row depends on itself, its partner and its number, not on the size of the batch.

B batch, Y, X pixels, C channels, K classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from transformer_jax.augment import geometry
from transformer_jax.errors import InputError

Batch = tuple[jax.Array, jax.Array]  # images [B, Y, X, C], targets [B, K]


def mixup(key: jax.Array, images_BYXC: jax.Array, targets_BK: jax.Array, alpha: float) -> Batch:
    """Each image and target, s of itself and 1 - s of its partner's (Zhang et al. 2018), s from Beta(alpha, alpha).

    s is the larger of the two shares, as in big_vision: a mixed row stays mostly itself.
    """
    share_B = _per_row(key, len(images_BYXC), lambda row_key: jax.random.beta(row_key, alpha, alpha))
    share_B = jnp.maximum(share_B, 1.0 - share_B)
    return _blend(share_B, images_BYXC), _blend(share_B, targets_BK)


def cutmix(key: jax.Array, images_BYXC: jax.Array, targets_BK: jax.Array, alpha: float) -> Batch:
    """A box of each image is its partner's, and the targets mix by area (Yun et al. 2019, appendix A).

    The box has 1 - s of each side squared, s from Beta(alpha, alpha), and its centre anywhere; what sticks out is cut
    off, and the targets' shares are those of the pixels that are left.
    """
    B, Y, X, _ = images_BYXC.shape

    def pasted(row_key: jax.Array) -> jax.Array:
        size, place = jax.random.split(row_key)
        side = jnp.sqrt(1.0 - jax.random.beta(size, alpha, alpha))
        half_2 = (jnp.array([Y, X]) * side / 2).astype(jnp.int32)
        centre_2 = jax.random.randint(place, (2,), 0, jnp.array([Y, X]))
        return geometry.in_box(geometry.Box(*(centre_2 - half_2), *(2 * half_2)), Y, X)

    pasted_BYX = _per_row(key, B, pasted)
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
    """MixUp, CutMix, or for each row one of the two at even odds, by which alphas are above 0. At none: as it was.

    Returns: images in [0, 1] and targets, whose rows keep their sums.
    """
    if min(mixup_alpha, cutmix_alpha) < 0:
        raise InputError(f"mixup alpha is {mixup_alpha} and cutmix alpha {cutmix_alpha}; they must be 0 (off) or more")
    if mixup_alpha and cutmix_alpha:
        coins, up, cut = jax.random.split(key, 3)
        blended = mixup(up, images_BYXC, targets_BK, mixup_alpha)
        pasted = cutmix(cut, images_BYXC, targets_BK, cutmix_alpha)
        coin_B = _per_row(coins, len(images_BYXC), jax.random.bernoulli)
        return jax.tree.map(lambda a, b: jnp.where(_column(coin_B, a), a, b), blended, pasted)
    if mixup_alpha:
        return mixup(key, images_BYXC, targets_BK, mixup_alpha)
    if cutmix_alpha:
        return cutmix(key, images_BYXC, targets_BK, cutmix_alpha)
    return images_BYXC, targets_BK


def _per_row(key: jax.Array, rows: int, draw: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(jnp.arange(rows))


def _partner(x_B: jax.Array) -> jax.Array:
    return jnp.roll(x_B, 1, axis=0)


def _blend(share_B: jax.Array, x_B: jax.Array) -> jax.Array:
    partner_B = _partner(x_B)
    return partner_B + _column(share_B, x_B) * (x_B - partner_B)  # exact where the two are equal


def _column(of_B: jax.Array, x_B: jax.Array) -> jax.Array:
    """One number a row, shaped to go with every value of the row."""
    return of_B.reshape(-1, *(1,) * (x_B.ndim - 1))
