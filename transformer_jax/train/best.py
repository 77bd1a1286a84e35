"""Which evaluated step is the best so far, and how many evaluations have brought no better one: a value."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Best:
    """The evaluations of a run by one number.

    Attributes:
      which: whether the lowest or the highest value is best.
      history: (step, value) of each evaluation, in order; a value may be NaN.
    """

    which: Literal["lowest", "highest"] = "lowest"
    history: tuple[tuple[int, float], ...] = ()

    def add(self, step: int, value: float) -> "Best":
        """With the evaluation of `step` added; for a step that was evaluated before, the new `value` counts."""
        kept = tuple(entry for entry in self.history if entry[0] != step)
        return replace(self, history=(*kept, (step, value)))

    def among(self, steps: Collection[int]) -> "Best":
        """With the evaluations of these `steps` only."""
        return replace(self, history=tuple(entry for entry in self.history if entry[0] in steps))

    def up_to(self, step: int) -> "Best":
        """With the evaluations up to this `step` only."""
        return replace(self, history=tuple(entry for entry in self.history if entry[0] <= step))

    @property
    def values(self) -> Mapping[int, float]:
        """{step: value} of all evaluations."""
        return dict(self.history)

    @property
    def step(self) -> int | None:
        """The step of the best value, the earliest of equals; None where no value is finite."""
        best = self._index()
        return None if best is None else self.history[best][0]

    @property
    def waited(self) -> int:
        """The evaluations since the best one; all of them where no value is finite."""
        best = self._index()
        return len(self.history) if best is None else len(self.history) - 1 - best

    def is_out_of_patience(self, patience: int) -> bool:
        """Whether `patience` evaluations in a row brought no better value; never for 0."""
        return 0 < patience <= self.waited

    def _index(self) -> int | None:
        sign = 1 if self.which == "lowest" else -1
        finite = [(sign * value, i) for i, (_, value) in enumerate(self.history) if math.isfinite(value)]
        return min(finite)[1] if finite else None


def read(rows: Iterable[Mapping[str, object]], name: str, *, up_to: int) -> tuple[tuple[int, float], ...]:
    """The history of one number in rows of metrics; null is read as NaN.

    Args:
      rows: the rows of metrics.jsonl.
      name: the name of the number, "validation/loss_nats_per_token".
      up_to: the last step to read.
    """
    found: dict[int, float] = {}
    for row in rows:
        step, value = row.get("step"), row.get(name, "absent")
        if isinstance(step, int | float) and step <= up_to and (value is None or isinstance(value, int | float)):
            found[int(step)] = math.nan if value is None else float(value)
    return tuple(sorted(found.items()))
