"""The lock of a workdir in an object store: two trainers cannot write one run there.

WORKDIR/lock is an object that says what the file of that name says (`lock.py`). It is created expecting that there is
none. Its owner writes it again every ten seconds, each time expecting the generation that it wrote last, so a lock that
was taken over is noticed at the next beat, and before each save and each manifest. Its age, by the store's clock, is
the time since the last sign of life: a lock of a minute is taken over, which expects the generation that was seen, so
one of several wins; a younger one is watched. Only for a process of this very machine and process namespace is more
known than its age: whether it still runs.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer_jax.errors import InputError, RunError
from transformer_jax.runs import lock, owners, store


@contextlib.contextmanager
def hold(workdir: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """As `lock.hold`, of a `workdir` in a store; `say` receives the same lines."""
    path = workdir / lock.NAME
    data = json.dumps(owners.myself()).encode()
    try:
        held = _Held(path, data, _take(path, data, say))
    except store.Failed as error:
        raise InputError(f"{error}; or give another --workdir") from None
    heart = threading.Thread(target=held.beat, name="lock heartbeat", daemon=True)
    heart.start()
    try:
        yield held.check
    finally:
        held.ended.set()
        heart.join(lock.HEARTBEAT)
        with contextlib.suppress(RunError, store.Changed):
            store.delete(path, generation=held.generation)


class _Held:
    """The lock while it is ours: the generation that was written last, and whether another's is there now."""

    def __init__(self, path: Path, data: bytes, generation: int) -> None:
        self.path, self.data, self.generation = path, data, generation
        self.ended, self.turn = threading.Event(), threading.Lock()

    def beat(self) -> None:
        while not self.ended.wait(lock.HEARTBEAT):
            with contextlib.suppress(store.Changed, store.Failed), self.turn:  # `check` says so, when it matters
                self.generation = store.put(self.path, self.data, generation=self.generation)

    def check(self) -> None:
        """Raises `lock.Lost` when another run has taken the lock over."""
        with self.turn:
            try:
                found, _ = store.get(self.path)
            except FileNotFoundError:
                raise lock.lost(self.path, None) from None
        if found != self.data:
            raise lock.lost(self.path, owners.read(found))


def _take(path: Path, data: bytes, say: Callable[[str], None]) -> int:
    """The generation of the lock, which is ours now. Raises `InputError` naming an owner that is alive."""
    while True:
        with contextlib.suppress(store.Changed):
            return store.put(path, data, generation=0)
        try:
            found, seen = store.get(path)
        except FileNotFoundError:  # its owner took it away between our two calls
            continue
        owner = owners.read(found)
        if not owners.ended(owner):
            seen = _watch(path, owner, seen, say)
        with contextlib.suppress(store.Changed):
            generation = store.put(path, data, generation=seen.generation)
            say(f"{path}: {owners.describe(owner)} is gone; its lock is taken over")
            return generation


def _watch(path: Path, owner: dict[str, Any], seen: store.Seen, say: Callable[[str], None]) -> store.Seen:
    """Waits until the lock is stale. Raises `InputError` when its owner gives a sign of life meanwhile."""
    began, first = time.monotonic(), seen
    while seen.age < lock.STALE and time.monotonic() - began < lock.STALE:
        if first is seen:
            say(f"{path}: held by {owners.describe(owner)}; watching for up to {lock.STALE:.0f} s whether it is alive")
        time.sleep(1)
        try:
            found, seen = store.get(path)
        except FileNotFoundError:
            return store.Seen(0, 0.0)
        if seen.generation != first.generation:
            raise InputError(lock.refusal(path, owners.read(found), f", alive {seen.age:.0f} s ago"))
    return seen
