"""Records of named columns, from any file that has them. The name of the file says which it is.

    .csv, .tsv       quoted as in RFC 4180; no quoting: a TAB always ends a field       compressed or not
    .inter, .item, .user   RecBole's: .tsv whose columns are named "item_id:token"      compressed or not
    .jsonl           an object a line                                                   compressed or not
    .parquet, .arrow                                                                    `columnar`
    .tar             WebDataset: a record is the members of one name                    `webdataset`

All are read as streams, on this machine or at a URL (`remote`). The names in a header are stripped of white space; a
column without a name gets its number. Blank lines are skipped and counted. A bad record is an `InputError` with file
and line.
"""

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformer_jax.data import columnar, remote, text_files, webdataset
from transformer_jax.errors import InputError

ATOMIC = (".inter", ".item", ".user")
SUFFIXES = (".csv", ".tsv", ".jsonl", *ATOMIC, *columnar.SUFFIXES, webdataset.SUFFIX)
BLANK = "blank lines"
FEW = 5  # places that a message lists


def read(
    path: remote.File,
    *,
    headed: bool,
    skipped: Counter[str] | None = None,
    columns: Collection[str] | None = None,
    groups: Sequence[int] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (the line or row where the record begins, from 1; {column: value}) for each record.

    Args:
      path: a file whose name ends in one of SUFFIXES.
      headed: whether the first line of .csv and .tsv names the columns; otherwise they are "0", "1", ...
      skipped: counts the blank lines; None: they are not counted.
      columns: the columns that are wanted: of Parquet and Arrow files no others are read. None: all.
      groups: the row groups of a Parquet file that are read; None: all.

    Raises:
      InputError: another ending, or a bad record.
    """
    skipped = Counter() if skipped is None else skipped
    ending = text_files.suffix(path)
    if ending == ".csv":
        return _records(
            path, _csv(path), headed, skipped, "a text with commas, quotes or line ends is written in quotes"
        )
    if ending in (".tsv", *ATOMIC):
        rows = ((number, line.split("\t")) for number, line in enumerate(text_files.lines(path), 1))
        fix = "a text in .tsv cannot hold a TAB or a line end; write such texts as .csv or .jsonl"
        return _records(path, rows, headed, skipped, fix, typed=ending in ATOMIC)
    if ending == ".jsonl":
        return json_lines(path, skipped)
    if ending in columnar.SUFFIXES:
        return columnar.rows(path, columns, groups)
    if ending == webdataset.SUFFIX:
        return webdataset.rows(path)
    raise InputError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}, the formats that are read")


def json_lines(path: remote.File, skipped: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line, from 1; object) for each line of a file of JSON objects, whatever its name.

    Args:
      path: the file.
      skipped: counts the blank lines.

    Raises:
      InputError: a line that is not a JSON object.
    """
    for number, line in enumerate(text_files.lines(path), 1):
        if not line.strip():
            skipped[BLANK] += 1
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not a JSON object ({error}); each line must hold one") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: {type(record).__name__}, not a JSON object; each line must hold one")
        yield number, record


def string(record: dict[str, Any], column: str, where: str, options: str) -> str:
    """The text in a column of a record; "" for null.

    Args:
      record: one of `read`.
      column: its name; "translation.en" may be the "en" of the object "translation".
      where: names the record in messages.
      options: the flags that choose the columns, for messages.

    Raises:
      InputError: no such column, or a value that is not a text.
    """
    inner, name = within(record, column, where, options)
    value = inner[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: column {column!r} holds {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise InputError(f"{where}: column {column!r} holds half of a surrogate pair, which is not text") from None
    return value


def texts(record: dict[str, Any], column: str, where: str, options: str) -> tuple[str, ...]:
    """The texts of a list in a column of a record.

    Args:
      record: one of `read`.
      column: its name; "answers.text" may be the "text" of the object "answers".
      where: names the record in messages.
      options: the flags that choose the columns, for messages.

    Raises:
      InputError: no such column, or a value that is not a list of texts.
    """
    inner, name = within(record, column, where, options)
    value = inner[name]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        held = sorted({type(one).__name__ for one in value}) if isinstance(value, list) else type(value).__name__
        raise InputError(f"{where}: column {column!r} holds {held}, not a list of texts")
    return tuple(value)


def within(record: dict[str, Any], column: str, where: str, options: str) -> tuple[dict[str, Any], str]:
    """(the object that holds a column, the column's name there): objects may be nested.

    Args:
      record: one of `read`.
      column: its name, dotted if it is nested.
      where: names the record in messages.
      options: the flags that choose the columns, for messages.

    Raises:
      InputError: no such column.
    """
    inner, name = record, column
    while name not in inner and isinstance(inner.get(name.partition(".")[0]), dict):
        outer, _, name = name.partition(".")
        inner = inner[outer]
    if name not in inner:
        raise no_column(inner, column, where, options)
    return inner, name


def no_column(record: dict[str, Any], column: str, where: str, options: str) -> InputError:
    """The error for a record without a column; it lists the columns, and names another separator if one is likely.

    Args:
      record: one of `read`.
      column: the missing one.
      where: names the record.
      options: the flags that choose the columns.
    """
    names = list(record)
    if len(record) == 1:
        shown = f"{names[0]}{record[names[0]]}"
        if (mark := max(";,\t|", key=shown.count)) in shown:
            return InputError(
                f"{where}: no column {column!r}; the whole line is one field with {mark!r} in it: save the table with "
                "commas as .csv, or with tabs as .tsv"
            )
    return InputError(f"{where}: no column {column!r}; there are {', '.join(map(repr, names))}; choose with {options}")


def places(found: Sequence[str], total: int = 0) -> str:
    """The first places as text, and how many more there are: "a.csv:1, a.csv:7 and 3 more".

    Args:
      found: the places.
      total: how many there are in all; 0: those in `found`.
    """
    more = (total or len(found)) - len(found[:FEW])
    return ", ".join(found[:FEW]) + (f" and {more:,} more" if more else "")


def counted(skipped: Mapping[str, int]) -> str:
    """Counts as text: "2 blank lines, 1 .gif files".

    Args:
      skipped: {what: how many}.
    """
    return ", ".join(f"{count:,} {what}" for what, count in sorted(skipped.items()))


def _csv(path: remote.File) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(text_files.LONGEST_LINE)  # the default, 131,072, is shorter than a long article
    reader = csv.reader(_csv_lines(path), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = str(error).partition(" - ")[0]
            raise InputError(
                f"{path}:{line}: not CSV ({why}); a text with quotes, commas or line ends is written in quotes, and a "
                "quote within it is doubled"
            ) from None


def _csv_lines(path: remote.File) -> Iterator[str]:
    """Lines with their ends. A lone "\\r" ends a row as well: Excel on a Mac writes it, with "\\n" in quoted texts."""
    for line in text_files.lines(path):
        *rows, last = line.split("\r")
        yield from (f"{row}\r" for row in rows)
        yield f"{last}\n"


def _records(
    path: remote.File,
    rows: Iterator[tuple[int, list[str]]],
    headed: bool,
    skipped: Counter[str],
    fix: str,
    *,
    typed: bool = False,
) -> Iterator[tuple[int, dict[str, str]]]:
    columns: list[str] = []
    for line, row in rows:
        # In a table of one column, "" in quotes is a record with an empty text, not a blank line.
        if not row or (len(row) == 1 and not row[0].strip() and len(columns) != 1):
            skipped[BLANK] += 1
            continue
        if not columns:
            row = [name.partition(":")[0] for name in row] if typed else row
            columns = [(headed and name.strip()) or str(i) for i, name in enumerate(row)]
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
