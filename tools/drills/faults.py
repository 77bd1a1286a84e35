"""Trainers with a fault, for `tools/drills`: killed at a named point inside a save, or on a disk that fails.

    python -m tools.drills.faults FAULT NUMBER train EXPERIMENT ...

FAULT is one of POINTS, at the NUMBER-th save; "limit", with files of at most NUMBER bytes; or "errors", where the first
NUMBER syncs of files from the second save on fail. Functions of the product are replaced in this process alone; the
product knows nothing of it.
"""

import errno
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.runs import manifest
from transformer_jax.runs.writer import Writer

POINTS = (
    "before a save",
    "during the arrays",
    "as they are on the disk",
    "before the manifest",
    "in the middle of the manifest",
    "before the rename",
    "after the rename",
    "after the save, before the old is deleted",
    "before the old is renamed",
    "while the old is deleted",
)


def at(point: str, number: int) -> Callable[[], None]:
    """A function to call in a trainer, which then kills itself at that point of its `number`-th save."""
    saves = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def now() -> bool:
        return saves == number

    def replace(owner: Any, name: str, before: Callable[..., Any] | None, after: Callable[..., Any] | None) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                before(*args)
            made = original(*args, **kwargs)
            if after is not None:
                after(*args)
            return made

        setattr(owner, name, wrapped)

    def counted(*_: Any) -> None:
        nonlocal saves
        saves += 1
        if now() and point == "before a save":
            die()

    def half_a_manifest(path: Path, listed: Any, **_: Any) -> None:
        if now() and path.name == manifest.NAME:
            if point == "in the middle of the manifest":
                data = manifest.render(manifest.Manifest(listed))
                path.write_bytes(data[: len(data) // 2])
            die()

    def half_deleted(folder: Any, *_: Any) -> None:
        if now() and Path(folder).name.endswith(".deleting"):
            for file in sorted(p for p in Path(folder).rglob("*") if p.is_file())[::2]:
                file.unlink()
            die()

    def if_now(suffix: str) -> Callable[..., None]:
        return lambda source, *_: die() if now() and str(source).endswith(suffix) else None

    def to_deleting(source: Path, target: Any) -> None:
        if now() and str(target).endswith(".deleting"):
            die()

    def prepare() -> None:
        replace(Writer, "_begin", counted, None)
        match point:
            case "during the arrays":  # they have left the device, and are being written
                replace(Writer, "_begin", None, lambda *_: die() if now() else None)
            case "as they are on the disk":
                replace(manifest, "digest", lambda *_: die() if now() else None, None)
            case "before the manifest" | "in the middle of the manifest":
                replace(manifest, "write", half_a_manifest, None)
            case "before the rename":
                replace(Path, "rename", if_now(".part"), None)
            case "after the rename":
                replace(Path, "rename", None, if_now(".part"))
            case "after the save, before the old is deleted":
                replace(Writer, "_delete_old", lambda *_: die() if now() else None, None)
            case "before the old is renamed":
                replace(Path, "rename", to_deleting, None)
            case "while the old is deleted":
                replace(shutil, "rmtree", half_deleted, None)

    return prepare


def failing_sync(times: int) -> None:
    """The first `times` syncs of a file, from the second save on, report an I/O error."""
    sync, left, saves, threads = files.sync, times, 0, threading.Lock()

    def failing(path: Path) -> None:
        nonlocal left, saves
        with threads:
            saves += path.name == "_CHECKPOINT_METADATA"
            fails = saves >= 2 and left > 0 and path.is_file()
            left -= fails
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        sync(path)

    files.sync = failing


def main() -> int:
    from transformer_jax.cli import main as command_line

    fault, number, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    match fault:
        case "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
        case "errors":
            failing_sync(number)
        case _:
            at(fault, number)()
    return command_line.main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
