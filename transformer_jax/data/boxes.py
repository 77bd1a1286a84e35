"""Images with boxes around their objects, as random-access examples for detection.

An example is a fixed shape:

    {"images": uint8 [rows, columns, C], "boxes": float32 [M, 4], "classes": int32 [M], "objects": float32 [M],
     "weights": float32 []}

Boxes are centre x, centre y, width and height as shares of the image; "objects" is 0 for padding. The host decodes and
resizes; the task augments and normalises on the device. Annotations are held in memory, and so are the images of a set
that fits into `BoxSet.memory`.

Letters: B rows, E images, M objects of an image, N boxes of an image, C channels.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from transformer_jax import contracts
from transformer_jax.data import image_files, images, pipeline
from transformer_jax.data.image_sources import Item, Side
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.errors import InputError

TOLERANCE = 1.0  # pixels by which a box may leave the image, as rounded annotations do; it is clipped


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image, as they are annotated."""

    where: str
    """Names the image in messages: its file."""
    size: tuple[int, int]
    """Rows and columns of the stored image, in pixels."""
    boxes: np.ndarray
    """float [N, 4]: left, top, right and bottom edge in pixels of the stored image."""
    classes: np.ndarray
    """int [N], numbers of `classes()`."""
    ignored: np.ndarray
    """bool [N]: crowds and objects that are marked as difficult. They are not trained, and whether they are detected
    does not count."""
    areas: np.ndarray
    """float [N]: pixels of each object, by which COCO tells small from large ones."""
    id: int = 0
    """The image's number in the source's own files."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """One side of a source. `read(rows)` returns the images' bytes, or pixels uint8 [Y, X] or [Y, X, C]."""

    origin: str
    """Names the data in messages."""
    objects: Sequence[Objects]
    read: Callable[[Sequence[int]], list[Any]]
    labels: Callable[[Sequence[int]], list[Any]] | None = None
    """The class of each pixel, as `read` returns images: 0 is the background, k + 1 class k. None: there are none."""
    segments: Callable[[Sequence[int]], list[Any]] | None = None
    """The object of each pixel, as `read` returns images: n + 1 is object n of `objects`, 0 none of them. None: objects
    have no masks."""

    def __post_init__(self) -> None:
        if not self.objects:
            raise InputError(f"{self.origin}: no images")


class Source(Protocol):
    """A source of images with boxes: a frozen dataclass."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        ...

    def pictures(self, side: Side) -> Pictures | None:
        """The images of a side, or None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        ...


@dataclass(frozen=True)
class BoxSet:
    """The data of an experiment on detection."""

    source: Source
    """The images with their boxes."""
    most_objects: int = 100
    """M, objects of an image; an image with more is refused. A model needs at least as many predictions."""
    bad_boxes: Literal["refuse", "skip"] = field(default="refuse", metadata=contracts.LAUNCH)
    """refuse: a box that is empty, reversed, outside the image or of an unknown class ends the run; skip: it is left
    out and counted."""
    memory: int = 4_000_000_000
    """Bytes of decoded images that each host may hold; a larger set is decoded again every epoch."""

    def __post_init__(self) -> None:
        if self.most_objects < 1 or self.memory < 0:
            raise InputError(
                f"data.most_objects = {self.most_objects}, data.memory = {self.memory}: must be at least 1 and 0"
            )


@dataclass(frozen=True, eq=False)
class Examples(pipeline.StackedExamples):
    """The examples of a side; its images are decoded and in memory, or decoded when they are read."""

    pictures: Pictures
    preprocess: Preprocess
    most_objects: int
    order: Sequence[int]
    """Example -> image."""
    pixels: np.ndarray | None = None
    """uint8 [E, rows, columns, C]; None: they are decoded when they are read."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch, as the module describes an example, with a leading dimension B."""
        rows = [self.order[i] for i in numbers]
        batch = {
            "images": decoded(self.pictures, rows, self.preprocess) if self.pixels is None else self.pixels[rows],
            "boxes": np.zeros((len(rows), self.most_objects, 4), np.float32),
            "classes": np.zeros((len(rows), self.most_objects), np.int32),
            "objects": np.zeros((len(rows), self.most_objects), np.float32),
            "weights": np.ones(len(rows), np.float32),
        }
        for b, row in enumerate(rows):
            of = self.pictures.objects[row]
            trained = ~of.ignored
            n = int(trained.sum())
            batch["boxes"][b, :n], batch["classes"][b, :n] = shares(of.boxes[trained], of.size), of.classes[trained]
            batch["objects"][b, :n] = 1.0
        return batch


def shares(boxes_N4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(centre x, centre y, width, height) as shares of an image, float [N, 4].

    Args:
      boxes_N4: left, top, right and bottom in pixels.
      size: rows and columns of the image.
    """
    scale = np.array([size[1], size[0]], np.float64)
    return np.concatenate(
        [(boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2 / scale, (boxes_N4[:, 2:] - boxes_N4[:, :2]) / scale], 1
    )


def pixels(boxes_N4: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The inverse of `shares`: left, top, right and bottom in pixels, float [N, 4].

    Args:
      boxes_N4: centre and size, as shares of the image.
      size: rows and columns of the image.
    """
    scale = np.array([size[1], size[0]], np.float64)
    half_N2 = boxes_N4[:, 2:] / 2
    return np.concatenate([(boxes_N4[:, :2] - half_N2) * scale, (boxes_N4[:, :2] + half_N2) * scale], 1)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared BoxSet. `train` is endless."""

    train: Examples
    validation: Examples
    test: Examples | None
    facts: dict[str, Any]


def prepare(data: BoxSet, preprocess: Preprocess, labels: Sequence[str], *, seed: int) -> Prepared:
    """The examples of every side, with all boxes checked; images that fit into memory are decoded now.

    Args:
      data: the images and how they are read.
      preprocess: resizes each image; both sides are resized to the model's input, so that boxes keep their shares.
      labels: the names of the task's classes, in order; they are the source's classes.
      seed: the seed of the order.

    Raises:
      InputError: other classes, a preprocessing that crops, a bad box, more objects than `data.most_objects`, or an
        image that cannot be decoded.
    """
    if preprocess.fit != "squash" or sides(preprocess.resize) != preprocess.sides:
        raise InputError(
            f"task.preprocess resizes to {preprocess.resize} by {preprocess.fit!r} and crops {preprocess.size}; with "
            "boxes give resize the value of size, and fit 'squash'"
        )
    if (names := data.source.classes()) != tuple(labels):
        raise InputError(f"the data have the classes {_few(names)}, the model {_few(labels)}; they must be the same")
    facts: dict[str, Any] = {"classes": len(labels)}
    made: dict[str, Examples] = {}
    left = data.memory
    found = ((side, data.source.pictures(side)) for side in ("train", "validation", "test"))
    for side, pictures in ((side, pictures) for side, pictures in found if pictures is not None):
        pictures = checked(pictures, names, data, facts, side)
        facts[f"{side}_images"] = len(pictures.objects)
        facts[f"{side}_objects"] = sum(int((~of.ignored).sum()) for of in pictures.objects)
        needed, held = math.prod(preprocess.shape) * len(pictures.objects), None
        if needed <= left:
            left -= needed
            held = decoded(pictures, range(len(pictures.objects)), preprocess)
        rows = len(pictures.objects)
        order = pipeline.epochs(rows, seed) if side == "train" else range(rows)
        made[side] = Examples(pictures, preprocess, data.most_objects, order, held)
    return Prepared(made["train"], made["validation"], made.get("test"), facts)


def checked(pictures: Pictures, classes: Sequence[str], data: BoxSet, facts: dict[str, Any], side: str) -> Pictures:
    """The pictures with clipped boxes, and without bad ones where `data` says so; `facts` counts those.

    Args:
      pictures: the pictures of a source.
      classes: the classes of the source.
      data: whether bad boxes are refused, and the most objects of an image.
      facts: the facts of the run; it receives the count.
      side: names the count.

    Raises:
      InputError: a bad box, or more than `data.most_objects` objects.
    """
    kept, skipped = [], 0
    for of in pictures.objects:
        faults = {n: why for n in range(len(of.boxes)) if (why := _fault(of, n, len(classes)))}
        if faults and data.bad_boxes == "refuse":
            n, why = next(iter(faults.items()))
            edges_text = ", ".join(f"{x:g}" for x in of.boxes[n])
            raise InputError(
                f"{of.where}: box {n + 1}, left, top, right, bottom = {edges_text}, {why}; correct it, or to leave "
                "such boxes out, give --data.bad-boxes skip"
            )
        skipped += len(faults)
        good = np.array([n not in faults for n in range(len(of.boxes))], bool)
        edges = np.array([of.size[1], of.size[0]] * 2, np.float64)
        good_boxes = np.clip(of.boxes[good].reshape(-1, 4), 0.0, edges)
        count = int((good & ~of.ignored).sum())
        if count > data.most_objects:
            raise InputError(
                f"{of.where} has {count} objects, more than data.most_objects = {data.most_objects}; "
                f"give --data.most-objects {count}, and a model with as many queries"
            )
        chosen = {name: getattr(of, name)[good] for name in ("classes", "ignored", "areas")}
        kept.append(dataclasses.replace(of, boxes=good_boxes, **chosen))
    if skipped:
        facts[f"{side}_boxes_skipped"] = skipped
    return Pictures(pictures.origin, kept, pictures.read, pictures.labels)


def _fault(of: Objects, n: int, classes: int) -> str:
    """What is wrong with a box; "": nothing."""
    left, top, right, bottom = of.boxes[n]
    rows, columns = of.size
    if not np.isfinite(of.boxes[n]).all():
        return "is not of finite numbers"
    if right < left or bottom < top:
        return "is reversed: its right or bottom edge comes before its left or top edge"
    if min(left, top) < -TOLERANCE or right > columns + TOLERANCE or bottom > rows + TOLERANCE:
        return f"is outside the image of {columns} x {rows} pixels"
    if min(right, columns) <= max(left, 0) or min(bottom, rows) <= max(top, 0):
        return "is empty: its width or height is 0"
    if not 0 <= of.classes[n] < classes:
        return f"is of the unknown class {of.classes[n]}; there are {classes} classes"
    return ""


def decoded(pictures: Pictures, rows: Sequence[int], preprocess: Preprocess) -> np.ndarray:
    """The pixels uint8 [len(rows), rows, columns, C] of these images.

    Args:
      pictures: the pictures of a source.
      rows: numbers of images.
      preprocess: resizes each.

    Raises:
      InputError: an image cannot be decoded.
    """
    made = np.empty((len(rows), *preprocess.shape), np.uint8)
    for first in range(0, len(rows), images.BLOCK):
        block = rows[first : first + images.BLOCK]
        named = zip(pictures.read(block), (pictures.objects[row].where for row in block), strict=True)
        items = [Item(data, 0, where) for data, where in named]
        for b, (item, found) in enumerate(zip(items, images.decode(items, preprocess), strict=True), first):
            if isinstance(found, image_files.Broken):
                raise InputError(f"{item.where}: {found}; repair it, or remove it with its boxes")
            made[b] = found
    return made


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''} ({len(names)})"
