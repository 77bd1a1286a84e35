"""Labelled images as random-access examples for classification.

An example is a fixed shape:

    {"images": uint8 [rows, columns, C], "labels": int32 [], "weights": float32 []}

The host decodes, resizes and crops (`image_files`). The task augments and normalises on the device. A set that fits
into `ImageSet.memory` is decoded once. For a larger set, and for random crops, each example is decoded when it is
read; its random numbers are a function of (seed, example).

Letters: B rows, E images, C channels.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from transformer_jax import contracts, objectives
from transformer_jax.data import image_files, pipeline, records
from transformer_jax.data.image_sources import Images, Item, Side, Source
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError

LEAST_SEEN = 0.25  # share of a picture; below it, `resize` was probably not changed together with `size`
BLOCK = 512  # images decoded together
CROPS = 7  # the stream of `objectives.generator` for random crops


@dataclass(frozen=True)
class ImageSet:
    """The data of an experiment on images: the source, the crops, and the memory for decoded images."""

    source: Source
    """The labelled images."""
    train_crop: Literal["centre", "inception"] = "centre"
    """centre: the crop that is also evaluated; inception: a random crop, redrawn every epoch (Szegedy et al. 2015)."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """The range of a random crop's share of the area. The default is big_vision's; torchvision's is (0.08, 1)."""
    broken: Literal["refuse", "skip"] = field(default="refuse", metadata=contracts.LAUNCH)
    """refuse: a file that cannot be decoded ends the run; skip: it is skipped, counted and named."""
    memory: int = 4_000_000_000
    """Bytes of decoded images that each host may hold; a larger set is decoded again every epoch."""

    def __post_init__(self) -> None:
        least, most = self.crop_area
        if not 0 < least <= most <= 1:
            raise InputError(
                f"data.crop_area = {self.crop_area}: give the smallest and the largest share, within (0, 1]"
            )
        if self.memory < 0:
            raise InputError(f"data.memory = {self.memory}: must be 0 or more")


@dataclass(frozen=True, eq=False)
class Held(pipeline.StackedExamples):
    """Examples whose images are decoded and in memory."""

    images: np.ndarray
    """uint8 [E, rows, columns, C]."""
    labels: np.ndarray
    """int32 [E]."""
    order: Sequence[int]
    """Example -> image."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch: {"images": uint8 [B, rows, columns, C], "labels": int32 [B], "weights": float32 [B]}."""
        rows_B = np.array([self.order[i] for i in numbers], np.int64)
        weights_B = np.ones(len(rows_B), np.float32)
        return {"images": self.images[rows_B], "labels": self.labels[rows_B], "weights": weights_B}


@dataclass(frozen=True, eq=False)
class OnDemand(pipeline.StackedExamples):
    """Examples whose images are decoded when they are read. A broken image that is skipped has weight 0."""

    source: Images
    numbers: np.ndarray
    """int32: the source's number of a class -> the task's number."""
    preprocess: Preprocess
    data: ImageSet
    order: Sequence[int]
    seed: int
    crop: tuple[float, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """The facts of the run, which count the skipped images as they are found."""
    side: Side = "train"
    named: dict[str, str] = field(default_factory=dict)
    """Where a skipped image is -> why it was skipped."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch: {"images": uint8 [B, rows, columns, C], "labels": int32 [B], "weights": float32 [B]}."""
        items = self.source.read([self.order[i] for i in numbers])
        rngs = [self.crop and objectives.generator(self.seed, i, CROPS) for i in numbers]
        made = decode(items, self.preprocess, self.crop, rngs)
        images = np.zeros((len(items), *self.preprocess.shape), np.uint8)
        weights_B = np.zeros(len(items), np.float32)
        for b, (item, found) in enumerate(zip(items, made, strict=True)):
            if isinstance(found, np.ndarray):
                images[b], weights_B[b] = found, 1.0
                continue
            if self.data.broken == "refuse":
                raise _refusal(item, found)
            if item.where not in self.named:
                self.named[item.where] = f"{item.where}: {found}"
                self.facts[f"{self.side}_images_skipped"] = _few(list(self.named.values()))
                print(f"skipped image {len(self.named)}: {item.where}: {found}", file=sys.stderr, flush=True)
        return {"images": images, "labels": self.numbers[[item.label for item in items]], "weights": weights_B}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared ImageSet. `train` is endless."""

    train: pipeline.Examples
    validation: pipeline.Examples
    test: pipeline.Examples | None
    facts: dict[str, Any]


def prepare(data: ImageSet, preprocess: Preprocess, labels: Sequence[str], *, seed: int) -> Prepared:
    """The examples of every side; images that fit into memory are decoded now.

    Args:
      data: the images and how they are read.
      preprocess: resizes and crops each image.
      labels: the names of the task's classes, in order; they include the source's classes.
      seed: the seed of the order and of random crops.

    Raises:
      InputError: a side without images, an unknown class, a broken image or a label out of range. What is not decoded
        here is checked when it is read.
    """
    if preprocess.seen < LEAST_SEEN:
        fit = f"--task.preprocess.resize {' '.join(str(round(n * 8 / 7)) for n in dict.fromkeys(preprocess.sides))}"
        raise InputError(
            f"task.preprocess resizes pictures to {preprocess.resize} pixels and crops the central {preprocess.size}: "
            f"the model sees {preprocess.seen:.1%} of each; give {fit}"
        )
    names = data.source.classes()
    if unknown := [name for name in names if name not in labels]:
        raise InputError(
            f"the data have the class {unknown[0]!r}, which the model does not have; its classes are "
            f"{', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"
        )
    numbers = np.array([labels.index(name) for name in names], np.int32)
    facts: dict[str, Any] = {"classes": len(labels)}
    if preprocess.resize != preprocess.size:
        facts["share_of_each_picture_that_is_seen"] = round(preprocess.seen, 3)
    sides: tuple[Side, ...] = ("train", "validation", "test")
    found = {side: images for side in sides if (images := data.source.images(side)) is not None}
    each, left = math.prod(preprocess.shape), data.memory
    made: dict[str, pipeline.Examples] = {}
    for side, images in found.items():
        facts[f"{side}_images"] = images.count
        if images.skipped:
            facts[f"{side}_files_skipped"] = records.counted(images.skipped)
        crops = side == "train" and data.train_crop == "inception"
        if not crops and each * images.count <= left:
            left -= each * images.count
            pixels, kept, broken = _decode_all(images, preprocess, data)
            if broken:
                facts[f"{side}_images_skipped"] = _few(broken)
            order = pipeline.epochs(len(kept), seed) if side == "train" else range(len(kept))
            made[side] = Held(pixels, numbers[kept], order)
        else:
            order = pipeline.epochs(images.count, seed) if side == "train" else range(images.count)
            crop = data.crop_area if crops else None
            made[side] = OnDemand(images, numbers, preprocess, data, order, seed, crop, facts, side)
    return Prepared(made["train"], made["validation"], made.get("test"), facts)


def _few(broken: Sequence[str]) -> str:
    return f"{len(broken)}: {'; '.join(broken[:3])}" + "; ..." * (len(broken) > 3)


def _decode_all(images: Images, preprocess: Preprocess, data: ImageSet) -> tuple[np.ndarray, list[int], list[str]]:
    """(pixels uint8 [E, rows, columns, C], the source's labels, which images were skipped and why)."""
    pixels = np.empty((images.count, *preprocess.shape), np.uint8)
    labels: list[int] = []
    broken: list[str] = []
    with _progress(images) as advance:
        for first in range(0, images.count, BLOCK):
            items = images.read(range(first, min(first + BLOCK, images.count)))
            for item, found in zip(items, decode(items, preprocess), strict=True):
                if isinstance(found, np.ndarray):
                    pixels[len(labels)] = found
                    labels.append(item.label)
                elif data.broken == "refuse":
                    raise _refusal(item, found)
                else:
                    broken.append(f"{item.where}: {found}")
            advance(len(items))
    if not labels:
        raise InputError(f"{images.origin}: none of its {images.count} images can be decoded; the first: {broken[0]}")
    return pixels[: len(labels)], labels, broken


@contextlib.contextmanager
def _progress(images: Images) -> Iterator[Callable[[int], None]]:
    """Yields advance(more images): a progress bar on a terminal, elsewhere a line every 15 seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, printed, done = Console(stderr=True), time.monotonic(), 0
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=images.count)

        def advance(more: int) -> None:
            nonlocal printed, done
            done += more
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - printed > 15:
                printed = time.monotonic()
                print(f"decoded {done:,} of {images.count:,} images of {images.origin}", file=sys.stderr, flush=True)

        yield advance


def decode(
    items: Sequence[Item],
    preprocess: Preprocess,
    crop: tuple[float, float] | None = None,
    rngs: Sequence[Any] | None = None,
) -> Iterator[np.ndarray | image_files.Broken]:
    """Each item's pixels, or what is wrong with it. Threads use all cores, since Pillow releases the GIL.

    Args:
      items: images as they are stored.
      preprocess: resizes and crops each.
      crop: as for `image_files.pixels`.
      rngs: the random generators of each item's random crop; None: there is none.
    """

    def one(item: Item, rng: np.random.Generator | None) -> np.ndarray | image_files.Broken:
        try:
            return image_files.pixels(item.data, preprocess, crop=crop, rng=rng)
        except image_files.Broken as broken:
            return broken

    generators = [None] * len(items) if rngs is None else rngs
    if len(items) < 8:
        return map(one, items, generators)
    with ThreadPoolExecutor(_cores()) as pool:
        return iter(list(pool.map(one, items, generators)))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _refusal(item: Item, broken: image_files.Broken) -> InputError:
    return InputError(f"{item.where}: {broken}; repair or remove it, or to skip such images, give --data.broken skip")
