"""Drills: real processes that are killed, files that are damaged, disks that are full; a table of what survived.

    tools/run tools.drills EXPERIMENT [VARIANT] --drill kill,resume,... [--tries N] [--keep DIR] [--FIELD VALUE ...]

EXPERIMENT is what `train` takes; the fields shrink it. docs/reliability.md has the commands of its table. The folder of
a drill is thrown away unless --keep DIR names one. Each drill says what survived means, below.

Trainers are processes of their own, started by the command that a user gives.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tools.drills import beside as drills_beside
from tools.drills import damage as drills_damage
from tools.drills import disk as drills_disk
from tools.drills import equal as drills_equal
from tools.drills import faults as drills_faults
from tools.drills import folder as drills_folder
from tools.drills import store as drills_store
from tools.drills.trainer import INTERVAL, Job, Row, Trainer, end_trainers, wrong_start
from transformer_jax import observe
from transformer_jax.runs import saved


def last_step(workdir: Path) -> int:
    """The last step in metrics.jsonl, whose last line may be incomplete; 0 where there is none."""
    path = workdir / "metrics.jsonl"
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        for line in reversed(file.read().split(b"\n")):
            if line.startswith(b'{"step": ') and line.endswith(b"}"):
                return int(float(line.partition(b", ")[0].partition(b": ")[2].rstrip(b"}")))
    return 0


def newest(workdir: Path) -> int:
    """The newest step that has its name, 0 where there is none; its files are not looked at."""
    with contextlib.suppress(FileNotFoundError):
        return max((int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()), default=0)
    return 0


def after_a_kill(workdir: Path, seen: int) -> tuple[int, str | None]:
    """The step to resume from, and what was lost: a step that had its name before the kill, or one that is damaged."""
    damage: list[str] = []
    found = saved.newest(workdir / "checkpoints", damage.append) or 0
    if damage:
        return found, damage[0]
    for step in saved.steps(workdir / "checkpoints"):
        saved.check_files(workdir / "checkpoints" / str(step))
    return found, None if found >= seen else f"step {seen} was there, and {found} is the newest after the kill"


# --------------------------------------------------------------------------------------------------------------- drills


def kill(job: Job, tries: int) -> Iterator[Row]:
    """SIGKILL at random moments, a third of them while the trainer starts, then at each named point inside a save; each
    time the same command resumes.

    Survived: every step that had its name still has it and is as it was written; the next start resumes from the newest
    of them without help; what has to be computed again is at most one save interval, and what was computed while a save
    was under way that the kill ended.
    """
    workdir, rng = job.folder / "kill", random.Random(0)
    arguments = job.arguments(
        workdir, train__steps=10**6, train__log_every=1, checkpoint__every=INTERVAL, checkpoint__keep=2
    )
    rows = {point: Row(f"SIGKILL {point or 'at a random moment'}") for point in ("", *drills_faults.POINTS)}
    killed: list[tuple[str, str | None]] = []  # point and problem, of the kills that no start has recovered from yet
    found, start_up = 0, 10.0  # the newest step; seconds from a start to its first step
    repeated = early = beside = 0
    for number, point in enumerate([*[""] * tries, *drills_faults.POINTS, None]):  # None: the start after the last kill
        trainer, began = Trainer(arguments, job.folder / "kill.log", (point, 3) if point else None), time.monotonic()
        starting = point == "" and rng.random() < 1 / 3
        if starting:
            time.sleep(rng.uniform(0, start_up))
            early += 1
        else:
            wrong = wrong_start(trainer, found)
            start_up = start_up if wrong else time.monotonic() - began
            for earlier, problem in killed:
                rows[earlier].count(problem or wrong)
            killed = []
            if point:
                with contextlib.suppress(TimeoutError):
                    trainer.wait(120)  # it kills itself
            elif point == "":
                taken = rng.randrange(1, 3 * INTERVAL)  # steps, of which some end beside a save
                with contextlib.suppress(RuntimeError):
                    trainer.until(functools.partial(trainer.stepped, taken), "these steps")
                time.sleep(rng.uniform(0, 0.1))
        seen, saving = newest(workdir), any((workdir / "checkpoints").glob("*.part*"))
        if trainer.ended() is None:
            trainer.signal(signal.SIGKILL)
        code, reached = trainer.wait(), last_step(workdir)
        if point is None:
            break
        beside += saving and not point and not starting  # what a kill before this one left is not a save
        found, problem = after_a_kill(workdir, seen)
        if code != -signal.SIGKILL:
            problem = f"ended with {code}, not by the kill: {trainer.output()[-300:]}"
        repeated = max(repeated, reached - found)
        if reached - found > INTERVAL * (2 if saving else 1) + 1:
            problem = problem or f"{reached - found} steps are to be repeated, the interval is {INTERVAL}"
        killed.append((point, problem))
        if number % 10 == 9:
            print(f"  {number + 1} kills, at step {reached:,}", flush=True)
    rows[""].remarks += [
        f"{early} while it started, {beside} during a save",
        f"saves every {INTERVAL} steps, at most {repeated} computed again; step {reached:,}",
    ]
    yield from (row for row in rows.values() if row.tries)


def resume(job: Job, tries: int) -> Iterator[Row]:
    """Ten SIGKILLs at random steps of one run, and a run beside it that is not killed.

    Survived: SHA-256 of parameters, optimiser and average, the step, the rows and the next batch are equal in the end.
    """
    cycles, every, rng = 10, 4, random.Random(1)
    end = every * 2 * (cycles + 3)
    settings = dict(train__steps=10**4, train__log_every=1, checkpoint__every=every, checkpoint__keep=10**4)
    row = Row(f"{cycles} kills and resumes, to step {end}, against none")
    for attempt in range(max(1, tries // 10)):
        whole, killed = (job.folder / f"{name}{attempt}" for name in ("whole", "killed"))
        stops = [2 + (end - 2 * every) * i // cycles + rng.randrange(every) for i in range(cycles)]
        for stop in stops:
            _train_until(job.arguments(killed, **settings), killed, step=stop)
        for workdir in (killed, whole):
            _train_until(job.arguments(workdir, **settings), workdir, save=end)
        found = [drills_folder.fingerprint(folder, end) for folder in (whole, killed)]
        differ = [name for name in found[0] if found[0][name] != found[1].get(name)]
        row.count(f"{', '.join(differ)} differ" if differ or found[0].keys() != found[1].keys() else None)
        print(f"  killed near steps {', '.join(map(str, stops))}; {found[0]}", flush=True)
    if row.survived:
        row.remarks.append(f"equal: {', '.join(found[0])}")
    yield row


def _train_until(arguments: list[str], workdir: Path, *, step: int = 0, save: int = 0) -> None:
    """Trains until a step is logged, or a step is saved, and kills the trainer then."""
    trainer = Trainer(arguments, workdir.with_suffix(".log"))
    there = lambda: trainer.stepped() and last_step(workdir) >= step and newest(workdir) >= save  # noqa: E731
    trainer.until(there, f"step {step or save}")
    trainer.signal(signal.SIGKILL)
    trainer.wait()


def damage(job: Job, tries: int) -> Iterator[Row]:
    """Byte flips, truncations, deletions and swaps of files of the newest step, one at a time.

    Survived: the file is named, a trainer would resume from the step before, and `load` gives that step's parameters,
    or the newest's where the damage is in what it does not read. Nothing loads that is not what was saved.
    """
    workdir = job.folder / "damage"
    arguments = job.arguments(workdir, train__steps=10**6, checkpoint__every=INTERVAL, checkpoint__keep=2)
    trainer = Trainer(arguments, job.folder / "damage.log")
    trainer.until(lambda: len(saved.steps(workdir / "checkpoints")) == 2, "two saves")
    trainer.signal(signal.SIGTERM)
    trainer.wait()
    rows = {kind: Row(f"newest step: {words}") for kind, words in drills_damage.KINDS.items()}
    files = drills_damage.Files(workdir / "checkpoints" / str(newest(workdir)))
    for kind, problem in drills_damage.spoil(workdir, files, tries):
        rows[kind].count(problem)
    yield from rows.values()


def disk(job: Job, tries: int) -> Iterator[Row]:
    """A disk that is full, a limit on the size of files, and I/O errors, once and for good.

    Survived: the trainer ends with 1 and a line that says why, or tries again and continues; the steps before are as
    they were; with room again the same command resumes.
    """
    for name, attempt in drills_disk.FAULTS.items():
        row = Row(name)
        for i in range(max(1, tries // 20)):
            workdir = job.folder / f"{attempt.__name__}{i}"
            arguments = job.arguments(
                workdir, train__steps=10**6, train__log_every=1, checkpoint__every=INTERVAL, checkpoint__keep=2
            )
            try:
                outcome = attempt(arguments, workdir, Trainer)
                row.count(None)
                row.remarks.append(outcome) if outcome not in row.remarks else None
            except drills_disk.NotPermitted as error:
                row.remarks.append(f"not drilled: {error}")
            except (AssertionError, RuntimeError, TimeoutError) as error:
                row.count(str(error) or traceback.format_exc(limit=1))
        yield row


def signals(job: Job, tries: int) -> Iterator[Row]:
    """SIGTERM, SIGINT and SIGUSR1 while it trains; twice in a row; during a save.

    Survived: a checkpoint at the step where it stopped, as it was written; the command to go on; code 128 + signal.
    """
    workdir, rng = job.folder / "signal", random.Random(2)
    cases = [
        ("SIGTERM", [signal.SIGTERM], False),
        ("SIGINT", [signal.SIGINT], False),
        ("SIGUSR1", [signal.SIGUSR1], False),
        ("SIGTERM twice in a row", [signal.SIGTERM, signal.SIGTERM], False),
        ("SIGTERM, then SIGINT during its save", [signal.SIGTERM, signal.SIGINT], True),
        ("SIGTERM during a periodic save", [signal.SIGTERM], True),
    ]
    for name, sent, during in cases:
        row, seconds = Row(f"{name}: saved and exited"), []
        every = INTERVAL if name.endswith("periodic save") else 0
        arguments = job.arguments(
            workdir, train__steps=10**6, train__log_every=1, checkpoint__every=every, checkpoint__keep=2
        )
        for _ in range(max(1, tries // 10)):
            start = newest(workdir)
            trainer = Trainer(arguments, job.folder / "signal.log")
            saving = lambda: any((workdir / "checkpoints").glob("*.part*"))  # noqa: E731
            try:
                trainer.until(trainer.stepped, "a step")
                time.sleep(rng.uniform(0, 1))
                if during and every:
                    trainer.until(saving, "a save")
                began = time.monotonic()
                trainer.signal(sent[0])
                for number in sent[1:]:
                    if during:
                        while trainer.ended() is None and not saving():
                            time.sleep(0.001)
                    if trainer.ended() is None:
                        trainer.signal(number)
                code = trainer.wait()
                seconds.append(time.monotonic() - began)
            except (RuntimeError, TimeoutError) as error:
                row.count(str(error))
                continue
            output, problem = trainer.output(), None
            stopped, damaged = after_a_kill(workdir, start)
            if code != 128 + sent[0]:
                problem = f"exit code {code}: {output[-300:]}"
            elif f"saved at step {stopped:,}" not in output or "to go on: " not in output:
                problem = f"step {stopped} is the newest, and its output ends: {output[-300:]}"
            row.count(problem or damaged)
        if seconds:
            row.remarks.append(f"median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")
        yield row


def cost(job: Job, tries: int) -> Iterator[Row]:
    """How long a save keeps the loop waiting, and how much slower the steps beside it are.

    Survived: less than 1 % of the time at a save every five minutes.
    """
    workdir, saves, every = job.folder / "cost", max(5, tries // 10), 2 * INTERVAL
    arguments = job.arguments(
        workdir, train__steps=every * (saves + 1), train__log_every=1, checkpoint__every=every, evaluate__every=0
    )
    trainer = Trainer(arguments, job.folder / "cost.log")
    code = trainer.wait(3000)
    row, output = Row("a save every five minutes: the loop waits less than 1 %"), trainer.output()
    if code != 0:
        row.count(f"exit code {code}: {output[-300:]}")
        yield row
        return
    steps = [r for r in observe.read_rows(workdir / "metrics.jsonl") if "seconds_per_step" in r and r["step"] > 5]
    usual = statistics.median(r["seconds_per_step"] for r in steps if r["step"] % every > every // 2)
    slower = [r["seconds_per_step"] - usual for r in steps if 0 < r["step"] % every <= every // 2]
    beside = max(0.0, sum(slower)) / saves
    results = json.loads((workdir / "results.json").read_text())
    stall = results["seconds_by_activity"]["saving"] / (saves + 1)
    share = (stall + beside) / 300
    row.count(None if share < 0.01 else f"{share:.2%}")
    size = sum(f.stat().st_size for f in (workdir / "checkpoints" / str(newest(workdir))).rglob("*") if f.is_file())
    row.remarks.append(
        f"{share:.3%}: {1000 * stall:.0f} ms of waiting and {1000 * beside:.0f} ms of slower steps for each save of "
        f"{size / 1e6:.1f} MB; steps of {1000 * usual:.0f} ms; goodput {results['goodput']:.1%} of "
        f"{results['seconds']:.0f} s"
    )
    yield row


DRILLS = {
    "kill": kill,
    "resume": resume,
    "damage": damage,
    "disk": disk,
    "signal": signals,
    "cost": cost,
    "store": drills_store.drill,
    "readers": drills_beside.readers,
    "owners": drills_beside.owners,
    "equal": drills_equal.drill,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="+", help="a module or a file, and the name of a variant")
    parser.add_argument("--drill", default="kill,resume,damage,disk,signal", help="which, separated by commas")
    parser.add_argument("--tries", type=int, default=100, help="kills, and damages in tens; other drills take a share")
    parser.add_argument("--keep", type=Path, help="a folder for the workdirs and logs, which stay")
    asked, fields = parser.parse_known_args()
    unknown = set(asked.drill.split(",")) - DRILLS.keys()
    if unknown:
        parser.error(f"no drill {', '.join(sorted(unknown))}; there are {', '.join(DRILLS)}")
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drills")))
        stack.callback(end_trainers)
        folder.mkdir(parents=True, exist_ok=True)
        for name in asked.drill.split(","):
            print(f"{name}: {' '.join((DRILLS[name].__doc__ or '').split())}", flush=True)
            began = time.monotonic()
            rows += DRILLS[name](Job(asked.experiment, fields, folder.resolve()), asked.tries)
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
    print("\n| drill | tries | survived | remarks |\n|---|---:|---:|---|")
    print(*rows, sep="\n")
    return 0 if all(row.tries == row.survived for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
