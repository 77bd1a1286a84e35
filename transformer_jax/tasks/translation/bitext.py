"""Pairs of a source text and its target, such as translations or articles and summaries, from files and from TFDS.

    Lines        two plain-text files; line n of one is the translation of line n of the other
    Columns      CSV, TSV and JSONL files with named columns, or with numbered ones if there is no header
    TfdsPairs    a prepared data set of TensorFlow Datasets, read without TensorFlow

A user's own source implements `Source`. Every `for` reads the pairs again, one by one, so that one is in memory.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from transformer_jax import hf
from transformer_jax.data import records, remote, source_files, text_files
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError

OPTIONS = "--data.source.source and --data.source.target"


class Pair(NamedTuple):
    """A source text and its target; `where` names the pair in messages and is unique; `part`, of a mixture, counts its
    sources."""

    source: str
    target: str
    where: str
    part: int = 0


@dataclass(frozen=True)
class Pairs:
    """The pairs of one side. Every `for` reads them again."""

    origin: str
    """Names the pairs in messages: "train.en and train.de"."""
    read: Callable[[], Iterator[Pair]]
    identity: Callable[[], str]
    """A hash that changes with the texts; see `source_files.identity`."""
    nbytes: int
    """An estimate of the bytes of text, for progress bars."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Counts of what was skipped, after all pairs have been read: {"blank lines": 2}."""
    names: tuple[str, ...] = ()
    """The names of the parts of a mixture; (): there are none."""
    rates: tuple[float, ...] = ()
    """The share of the rows that each part gives."""

    def __iter__(self) -> Iterator[Pair]:
        return self.read()


def in_memory(pairs: Iterable[Pair], origin: str) -> Pairs:
    """Pairs that are in memory.

    Args:
      pairs: the pairs.
      origin: names them in messages.
    """
    held = list(pairs)
    return Pairs(
        origin=origin,
        read=lambda: iter(held),
        identity=lambda: hashlib.sha256(json.dumps([pair[:2] for pair in held]).encode()).hexdigest(),
        nbytes=sum(len(pair.source) + len(pair.target) for pair in held),
    )


# ---- The sources ---------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A source of pairs: a frozen dataclass. A class that inherits from this has its default."""

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


@dataclass(frozen=True)
class Lines:
    """Plain text in two files for each side, (source file, target file), as in WMT, IWSLT and Multi30k."""

    train: tuple[str, str]
    """The training files, such as ("train.en", "train.de")."""
    validation: tuple[str, ...] = ()
    """The files that choose the checkpoint; empty: a part of `train`."""
    test: tuple[str, ...] = ()
    """The files that the chosen checkpoint is reported on; empty: none."""
    validation_fraction: float = 0.05
    """The share of pairs held out if `validation` is empty."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            files = getattr(self, name)
            if isinstance(files, str) or len(files) not in ((2,) if name == "train" else (0, 2)):
                raise InputError(f"Lines.{name} = {files!r} must name two files, the source and the target")
        source_files.check_fraction(self)

    def of_files(self, files: tuple[str, ...]) -> "Lines | Columns":
        return of_files(files)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: files that are absent, empty, the same, or of different numbers of lines.
        """
        own = getattr(self, side)
        source, target = (_file(name, side) for name in own or self.train)
        if source.samefile(target):
            raise InputError(f"{source} is both the source and the target ({side}); name the file of the translation")
        counts = [sum(1 for _ in text_files.lines(path)) for path in (source, target)]
        for path, count in zip((source, target), counts, strict=True):
            if not count:
                raise InputError(f"{path} is empty ({side}); there must be a line for each line of the other side")
        if counts[0] != counts[1]:
            raise InputError(
                f"{source} has {counts[0]:,} lines but {target} has {counts[1]:,} ({side}); line n of one must be the "
                "translation of line n of the other: find the missing line, or use the published files"
            )

        def read() -> Iterator[Pair]:
            both = zip(text_files.lines(source), text_files.lines(target), strict=True)
            for number, (one, other) in enumerate(both, 1):
                yield Pair(one, other, f"{source}:{number} and {target}:{number}")

        files = [(path.name, path) for path in (source, target)]
        return _side_of(self, side, f"{source} and {target} ({side})", read, files, "text_files lines")


@dataclass(frozen=True)
class Columns:
    """Files of pairs: .csv, .tsv, .jsonl, .parquet, .arrow and WebDataset's .tar (`data.records`).

    The first line of .csv and .tsv names the columns, unless columns are given by number ("0", "1"). Elsewhere
    "translation.en" is the "en" of the object "translation".
    """

    train: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs."""
    validation: tuple[str, ...] = ()
    """Files that choose the checkpoint; empty: a part of `train`."""
    test: tuple[str, ...] = ()
    """Files that the chosen checkpoint is reported on; empty: none."""
    source: str = "source"
    """The column of the source text, by name or by number from 0."""
    target: str = "target"
    """The column of the target text."""
    validation_fraction: float = 0.05
    """The share of pairs held out if `validation` is empty."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "train", "validation", "test")
        if self.source == self.target or self.source.isdecimal() != self.target.isdecimal():
            raise InputError(
                f"columns {self.source!r} and {self.target!r}: give two, both by name, or both by number from 0 if the "
                "files have no header"
            )

    def of_files(self, files: tuple[str, ...]) -> "Lines | Columns":
        return of_files(files, self.source, self.target)

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The names of the columns that are a model's input."""
        return (self.source,)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: a path that names no file.
        """
        paths = getattr(self, side) or self.train
        skipped: Counter[str] = Counter()
        files = source_files.find_files(paths, side, records.SUFFIXES, skipped)

        def read() -> Iterator[Pair]:
            blank: Counter[str] = Counter()  # counted by every reading
            yield from (pair for _, path in files for pair in self._read(path, blank))
            skipped.update(blank - skipped)

        how = f"text_files columns {self.source} {self.target}"
        return _side_of(self, side, f"{', '.join(paths)} ({side})", read, files, how, skipped)

    def _read(self, path: remote.File, blank: Counter[str]) -> Iterator[Pair]:
        columns = (self.source, self.target)
        for line, record in records.read(path, headed=not self.source.isdecimal(), skipped=blank, columns=columns):
            where = f"{path}:{line}"
            source, target = (records.string(record, c, where, OPTIONS) for c in columns)
            yield Pair(source, target, where)


def of_files(files: tuple[str, ...], source: str = "source", target: str = "target") -> Lines | Columns:
    """The source that reads these files on both sides: tables by their columns, else two files of lines.

    Args:
      files: tables; or the file of the source texts, then that of the target texts.
      source: the column of the source text.
      target: the column of the target text.
    """
    if any(text_files.suffix(file) in records.SUFFIXES for file in files):
        return Columns(files, files, source=source, target=target)
    return Lines(files, files)  # type: ignore[arg-type]  # which refuses another number of files


@dataclass(frozen=True)
class TfdsPairs:
    """A prepared TFDS data set in array_record format, read without TensorFlow.

    A translation set (wmt14_translate/de-en, ted_hrlr_translate, ...) has a feature for each language. For other sets
    name the features: source="article", target="highlights" for cnn_dailymail.
    """

    name: str
    """The TFDS name: "wmt14_translate/de-en", "cnn_dailymail:3.4.0"."""
    source: str = "en"
    """The feature of the source text; "translation.en" is the "en" of the feature "translation"."""
    target: str = "de"
    """The feature of the target text."""
    train: str = "train"
    """The training split. Sums such as "train+validation" and slices such as "train[:90%]" work."""
    validation: str = "validation"
    """The split that chooses the checkpoint."""
    test: str = "test"
    """The split that the chosen checkpoint is reported on; empty: none."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise InputError(f"TfdsPairs: {self.source!r} is both the source and the target; name two features")

    def of_files(self, files: tuple[str, ...]) -> Lines | Columns:
        return of_files(files)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: a data set, split or feature that is not there.
        """
        from transformer_jax.data import tfds_store

        split = getattr(self, side)
        examples, full_name, files = tfds_store.open_split(self.name, split, self.data_dir)

        def read() -> Iterator[Pair]:
            for where, example in tfds_store.examples(examples, f"TFDS {full_name}:{split}"):
                source, target = (
                    tfds_store.text_of(*records.within(example, f, where, OPTIONS), where)
                    for f in (self.source, self.target)
                )
                yield Pair(source, target, where)

        return Pairs(
            origin=f"TFDS {full_name} ({split})",
            read=read,
            identity=lambda: source_files.identity(files, f"tfds {full_name} {split} {self.source} {self.target}"),
            nbytes=sum(path.stat().st_size for _, path in files),
        )


# ---- Files and fields ----------------------------------------------------------------------------------------------


def _side_of(
    source: Any,
    side: Side,
    origin: str,
    read: Callable[[], Iterator[Pair]],
    files: source_files.Files,
    how: str,
    skipped: Mapping[str, int] | None = None,
) -> Pairs:
    """The pairs of a side. Without validation files, pairs are split by a hash of the source text.

    So a source text is never on both sides, not even with another target.
    """
    below, part = source.validation_fraction, side != "test" and not source.validation

    def chosen() -> Iterator[Pair]:
        return (pair for pair in read() if (source_files.position(pair.source) < below) == (side == "validation"))

    size = sum(remote.size(path) for _, path in files)
    return Pairs(
        origin=origin,
        read=chosen if part else read,
        identity=lambda: source_files.identity(files, f"{how} {(side, below) if part else ''}"),
        nbytes=int(size * (below if side == "validation" else 1 - below)) if part else size,
        skipped={} if skipped is None else skipped,
    )


def _file(name: str, side: Side) -> Path:
    path = hf.here(name)
    if not path.is_file():
        held = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{name} {held} (the {side} pairs; looked in {Path.cwd()}); name a file of text")
    return path
