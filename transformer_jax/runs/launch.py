"""How a process was started, and with which code: what a run records of each of its launches."""

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
GIT_SECONDS = 10.0


def command() -> str:
    """The command line of this process, without the folders of its programs."""
    program, *rest = sys.orig_argv or [""]
    if rest and Path(rest[0]).is_absolute():  # python /venv/bin/transformer-jax, or python /home/me/mine.py
        script = Path(rest[0])
        return shlex.join([*(["python"] if script.suffix == ".py" else []), script.name, *rest[1:]])
    return shlex.join([Path(program).name, *rest])


def commit(folder: Path = PACKAGE) -> tuple[str, bool]:
    """(the git commit of the code, whether tracked files have changed since); ("", False) where there is none.

    Args:
      folder: the folder of the package. A folder that git does not track, such as an environment inside of another
        project's checkout, has no commit.
    """

    def git(*words: str) -> str:
        words = ("git", "-C", str(folder), *words)
        return subprocess.run(words, capture_output=True, text=True, timeout=GIT_SECONDS, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git("ls-files", "--error-unmatch", "__init__.py")
        name = git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
        return name.removesuffix("+"), name.endswith("+")
    return "", False


def machine() -> str:
    """The processor, its cores and the memory of this machine, as "AMD EPYC 7B13, 2 cores, 15 GiB, Linux"."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [model, f"{cores} core{'s' * (cores > 1)}"]
    with contextlib.suppress(OSError, ValueError):
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    return ", ".join([*parts, platform.system()])
