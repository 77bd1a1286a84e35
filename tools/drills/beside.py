"""Drills of several processes in one folder: readers beside a trainer, and trainers that all want it.

What trains here does nothing but save, at every step: what is drilled is the folder.
"""

import contextlib
import dataclasses
import errno
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.drills import bucket
from tools.drills.trainer import Job, Row

BUCKET = "gs://drill/run"
READERS = 2
STEP = 0.1  # seconds of a step; a save, and the deletion of the one before, take longer
OWNERS = 4
WATCHED = 2.0  # seconds, in place of `lock.STALE`
OWNERS_SECONDS = 600  # for each kind of file system
CLOCKS = (0, 60, -60, 0)  # seconds that the owners' clocks are ahead


def readers(job: Job, tries: int) -> Iterator[Row]:
    """Loads beside a trainer that saves at every step and keeps one.

    Survived: the load gives the parameters that were saved under its step, or fails with one line.
    """
    workdir = job.folder / "readers"
    row = Row("load beside a trainer that saves at every step, keep 1")
    with _process("save", str(workdir)) as trainer:
        _line(trainer)
        reading = [_started("read", str(workdir), str(tries // READERS)) for _ in range(READERS)]
        for process in reading:
            counts = json.loads(_line(process))
            for problem in counts.pop("problems"):
                row.count(problem)
            row.tries, row.survived = row.tries + sum(counts.values()), row.survived + sum(counts.values())
            row.remarks.append(f"{counts['read']} read, {counts['refused']} refused in one line")
            process.communicate()
        trainer.kill()
        row.remarks.append(f"steps that were kept at the end: {sorted(_numbers(workdir / 'checkpoints'))}")
    yield row


def owners(job: Job, tries: int) -> Iterator[Row]:
    """Processes that all want one folder, that of a run: they take its lock, write, copy and read the folder, and are
    killed; one more process evaluates the run meanwhile, again and again.

    Survived: a time that one process had the lock and no other had it, and after which all that it wrote was there; an
    evaluation that gave the numbers of the first one.
    """
    # Forked from this process, which has imported everything: a start takes milliseconds, so kills hit what matters.
    forks = multiprocessing.get_context("fork")
    importlib.import_module("gcsfs")
    run = job.folder / "run"
    with _process("save", str(run), "1") as trainer:
        trainer.wait()
    for name, settings in (
        ("with locks", {}),
        ("without locks", {"locks": False}),
        ("without locks, each on another machine", {"locks": False, "machines": True}),
        ("without locks and hard links, each on another machine", {"locks": False, "links": False, "machines": True}),
    ):
        folder = job.folder / name.replace(" ", "_").replace(",", "")
        shutil.copytree(run, folder)
        yield from _owners(forks, folder, f"owners {name}", settings, tries)
    with bucket.serve("drill") as server:
        stored = {"machines": True, "bucket": True, "environment": dict(server.environment)}
        shutil.copytree(run, job.folder / "bucket")
        for path in run.rglob("*"):
            if path.is_file():
                server.put(f"run/{path.relative_to(run).as_posix()}", path.read_bytes())
        name = "owners in a bucket, each on another machine"
        yield from _owners(forks, job.folder / "bucket", name, stored, tries)


def _owners(forks: Any, folder: Path, name: str, settings: dict[str, Any], tries: int) -> Iterator[Row]:
    row, evaluations, rng, kills = Row(name), Row(f"{name}: evaluations beside them"), random.Random(0), 0
    log = folder.with_name(f"{folder.name}.evaluations")
    longest = 2.5 if settings.get("machines") else 0.2  # a dead owner of another machine is watched for `WATCHED`

    def start(i: int) -> Any:
        process = forks.Process(target=own, args=(folder, settings | {"clock": CLOCKS[i]}), daemon=True)
        process.start()
        return process

    where = BUCKET if settings.get("bucket") else str(folder)
    with _process("evaluate", where, str(log), environment=settings.get("environment")) as evaluating:
        while not _lines(log) and evaluating.poll() is None:  # it imports everything, and compiles
            time.sleep(0.1)
        processes, began = [start(i) for i in range(OWNERS)], time.monotonic()
        while kills < tries and time.monotonic() - began < OWNERS_SECONDS and row.tries == row.survived:
            time.sleep(rng.uniform(0.02, longest))
            i = rng.randrange(OWNERS)
            if not processes[i].is_alive():
                row.count(f"an owner ended by itself, with code {processes[i].exitcode}")
            processes[i].kill()
            processes[i].join()
            kills += 1
            processes[i] = start(i)
            times = len(_lines(folder / "owned")) - row.survived
            row.tries, row.survived = row.tries + times, row.survived + times
        for process in processes:
            process.kill()
            process.join()
    for problem in _lines(folder / "problems"):
        row.count(problem)
    for line in _lines(folder / "owned"):
        if not line.endswith("."):
            row.count(f"lost or torn: {line!r}")
    row.remarks.append(f"{kills} SIGKILLs, clocks {', '.join(f'{c:+}' for c in CLOCKS)} s")
    yield row
    lines = _lines(log) or ["no evaluation has ended"]
    for line in lines:
        evaluations.count(None if line == lines[0] and line.startswith("{") else line)
    yield evaluations


# ------------------------------------------------------------------------------------------------------- the processes


def _started(*words: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"} | dict(environment or {})
    command = [sys.executable, "-m", "tools.drills.beside", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@contextlib.contextmanager
def _process(*words: str, environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    process = _started(*words, environment=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline() or f"ended: {process.communicate()[1][-2000:]}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _experiment() -> Any:
    from transformer_jax import errors
    from transformer_jax.data import corpus, sources, tokenizers
    from transformer_jax.experiment import Experiment
    from transformer_jax.models import gpt

    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2),
        data=corpus.TextCorpus(sources.TextFiles((errors.__file__,)), tokenizers.Bytes(), length=16),
    )


def save(workdir: Path, last: int = 10**9) -> None:
    """Saves steps whose parameters are all the number of the step, one after the other."""
    import jax
    import jax.numpy as jnp
    import optax

    from transformer_jax import config_json
    from transformer_jax.models import gpt
    from transformer_jax.runs import lock
    from transformer_jax.runs import workdir as workdirs
    from transformer_jax.runs.writer import Writer
    from transformer_jax.train import state as states

    experiment = _experiment()
    with lock.hold(workdir, print) as is_owner:
        config = config_json.to_json(experiment)
        workdirs.write_json(workdir / "config.json", config)
        run = workdirs.run_id(workdir)
        shapes = jax.eval_shape(lambda key: gpt.init(key, experiment.model), jax.random.key(0))
        options = {"family": "gpt", "config": config, "run": run, "keep": 1, "is_owner": is_owner, "say": print}
        with Writer(workdir / "checkpoints", **options) as writer:
            for step in range(1, last + 1):
                params = jax.tree.map(lambda x: jnp.full(x.shape, step, x.dtype), shapes)  # noqa: B023
                state = states.create(params, optax.identity())
                writer.save(dataclasses.replace(state, step=jnp.int32(step)), rows=step)
                time.sleep(STEP)
                if step == 2:
                    print("saving", flush=True)


def read(workdir: Path, count: int) -> None:
    """Loads the run so often; prints how often it was read, was refused, and what else happened."""
    import jax
    import numpy as np

    from transformer_jax import restore
    from transformer_jax.errors import InputError

    counts: dict[str, Any] = {"read": 0, "refused": 0, "problems": []}
    for _ in range(count):
        try:
            loaded = restore.load(workdir)
            found = {float(x) for leaf in jax.tree.leaves(loaded.params) for x in np.unique(np.asarray(leaf))}
            if found == {float(loaded.step or 0)}:
                counts["read"] += 1
            else:
                counts["problems"].append(f"step {loaded.step} has the parameters of {sorted(found)[:5]}")
        except InputError as error:
            if "\n" in str(error):
                counts["problems"].append(f"several lines: {error!r:.200}")
            counts["refused"] += "\n" not in str(error)
        except Exception as error:
            counts["problems"].append(f"{type(error).__name__}: {str(error)[:200]!r}")
    print(json.dumps(counts), flush=True)


def evaluate(workdir: str, log: Path) -> None:
    """Evaluates the run again and again, by the command that a user gives; adds a line to `log` for each: the numbers,
    as printed, or what went wrong."""
    from transformer_jax.cli import main

    while True:
        output, wrong = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(wrong):
            code = main.main(["evaluate", workdir])
        numbers = [line for line in output.getvalue().splitlines() if not line.startswith("picture")]
        line = json.dumps({"numbers": numbers}) if code == 0 else f"exit code {code}: {wrong.getvalue()[-300:]!r}"
        with log.open("a") as file:
            file.write(line + "\n")
        time.sleep(0.5)


def own(folder: Path, settings: dict[str, Any]) -> None:
    """Takes the folder's lock again and again, and writes, reads and copies while it has it."""
    from transformer_jax.errors import InputError
    from transformer_jax.runs import lock, owners, store, store_lock

    os.environ.update(settings.get("environment", {}))

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if not settings.get("locks", True):
        lock.fcntl.flock = unsupported
    if not settings.get("links", True):
        os.link = unsupported  # type: ignore[assignment]
    if settings.get("machines"):
        owners._machine = lambda: ""  # no process can be looked up
    lock.STALE, lock.HEARTBEAT = WATCHED, WATCHED / 10
    utime, ahead = os.utime, settings["clock"]

    def touch(path: Any, *times: Any, **options: Any) -> None:
        utime(path, *times or ((time.time() + ahead,) * 2,) * (not options), **options)

    os.utime = touch  # type: ignore[assignment]
    inside, owned = folder / "inside", folder / "owned"

    def held_by_two(other: object) -> None:
        with (folder / "problems").open("a") as file:
            file.write(f"the folder is held by two: {os.getpid()} and {other}\n")

    place, hold = (store.path(BUCKET), store_lock.hold) if settings.get("bucket") else (folder, lock.hold)
    while True:
        with contextlib.suppress(InputError, lock.Lost), hold(place, lambda line: None) as is_owner:
            is_owner()
            with contextlib.suppress(FileNotFoundError, ValueError):
                there = int(inside.read_text())
                if there != os.getpid() and Path(f"/proc/{there}").exists() and not _is_zombie(there):
                    held_by_two(there)
            inside.write_text(str(os.getpid()))
            copy = folder.with_name(f"{folder.name}.{os.getpid()}")
            with contextlib.suppress(shutil.Error):  # of files that others have just taken away
                shutil.copytree(folder, copy)
            shutil.rmtree(copy, ignore_errors=True)  # a POSIX lock would be gone by now
            time.sleep(0.02)
            is_owner()
            if inside.read_text() != str(os.getpid()):
                held_by_two(inside.read_text())
            with owned.open("a") as file:
                file.write(f"{os.getpid()} {time.time()}.\n")
            inside.unlink()
        time.sleep(0.005)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "save":
        save(Path(where), *map(int, rest))
    elif what == "evaluate":
        evaluate(where, Path(rest[0]))
    else:
        read(Path(where), int(rest[0]))
