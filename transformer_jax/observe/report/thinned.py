"""Series of numbers in bounded memory: a file of a million rows becomes a few hundred points with their extremes."""

from typing import Any

import numpy as np

POINTS = 400  # a series is thinned to this many points, or up to twice as many
PENDING = 4096  # values that are joined at once


class Series:
    """The numbers of one name by step. Once there are more than 2 * `POINTS`, neighbours are joined, pair by pair.

    Each point keeps the step of its first number, the mean, the lowest and the highest.

    Attributes:
      last: (step, number) of the last finite number, or None.
      count: how many numbers were added.
      not_finite: how many of them were not finite.
    """

    def __init__(self) -> None:
        self.last: tuple[float, float] | None = None
        self.count = self.not_finite = 0
        self._steps: list[float] = []
        self._values: list[float] = []
        self._joined = 1  # numbers of a point
        self._points = np.zeros((0, 5))  # step, sum, count of finite ones, lowest, highest

    def add(self, step: float, value: float) -> None:
        """Adds a number; NaN stands for one that is not finite."""
        self._steps.append(step)
        self._values.append(value)
        if len(self._steps) >= max(PENDING, self._joined):
            self._join()

    def points(self) -> list[tuple[float, float | None]]:
        """(step, mean); None where no number is finite."""
        self._join(rest=True)
        return [(step, total / n if n else None) for step, total, n, _, _ in self._points.tolist()]

    def band(self) -> list[tuple[float, float, float]]:
        """(step, lowest, highest) of each point; [] where every point is one number."""
        self._join(rest=True)
        if self._points[:, 2].max(initial=0) <= 1:
            return []
        return [(step, low, high) for step, _, n, low, high in self._points.tolist() if n]

    def _join(self, *, rest: bool = False) -> None:
        whole = len(self._steps) if rest else len(self._steps) // self._joined * self._joined
        if not whole:
            return
        steps, values = np.array(self._steps[:whole]), np.array(self._values[:whole])
        self._steps, self._values = self._steps[whole:], self._values[whole:]
        finite = np.isfinite(values)
        self.count += whole
        self.not_finite += whole - int(finite.sum())
        if finite.any():
            newest = int(np.flatnonzero(finite)[-1])
            self.last = float(steps[newest]), float(values[newest])
        at = np.arange(0, whole, self._joined)
        self._points = np.concatenate(
            [
                self._points,
                _joined(
                    steps,
                    np.where(finite, values, 0.0),
                    finite.astype(float),
                    np.where(finite, values, np.inf),
                    np.where(finite, values, -np.inf),
                    at,
                ),
            ]
        )
        while len(self._points) > 2 * POINTS:
            self._joined *= 2
            steps, totals, counts, lows, highs = self._points.T
            self._points = _joined(steps, totals, counts, lows, highs, np.arange(0, len(steps), 2))


def _joined(steps: Any, totals: Any, counts: Any, lows: Any, highs: Any, at: Any) -> Any:
    """Points from the numbers, or points, that begin at each index of `at`."""
    with np.errstate(over="ignore"):
        parts = (np.add.reduceat(totals, at), np.add.reduceat(counts, at))
    return np.stack([steps[at], *parts, np.minimum.reduceat(lows, at), np.maximum.reduceat(highs, at)], axis=1)
