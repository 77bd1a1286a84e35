"""What the drills of `tools/drills` are made of: a line of the table, what is drilled, and a trainer to kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

START = 600.0  # seconds that a trainer may take until it does what a drill waits for
INTERVAL = 20  # steps between two saves of the drills that wait for saves


@dataclass
class Row:
    """A line of the table."""

    drill: str
    tries: int = 0
    survived: int = 0
    remarks: list[str] = field(default_factory=list)

    def count(self, problem: str | None) -> None:
        self.tries += 1
        self.survived += problem is None
        if problem is not None:
            self.remarks.append(problem)
            print(f"  {self.drill}: {problem}", flush=True)

    def __str__(self) -> str:
        return f"| {self.drill} | {self.tries:,} | {self.survived:,} | {'; '.join(self.remarks) or '-'} |"


@dataclass(frozen=True)
class Job:
    """What is drilled: the words after `train`, and a folder for the drills' workdirs."""

    experiment: list[str]
    fields: list[str]
    folder: Path

    def arguments(self, workdir: Path | str, **fields: object) -> list[str]:
        """The words of a `train` command; `fields` come last and so win: train__steps=5."""
        more = [word for name, value in fields.items() for word in (f"--{name.replace('__', '.')}", str(value))]
        return ["train", *self.experiment, "--workdir", str(workdir), *self.fields, *more]


_trainers: list["Trainer"] = []  # all that were started


class Trainer:
    """A process that trains, and what it prints, in `log`."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        fault: tuple[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it, with a fault of `tools/drills/faults.py` where one is given, and more environment."""
        self.log = log
        self.code: int | None = None
        _trainers.append(self)
        module = ["transformer_jax"] if fault is None else ["tools.drills.faults", fault[0], str(fault[1])]
        settings = os.environ | dict(environment or {})
        with log.open("wb") as out:
            command = [sys.executable, "-m", *module, *arguments]
            self.pid = subprocess.Popen(command, stdout=out, stderr=out, env=settings).pid

    def ended(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is not None:
            return self.code
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if found is None else self.wait()

    def wait(self, limit: float = START) -> int:
        """The exit code. Errors: `TimeoutError` after `limit` seconds, when it is killed."""
        if self.code is not None:
            return self.code
        until = time.monotonic() + limit
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > until:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"did not end in {limit:.0f} s; {self.log} says: {self.output()[-300:]}")
            time.sleep(0.002)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, ready: Callable[[], object], what: str) -> None:
        """Returns once `ready()` is true. Raises `RuntimeError` when the trainer ends first, or is too slow."""
        until = time.monotonic() + START
        while not ready():
            if self.ended() is not None:
                raise RuntimeError(f"ended with {self.wait()} before {what}: {self.output()[-600:]}")
            if time.monotonic() > until:
                self.signal(signal.SIGKILL)
                raise RuntimeError(f"no {what} in {START:.0f} s: {self.output()[-600:]}")
            time.sleep(0.003)

    def stepped(self, times: int = 1) -> bool:
        """Whether it has taken so many steps: metrics.jsonl may still hold those of the trainer before it."""
        return self.output().count("\nstep ") >= times

    def resumed(self) -> int:
        """The step that it resumes from, as it logs; 0 where it begins."""
        return int(self.output().partition("resume from step ")[2].partition(" ")[0].replace(",", "") or 0)

    def reached(self) -> int:
        """The last step that it has logged; 0 before the first."""
        _, found, rest = self.output().rpartition("\nstep ")
        return int(rest.partition("/")[0].replace(",", "")) if found else 0

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def end_trainers() -> None:
    """Ends those that a drill which broke off has left."""
    for trainer in _trainers:
        if trainer.ended() is None:
            trainer.signal(signal.SIGKILL)


def wrong_start(trainer: Trainer, found: int) -> str | None:
    """Waits for a trainer's first step; what is wrong with where it went on from, `found` being the newest step."""
    try:
        trainer.until(trainer.stepped, "a step")
    except RuntimeError as error:
        return f"did not resume: {error}"
    start = trainer.resumed()
    return None if start == found else f"resumed from step {start}, and {found} was the newest"
