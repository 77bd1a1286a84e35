"""Pairs of a picture and a text, or of two texts, as random-access examples.

An example has fixed shapes:

    {"left": uint8 [size, size, C], or int32 [T] with "left_lengths": int32 [],
     "right": int32 [T], "right_lengths": int32 [],
     "negatives": int32 [H, T], "negatives_lengths": int32 [H],     where the source has hard negatives
     "weights": float32 []}

A user's own source implements `Source`. Texts are in memory as tokens, pictures as pixels where they fit.

Letters: B rows, T length, H hard negatives of a pair, C channels, E pairs of a set.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from transformer_jax.data import (
    image_files,
    image_sources,
    pipeline,
    records,
    source_files,
    sources,
    tokenizers,
    tokens,
)
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.data.tokenizers.batch import around
from transformer_jax.errors import InputError

Side = Literal["train", "validation", "test"]
Left = str | Path | np.ndarray
"""A text, the path of a picture, or its pixels uint8 [Y, X] or [Y, X, C]."""


class Pair(NamedTuple):
    """A left side and the right side that belongs to it.

    Attributes:
      left: a text, the path of a picture, or its pixels.
      right: a text.
      negatives: texts that do not belong to it but could seem to; every pair has as many.
      where: names the pair in messages: "a.csv:17".
    """

    left: Left
    right: str
    negatives: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Pairs:
    """The pairs of one side of a source."""

    origin: str
    """Names the pairs in messages."""
    held: Sequence[Pair]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Counts of what was skipped: {"blank lines": 2}."""

    def __post_init__(self) -> None:
        if not self.held:
            raise InputError(f"{self.origin}: no pairs")

    def documents(self) -> sources.Documents:
        """The texts, to train a tokenizer on."""
        sides = ((pair.where, side) for pair in self.held for side in (pair.left, pair.right, *pair.negatives))
        texts = [(where, side) for where, side in sides if isinstance(side, str)]
        return sources.in_memory(texts, self.origin)


class Source(Protocol):
    """A source of pairs: a frozen dataclass. A class that inherits from this has its defaults.

    A source may also have `baselines(train, validation)`, which returns {name: what a trivial method reaches on the
    validation pairs}; the numbers are printed when a run begins.
    """

    @property
    def images(self) -> bool:
        """Whether left sides are pictures."""
        return False

    @property
    def negatives(self) -> int:
        """H, hard negatives of each pair."""
        return 0

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return False

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train", "validation" or, with `has_test`, "test".
        """
        ...


# ---- Sources of files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table(Source):
    """Pairs in files of records with named columns: two texts, or a picture's file and its caption."""

    train: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs."""
    validation: tuple[str, ...] = ()
    """Files that choose the checkpoint; empty: a part of `train`."""
    left: str = "left"
    """The column of the left text, or of the picture's file."""
    right: str = "right"
    """The column of the right text."""
    negative: tuple[str, ...] = ()
    """The columns of hard negatives."""
    pictures: str = ""
    """The folder that the files of pictures are relative to; empty: the left side is a text."""
    validation_fraction: float = 0.1
    """The share of pairs held out if `validation` is empty; pairs of one left side are on one side."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "train", "validation")
        if isinstance(self.negative, str):
            object.__setattr__(self, "negative", (self.negative,) if self.negative else ())

    def of_files(self, files: tuple[str, ...]) -> "Table":
        return Table(files, files, self.left, self.right, self.negative, self.pictures)

    @property
    def images(self) -> bool:
        """Whether left sides are pictures."""
        return bool(self.pictures)

    @property
    def negatives(self) -> int:
        """H, hard negatives of each pair."""
        return len(self.negative)

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train" or "validation".
        """
        skipped: Counter[str] = Counter()
        own = self.validation if side == "validation" and self.validation else self.train
        held: list[Pair] = []
        for _, path in source_files.find_files(own, side, records.SUFFIXES, skipped):
            columns = (self.left, self.right, *self.negative)
            for line, record in records.read(path, headed=True, skipped=skipped, columns=columns):
                left, *texts = self._texts(record, f"{path}:{line}")
                is_validation = source_files.position(left) < self.validation_fraction
                if self.validation or is_validation == (side == "validation"):
                    shown = Path(self.pictures, left) if self.pictures else left
                    held.append(Pair(shown, texts[0], tuple(texts[1:]), f"{path}:{line}"))
        return Pairs(f"{', '.join(own)} ({side})", held, skipped)

    def _texts(self, record: dict[str, Any], where: str) -> list[str]:
        """The left side, the right side and the negatives of a record."""
        options = "--data.source.left, --data.source.right and --data.source.negative"
        columns = (self.left, self.right, *self.negative)
        texts = [records.string(record, column, where, options) for column in columns]
        if not all(text.strip() for text in texts):
            raise InputError(f"{where}: an empty text; fill it in or remove the row")
        return texts


# ---- Examples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """The data of a contrastive experiment: the pairs, the tokenizer, the length of a text."""

    source: Source
    """The pairs."""
    tokenizer: tokenizers.Spec
    """Encodes their texts."""
    length: int = 64
    """T, tokens in a text, special ones included; longer texts are truncated."""
    memory: int = 4_000_000_000
    """Bytes of decoded pictures that each host may hold; those of a larger set are decoded when they are read."""

    def __post_init__(self) -> None:
        if self.length < 3:
            raise InputError(f"data.length = {self.length} must be at least 3; two of them may be special tokens")


@dataclass(frozen=True, eq=False)
class Texts:
    """Encoded texts, with their special tokens."""

    tokens: np.ndarray
    """int32: all texts, concatenated."""
    starts: np.ndarray
    """int64 [texts + 1]: the position of each text's first token."""
    length: int
    pad: int
    truncated: int = 0
    """Texts that were longer than `length`."""

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [..., T], lengths int32 [...]) of the texts of these numbers."""
        lengths = (self.starts[numbers + 1] - self.starts[numbers]).astype(np.int32)
        inside = np.arange(self.length) < lengths[..., None]
        at = np.where(inside, self.starts[numbers][..., None] + np.arange(self.length), 0)
        return np.where(inside, self.tokens[at], self.pad).astype(np.int32), lengths


def encode(texts: Sequence[str], tokenizer: Any, length: int) -> Texts:
    """The tokens of texts, each with the special tokens that the model was trained with, truncated to `length`.

    Args:
      texts: any number.
      tokenizer: the tokenizer of the model.
      length: T.
    """
    before, after = around(tokenizer)
    room = length - len(before) - len(after)
    ids = tokenizer.encode_batch(list(texts))
    framed = [np.concatenate([before, one[:room], after]).astype(np.int32) for one in ids]
    starts = np.cumsum([0, *map(len, framed)])
    pad = tokenizer.special.pad or 0
    return Texts(np.concatenate(framed), starts, length, pad, sum(len(one) > room for one in ids))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures, decoded where they fit into memory."""

    held: Sequence[Left]
    preprocess: Preprocess
    decoded: np.ndarray | None = None

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The pixels uint8 [B, size, size, C] of the pictures of these numbers."""
        if self.decoded is not None:
            return self.decoded[numbers]
        return stacked([self.held[i] for i in numbers], self.preprocess)


def stacked(pictures: Sequence[Left], preprocess: Preprocess) -> np.ndarray:
    """The pixels uint8 [pictures, size, size, C]. Threads use all cores, since Pillow releases the GIL.

    Args:
      pictures: their paths, or their pixels.
      preprocess: how they are resized.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(lambda picture: pixels(picture, preprocess), pictures)))


def pixels(picture: Left, preprocess: Preprocess) -> np.ndarray:
    """The pixels uint8 [size, size, C] of a picture.

    Args:
      picture: its path, or its pixels.
      preprocess: how they are resized.

    Raises:
      InputError: it cannot be decoded.
    """
    data = picture if isinstance(picture, np.ndarray) else image_sources.read_bytes(Path(picture))
    try:
        return image_files.pixels(data, preprocess)
    except image_files.Broken as broken:
        raise InputError(f"{picture}: {broken}; repair or remove it") from None


@dataclass(frozen=True, eq=False)
class Examples(pipeline.StackedExamples):
    """Random-access examples of one side."""

    left: Texts | Pictures
    right: Texts
    negatives: Texts | None
    """The H negatives of pair e are the texts e H, ..., e H + H - 1."""
    count: int
    """H, the number of hard negatives of each pair."""
    order: Sequence[int]

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""
        rows_B = np.array([self.order[i] for i in numbers], np.int64)
        batch: dict[str, np.ndarray] = {}
        if isinstance(self.left, Pictures):
            batch["left"] = self.left.rows(rows_B)
        else:
            batch["left"], batch["left_lengths"] = self.left.rows(rows_B)
        batch["right"], batch["right_lengths"] = self.right.rows(rows_B)
        if self.negatives is not None:
            numbers_BH = rows_B[:, None] * self.count + np.arange(self.count)
            batch["negatives"], batch["negatives_lengths"] = self.negatives.rows(numbers_BH)
        return batch | {"weights": np.ones(len(rows_B), np.float32)}


class Reference(NamedTuple):
    """What retrieval over a set needs: which sides are the same, and the texts to show.

    Attributes:
      left_E: int [E]; rows of one number have the same left side, such as a picture with several captions.
      right_E: the same of the right sides.
      texts: the right sides.
    """

    left_E: np.ndarray
    right_E: np.ndarray
    texts: Sequence[str]


def reference(pairs: Pairs) -> Reference:
    """The `Reference` of a set of pairs.

    Args:
      pairs: the set.
    """

    def numbered(sides: Sequence[Any]) -> np.ndarray:
        seen: dict[Any, int] = {}
        return np.array([seen.setdefault(i if isinstance(one, np.ndarray) else one, i) for i, one in enumerate(sides)])

    texts = [pair.right for pair in pairs.held]
    return Reference(numbered([pair.left for pair in pairs.held]), numbered(texts), texts)


def examples(pairs: Pairs, data: Paired, tokenizer: Any, preprocess: Preprocess, *, seed: int | None) -> Examples:
    """The examples of one side.

    Args:
      pairs: the pairs of the side.
      data: the experiment's.
      tokenizer: encodes the texts.
      preprocess: the preprocessing of the pictures.
      seed: the seed of the endless order of training examples; None: each pair once, in order.
    """
    held, H = pairs.held, data.source.negatives
    if wrong := next((pair for pair in held if len(pair.negatives) != H), None):
        raise InputError(f"{wrong.where}: {len(wrong.negatives)} negatives, where each pair has {H}")
    left: Texts | Pictures
    if data.source.images:
        lefts = [pair.left for pair in held]
        fits = len(held) * math.prod(preprocess.shape) <= data.memory
        decoded = stacked(lefts, preprocess) if fits else None
        left = Pictures(lefts, preprocess, decoded)
    else:
        left = encode([str(pair.left) for pair in held], tokenizer, data.length)
    right = encode([pair.right for pair in held], tokenizer, data.length)
    negatives = encode([text for pair in held for text in pair.negatives], tokenizer, data.length) if H else None
    order = range(len(held)) if seed is None else pipeline.epochs(len(held), seed)
    return Examples(left, right, negatives, H, order)


def build_tokenizer(data: Paired, train: Pairs, given: Any) -> Any:
    """The tokenizer of the data.

    Args:
      data: the experiment's.
      train: the pairs that it is trained on, where it is one that is trained.
      given: the one that the parameters were trained with; None: the data decide.
    """
    return tokenizers.build(data.tokenizer, train.documents(), tokens.cache_dir(), given=given)
