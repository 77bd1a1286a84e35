"""The output of a run: rows, evaluations and lines, above a progress bar where stdout is a terminal."""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from transformer_jax.contracts import Observer, Report, Row, RunFacts


class Terminal(Observer):
    """Prints a run's rows and evaluations on stdout."""

    def start(self, run: RunFacts) -> None:
        self.steps, self.metric = run.steps, run.metric
        self.progress = _progress(run.steps, run.first_step) if sys.stdout.isatty() else None

    def row(self, row: Row) -> None:
        step = int(row["step"])
        if self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=step, line=describe(row))
        else:
            self.print_line(f"step {step:,}/{self.steps:,}  {describe(row)}")

    def evaluation(self, step: int, name: str, report: Report) -> None:
        self.print_line(f"step {step:,}/{self.steps:,}  {name}  {describe(report, self.metric)}")

    def print_line(self, line: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        if self.progress is not None:
            self.progress.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def end(self, results: Mapping[str, Any]) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _progress(steps: int, first_step: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
    progress = Progress(*columns, refresh_per_second=4)
    progress.add_task("train", total=steps, completed=first_step, line="")
    progress.start()
    return progress


COUNT_SECONDS = 30.0


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, total) from time to time, which prints progress and the time left on stderr.

    On a terminal it draws a bar, unless stdout is a terminal too; otherwise it prints a line every `COUNT_SECONDS`.
    Only process 0 prints.

    Args:
      what: begins each line.
    """
    began = printed = time.perf_counter()
    if sys.stderr.isatty() and not sys.stdout.isatty() and jax.process_index() == 0:
        from rich import console, progress

        columns = (progress.TextColumn(what), progress.BarColumn(), progress.MofNCompleteColumn())
        on_stderr = console.Console(stderr=True)
        with progress.Progress(
            *columns, progress.TimeRemainingColumn(), console=on_stderr, redirect_stdout=False, redirect_stderr=False
        ) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    def line(done: int, total: int) -> None:
        nonlocal printed
        now = time.perf_counter()
        if now - printed >= COUNT_SECONDS and 0 < done < total and jax.process_index() == 0:
            printed = now
            left = duration((now - began) / done * (total - done))
            print(f"{what}: {done:,} of {total:,}, {left} left", file=sys.stderr, flush=True)

    yield line


def banner(number: int, text: str) -> None:
    """Prints `text` on process 0 after the `number` of the run's stage, counted from 1: "[4] training tokens"."""
    if jax.process_index() == 0:
        print(f"[{number}] {text}", flush=True)


# name -> (label, format) of a row's numbers; a name that is absent here is its own label.
_FORMATS = {
    "loss": ("loss", "{:.4f}"),
    "learning_rate": ("lr", "{:.2e}"),
    "grad_norm": ("grad norm", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "images_per_second": ("images/s", "{:,.0f}"),
    "mfu": ("MFU", "{:.1%}"),
    "seconds_left": ("left", "{}"),
}
# Scores that `describe` skips, so that a classifier's row fits on a line. The files and `table` have them.
_DETAILS = re.compile(r"(precision|recall)(_macro|_micro)?|f1_micro|.*_(low|high)")


def describe(row: Mapping[str, Any], metric: str = "") -> str:
    """A row or a report as one line. Strings and details are skipped; an interval follows its number.

    Args:
      row: the numbers by name.
      metric: a name that is shown even if it is a detail.
    """
    shown = []
    for name, value in row.items():
        label, form = _FORMATS.get(name, (name.replace("_", " "), "{:.4f}"))
        if name in ("step", "seconds_per_step", "data_wait") or (name == "skipped" and not value):
            continue
        if isinstance(value, str) or (_DETAILS.fullmatch(name) and name != metric):
            continue
        text = f"{label} {form.format(duration(value) if name == 'seconds_left' else value)}"
        if f"{name}_low" in row:
            text += f" ({row[f'{name}_low']:.4f} to {row[f'{name}_high']:.4f})"
        shown.append(text)
    return "  ".join(shown)


def table(report: Mapping[str, float | str]) -> str:
    """A whole `report`, one number or string per line."""
    width = max(map(len, report), default=0)
    shown = {name: value if isinstance(value, str) else f"{value:.4f}" for name, value in report.items()}
    return "\n".join(f"  {name.replace('_', ' '):{width}}  {text}" for name, text in shown.items())


def duration(seconds: float) -> str:
    """`seconds` for people: "3:07", "2:05:00" (hours), "3 d 4 h"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
