"""`Preprocess`: how an image becomes a model's input at evaluation.

`data.images` applies it; `hub` reads and writes it as preprocessor_config.json.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from transformer_jax.errors import InputError

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, scale pixels to [0, 1], normalise each channel: (x - mean) / std.

    The defaults are the published ViT's. A crop larger than the resized image is an `InputError`.
    """

    size: int | tuple[int, int] = 224
    """Rows and columns of the model's input, in pixels; one number: a square."""
    resize: int | tuple[int, int] = 224
    """Rows and columns after resizing, before the centre crop; one number: a square, or the shorter side."""
    fit: Literal["squash", "shortest", "inside"] = "squash"
    """squash: both sides become `resize`; shortest: the shorter one does, and the aspect ratio is kept; inside: the
    aspect ratio is kept, the shorter side becomes the first of `resize` unless the longer would be above the second,
    and nothing is cropped, so that images differ in size (`inside`)."""
    multiple: int = 1
    """inside: sides are rounded down to a multiple of this."""
    resample: Resample = "bilinear"
    """The name of Pillow's resampling filter."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """The mean of each channel, of pixels in [0, 1]."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """The standard deviation of each channel, of pixels in [0, 1]."""

    def __post_init__(self) -> None:
        if self.fit not in ("squash", "shortest", "inside"):
            raise InputError(f"preprocess.fit is {self.fit!r}; it is one of squash, shortest, inside")
        if self.fit == "inside" and self.size != self.resize:
            raise InputError(f"preprocess.size is {self.size} with fit 'inside'; give it the value of resize")
        if self.resample not in get_args(Resample):
            raise InputError(f"preprocess.resample is {self.resample!r}; it is one of {', '.join(get_args(Resample))}")
        if self.fit == "shortest" and isinstance(self.resize, tuple):
            raise InputError(f"preprocess.resize is {self.resize} with fit 'shortest', which takes one number")
        if min(self.sides) < 1 or any(r < s for r, s in zip(sides(self.resize), self.sides, strict=True)):
            raise InputError(
                f"preprocess.size is {self.size} and resize {self.resize}; resize to at least the size, and that to 1"
            )
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError(
                f"preprocess.mean is {self.mean} and std {self.std}; they need one number for each channel, std above 0"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the model's input, in pixels."""
        return sides(self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of the model's input."""
        return (*self.sides, len(self.mean))

    @property
    def seen(self) -> float:
        """The share of the resized image that the model sees."""
        return math.prod(self.sides) / math.prod(sides(self.resize))

    def inside(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of an image with `rows` and `columns` after resizing by fit "inside"."""
        least, most = sides(self.resize)
        short, long = min(rows, columns), max(rows, columns)
        exact: float = least
        if long / short * least > most:
            exact, least = most * short / long, round(most * short / long)
        resized = [least if side == short else int(exact * side / short) for side in (rows, columns)]
        down, across = (max(side - side % self.multiple, self.multiple) for side in resized)
        return down, across

    def scaled(self, size: int | tuple[int, int]) -> "Preprocess":
        """This preprocessing for another size. `resize` scales with it, so the model sees the same part of an image.

        Args:
          size: the size of the new input, in pixels.
        """
        rows, columns = (
            round(old * new / now) for old, new, now in zip(sides(self.resize), sides(size), self.sides, strict=True)
        )
        return dataclasses.replace(self, size=size, resize=rows if rows == columns else (rows, columns))


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of `size`, of which one number is a square."""
    return size if isinstance(size, tuple) else (size, size)
