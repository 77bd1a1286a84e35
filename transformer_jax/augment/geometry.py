"""What moves pixels: flip, padded crop, resized crop, small affine warps; and what blanks a box of them: erasing.

Each is a frozen value with `image(key, image_YXC) -> image_YXC`: one image, float32 in [0, 1], of one or three
channels, and the same shape out. `augment.apply` makes batches of it. Positions are in pixels, (0, 0) the centre of the
top left one.

A resized crop resamples each side by itself: two small products and no gather. A rotation cannot be written so.

Y, X pixels, C channels.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.errors import InputError


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("Flip", self.probability)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, self.probability), image_YXC[:, ::-1], image_YXC)


@dataclass(frozen=True)
class Crop:
    """The image shifted by up to `padding` pixels each way, black where it was not (He et al. 2016, section 4.2)."""

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InputError(f"Crop.padding is {self.padding}; it must be 0 or more")

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        top, left = (jax.random.uniform(key, (2,)) * (2 * self.padding + 1)).astype(jnp.int32)
        padding = (self.padding, self.padding)
        return jax.lax.dynamic_slice(jnp.pad(image_YXC, (padding, padding, (0, 0))), (top, left, 0), image_YXC.shape)


@dataclass(frozen=True)
class ResizedCrop:
    """A box of random area and shape, resized to the whole (Szegedy et al. 2015, section 6).

    Bilinear; the box is never larger than the result, so there is nothing to antialias.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    """The box's share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Its width over its height."""

    def __post_init__(self) -> None:
        _check_range("ResizedCrop.scale", self.scale, above=0.0, most=1.0)
        _check_range("ResizedCrop.ratio", self.ratio, above=0.0)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        Y, X, _ = image_YXC.shape
        return resize_box(image_YXC, random_box(key, Y, X, self.scale, self.ratio))


@dataclass(frozen=True)
class Affine:
    """Turned, zoomed and shifted by a little, about the centre; bilinear, black where there was nothing.

    For pictures of one thing on a black ground, such as digits. Each amount is uniform.
    """

    degrees: float = 10.0
    """At most, either way."""
    shift: float = 0.1
    """Of each side, at most, either way."""
    zoom: tuple[float, float] = (0.9, 1.1)
    """Factor of size; above 1 is larger."""

    def __post_init__(self) -> None:
        if min(self.degrees, self.shift) < 0:
            raise InputError(f"Affine.degrees is {self.degrees} and shift {self.shift}; they must be 0 or more")
        _check_range("Affine.zoom", self.zoom, above=0.0)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        Y, X, _ = image_YXC.shape
        turn, down, right, size = jax.random.uniform(key, (4,))
        angle = math.radians(self.degrees) * (2 * turn - 1)
        shift_2 = self.shift * (2 * jnp.stack([down, right]) - 1) * jnp.array([Y, X])
        matrix_22 = rotation(angle) / (self.zoom[0] + (self.zoom[1] - self.zoom[0]) * size)
        centre_2 = jnp.array([(Y - 1) / 2, (X - 1) / 2])
        y_YX, x_YX = positions(Y, X, matrix_22, centre_2 - matrix_22 @ (centre_2 + shift_2))
        return bilinear(image_YXC, y_YX, x_YX)


@dataclass(frozen=True)
class Erase:
    """A box replaced by noise (Zhong et al. 2020), every value of it uniform in [0, 1]: their RE-R."""

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    """The box's share of the area."""
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Its width over its height."""

    def __post_init__(self) -> None:
        _check_probability("Erase", self.probability)
        _check_range("Erase.area", self.area, above=0.0, most=1.0)
        _check_range("Erase.ratio", self.ratio, above=0.0)

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        coin, where, what = jax.random.split(key, 3)
        Y, X, C = image_YXC.shape
        box = random_box(where, Y, X, self.area, self.ratio)
        erased_YX1 = in_box(box, Y, X)[..., None] & jax.random.bernoulli(coin, self.probability)
        return jnp.where(erased_YX1, noise(what, Y, X, C), image_YXC)


# ------------------------------------------------------------------------------------------------------------- boxes


class Box(NamedTuple):
    """Whole pixels, int32 scalars."""

    top: jax.Array | int
    left: jax.Array | int
    height: jax.Array | int
    width: jax.Array | int


def random_box(key: jax.Array, Y: int, X: int, area: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """A box somewhere in Y x X pixels: its share of them uniform in `area`, its width / height log-uniform in `ratio`.

    Of `ratio`, only the part in which such an area fits into the image. torchvision and timm draw both until they fit,
    and so have fewer large boxes. Where no ratio fits, the box is cut to the image.
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
    """Uniform in [0, 1], in steps of 1 / 1023: one draw of 32 bits a pixel holds three channels' ten."""
    bits_YX1 = jax.random.bits(key, (Y, X, 1), jnp.uint32)
    return ((bits_YX1 >> (10 * jnp.arange(C, dtype=jnp.uint32))) & 1023).astype(jnp.float32) / 1023.0


def in_box(box: Box, Y: int, X: int) -> jax.Array:
    """Which of Y x X pixels are in the box: bool [Y, X]."""
    y_Y, x_X = jnp.arange(Y), jnp.arange(X)
    rows_Y = (y_Y >= box.top) & (y_Y < box.top + box.height)
    columns_X = (x_X >= box.left) & (x_X < box.left + box.width)
    return rows_Y[:, None] & columns_X


def resize_box(image_YXC: jax.Array, box: Box) -> jax.Array:
    """The box resized to the whole image: bilinear; pixels outside the box do not count. Pillow's crop and resize."""
    Y, X, _ = image_YXC.shape
    down_YY, across_XX = _linear_weights(Y, box.top, box.height), _linear_weights(X, box.left, box.width)
    # The default precision of accelerators would round the pixels.
    rows_YXC = jnp.einsum("oy,yxc->oxc", down_YY, image_YXC, precision="highest")
    return jnp.einsum("px,oxc->opc", across_XX, rows_YXC, precision="highest")


def _linear_weights(size: int, start: jax.Array | int, length: jax.Array | int) -> jax.Array:
    """[result, source]: what each of `size` pixels takes from those of the piece that is stretched to them."""
    position_O = start + (jnp.arange(size) + 0.5) * (length / size) - 0.5
    position_O = jnp.clip(position_O, start, start + length - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(position_O[:, None] - jnp.arange(size)))


# ------------------------------------------------------------------------------------------------------------- warps


def rotation(angle: jax.Array | float) -> jax.Array:
    """The matrix on (y, x) that turns the picture by `angle` radians, counter-clockwise as one sees it."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])


def positions(Y: int, X: int, matrix_22: jax.Array, offset_2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where each pixel of the result comes from: y and x, float [Y, X], as matrix @ (y, x) + offset."""
    y_Y1, x_X = jnp.arange(Y, dtype=jnp.float32)[:, None], jnp.arange(X, dtype=jnp.float32)
    (yy, yx), (xy, xx) = matrix_22
    return yy * y_Y1 + yx * x_X + offset_2[0], xy * y_Y1 + xx * x_X + offset_2[1]


def bilinear(image_YXC: jax.Array, y_YX: jax.Array, x_YX: jax.Array) -> jax.Array:
    """The image at these positions, from the four pixels around each; outside it is black."""
    top_YX, left_YX = jnp.floor(y_YX), jnp.floor(x_YX)
    down_YX1, right_YX1 = (y_YX - top_YX)[..., None], (x_YX - left_YX)[..., None]

    def row(down: int) -> jax.Array:
        left = nearest(image_YXC, top_YX + down, left_YX, 0.0)
        return left + right_YX1 * (nearest(image_YXC, top_YX + down, left_YX + 1, 0.0) - left)

    above = row(0)
    return above + down_YX1 * (row(1) - above)


def nearest(image_YXC: jax.Array, y_YX: jax.Array, x_YX: jax.Array, fill: float) -> jax.Array:
    """The pixels nearest to these positions; `fill` where the position is outside the image."""
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
