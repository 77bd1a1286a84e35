"""metrics.jsonl: the rows of a run, one JSON object per line.

Training rows have `loss`; evaluation rows have `validation/...` or `test/...`. A resumed run reads its best step and
its patience from this file; therefore an error of the disk ends the run. Lines are appended. To remove lines, the file
is replaced by a new one.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.contracts import Observer, Report, Row, RunFacts

NAME = "metrics.jsonl"
LONGEST = 2**20  # bytes of a line; the rest of a longer one is skipped as a line that is not a row
MAX_BYTES = 2**32  # the largest file, 20 million usual rows; a sparse file could be of any size


class JsonLines(Observer):
    """Writes FOLDER/metrics.jsonl. Errors of the disk are raised."""

    def start(self, run: RunFacts) -> None:
        """Opens the file. Rows after step `run.first_step`, which a killed run wrote, are removed first."""
        self.path = run.folder / NAME
        self.evaluated = remove_after(self.path, run.first_step) if self.path.exists() else set()
        self.file = files.appending(self.path)

    def row(self, row: Row) -> None:
        self._write(row)

    def evaluation(self, step: int, name: str, report: Report) -> None:
        """Writes the numbers, unless the file has them: a run that is resumed at its end evaluates again."""
        numbers = {f"{name}/{key}": value for key, value in report.items() if not isinstance(value, str)}
        row = {"step": step} | numbers
        if numbers and _evaluation(row) not in self.evaluated:
            self._write(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        """Appends and flushes one line. A number that is not finite is written as null, because JSON has no NaN."""
        self.file.write(
            json.dumps({name: x if math.isfinite(x) else None for name, x in row.items()}, default=float) + "\n"
        )
        self.file.flush()

    def save(self, step: int) -> None:
        """Syncs the file, so that no checkpoint is on the disk before its rows: they choose the best step."""
        os.fsync(self.file.fileno())

    def end(self, results: Mapping[str, Any]) -> None:
        self.file.close()


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl, one at a time; none where there is no file.

    Lines that are not rows are skipped, such as a last line that a killed run left incomplete.

    Args:
      path: the file.

    Raises:
      InputError: it is not a regular file, or has more than `MAX_BYTES`.
    """
    return (row for _, row in _lines(path) if row is not None) if path.exists() else iter(())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The `rows` of the file `path`, in a list."""
    return list(rows(path))


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line with its row; None where it is not a row."""
    with files.opened(path, limit=MAX_BYTES, inside=path.parent) as file:
        while line := file.readline(LONGEST):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            step = row.get("step") if isinstance(row, dict) else None
            yield line, row if isinstance(step, int | float) and not isinstance(step, bool) else None


def remove_after(path: Path, step: int) -> set[tuple[float, frozenset[str]]]:
    """What tells apart the evaluations left in the file `path`, of which the rows after `step`, and lines that are not
    rows, are removed."""
    stays = lambda line, row: line.endswith(b"\n") and row is not None and row["step"] <= step  # noqa: E731
    if not all(stays(line, row) for line, row in _lines(path)):
        with files.replacing(path) as part, part.open("wb") as file:
            file.writelines(line for line, row in _lines(path) if stays(line, row))
    return {_evaluation(row) for _, row in _lines(path) if row is not None and "loss" not in row}


def _evaluation(row: Mapping[str, Any]) -> tuple[float, frozenset[str]]:
    """The identity of an evaluation: its step and the names of its numbers."""
    return row["step"], frozenset(row)
