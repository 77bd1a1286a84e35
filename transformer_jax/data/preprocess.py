"""`Preprocess`: how an image becomes a model's input at evaluation.

`data.images` applies it; `hub` reads and writes it as preprocessor_config.json.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from transformer_jax.errors import InputError

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, scale pixels to [0, 1], normalise each channel: (x - mean) / std.

    The defaults are the published ViT's. A crop larger than the resized image is an `InputError`.
    """

    size: int = 224
    """Height and width of the model's input, in pixels."""
    resize: int = 224
    """Pixels of a side after resizing, before the centre crop."""
    fit: Literal["squash", "shortest"] = "squash"
    """squash: both sides become `resize`; shortest: the shorter one does, and the aspect ratio is kept."""
    resample: Resample = "bilinear"
    """The name of Pillow's resampling filter."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """The mean of each channel, of pixels in [0, 1]."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """The standard deviation of each channel, of pixels in [0, 1]."""

    def __post_init__(self) -> None:
        if self.fit not in ("squash", "shortest"):
            raise InputError(f"preprocess.fit is {self.fit!r}; it is one of squash, shortest")
        if self.resample not in get_args(Resample):
            raise InputError(f"preprocess.resample is {self.resample!r}; it is one of {', '.join(get_args(Resample))}")
        if self.size < 1 or self.resize < self.size:
            raise InputError(
                f"preprocess.size is {self.size} and resize {self.resize}; resize to at least the size, and that to 1"
            )
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError(
                f"preprocess.mean is {self.mean} and std {self.std}; they need one number for each channel, std above 0"
            )

    @property
    def seen(self) -> float:
        """The share of the resized square that the model sees."""
        return (self.size / self.resize) ** 2

    def scaled(self, size: int) -> "Preprocess":
        """This preprocessing for another size. `resize` scales with it, so the model sees the same part of an image.

        Args:
          size: of the new input, in pixels.
        """
        return dataclasses.replace(self, size=size, resize=round(self.resize * size / self.size))
