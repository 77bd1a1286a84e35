"""Sources of text: frozen dataclasses whose `.documents("train" | "validation")` can be read repeatedly.

    Embedded     the standard library of the running Python: real code and prose on every machine, no network
    TextFiles    plain text: files, folders, globs
    Records      a column of records: JSONL, CSV, TSV, Parquet, Arrow, WebDataset
    Tfds         a prepared text data set of TensorFlow Datasets, read without TensorFlow

Files are on this machine or at a URL (`remote`), compressed or not, and are read as a stream: a corpus is never in
memory as a whole. A plain text file comes in pieces that end at line ends; consecutive pieces with one name are one
document.

A document is either training or validation text. If a source has no validation set of its own, a hash of the document's
relative path (of a record, of its text) decides. So the split depends neither on the machine nor on the other files.
"""

import functools
import hashlib
import itertools
import json
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformer_jax.data import columnar, records, remote, source_files, text_files
from transformer_jax.errors import InputError

Split = Literal["train", "validation"]

RECORDS = (*records.SUFFIXES, ".json")
PART = 1 << 26  # bytes: of a larger Parquet file, row groups of so many are a part


@dataclass(frozen=True)
class Part:
    """Some of the documents of a side, which can be read without the others."""

    name: str
    """The file, and its row groups where it is some of them."""
    nbytes: int
    """An estimate of the bytes of text."""
    read: Callable[[], Iterator[tuple[str, str]]]
    dropped: Counter[str] = field(default_factory=Counter)
    """What the last reading dropped, by reason."""


@dataclass(frozen=True)
class Documents:
    """The (name, text) pairs of one side of a corpus. Every `for` reads them again.

    Consecutive pairs with the same name are pieces of one document.
    """

    origin: str
    """Names the text in messages: "the text files of books/ (train)"."""
    read: Callable[[], Iterator[tuple[str, str]]]
    identity: Callable[[], str]
    """A hash that changes with the text; it reads at most `source_files.READ_TO_IDENTIFY` bytes."""
    nbytes: int
    """An estimate of the bytes of text, for progress bars."""
    parts: Callable[[], list[Part]] | None = None
    """The same documents in parts, in order; None: they cannot be read in parts."""
    deduplicate: bool = False
    """Whether documents are dropped whose text was seen before, when they are tokenised."""
    dropped: Counter[str] = field(default_factory=Counter)
    """What the last reading dropped, by reason."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self.read()


def in_memory(pairs: Iterable[tuple[str, str]], origin: str = "the documents given") -> Documents:
    """Documents from (name, text) pairs in memory.

    Args:
      pairs: the names and texts.
      origin: names them in messages.
    """
    held = list(pairs)
    return Documents(
        origin=origin,
        read=lambda: iter(held),
        identity=lambda: hashlib.sha256(json.dumps(held).encode()).hexdigest(),
        nbytes=sum(len(text) for _, text in held),
    )


def whole(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(name, text) of each document, its pieces joined.

    Args:
      documents: (name, piece).

    Raises:
      InputError: a document of more than `text_files.LONGEST_TEXT` characters.
    """
    for name, pieces in itertools.groupby(documents, key=lambda pair: pair[0]):
        held, size = [], 0
        for _, piece in pieces:
            held.append(piece)
            size += len(piece)
            if size > text_files.LONGEST_TEXT:
                raise InputError(f"{name} has more than {text_files.LONGEST_TEXT:,} characters; divide the file")
        yield name, "".join(held)


# ---- The sources ---------------------------------------------------------------------------------------------------

# Tests, installed packages and the build's settings differ by machine. pydoc_data is one generated file, so large that
# it would be half of the validation set.
NOT_EMBEDDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


@dataclass(frozen=True)
class Embedded:
    """The standard library of the running Python, about 11 MB in 700 files: a corpus that every machine has.

    The text differs between Python versions, but a file is always on the same side.
    """

    def of_files(self, files: tuple[str, ...]) -> "TextFiles | Records":
        return of_files(files)

    def documents(self, split: Split) -> Documents:
        """The Python files of a side.

        Args:
          split: "train" or "validation".
        """
        root = Path(sysconfig.get_path("stdlib"))
        files: list[tuple[str, Path]] = []
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f not in NOT_EMBEDDED and not f.startswith(("config-", "."))]
            found = (Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata"))
            files += [(path.relative_to(root).as_posix(), path) for path in found]
        files = [file for file in files if source_files.is_utf8(file[1])]
        if not files:
            raise InputError(
                f"no .py files under {root}: this Python has no source files of its standard library; use TextFiles "
                "with text of your own"
            )
        held = {name for name, _ in files if source_files.position(name) < 0.07}
        return _file_documents(_side(sorted(files), held, split), f"the Python standard library at {root} ({split})")


@dataclass(frozen=True)
class TextFiles:
    """Plain text files.

    Without `validation`, a single file is split: its last `validation_fraction` of characters validates (nanoGPT's
    split). Several files are split by a hash of their paths, relative to the folder or the fixed part of the glob.
    """

    paths: tuple[str, ...]
    """Files, globs, or folders with all the files below them that are not hidden."""
    validation: tuple[str, ...] = ()
    """Files, folders or globs to validate on; empty: a part of `paths`."""
    validation_fraction: float = 0.1
    """The share of `paths` held out if `validation` is empty."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "paths", "validation")

    def of_files(self, files: tuple[str, ...]) -> "TextFiles | Records":
        return of_files(files)

    def documents(self, split: Split) -> Documents:
        """The text of a side.

        Args:
          split: "train" or "validation".
        """
        origin = f"the text files of {', '.join(self.paths)} ({split})"
        own = bool(self.validation)
        files = source_files.find_files(self.validation if own and split == "validation" else self.paths, split)
        _say_if_records(files)
        if own:
            return _file_documents(files, origin)
        if len(files) == 1:
            return _one_file(files, self.validation_fraction, split, origin)
        # The hashes of a few files may all be above the fraction, so the file with the lowest hash always validates.
        lowest = min(source_files.position(name) for name, _ in files)
        held = {name for name, _ in files if source_files.position(name) <= max(lowest, self.validation_fraction)}
        return _file_documents(_side(files, held, split), origin)


@dataclass(frozen=True)
class Records:
    """Files of records with a column of text: .jsonl, .csv, .tsv, .parquet, .arrow and WebDataset's .tar.

    Each record is a document. Empty texts are skipped. Without `validation`, each text is split by its own hash, so
    duplicates are on one side.
    """

    paths: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs: gs://, s3://, hf://datasets/, https://."""
    field: str = "text"
    """The column or key that holds the text; "json.text" is "text" in the object "json"."""
    validation: tuple[str, ...] = ()
    """Files, folders or globs to validate on; empty: a part of `paths`."""
    validation_fraction: float = 0.01
    """The share of texts held out if `validation` is empty."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "paths", "validation")

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The names of the columns that are a model's input."""
        return (self.field,)

    def of_files(self, files: tuple[str, ...]) -> "TextFiles | Records":
        return of_files(files, self.field)

    def documents(self, split: Split) -> Documents:
        """The texts of a side.

        Args:
          split: "train" or "validation".
        """
        own = bool(self.validation)
        paths = self.validation if own and split == "validation" else self.paths
        files = source_files.find_files(paths, split, RECORDS)
        fraction = self.validation_fraction

        def read(name: str, path: remote.File, groups: range | None = None) -> Iterator[tuple[str, str]]:
            for number, record in self._records(path, groups):
                text = records.string(record, self.field, f"{path}:{number}", "--data.source.field")
                if own or (source_files.position(text) < fraction) == (split == "validation"):
                    yield f"{name}:{number}", text

        share = 1.0 if own else fraction if split == "validation" else 1 - fraction

        def parts() -> list[Part]:
            return [
                Part(label, int(size * share), functools.partial(read, name, path, groups))
                for name, path in files
                for label, size, groups in _pieces(name, path)
            ]

        return Documents(
            origin=f"field {self.field!r} of {', '.join(self.paths)} ({split})",
            read=lambda: (pair for name, path in files for pair in read(name, path)),
            identity=lambda: source_files.identity(files, f"jsonl {self.field} {own or (split, fraction)}"),
            nbytes=int(sum(remote.size(path) for _, path in files) * share),
            parts=parts,
        )

    def _records(self, path: remote.File, groups: range | None) -> Iterator[tuple[int, dict[str, Any]]]:
        if text_files.suffix(path) not in records.SUFFIXES:  # a file of JSON lines may have any name
            return records.json_lines(path, Counter())
        return records.read(path, headed=not self.field.isdecimal(), columns=(self.field,), groups=groups)


Jsonl = Records  # its name in the config.json of runs before Parquet and the other formats were read


def _pieces(name: str, path: remote.File) -> Iterator[tuple[str, int, range | None]]:
    """(name, bytes, row groups) of the parts of a file: the file, or of a large Parquet file some of its row groups."""
    if text_files.suffix(path) != ".parquet" or remote.size(path) <= PART:
        yield name, remote.size(path), None
        return
    first, held = 0, 0
    sizes = columnar.row_groups(path)
    for group, size in enumerate(sizes):
        held += size
        if held >= PART or group == len(sizes) - 1:
            yield f"{name}:{first}-{group}", held, range(first, group + 1)
            first, held = group + 1, 0


@dataclass(frozen=True)
class Tfds:
    """A prepared TFDS data set in array_record format, read without TensorFlow."""

    name: str
    """The TFDS name: "tiny_shakespeare", "c4/en", "c4/en:3.1.0"."""
    field: str = "text"
    """The feature that holds the text."""
    train: str = "train"
    """The training split; sums such as "train+unsupervised" and slices such as "train[:90%]" work."""
    validation: str = "validation"
    """The validation split."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def of_files(self, files: tuple[str, ...]) -> "TextFiles | Records":
        return of_files(files, self.field)

    def documents(self, split: Split) -> Documents:
        """The texts of a side.

        Args:
          split: "train" or "validation".
        """
        from transformer_jax.data import tfds_store

        wanted = self.train if split == "train" else self.validation
        source, full_name, files = tfds_store.open_split(self.name, wanted, self.data_dir)
        origin = f"TFDS {full_name} ({wanted})"

        def read() -> Iterator[tuple[str, str]]:
            for name, example in tfds_store.examples(source, f"{full_name}:{wanted}"):
                yield name, tfds_store.text_of(example, self.field, origin)

        return Documents(
            origin=origin,
            read=read,
            identity=lambda: source_files.identity(files, f"tfds {full_name} {wanted} {self.field}"),
            nbytes=sum(path.stat().st_size for _, path in files),
        )


def _say_if_records(files: source_files.Files) -> None:
    """Prints that files of records are read as plain text, where the text of each record may be meant."""
    found = [path for _, path in files if text_files.suffix(path) in (".jsonl", ".csv", ".tsv")]
    if found:
        print(
            f"{len(found):,} files of records are read as plain text, such as {found[0]}; the source Records reads the "
            "text of each record, and Table labelled ones",
            file=sys.stderr,
        )


def of_files(files: tuple[str, ...], field: str = "text") -> TextFiles | Records:
    """The source that reads these files on both sides: `Records` where a name says so, else `TextFiles`.

    Args:
      files: files, folders or globs.
      field: the key that holds the text.
    """
    if any(text_files.suffix(file) in RECORDS for file in files):
        return Records(files, field, validation=files)
    return TextFiles(files, validation=files)


# ---- Reading files -------------------------------------------------------------------------------------------------


def _side(files: source_files.Files, held: set[str], split: Split) -> source_files.Files:
    return [(name, path) for name, path in files if (name in held) == (split == "validation")]


def _file_documents(files: source_files.Files, origin: str) -> Documents:
    if not files:
        raise InputError(f"{origin}: no files; give more files, or name the validation files")
    return Documents(
        origin=origin,
        read=lambda: (pair for name, path in files for pair in _whole(name, path)),
        identity=lambda: source_files.identity(files, "text_files"),
        nbytes=sum(remote.size(path) for _, path in files),
        parts=lambda: [Part(n, remote.size(path), functools.partial(_whole, n, path)) for n, path in files],
    )


def _whole(name: str, path: remote.File) -> Iterator[tuple[str, str]]:
    return ((name, piece) for piece in text_files.pieces(path))


def _one_file(files: source_files.Files, fraction: float, split: Split, origin: str) -> Documents:
    """One side of a single file: the characters before or after int(characters * (1 - fraction)), as in nanoGPT."""
    ((name, path),) = files

    def read() -> Iterator[tuple[str, str]]:
        border = int(sum(map(len, text_files.pieces(path))) * (1 - fraction))
        at = 0
        for piece in text_files.pieces(path):
            side = piece[: max(border - at, 0)] if split == "train" else piece[max(border - at, 0) :]
            at += len(piece)
            if side:
                yield name, side

    share = 1 - fraction if split == "train" else fraction
    return Documents(
        origin,
        read,
        lambda: source_files.identity(files, f"text_files {split} {fraction}"),
        nbytes=int(remote.size(path) * share),
    )
