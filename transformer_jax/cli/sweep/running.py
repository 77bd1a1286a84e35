"""The runs of a sweep that train: their processes, and when the median rule ends one early."""

import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformer_jax import observe
from transformer_jax.errors import InputError

PLAIN = (sys.executable, "-m", "transformer_jax")
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


@dataclass
class Running:
    """A run that trains.

    Attributes:
      process: of `train`, or of the command that has started it.
      folder: its workdir.
      slot: its number among those that train at the same time.
      size: of its metrics.jsonl when it was last looked at.
      is_early: whether the median rule has ended it.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    slot: int = 0
    size: int = -1
    is_early: bool = False

    def has_grown(self) -> bool:
        """Whether there are new rows since the last call."""
        path = self.folder / "metrics.jsonl"
        before, self.size = self.size, path.stat().st_size if path.exists() else -1
        return self.size != before

    def end_early(self) -> None:
        """Sends SIGTERM, upon which the run saves and ends."""
        self.is_early = True
        self.process.send_signal(signal.SIGTERM)


def start(arguments: Sequence[str], folder: Path, log: Path, by: str = "", slot: int = 0) -> Running:
    """A run that begins.

    Args:
      arguments: the arguments of `train`, without --workdir.
      folder: the run's workdir.
      log: gets what it prints, after what is there.
      by: the command that starts it, such as "srun --gpus 1"; {slot} in it is `slot`.
      slot: its number among those that train at the same time.
    """
    begin = [*shlex.split(by.replace("{slot}", str(slot))), *PLAIN] if by else [*CHILD, str(os.getpid())]
    command = [*begin, "train", *arguments, "--workdir", str(folder)]
    with log.open("ab") as out:
        try:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        except OSError as error:
            raise InputError(f"{begin[0]} cannot be started ({error.strerror}); --by names a command") from None
    return Running(process, folder, slot)


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
