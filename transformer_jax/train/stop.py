"""SIGINT, SIGTERM and SIGUSR1 as something a loop can ask about, with the same answer on all hosts."""

import contextlib
import signal
import threading
from typing import Any

import jax

from transformer_jax import hosts, interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
POLL = 0.5  # seconds between two looks whether another host was told to stop; more with very many hosts
_LEFT = "left"


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGUSR1 instead of dying of them; calling it says whether one has come.

        with StopSignals() as stop:
            while not stop(): ...

    The loop finishes its step and saves. Further signals are noted too, so they do not break the save. Outside the main
    thread Python delivers no signals, and nothing is noted. `number` is the first signal's, 0 while there was none.

    A signal to one of several hosts stops all, at the same call: calls are counted, and every host must make the same
    ones. When somebody asks for a stop, a thread of each host holds its calls, tells the others how many were made, and
    the first call that nobody has made is the one that says yes. Nobody waits for ever: a host held at its next call
    has begun all steps that the calls before allowed, and the threads wait for no collective.
    """

    def __init__(self) -> None:
        self.number = 0
        self.noted = signal.SIGINT if interrupts.came else 0  # one that came before and was lost
        self.thread: threading.Thread | None = None
        # Of several hosts: the calls made here, what holds them, the call that says yes and the signal's number.
        self.calls, self.calling, self.ended = 0, threading.Lock(), threading.Event()
        self.last: tuple[int, int] | None = None

    def __call__(self) -> bool:
        if self.thread is None:
            self.number = self.noted
            return self.number != 0
        with self.calling:
            self.calls += 1
            if self.last is not None and self.calls >= self.last[0]:
                self.number = self.last[1]
        return self.number != 0

    def _note(self, number: int, frame: Any) -> None:
        self.noted = self.noted or number

    def __enter__(self) -> "StopSignals":
        main = threading.current_thread() is threading.main_thread()
        self.before = {s: signal.signal(s, self._note) for s in SIGNALS} if main else {}
        if not hosts.alone():
            self.key = hosts.unique("stop")
            self.thread = threading.Thread(target=self._agree, name="stop", daemon=True)
            self.thread.start()
        return self

    def _agree(self) -> None:
        """Waits until somebody asks for a stop, and settles with the others at which call."""
        with contextlib.suppress(Exception):  # host 0 is gone; `hosts.together` sees to that
            while (asked := hosts.get(f"{self.key}/asked")) is None:
                if self.noted:
                    hosts.put(f"{self.key}/asked", str(self.noted), once=True)
                elif self.ended.wait(max(POLL, jax.process_count() / 256)):
                    return
            with self.calling:
                hosts.put(f"{self.key}/calls/{jax.process_index()}", str(self.calls))
                while len(counts := hosts.listed(f"{self.key}/calls")) < jax.process_count():
                    if self.ended.wait(0.1):
                        return
                if _LEFT not in counts.values():  # else the run is at its end anyway
                    self.last = max(map(int, counts.values())) + 1, int(asked)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.thread is not None:
            self.ended.set()
            self.thread.join()
            with contextlib.suppress(Exception):
                hosts.put(f"{self.key}/calls/{jax.process_index()}", _LEFT, once=True)
