"""Checks `train --log NAME` with the real packages, offline; tools/drills/check_integrations makes their environment.

    python -m tools.drills.integrations wandb mlflow trackio
    python -m tools.drills.integrations beam

A small real run (experiments.vit.digits) three times: without services; with them, ended by SIGTERM and resumed; with
them, and in its middle W&B's process is killed and the disk under MLflow's store is full. All three end with the same
bits. Each service must hold every row of metrics.jsonl, under the one id of the run.

beam: `prepare --beam` by Beam's local runner, in one, two and four processes, writes the bytes of `prepare` without it.
"""

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.drills import folder as drills_folder
from transformer_jax import observe

STEPS = 600
TRAIN = [sys.executable, "-m", "transformer_jax", "train", "experiments.vit.digits"]
SIZE = ["--train.steps", str(STEPS), "--train.log-every", "5", "--evaluate.every", "100", "--checkpoint.every", "100"]
DISK = "4m"  # of MLflow's store: an empty one has 1 MB

Logged = dict[int, dict[str, float]]  # step -> name -> value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted([*READERS, "beam"]))
    names = parser.parse_args().names
    if "beam" in names:
        prepare_by_beam()
        names.remove("beam")
    if not names:
        return 0
    with tempfile.TemporaryDirectory(prefix="integrations-") as temporary:
        folder = Path(temporary)
        seconds = train(folder / "whole", [])
        bits = drills_folder.fingerprint(folder / "whole/run", STEPS)
        print(f"without services: {seconds:.0f} s, {pace(folder / 'whole')}")

        store = folder / "stopped"
        train(store, names, until=120)
        seconds = train(store, names)
        print(f"--log {','.join(names)}, ended at a step by SIGTERM and resumed: {seconds:.0f} s, {pace(store)}")
        same_bits(store, bits)
        for name in names:
            print(f"  {name}: {compare(store, name)}")

        store = folder / "faults"
        with small_disk(store / "services" / "mlflow"):
            train(store, names, until=120, fault=lambda trainer: break_services(trainer, store))
            print(f"--log {','.join(names)}, W&B's process killed, MLflow's disk full: {pace(store)}")
        same_bits(store, bits)
        lines = [line for line in (store / "log").read_text().splitlines() if "the run goes on without it" in line]
        dropped = {"wandb", "mlflow"} & set(names)
        assert len(lines) == len(dropped), f"{len(dropped)} services have failed, and logged are: {lines}"
        print(*(f"  {line}" for line in lines), sep="\n")
        if "trackio" in names:
            print(f"  trackio: {compare(store, 'trackio')}")
    return 0


# ---------------------------------------------------------------------------------------------------------------- Beam


def prepare_by_beam() -> None:
    """Compares the stores that Beam's local runner writes with the one of a single process."""
    runner = ["--beam", "--runner", "apache_beam.runners.portability.fn_api_runner.FnApiRunner"]
    with tempfile.TemporaryDirectory(prefix="integrations-") as folder:
        stores = {}
        for workers in (0, 1, 2, 4):
            out = Path(folder, f"store{workers}")
            flags = ["--direct_num_workers", str(workers), "--direct_running_mode", "multi_processing"]
            command = [
                "prepare",
                "experiments.causal_lm.stdlib",
                "--out",
                str(out),
                *(runner + flags if workers else []),
            ]
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "transformer_jax", *command], check=True, stdout=subprocess.DEVNULL)
            stores[workers] = (out / "store.json").read_bytes()
            how = f"by Beam in {workers} processes" if workers else "without Beam"
            print(f"prepare {how}: {time.monotonic() - began:.0f} s")
        assert len(set(stores.values())) == 1, "the stores differ"
        print("  the same digests")


# ------------------------------------------------------------------------------------------------------------- the runs


def train(store: Path, names: list[str], *, until: int = 0, fault: Callable[[int], None] | None = None) -> float:
    """Trains in STORE/run, output to STORE/log; returns the seconds. At step `until` it calls `fault` with the
    trainer's process id, or sends SIGTERM."""
    (store / "services/mlflow").mkdir(parents=True, exist_ok=True)
    log = ["--log", ",".join(names)] if names else []
    settings = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(store / "services"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/services/mlflow/mlflow.db",
        "TRACKIO_DIR": str(store / "services/trackio"),
    }
    began = time.monotonic()
    with (store / "log").open("a") as output:
        trainer = subprocess.Popen(
            [*TRAIN, "--workdir", str(store / "run"), *SIZE, *log],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | settings,
        )
        while until and trainer.poll() is None and last_step(store) < until:
            time.sleep(0.05)
        if until and fault is not None:
            fault(trainer.pid)
        elif until:
            trainer.send_signal(signal.SIGTERM)
        code, wanted = trainer.wait(), 128 + signal.SIGTERM if until and fault is None else 0
    assert code == wanted, f"exit code {code}: {(store / 'log').read_text()[-2000:]}"
    return time.monotonic() - began


def rows(store: Path) -> list[dict[str, Any]]:
    return observe.read_rows(store / "run/metrics.jsonl")


def last_step(store: Path) -> int:
    return max((int(row["step"]) for row in rows(store)), default=0)


def pace(store: Path) -> str:
    """The steps' speed, which no service may change."""
    found = [row["seconds_per_step"] for row in rows(store) if "seconds_per_step" in row]
    return f"median step {1000 * statistics.median(found):.1f} ms"


def same_bits(store: Path, bits: dict[str, str]) -> None:
    found = drills_folder.fingerprint(store / "run", STEPS)
    assert found == bits, f"{store}: {found}, without services {bits}"
    print(f"  the same bits as without services: {found}")


# ----------------------------------------------------------------------------------------------------------- the faults


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs of `DISK` in this folder; needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def break_services(trainer: int, store: Path) -> None:
    """Kills W&B's own process, which is a child of the one that serves it, and fills MLflow's disk when MLflow has
    written something."""
    database = store / "services/mlflow/mlflow.db"
    while last_step(store) < STEPS // 2 and not has_metrics(database):
        time.sleep(0.1)
    for process, command in descendants(trainer):
        if "wandb-core" in command:
            os.kill(process, signal.SIGKILL)
    with contextlib.suppress(OSError), (store / "services/mlflow/filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def has_metrics(database: Path) -> bool:
    """Whether there are rows in MLflow's store."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store,
    ):
        return bool(store.execute("select count(*) from metrics").fetchone()[0])
    return False


def descendants(process: int) -> Iterator[tuple[int, str]]:
    """(process id, command) of all processes below this one."""
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    found = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    below = {process}
    for _ in range(8):  # generations
        below |= {int(child) for child, parent, *_ in found if int(parent) in below}
    return ((int(child), " ".join(command)) for child, _, *command in found if int(child) in below - {process})


# ----------------------------------------------------------------------------------------------- what the services hold


def compare(store: Path, name: str) -> str:
    """Compares a service's numbers with metrics.jsonl, all of them; returns what was compared, in words."""
    wanted: Logged = {}
    for row in rows(store):
        numbers = {key if "/" in key else f"train/{key}": value for key, value in row.items() if key != "step"}
        wanted.setdefault(int(row["step"]), {}).update(numbers)
    runs, found = READERS[name](store / "services")
    own = json.loads((store / "run/run.json").read_text())["run"]
    assert runs and all(own in run for run in runs), f"{name} has the runs {runs}; the run's own id is {own}"
    for step, numbers in wanted.items():
        got = {key: found.get(step, {}).get(key) for key in numbers}
        assert got == numbers, f"{name}, step {step}: {got}, in metrics.jsonl {numbers}"
    return (
        f"{len(wanted)} steps, {sum(map(len, wanted.values())):,} numbers as in metrics.jsonl; runs: {', '.join(runs)}"
    )


def read_wandb(folder: Path) -> tuple[list[str], Logged]:
    """The id and the history of each offline file; there is one for each start of the run."""
    from wandb.proto import wandb_internal_pb2

    ids, found = [], Logged()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:]):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.run.run_id and record.run.run_id not in ids:
                ids.append(record.run.run_id)
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if name.partition("/")[0] in ("train", "validation", "test"):
                    found.setdefault(record.history.step.num, {})[name] = json.loads(item.value_json)
    return ids, found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, in blocks of 32 kB; W&B's file is one, after a header of 7 bytes that belongs to
    the first block."""
    record, at = b"", 7
    data = bytes(7) + data
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def read_mlflow(folder: Path) -> tuple[list[str], Logged]:
    """The tag with the run's id, and every metric's history."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    runs = client.search_runs([x.experiment_id for x in client.search_experiments()])
    found: Logged = {}
    for run in runs:
        assert run.info.status == "FINISHED" and run.data.params["train.steps"] == str(STEPS), run.to_dictionary()
        for name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                found.setdefault(metric.step, {})[name] = metric.value
    return [run.data.tags["transformer_jax.run_id"] for run in runs], found


def read_trackio(folder: Path) -> tuple[list[str], Logged]:
    """The names of the runs, and their rows."""
    found: Logged = {}
    with contextlib.closing(sqlite3.connect(folder / "trackio/transformer_jax.db")) as database:
        lines = database.execute("select run_name, step, metrics from metrics").fetchall()
    for _, step, metrics in lines:
        found.setdefault(step, {}).update(json.loads(metrics))
    return sorted({name for name, *_ in lines}), found


READERS = {"wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


if __name__ == "__main__":
    sys.exit(main())
