"""Augmentation of images on the device: pure functions of (key, images), to be compiled into the training step.

An augmentation is a frozen value that an experiment states; `apply` runs a tuple of them over a batch:

    (Flip(), Crop(padding=4), RandAugment(count=2, magnitude=10), Erase(probability=0.25))

Images are float32 [B, Y, X, C] in [0, 1], of one or three channels, before they are normalised, and stay so. `mix`
(MixUp, CutMix) pairs the rows of a batch, images and targets together.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from transformer_jax.augment.colour import ColorJitter
from transformer_jax.augment.geometry import Affine, Crop, Erase, Flip, ResizedCrop
from transformer_jax.augment.mixing import Batch, cutmix, mix, mixup
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
    "RandAugment",
    "ResizedCrop",
    "apply",
    "cutmix",
    "mix",
    "mixup",
]


def apply(key: jax.Array, images_BYXC: jax.Array, augmentations: Sequence[Augmentation]) -> jax.Array:
    """The images after each augmentation in turn; `augmentations` is static.

    Row b's draws come from fold_in(key, b) and, within it, from the augmentation's place in the tuple: a row does not
    depend on the others, nor on how many there are, and is the same on any number of devices. Inside a `shard_map` rows
    are counted from 0 on each shard: fold the shard's index into the key.
    """
    if not augmentations:
        return images_BYXC

    def augmented(row: jax.Array, image_YXC: jax.Array) -> jax.Array:
        row_key = jax.random.fold_in(key, row)
        for place, augmentation in enumerate(augmentations):
            image_YXC = augmentation.image(jax.random.fold_in(row_key, place), image_YXC)
        return image_YXC

    return jax.vmap(augmented)(jnp.arange(len(images_BYXC)), images_BYXC)
