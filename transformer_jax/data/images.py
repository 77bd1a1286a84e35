"""Labelled images as random-access examples for classification.

An example is a fixed shape:

    {"images": uint8 [size, size, C], "labels": int32 [], "weights": float32 []}

The host decodes, turns, resizes and cuts (`image_files`), and no more: pixels are augmented and normalised on the
device, by the task. A set that fits into `ImageSet.memory` is decoded once; of a larger one, and wherever a random part
of each image is cut out, an example is decoded when it is asked for, with random numbers that are a function of (seed,
example).

Letters: B rows, E images, C channels.
"""

import abc
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from transformer_jax import objectives
from transformer_jax.data import image_files, pipeline, records
from transformer_jax.data.image_sources import Images, Item, Side, Source
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError

LEAST_SEEN = 0.25  # of a picture: less is a `resize` that was not changed with the size
BLOCK = 512  # images decoded together
CROPS = 7  # the stream of `objectives.generator` that random crops draw from


@dataclass(frozen=True)
class ImageSet:
    """The data of an experiment with images: which, and how they are read."""

    source: Source
    """Where images come from."""
    train_crop: Literal["centre", "inception"] = "centre"
    """What is trained on: what is evaluated, the resized centre; or a random part of each image, drawn anew every time
    (Szegedy et al. 2015)."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """The least and the largest share of the image that such a part has; big_vision's, torchvision's is (0.08, 1)."""
    broken: Literal["refuse", "skip"] = "refuse"
    """A file that cannot be decoded ends the run, or is left out, counted and named."""
    memory: int = 4_000_000_000
    """Bytes of decoded images to hold, by each host; a set with more is decoded again and again."""

    def __post_init__(self) -> None:
        least, most = self.crop_area
        if not 0 < least <= most <= 1:
            raise InputError(f"data.crop_area = {self.crop_area}: give the least and the largest share, within (0, 1]")
        if self.memory < 0:
            raise InputError(f"data.memory = {self.memory}: must be 0 or more")


class _Examples(abc.ABC):
    """`examples[i]` is example i; `examples.stacked([i, j, ...])` the same ones stacked, at once."""

    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return {name: array[0] for name, array in self.stacked([i]).items()}

    @abc.abstractmethod
    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""


@dataclass(frozen=True, eq=False)
class Held(_Examples):
    """Decoded images."""

    images: np.ndarray
    """uint8 [E, size, size, C]."""
    labels: np.ndarray
    """int32 [E]."""
    order: Sequence[int]
    """Example -> image."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""
        rows_B = np.array([self.order[i] for i in numbers], np.int64)
        weights_B = np.ones(len(rows_B), np.float32)
        return {"images": self.images[rows_B], "labels": self.labels[rows_B], "weights": weights_B}


@dataclass(frozen=True, eq=False)
class OnDemand(_Examples):
    """Images that are decoded when they are asked for. One that cannot be, and is to be skipped, has weight 0."""

    source: Images
    numbers: np.ndarray
    """The task's number of each of the source's classes."""
    preprocess: Preprocess
    data: ImageSet
    order: Sequence[int]
    seed: int
    crop: tuple[float, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Where images that were left out are counted, as they are found."""
    side: Side = "train"
    named: dict[str, str] = field(default_factory=dict)
    """Images that were left out, and why."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""
        items = self.source.read([self.order[i] for i in numbers])
        rngs = [self.crop and objectives.generator(self.seed, i, CROPS) for i in numbers]
        made = _decode(items, self.preprocess, self.crop, rngs)
        size, channels = self.preprocess.size, len(self.preprocess.mean)
        images = np.zeros((len(items), size, size, channels), np.uint8)
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
                print(f"left out, number {len(self.named)}: {item.where}: {found}", file=sys.stderr, flush=True)
        return {"images": images, "labels": self.numbers[[item.label for item in items]], "weights": weights_B}


@dataclass(frozen=True, eq=False)
class Prepared:
    """An ImageSet made ready. `train` is endless."""

    train: _Examples
    validation: _Examples
    test: _Examples | None
    facts: dict[str, Any]


def prepare(data: ImageSet, preprocess: Preprocess, labels: Sequence[str], *, seed: int) -> Prepared:
    """Finds the images of every side and, as far as they fit into memory, decodes them.

    Arguments:
      labels: the names of the task's classes, in order; the source's classes must be among them.
    Errors: `InputError` for a side without images, an unknown class, an image that is none (or a label that is out of
      range) as far as they are decoded here; the others when their turn comes.
    """
    if preprocess.seen < LEAST_SEEN:
        fit = f"--task.preprocess.resize {round(preprocess.size * 8 / 7)}"
        raise InputError(
            f"task.preprocess resizes pictures to {preprocess.resize} pixels and cuts out the central "
            f"{preprocess.size}: the model sees {preprocess.seen:.1%} of each; give {fit}"
        )
    names = data.source.classes()
    if unknown := [name for name in names if name not in labels]:
        raise InputError(
            f"the data have the class {unknown[0]!r}, of which the model knows nothing; it knows "
            f"{', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}"
        )
    numbers = np.array([labels.index(name) for name in names], np.int32)
    facts: dict[str, Any] = {"classes": len(labels)}
    if preprocess.resize != preprocess.size:
        facts["share_of_each_picture_that_is_seen"] = round(preprocess.seen, 3)
    sides: tuple[Side, ...] = ("train", "validation", "test")
    found = {side: images for side in sides if (images := data.source.images(side)) is not None}
    each, left = preprocess.size**2 * len(preprocess.mean), data.memory
    made: dict[str, _Examples] = {}
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
    """(uint8 [E, size, size, C], the source's labels, what was left out and why)."""
    pixels = np.empty((images.count, preprocess.size, preprocess.size, len(preprocess.mean)), np.uint8)
    labels: list[int] = []
    broken: list[str] = []
    with _progress(images) as advance:
        for first in range(0, images.count, BLOCK):
            items = images.read(range(first, min(first + BLOCK, images.count)))
            for item, found in zip(items, _decode(items, preprocess), strict=True):
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
    """advance(images more), where decoding takes long: a bar on a terminal, else a line a few times a minute."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console, said, done = Console(stderr=True), time.monotonic(), 0
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=images.count)

        def advance(more: int) -> None:
            nonlocal said, done
            done += more
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - said > 15:
                said = time.monotonic()
                print(f"decoded {done:,} of {images.count:,} images of {images.origin}", file=sys.stderr, flush=True)

        yield advance


def _decode(
    items: Sequence[Item],
    preprocess: Preprocess,
    crop: tuple[float, float] | None = None,
    rngs: Sequence[Any] | None = None,
) -> Iterator[np.ndarray | image_files.Broken]:
    """Each item's pixels, or what is wrong with it; on all cores, for Pillow decodes without Python's lock."""

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
    return InputError(f"{item.where}: {broken}; mend or remove it, or leave such images out with --data.broken skip")
