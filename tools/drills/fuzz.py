"""Mutated files against every reader: each must be refused in one line or read, in bounded memory, and do nothing else.

    python -m tools.drills.fuzz                                      # 10,000 inputs, and a table
    python -m tools.drills.fuzz --count 2000 --seed 7 --kinds image safetensors

Input n of a kind is a function of (seed, n): a small good file, changed in one to a few places. Bytes are flipped,
overwritten, inserted, removed, repeated, truncated; in JSON a value becomes another one: of another type, huge,
negative, not a number, deeply nested, a path out of the folder, the name of something that could be called. A
problem is

    an exception other than `InputError` (`Broken` for images)      a process that died, or `SECONDS` for one input
    more than `MEMORY` above what the process had at first           a file opened outside the input's folder, any file
    anything executed, unpickled, or sent                            written, renamed or removed

The reader runs in a child process with an address-space limit and an audit hook (PEP 578). Exit code 1 when anything
was found; each problem is printed with its number, so that `--only KIND:NUMBER` shows it again with its traceback.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np

from tools.drills import fuzz_odd
from transformer_jax import config_json, hub, models, restore
from transformer_jax import optim as optimizers
from transformer_jax.data import corpus, image_files, image_sources, sources, tokenizers, tokens
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.models import gpt
from transformer_jax.runs import manifest
from transformer_jax.runs.writer import Writer
from transformer_jax.train import state as states

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
SECONDS = 20  # for one input
MEMORY = 1 << 30  # bytes; an image takes 400 MB decoded


class Kind(NamedTuple):
    """What is attacked: make(folder) writes good files there; read(folder) is the reader; files may be mutated."""

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    change: Callable[[Path, np.random.Generator], None] | None = None  # None: `mutate`


# ------------------------------------------------------------------------------------------------------- good inputs


def _experiment() -> Experiment:
    model = gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2)
    return Experiment(model=model, data=corpus.TextCorpus(length=16))


def _copy(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [shutil.copy(DATA / name, folder) for name in names]


def _make_step(folder: Path) -> None:
    experiment = _experiment()
    optimizer = optimizers.make(experiment.optim, 10, gpt.declare(experiment.model))
    make = jax.jit(lambda key: states.create(gpt.init(key, experiment.model), optimizer))
    state = make(jax.random.key(0))
    with Writer(folder, family="gpt", config=config_json.to_json(experiment)) as writer:
        writer.save(state, rows=0)


def _make_tokens(folder: Path) -> None:
    documents = sources.in_memory([(str(i), "a rose is a rose " * 5) for i in range(4)])
    made = tokens.prepare(documents, tokenizers.ByteTokenizer(), folder / "cache")
    for file in made.folder.iterdir():
        shutil.copy(file, folder)
    shutil.rmtree(folder / "cache")


def _read_tokens(folder: Path) -> None:
    file = tokens.open_file(folder)
    corpus.training_windows(file, 16, "epochs", seed=0).stacked(range(4))
    corpus.validation_windows(file, 16).stacked([0])


def _read_config(folder: Path) -> None:
    model = config_json.load(folder / "config.json").model
    models.family(model).declare(model)


def _read_tokenizer(folder: Path) -> None:
    tokenizer = tokenizers.load(folder)
    tokenizer.decode(tokenizer.encode("The theory of the thing, naïve: ∂x 漢字 <pad>"))


def _read_images(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        image_files.pixels(image_sources.read_bytes(file), Preprocess(size=8, resize=8))


def _snapshot(name: str) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    return _copy(f"hf/{name}/config.json", f"hf/{name}/model.safetensors"), restore.load


def _torch(name: str) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    return _copy(f"hf/torch/{name}/config.json", f"hf/torch/{name}/pytorch_model.bin"), hub.load


RUN = ("config.json", "results.json", "metrics.jsonl", "run.json")
PICTURES = ("rgb.jpg", "progressive.jpg", "palette.png", "grey_alpha.png", "rotated.jpg", "wide.webp")

KINDS = {
    "config.json": Kind(
        lambda folder: config_json.save(_experiment(), folder / "config.json"), _read_config, ("config.json",)
    ),
    "snapshot": Kind(*_snapshot("gpt2"), ("config.json",)),
    "safetensors": Kind(*_snapshot("gpt2"), ("model.safetensors",)),
    "torch zip": Kind(*_torch("zip"), ("pytorch_model.bin",)),
    "torch legacy": Kind(*_torch("legacy"), ("pytorch_model.bin",)),
    "tokenizer.json": Kind(_copy("hf/gpt2/tokenizer.json"), _read_tokenizer, ("tokenizer.json",)),
    "spiece.model": Kind(
        _copy("tokenizers/albert/spiece.model", "tokenizers/albert/config.json"), _read_tokenizer, ("spiece.model",)
    ),
    "step": Kind(_make_step, lambda folder: restore.load(folder / "0", verify=False), ("0/meta/metadata",)),
    "manifest": Kind(_make_step, lambda folder: restore.load(folder / "0"), (f"0/{manifest.NAME}",)),
    "token file": Kind(_make_tokens, _read_tokens, ("header.json", "documents.bin", "tokens.bin")),
    "run": Kind(fuzz_odd.make_run(_make_step), fuzz_odd.read_run, ("results.json", "metrics.jsonl", "run.json")),
    "odd run": Kind(
        fuzz_odd.make_run(_make_step), fuzz_odd.read_run, (*RUN, "checkpoints/0/meta/metadata"), fuzz_odd.odd
    ),
    "odd step": Kind(_make_step, lambda folder: restore.load(folder / "0"), (f"0/{manifest.NAME}",), fuzz_odd.odd),
    "odd snapshot": Kind(*_snapshot("gpt2"), ("config.json", "model.safetensors"), fuzz_odd.odd),
    "odd tokenizer": Kind(_copy("hf/gpt2/tokenizer.json"), _read_tokenizer, ("tokenizer.json",), fuzz_odd.odd),
    "odd tokens": Kind(_make_tokens, _read_tokens, ("header.json", "documents.bin", "tokens.bin"), fuzz_odd.odd),
    "odd image": Kind(_copy("images/rgb.jpg"), _read_images, ("rgb.jpg",), fuzz_odd.odd_data),
    "bomb": Kind(fuzz_odd.make_text, fuzz_odd.read_text, ("text.jsonl.gz",), fuzz_odd.bomb),
    "launcher": Kind(fuzz_odd.make_words, fuzz_odd.read_words, ("words.json",), fuzz_odd.mutate_words),
    "image": Kind(_copy(*(f"images/{name}" for name in PICTURES)), _read_images, PICTURES),
}

# ---------------------------------------------------------------------------------------------------------- mutations

NASTY: tuple[Any, ...] = (
    *(0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e308, float("nan"), float("inf"), True, False, None, "", [], {}),
    *("../../../etc/passwd", "/etc/passwd", "os.system", "builtins.eval", "__import__('os').system('id')", "\ud800"),
    *("x" * 100_000, "\x00", "%s%n", "gpt.Config", [[]] * 10_000, {"type": "experiment.Experiment"}),
)
WORDS = (b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f", b"\x01" + bytes(7))


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One change somewhere; the first hundred bytes, where headers are, are as likely as all the rest."""
    out = bytearray(data)
    reach = min(len(out), 100) if rng.random() < 0.5 else len(out)
    at, size = int(rng.integers(reach + 1)), int(rng.integers(1, 64))
    match int(rng.integers(7)):
        case 0 if at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        case 1:
            out[at : at + size] = rng.bytes(min(size, len(out) - at))
        case 2:
            out[at:at] = rng.bytes(size)
        case 3:
            del out[at : at + size]
        case 4:
            out[at:at] = out[at : at + size] * int(rng.integers(1, 200))
        case 5:
            del out[at:]
        case _:
            out[at : at + 8] = WORDS[int(rng.integers(len(WORDS)))]
    return bytes(out)


def mutate_json(tree: Any, rng: np.random.Generator) -> Any:
    """The same tree with one value replaced, removed, moved or added."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if isinstance(tree, dict | list):
        walk(tree)
    if not places:
        return NASTY[int(rng.integers(len(NASTY)))]
    node, key = places[int(rng.integers(len(places)))]
    other, other_key = places[int(rng.integers(len(places)))]
    match int(rng.integers(6)):
        case 0:
            del node[key]
        case 1:
            node[key] = json.loads(json.dumps(other[other_key]))
        case 2 if isinstance(node, dict):
            node[str(NASTY[int(rng.integers(len(NASTY)))])] = node[key]
        case 3 if isinstance(node[key], int | float):
            node[key] = node[key] * int(rng.choice([-1, 0, 2, 1000, 10**9])) + int(rng.integers(-1, 2))
        case _:
            node[key] = NASTY[int(rng.integers(len(NASTY)))]
    return tree


def mutate(path: Path, rng: np.random.Generator) -> None:
    """Changes a file in one to four places: a JSON file half of the time as what it says."""
    data = path.read_bytes()
    as_json = data[:1] in (b"{", b"[") and path.suffix != ".jsonl" and rng.random() < 0.7
    header = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
    for _ in range(int(rng.integers(1, 5))):
        if as_json or (header and rng.random() < 0.5):
            text, rest = (data[8:header], data[header:]) if header else (data, b"")
            tree = mutate_json(json.loads(text), rng)
            text = _signed(path.name, tree) if rng.random() < 0.9 else json.dumps(tree).encode()
            data = len(text).to_bytes(8, "little") + text + rest if header else text
            header = 8 + len(text) if header else 0
        else:
            data, header = mutate_bytes(data, rng), 0
            as_json = False
    if rng.random() < 0.01:
        data = b"[" * 100_000 if rng.random() < 0.5 else b'{"a":' * 100_000
    path.write_bytes(data)


def _signed(name: str, tree: Any) -> bytes:
    """The JSON with its own digest recomputed where it has one, as an attacker would."""
    if name == "header.json" and isinstance(tree, dict):
        tree["sha256"] = tokens.digest(tree)
    with contextlib.suppress(Exception):  # what it lists may be beyond a manifest by now
        if name == manifest.NAME:
            listed = {n: manifest.File(f["bytes"], f["sha256"]) for n, f in tree["files"].items()}
            return manifest.render(manifest.Manifest(listed, tree.get("step"), tree.get("run", "")))
    return json.dumps(tree).encode()


# --------------------------------------------------------------------------------------------------------- the attack

HARM = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class"),
    *("socket.connect", "socket.bind", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "os.chmod", "os.mkdir"),
)


class Watch:
    """Notes what an audited process does that a reader has no business to do; on only while `inside` is set."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.seen: list[str] = []
        self.code = [str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, DATA.parents[2])] + ["<frozen"]
        list(models.formats())  # a reader may import any of them, and their dataclasses execute code
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in HARM:
            self.seen.append(f"{event} {arguments!r:.80}")
        elif event == "open" and isinstance(arguments[0], str | bytes | Path):
            path = os.fsdecode(arguments[0])
            here = os.path.realpath(path).startswith(str(self.inside))
            reads = not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not (reads and (here or path.startswith((*self.code, "/proc/", "/sys/", "/usr/share/zoneinfo")))):
                self.seen.append(f"open {path:.80}")
        elif event == "exec" and not getattr(arguments[0], "co_filename", "").startswith(tuple(self.code)):
            self.seen.append(f"exec {arguments[0]!r:.80}")


def attack(kind: Kind, good: Path, number: int, seed: int, folder: Path, watch: Watch) -> str:
    """Mutates a copy of the good files and reads it: "refused", "read", or what went wrong."""
    here = Path(shutil.copytree(good, folder / "input"))
    rng = np.random.default_rng([seed, number])
    (kind.change or mutate)(here / kind.files[number % len(kind.files)], rng)
    watch.seen, watch.inside = [], here
    try:
        kind.read(here)
        outcome = "read"
    except (InputError, image_files.Broken) as error:
        outcome = "refused" if "\n" not in str(error) else f"several lines: {error!r:.80}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(last) if "transformer_jax" in f.filename), last[-1])
        outcome = f"{type(error).__name__} at {Path(ours.filename).name}:{ours.lineno}: {str(error)[:80]!r}"
    finally:
        watch.inside = None
        shutil.rmtree(here)
    return watch.seen[0] if watch.seen else outcome


def child(name: str, numbers: range, seed: int) -> None:
    """Attacks one kind; prints a JSON line before and after each input, so that it is known which one kills us."""
    kind, watch = KINDS[name], Watch()
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder, "good")
        good.mkdir()
        kind.make(good)
        kind.read(good)  # what is good is read; and everything is imported
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        signal.signal(signal.SIGALRM, _too_slow)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in numbers:
            print(json.dumps({"begins": number}), flush=True)
            signal.alarm(SECONDS)
            outcome = attack(kind, good, number, seed, Path(folder), watch)
            signal.alarm(0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps({"ended": number, "outcome": outcome, "mb": grown >> 10}), flush=True)


def _too_slow(number: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def run(name: str, count: int, seed: int) -> tuple[Counter[str], dict[str, int], tuple[int, int]]:
    """(outcomes, {problem: the number of an input that shows it}, the most memory in MB and that input's number) of a
    kind's inputs."""
    outcomes: Counter[str] = Counter()
    problems: dict[str, int] = {}
    begun, most = -1, (0, 0)

    def note(outcome: str, number: int) -> None:
        outcomes[outcome if outcome in ("refused", "read") else "problems"] += 1
        if outcome not in ("refused", "read"):
            problems.setdefault(outcome, number)

    while begun + 1 < count:
        command = [sys.executable, "-m", "tools.drills.fuzz", "--child", name, str(begun + 1), str(count), str(seed)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, text=True, **streams) as process:  # type: ignore[call-overload]
            assert process.stdout is not None
            ended = begun
            for line in process.stdout:
                row = json.loads(line)
                begun = row.get("begins", begun)
                if "ended" in row:
                    ended = row["ended"]
                    if row["mb"] > most[0]:  # the peak so far: of inputs with the same, the first has made it
                        most = row["mb"], ended
                    note(row["outcome"], ended)
            code = process.wait(60)
        if begun != ended:
            note(f"the process ended with code {code}", begun)
        elif code:
            raise RuntimeError(f"{' '.join(command)} ended with code {code}; run it to see why")
    return outcomes, problems, most


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="inputs, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one input, in this process, with its traceback")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        name, first, stop, seed = options.child
        child(name, range(int(first), int(stop)), int(seed))
        return 0
    if options.only:
        name, _, number = options.only.rpartition(":")
        with tempfile.TemporaryDirectory() as folder:
            here, kind = Path(folder, "input"), KINDS[name]
            here.mkdir()
            kind.make(here)
            (kind.change or mutate)(here / kind.files[int(number) % len(kind.files)], _rng(options.seed, number))
            print(kind.read(here))
        return 0
    began, found = time.perf_counter(), 0
    print(f"{'input':16}{'tries':>7}{'refused':>9}{'read':>7}{'problems':>10}{'memory':>9}  by input")
    for name in options.kinds:
        count = options.count // len(options.kinds)
        outcomes, problems, most = run(name, count, options.seed)
        print(
            f"{name:16}{count:7,}{outcomes['refused']:9,}{outcomes['read']:7,}{outcomes['problems']:10,}{most[0]:6,} MB"
            f"  {most[1]}",
            flush=True,
        )
        for problem, number in problems.items():
            print(f"    --only {name!r}:{number}  {problem}")
        found += outcomes["problems"]
    print(f"seed {options.seed}, {time.perf_counter() - began:.0f} s")
    return int(found > 0)


def _rng(seed: int, number: str) -> np.random.Generator:
    return np.random.default_rng([seed, int(number)])


if __name__ == "__main__":
    sys.exit(main())
