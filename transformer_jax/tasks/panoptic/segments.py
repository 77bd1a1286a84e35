"""Images with their segments, as random-access examples.

An example is a fixed shape:

    {"images": uint8 [rows, columns, C], "numbers": uint8 [rows, columns], "classes": int32 [M],
     "segments": float32 [M], "weights": float32 []}

A number n + 1 is segment n of the image, 0 what has no class, and IGNORED does not count; "segments" is 0 for padding.
The segments are the objects of a source that has masks of them, and otherwise the classes of the image's pixels.

Letters: B rows, M segments of an image, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax.data import boxes, masks, pipeline
from transformer_jax.errors import InputError


@dataclass(frozen=True)
class SegmentSet:
    """The data of an experiment on panoptic segmentation."""

    source: boxes.Source
    """Images whose `pictures` have segments, or labels of pixels."""
    most_segments: int = 100
    """M, segments of an image; an image with more is refused. A model needs at least as many masks."""
    memory: int = 4_000_000_000
    """Bytes of decoded images and labels that each host may hold; a larger set is decoded again every epoch."""

    def __post_init__(self) -> None:
        if not 1 <= self.most_segments < masks.IGNORED:
            raise InputError(
                f"data.most_segments is {self.most_segments}; numbers of pixels have one byte, so it must be from 1 to "
                f"{masks.IGNORED - 1}"
            )


@dataclass(frozen=True, eq=False)
class Examples(pipeline.StackedExamples):
    """The examples of a side, from those of `masks`."""

    of: masks.Examples
    """Images with the number, or the class, of each pixel."""
    order: Sequence[int]
    """Example -> image: that of `of`."""
    most: int
    """M."""
    background: bool
    """Whether pixels without a class count."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch, as the module describes an example, with a leading dimension B.

        Raises:
          InputError: an image with more segments than M.
        """
        given = self.of.stacked(numbers)
        B, labels = len(numbers), given.pop("labels")
        classes, present = np.zeros((B, self.most), np.int32), np.zeros((B, self.most), np.float32)
        for b, number in enumerate(numbers):
            objects = self.of.pictures.objects[self.order[number]]
            if self.of.pictures.segments is not None:
                found = np.asarray(objects.classes)
            else:
                found = np.setdiff1d(np.unique(labels[b]), (0, masks.IGNORED)).astype(np.int32) - 1
                table = np.zeros(256, np.uint8)
                table[found + 1], table[masks.IGNORED] = np.arange(len(found)) + 1, masks.IGNORED
                labels[b] = table[labels[b]]
            if len(found) > self.most:
                raise InputError(f"{objects.where}: {len(found)} segments; data.most_segments is {self.most}, raise it")
            classes[b, : len(found)], present[b, : len(found)] = found, 1.0
        labels = labels if self.background else np.where(labels == 0, masks.IGNORED, labels).astype(np.uint8)
        return {**given, "numbers": labels, "classes": classes, "segments": present}


def prepare(data: SegmentSet, preprocess: Any, labels: Sequence[str], *, background: bool, seed: int) -> Any:
    """(training, validation, test or None, facts) of `data`.

    Args:
      data: the images and how they are read.
      preprocess: resizes each image.
      labels: the names of the task's classes, in order.
      background: whether pixels without a class count.
      seed: of the order.

    Raises:
      InputError: what `masks.prepare` refuses.
    """
    of = masks.MaskSet(data.source, data.memory)
    made = masks.prepare(of, preprocess, labels, seed=seed, most_segments=data.most_segments)

    def segments(of: masks.Examples | None) -> Examples | None:
        return None if of is None else Examples(of, of.order, data.most_segments, background)

    return segments(made.train), segments(made.validation), segments(made.test), made.facts
