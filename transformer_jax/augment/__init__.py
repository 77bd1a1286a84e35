"""Augmentation of images on the device: pure functions of (key, images), compiled into the training step.

An augmentation is a frozen dataclass in the experiment; `apply` runs a tuple of them over a batch:

    (Flip(), Crop(padding=4), RandAugment(count=2, magnitude=10), Erase(probability=0.25))

Images are float32 [B, Y, X, C] in [0, 1], of one or three channels, before and after each augmentation; the model
normalises them later. `apply_moving` moves boxes and masks with the pixels, by the same keys. `mix` (MixUp, CutMix)
combines pairs of rows of a batch, images and targets.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from transformer_jax.augment.colour import ColorJitter
from transformer_jax.augment.geometry import Affine, Crop, Erase, Flip, ResizedCrop
from transformer_jax.augment.mixing import Batch, cutmix, mix, mixup
from transformer_jax.augment.moving import Moving, apply_moving, check_moves
from transformer_jax.augment.randaugment import RandAugment

Augmentation = Flip | Crop | ResizedCrop | Affine | RandAugment | ColorJitter | Erase

__all__ = [
    "Affine",
    "Augmentation",
    "Batch",
    "ColorJitter",
    "Crop",
    "Erase",
    "Flip",
    "Moving",
    "RandAugment",
    "ResizedCrop",
    "apply",
    "apply_moving",
    "check_moves",
    "cutmix",
    "mix",
    "mixup",
]


def apply(key: jax.Array, images_BYXC: jax.Array, augmentations: Sequence[Augmentation]) -> jax.Array:
    """The images after all augmentations, in order.

    Row b uses fold_in(fold_in(key, b), i) for augmentation i. So a row does not depend on the other rows or on their
    number, and is the same on any number of devices. Inside a `shard_map` rows are counted from 0 on each shard: fold
    the index of the shard into the key.

    Args:
      key: the random key of the step.
      images_BYXC: float32 in [0, 1], C = 1 or 3.
      augmentations: static.
    """
    if not augmentations:
        return images_BYXC

    def augmented(row: jax.Array, image_YXC: jax.Array) -> jax.Array:
        row_key = jax.random.fold_in(key, row)
        for i, augmentation in enumerate(augmentations):
            image_YXC = augmentation.image(jax.random.fold_in(row_key, i), image_YXC)
        return image_YXC

    return jax.vmap(augmented)(jnp.arange(len(images_BYXC)), images_BYXC)
