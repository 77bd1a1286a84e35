"""The owner of a workdir as its lock names it: a process, which on its own machine can be looked up.

    {"host": "tpu-vm-3", "pid": 4711, "started": "2026-11-21 10:43:00 UTC", "run": "5f0c...", "machine": "...",
     "born": "..."}

"machine" is shared by the processes that see each other's numbers, and "born" tells a process from a later one of its
number. Without them, or on another machine, nothing is known of the process.
"""

import contextlib
import datetime
import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any


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
    """Whether `owner` was a process of this machine that has ended; False where that cannot be known."""
    return _is_here(owner) and _born(owner["pid"]) != owner["born"]


def runs(owner: dict[str, Any]) -> bool:
    """Whether `owner` is a process of this machine that runs; False where that cannot be known."""
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


def read(data: bytes) -> dict[str, Any]:
    """The owner that a lock with the content `data` names; {} where that cannot be read."""
    with contextlib.suppress(ValueError, RecursionError):
        owner = json.loads(data)
        return owner if isinstance(owner, dict) else {}
    return {}


def describe(owner: dict[str, Any] | None) -> str:
    """`owner` in words: process, host and start."""
    if not owner:
        return "another process"
    pid, host, started = (str(owner.get(name))[:80] for name in ("pid", "host", "started"))
    return f"process {pid} on {host}, started {started}"
