"""The lock of a workdir: two trainers cannot write one folder.

    WORKDIR/lock    {"host": "tpu-vm-3", "pid": 4711, "started": "2026-11-21 10:43:00 UTC", "run": "5f0c..."}

Its owner touches the file every ten seconds, so that its age is the time since the last sign of life, and holds a POSIX
record lock on it, which the kernel lets go of however the process ends. So on one machine a lock without an owner is
known at once. From another machine, to which the kernel's lock may not reach, only the age speaks: a lock that nobody
has touched for a minute is taken over, and one that is younger is watched until it is touched or a minute old. An owner
that was frozen for so long, and wakes up, finds another name in the file before it saves, and stops.

`evaluate`, `predict` and all else that reads takes no lock: a step is there whole, or not at all.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer_jax.errors import InputError, RunError

NAME = "lock"
HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which the owner counts as gone


class Lost(RunError):
    """Another run has taken the lock over: this one may not write any more."""


_held: set[Path] = set()  # by this process, which its own record locks do not stop
_guard = threading.Lock()


@contextlib.contextmanager
def hold(workdir: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Holds the lock of `workdir`, which is made if it is missing, for the length of a `with` block.

    A lock whose owner is gone is taken over, and `say` says so. Gives a function to call before each save, which raises
    `Lost` when another run has taken the lock over. Errors: `InputError` naming the owner of a lock that is
    alive, and for a folder that cannot be written.
    """
    path = workdir.resolve() / NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor, mine = _take(path, say)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another --workdir") from None
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, ended), name="lock heartbeat", daemon=True)
    heart.start()

    def check() -> None:
        if _read(descriptor) != mine or not _same_file(descriptor, path):
            raise Lost(f"{path} was taken over by {describe(_read(descriptor))}; this run stops, and saves no more")

    try:
        yield check
    finally:
        ended.set()
        heart.join(HEARTBEAT)
        with contextlib.suppress(OSError, RunError):
            check()
            path.unlink()
        os.close(descriptor)  # and the kernel's lock with it
        with _guard:
            _held.discard(path)


def _take(path: Path, say: Callable[[str], None]) -> tuple[int, dict[str, Any]]:
    """The descriptor of the locked file, and what it says of us."""
    with _guard:
        if path in _held:
            raise InputError(f"{path.parent} is being written by this very process; give another --workdir")
        _held.add(path)
    try:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if not _kernel_lock(descriptor):
                    raise InputError(_refusal(path, _read(descriptor)))
                if not _same_file(descriptor, path):  # its owner took it away between our two calls
                    os.close(descriptor)
                    continue
                owner, mine = _read(descriptor), myself()
                elsewhere = owner is not None and owner.get("host") != mine["host"]
                if owner is not None:
                    if elsewhere:
                        _watch(path, owner, say)
                    say(f"{path}: {describe(owner)} is gone; its lock is taken over")
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(mine).encode(), 0)
                os.fsync(descriptor)
                if elsewhere:
                    time.sleep(1)  # a third machine may take it over in the same moment: the last to write has it
                    if _read(descriptor) != mine:
                        raise InputError(_refusal(path, _read(descriptor)))
                return descriptor, mine
            except BaseException:
                os.close(descriptor)
                raise
    except BaseException:
        with _guard:
            _held.discard(path)
        raise


def _kernel_lock(descriptor: int) -> bool:
    """Whether no living process holds the file, as far as the kernel sees; True where the file system has no locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _watch(path: Path, owner: dict[str, Any], say: Callable[[str], None]) -> None:
    """Waits until a lock of another machine is `STALE`. Errors: `InputError` when it is touched meanwhile."""
    touched, began = _touched(path), time.monotonic()
    told = False
    while touched is not None and time.time() - touched < STALE and time.monotonic() - began < STALE:
        if not told:
            say(f"{path}: held by {describe(owner)}; waiting for up to {STALE:.0f} s to see whether it is alive")
            told = True
        time.sleep(1)
        if (now := _touched(path)) != touched:
            if now is None:
                return
            raise InputError(_refusal(path, owner))


def _refusal(path: Path, owner: dict[str, Any] | None) -> str:
    touched = _touched(path)
    age = "" if touched is None else f", alive {max(0.0, time.time() - touched):.0f} s ago"
    return (
        f"{path.parent} is being written by {describe(owner)}{age} ({path}); stop that run, or give another --workdir"
    )


def describe(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')}, started {owner.get('started')}"


def myself() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": f"{now:%Y-%m-%d %H:%M:%S} UTC",
        "run": uuid.uuid4().hex,
    }


def _read(descriptor: int) -> dict[str, Any] | None:
    """The owner that the file names; None for a file that is new, {} for one that cannot be read as JSON."""
    data = os.pread(descriptor, 4096, 0)
    if not data:
        return None
    try:
        owner = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _same_file(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
