"""Saves a run's state on some devices and processes, restores it on others, and prints what was equal.

    python -m tools.drills.elastic                     # {1, 2, 4, 8} CPU devices in {1, 2} processes, each to each
    python -m tools.drills.elastic --layouts 2x1 4x2   # devices x processes

A layout trains a tiny GPT for two steps, its parameters and moments sharded over up to two `fsdp` devices, and saves.
Every layout then restores every checkpoint. "equal" is: each parameter and moment to the bit, the count of examples,
and the next global batch. The processes are real ones, with Gloo between them; those of one count are started once
to save and once to restore, with the devices of the largest layout, of which the mesh of a smaller one takes a part.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAYOUTS = ("1x1", "2x1", "4x1", "8x1", "2x2", "4x2", "8x2")


def parse(layout: str) -> tuple[int, int]:
    """ "4x2" -> (devices in all, processes)."""
    devices, _, processes = layout.partition("x")
    return int(devices), int(processes)


# --------------------------------------------------------------------------------------------- in each of the processes


def work(action: str, folder: Path, layouts: Sequence[str]) -> None:
    """What each layout of this many processes saves, or restores of what `layouts` saved: FOLDER/ACTION-LAYOUT.json."""
    import jax

    for mine in layouts:
        if parse(mine)[1] == jax.process_count():
            found = work_as(mine, action, folder, layouts)
            if jax.process_index() == 0:
                (folder / f"{action}-{mine}.json").write_text(json.dumps(found))


def work_as(mine: str, action: str, folder: Path, layouts: Sequence[str]) -> dict[str, Any]:
    """`save`: trains and saves as layout `mine`. `restore`: restores what each of `layouts` saved."""
    import jax
    from jax.experimental import multihost_utils

    from transformer_jax import sharding
    from transformer_jax.data import corpus, pipeline
    from transformer_jax.data.sources import Embedded
    from transformer_jax.data.tokenizers import Bytes
    from transformer_jax.experiment import Experiment, Train
    from transformer_jax.models import gpt
    from transformer_jax.runs import checkpoint
    from transformer_jax.runs.writer import Writer
    from transformer_jax.train import batch as batch_lib
    from transformer_jax.train import program as programs
    from transformer_jax.train import state as state_lib

    devices, processes = parse(mine)
    part = [d for i in range(processes) for d in jax.local_devices(i)[: devices // processes]]
    mesh = sharding.make_mesh(data=-1, fsdp=min(devices, 2), devices=part)
    experiment = Experiment(
        model=gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=2, num_heads=2),
        data=corpus.TextCorpus(Embedded(), Bytes(), length=16),
        train=Train(steps=10, batch_size=8),
        seed=LAYOUTS.index(mine) if mine in LAYOUTS else 99,  # each saves something else
    )
    program = programs.make(experiment, mesh)
    prepared = experiment.task.prepare(experiment.data, program.model, seed=0)
    places = {name: leaf.sharding for name, leaf in program.batch.items()}
    rows = batch_lib.local_rows(places["inputs"], experiment.train.batch_size)

    def digest(tree: Any) -> str:
        whole = multihost_utils.process_allgather(tree, tiled=True) if processes > 1 else jax.device_get(tree)
        leaves = jax.tree_util.tree_leaves_with_path(whole)
        parts = [jax.tree_util.keystr(path).encode() + leaf.tobytes() for path, leaf in leaves]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def batch(first: int) -> dict[str, jax.Array]:
        made = pipeline.batches(prepared.train, first, experiment.train.batch_size, local_rows=rows, prefetch=0)
        return batch_lib.place(next(iter(made)), places)

    def facts(state: state_lib.TrainState, consumed: int) -> dict[str, Any]:
        values = {"params": state.params, "optimizer": state.opt_state}
        return {"state": digest(values), "rows": consumed, "next batch": digest(batch(consumed))}

    found = {}
    if action == "save":
        key = jax.random.key(experiment.seed)
        state = state_lib.init(key, program.declaration, program.optimizer, mesh)
        with jax.set_mesh(mesh):
            for step in range(2):
                state, _ = program.step(state, batch(8 * step), key)
        with Writer(folder / mine, family=program.family, config={}) as writer:
            writer.save(state, rows=16)
        found = facts(state, 16)
    else:
        for layout in layouts:
            state, meta = checkpoint.restore_state(folder / layout / "2", program.state)
            found[layout] = facts(state, meta["rows"])
    return found


# ----------------------------------------------------------------------------------------------------- from the outside


def run(action: str, folder: Path, layouts: Sequence[str], processes: int) -> None:
    """Runs the layouts of this many processes. Raises `SystemExit` with the output of the first that fails."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    most = max(parse(layout)[0] for layout in layouts if parse(layout)[1] == processes)
    started, logs = [], [folder / f"{action}-{processes}-{index}.log" for index in range(processes)]
    for index, log in enumerate(logs):
        command = [
            sys.executable,
            "-m",
            "tools.drills.elastic",
            "--worker",
            action,
            str(folder),
            str(processes),
            str(index),
        ]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(most // processes)}
        with log.open("w") as out:
            started.append(
                subprocess.Popen([*command, str(port), *layouts], env=environment, stdout=out, stderr=subprocess.STDOUT)
            )
    codes = [process.wait() for process in started]
    for index, code in enumerate(codes):
        if code:
            raise SystemExit(f"{action} in {processes}, process {index}: exit code {code}\n{logs[index].read_text()}")


def table(folder: Path, layouts: Sequence[str]) -> tuple[list[str], bool]:
    """Lines of Markdown, saved by down, restored by across; and whether all was equal."""
    saved = {mine: json.loads((folder / f"save-{mine}.json").read_text()) for mine in layouts}
    restored = {mine: json.loads((folder / f"restore-{mine}.json").read_text()) for mine in layouts}
    lines = [f"| saved \\ restored | {' | '.join(layouts)} |", "|---" * (len(layouts) + 1) + "|"]
    good = True
    for one in layouts:
        cells = []
        for other in layouts:
            differ = [name for name, value in saved[one].items() if restored[other][one][name] != value]
            cells.append(f"{', '.join(differ)} differ" if differ else "equal")
            good &= not differ
        lines.append(f"| {one} | {' | '.join(cells)} |")
    batches = {facts["next batch"] for facts in saved.values()}
    lines.append("")
    lines.append(f"{'One' if len(batches) == 1 else len(batches)} next batch in all {len(layouts)} layouts.")
    return lines, good and len(batches) == 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), metavar="DEVICESxPROCESSES")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        from transformer_jax import hosts

        action, folder, processes, index, port, *layouts = options.worker
        given = hosts.Hosts(f"127.0.0.1:{port}", int(processes), int(index))
        hosts.start(given if int(processes) > 1 else hosts.Hosts(count=1))
        with hosts.together():
            work(action, Path(folder), layouts)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for action in ("save", "restore"):
            for processes in sorted({parse(layout)[1] for layout in options.layouts}):
                run(action, folder, options.layouts, processes)
        lines, good = table(folder, options.layouts)
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
