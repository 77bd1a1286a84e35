"""The fuzzer's odd inputs: files that are no files, bombs, deep and wide JSON, strangers' runs, words for launchers."""

import contextlib
import functools
import gzip
import io
import itertools
import json
import lzma
import os
import shlex
import socket
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import observe, restore
from transformer_jax.cli.launch import gke, local, slurm, tpu_vm
from transformer_jax.data import records, text_files
from transformer_jax.runs import identity, saved, workdir

ODD = ("link out", "link to a device", "link to itself", "pipe", "socket", "folder", "sparse", "empty", "deep", "wide")


def odd_data(path: Path, rng: np.random.Generator) -> None:
    """As `odd`, of a user's own data, which may be behind a link to any file; /proc/self/mem counts as one."""
    odd(path, rng, ODD[1:])
    if path.is_symlink() and os.readlink(path).startswith("/proc/"):
        path.unlink()
        path.symlink_to("/dev/zero")


def odd(path: Path, rng: np.random.Generator, kinds: tuple[str, ...] = ODD) -> None:
    """Puts something else in the place of a file: no file, gigabytes that take no room, JSON that fills memory."""
    data, what = path.read_bytes(), kinds[int(rng.integers(len(kinds)))]
    path.unlink()
    match what:
        case "link out":
            above = next(folder for folder in path.parents if folder.name in ("input", "good"))
            (above.parent / "outside").write_bytes(data)
            path.symlink_to(above.parent / "outside")
        case "link to a device":
            path.symlink_to(str(rng.choice(["/dev/zero", "/dev/random", "/dev/full", "/dev/stdin", "/proc/self/mem"])))
        case "link to itself":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as made:  # a path of 108 bytes at most
                made.bind(str(path))
        case "folder":
            path.mkdir()
        case "sparse":
            path.write_bytes(data)
            os.truncate(path, int(2 ** rng.uniform(27, 42)))
        case "empty":
            path.touch()
        case "deep":
            depth = int(2 ** rng.uniform(8, 21))
            path.write_bytes((b"[" if rng.random() < 0.5 else b'{"a":') * depth)
        case _:
            one = (b"{},", b"[],", b'"ab",', b"1e9,", b'{"a":1},')[int(rng.integers(5))]
            path.write_bytes(b"[" + one * int(2 ** rng.uniform(10, 23)) + b"0]")


@functools.cache
def _packed(block: bytes, times: int, kind: str) -> bytes:
    return lzma.compress(block * times) if kind == "xz" else gzip.compress(block * times, mtime=0)


def bomb(path: Path, rng: np.random.Generator) -> None:
    """A compressed file that unpacks to up to 4 GB of one line, or of lines, and may be damaged."""
    one_line, kind = rng.random() < 0.6, "xz" if rng.random() < 0.2 else "gz"
    block = _packed((b"x" if one_line else b'{"text": "abc"}\n') * 2**10, 2**10, kind)
    members = int(2 ** rng.uniform(0, 12 if one_line else 5))  # which are read one after the other
    data = bytearray(_packed(b'{"text": "', 1, kind) * one_line + block * members)
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        del data[int(rng.integers(len(data) // 2, len(data) + 1)) :]
    path.write_bytes(data)


def make_run(step: Any) -> Any:
    """A run's small files beside a step that `step(folder)` writes."""

    def make(folder: Path) -> None:
        step(folder / "checkpoints")
        meta = saved.read_meta(folder / "checkpoints/0")
        (folder / "config.json").write_text(json.dumps(meta["config"]))
        identity.run_id(folder)
        results = {"step": 0, "report": {"loss": 1.0}, "best_step": 0, "test": {"loss": 1.0}, "stopped_by_patience": 0}
        workdir.write_json(folder / "results.json", results)
        rows = [{"step": 1.0, "loss": 2.0}, {"step": 1.0, "validation/loss_per_token": 2.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return make


def read_run(folder: Path) -> None:
    observe.read_rows(folder / "metrics.jsonl")
    workdir.stored_experiment(folder)
    restore.load(workdir.chosen(folder))


def make_text(folder: Path) -> None:
    with gzip.open(folder / "text.jsonl.gz", "wt") as file:
        file.write('{"text": "abc"}\n' * 10)


def read_text(folder: Path) -> None:
    for _ in itertools.islice(records.read(folder / "text.jsonl.gz", headed=False), 10**6):
        pass  # more good lines are good data: they take time and no memory
    text_files.whole(folder / "text.jsonl.gz")


# ----------------------------------------------------------------------------------------------------------- launchers

GOOD: dict[str, list[str]] = {
    "slurm": ["--nodes", "4", "--name", "a", "--time", "1:00:00", "--folder", "x", "experiments.a", "--workdir", "w"],
    "local": ["--ssh", "node1,node2", "--folder", "x", "--python", "python", "experiments.a", "--workdir", "w"],
    "tpu_vm": ["pod", "--zone", "us-east5-a", "--project", "mine", "--folder", "x", "experiments.a", "--workdir", "w"],
    "gke": ["set", "--image", "me/i", "--gpus", "8", "--hosts", "2", "--claim", "c", "experiments.a", "--workdir", "w"],
}
MAIN = {"slurm": slurm.main, "local": local.main, "tpu_vm": tpu_vm.main, "gke": gke.main}
HARMFUL = (
    *("a\n#SBATCH --account=x", "\r\n", "-oProxyCommand=touch x", "--flags-file=x", "--", "-", "$(id)", "`id`", "a;b"),
    *("a b", "'", '"', "\\", "\x00", "\x1b[31m", "\u2028x", "--wrap=x", "é", "", "x" * 10_000, "../../x", "~", "*"),
)


def make_words(folder: Path) -> None:
    (folder / "words.json").write_text(json.dumps(["slurm", *GOOD["slurm"]]))


def mutate_words(path: Path, rng: np.random.Generator) -> None:
    """Words for one of the launchers, of which one to three are harmful, or stand elsewhere."""
    name = list(GOOD)[int(rng.integers(len(GOOD)))]
    words = list(GOOD[name])
    for _ in range(int(rng.integers(1, 4))):
        at, bad = int(rng.integers(len(words))), HARMFUL[int(rng.integers(len(HARMFUL)))]
        match int(rng.integers(4)):
            case 0:
                words[at] = bad
            case 1:
                words[at] += bad
            case 2:
                words.insert(at, bad)
            case _:
                words[at] = bad + words[at]
    path.write_text(json.dumps([name, *words]))


def read_words(folder: Path) -> None:
    """Prints what a launcher would start; raises `AssertionError` where a word is a line or an option there."""
    name, *words = json.loads((folder / "words.json").read_text())
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        MAIN[name](["--dry-run", *words])
    made = out.getvalue().splitlines()
    if name == "slurm":
        body = made.index("set -eu")
        assert all(line.startswith(("#", "#SBATCH --")) for line in made[: body - 1]) and len(made) == body + 3, made
        assert sum("account" in line for line in made[:body]) == 0, made
    elif name == "local":
        assert all(shlex.split(line)[2][0] != "-" for line in made), made
    elif name == "tpu_vm":
        (line,) = made
        split = shlex.split(line)
        assert not any(word.startswith("--flags") for word in split[: split.index("--command")]), made
