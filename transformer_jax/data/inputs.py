"""What a model is asked, read as training reads it, and its answers: one for each input, in order.

asked = inputs.arguments(["a text", ""])                      # what stands on the command line
asked = inputs.lines("new.txt")                               # of a file, or "-": stdin
asked = inputs.table("new.csv", ("review",))                  # by column, the other columns kept
asked = inputs.images(["photo.jpg", "folder"])
for one, answer in inputs.answered(asked, predict): ...       # {"error": why} where there is no answer
inputs.write(Path("answers.csv"), inputs.answered(asked, predict))
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
from transformer_jax.contracts import Ask, Input
from transformer_jax.data import image_files, records, text_files
from transformer_jax.errors import InputError

OUT = (".csv", ".jsonl")
ECHOED = ("text", "text_b", "source", "question", "image")  # what tasks repeat of an input in its answer


# ---- Reading -------------------------------------------------------------------------------------------------------


def arguments(given: Sequence[str]) -> list[Input]:
    """Texts of the command line. Raises `InputError` for one that is not UTF-8."""
    for one in given:
        try:
            one.encode()
        except UnicodeEncodeError as error:
            good = one[: error.start]
            raise InputError(f"input {good!r}... is not UTF-8 at byte {len(good.encode())}; give it in UTF-8") from None
    return [text(one, f"input {number}") for number, one in enumerate(given, 1)]


def lines(path: str) -> list[Input]:
    """Every line of a text file, blank ones too; of stdin where the path is "-".

    Raises:
      InputError: for a file that cannot be read, and for a table, of which a line is no input.
    """
    if path == "-":
        given = text_files.split(text_files.decoded(sys.stdin.buffer, "stdin"), "stdin")
        return [text(line, f"stdin:{number}") for number, line in enumerate(given, 1)]
    if is_table(path):
        names = ", ".join(map(repr, next((record for _, record in records.read(Path(path), headed=True)), {})))
        raise InputError(f"{path} is a table; say with --text which of its columns is the input: {names}")
    return [text(line, f"{path}:{number}") for number, line in enumerate(text_files.lines(Path(path)), 1)]


def is_table(path: str) -> bool:
    """Whether the name is that of a table."""
    return text_files.suffix(path) in records.SUFFIXES


def prompt() -> list[Input]:
    """The whole of stdin as one input."""
    return [text("".join(text_files.decoded(sys.stdin.buffer, "stdin")), "stdin")]


def table(path: str, columns: Sequence[str], *, pairs: bool = False) -> list[Input]:
    """Every record of a .csv, .tsv or .jsonl file.

    Args:
      columns: of the text, or of the two texts of a pair; by number from 0 where the file has no header.
      pairs: for a task that takes a TAB in a text for the border of two; here it is a part of one.
    Raises:
      InputError: for what `data.tables.Table` refuses of a file, empty texts apart: these have no answer.
    """
    found = []
    for line, record in records.read(Path(path), headed=not columns[0].isdecimal()):
        where = f"{path}:{line}"
        texts = tuple(records.string(record, column, where, "--text and --text-b") for column in columns)
        found.append(text(texts if pairs or len(texts) > 1 else texts[0], where, record))
    if not found:
        raise InputError(f"{path}: no rows; give it some, or name a file that has them")
    return found


def images(paths: Sequence[str]) -> list[Input]:
    """Image files, those below a folder in the order of their names; stderr says which others there are."""
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
        print(f"left out, as no images: {records.counted(skipped)}", file=sys.stderr)
    return found


def text(ask: Ask, where: str, columns: Mapping[str, Any] | None = None) -> Input:
    """An input of one text or several; without a text there is nothing to answer."""
    texts = (ask,) if isinstance(ask, str) else ask
    return Input(ask, where, columns or {}, "" if all(one.strip() for one in texts) else "the input is empty")


# ---- Writing -------------------------------------------------------------------------------------------------------


def check_out(path: Path) -> None:
    """Raises `InputError` where `write` would: before anything is computed."""
    if path.suffix.lower() not in OUT:
        raise InputError(f"--out {path}: its name ends in none of {', '.join(OUT)}, which say how to write it")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}; make it, or name another")


def write(path: Path, rows: Iterable[tuple[Input, Mapping[str, Any]]]) -> None:
    """Writes a row for each input: its columns, or its text, and then what was answered, whole or not at all.

    An answer's field that has the name of a column is called "predicted_NAME". In .csv a list or an object is JSON,
    and what there is not stays empty.
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
    texts = (one.ask,) if isinstance(one.ask, str) else one.ask
    given = dict(one.columns) or dict(zip(("text", "text_b"), texts, strict=False))
    new = {name: value for name, value in answer.items() if not (name in ECHOED and value in texts)}
    return given | {f"predicted_{name}" if name in given else name: value for name, value in new.items()}


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False)
