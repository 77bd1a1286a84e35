"""Boxes and masks that move with the pixels of an augmented image, by the same keys.

An augmentation that moves pixels defines `warp(key, Y, X)`, as those of `augment.geometry`. One that moves none, such
as ColorJitter, has the attribute `still`. Others (RandAugment) are refused here.

B images, Y and X pixels, C channels, M objects.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.augment.geometry import Warp, nearest, positions
from transformer_jax.errors import InputError

LEAST_VISIBLE = 0.3  # share of a box's area; an object with less of it in the image is dropped


class Moving(NamedTuple):
    """What belongs to a batch of images and moves with them; None: there is none.

    Attributes:
      boxes: float32 [B, M, 4], centre x, centre y, width and height as shares of the image.
      weights: float32 [B, M], 0 for padded objects, and then for those that an augmentation moved out of the image.
      labels: int32 [B, Y, X], the class of each pixel.
    """

    boxes: Any = None
    weights: Any = None
    labels: Any = None


def check_moves(augmentations: Sequence[Any]) -> None:
    """Refuses augmentations that move pixels without saying where to.

    Args:
      augmentations: the augmentations of `task.augment`.

    Raises:
      InputError: with the first of them.
    """
    for one in augmentations:
        if not (hasattr(one, "warp") or getattr(one, "still", False)):
            raise InputError(
                f"task.augment has {type(one).__name__}, which defines neither warp(key, Y, X), to move boxes and "
                "masks, nor still = True; use Flip, Crop, ResizedCrop, Affine, ColorJitter or Erase"
            )


def apply_moving(
    key: jax.Array, images_BYXC: jax.Array, augmentations: Sequence[Any], moving: Moving, *, fill: int = 0
) -> tuple[jax.Array, Moving]:
    """The images after all augmentations, as `augment.apply` returns them, and what moved with them.

    A box becomes the upright box around its moved corners, clipped to the image.

    Args:
      key: the random key of the step.
      images_BYXC: float32 in [0, 1], C = 1 or 3.
      augmentations: static.
      moving: boxes with weights, or labels, or both.
      fill: the label of pixels from outside the image.
    """
    if not augmentations:
        return images_BYXC, moving
    Y, X = images_BYXC.shape[1:3]

    def one(row: jax.Array, image_YXC: jax.Array, moving: Moving) -> tuple[jax.Array, Moving]:
        row_key = jax.random.fold_in(key, row)
        for i, augmentation in enumerate(augmentations):
            own_key = jax.random.fold_in(row_key, i)
            image_YXC = augmentation.image(own_key, image_YXC)
            if hasattr(augmentation, "warp"):
                moving = _moved(augmentation.warp(own_key, Y, X), moving, Y, X, fill)
        return image_YXC, moving

    return jax.vmap(one)(jnp.arange(len(images_BYXC)), images_BYXC, moving)


def _moved(warp: Warp, moving: Moving, Y: int, X: int, fill: int) -> Moving:
    if moving.boxes is not None:
        boxes, visible_M = _moved_boxes(warp, moving.boxes, Y, X)
        moving = moving._replace(boxes=boxes, weights=moving.weights * (visible_M >= LEAST_VISIBLE))
    if moving.labels is not None:
        # Labels are below 2^24, which float32 holds exactly.
        sampled = nearest(moving.labels[..., None].astype(jnp.float32), *positions(Y, X, *warp), fill)
        moving = moving._replace(labels=sampled[..., 0].astype(moving.labels.dtype))
    return moving


def _moved_boxes(warp: Warp, boxes_M4: jax.Array, Y: int, X: int) -> tuple[jax.Array, jax.Array]:
    """(the boxes after the warp [M, 4], the visible share of each [M])."""
    sides = jnp.array([Y, X], jnp.float32)
    centre_M2, half_M2 = boxes_M4[:, 1::-1] * sides, boxes_M4[:, :1:-1] * sides / 2  # (y, x)
    signs_42 = jnp.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], jnp.float32)
    corners_M42 = centre_M2[:, None] + signs_42 * half_M2[:, None] - 0.5  # pixel centres have whole coordinates, from 0
    inverse_22 = jnp.linalg.inv(warp.matrix_22)
    moved_M42 = jnp.einsum("ij,mkj->mki", inverse_22, corners_M42 - warp.offset_2, precision="highest") + 0.5
    least_M2, most_M2 = moved_M42.min(axis=1), moved_M42.max(axis=1)
    inside = jnp.clip(least_M2, 0, sides), jnp.clip(most_M2, 0, sides)
    visible_M = jnp.prod(inside[1] - inside[0], -1) / jnp.maximum(jnp.prod(most_M2 - least_M2, -1), 1e-9)
    centre, size = (inside[0] + inside[1]) / 2 / sides, (inside[1] - inside[0]) / sides
    return jnp.concatenate([centre[:, ::-1], size[:, ::-1]], axis=-1), visible_M
