"""Augmentations of geometry: flip, padded crop, resized crop, small affine warps, and erasing a box.

Each is a frozen dataclass with `image(key, image_YXC) -> image_YXC`: one image, float32 in [0, 1], of one or three
channels, to an image of the same shape. `augment.apply` maps it over a batch. Positions are in pixels, and (0, 0) is
the centre of the top left pixel. `warp(key, Y, X)` says where the same key moves pixels to, for boxes and masks
(`augment.moves`).

A resized crop resamples rows and columns separately, with two small matrix products and no gather. A rotation needs a
gather.

Y, X pixels, C channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import InputError


class Warp(NamedTuple):
    """Where an image's pixels come from: the pixel at (y, x) shows the source at matrix @ (y, x) + offset."""

    matrix_22: jax.Array
    offset_2: jax.Array


ERASE_RATIO = (0.3, 1 / 0.3)  # range of the width / height of an erased box


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("Flip", self.probability)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, self.probability), image_YXC[:, ::-1], image_YXC)

    def warp(self, key: jax.Array, Y: int, X: int) -> Warp:
        mirrored = jax.random.bernoulli(key, self.probability)
        matrix_22 = jnp.where(mirrored, jnp.diag(jnp.array([1.0, -1.0])), jnp.eye(2))
        return Warp(matrix_22, jnp.where(mirrored, jnp.array([0.0, X - 1.0]), 0.0))


@dataclass(frozen=True)
class Crop:
    """Shifts the image by up to `padding` pixels in each direction, filled with black (He et al. 2016, section 4.2)."""

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InputError(f"Crop.padding is {self.padding}; it must be 0 or more")

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        top, left = self._corner(key)
        padding = (self.padding, self.padding)
        return jax.lax.dynamic_slice(jnp.pad(image_YXC, (padding, padding, (0, 0))), (top, left, 0), image_YXC.shape)

    def warp(self, key: jax.Array, Y: int, X: int) -> Warp:
        return Warp(jnp.eye(2), (self._corner(key) - self.padding).astype(jnp.float32))

    def _corner(self, key: jax.Array) -> jax.Array:
        """Top and left of the crop in the padded image, int32 [2]."""
        return (jax.random.uniform(key, (2,)) * (2 * self.padding + 1)).astype(jnp.int32)


@dataclass(frozen=True)
class ResizedCrop:
    """Resizes a box of random area and aspect ratio to the size of the image (Szegedy et al. 2015, section 6).

    Bilinear without antialiasing: the box is never larger than the result.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the box's share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the box's width / height."""

    def __post_init__(self) -> None:
        _check_range("ResizedCrop.scale", self.scale, above=0.0, most=1.0)
        _check_range("ResizedCrop.ratio", self.ratio, above=0.0)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        Y, X, _ = image_YXC.shape
        return resize_box(image_YXC, random_box(key, Y, X, self.scale, self.ratio))

    def warp(self, key: jax.Array, Y: int, X: int) -> Warp:
        box = random_box(key, Y, X, self.scale, self.ratio)
        step_2 = jnp.stack([jnp.asarray(box.height) / Y, jnp.asarray(box.width) / X])
        return Warp(jnp.diag(step_2), jnp.stack([jnp.asarray(box.top), jnp.asarray(box.left)]) + (step_2 - 1) / 2)


@dataclass(frozen=True)
class Affine:
    """Rotates, scales and shifts the image about its centre, each by a uniform random amount; bilinear, black outside.

    For images of one object on a black background, such as digits.
    """

    degrees: float = 10.0
    """The largest rotation in either direction."""
    shift: float = 0.1
    """The largest shift in either direction, as a share of each side."""
    zoom: tuple[float, float] = (0.9, 1.1)
    """Range of the factor of size; above 1 is larger."""

    def __post_init__(self) -> None:
        if min(self.degrees, self.shift) < 0:
            raise InputError(f"Affine.degrees is {self.degrees} and shift {self.shift}; they must be 0 or more")
        _check_range("Affine.zoom", self.zoom, above=0.0)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        Y, X, _ = image_YXC.shape
        return bilinear(image_YXC, *positions(Y, X, *self.warp(key, Y, X)))

    def warp(self, key: jax.Array, Y: int, X: int) -> Warp:
        direction, down, right, size = jax.random.uniform(key, (4,))
        angle = math.radians(self.degrees) * (2 * direction - 1)
        shift_2 = self.shift * (2 * jnp.stack([down, right]) - 1) * jnp.array([Y, X])
        matrix_22 = rotation(angle) / (self.zoom[0] + (self.zoom[1] - self.zoom[0]) * size)
        centre_2 = jnp.array([(Y - 1) / 2, (X - 1) / 2])
        return Warp(matrix_22, centre_2 - matrix_22 @ (centre_2 + shift_2))


@dataclass(frozen=True)
class Erase:
    """Replaces a box by noise, each value uniform in [0, 1]: RE-R of Zhong et al. 2020."""

    still: ClassVar[bool] = True
    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    """Range of the box's share of the area."""

    def __post_init__(self) -> None:
        _check_probability("Erase", self.probability)
        _check_range("Erase.area", self.area, above=0.0, most=1.0)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        whether_key, box_key, noise_key = jax.random.split(key, 3)
        Y, X, C = image_YXC.shape
        box = random_box(box_key, Y, X, self.area, ERASE_RATIO)
        erased_YX1 = in_box(box, Y, X)[..., None] & jax.random.bernoulli(whether_key, self.probability)
        return jnp.where(erased_YX1, noise(noise_key, Y, X, C), image_YXC)


# ------------------------------------------------------------------------------------------------------------- boxes


class Box(NamedTuple):
    """A box of pixels, int32 scalars."""

    top: jax.Array | int
    left: jax.Array | int
    height: jax.Array | int
    width: jax.Array | int


def random_box(key: jax.Array, Y: int, X: int, area: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """A random box: its share of the image is uniform in `area`, its width / height log-uniform in `ratio`.

    `ratio` is first limited to the part for which the area fits into the image. torchvision and timm draw area and
    ratio until they fit, and therefore have fewer large boxes. Where no ratio fits, the box is clipped to the image.

    Args:
      key: the random key of the image.
      Y: height of the image.
      X: width of the image.
      area: range of the share, in (0, 1].
      ratio: range of width / height.
    """
    share, shape, down, right = jax.random.uniform(key, (4,))
    pixels = Y * X * (area[0] + (area[1] - area[0]) * share)
    low, high = (jnp.clip(bound, pixels / Y**2, X**2 / pixels) for bound in ratio)
    wide = low * (high / low) ** shape
    height = jnp.clip(jnp.round(jnp.sqrt(pixels / wide)), 1, Y).astype(jnp.int32)
    width = jnp.clip(jnp.round(jnp.sqrt(pixels * wide)), 1, X).astype(jnp.int32)
    top, left = (down * (Y - height + 1)).astype(jnp.int32), (right * (X - width + 1)).astype(jnp.int32)
    return Box(top, left, height, width)


def noise(key: jax.Array, Y: int, X: int, C: int) -> jax.Array:
    """Noise [Y, X, C], uniform in [0, 1] in steps of 1 / 1023: 32 random bits per pixel give 10 for each of 3 channels.

    Args:
      key: the random key of the image.
      Y: height.
      X: width.
      C: channels, at most 3.
    """
    bits_YX1 = jax.random.bits(key, (Y, X, 1), jnp.uint32)
    return ((bits_YX1 >> (10 * jnp.arange(C, dtype=jnp.uint32))) & 1023).astype(jnp.float32) / 1023.0


def in_box(box: Box, Y: int, X: int) -> jax.Array:
    """bool [Y, X]: whether each pixel is in the box.

    Args:
      box: may extend beyond the image.
      Y: height of the image.
      X: width of the image.
    """
    y_Y, x_X = jnp.arange(Y), jnp.arange(X)
    rows_Y = (y_Y >= box.top) & (y_Y < box.top + box.height)
    columns_X = (x_X >= box.left) & (x_X < box.left + box.width)
    return rows_Y[:, None] & columns_X


def resize_box(image_YXC: jax.Array, box: Box) -> jax.Array:
    """`box` of `image_YXC` resized to the shape of the image, as by Pillow's crop and bilinear resize."""
    Y, X, _ = image_YXC.shape
    down_YY, across_XX = _linear_weights(Y, box.top, box.height), _linear_weights(X, box.left, box.width)
    # The default precision of matrix products on accelerators would round the pixels.
    rows_YXC = jnp.einsum("oy,yxc->oxc", down_YY, image_YXC, precision="highest")
    return jnp.einsum("px,oxc->opc", across_XX, rows_YXC, precision="highest")


def _linear_weights(size: int, start: jax.Array | int, length: jax.Array | int) -> jax.Array:
    """[size of the result, size]: the weights of bilinear interpolation from `length` pixels at `start` to `size`."""
    position_O = start + (jnp.arange(size) + 0.5) * (length / size) - 0.5
    position_O = jnp.clip(position_O, start, start + length - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(position_O[:, None] - jnp.arange(size)))


# ------------------------------------------------------------------------------------------------------------- warps


def rotation(angle: jax.Array | float) -> jax.Array:
    """The 2 x 2 matrix on (y, x) that rotates the image by `angle` radians, counter-clockwise on the screen."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])


def positions(Y: int, X: int, matrix_22: jax.Array, offset_2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The position in the source of each pixel of the result: y and x, float32 [Y, X], of matrix @ (y, x) + offset.

    Args:
      Y: height.
      X: width.
      matrix_22: on (y, x).
      offset_2: (y, x), in pixels.
    """
    y_Y1, x_X = jnp.arange(Y, dtype=jnp.float32)[:, None], jnp.arange(X, dtype=jnp.float32)
    (yy, yx), (xy, xx) = matrix_22
    return yy * y_Y1 + yx * x_X + offset_2[0], xy * y_Y1 + xx * x_X + offset_2[1]


def bilinear(image_YXC: jax.Array, y_YX: jax.Array, x_YX: jax.Array) -> jax.Array:
    """The image at these positions, interpolated from the four pixels around each; black outside the image.

    Args:
      image_YXC: the image.
      y_YX: float.
      x_YX: float.
    """
    top_YX, left_YX = jnp.floor(y_YX), jnp.floor(x_YX)
    down_YX1, right_YX1 = (y_YX - top_YX)[..., None], (x_YX - left_YX)[..., None]

    def row(down: int) -> jax.Array:
        left = nearest(image_YXC, top_YX + down, left_YX, 0.0)
        return left + right_YX1 * (nearest(image_YXC, top_YX + down, left_YX + 1, 0.0) - left)

    above = row(0)
    return above + down_YX1 * (row(1) - above)


def nearest(image_YXC: jax.Array, y_YX: jax.Array, x_YX: jax.Array, fill: float) -> jax.Array:
    """The pixels nearest to these positions.

    Args:
      image_YXC: the image.
      y_YX: float.
      x_YX: float.
      fill: the value outside the image.
    """
    Y, X, C = image_YXC.shape
    y_YX, x_YX = jnp.round(y_YX).astype(jnp.int32), jnp.round(x_YX).astype(jnp.int32)
    inside_YX1 = ((y_YX >= 0) & (y_YX < Y) & (x_YX >= 0) & (x_YX < X))[..., None]
    pixel_YX = jnp.clip(y_YX, 0, Y - 1) * X + jnp.clip(x_YX, 0, X - 1)
    return jnp.where(inside_YX1, image_YXC.reshape(Y * X, C).at[pixel_YX].get(mode="promise_in_bounds"), fill)


# ------------------------------------------------------------------------------------------------------------ checks


def _check_probability(name: str, probability: float) -> None:
    if not 0.0 <= probability <= 1.0:
        raise InputError(f"{name}.probability is {probability}; it must be in [0, 1]")


def _check_range(name: str, of: tuple[float, float], *, above: float, most: float = math.inf) -> None:
    if not above < of[0] <= of[1] <= most:
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise InputError(f"{name} is {of}; it must be (least, most), above {above:g}{upper}")
