"""Drills of runs in an object store: trainers that are real, and a bucket in the drill's memory (bucket.py)."""

import contextlib
import functools
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator, MutableMapping

from tools.drills import bucket
from tools.drills import damage as drills_damage
from tools.drills.trainer import INTERVAL, Job, Row, Trainer, wrong_start
from transformer_jax.runs import lock, saved, store

CHANGES = "POST|PUT|DELETE"
ERRORS = (429, 500, 502, 503, 504, 0)  # that pass; 0: the connection ends without an answer
OUTAGE = 60.0  # seconds

# Where inside a save a trainer is killed: at a request of this method for an object of this name, of which so many pass
# first; True: it took effect, and the answer is lost.
POINTS = {
    "before a save": (CHANGES, r"checkpoints/\d+/", 0, False),
    "during the arrays": (CHANGES, r"checkpoints/\d+/params", 3, False),
    "as the arrays are committed": ("POST", r"checkpoints/\d+/(params/)?commit_success", 0, False),
    "before the files beside a step": ("POST", "metrics.jsonl", 0, False),
    "before the manifest": ("POST", "manifest.json", 0, False),
    "as the manifest is there": ("POST", "manifest.json", 0, True),
    "before the old manifest is deleted": ("DELETE", "manifest.json", 0, False),
    "as the old manifest is deleted": ("DELETE", "manifest.json", 0, True),
    "while the old step is deleted": ("DELETE", r"checkpoints/\d+/params", 2, True),
    "as the lock is renewed": ("POST", "/lock", 0, True),
}


class Objects(MutableMapping[str, bytes]):
    """The objects below a prefix by the rest of their names."""

    def __init__(self, server: bucket.Server, prefix: str) -> None:
        self.server, self.prefix = server, prefix

    def __getitem__(self, name: str) -> bytes:
        return self.server.objects[self.prefix + name].data

    def __setitem__(self, name: str, data: bytes) -> None:
        self.server.put(self.prefix + name, data)

    def __delitem__(self, name: str) -> None:
        with self.server.guard:
            del self.server.objects[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        with self.server.guard:
            names = sorted(self.server.objects)
        return (name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Bench:
    """A run in the bucket: its trainers, and what is there."""

    def __init__(self, job: Job, server: bucket.Server, name: str) -> None:
        self.job, self.server, self.name = job, server, name
        self.workdir = store.path(f"gs://{server.bucket}/{name}")
        self.logs = (job.folder / f"store-{name}-{number}.log" for number in itertools.count())
        self.arguments = job.arguments(
            str(self.workdir), train__steps=10**6, train__log_every=1, checkpoint__every=INTERVAL, checkpoint__keep=2
        )

    def start(self) -> Trainer:
        scratch = self.job.folder / "scratch"  # where a trainer that is killed leaves what it had on this machine
        scratch.mkdir(exist_ok=True)
        return Trainer(self.arguments, next(self.logs), environment={"TMPDIR": str(scratch)})

    def objects(self) -> Objects:
        return Objects(self.server, f"{self.name}/")

    def steps(self) -> list[int]:
        """The steps that have a manifest; the library is not used."""
        found = [name.split("/") for name in self.objects() if name.startswith("checkpoints/")]
        return sorted(int(step) for _, step, *rest in found if rest == ["manifest.json"] and step.isdecimal())

    def saved(self, trainer: Trainer, times: int = 1) -> None:
        """Returns when it has saved so many more steps."""
        begun = max(self.steps(), default=0)
        trainer.until(lambda: max(self.steps(), default=0) >= begun + times * INTERVAL, "a save")

    def newest(self) -> int:
        """The step to resume from; 0 where there is none. Raises `AssertionError` where any step is damaged."""
        damage: list[str] = []
        found = saved.newest(self.workdir / "checkpoints", damage.append) or 0
        assert not damage, damage[0]
        for step in saved.steps(self.workdir / "checkpoints"):
            saved.check_files(self.workdir / "checkpoints" / str(step))
        return found

    def resumes(self, times: int = 1) -> None:
        """A trainer resumes the run, saves, and is stopped by a signal."""
        found, trainer = self.newest(), self.start()
        self.saved(trainer, times)
        assert trainer.resumed() == found, f"resumed from {trainer.resumed()}, and {found} was the newest"
        self.ends(trainer)

    def ends(self, trainer: Trainer) -> None:
        trainer.signal(signal.SIGTERM)
        assert trainer.wait() == 128 + signal.SIGTERM, trainer.output()[-300:]
        assert f"saved at step {self.newest():,} " in trainer.output(), trainer.output()[-300:]


def drill(job: Job, tries: int) -> Iterator[Row]:
    """A run in an object store: SIGKILL at random moments, between any two requests and at each named point of a save;
    errors that pass and errors that stay; two trainers; objects that are damaged. The bucket is in the drill's memory.

    Survived: every step that had its manifest is as it was written; the same command resumes from the newest of them.
    Errors that pass change nothing; those that stay end the trainer with one line. Of two trainers one has the run.
    """
    with bucket.serve("drill") as server:
        os.environ.update(server.environment)
        import fsspec

        fsspec.config.set_conf_env(fsspec.config.conf)  # read when it was imported, which may have been before
        yield from kills(Bench(job, server, "kill"), tries)
        yield from passing(Bench(job, server, "passing"), tries)
        if tries >= 10:
            yield from outage(Bench(job, server, "outage"))
        yield from staying(Bench(job, server, "staying"))
        yield from contended(Bench(job, server, "contended"))
        yield from damaged(Bench(job, server, "damaged"), tries)


def kills(bench: Bench, tries: int) -> Iterator[Row]:
    names = ("at a random moment", "at a random request", *POINTS)
    rows = {name: Row(f"store, SIGKILL {name}") for name in names}
    rng, found, start_up, repeated = random.Random(0), 0, 8.0, 0
    killed: list[tuple[str, str | None]] = []  # as in `drills.kill`
    for name in [*(names[i % 2] for i in range(tries)), *POINTS, ""]:
        trainer, began, seen = bench.start(), time.monotonic(), 0

        def kill(trainer: Trainer = trainer) -> None:
            nonlocal seen
            seen = max(bench.steps(), default=0)
            trainer.signal(signal.SIGKILL)

        fault = bucket.Fault(CHANGES, f"^{bench.name}/", act=kill)
        if name == "at a random request" and rng.random() < 1 / 4:  # of the start, among which are the first writes
            fault.method, fault.skip = ".*", rng.randrange(30)
            bench.server.faults.append(fault)
        elif name == "at a random moment" and rng.random() < 1 / 4:
            time.sleep(rng.uniform(0, start_up))
            kill()
        else:
            wrong = wrong_start(trainer, found)
            start_up = start_up if wrong else time.monotonic() - began
            for earlier, problem in killed:
                rows[earlier].count(problem or wrong)
            killed = []
            if name in POINTS:
                with contextlib.suppress(RuntimeError):
                    bench.saved(trainer, 3)  # now an old step is deleted at each save
                fault.method, fault.name, fault.skip, fault.done = POINTS[name]
            fault.skip = rng.randrange(200) if name == "at a random request" else fault.skip
            if name == "at a random moment":
                with contextlib.suppress(RuntimeError):
                    trainer.until(functools.partial(trainer.stepped, rng.randrange(1, 3 * INTERVAL)), "these steps")
                time.sleep(rng.uniform(0, 0.3))
                kill()
            elif name:
                bench.server.faults.append(fault)
            else:
                kill()
        problem = None
        with contextlib.suppress(TimeoutError):
            trainer.wait(120)
        bench.server.faults.clear()
        if not name:
            break
        if trainer.ended() != -signal.SIGKILL:
            problem = f"ended with {trainer.ended()}, not by the kill: {trainer.output()[-300:]}"
        reached = trainer.reached()
        try:
            found = bench.newest()
            if found < seen:
                problem = problem or f"step {seen} was there, and {found} is the newest after the kill"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        repeated = max(repeated, reached - found)
        if reached - found > 2 * INTERVAL + 1:
            problem = problem or f"{reached - found} steps are to be repeated, the interval is {INTERVAL}"
        killed.append((name, problem))
    rows["at a random moment"].remarks.append(f"at most {repeated} steps computed again; step {found:,}")
    yield from rows.values()


def passing(bench: Bench, tries: int) -> Iterator[Row]:
    row, rng = Row("store, errors that pass (429, 500, 502, 503, 504, a connection that ends)"), random.Random(1)
    faults = [
        bucket.Fault(".*", bench.name, ERRORS[i % len(ERRORS)], skip=rng.randrange(10, 900), done=rng.random() < 0.5)
        for i in range(max(len(ERRORS), 3 * tries // 2))
    ]
    trainer = bench.start()
    bench.server.faults += faults
    with _noted(row):
        trainer.until(lambda: all(fault.struck for fault in faults), "all errors")
        bench.ends(trainer)
        assert "failed" not in trainer.output(), trainer.output()[-600:]
        for _ in faults[1:]:
            row.count(None)
    bench.server.faults.clear()
    yield row


def outage(bench: Bench) -> Iterator[Row]:
    row, trainer = Row(f"store, an outage of {OUTAGE:.0f} s (503 to all)"), bench.start()
    with _noted(row):
        bench.saved(trainer)
        bench.server.faults.append(bucket.Fault(".*", bench.name, 503, times=10**9))
        time.sleep(OUTAGE)
        bench.server.faults.clear()
        bench.saved(trainer, 2)
        row.remarks.append(f"{trainer.output().count('; trying again in')} tries of a save failed, and were logged")
        bench.ends(trainer)
    bench.server.faults.clear()
    yield row


def staying(bench: Bench) -> Iterator[Row]:
    bench.ends(_saving(bench))
    for name, fault in {
        "writing is forbidden from then on (403)": bucket.Fault(CHANGES, bench.name, 403, times=10**9),
        "all is forbidden from then on (403)": bucket.Fault(".*", bench.name, 403, times=10**9),
        "the bucket is gone": bucket.Fault(".*", "", 404, times=10**9),
    }.items():
        row, trainer = Row(f"store, {name}: exit code 1, one line, with it back the run resumes"), _saving(bench)
        with _noted(row):
            bench.server.faults.append(fault)
            code = trainer.wait()
            again = bench.start()
            refused = again.wait()
            bench.server.faults.clear()
            row.remarks += [_line(trainer, code, 1), _line(again, refused, 2 if fault.method == ".*" else 1, 2)]
            bench.resumes()
        bench.server.faults.clear()
        yield row


def contended(bench: Bench) -> Iterator[Row]:
    row, first = Row("store, a second trainer: exit code 2, and the first continues"), _saving(bench)
    with _noted(row):
        second = bench.start()
        row.remarks.append(_line(second, second.wait(), 2))
        bench.saved(first)
        bench.ends(first)
    yield row

    row = Row("store, the lock of another machine, older than a minute: taken over")
    with _noted(row):
        store.put(bench.workdir / lock.NAME, b'{"host": "elsewhere", "pid": 1, "started": "long ago"}')
        ahead = lock.STALE + 1
        bench.server.clock = lambda: time.time() + ahead
        bench.resumes()
    yield row

    row = Row("store, frozen for a minute, while another trainer takes over: it wakes up, and ends")
    frozen = _saving(bench)
    with _noted(row):
        frozen.signal(signal.SIGSTOP)
        ahead += lock.STALE + 1
        other = _saving(bench)
        frozen.signal(signal.SIGCONT)
        row.remarks.append(_line(frozen, frozen.wait(), 1))
        bench.saved(other)
        bench.ends(other)
    bench.server.clock = time.time
    yield row


def damaged(bench: Bench, tries: int) -> Iterator[Row]:
    bench.ends(_saving(bench, 2))
    rows = {kind: Row(f"store, newest step: {words}") for kind, words in drills_damage.KINDS.items()}
    files = Objects(bench.server, f"{bench.name}/checkpoints/{bench.newest()}/")
    for kind, problem in drills_damage.spoil(bench.workdir, files, 5 * tries):
        rows[kind].count(problem)
    yield from (row for row in rows.values() if row.tries)

    row = Row("store, newest step damaged: a trainer logs it, resumes from the one before, and sets it aside")
    with _noted(row):
        before, newest = bench.steps()[-2:]
        name = next(name for name in files if name.startswith("params/"))
        files[name] = files[name][:-1]
        trainer = bench.start()
        bench.saved(trainer)
        output = trainer.output()
        assert trainer.resumed() == before and f"step {newest:,} is damaged" in output, output[:900]
        assert f"checkpoints/{newest}.damaged/{name}" in bench.objects(), "it is not set aside"
        bench.ends(trainer)
    yield row


def _saving(bench: Bench, times: int = 1) -> Trainer:
    trainer = bench.start()
    bench.saved(trainer, times)
    return trainer


def _line(trainer: Trainer, code: int, *wanted: int) -> str:
    """The one line that a trainer ended with."""
    output = trainer.output()
    lines = [line.removeprefix("error: ") for line in output.splitlines() if line.startswith("error: ")]
    assert code in wanted and len(lines) == 1 and "Traceback" not in output, f"exit code {code}: {output[-600:]}"
    return f'"{lines[0][:140]}"'


@contextlib.contextmanager
def _noted(row: Row) -> Iterator[None]:
    """A try of what a row is about: survived, unless something is raised."""
    try:
        yield
        row.count(None)
    except (AssertionError, RuntimeError, TimeoutError) as error:
        row.count(str(error))
