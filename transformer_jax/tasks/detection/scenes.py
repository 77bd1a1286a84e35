"""A data set that pip installs: scenes of scikit-learn's digits on crops of its two photographs."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax import extras
from transformer_jax.data.boxes import Objects, Pictures
from transformer_jax.data.image_sources import Digits, Side

INK = 0.25  # the least darkness of a pixel that belongs to a digit
TRIES = 20  # positions to try for a digit before it is omitted
DIM = (0.3, 0.6)  # range of the photographs' brightness
DIGIT_SIDE = (12, 20)  # range of a digit's side, in pixels


@dataclass(frozen=True)
class Scenes:
    """Grey images with one to four handwritten digits, which do not overlap, on a dimmed crop of a photograph.

    A digit has 12 to 20 pixels a side, and its box is tight around the ink. No digit of the validation set is in the
    training set, and the crops are from the right quarter of each photograph, those of the training set from the rest.
    """

    size: int = 48
    """Pixels of a side."""
    train: int = 6000
    """Scenes to train on."""
    validation: int = 500
    """Scenes to validate on."""
    seed: int = 0
    """Of the scenes."""

    def classes(self) -> tuple[str, ...]:
        """The digits."""
        return tuple("0123456789")

    def pictures(self, side: Side) -> Pictures | None:
        """The scenes of a side, which are made at once.

        Args:
          side: "train", "validation" or "test", of which there is none.
        """
        if side == "test":
            return None
        made = _made(self, side)
        return Pictures(
            f"scenes ({side})",
            [one[3] for one in made],
            *(lambda rows, part=part: [made[row][part] for row in rows] for part in range(3)),
        )


@functools.lru_cache(maxsize=4)
def _made(scenes: Scenes, side: Side) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, Objects]]:
    """(pixels, label of each pixel, object of each pixel, objects) of each scene; the arrays are uint8 [Y, X]."""
    digits = [Digits().images(part) for part in (("train", "validation") if side == "train" else ("test",))]
    inked = [(np.asarray(item.data), item.label) for part in digits for item in part.read(range(part.count))]
    photographs = _photographs(side)
    rng = np.random.default_rng((scenes.seed, side != "train"))
    count = scenes.train if side == "train" else scenes.validation
    return [_scene(inked, photographs, scenes.size, rng, f"scene {i} ({side})") for i in range(count)]


def _photographs(side: Side) -> list[np.ndarray]:
    extras.need("sklearn", "scikit-learn's photographs", extra="vision")
    extras.need("PIL", "the scenes")
    from PIL import Image
    from sklearn import datasets

    whole = [np.asarray(Image.fromarray(image).convert("L")) for image in datasets.load_sample_images().images]
    edges = [image.shape[1] * 3 // 4 for image in whole]
    return [image[:, :e] if side == "train" else image[:, e:] for image, e in zip(whole, edges, strict=True)]


def _scene(
    inked: list[tuple[np.ndarray, int]], photographs: list[np.ndarray], size: int, rng: np.random.Generator, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Objects]:
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (int(rng.integers(length - size + 1)) for length in photograph.shape)
    pixels = photograph[top : top + size, left : left + size] * rng.uniform(*DIM)
    labels, numbers = np.zeros((2, size, size), np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    for _ in range(rng.integers(1, 5)):
        digit, label = inked[rng.integers(len(inked))]
        ink = _tight(digit, int(rng.integers(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1)))
        if (box := _free_place(boxes, ink.shape, size, rng)) is None:
            continue
        there = slice(box[1], box[3]), slice(box[0], box[2])
        pixels[there] = pixels[there] * (1 - ink) + 255 * ink
        boxes.append(box)
        classes.append(label)
        labels[there] = np.where(ink > INK, label + 1, labels[there])
        numbers[there] = np.where(ink > INK, len(boxes), numbers[there])
    areas = np.array([(right - left) * (bottom - top) for left, top, right, bottom in boxes], np.float64)
    nothing = np.zeros(len(boxes), bool)
    objects = Objects(where, (size, size), np.array(boxes, np.float64), np.array(classes), nothing, areas)
    return np.round(pixels).astype(np.uint8), labels, numbers, objects


def _tight(digit: np.ndarray, side: int) -> np.ndarray:
    """The digit's darkness in [0, 1] at `side` pixels, cropped to its ink."""
    extras.need("PIL", "the scenes")
    from PIL import Image

    ink = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255.0
    rows, columns = (np.flatnonzero((ink > INK).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(boxes: list[Any], shape: tuple[int, int], size: int, rng: np.random.Generator) -> Any:
    """A box (left, top, right, bottom) of this shape that overlaps no other; None: none was found."""
    for _ in range(TRIES):
        top, left = (int(rng.integers(size - length + 1)) for length in shape)
        box = (left, top, left + shape[1], top + shape[0])
        if all(box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in boxes):
            return box
    return None
