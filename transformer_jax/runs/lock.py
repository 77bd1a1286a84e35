"""The lock of a workdir: two trainers cannot write one folder.

    WORKDIR/lock    {"host": "tpu-vm-3", "pid": 4711, "started": "2026-11-21 10:43:00 UTC", "run": "5f0c...", ...}

The file is there while a trainer has the folder. It is made whole, under another name, and then linked to this one, of
which one process succeeds. Who finds it there asks, in this order:

 - Does its owner hold the kernel's lock on it (`flock`, which ends with the process, and which no other descriptor of
   the file that is closed drops)? Then the owner is alive.
 - Is the owner a process of this very machine? Then the process number and the moment of its start say whether it has
   ended, and the file's own number whether this is the file that it wrote, or a copy.
 - Else only signs of life speak, which the owner gives every ten seconds by touching the file. No clock is compared
   with another host's: the file is watched for a minute, and any change in it is a sign of life.

The lock of an owner that has ended is taken over: of those who want to succeed it, one can link its file to the name
`lock.after-RUN`, and renames that to `lock`. An owner that was frozen meanwhile, and wakes up, finds another name in
the file before it saves, and stops.

`evaluate`, `predict` and all else that reads takes no lock: a step is there whole, or not at all.
"""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.errors import InputError, RunError

NAME = "lock"
HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which the owner counts as gone
ORPHANS = 10.0  # seconds that the children of a killed owner may take to end: they hold the kernel's lock with it
MAX_BYTES = 4096

# What a file system answers that has no locks, or no hard links.
_NOT_THERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EMLINK)


class Lost(RunError):
    """Another run has taken the lock over: this one may not write any more."""


_held: set[Path] = set()  # by this process
_guard = threading.Lock()


@contextlib.contextmanager
def hold(workdir: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Holds the lock of `workdir`, which is made if it is missing, for the length of a `with` block.

    Gives a function to call before each save, which raises `Lost` when another run has taken the lock over.

    Args:
      workdir: the folder.
      say: receives a line when an owner that seems to have ended is watched, and when its lock is taken over.

    Raises: `InputError` naming the owner of a lock that is alive, and for a folder that cannot be written.
    """
    path, mine = workdir.resolve() / NAME, myself()
    with _guard:
        if path in _held:
            raise InputError(f"{path.parent} is being written by this very process; give another --workdir")
        _held.add(path)
    descriptor = -1
    try:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            descriptor = _take(path, mine, say)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); give another --workdir") from None
        with _heartbeat(descriptor):
            try:
                yield lambda: _check(path, mine)
            finally:
                with contextlib.suppress(OSError, RunError):
                    _check(path, mine)
                    path.unlink()
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # and the kernel's lock with it
        with _guard:
            _held.discard(path)


def _check(path: Path, mine: dict[str, Any]) -> None:
    found = _look(path)  # opened again: a network file system asks the server then
    if found is None or found.owner != mine:
        raise lost(path, found.owner if found else None)


@contextlib.contextmanager
def _heartbeat(descriptor: int) -> Iterator[None]:
    """Touches the file, our own whatever has its name by now, every `HEARTBEAT` seconds."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=beat, name="lock heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# -------------------------------------------------------------------------------------------------------------- taking


def _take(path: Path, mine: dict[str, Any], say: Callable[[str], None]) -> int:
    """The descriptor of our file, which is the lock now. Raises `InputError` naming an owner that is alive."""
    made = path.with_name(f"{NAME}.{mine['run']}")
    descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        mine["inode"] = os.fstat(descriptor).st_ino
        os.write(descriptor, json.dumps(mine).encode())
        os.fsync(descriptor)
        _flock(descriptor, fcntl.LOCK_EX)  # before it has the name: who finds the name finds it locked
        while not _name(made, path):
            found = _look(path)
            if found is not None and _is_gone(path, found, say):
                _succeed(made, path, found, mine)
            if (now := _look(path)) is not None and now.owner == mine:
                say(f"{path}: {describe(found.owner if found else None)} is gone; its lock is taken over")
                break
        for left in path.parent.glob(f"{NAME}.*"):  # by processes that were killed as they came here
            if left != made and (other := _look(left)) is not None and ended(other.owner):
                left.unlink(missing_ok=True)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        made.unlink(missing_ok=True)


def _name(made: Path, path: Path) -> bool:
    """Gives our file one more name, unless there is something of that name; returns whether it has it now."""
    try:
        os.link(made, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        # No hard links: the file is made empty, and its name is ours from then on.
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            return False
        made.replace(path)
    return True


def _succeed(made: Path, path: Path, found: "_Found", mine: dict[str, Any]) -> None:
    """Tries to become the successor of the owner found, which has ended; of several who try, one does."""
    claim = path.with_name(f"{NAME}.after-{found.name}")
    if not _name(made, claim):
        other = _look(claim)
        # Its maker is about to rename it, or was killed right here.
        if other is not None and (ended(other.owner) or _watch(claim, other, lambda line: None)):
            claim.unlink(missing_ok=True)
        time.sleep(0.1)
        return
    now = _look(path)
    if now is not None and now.name != found.name:  # another has succeeded it, and ended the claim by renaming it
        claim.replace(made)  # which does nothing where both are names of one file
        claim.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        claim.rename(path)


def _is_gone(path: Path, found: "_Found", say: Callable[[str], None]) -> bool:
    """Whether the owner has ended; False where the file was removed. Raises `InputError` when the owner is alive."""
    ends = time.monotonic() + ORPHANS
    while found.locked:
        if not ended(found.owner) or time.monotonic() > ends:
            raise InputError(refusal(path, found.owner))
        time.sleep(0.2)
        if (again := _look(path)) is None:
            return False
        found = again
    if ended(found.owner):
        return True
    if runs(found.owner) and found.owner.get("inode") == found.state[0]:
        raise InputError(refusal(path, found.owner))
    return _watch(path, found, say)


def _watch(path: Path, found: "_Found", say: Callable[[str], None]) -> bool:
    """Waits for `STALE` seconds of our own clock; returns False when the file goes away meanwhile.

    Raises `InputError` when its owner gives a sign of life.
    """
    began, logged = time.monotonic(), False
    while time.monotonic() - began < STALE:
        if not logged:
            say(f"{path}: held by {describe(found.owner)}; watching for {STALE:.0f} s whether it is alive")
            logged = True
        time.sleep(min(1.0, STALE / 4))
        now = _look(path)
        if now is None:
            return False
        if now != found:
            raise InputError(refusal(path, now.owner))
    return True


def lost(path: Path, owner: dict[str, Any] | None) -> Lost:
    """The error for an owner who finds another's name in the lock, or none."""
    what = "is gone: deleted, or taken over by a run that has ended since"
    return Lost(f"{path} {what if owner is None else f'was taken over by {describe(owner)}'}; this run saves no more")


def refusal(path: Path, owner: dict[str, Any], age: str = "") -> str:
    return (
        f"{path.parent} is being written by {describe(owner)}{age} ({path}); stop that run, or give another --workdir"
    )


# ------------------------------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class _Found:
    """A lock's file at one moment; two that differ are a sign of life."""

    owner: dict[str, Any]  # {} where that cannot be read
    name: str  # of the owner, for files
    locked: bool  # by a living process, as far as the kernel sees
    state: tuple[int, int, int]


def _look(path: Path) -> _Found | None:
    """What is in the file, through a descriptor of its own; None where there is none."""
    try:
        with files.opened(path, inside=path.parent) as file:
            status, data = os.fstat(file.fileno()), file.read(MAX_BYTES)
            locked = not _flock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return None
    owner = read_owner(data)
    run = owner.get("run")
    name = run if isinstance(run, str) and run.isalnum() else hashlib.sha256(data).hexdigest()[:32]
    return _Found(owner, name, locked, (status.st_ino, status.st_mtime_ns, status.st_size))


def _flock(descriptor: int, kind: int) -> bool:
    """False where another process holds the file, as far as the kernel sees; True where there are no locks too."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in _NOT_THERE:
            raise
    return True


def read_owner(data: bytes) -> dict[str, Any]:
    """The owner that a lock names; {} where that cannot be read."""
    with contextlib.suppress(ValueError, RecursionError):
        owner = json.loads(data)
        return owner if isinstance(owner, dict) else {}
    return {}


def describe(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "another process"
    pid, host, started = (str(owner.get(name))[:80] for name in ("pid", "host", "started"))
    return f"process {pid} on {host}, started {started}"


# ----------------------------------------------------------------------------------------------------------- processes


def myself() -> dict[str, Any]:
    """This process, as a lock names it."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": f"{now:%Y-%m-%d %H:%M:%S} UTC",
        "run": uuid.uuid4().hex,
        "machine": _machine(),
        "born": _born(os.getpid()),
    }


def ended(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended; False where that cannot be known."""
    return _is_here(owner) and _born(owner["pid"]) != owner["born"]


def runs(owner: dict[str, Any]) -> bool:
    """Whether the owner is a process of this machine that runs; False where that cannot be known."""
    return _is_here(owner) and _born(owner["pid"]) == owner["born"]


def _is_here(owner: dict[str, Any]) -> bool:
    here = owner.get("machine") and owner["machine"] == _machine()
    return bool(here and owner.get("born")) and type(owner.get("pid")) is int


def _machine() -> str:
    """What processes share that see each other's numbers: the boot of the kernel and the namespace; "" elsewhere."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks, which no later process of its number shares; "" of one that has
    ended, also before its parent has read its exit code."""
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return ""
