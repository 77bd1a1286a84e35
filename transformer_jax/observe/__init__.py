"""What a run says while it trains: live progress, metrics.jsonl, TensorBoard events, loss.png, a profile.

A row is one flat dict of numbers with "step"; training rows have `loss`, validation rows `validation/...`. The loop
gives each row to `Observer.row`, which passes it to every place at once. Only process 0 writes.

    FLOPs and MFU   FLOPs are those of the model's mathematics, not of the hardware: no recomputation, no masked half
                    subtracted (PaLM, appendix B: 6 per parameter that multiplies and token, 12*L*N*H*T for attention).
                    MFU is their rate over the peak dense bfloat16 rate in `PEAK_FLOPS`.
"""

import collections
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax

Row = dict[str, float]

# Peak dense bfloat16 FLOP/s of one device, by a part of its `device_kind`, the more particular first.
# Sources: cloud.google.com/tpu/docs (system architecture pages), NVIDIA's data sheets (SXM parts, without sparsity).
PEAK_FLOPS = {
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
}


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """The peak dense bfloat16 FLOP/s of these devices together; None where it is not known (every CPU)."""
    known = next((peak for part, peak in PEAK_FLOPS.items() if part in devices[0].device_kind), None)
    return None if known is None else known * len(devices)


class Observer:
    """Writes rows into `workdir` and to the terminal. Use it as a context manager; `say` prints a line of its own.

    Arguments:
      workdir: an existing folder.
      steps: the run's last step, for the time left.
      metric: the score that the run is judged by, which the terminal always shows.
      first_step: the step it goes on from; rows after it, left by a killed run, are taken out of metrics.jsonl.
      on_row: called with each row, after it is written.
      primary: False on all processes but one: nothing is written or printed.
    """

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
        self.workdir, self.steps, self.metric, self.first_step = workdir, steps, metric, first_step
        self.on_row, self.primary = on_row, primary
        self.path = workdir / "metrics.jsonl"

    def __enter__(self) -> "Observer":
        if not self.primary:
            return self
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        kept = [row for row in read_rows(self.path) if row["step"] <= self.first_step]
        self.file = self.path.open("w", encoding="utf-8")
        self.file.writelines(json.dumps(row) + "\n" for row in kept)
        self.file.flush()
        # Not its SummaryWriter, whose thread dies of a full disk, and then lets the loop wait for ever.
        self.events, self.flushed = EventsWriter(str(self.workdir / "events")), time.monotonic()
        start = SessionLog(status=SessionLog.START)  # TensorBoard forgets what a killed run has left after this step
        self.events.write_event(Event(wall_time=time.time(), step=self.first_step + 1, session_log=start))
        self.progress = _progress(self.steps, self.first_step) if sys.stdout.isatty() else None
        return self

    def __exit__(self, *_: Any) -> None:
        if not self.primary:
            return
        if self.progress is not None:
            self.progress.stop()
        with closing(self.file):
            self.events.close()

    def row(self, row: Row) -> None:
        """One row to metrics.jsonl (non-finite numbers as null), TensorBoard, the terminal and `on_row`."""
        if self.primary:
            finite = {k: (v if math.isfinite(v) else None) for k, v in row.items()}
            self.file.write(json.dumps(finite) + "\n")
            self.file.flush()
            step = int(row["step"])
            self._events(step, {k: v for k, v in row.items() if k != "step" and math.isfinite(v)})
            if self.progress is not None and "loss" in row:
                self.progress.update(self.progress.task_ids[0], completed=step, line=describe(row))
            if self.progress is None or "loss" not in row:
                self.say(f"step {step:,}/{self.steps:,}  {describe(row, self.metric)}")
        if self.on_row is not None:
            self.on_row(row)

    def _events(self, step: int, values: Row) -> None:
        """Writes these numbers for TensorBoard; they are on the disk two minutes later."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in values.items():
            summary = scalar(name if "/" in name else f"train/{name}", value)
            self.events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self.flushed > 120:
            self.events.flush()
            self.flushed = time.monotonic()

    def flush(self) -> None:
        """Brings all that was written to the files, for who copies them."""
        if self.primary:
            self.events.flush()

    def say(self, text: str) -> None:
        """A line above the progress bar, or a plain line."""
        if not self.primary:
            return
        if self.progress is not None:
            self.progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, total) now and then, which says on stderr how far it is and how long it will take.

    On a terminal this is a bar, unless stdout is one too and has lines of its own; else a line every `COUNT_EVERY`
    seconds. Only process 0 says it.
    """
    began = said = time.perf_counter()
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
        nonlocal said
        now = time.perf_counter()
        if now - said >= COUNT_EVERY and 0 < done < total and jax.process_index() == 0:
            said = now
            left = duration((now - began) / done * (total - done))
            print(f"{what}: {done:,} of {total:,}, {left} left", file=sys.stderr, flush=True)

    yield line


def banner(number: int, text: str) -> None:
    """Announces a chapter of the run."""
    if jax.process_index() == 0:
        print(f"[{number}] {text}", flush=True)


COUNT_EVERY = 30.0  # seconds

# The order and form in which a row's numbers are shown; what is not named here is shown as it is.
_FORMATS = {
    "loss": ("loss", "{:.4f}"),
    "learning_rate": ("lr", "{:.2e}"),
    "grad_norm": ("grad norm", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "images_per_second": ("images/s", "{:,.0f}"),
    "mfu": ("MFU", "{:.1%}"),
    "seconds_left": ("left", "{}"),
}
# A classifier has more scores than a line has room for: these are in the files and in `table`.
_DETAILS = re.compile(r"(precision|recall)(_macro|_micro)?|f1_micro|.*_(low|high)")


def describe(row: Mapping[str, Any], metric: str = "") -> str:
    """A row as one line of text: without details, unless one is `metric`, and strings; intervals beside what they are
    of."""
    shown = []
    for name, value in row.items():
        bare = name.removeprefix("validation/")
        label, form = _FORMATS.get(name, (bare.replace("_", " "), "{:.4f}"))
        if name in ("step", "seconds_per_step", "data_wait") or (name == "skipped" and not value):
            continue
        if isinstance(value, str) or (_DETAILS.fullmatch(bare) and bare != metric):
            continue
        text = f"{label} {form.format(duration(value) if name == 'seconds_left' else value)}"
        if f"{name}_low" in row:
            text += f" ({row[f'{name}_low']:.4f} to {row[f'{name}_high']:.4f})"
        shown.append(text)
    kind = "validation  " if any(name.startswith("validation/") for name in row) else ""
    return kind + "  ".join(shown)


def table(report: Mapping[str, float | str]) -> str:
    """All of a report, a number or a string a line."""
    width = max(map(len, report), default=0)
    shown = {name: value if isinstance(value, str) else f"{value:.4f}" for name, value in report.items()}
    return "\n".join(f"  {name.replace('_', ' '):{width}}  {text}" for name, text in shown.items())


def duration(seconds: float) -> str:
    """`3:07`, `2:05:00` (hours), `3 d 4 h`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def _progress(steps: int, first_step: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
    progress = Progress(*columns, refresh_per_second=4)
    progress.add_task("train", total=steps, completed=first_step, line="")
    progress.start()
    return progress


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none where there is no file. A last line cut short by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def plot_loss(rows: list[dict[str, Any]], path: Path) -> None:
    """The training and validation curves as a PNG. The validation loss is the first number of its rows that begins with
    "loss"; the rest of its name is the unit."""
    from matplotlib.figure import Figure

    names = [name for row in rows for name in row if name.startswith("validation/loss")]
    validation = names[0] if names else "validation/loss"
    unit = validation.removeprefix("validation/loss").strip("_").replace("_", " ")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training batch", "-"), (validation, "validation set", "o-")):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=3)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"loss ({unit})" if unit else "loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=150)


class Meter:
    """Turns the metrics of steps into rows, and knows how fast they come.

    Arguments:
      first_step: the step the run goes on from.
      steps: the run's last step, for the time left.
      tokens_per_step: positions of one batch, padding included; of the targets where there are sources and targets.
      unit: what these are if not tokens, "images".
      flops_per_step: of one batch, forward and backward.
      peak: the peak FLOP/s of all devices together; None where it is not known, and no MFU is given.
    """

    def __init__(
        self,
        *,
        first_step: int,
        steps: int,
        tokens_per_step: int,
        flops_per_step: float,
        peak: float | None,
        unit: str = "tokens",
    ) -> None:
        self.last_step, self.steps, self.tokens_per_step = first_step, steps, tokens_per_step
        self.flops_per_step, self.peak, self.unit = flops_per_step, peak, unit
        self.began = self.since = time.perf_counter()
        self.waited = 0.0
        self.spent: dict[str, float] = collections.defaultdict(float)  # seconds of the loop that were not steps

    def row(self, step: int, metrics: dict[str, Any]) -> Row:
        """The row of this step. Waits for its metrics; rates are over the steps since the last row."""
        values = jax.device_get(metrics)
        row = {"step": float(step)}
        row |= {name: float(total) / max(float(weight), 1e-9) for name, (total, weight) in values["sums"].items()}
        row |= {name: float(values[name]) for name in ("learning_rate", "grad_norm", "skipped")}
        now = time.perf_counter()
        seconds, waited = max(now - self.since, 1e-9), self.waited
        seconds_per_step = seconds / max(step - self.last_step, 1)
        self.since, self.last_step, self.waited = now, step, 0.0
        row["seconds_per_step"] = seconds_per_step
        row["data_wait"] = min(waited / seconds, 1.0)
        row[f"{self.unit}_per_second"] = self.tokens_per_step / seconds_per_step
        if self.peak is not None:
            row["mfu"] = self.flops_per_step / seconds_per_step / self.peak
        row["seconds_left"] = seconds_per_step * (self.steps - step)
        return row

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is the wait for a batch: its share of the time is a row's "data_wait". The device may
        still be busy meanwhile, so it idles for no more than this."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before
        self.spent["waiting for data"] += time.perf_counter() - before

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """What happens inside, such as "evaluating" or "saving", is not counted as time of training."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.since += time.perf_counter() - before
            self.spent[what] += time.perf_counter() - before

    def stop(self) -> None:
        """The last step has been taken."""
        self.ended = time.perf_counter()

    def goodput(self, seconds: float) -> float:
        """The share of `seconds`, a run's whole time, that went into steps."""
        return max(0.0, self.ended - self.began - sum(self.spent.values())) / seconds

    def goodput_in_words(self, seconds: float) -> str:
        """The goodput, and what the loop did beside steps."""
        pauses = ", ".join(f"{what} {spent:.1f} s" for what, spent in self.spent.items()) or "no pauses"
        return f"goodput {self.goodput(seconds):.1%}: the share of {duration(seconds)} spent in steps; {pauses}"
