"""Lines and records of text files in UTF-8, read as they are asked for: however large a file is, little of it is held.

    lines    plain text: "\\n" alone ends a line (not U+2028, not a form feed), a "\\r" before it belongs to the end
    read     .csv (quoted as RFC 4180 says), .tsv (no quoting: a TAB always ends a field) and .jsonl, by the suffix

A byte-order mark, which spreadsheets and Windows write, is left out. What is wrong is an `InputError` with file and
line.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer_jax.errors import InputError

SUFFIXES = (".csv", ".tsv", ".jsonl")


def lines(path: Path) -> Iterator[str]:
    """The lines of a file without their ends. A file that ends in "\\n" has no empty line after it."""
    return (line.removesuffix("\n").removesuffix("\r") for line in _decoded(path, newline="\n"))


def read(path: Path, *, headed: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line where the record begins, from 1; column -> field). Columns are named "0", "1", ... where not `headed`."""
    reader = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl}.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: its name ends in none of {', '.join(SUFFIXES)}, which say how to read it")
    return reader(path, headed)


def string(record: dict[str, Any], column: str, where: str) -> str:
    """The text in a column of a record. What there is instead of one is refused."""
    value = record[column]
    if value is None:
        raise InputError(f"{where}: column {column!r} is null; fill it in or remove the row")
    if not isinstance(value, str):
        raise InputError(f"{where}: column {column!r} holds {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise InputError(f"{where}: column {column!r} holds half of a surrogate pair, which is no text") from None
    return value


def _decoded(path: Path, newline: str) -> Iterator[str]:
    """Lines with their ends, which `newline` tells as `open` does."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield from file
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def _not_utf8(path: Path) -> InputError:
    """Where it is, which a decoder of a stream does not say: no character of UTF-8 has the byte of "\\n" inside."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                where = f"{path}:{number}: not UTF-8 at byte {at + error.start} ({error.reason})"
                return InputError(f"{where}; convert the file to UTF-8 or leave the line out")
            at += len(line)
    return InputError(f"{path}: changed while it was read")


def _csv(path: Path, headed: bool) -> Iterator[tuple[int, dict[str, str]]]:
    return _records(path, _csv_rows(path), headed, "a text with commas, quotes or line ends is written in quotes")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_decoded(path, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}:{line}: not CSV ({error}); a quote within a quoted text is doubled") from None


def _tsv(path: Path, headed: bool) -> Iterator[tuple[int, dict[str, str]]]:
    fields = ((number, line.split("\t")) for number, line in enumerate(lines(path), 1))
    return _records(
        path, fields, headed, "a TAB or line end cannot be within a text; write such texts as .csv or .jsonl"
    )


def _records(
    path: Path, fields: Iterator[tuple[int, list[str]]], headed: bool, fix: str
) -> Iterator[tuple[int, dict[str, str]]]:
    columns: list[str] = []
    for line, row in fields:
        if row in ([], [""]):
            continue
        if not columns:
            columns = row if headed else [str(i) for i in range(len(row))]
            if twice := {column for column in columns if columns.count(column) > 1}:
                raise InputError(f"{path}:{line}: two columns are named {min(twice)!r}; rename one")
            if headed:
                continue
        if len(row) != len(columns):
            raise InputError(
                f"{path}:{line}: {len(row)} fields, where the {'header' if headed else 'first row'} has "
                f"{len(columns)}; {fix}"
            )
        yield line, dict(zip(columns, row, strict=True))


def _jsonl(path: Path, headed: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not a JSON object ({error}); each line must hold one") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: {type(record).__name__}, not a JSON object; each line must hold one")
        yield number, record
