"""Labelled text as random-access examples for classification and regression.

An example is a fixed shape:

    {"tokens": int32[T], "types": int32[T] (pairs only), "lengths": int32[], "labels": int32[], "weights": float32[]}

The tokens are [CLS] text [SEP], or [CLS] text [SEP] text_b [SEP] with types 0 up to the first [SEP] and 1 after it
(Devlin et al. 2019, section 3), then padding. A label is the number of its name, or a float32 value in regression.

Letters: B rows, T length.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transformer_jax.data import pipeline, records, tables, tokenizers, tokens
from transformer_jax.data.tables import Row, Rows, Side, Source
from transformer_jax.errors import InputError

NUMBER = re.compile(r"[+-]?[0-9]+([.][0-9]+)?")


@dataclass(frozen=True)
class LabelledText:
    """The data of a classification experiment: the rows, the tokenizer, the length of an example."""

    source: Source
    """The labelled rows."""
    tokenizer: tokenizers.Spec
    """Encodes their texts."""
    length: int = 128
    """Tokens in an example, special ones included. Longer texts are truncated, of a pair the longer one first."""

    def __post_init__(self) -> None:
        if self.length < 8:
            raise InputError(f"data.length = {self.length} must be at least 8; up to 4 of them are special tokens")


@dataclass(frozen=True, eq=False)
class Examples(pipeline.StackedExamples):
    """Random-access examples: `examples[i]` is example i."""

    tokens: np.ndarray
    """int32: the tokens of all rows, concatenated, special ones included."""
    starts: np.ndarray
    """int64 [rows + 1]: the position of each row's first token."""
    firsts: np.ndarray | None
    """int32 [rows]: the number of tokens of type 0 in each row; None for single texts."""
    labels: np.ndarray
    """int32 or float32 [rows]."""
    order: Sequence[int]
    """Example -> row."""
    length: int
    truncated: int
    """Rows that were longer than `length`."""

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""
        rows_B = np.array([self.order[i] for i in numbers], np.int64)
        length_B = (self.starts[rows_B + 1] - self.starts[rows_B]).astype(np.int32)
        column_T = np.arange(self.length)
        inside_BT = column_T < length_B[:, None]
        at_BT = np.where(inside_BT, self.starts[rows_B][:, None] + column_T, 0)
        batch = {"tokens": np.where(inside_BT, self.tokens[at_BT], 0).astype(np.int32)}
        if self.firsts is not None:
            batch["types"] = (inside_BT & (column_T >= self.firsts[rows_B][:, None])).astype(np.int32)
        return batch | {
            "lengths": length_B,
            "labels": self.labels[rows_B],
            "weights": np.ones(len(rows_B), np.float32),
        }


@dataclass(frozen=True, eq=False)
class Labelled:
    """A prepared LabelledText. `train` is endless."""

    tokenizer: tokenizers.Tokenizer
    train: Examples
    validation: Examples
    test: Examples | None
    skipped: dict[str, str]
    """What was skipped on each side, as text: {"train_skipped": "2 blank lines"}."""


def prepare(
    data: LabelledText, labels: Sequence[str], *, seed: int, tokenizer: tokenizers.Tokenizer | None = None
) -> Labelled:
    """The tokenised examples of every side, in memory.

    Args:
      data: the rows, the tokenizer and the length.
      labels: the names; (): labels are numbers.
      seed: the seed of the order of training examples.
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a bad row, or a tokenizer without [CLS] and [SEP].
    """
    sides: tuple[Side, ...] = ("train", "validation", "test") if data.source.has_test else ("train", "validation")
    rows = {side: data.source.rows(side) for side in sides}
    tables.refuse_empty(list(rows.values()))
    numbers = {side: [_number(row, labels) for row in rows[side]] for side in sides}  # before a tokenizer is trained
    tokenizer = tokenizers.build(data.tokenizer, rows["train"].documents(), tokens.cache_dir(), given=tokenizer)
    made = {side: _examples(rows[side], numbers[side], tokenizer, labels, data) for side in sides}
    train = dataclasses.replace(made["train"], order=pipeline.epochs(len(rows["train"]), seed))
    skipped = {f"{side}_skipped": records.counted(r.skipped) for side, r in rows.items() if r.skipped}
    return Labelled(tokenizer, train, made["validation"], made.get("test"), skipped)


def _examples(
    rows: Rows, numbers: Sequence[float], tokenizer: tokenizers.Tokenizer, labels: Sequence[str], data: LabelledText
) -> Examples:
    pairs, special = data.source.pairs, around(tokenizer)
    texts = tokenizer.encode_batch([row.text for row in rows])
    texts_b = tokenizer.encode_batch([row.text_b or "" for row in rows]) if pairs else [None] * len(rows)
    framed = [frame(a, b, special, data.length) for a, b in zip(texts, texts_b, strict=True)]
    return Examples(
        tokens=np.concatenate([f.ids for f in framed]),
        starts=np.cumsum([0, *(len(f.ids) for f in framed)]),
        firsts=np.array([f.first for f in framed], np.int32) if pairs else None,
        labels=np.array(numbers, np.int32 if labels else np.float32),
        order=range(len(rows)),
        length=data.length,
        truncated=sum(f.truncated for f in framed),
    )


def _number(row: Row, labels: Sequence[str]) -> float:
    """A label as the target: its position among the names, or itself in regression.

    A number is compared by value: pandas writes "1.0" for 1. Where no name is a number, it is a position.
    """
    text = str(row.label).strip()
    if not labels:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{row.where}: label {text!r} is not a number, and task.labels = () asks for numbers")
        return value
    if text in labels:
        return labels.index(text)
    values = [float(name) if NUMBER.fullmatch(name) else None for name in labels]
    numbers = values if any(value is not None for value in values) else [float(i) for i in range(len(labels))]
    if NUMBER.fullmatch(text) and float(text) in numbers:
        return numbers.index(float(text))
    raise InputError(
        f"{row.where}: label {text!r} is not in task.labels ({', '.join(labels)}); mend it or add the name"
    )


class Around(NamedTuple):
    """The special tokens before a text, between the two of a pair, and at the end, int32."""

    cls: np.ndarray
    between: np.ndarray
    sep: np.ndarray


def around(tokenizer: tokenizers.Tokenizer) -> Around:
    """The special tokens of a tokenizer: [CLS], [SEP] and [SEP]. With RoBERTa's <s>, a pair has two separators.

    Args:
      tokenizer: any.

    Raises:
      InputError: it has no [CLS] or [SEP].
    """
    special = getattr(tokenizer, "special", None)
    if special is None or special.cls is None or special.sep is None:
        raise InputError(
            "the tokenizer has no tokens for the beginning and the end of a text ([CLS] and [SEP], or <s> and </s>); "
            "train one that has, such as TrainWordPiece(), or use the one of a checkpoint with --init-from"
        )
    cls, sep = np.array([special.cls], np.int32), np.array([special.sep], np.int32)
    return Around(cls, np.repeat(sep, 2) if tokenizer.decode(cls).strip() == "<s>" else sep, sep)


class Framed(NamedTuple):
    """A text or a pair with its special tokens.

    Attributes:
      ids: int32.
      first: how many of them have type 0.
      truncated: whether it was too long.
    """

    ids: np.ndarray
    first: int
    truncated: bool


def frame(a: np.ndarray, b: np.ndarray | None, special: Around, length: int) -> Framed:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], of at most `length` tokens.

    In a pair that is too long, the longer text is truncated until both are equally long, then both alternately, as in
    BERT's run_classifier.py (`_truncate_seq_pair`).

    Args:
      a: ids of the text.
      b: ids of the second text; None: there is none.
      special: the special tokens that `around` returned.
      length: the most tokens.
    """
    if b is None:
        ids = np.concatenate([special.cls, a[: length - 2], special.sep])
        return Framed(ids, len(ids), len(a) + 2 > length)
    room = length - 2 - len(special.between)
    keep_b = min(len(b), max(room - len(a), room // 2))
    keep_a = min(len(a), room - keep_b)
    ids = np.concatenate([special.cls, a[:keep_a], special.between, b[:keep_b], special.sep])
    return Framed(ids, 1 + keep_a + len(special.between), len(a) + len(b) > room)
