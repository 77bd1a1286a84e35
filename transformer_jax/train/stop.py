"""SIGINT, SIGTERM and SIGUSR1 as a flag that a loop can read, with the same value on all hosts."""

import contextlib
import signal
import threading
from typing import Any

import jax

from transformer_jax import hosts, interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
POLL = 0.5  # seconds between two checks for a signal to another host; longer with very many hosts
_LEFT = "left"


class StopSignals:
    """Catches SIGINT, SIGTERM and SIGUSR1; a call returns whether one has arrived.

        with StopSignals() as stop:
            while not stop(): ...

    The loop then finishes its step and saves. Further signals are caught as well, so that they do not interrupt the
    save. Outside the main thread Python delivers no signals. `number` is that of the first signal, 0 without one.

    A signal to one of several hosts stops all of them in the same call. To that end calls are counted, and every host
    must make the same calls. After a signal, a thread on each host blocks further calls and publishes how many its host
    has made; the first call that no host has made yet returns True. This cannot deadlock: a host that is blocked has
    started every step that its earlier calls allowed, and the threads do not wait for a collective operation.
    """

    def __init__(self) -> None:
        self.number = 0
        self.caught = signal.SIGINT if interrupts.came else 0  # a signal that came before this was constructed
        self.thread: threading.Thread | None = None
        # With several hosts: the calls made by this one, the lock that blocks them, and the end of the thread.
        self.calls, self.calling, self.ended = 0, threading.Lock(), threading.Event()
        self.last: tuple[int, int] | None = None  # the call that returns True, and the signal's number

    def __call__(self) -> bool:
        if self.thread is None:
            self.number = self.caught
            return self.number != 0
        with self.calling:
            self.calls += 1
            if self.last is not None and self.calls >= self.last[0]:
                self.number = self.last[1]
        return self.number != 0

    def _catch(self, number: int, frame: Any) -> None:
        self.caught = self.caught or number

    def __enter__(self) -> "StopSignals":
        main = threading.current_thread() is threading.main_thread()
        self.before = {s: signal.signal(s, self._catch) for s in SIGNALS} if main else {}
        if not hosts.alone():
            self.key = hosts.unique("stop")
            self.thread = threading.Thread(target=self._agree, name="stop", daemon=True)
            self.thread.start()
        return self

    def _agree(self) -> None:
        """Waits for a signal to any host, and agrees with the other hosts on the call that returns True."""
        with contextlib.suppress(Exception):  # host 0 has failed; `hosts.together` handles that
            while (asked := hosts.get(f"{self.key}/asked")) is None:
                if self.caught:
                    hosts.put(f"{self.key}/asked", str(self.caught), once=True)
                elif self.ended.wait(max(POLL, jax.process_count() / 256)):
                    return
            with self.calling:
                hosts.put(f"{self.key}/calls/{jax.process_index()}", str(self.calls))
                while len(counts := hosts.listed(f"{self.key}/calls")) < jax.process_count():
                    if self.ended.wait(0.1):
                        return
                if _LEFT not in counts.values():  # otherwise a host has left its loop: the run is ending anyway
                    self.last = max(map(int, counts.values())) + 1, int(asked)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.thread is not None:
            self.ended.set()
            self.thread.join()
            with contextlib.suppress(Exception):
                hosts.put(f"{self.key}/calls/{jax.process_index()}", _LEFT, once=True)
