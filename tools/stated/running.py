"""One entry's command is run, its numbers are read and compared, and the record of it is made."""

import datetime
import hashlib
import importlib.util
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tools import stated
from transformer_jax import files
from transformer_jax.errors import InputError

QUIET = 0.5  # the load below which a machine is quiet
OVER_SEEDS: dict[str, Callable[[list[float]], float]] = {"mean": statistics.fmean, "min": min, "max": max}


def why_not(entry: Mapping[str, Any], minutes: float) -> str:
    """Why `entry` cannot run on this machine in `minutes`, in words; "" where it can."""
    if entry["machine"] != kind():
        return f"is of a {entry['machine']}"
    if missing := [name for name in entry.get("needs", ()) if not os.environ.get(name)]:
        return f"needs ${missing[0]}"
    if entry.get("quiet") and (load := os.getloadavg()[0]) > QUIET:
        return f"times what needs a quiet machine, and the load is {load:.1f}"
    return f"takes {entry['minutes']:g} minutes" if entry["minutes"] > minutes else ""


def kind() -> str:
    """The kind of this machine, one of `stated.MACHINES`, by the plugins of JAX that are installed."""
    if any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        return "gpu"
    return "tpu" if importlib.util.find_spec("libtpu") and Path("/dev/accel0").exists() else "cpu"


def in_order(book: stated.Book, root: Path = stated.ROOT) -> list[str]:
    """The names of the entries: those never seen first, then those whose code has changed, then the oldest."""

    def rank(name: str) -> tuple[int, str, float]:
        entry = book["measured"][name]
        seen = entry.get("seen")
        if seen is None:
            return 0, "", entry["minutes"]
        return (1 if stated.changed(seen, root) else 2), seen["date"], entry["minutes"]

    return sorted(book["measured"], key=rank)


def run(name: str, entry: Mapping[str, Any], root: Path = stated.ROOT) -> tuple[dict[str, Any], list[str]]:
    """The record of a run of the entry's command, and the lines that say which of its numbers do not hold.

    Args:
      name: of the entry.
      entry: its command, file and numbers; with "seeds" the command runs once for each.
      root: of the checkout.

    Raises:
      InputError: the command failed, or its file lacks a number.
    """
    began, results, imported = time.monotonic(), [], set()
    for seed in entry.get("seeds", [None]):
        result, paths = _once(name, entry, seed, root)
        results.append(result)
        imported.update(paths)
    trees = [files.parse_json(result, entry["file"]) for result in results]
    values = {number: _over_seeds(trees, wanted, name) for number, wanted in entry["numbers"].items()}
    seen = {
        "values": values,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(root),
        "machine": machine(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "results": hashlib.sha256(b"".join(results)).hexdigest(),
        "code": stated.code(imported, root),
    }
    failed = [
        f"{name}:{number} is {value:.6g}, outside of {entry['numbers'][number]['holds']}"
        for number, value in values.items()
        if not stated.holds(entry["numbers"][number], value)
    ]
    return seen | {"digest": stated.digest(seen)}, failed


def _once(name: str, entry: Mapping[str, Any], seed: int | None, root: Path) -> tuple[bytes, list[str]]:
    """(the content of the file of results, the files of this checkout that were imported)."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        out = Path(folder) / "out"
        out.mkdir()
        words = shlex.split(os.path.expandvars(entry["command"]).removeprefix("tools/run ").format(out=out))
        imported = Path(folder) / "imported"
        command = [sys.executable, "-m", "tools.stated.recorded", str(imported), *words]
        command += [] if seed is None else ["--seed", str(seed)]
        done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
        if done.returncode:
            raise InputError(f"{name}: {entry['command']} ended with exit code {done.returncode}")
        result = files.read(Path(entry["file"].format(out=out)), files.JSON_BYTES)
        return result, imported.read_text(encoding="utf-8").split()


def _over_seeds(trees: Sequence[Any], wanted: Mapping[str, Any], name: str) -> float:
    """The mean of a number over the results of the seeds, or what "of" names: "min" or "max"."""
    values = [_value(tree, wanted["path"], name) for tree in trees]
    return float(f"{OVER_SEEDS[wanted.get('of', 'mean')](values):.7g}")


def _value(tree: Any, path: str, name: str) -> float:
    """The number at "report.bits_per_byte" in a JSON value."""
    value = tree
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{name}: its results have {str(value)[:40]} in place of a number at {path}")
    return float(value)


def commit(root: Path) -> str:
    """The commit of the checkout, with "+" after it where files differ from it; "" outside of git."""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True)
    return head.stdout.strip() + ("+" if head.returncode == 0 and changed.returncode else "")


def machine() -> str:
    """The processor, the cores that this process may use, and the versions that numbers depend on."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = ".".join(platform.python_version_tuple()[:2])
    return f"{cores} cores of {processor}, Python {python}, jax {metadata.version('jax')}"
