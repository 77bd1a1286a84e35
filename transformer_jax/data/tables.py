"""Rows of labelled text, from files and from TFDS. A row is a text, or a pair of texts, and a label.

    Table          files of records with named columns, or with numbered ones if a CSV or TSV file has no header
    TfdsTable      a prepared data set of TensorFlow Datasets, read without TensorFlow

A user's own source implements `Source`. Rows are read into memory and checked one by one; an error names the file and
the line.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from transformer_jax.data import records, remote, source_files, sources
from transformer_jax.errors import InputError

Side = Literal["train", "validation", "test"]
OPTIONS = "--data.source.text, --data.source.text-b and --data.source.label"


class Row(NamedTuple):
    """A labelled text, or pair of texts; `where` names it in messages: "a.csv:17"."""

    text: str
    text_b: str | None
    label: str | int | float
    where: str


@dataclass(frozen=True)
class Rows:
    """The rows of one side: a sequence."""

    origin: str
    """Names the rows in messages: "reviews.csv (train)"."""
    held: Sequence[Row]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Counts of what was skipped: {"blank lines": 2}."""

    def __post_init__(self) -> None:
        if not self.held:
            raise InputError(f"{self.origin}: no rows; add some, or name another file")

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, i: int) -> Row:
        return self.held[i]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.held)

    def identity(self) -> str:
        """A hash that changes with the texts and labels."""
        return hashlib.sha256(json.dumps([row[:3] for row in self.held]).encode()).hexdigest()

    def documents(self) -> sources.Documents:
        """The texts without labels, to train a tokenizer on."""

        def read() -> Iterator[tuple[str, str]]:
            for row in self.held:
                yield from ((row.where, text) for text in row[:2] if text is not None)

        nbytes = sum(len(row.text) + len(row.text_b or "") for row in self.held)
        return sources.Documents(self.origin, read, self.identity, nbytes)


def refuse_empty(sides: Sequence[Rows]) -> None:
    """Refuses rows with an empty text; one message names them all.

    Args:
      sides: the rows of each side.

    Raises:
      InputError: a row without a text, or without the second text of a pair.
    """
    empty = [
        row.where
        for rows in sides
        for row in rows
        if not row.text.strip() or (row.text_b is not None and not row.text_b.strip())
    ]
    if empty:
        are = f"{len(empty):,} rows have" if len(empty) > 1 else "a row has"
        raise InputError(f"{are} an empty text: {records.places(empty)}; fill in the text or remove the row")


# ---- The sources ---------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A source of labelled rows: a frozen dataclass. A class that inherits from this has its defaults."""

    @property
    def pairs(self) -> bool:
        """Whether a row has two texts."""
        return False

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return False

    def rows(self, side: Side) -> Rows:
        """The rows of a side.

        Args:
          side: "train", "validation" or, with `has_test`, "test".
        """
        ...


@dataclass(frozen=True)
class Table:
    """Files of rows: .csv, .tsv, .jsonl, .parquet, .arrow and WebDataset's .tar (`records`).

    The first line of .csv and .tsv names the columns, unless columns are given by number ("0", "1"). Without
    `validation`, each row is split by a hash of its text, so duplicates are on one side.
    """

    train: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs."""
    validation: tuple[str, ...] = ()
    """Files that choose the checkpoint; empty: a part of `train`."""
    test: tuple[str, ...] = ()
    """Files that the chosen checkpoint is reported on; empty: none."""
    text: str = "text"
    """The column of the text, by name or by number from 0."""
    text_b: str = ""
    """The column of the second text of a pair; empty: single texts."""
    label: str = "label"
    """The column of the label."""
    validation_fraction: float = 0.1
    """The share of rows held out if `validation` is empty."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "train", "validation", "test")
        if len({name.isdecimal() for name in self._columns}) > 1:
            raise InputError(
                f"columns {', '.join(map(repr, self._columns))}: give all of them by name, or all by number from 0 "
                "if the file has no header"
            )

    def of_files(self, files: tuple[str, ...]) -> "Table":
        return dataclasses.replace(self, train=files, validation=files, test=())

    @property
    def pairs(self) -> bool:
        """Whether a row has two texts."""
        return bool(self.text_b)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The names of the columns that are a model's input."""
        return (self.text,) + ((self.text_b,) if self.text_b else ())

    @property
    def _columns(self) -> tuple[str, ...]:
        return (self.text, self.label) + ((self.text_b,) if self.text_b else ())

    def rows(self, side: Side) -> Rows:
        """The rows of a side.

        Args:
          side: "train", "validation" or "test".
        """
        own = getattr(self, side)
        skipped: Counter[str] = Counter()
        files = source_files.find_files(own or self.train, side, records.SUFFIXES, skipped)
        held = [row for _, path in files for row in self._read(path, skipped)]
        if side != "test" and not self.validation:
            wanted, below = side == "validation", self.validation_fraction
            held = [r for r in held if (source_files.position(f"{r.text}\0{r.text_b}") < below) == wanted]
        return Rows(f"{', '.join(own or self.train)} ({side})", held, skipped)

    def _read(self, path: remote.File, skipped: Counter[str]) -> Iterator[Row]:
        named = not self.text.isdecimal()
        for line, record in records.read(path, headed=named, skipped=skipped, columns=self._columns):
            where = f"{path}:{line}"
            text = records.string(record, self.text, where, OPTIONS)
            text_b = records.string(record, self.text_b, where, OPTIONS) if self.text_b else None
            holder, name = records.within(record, self.label, where, OPTIONS)
            label = holder[name]
            if not isinstance(label, str | int | float) or isinstance(label, bool):
                raise InputError(f"{where}: column {self.label!r} holds {json.dumps(label)}, not a name or a number")
            yield Row(text, text_b, label, where)


@dataclass(frozen=True)
class TfdsTable:
    """A prepared TFDS data set in array_record format: glue/*, imdb_reviews, your own."""

    name: str
    """The TFDS name: "glue/mrpc", "imdb_reviews"."""
    text: str = "sentence"
    """The feature that holds the text."""
    text_b: str = ""
    """The feature of the second text of a pair; empty: single texts."""
    label: str = "label"
    """The feature of the label. The names of a ClassLabel are the labels."""
    train: str = "train"
    """The training split. Slices such as "train[:90%]" work, for a set without a validation split."""
    validation: str = "validation"
    """The split that chooses the checkpoint."""
    test: str = ""
    """The split that the chosen checkpoint is reported on; empty: none (GLUE's test labels are not public)."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def of_files(self, files: tuple[str, ...]) -> Table:
        return Table(files, files, text=self.text, text_b=self.text_b, label=self.label)

    @property
    def pairs(self) -> bool:
        """Whether a row has two texts."""
        return bool(self.text_b)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    def rows(self, side: Side) -> Rows:
        """The rows of a side.

        Args:
          side: "train", "validation" or "test".
        """
        from transformer_jax.data import tfds_store

        split = getattr(self, side)
        source, full_name, _ = tfds_store.open_split(self.name, split, self.data_dir)
        features = source.dataset_info.features
        tfds_store.need_features(features, full_name, {"label": self.label})
        names = getattr(features[self.label], "names", None)
        held = []
        for where, example in tfds_store.examples(source, f"TFDS {full_name}:{split}"):
            label = np.asarray(example[self.label]).item()
            if names is not None:
                label = tfds_store.class_name(names, label, where)
            text = tfds_store.text_of(example, self.text, where)
            text_b = tfds_store.text_of(example, self.text_b, where) if self.text_b else None
            held.append(Row(text, text_b, label.decode() if isinstance(label, bytes) else label, where))
        return Rows(f"TFDS {full_name} ({split})", held)
