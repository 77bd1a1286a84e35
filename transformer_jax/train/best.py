"""Which evaluated step is the best so far, and for how many evaluations there was no better one: a value."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Best:
    """The evaluations of a run by one number.

    Fields:
      which: which value is best.
      history: (step, value) of each evaluation, in order; a value may be NaN.
    """

    which: Literal["lowest", "highest"] = "lowest"
    history: tuple[tuple[int, float], ...] = ()

    def add(self, step: int, value: float) -> "Best":
        """With one more evaluation; of a step that was evaluated before, the new value counts."""
        kept = tuple(entry for entry in self.history if entry[0] != step)
        return replace(self, history=(*kept, (step, value)))

    def among(self, steps: Collection[int]) -> "Best":
        """Of these steps alone."""
        return replace(self, history=tuple(entry for entry in self.history if entry[0] in steps))

    @property
    def values(self) -> Mapping[int, float]:
        """{step: value}."""
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

    def impatient(self, patience: int) -> bool:
        """Whether so many evaluations brought nothing better; never for 0."""
        return 0 < patience <= self.waited

    def _index(self) -> int | None:
        sign = 1 if self.which == "lowest" else -1
        finite = [(sign * value, i) for i, (_, value) in enumerate(self.history) if math.isfinite(value)]
        return min(finite)[1] if finite else None


def read(rows: Collection[Mapping[str, object]], name: str, *, up_to: int) -> tuple[tuple[int, float], ...]:
    """The history that rows of metrics hold, up to a step: those with the number `name`, in which null is NaN."""
    found: dict[int, float] = {}
    for row in rows:
        step, value = row.get("step"), row.get(name, "absent")
        if isinstance(step, int | float) and step <= up_to and (value is None or isinstance(value, int | float)):
            found[int(step)] = math.nan if value is None else float(value)
    return tuple(sorted(found.items()))
