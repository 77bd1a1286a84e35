"""Tracking services, which may be down, slow or full: a process per service (`serving`), behind a queue.

The loop puts each event into the queue and continues; a thread writes it to the process. Events that do not fit into
the queue are dropped and counted. Therefore the run's own process never imports a service's package, whose threads,
hooks and exit could block it: W&B waits 90 s at exit for a server that does not answer, and without a limit for its own
process. When a run is killed its pipe closes, and the service is notified that the run has ended.
"""

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from transformer_jax.contracts import Observer, Report, Row, RunFacts

QUEUE_SIZE = 10_000  # calls that may wait for a service
WAIT = 30.0  # seconds for all services at the end of a run
WAIT_AFTER_SIGNAL = 10.0  # a preempted machine leaves about 30 s for everything
FAILED = 3  # exit code of a process that has logged itself why its observer is dropped


class Sending(Observer):
    """Passes the events of a run to the services of these names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def start(self, run: RunFacts) -> None:
        self.senders = [_Sender(name) for name in self.names]
        self._put("start", dataclasses.asdict(run))

    def row(self, row: Row) -> None:
        self._put("row", row)

    def evaluation(self, step: int, name: str, report: Report) -> None:
        self._put("evaluation", step, name, report)

    def end(self, results: Mapping[str, Any]) -> None:
        """Waits until the services have received everything, but not longer than `WAIT` or `WAIT_AFTER_SIGNAL`."""
        deadline = time.monotonic() + (WAIT if results else WAIT_AFTER_SIGNAL)
        self._put("end", results)
        for sender in self.senders:
            sender.close(deadline)

    def _put(self, *call: Any) -> None:
        for sender in self.senders:
            sender.put(call)


class _Sender:
    """The process of one service, the queue in front of it, and the thread between them."""

    def __init__(self, name: str) -> None:
        self.name, self.missed, self.exit_is_logged = name, 0, False
        self.calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transformer_jax.observe.serving", name],
            stdin=subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # Ctrl-C must reach only the run, which then sends `end`
        )
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def put(self, call: tuple[Any, ...]) -> None:
        if not self.thread.is_alive():
            return
        if call[0] == "end" or self.calls.qsize() < QUEUE_SIZE:
            self.calls.put(call)
        else:
            self.missed += 1

    def _write(self) -> None:
        """Writes calls to the process, a JSON list per line, until the run or the process ends."""
        assert self.process.stdin is not None
        try:
            with self.process.stdin as pipe:
                method = ""
                while method != "end":
                    method, *arguments = self.calls.get()
                    pipe.write(json.dumps([method, *arguments], default=_plain).encode() + b"\n")
                    pipe.flush()
        except OSError:  # the process has ended, so that nothing reads the pipe
            self._log_exit(self.process.wait())

    def close(self, deadline: float) -> None:
        """Waits for the process until `deadline`, a `time.monotonic`, then kills it. Logs how many calls it missed."""
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.missed:
            _log(f"{self.name} is too slow: {self.missed:,} rows and evaluations are missing there")
        try:
            code = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log(f"{self.name} has not taken everything in time; the run ends without it")
            self.exit_is_logged = True
            self.process.kill()
            self.process.wait()
            self.thread.join()
        else:
            self._log_exit(code)

    def _log_exit(self, code: int) -> None:
        if code not in (0, FAILED) and not self.exit_is_logged:
            self.exit_is_logged = True
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            _log(f"{self.name} is dropped and the run goes on without it: its process ended with {how}")


def environment() -> dict[str, str]:
    """The environment of a service's process: the same packages, and no accelerator."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _plain(value: Any) -> Any:
    """A value that JSON cannot hold, as a number or a text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
