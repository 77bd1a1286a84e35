"""The interface that train/loop.py still calls. It goes when the loop calls `observe.start`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_jax.contracts import RunFacts
from transformer_jax.observe import observing

Row = dict[str, float]


class Observer:
    def __init__(
        self,
        workdir: Path,
        *,
        steps: int,
        metric: str = "",
        first_step: int = 0,
        on_row: Callable[[Row], None] | None = None,
        primary: bool = True,
    ) -> None:
        self.facts = RunFacts(workdir, str(workdir), "", {}, first_step, steps, metric)
        self.primary, self.on_row, self.step = primary, on_row, first_step

    def __enter__(self) -> "Observer":
        self.observing = observing.start((), self.facts, primary=self.primary)
        return self

    def __exit__(self, *_: Any) -> None:
        self.observing.end({})

    def row(self, row: dict[str, Any]) -> None:
        self.step = int(row["step"])
        report = {name.removeprefix("validation/"): x for name, x in row.items() if name.startswith("validation/")}
        if report:
            self.observing.evaluation(self.step, "validation", report)
        else:
            self.observing.row(row)
        if self.on_row is not None:
            self.on_row(row)

    def flush(self) -> None:
        self.observing.save(self.step)

    def say(self, text: str) -> None:
        self.observing.say(text)
