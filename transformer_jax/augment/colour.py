"""Augmentations of colour, as torchvision defines them: blends with a second image, and rotations of the hue.

Y, X pixels, C channels.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.errors import InputError

ORDERS = tuple(itertools.permutations(range(4)))  # brightness 0, contrast 1, saturation 2, hue 3
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in Pillow and torchvision


@dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue by random amounts in random order: torchvision's ColorJitter.

    The first three are factors, uniform in [max(0, 1 - amount), 1 + amount]; the hue is rotated by up to `hue` of a
    full circle in either direction. Images of one channel have neither saturation nor hue.
    """

    still: ClassVar[bool] = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0:
            raise InputError(f"{self}: brightness, contrast and saturation must be 0 or more")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"ColorJitter.hue is {self.hue}; it must be in [0, 0.5], of a full circle")

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        *uniform_3, rotation, order = jax.random.uniform(key, (5,))
        limits = (self.brightness, self.contrast, self.saturation)
        factors = [max(0.0, 1 - a) + (1 + a - max(0.0, 1 - a)) * u for a, u in zip(limits, uniform_3, strict=True)]
        factors_3, slots_4 = jnp.stack(factors), jnp.array(ORDERS)[(order * len(ORDERS)).astype(jnp.int32)]

        # Under `vmap` every slot computes all that it may do. The hue costs as much as the three blends together, so it
        # is rotated once, between the blends that precede and follow it.
        hue_slot = jnp.argmax(slots_4 == 3)
        for slot in range(3):
            image_YXC = _adjust(image_YXC, slots_4[slot], factors_3, slot < hue_slot)
        if self.hue and image_YXC.shape[-1] == 3:
            image_YXC = rotate_hue(image_YXC, self.hue * (2 * rotation - 1))
        for slot in range(1, 4):
            image_YXC = _adjust(image_YXC, slots_4[slot], factors_3, slot > hue_slot)
        return image_YXC


def _adjust(image_YXC: jax.Array, which: jax.Array, factors_3: jax.Array, active: jax.Array) -> jax.Array:
    """The image with brightness (0), contrast (1) or saturation (2) changed by its factor; unchanged if not active."""
    grey_YX1 = grey(image_YXC)
    black, even = jnp.zeros_like(grey_YX1), jnp.full_like(grey_YX1, jnp.mean(grey_YX1))
    pale_YX1 = jax.lax.select_n(jnp.minimum(which, 2), black, even, grey_YX1)
    return blend(pale_YX1, image_YXC, jnp.where(active, factors_3[jnp.minimum(which, 2)], 1.0))


def blend(pale: jax.Array, image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """pale + factor * (image - pale), clipped to [0, 1].

    Args:
      pale: the result at factor 0, in [0, 1].
      image: the result at factor 1, in [0, 1].
      factor: above 1 the result is extrapolated beyond `image`.
    """
    return jnp.clip(pale + factor * (image - pale), 0.0, 1.0)


def grey(image_YXC: jax.Array) -> jax.Array:
    """The luma of `image_YXC`, [Y, X, 1], on the scale of the image."""
    if image_YXC.shape[-1] == 1:
        return image_YXC
    red, green, blue = jnp.split(image_YXC, 3, axis=-1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def rotate_hue(image_YXC: jax.Array, circles: jax.Array | float) -> jax.Array:
    """`image_YXC`, RGB, with the hue of HSV (Smith 1978) rotated by `circles`; value and saturation are unchanged."""
    red, green, blue = image_YXC[..., 0], image_YXC[..., 1], image_YXC[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma == 0, 1.0, chroma)
    hue = jnp.where(  # the unit is a sixth of a circle
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    hue = hue + 6.0 * circles

    def channel(offset: float) -> jax.Array:
        along = hue + offset
        along -= 6.0 * jnp.floor(along / 6.0)  # jnp.mod is several times slower on a CPU
        return value - chroma * jnp.clip(jnp.minimum(along, 4.0 - along), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
