"""How long it takes until the first step, at several depths, and what a step costs outside the devices.

    tools/run tools.bench.startup                           # 12, 24 and 48 layers, scanned
    tools/run tools.bench.startup --layers 12 24 --unrolled --json FILE

Each depth runs in two processes, one after the other, that share a compile cache: the first finds it empty (cold), the
second full (warm). The model is a GPT of width 64, so small that what is timed is Python, tracing and compiling. A
step's dispatch is the time until the call returns, while the devices still work; recompilations are counted by JAX's
own events over the steps after the first, each with another batch.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 20
WIDTH, LENGTH, ROWS = 64, 64, 8


def child(layers: int, scan: bool) -> dict[str, float]:
    """Times of this process, in seconds, from its first import on."""
    began = time.perf_counter()
    import jax

    from tools.bench import step as bench_step
    from transformer_jax import sharding
    from transformer_jax.cli import process
    from transformer_jax.data import corpus
    from transformer_jax.experiment import Experiment, Train
    from transformer_jax.models import gpt
    from transformer_jax.train import program as programs
    from transformer_jax.train import state as state_lib

    imported = time.perf_counter()
    model = gpt.Config(vocab_size=512, max_length=LENGTH, width=WIDTH, num_layers=layers, num_heads=2, scan_layers=scan)
    train = Train(batch_size=ROWS, steps=STEPS)
    experiment = Experiment(model=model, data=corpus.TextCorpus(length=LENGTH), train=train)
    process.use_cpu_cores(experiment)
    process.keep_compilations()
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    with jax.set_mesh(mesh):
        program = programs.make(experiment, mesh)
        key = jax.random.key(0)
        state = state_lib.init(key, program.declaration, program.optimizer, mesh)
        batches = bench_step.random_batches(program.batch, experiment.model, [])
        jax.block_until_ready((state, batches))
        prepared = time.perf_counter()
        lowered = program.step.lower(program.state, program.batch, key, *program.frozen)
        traced = time.perf_counter()
        lowered.compile()
        compiled = time.perf_counter()
        state, metrics = program.step(state, batches[0], key)
        jax.block_until_ready((state, metrics))
        first = time.perf_counter()
        compilations = count_compilations()
        dispatch, whole = [], []
        for i in range(STEPS):
            last = time.perf_counter()
            state, metrics = program.step(state, batches[i % len(batches)], key)
            dispatch.append(time.perf_counter() - last)
            jax.block_until_ready((state, metrics))
            whole.append(time.perf_counter() - last)
    return {
        "importing": imported - began,
        "state and batch": prepared - imported,
        "tracing": traced - prepared,
        "compiling": compiled - traced,
        "first step": first - compiled,
        "in all": first - began,
        "a step": statistics.median(whole),
        "dispatch of a step": statistics.median(dispatch),
        "recompilations": len(compilations),
    }


def count_compilations() -> list[float]:
    """A list that gets the seconds of every compilation of this process from now on."""
    import jax

    seconds: list[float] = []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    return seconds


def measure(layers: int, scan: bool) -> dict[str, dict[str, float]]:
    """The times of a process with an empty compile cache, and of one after it."""
    with tempfile.TemporaryDirectory() as cache:
        command = [
            sys.executable,
            "-m",
            "tools.bench.startup",
            "--child",
            str(layers),
            *([] if scan else ["--unrolled"]),
        ]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        found = {}
        for which in ("cold", "warm"):
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
            if ran.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with {ran.returncode}: {ran.stderr.strip()[-500:]}")
            found[which] = json.loads(ran.stdout.splitlines()[-1])
    return found


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """The times for people."""
    columns = [(layers, which) for layers in results for which in ("cold", "warm")]
    lines = [f"{'':24}" + "".join(f"{f'{layers} layers, {which}':>18}" for layers, which in columns)]
    for name in next(iter(results.values()))["cold"]:
        values = [results[layers][which][name] for layers, which in columns]
        if name == "recompilations":
            cells = [f"{value:,.0f}" for value in values]
        elif name in ("a step", "dispatch of a step"):
            cells = [f"{1e3 * value:,.2f} ms" for value in values]
        else:
            cells = [f"{value:,.2f} s" for value in values]
        lines.append(f"{name:24}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measures and prints. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--unrolled", action="store_true", help="each layer compiled on its own")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(child(options.child, not options.unrolled)))
        return 0
    load = os.getloadavg()[0]
    results = {layers: measure(layers, not options.unrolled) for layers in options.layers}
    print(table(results))
    if load > 1.0:
        print(f"BUSY: the load was {load:.1f} when this began; these times are not to be quoted")
    if options.json:
        options.json.write_text(json.dumps({"load": load, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
