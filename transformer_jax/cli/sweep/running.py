"""One run of a sweep: a process of `train`, followed by its metrics and ended early where the median rule says so."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformer_jax import observe

CHILD = (sys.executable, "-m", "transformer_jax.cli.sweep.child")
POLL = 0.5  # seconds
Curve = list[tuple[float, float]]
"""(step, the best value so far) of each evaluation."""


def curve(folder: Path, metric: str, highest: bool) -> Curve:
    """The best value so far at each evaluation of the run in `folder`.

    Args:
      folder: the folder of the run.
      metric: a number of its validation reports.
      highest: whether a higher value is better.
    """
    found: Curve = []
    for row in observe.rows(folder / "metrics.jsonl"):
        value = row.get(f"validation/{metric}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            better = value if not found else (max if highest else min)(found[-1][1], value)
            found.append((row["step"], better))
    return found


def below_median(mine: Curve, others: Sequence[Curve], least: int, highest: bool) -> bool:
    """Whether a run's best value is worse than the median of the others' at the same step (Golovin et al. 2017, 3.3).

    Args:
      mine: the curve of the run.
      others: the curves of the runs before it.
      least: the number of other runs that must have reached the step; 0: no run is ended early.
      highest: whether a higher value is better.
    """
    if not mine or not least:
        return False
    step, value = mine[-1]
    reached = [
        [v for s, v in other if s <= step][-1] for other in others if other and other[0][0] <= step <= other[-1][0]
    ]
    if len(reached) < least:
        return False
    median = statistics.median(reached)
    return value < median if highest else value > median


def train(arguments: Sequence[str], folder: Path, log: Path, ends: Mapping[str, object]) -> tuple[int, bool]:
    """(exit code, whether it was ended early) of a run.

    Args:
      arguments: the arguments of `train`, without --workdir.
      folder: the run's workdir.
      log: gets what it prints, after what is there.
      ends: {"metric", "highest", "others", "least"} of `below_median`.
    """
    command = [*CHILD, str(os.getpid()), "train", *arguments, "--workdir", str(folder)]
    with log.open("ab") as out, forwarded() as forward:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        forward.append(process)
        size, early = -1, False
        while process.poll() is None:
            time.sleep(POLL)
            path = folder / "metrics.jsonl"
            now = path.stat().st_size if path.exists() else -1
            if now != size and not early:
                size = now
                mine = curve(folder, str(ends["metric"]), bool(ends["highest"]))
                if below_median(mine, ends["others"], ends["least"], bool(ends["highest"])):  # type: ignore[arg-type]
                    early = True
                    process.send_signal(signal.SIGTERM)
    return process.returncode, early and process.returncode != 0


@contextlib.contextmanager
def forwarded() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A list of processes that get SIGTERM when this one does; they save, and the sweep then ends like Ctrl-C."""
    processes: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield processes
    except KeyboardInterrupt:  # the terminal has sent Ctrl-C to the run as well, which saves
        for process in processes:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def last_line(log: Path) -> str:
    """The last line of `log`, a run's output, which states why it failed."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4000, 0))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return json.dumps(next((line for line in reversed(lines) if line.strip()), ""), ensure_ascii=False)[1:-1][:300]
