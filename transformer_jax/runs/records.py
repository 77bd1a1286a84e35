"""WORKDIR/SET.examples.jsonl: the numbers of each example of an evaluation, one JSON object per line.

    {"loss": 0.31, "accuracy": 1, "label": "cat", "predicted": "cat"}
    {"loss": [412.7, 256], "label": "1-8"}

A value is a number, or a pair (sum, weight), or a text (`Task.records`). `compare` reads the files of two runs.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import files
from transformer_jax.errors import InputError

MAX_BYTES = 2**28  # the largest file that is read
MAX_TEXT = 500  # characters of a text that are stored


def name(of: str) -> str:
    """The file's name for the set `of`, such as "validation"."""
    return f"{of}.examples.jsonl"


def write(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Writes one line for each example; without `columns` no file is made.

    Args:
      path: the file, which is whole or as it was.
      columns: {name: [examples]}, all of one length.
    """
    if not columns:
        return
    lists = {key: [_stored(value) for value in values] for key, values in columns.items()}
    if len({len(values) for values in lists.values()}) != 1:
        lengths = ", ".join(f"{key} {len(values)}" for key, values in lists.items())
        raise InputError(f"{path.name}: the task's records are not of one length: {lengths}")
    rows = (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
    files.write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _stored(value: Any) -> Any:
    """A value as JSON: six digits of a number, which is null where it is not finite, and the start of a text."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "..."
    if np.ndim(value):
        return [_stored(part) for part in value]
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 1e15 else float(f"{number:.7g}")


def read(path: Path, inside: Path) -> dict[str, Any]:
    """{name: float64 [examples, 2] of sums and weights, or a list of texts}; {} where there is no file.

    Args:
      path: the file, which may be a stranger's.
      inside: the run's folder.

    Raises:
      InputError: it is not what `write` writes; the message names the line.
    """
    if not path.exists():
        return {}
    columns: dict[str, list[Any]] = {}
    with files.opened(path, limit=MAX_BYTES, inside=inside) as file:
        for number, line in enumerate(file, 1):
            row = files.parse_json(line, f"{path}, line {number},")
            if not isinstance(row, dict) or (columns and row.keys() != columns.keys()):
                raise InputError(f"{path}, line {number}, has not the names of the first line; evaluate the run again")
            for key, value in row.items():
                columns.setdefault(key, []).append(_read(value, f"{path}, line {number}, {key[:80]!r}"))
    found: dict[str, Any] = {}
    for key, values in columns.items():
        texts = [isinstance(value, str) for value in values]
        if any(texts) and not all(texts):
            raise InputError(f"{path}: {key[:80]!r} is a text in some lines and a number in others")
        found[key] = values if texts[0] else np.array(values, np.float64)
    return found


def _read(value: Any, where: str) -> Any:
    """A text, or a (sum, weight)."""
    if isinstance(value, str):
        return value
    pair = value if isinstance(value, list) and len(value) == 2 else [value, 1.0]
    if all(part is None or (isinstance(part, int | float) and not isinstance(part, bool)) for part in pair):
        with contextlib.suppress(OverflowError):  # an integer beyond the floats
            return [math.nan if part is None else float(part) for part in pair]
    raise InputError(f"{where} is no number, pair of numbers or text")
