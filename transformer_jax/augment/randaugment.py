"""RandAugment (Cubuk et al. 2020): a few random operations, all of the same magnitude.

The sixteen operations, on 8-bit levels, and their magnitudes are those of the authors' code (tensorflow/tpu,
efficientnet/autoaugment.py), which big_vision uses. For magnitude m, 5 to 15 in published recipes:

    auto_contrast, equalize, invert         -
    posterize                               keeps int(0.4 m) bits
    solarize                                inverts levels from int(25.6 m): none if m >= 10
    solarize_add                            adds int(11 m) to levels below 128
    contrast, brightness, color, sharpness  a factor of 0.1 + 0.18 m, 1 at m = 5
    rotate, shear_x, shear_y                3 m degrees; 0.03 m; in either direction
    translate_x, translate_y                m / 22.4 of the side in either direction: 100 pixels of 224 at m = 10
    cutout                                  a square of 2 int(m side / 56) pixels: 80 of 224 at m = 10

Empty pixels are filled with grey, level 128. Warps take the nearest pixel, and shears keep the top left corner fixed.
`contrast` blends with the mean of the image, as Pillow does; the authors' code uses the number of pixels / 256 instead.
The tests compare every operation with Pillow.

Cost. Under `vmap`, a `lax.switch` would compute all sixteen operations for every row. Instead each row passes four
stages, of which it uses one and the others are the identity: a table of 256 levels per channel, a blend with a second
image, an affine warp, a box.

Y, X pixels, C channels, V the 256 levels.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from transformer_jax.augment import colour, geometry
from transformer_jax.errors import InputError

POINT = ("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add", "contrast", "brightness")
BLEND = ("color", "sharpness")
WARP = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (*POINT, *BLEND, *WARP, "cutout")
FILL = 128.0


@dataclass(frozen=True)
class RandAugment:
    """Applies `count` operations, each drawn from all sixteen, with replacement."""

    count: int = 2
    magnitude: float = 10.0

    def __post_init__(self) -> None:
        if self.count < 0 or not 0 <= self.magnitude <= 30:
            raise InputError(
                f"RandAugment.count is {self.count} and magnitude {self.magnitude}; count must be 0 or more, and "
                "magnitude in [0, 30]; published recipes have 5 to 15"
            )

    def image(self, key: jax.Array, image_YXC: jax.Array) -> jax.Array:
        levels_YXC = jnp.round(255.0 * image_YXC)
        for layer in range(self.count):
            which, direction, *centre_2 = jax.random.uniform(jax.random.fold_in(key, layer), (4,))
            operation = (which * len(OPERATIONS)).astype(jnp.int32)
            sign = jnp.where(direction < 0.5, -1.0, 1.0)
            levels_YXC = operate(levels_YXC, operation, self.magnitude, sign, jnp.stack(centre_2))
        return levels_YXC / 255.0 if self.count else image_YXC


def operate(
    levels_YXC: jax.Array, operation: jax.Array, magnitude: float, sign: jax.Array | float, centre_2: jax.Array
) -> jax.Array:
    """The image after one operation.

    Args:
      levels_YXC: float32, whole numbers in [0, 255].
      operation: int32 scalar, an index of `OPERATIONS`.
      magnitude: as in `RandAugment`.
      sign: 1 or -1, the direction of a warp.
      centre_2: the centre of a cutout, as shares of height and width.
    """
    Y, X, C = levels_YXC.shape
    factor = 0.1 + 0.18 * magnitude

    numbers_YXC = levels_YXC.astype(jnp.int32)
    table_VC = point_table(levels_YXC, numbers_YXC, operation, magnitude)
    levels_YXC = table_VC.at[numbers_YXC, jnp.arange(C)].get(mode="promise_in_bounds")

    is_color, is_sharpness = (operation == OPERATIONS.index(name) for name in BLEND)
    pale_YXC = jnp.where(is_color, jnp.round(colour.grey(levels_YXC)), smooth(levels_YXC))
    levels_YXC = _blend(pale_YXC, levels_YXC, jnp.where(is_color | is_sharpness, factor, 1.0))

    matrix_22, offset_2 = warp(operation, magnitude, sign, Y, X)
    levels_YXC = geometry.nearest(levels_YXC, *geometry.positions(Y, X, matrix_22, offset_2), FILL)

    half = int(magnitude * min(Y, X) / 56)
    top, left = (centre_2 * jnp.array([Y, X])).astype(jnp.int32) - half
    in_square_YX = geometry.in_box(geometry.Box(top, left, 2 * half, 2 * half), Y, X)
    return jnp.where(in_square_YX[..., None] & (operation == OPERATIONS.index("cutout")), FILL, levels_YXC)


def point_table(levels_YXC: jax.Array, numbers_YXC: jax.Array, operation: jax.Array, magnitude: float) -> jax.Array:
    """The new value of each level of each channel: float32 [V, C], whole numbers; the identity for other operations.

    Args:
      levels_YXC: float32, whole numbers in [0, 255].
      numbers_YXC: the same as int32.
      operation: int32 scalar, an index of `OPERATIONS`.
      magnitude: as in `RandAugment`.
    """
    C = levels_YXC.shape[-1]
    factor, step = 0.1 + 0.18 * magnitude, 2.0 ** (8 - min(8, int(0.4 * magnitude)))
    level_VC = jnp.broadcast_to(jnp.arange(256.0)[:, None], (256, C))
    least_C, most_C = jnp.min(levels_YXC, axis=(0, 1)), jnp.max(levels_YXC, axis=(0, 1))
    mean = jnp.round(jnp.mean(jnp.round(colour.grey(levels_YXC))))
    tables = {
        "auto_contrast": jnp.where(
            most_C > least_C, jnp.floor((level_VC - least_C) * 255.0 / jnp.maximum(most_C - least_C, 1.0)), level_VC
        ),
        "equalize": _equalized(histogram(numbers_YXC), most_C, level_VC),
        "invert": 255.0 - level_VC,
        "posterize": jnp.floor(level_VC / step) * step,
        "solarize": jnp.where(level_VC < int(25.6 * magnitude), level_VC, 255.0 - level_VC),
        "solarize_add": jnp.where(level_VC < 128, level_VC + int(11 * magnitude), level_VC),
        "contrast": _blend(mean, level_VC, factor),
        "brightness": _blend(jnp.zeros(()), level_VC, factor),
    }
    table_VC = jax.lax.select_n(jnp.minimum(operation, len(POINT)), *(tables[name] for name in POINT), level_VC)
    return jnp.clip(table_VC, 0.0, 255.0)


def histogram(numbers_YXC: jax.Array) -> jax.Array:
    """The number of pixels of `numbers_YXC`, int32, with each level, per channel: float32 [V, C]."""
    C = numbers_YXC.shape[-1]
    indices = (numbers_YXC * C + jnp.arange(C)).reshape(-1)  # a flat index halves the time of a pair on a CPU
    return jnp.zeros(256 * C).at[indices].add(1.0, mode="promise_in_bounds").reshape(256, C)


def _equalized(count_VC: jax.Array, most_C: jax.Array, level_VC: jax.Array) -> jax.Array:
    """The table of histogram equalisation, as Pillow computes it: the pixels of the brightest level are not counted.

    Pillow divides integers; floor of a float32 quotient is the same for whole numbers below 2^23.
    """
    brightest_C = jnp.sum(jnp.where(level_VC == most_C, count_VC, 0.0), axis=0)
    step_C = jnp.floor((jnp.sum(count_VC, axis=0) - brightest_C) / 255.0)
    below_VC = jnp.cumsum(count_VC, axis=0) - count_VC
    return jnp.where(step_C > 0, jnp.floor((below_VC + jnp.floor(step_C / 2)) / jnp.maximum(step_C, 1.0)), level_VC)


def smooth(levels_YXC: jax.Array) -> jax.Array:
    """Pillow's SMOOTH of `levels_YXC`: the mean of 5 times each pixel and its 8 neighbours; the border is unchanged."""
    rows = levels_YXC[:-2] + levels_YXC[1:-1] + levels_YXC[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = jnp.round((box + 4.0 * levels_YXC[1:-1, 1:-1]) / 13.0)
    return jnp.concatenate(
        [
            levels_YXC[:1],
            jnp.concatenate([levels_YXC[1:-1, :1], inner, levels_YXC[1:-1, -1:]], axis=1),
            levels_YXC[-1:],
        ]
    )


def warp(
    operation: jax.Array, magnitude: float, sign: jax.Array | float, Y: int, X: int
) -> tuple[jax.Array, jax.Array]:
    """Matrix [2, 2] and offset [2] to the position in the source of pixel (y, x); the identity for other operations.

    Args:
      operation: int32 scalar, an index of `OPERATIONS`.
      magnitude: as in `RandAugment`.
      sign: 1 or -1, the direction.
      Y: height.
      X: width.
    """
    rotation_22 = geometry.rotation(sign * math.radians(3 * magnitude))
    centre_2 = jnp.array([(Y - 1) / 2, (X - 1) / 2])
    shear = sign * 0.03 * magnitude * jnp.ones(())
    shift = sign * magnitude / 22.4 * jnp.ones(())
    zero, one, zero_2 = jnp.zeros(()), jnp.ones(()), jnp.zeros(2)
    maps = {
        "rotate": (rotation_22, centre_2 - rotation_22 @ centre_2),
        "shear_x": (jnp.stack([one, zero, shear, one]).reshape(2, 2), zero_2),
        "shear_y": (jnp.stack([one, shear, zero, one]).reshape(2, 2), zero_2),
        "translate_x": (jnp.eye(2), jnp.stack([zero, shift * X])),
        "translate_y": (jnp.eye(2), jnp.stack([shift * Y, zero])),
    }
    number = operation - OPERATIONS.index(WARP[0])
    number = jnp.where((number >= 0) & (number < len(WARP)), number, len(WARP))
    matrices, offsets = zip(*(maps[name] for name in WARP), (jnp.eye(2), zero_2), strict=True)
    return jax.lax.select_n(number, *matrices), jax.lax.select_n(number, *offsets)


def _blend(pale: jax.Array, levels: jax.Array, factor: jax.Array | float) -> jax.Array:
    return jnp.floor(jnp.clip(pale + factor * (levels - pale), 0.0, 255.0))
