"""Images with the class of each pixel, as random-access examples for segmentation.

An example is a fixed shape:

    {"images": uint8 [rows, columns, C], "labels": uint8 [rows, columns], "weights": float32 []}

Label 0 is the background, or what has no class; k + 1 is class k; IGNORED does not count. The host decodes and resizes,
labels by their nearest pixels; the task augments and normalises on the device.

Letters: B rows, E images, C channels.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import extras, hf
from transformer_jax.data import boxes, image_files, image_sources, pipeline
from transformer_jax.data.image_sources import Side
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.errors import InputError

IGNORED = 255


@dataclass(frozen=True)
class MaskSet:
    """The data of an experiment on segmentation."""

    source: boxes.Source
    """Images whose `pictures` have labels."""
    memory: int = 4_000_000_000
    """Bytes of decoded images and labels that each host may hold; a larger set is decoded again every epoch."""


@dataclass(frozen=True)
class MaskFolder:
    """Images in PATH/images/SIDE/NAME.jpg with labels in PATH/annotations/SIDE/NAME.png, as ADE20K's.

    The value of a label's pixel is 0 for what has no class, else the class's number from 1.
    """

    path: str
    """The folder with images/ and annotations/."""
    names: tuple[str, ...]
    """The classes, in the order of their numbers."""
    train: str = "training"
    """The subfolder to train on."""
    validation: str = "validation"
    """The subfolder to validate on."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.names

    def pictures(self, side: Side) -> boxes.Pictures | None:
        """The images of a side; there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        if side == "test":
            return None
        top, name = hf.here(self.path), getattr(self, side)
        folder = top / "images" / name
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; it holds the images of a side")
        paths, _ = image_files.below(folder)
        masks = [(top / "annotations" / name / path.relative_to(folder)).with_suffix(".png") for path in paths]
        if lacking := next((mask for mask in masks if not mask.is_file()), None):
            raise InputError(f"{lacking} is no file; it holds the labels of an image")
        none = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0)
        return boxes.Pictures(
            f"{folder} ({side})",
            [boxes.Objects(str(path), (0, 0), *none) for path in paths],  # the size is read with the image
            lambda rows: [image_sources.read_bytes(paths[row]) for row in rows],
            lambda rows: [_labels(masks[row]) for row in rows],
        )


def _labels(path: Path) -> np.ndarray:
    extras.need("PIL", "reading labels")
    from PIL import Image

    image_sources.read_bytes(path)  # refuses what is no regular file, and what is too large
    try:
        with Image.open(path, formats=("PNG",)) as image:
            found = np.asarray(image)
    except Exception as error:  # decoders raise many types for damaged bytes
        raise InputError(f"{path} cannot be decoded as a PNG ({error})") from None
    if found.ndim != 2:
        raise InputError(f"{path} has {found.shape[-1]} channels; the labels of pixels are one number each")
    return found


@dataclass(frozen=True, eq=False)
class Examples(pipeline.StackedExamples):
    """The examples of a side; they are decoded and in memory, or decoded when they are read."""

    pictures: boxes.Pictures
    preprocess: Preprocess
    highest: int
    """The highest label."""
    order: Sequence[int]
    """Example -> image."""
    held: tuple[np.ndarray, np.ndarray] | None = None
    """(images uint8 [E, rows, columns, C], labels uint8 [E, rows, columns]); None: they are decoded when read."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch, as the module describes an example, with a leading dimension B."""
        rows = [self.order[i] for i in numbers]
        images, labels = self.decoded(rows) if self.held is None else (part[rows] for part in self.held)
        return {"images": images, "labels": labels, "weights": np.ones(len(rows), np.float32)}

    def decoded(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(images, labels) of these images.

        Args:
          rows: numbers of images.

        Raises:
          InputError: labels of another size than their image, or of an unknown class.
        """
        given = boxes.decoded(self.pictures, rows, self.preprocess)
        assert self.pictures.labels is not None
        made = np.empty((len(rows), *self.preprocess.sides), np.uint8)
        for b, (row, labels) in enumerate(zip(rows, self.pictures.labels(rows), strict=True)):
            of = self.pictures.objects[row]
            size = of.size if any(of.size) else image_files.stored_size(self.pictures.read([row])[0], of.where)
            if size != labels.shape:
                raise InputError(
                    f"{of.where}: the image has {size[1]} x {size[0]} pixels and its labels "
                    f"{labels.shape[1]} x {labels.shape[0]}; they must be the same"
                )
            if unknown := sorted(set(np.unique(labels)) - set(range(self.highest + 1)) - {IGNORED}):
                raise InputError(
                    f"{of.where}: its labels hold {unknown[0]}; the highest label is {self.highest}, and 0 and "
                    f"{IGNORED} are for no class"
                )
            made[b] = nearest(labels, self.preprocess.sides)
        return given, made


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels of another size, each pixel that of the nearest, uint8 [rows, columns].

    Args:
      labels: int [Y, X].
      size: rows and columns.
    """
    down, across = (((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip(size, labels.shape, strict=True))
    return labels[down[:, None], across].astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared MaskSet. `train` is endless."""

    train: Examples
    validation: Examples
    test: Examples | None
    facts: dict[str, Any]


def prepare(
    data: MaskSet, preprocess: Preprocess, labels: Sequence[str], *, seed: int, most_segments: int = 0
) -> Prepared:
    """The examples of every side; those that fit into memory are decoded now.

    Args:
      data: the images and how they are read.
      preprocess: resizes each image; both sides are resized to the model's input.
      labels: the names of the task's classes, in order; they are the source's classes.
      seed: the seed of the order.
      most_segments: above 0: the number of each pixel's object in place of its class, where the source has it; it is
        at most this one.

    Raises:
      InputError: other classes, a preprocessing that crops, images without labels, or bad labels.
    """
    if preprocess.fit != "squash" or sides(preprocess.resize) != preprocess.sides:
        raise InputError(
            f"task.preprocess resizes to {preprocess.resize} by {preprocess.fit!r} and crops {preprocess.size}; with "
            "labels of pixels give resize the value of size, and fit 'squash'"
        )
    if data.source.classes() != tuple(labels):
        raise InputError(f"the data have {len(data.source.classes())} classes, the model other {len(labels)}")
    if len(labels) >= IGNORED:
        raise InputError(f"there are {len(labels)} classes; labels of pixels have one byte, so at most {IGNORED - 1}")
    facts: dict[str, Any] = {"classes": len(labels)}
    made: dict[str, Examples] = {}
    found = ((side, data.source.pictures(side)) for side in ("train", "validation", "test"))
    left = data.memory
    for side, pictures in ((side, pictures) for side, pictures in found if pictures is not None):
        highest = len(labels)
        if most_segments and pictures.segments is not None:
            pictures, highest = dataclasses.replace(pictures, labels=pictures.segments), most_segments
        if pictures.labels is None:
            raise InputError(f"{pictures.origin} has no labels of pixels; take a source that has, such as MaskFolder")
        rows = len(pictures.objects)
        facts[f"{side}_images"] = rows
        order = pipeline.epochs(rows, seed) if side == "train" else range(rows)
        made[side] = Examples(pictures, preprocess, highest, order)
        needed = rows * (math.prod(preprocess.shape) + math.prod(preprocess.sides))
        if needed <= left:
            left -= needed
            made[side] = dataclasses.replace(made[side], held=made[side].decoded(range(rows)))
    return Prepared(made["train"], made["validation"], made.get("test"), facts)
