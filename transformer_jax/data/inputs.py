"""The inputs of `predict`, read as training reads its data, and the file of answers: one for each input, in order.

asked = inputs.arguments(["a text", ""])          # texts from the command line
asked = inputs.lines("new.txt")                   # the lines of a file; "-" is stdin
asked = inputs.table("new.csv", ("review",))      # a column of a table; the other columns are kept
asked = inputs.images(["photo.jpg", "folder"])
asked = inputs.sounds(["a.wav", "folder"], "")
inputs.write(Path("answers.csv"), task.answered(loaded, asked, options))
"""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.contracts import Input, Query
from transformer_jax.data import image_files, records, remote, text_files, waves
from transformer_jax.errors import InputError

OUT = (".csv", ".jsonl")
ECHOED = ("text", "text_b", "source", "question", "image", "sound")  # fields of an answer that repeat its input


# ---- Reading -------------------------------------------------------------------------------------------------------


def arguments(given: Sequence[str]) -> list[Input]:
    """An input for each text of the command line.

    Args:
      given: the texts.

    Raises:
      InputError: a text that is not UTF-8.
    """
    for one in given:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            good = one[: error.start]
            raise InputError(f"input {good!r}... is not UTF-8 at byte {len(good.encode())}; give it in UTF-8") from None
    return [text(one, f"input {number}") for number, one in enumerate(given, 1)]


def lines(path: str) -> list[Input]:
    """An input for each line of a text file, blank lines included.

    Args:
      path: the file; "-" is stdin.

    Raises:
      InputError: the file cannot be read, or is a table, whose lines are not inputs.
    """
    if path == "-":
        given = text_files.split(text_files.decoded(sys.stdin.buffer, "stdin"), "stdin")
        return [text(line, f"stdin:{number}") for number, line in enumerate(given, 1)]
    if is_table(path):
        names = ", ".join(map(repr, next((record for _, record in records.read(remote.one(path), headed=True)), {})))
        raise InputError(f"{path} is a table; choose the column of the input with --text: {names}")
    return [text(line, f"{path}:{number}") for number, line in enumerate(text_files.lines(remote.one(path)), 1)]


def is_table(path: str) -> bool:
    """Whether the name of a file ends like that of a file of records: .csv, .jsonl, .parquet, ...

    Args:
      path: the name, compressed or not.
    """
    return text_files.suffix(path) in records.SUFFIXES


def prompt() -> list[Input]:
    """The whole of stdin as one input."""
    return [text("".join(text_files.decoded(sys.stdin.buffer, "stdin")), "stdin")]


def table(path: str, columns: Sequence[str], *, pairs: bool = False) -> list[Input]:
    """An input for each record of a file: .csv, .tsv, .jsonl, .parquet, .arrow, .tar.

    Args:
      path: the file.
      columns: the column of the text, or the two columns of a pair; numbers from 0 if the file has no header.
      pairs: whether the task splits a text at a TAB. Then a text of a table is passed as a tuple, which is not split.

    Raises:
      InputError: whatever `data.tables.Table` refuses, except empty texts: they get an error as their answer.
    """
    found = []
    for line, record in records.read(remote.one(path), headed=not columns[0].isdecimal()):
        where = f"{path}:{line}"
        texts = tuple(records.string(record, column, where, "--text and --text-b") for column in columns)
        found.append(text(texts if pairs or len(texts) > 1 else texts[0], where, record))
    if not found:
        raise InputError(f"{path}: no rows; give it some, or name a file that has them")
    return found


def images(paths: Sequence[str]) -> list[Input]:
    """An input for each image file; other files in folders are counted on stderr.

    Args:
      paths: image files, and folders, whose images are sorted by path.

    Raises:
      InputError: the folders contain no image.
    """
    found: list[Input] = []
    skipped: Counter[str] = Counter()
    for path in paths:
        if path and Path(path).is_dir():
            inside, others = image_files.below(Path(path))
            found += [Input(str(file), str(file), {}) for file in inside]
            skipped += others
        else:
            found.append(text(path, path))
    if skipped:
        print(f"skipped, because they are not images: {records.counted(skipped)}", file=sys.stderr)
    if paths and not found:
        raise InputError(f"no images in {', '.join(paths)}; name image files, or folders that contain some")
    return found


def sounds(given: Sequence[str], file: str) -> list[Input]:
    """An input for each sound file.

    Args:
      given: sound files, and folders, whose sound files are sorted by path.
      file: where none is given: a text file with such a path on each line; empty: stdin.
    """
    paths = given if given and list(given) != ["-"] else [str(one.query) for one in lines(file or "-")]
    found: list[Input] = []
    for path in paths:
        inside = waves.below(Path(path)) if path and Path(path).is_dir() else None
        found += [text(path, path)] if inside is None else [Input(str(one), str(one), {}) for one in inside]
    return found


def text(query: Query, where: str, columns: Mapping[str, Any] | None = None) -> Input:
    """An input of one text or several, with an error if one of them is blank.

    Args:
      query: the text, or several.
      where: names the input in messages.
      columns: the record that it is from; None: it is not from a table.
    """
    texts = (query,) if isinstance(query, str) else query
    return Input(query, where, columns or {}, "" if all(one.strip() for one in texts) else "the input is empty")


# ---- Writing -------------------------------------------------------------------------------------------------------


def check_out(path: Path) -> None:
    """Refuses a path that `write` would refuse, before anything is computed.

    Args:
      path: the path of the file to write.

    Raises:
      InputError: an unknown ending, or a folder that does not exist.
    """
    if path.suffix.lower() not in OUT:
        raise InputError(f"--out {path}: the name must end in {' or '.join(OUT)}, the format to write")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}; make it, or name another")


def write(path: Path, rows: Iterable[tuple[Input, Mapping[str, Any]]]) -> None:
    """Writes a row for each input, its columns or its text and then its answer. The file is complete or absent.

    A field of an answer with the name of a column becomes "predicted_NAME". In .csv a list or an object is written as
    JSON, and a missing field is empty.

    Args:
      path: .csv or .jsonl.
      rows: each input with its answer.

    Raises:
      InputError: as `check_out`.
    """
    check_out(path)
    made = [_row(one, answer) for one, answer in rows]
    if path.suffix.lower() == ".jsonl":
        files.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
        return
    names = dict.fromkeys(name for row in made for name in row)
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in made)
    files.write(path, written.getvalue())


def _row(one: Input, answer: Mapping[str, Any]) -> dict[str, Any]:
    texts = (one.query,) if isinstance(one.query, str) else one.query
    given = dict(one.columns) or dict(zip(("text", "text_b"), texts, strict=False))
    new = {name: value for name, value in answer.items() if not (name in ECHOED and value in texts)}
    return given | {f"predicted_{name}" if name in given else name: value for name, value in new.items()}


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False)
