"""SIGINT and SIGTERM as something a loop can ask about."""

import signal
import threading
from typing import Any


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; calling it says whether one has come.

        with StopSignals() as stop:
            while not stop(): ...

    The loop finishes its step and saves. Further signals are noted too, so they do not break the save. Outside the main
    thread Python delivers no signals, and nothing is noted. `number` is the first signal's, 0 while there was none.
    """

    number = 0

    def __call__(self) -> bool:
        return self.number != 0

    def _note(self, number: int, frame: Any) -> None:
        self.number = self.number or number

    def __enter__(self) -> "StopSignals":
        main = threading.current_thread() is threading.main_thread()
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
