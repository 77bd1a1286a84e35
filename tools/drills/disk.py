"""Disks of `tools/drills` that are full, that limit files, that fail and that are read-only."""

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer_jax.runs import saved

DISK_BYTES = 256 * 2**20


class NotPermitted(Exception):
    """This machine does not let us make the fault."""


def full(arguments: list[str], workdir: Path, trainer: Any) -> str:
    """The disk fills up between two saves, and has room again."""
    with _disk(workdir):
        running = trainer(arguments, workdir.with_suffix(".log"))
        running.until(lambda: len(saved.steps(workdir / "checkpoints")) >= 2, "two saves")
        _fill(workdir / "filler")
        output = _stopped(running, workdir)
        (workdir / "filler").unlink()
        _resumes(arguments, workdir, trainer)
    return f'exit code 1, "{output}"'


def limited(arguments: list[str], workdir: Path, trainer: Any) -> str:
    """The size of files is limited (RLIMIT_FSIZE), as by a quota."""
    running = trainer(arguments, workdir.with_suffix(".log"))
    running.until(lambda: len(saved.steps(workdir / "checkpoints")) >= 1, "a save")
    running.signal(signal.SIGTERM)
    running.wait()
    newest = workdir / "checkpoints" / str(saved.latest_step(workdir / "checkpoints"))
    largest = max(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    running = trainer(arguments, workdir.with_suffix(".log"), ("limit", largest // 2))
    output = _stopped(running, workdir)
    _resumes(arguments, workdir, trainer)
    return f'exit code 1, "{output}"'


def fails_once(arguments: list[str], workdir: Path, trainer: Any) -> str:
    """A sync of a file of the second save reports an I/O error."""
    running = trainer(arguments, workdir.with_suffix(".log"), ("errors", 1))
    running.until(lambda: "; trying again in " in running.output(), "a failure")
    begun = saved.latest_step(workdir / "checkpoints") or 0
    running.until(lambda: (saved.latest_step(workdir / "checkpoints") or 0) > begun, "another save")
    running.signal(signal.SIGTERM)
    assert running.wait() == 143, running.output()[-300:]
    _intact(workdir)
    return "logged, tried again, saved"


def fails_always(arguments: list[str], workdir: Path, trainer: Any) -> str:
    """Every sync of a file from the second save on reports an I/O error."""
    running = trainer(arguments, workdir.with_suffix(".log"), ("errors", 10**9))
    output = _stopped(running, workdir)
    _resumes(arguments, workdir, trainer)
    return f'exit code 1, "{output}"'


def read_only(arguments: list[str], workdir: Path, trainer: Any) -> str:
    """A run is resumed in a folder that has become read-only."""
    with _disk(workdir):
        running = trainer(arguments, workdir.with_suffix(".log"))
        running.until(lambda: len(saved.steps(workdir / "checkpoints")) >= 1, "a save")
        running.signal(signal.SIGTERM)
        running.wait()
        _mount("-o", "remount,ro", str(workdir))
        running = trainer(arguments, workdir.with_suffix(".log"))
        assert running.wait() == 2, running.output()[-300:]
        _intact(workdir)
    return f'exit code 2, "{_error(running.output())}"'


FAULTS: dict[str, Callable[..., str]] = {
    "the disk is full (a small tmpfs)": full,
    "files are limited (RLIMIT_FSIZE)": limited,
    "an I/O error, once": fails_once,
    "I/O errors, for good": fails_always,
    "a read-only folder": read_only,
}


def _stopped(running: Any, workdir: Path) -> str:
    """The line with which the trainer ended. Errors: `AssertionError` when it ended otherwise, or something is lost."""
    code, output = running.wait(), running.output()
    assert code == 1 and "Traceback" not in output and "[8]" not in output, f"exit code {code}: {output[-400:]}"
    _intact(workdir)
    return _error(output)


def _error(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert lines, output[-300:]
    return lines[-1].removeprefix("error: ")[:160]


def _intact(workdir: Path) -> None:
    damaged: list[str] = []
    assert saved.newest(workdir / "checkpoints", damaged.append) is not None
    assert not damaged, damaged[0]
    for step in saved.steps(workdir / "checkpoints"):
        saved.check_files(workdir / "checkpoints" / str(step))


def _resumes(arguments: list[str], workdir: Path, trainer: Any) -> None:
    newest = saved.latest_step(workdir / "checkpoints") or 0
    running = trainer(arguments, workdir.with_suffix(".log"))
    running.until(lambda: (saved.latest_step(workdir / "checkpoints") or 0) > newest, "a save after it went on")
    assert f"resume from step {newest:,} " in running.output(), running.output()[:600]
    running.signal(signal.SIGTERM)
    assert running.wait() == 143, running.output()[-300:]


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """A disk of its own, in memory, at `folder`. Errors: `NotPermitted`."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        raise NotPermitted(done.stderr.strip() or "mount failed")
