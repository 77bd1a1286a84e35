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
import errno
import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.errors import InputError, RunError
from transformer_jax.runs import owners

NAME = "lock"
HEARTBEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which the owner counts as gone
ORPHANS = 10.0  # seconds that the children of a killed owner may take to end: they hold the kernel's lock with it
LEFT = 3600.0  # seconds after which a waiting process's file counts as left behind; none waits nearly as long
MAX_BYTES = 4096
_OURS = re.compile(rf"{NAME}\.(after-)?[0-9a-f]{{32}}")  # the files of processes that want the lock

# What a file system answers that has no locks, or no hard links.
_NOT_THERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EMLINK)


class Lost(RunError):
    """Another run has taken the lock over: this one may not write any more."""


_held: set[Path] = set()  # the folders that this process has locked
_guard = threading.Lock()


@contextlib.contextmanager
def hold(workdir: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Holds the lock of `workdir`, which is made if it is missing, for the length of a `with` block.

    Args:
      workdir: the folder.
      say: receives a line when an owner that seems to have ended is watched, and when its lock is taken over.

    Yields:
      a function to call before each save, which raises `Lost` when another run has taken the lock over.

    Raises:
      InputError: the owner of the lock is alive, and is named; or the folder cannot be written.
    """
    path, mine = workdir.resolve() / NAME, owners.myself()
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
            os.close(descriptor)  # this releases the kernel's lock as well
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
                say(f"{path}: {owners.describe(found.owner if found else None)} is gone; its lock is taken over")
                break
        _remove_left(path, made, descriptor)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        made.unlink(missing_ok=True)


def _remove_left(path: Path, made: Path, descriptor: int) -> None:
    """Deletes the files of processes that were killed while they waited here.

    Where the process cannot be looked up, its file has to be `LEFT` seconds older than ours, by the clock of the file
    system, which has stamped both as they were written. A living process that loses its file ends with a line.
    """
    ours = os.fstat(descriptor).st_mtime_ns
    for left in path.parent.glob(f"{NAME}.*"):
        if left == made or not _OURS.fullmatch(left.name) or (other := _look(left)) is None or other.locked:
            continue
        if owners.ended(other.owner) or ours - other.state[1] > LEFT * 10**9:
            left.unlink(missing_ok=True)


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
        if other is not None and (owners.ended(other.owner) or _watch(claim, other, lambda line: None)):
            claim.unlink(missing_ok=True)
        time.sleep(0.1)
        return
    now = _look(path)
    if now is not None and now.name != found.name:  # another has succeeded it, and ended the claim by renaming it
        claim.replace(made)  # it does nothing where both are names of one file
        claim.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        claim.rename(path)


def _is_gone(path: Path, found: "_Found", say: Callable[[str], None]) -> bool:
    """Whether the owner has ended; False where the file was removed. Raises `InputError` when the owner is alive."""
    ends = time.monotonic() + ORPHANS
    while found.locked:
        if not owners.ended(found.owner) or time.monotonic() > ends:
            raise InputError(refusal(path, found.owner))
        time.sleep(0.2)
        if (again := _look(path)) is None:
            return False
        found = again
    if owners.ended(found.owner):
        return True
    if owners.runs(found.owner) and found.owner.get("inode") == found.state[0]:
        raise InputError(refusal(path, found.owner))
    return _watch(path, found, say)


def _watch(path: Path, found: "_Found", say: Callable[[str], None]) -> bool:
    """Waits for `STALE` seconds of our own clock; returns False when the file goes away meanwhile.

    Raises `InputError` when its owner gives a sign of life.
    """
    began, logged = time.monotonic(), False
    while time.monotonic() - began < STALE:
        if not logged:
            say(f"{path}: held by {owners.describe(found.owner)}; watching for {STALE:.0f} s whether it is alive")
            logged = True
        time.sleep(min(1.0, STALE / 4))
        now = _look(path)
        if now is None:
            return False
        if now != found:
            raise InputError(refusal(path, now.owner))
    return True


def lost(path: Path, owner: dict[str, Any] | None) -> Lost:
    """The error for an owner who finds another's name in the lock `path`, or no lock (`owner` is None then)."""
    what = "is gone: deleted, or taken over by a run that has ended since"
    return Lost(
        f"{path} {what if owner is None else f'was taken over by {owners.describe(owner)}'}; this run saves no more"
    )


def refusal(path: Path, owner: dict[str, Any], age: str = "") -> str:
    """The message for a process that finds a living owner.

    Args:
      path: the lock.
      owner: what it names.
      age: ", alive 3 s ago" where that is known.
    """
    writer = f"{owners.describe(owner)}{age}"
    return f"{path.parent} is being written by {writer} ({path}); stop that run, or give another --workdir"


# ------------------------------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class _Found:
    """A lock's file at one moment; two that differ are a sign of life."""

    owner: dict[str, Any]  # {} where that cannot be read
    name: str  # the owner's, for file names
    locked: bool  # whether a living process holds it, as far as the kernel sees
    state: tuple[int, int, int]


def _look(path: Path) -> _Found | None:
    """What is in the file, through a descriptor of its own; None where there is none."""
    try:
        with files.opened(path, inside=path.parent) as file:
            status, data = os.fstat(file.fileno()), file.read(MAX_BYTES)
            locked = not _flock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return None
    owner = owners.read(data)
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
