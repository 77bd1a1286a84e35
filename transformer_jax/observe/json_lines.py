"""metrics.jsonl: the rows of a run, one JSON object a line.

Training rows have `loss`; evaluation rows `validation/...` or `test/...`. A resumed run reads its best step and its
patience from this file, so what cannot be written here ends the run. Lines are appended; when lines have to go, a new
file takes the old one's place.
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
LONGEST = 2**20  # bytes of a line


class JsonLines(Observer):
    """Writes FOLDER/metrics.jsonl. Raises what the disk answers."""

    def start(self, run: RunFacts) -> None:
        """Opens the file. Rows after the run's first step, which a killed run has left, are removed."""
        self.path = run.folder / NAME
        rows = _up_to(self.path, run.first_step) if self.path.exists() else []
        self.evaluated = {_evaluation(row) for row in rows}
        self.file = self.path.open("a", encoding="utf-8")

    def row(self, row: Row) -> None:
        self._write(row)

    def evaluation(self, step: int, name: str, report: Report) -> None:
        """Writes the numbers, unless they are there: a run that is resumed at its end evaluates again."""
        numbers = {f"{name}/{key}": value for key, value in report.items() if not isinstance(value, str)}
        row = {"step": step} | numbers
        if numbers and _evaluation(row) not in self.evaluated:
            self._write(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        """One line, which is in the file when this returns. JSON has no NaN: a number that is not finite is null."""
        self.file.write(
            json.dumps({name: x if math.isfinite(x) else None for name, x in row.items()}, default=float) + "\n"
        )
        self.file.flush()

    def save(self, step: int) -> None:
        """No checkpoint is on the disk before its rows: the choice of the best step needs them."""
        os.fsync(self.file.fileno())

    def end(self, results: Mapping[str, Any]) -> None:
        self.file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none where there is no file. Lines that are no rows are left out, such as a last one
    that a kill truncated. Raises `InputError` where it is no regular file."""
    return [row for _, row in _lines(path) if row is not None] if path.exists() else []


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line with its row; None where it is no row."""
    with files.opened(path, inside=path.parent) as file:
        while line := file.readline(LONGEST):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            step = row.get("step") if isinstance(row, dict) else None
            yield line, row if isinstance(step, int | float) and not isinstance(step, bool) else None


def _up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of steps up to this one. Removes the other lines from the file; leaves it alone where there are none."""
    lines = list(_lines(path))
    kept = [(line, row) for line, row in lines if line.endswith(b"\n") and row is not None and row["step"] <= step]
    if len(kept) < len(lines):
        with files.replacing(path) as part:
            part.write_bytes(b"".join(line for line, _ in kept))
    return [row for _, row in kept if row is not None]


def _evaluation(row: Mapping[str, Any]) -> tuple[float, frozenset[str]]:
    """What an evaluation is known by: its step and the names of its numbers."""
    return row["step"], frozenset(row)
