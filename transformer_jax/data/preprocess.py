"""What is done to an image before a model sees it at evaluation, as a value: `Preprocess`.

`data.images` does it; `hub` reads it from a snapshot's preprocessor_config.json and writes it there.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from transformer_jax.errors import InputError

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True)
class Preprocess:
    """Resize, cut out the centre, scale pixels to [0, 1], normalise each channel: (x - mean) / std.

    The defaults are the published ViT's. Errors: `InputError` on construction for sizes that leave nothing to cut.
    """

    size: int = 224
    """Pixels of a side of what the model gets."""
    resize: int = 224
    """Pixels of a side after resizing, before the centre is cut out."""
    fit: Literal["squash", "shortest"] = "squash"
    """Both sides become `resize`, or the shorter one does and the other follows."""
    resample: Resample = "bilinear"
    """The filter, as Pillow names and computes it."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each channel, on the scale [0, 1]."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each channel, on the same scale."""

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
        """The share of the resized square that is cut out for the model."""
        return (self.size / self.resize) ** 2

    def scaled(self, size: int) -> "Preprocess":
        """The same for another size: `resize` grows with it, so that the model sees the same part of each picture."""
        return dataclasses.replace(self, size=size, resize=round(self.resize * size / self.size))
