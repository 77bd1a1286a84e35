"""What joins an image with another of its batch: MixUp and CutMix, which mix the targets in the same shares.

A row's partner is the row before it, the first row's the last. When the batch lies on several devices, each receives
one row from its neighbour (a collective permute), and nothing else moves. Copies of one image that are augmented apart
(Hoffer et al. 2020) must not be neighbours, or an image is mixed with itself. Every row has a share of its own, drawn
from fold_in(key, row): a row depends on itself, its partner and its number, not on the size of the batch.

B batch, Y, X pixels, C channels, K classes.
"""

import jax
import jax.numpy as jnp

from transformer_jax.augment import geometry
from transformer_jax.errors import InputError

Batch = tuple[jax.Array, jax.Array]  # images [B, Y, X, C], targets [B, K]


def mixup(key: jax.Array, images_BYXC: jax.Array, targets_BK: jax.Array, alpha: float) -> Batch:
    """Each image and target, s of itself and 1 - s of its partner's (Zhang et al. 2018), s from Beta(alpha, alpha).

    s is the larger of the two shares, as in big_vision: a mixed row stays mostly itself.
    """
    uniform_B2 = _uniform(key, len(images_BYXC), 2)
    share_B = symmetric_beta(uniform_B2, alpha)
    share_B = jnp.maximum(share_B, 1.0 - share_B)
    return _blend(share_B, images_BYXC), _blend(share_B, targets_BK)


def cutmix(key: jax.Array, images_BYXC: jax.Array, targets_BK: jax.Array, alpha: float) -> Batch:
    """A box of each image is its partner's, and the targets mix by area (Yun et al. 2019, appendix A).

    The box has 1 - s of each side squared, s from Beta(alpha, alpha), and its centre anywhere; what sticks out is cut
    off, and the targets' shares are those of the pixels that are left.
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
    """MixUp, CutMix, or for each row one of the two at even odds, by which alphas are above 0. At none: as it was.

    Returns: images in [0, 1] and targets, whose rows keep their sums.
    """
    if min(mixup_alpha, cutmix_alpha) < 0:
        raise InputError(f"mixup alpha is {mixup_alpha} and cutmix alpha {cutmix_alpha}; they must be 0 (off) or more")
    if mixup_alpha and cutmix_alpha:
        coins, up, cut = jax.random.split(key, 3)
        blended = mixup(up, images_BYXC, targets_BK, mixup_alpha)
        pasted = cutmix(cut, images_BYXC, targets_BK, cutmix_alpha)
        coin_B = _uniform(coins, len(images_BYXC), 1) < 0.5
        return jax.tree.map(lambda a, b: jnp.where(_column(coin_B, a), a, b), blended, pasted)
    if mixup_alpha:
        return mixup(key, images_BYXC, targets_BK, mixup_alpha)
    if cutmix_alpha:
        return cutmix(key, images_BYXC, targets_BK, cutmix_alpha)
    return images_BYXC, targets_BK


def symmetric_beta(uniform_B2: jax.Array, alpha: float) -> jax.Array:
    """Beta(alpha, alpha) from two uniform numbers each, exactly and for every alpha > 0: [B].

    As 1/2 + t / 2 sqrt(2 alpha + t^2), t Student's with 2 alpha degrees of freedom, in Bailey's (1994) polar form.
    `jax.random.beta` rejects, and repeats until the last row on all devices has its number.
    """
    cosine_B = jnp.cos(2 * jnp.pi * uniform_B2[:, 1])
    ratio_B = jnp.expm1(-jnp.log(uniform_B2[:, 0]) / alpha) * cosine_B**2  # t^2 / 2 alpha; 0 and infinity are right
    return 0.5 + 0.5 * jnp.sign(cosine_B) / jnp.sqrt(1.0 + 1.0 / ratio_B)


def _uniform(key: jax.Array, rows: int, count: int) -> jax.Array:
    """[rows, count] in [0, 1); a row's come from fold_in(key, row)."""
    return jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row), (count,)))(jnp.arange(rows))


def _partner(x_B: jax.Array) -> jax.Array:
    return jnp.roll(x_B, 1, axis=0)


def _blend(share_B: jax.Array, x_B: jax.Array) -> jax.Array:
    partner_B = _partner(x_B)
    return partner_B + _column(share_B, x_B) * (x_B - partner_B)  # exact where the two are equal


def _column(of_B: jax.Array, x_B: jax.Array) -> jax.Array:
    """One number a row, shaped to go with every value of the row."""
    return of_B.reshape(-1, *(1,) * (x_B.ndim - 1))
