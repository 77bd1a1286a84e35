"""Interrupted runs against the run that nothing interrupts: all that is reported has to be equal.

    python -m tools.drills.equal JOB [--first I] [--tries N]      # JOB of tools/drills/jobs.py; JSON, a line a try
    tools/run tools.drills tools.drills.jobs JOB --drill equal --tries 200

Try i is a function of i: how it is interrupted, and at which instant. Instants are counted: each file that a run opens
to write, makes, renames, removes, syncs, each row of metrics, each batch of a step and of an evaluation. Then

    kill      the folder is copied as it is: what SIGKILL leaves is what is there. The copy is resumed.
    SIGTERM   the signal is sent. Where the run does not listen to it yet, or not any more, it is a kill.
    disk      no file grows any more (RLIMIT_FSIZE), until the run has ended.

A third of the resumed runs is interrupted once more. In the end these have to be equal: the rows of metrics.jsonl and
results.json, without times; the names of all that is in checkpoints/; the arrays of the last step; the bytes of every
other file, pictures too.

All runs of a job are in one process, which compiles once.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tools.drills.trainer import Job, Row

Instant = tuple[str, int]  # what happens, and how often it has happened before in the run

KINDS = ("kill", "SIGTERM", "disk")
AT_ONCE = 50  # tries of one process: the programs that it compiles stay in its memory
TIMES = ("seconds", "_per_second", "data_wait", "mfu", "goodput", "seconds_by_activity")
# The id of a run, TensorBoard's times, the launches and the page that lists them are each folder's own. The lock of a
# process that was killed after its last row stays: nothing is written into the folder of a complete run.
OTHER = ("run.json", "events.out", "launches.jsonl", "report.html", "lock")


def drill(job: Job, tries: int) -> Iterator[Row]:
    """Runs that are interrupted at a random instant by SIGKILL, SIGTERM or a full disk, and resumed.

    Survived: metrics.jsonl, results.json, the steps that are kept, the arrays of the last one and all other files are
    those of the run that nothing interrupts.
    """
    rows, instants = {kind: Row(f"equal after {kind}") for kind in KINDS}, Counter[str]()
    for first in range(0, tries, AT_ONCE):
        words = [sys.executable, "-m", "tools.drills.equal", job.experiment[-1], "--first", str(first)]
        words += ["--tries", str(min(AT_ONCE, tries - first)), "--folder", str(job.folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        for one in found:
            rows[one["kind"]].count(one["problem"])
            instants[one["instant"]] += 1
        if done.returncode or len(found) < min(AT_ONCE, tries - first):
            rows[KINDS[len(found) % len(KINDS)]].count(f"ended with {done.returncode}: {done.stderr[-600:]}")
    rows[KINDS[0]].remarks.append("instants: " + ", ".join(f"{n} {what}" for what, n in instants.most_common()))
    yield from rows.values()


# ------------------------------------------------------------------------------------------------------------- instants


class Instants:
    """Counts the instants of a run in `folder`, and does something at chosen ones.

    Args:
      strikes: {(what an instant is, number among those): what to do}; called with the folder held still, and with what
        the instant is.
    """

    def __init__(self, folder: Path, strikes: dict[Instant, Callable[[str], object]]) -> None:
        self.folder, self.strikes, self.seen = str(folder), strikes, Counter[str]()
        self.turn, self.busy, self.began = threading.RLock(), False, False

    def note(self, what: str) -> None:
        with self.turn:  # of all that is counted, nothing else happens while one strikes
            if self.busy:
                return
            self.began |= what == "batch of a step"
            what = what if self.began else f"start-up: {what}"
            strike = self.strikes.pop((what, self.seen[what]), None)
            self.seen[what] += 1
            if strike is not None:
                self.busy = True
                try:
                    strike(what)
                finally:
                    self.busy = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Notes what changes files of the folder; deletions of whole folders name their files by themselves."""
        path = str(arguments[0]) if arguments else ""
        ours = path.startswith(self.folder)
        if event == "open":
            ours &= isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        elif event in ("os.remove", "os.rmdir"):
            ours |= not path.startswith("/")  # a name in a folder that is being deleted
        else:
            ours &= event in ("os.rename", "os.mkdir", "os.link", "os.truncate")
        if ours:
            self.note(_kind_of(event, path))


def _kind_of(event: str, path: str) -> str:
    """A name for the table."""
    if ".deleting" in path or event in ("os.remove", "os.rmdir"):
        return "pruning"
    if "checkpoints" in path:
        return "save"
    return "picture" if ".png" in path else "other file"


_counting: Instants | None = None


def _note(what: str) -> None:
    if _counting is not None:
        _counting.note(what)


_hooks: list[Any] = []  # of this process, which cannot be taken away


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Inside, every run counts its instants, is compiled once, and does not wait after a save that failed."""
    from transformer_jax.observe.json_lines import JsonLines
    from transformer_jax.runs import writer
    from transformer_jax.train import evaluate, setup, steps

    if not _hooks:
        _hooks.append(lambda event, arguments: _counting.audit(event, arguments) if _counting is not None else None)
        sys.addaudithook(_hooks[0])
    with contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        def noted(owner: Any, name: str, what: str) -> None:
            original = getattr(owner, name)

            def wrapped(*args: Any, **options: Any) -> Any:
                _note(what)
                return original(*args, **options)

            replace(owner, name, wrapped)

        noted(os, "fsync", "sync")
        noted(JsonLines, "_write", "row of metrics")
        noted(steps, "place", "batch of a step")
        noted(evaluate, "_gathered", "batch of an evaluation")
        replace(writer, "PAUSES", (0.01, 0.01))
        replace(setup.programs, "make", _Once(setup.programs.make, _with_one_compilation))
        replace(setup.evaluation, "make", _Once(setup.evaluation.make, lambda made: made))
        replace(setup.state_lib, "init", _initial(setup.state_lib.init))
        yield


class _Once:
    """A function that is called once for each job; `change` is made to what it returns."""

    def __init__(self, function: Any, change: Callable[[Any], Any]) -> None:
        self.function, self.change, self.made = function, change, dict[str, Any]()

    def __call__(self, *args: Any, **options: Any) -> Any:
        key = repr((args[0], args[1], sorted(options)))
        if key not in self.made:
            self.made[key] = self.change(self.function(*args, **options))
        return self.made[key]


def _with_one_compilation(program: Any) -> Any:
    """The program, whose step is lowered and compiled once."""
    import jax

    class Step:
        def lower(self, *_: Any) -> Any:
            return self

        @functools.cached_property
        def compiled(self) -> Any:
            return program.step.lower(program.state, program.batch, jax.random.key(0)).compile()

        def compile(self) -> Any:
            return self.compiled

    return dataclasses.replace(program, step=Step())


def _initial(init: Callable[..., Any]) -> Callable[..., Any]:
    """`init`, which compiles each time, as a function that copies what it has returned before."""
    made: dict[str, Any] = {}

    def copied(key: Any, declaration: Any, *rest: Any, **options: Any) -> Any:
        import jax

        which = repr((jax.random.key_data(key), declaration, sorted(options.items())))
        if which not in made:
            state = init(key, declaration, *rest, **options)
            made[which] = jax.device_get(state), jax.tree.map(lambda x: x.sharding, state)
        return jax.device_put(*made[which])

    return copied


# ----------------------------------------------------------------------------------------------------------------- runs


def experiment(name: str) -> Any:
    """The job of that name, as small as it can be."""
    from tools.drills import jobs
    from transformer_jax.experiment import Evaluate
    from transformer_jax.optim import Optim

    job = getattr(jobs, name)()
    task = jobs.WithATestSet() if name == "gpt" else job.task
    return dataclasses.replace(
        job,
        task=task,
        optim=Optim(peak_lr=0.05, warmup_steps=2),  # so much that the last step is not the best
        train=dataclasses.replace(job.train, steps=12, batch_size=8, log_every=1),
        evaluate=Evaluate(every=3, batch_size=40, patience=3),
        checkpoint=dataclasses.replace(job.checkpoint, every=4, keep=2, keep_best=1),
    )


def train(job: Any, folder: Path, strikes: dict[Instant, Callable[[str], object]] | None = None) -> Counter[str]:
    """Trains in a folder, as a process of its own would; returns how many instants there were of each kind."""
    global _counting
    from transformer_jax import restore
    from transformer_jax.train import loop

    with contextlib.redirect_stdout(io.StringIO()):
        _counting = counting = Instants(folder, strikes or {})
        try:
            loop.run(job, folder, load=restore.load)
        finally:
            _counting = None
    return counting.seen


def snapshot(source: Path, target: Path) -> None:
    """Copies a folder as it is at one moment. Nothing of what is counted happens meanwhile; what Orbax writes into a
    part of a step goes on, and such a part is no step."""
    while True:
        shutil.rmtree(target, ignore_errors=True)
        before = _names(source)
        with contextlib.suppress(shutil.Error):
            shutil.copytree(source, target, symlinks=True)
        if _names(source) == before:
            break
    for lock in target.glob("lock*"):  # also of a process that was about to take it
        with contextlib.suppress(ValueError):
            lock.write_text(json.dumps(json.loads(lock.read_text()) | {"born": "0"}))  # its owner is dead then


def _names(folder: Path) -> dict[str, tuple[int, int]]:
    found = [*folder.glob("*"), *folder.glob("checkpoints/*")]
    with contextlib.suppress(OSError):
        return {str(path): (path.stat().st_ino, 0 if path.is_dir() else path.stat().st_size) for path in found}
    return {}


def interrupt(job: Any, folder: Path, kind: str, when: Instant, instant: list[str]) -> bool:
    """Trains in a folder and interrupts that at an instant; whether it was the end of the run. The folder is then what
    the interruption has left."""
    from transformer_jax.errors import InputError, RunError

    left, died = folder.with_name(folder.name + ".left"), list[str]()

    def kill(what: str) -> None:
        if not died:
            instant.append(what)
            snapshot(folder, left)
            died.append(what)

    def terminate(what: str) -> None:
        instant.append(what)
        os.kill(os.getpid(), signal.SIGTERM)

    def fill(what: str) -> None:
        instant.append(what)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Outside of the steps the system would end the process.
    before = signal.signal(signal.SIGTERM, lambda *_: kill("SIGTERM outside of the steps"))
    try:
        train(job, folder, {when: {"kill": kill, "SIGTERM": terminate, "disk": fill}[kind]})
    except (InputError, RunError) as error:
        if kind != "disk" or "\n" in str(error):
            raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGTERM, before)
    if died:
        shutil.rmtree(folder)
        left.rename(folder)
    return not instant


def attempts(job: Any, folder: Path, numbers: range) -> Iterator[dict[str, Any]]:
    """The tries of these numbers, against a run that nothing interrupts."""
    with prepared():
        seen = train(job, folder / "whole")
        whole = reported(folder / "whole")
        for number in numbers:
            yield attempt(job, folder / "run", whole, seen, number)
            shutil.rmtree(folder / "run", ignore_errors=True)
            shutil.rmtree(folder / "run.left", ignore_errors=True)


def attempt(job: Any, folder: Path, whole: dict[str, Any], seen: Counter[str], number: int) -> dict[str, Any]:
    """One try: its kind, its instants, and what differs in the end.

    What is interrupted is drawn first, then when: most instants are syncs.

    Args:
      job: an experiment.
      folder: of the run.
      whole: what the whole run has `reported`.
      seen: how many instants of each kind the whole run had.
      number: of the try.
    """
    rng, kind, instant = random.Random(number), KINDS[number % len(KINDS)], list[str]()

    def draw() -> Instant:
        what = rng.choice(sorted(seen))
        return what, rng.randrange(seen[what])

    problem = None
    try:
        interrupt(job, folder, kind, draw(), instant)
        if rng.random() < 1 / 3:
            interrupt(job, folder, rng.choice(KINDS), draw(), instant)
        train(job, folder)
        found = reported(folder)
        differ = (name for name in whole | found if whole.get(name) != found.get(name))
        problem = next((_difference(name, whole.get(name), found.get(name)) for name in differ), None)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        problem = "".join(traceback.format_exception(error)[-3:])
    problem = problem and f"try {number}, {kind} at {', '.join(instant)}: {problem}"
    return {"kind": kind, "instant": (instant or ["after the end"])[0], "problem": problem}


def _difference(name: str, one: Any, other: Any) -> str:
    """How a value of the whole run differs from that of another one; of a list, the first entry that does."""
    if isinstance(one, list) and isinstance(other, list):
        name = f"{name} ({len(one)} and {len(other)})"
        one, other = next(pair for pair in itertools.zip_longest(one, other) if pair[0] != pair[1])
    return f"{name}: {one!r:.300} in the whole run, {other!r:.300} in this one"


def reported(folder: Path) -> dict[str, Any]:
    """All that a run reports and leaves, without times: by file, and of metrics.jsonl and results.json by value."""
    import jax
    import orbax.checkpoint as ocp

    untimed = lambda row: {k: x for k, x in row.items() if not any(word in k for word in TIMES)}  # noqa: E731
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"rows": [untimed(row) for row in rows]}
    found |= {f"results.{k}": x for k, x in untimed(json.loads((folder / "results.json").read_text())).items()}
    found["checkpoints"] = sorted(path.name for path in (folder / "checkpoints").iterdir())
    last = max((name for name in found["checkpoints"] if name.isdecimal()), key=int)
    for item in ("params", "optimizer", "ema"):
        tree = ocp.StandardCheckpointer().restore((folder / "checkpoints" / last / item).absolute())
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
        found[item] = hashlib.sha256(b"".join(f"{path}".encode() + x.tobytes() for path, x in leaves)).hexdigest()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(("checkpoints/", "metrics.jsonl", "results.json", *OTHER)):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where the compilations of all processes stay")
    asked = parser.parse_args()
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    with tempfile.TemporaryDirectory(prefix="equal") as temporary:
        folder = Path(temporary)
        os.environ["TRANSFORMER_JAX_CACHE"] = str(folder / "cache")
        jax.config.update("jax_compilation_cache_dir", str((asked.folder or folder) / "compilations"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        for found in attempts(experiment(asked.job), folder, range(asked.first, asked.first + asked.tries)):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
