"""Our side of `tools/bench`: the training step of an experiment made ready, blocks of it timed, its memory.

Beside it the machine's own rate, as one large matrix product per device.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sharding
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.train import program as programs
from transformer_jax.train import state as state_lib

Block = Callable[[int], list[float]]  # run that many steps; the seconds of each
Row = list[tuple[int, int]]  # the pairs in a row, tokens of source and target
BATCHES = 4


def prepare(experiment: Experiment, rows: list[Row]) -> tuple[Block, dict[str, Any], jax.stages.Compiled]:
    """The compiled step with its first state: a function that times blocks of steps, and what making it took.

    Arguments: the experiment; of parallel text, what is in the rows of its batches.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    program = programs.make(experiment, mesh)
    batches = random_batches(program.batch, experiment.model, rows)
    key = jax.random.key(experiment.seed)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = program.step.lower(program.state, program.batch, key, *program.frozen)
        traced = time.perf_counter()
        compiled = lowered.compile()
        built = time.perf_counter()
        ema = program.state.ema is not None
        state = state_lib.init(key, program.declaration, program.optimizer, mesh, ema=ema)
        state, metrics = compiled(state, batches[0], key)
        first_loss = float(metrics["loss"])
    ready = time.perf_counter()

    def run(steps: int) -> list[float]:
        """Times `steps` steps as the loop runs them: step n is waited for while the device has step n + 1."""
        nonlocal state
        seconds, waiting = [], []
        last = time.perf_counter()
        for i in range(steps + 1):
            if i < steps:
                state, metrics = compiled(state, batches[i % len(batches)], key)
                waiting.append(metrics)
            if i > 0:
                jax.block_until_ready(waiting.pop(0))
                now = time.perf_counter()
                seconds.append(now - last)
                last = now
        return seconds

    memory, unit = compiled.memory_analysis(), experiment.task.unit
    facts = {
        "parameters": params_lib.count(program.declaration),
        "flops_per_step": experiment.task.flops(program.model, experiment.data) * experiment.train.batch_size,
        f"{unit}_per_step": sum(t for row in rows for _, t in row) / BATCHES if rows else size(experiment),
        "first_loss": first_loss,
        "seconds_tracing": traced - began,
        "seconds_compiling": built - traced,
        "seconds_to_first_step": ready - began,
        "compiled_bytes_per_device": {
            name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")
        },
    }
    return run, facts, compiled


def size(experiment: Experiment) -> int:
    """Tokens of a batch, or images."""
    return experiment.train.batch_size * experiment.task.tokens(experiment.data)


def pairs_in_rows(rows: int, source_length: int, target_length: int) -> list[Row]:
    """So many rows filled one after the other with pairs as long as Multi30k's in subwords, 13.5 tokens on average."""
    rng = np.random.default_rng(0)
    made: list[Row] = [[]]
    free = [source_length, target_length]
    while True:
        source = int(np.clip(rng.gamma(9.0, 1.5), 4, 50))
        target = int(np.clip(source + rng.integers(-2, 3), 4, 50))
        if source > free[0] or target > free[1]:
            if len(made) == rows:
                return made
            made.append([])
            free = [source_length, target_length]
        made[-1].append((source, target))
        free = [free[0] - source, free[1] - target]


def random_batches(
    batch: Mapping[str, jax.ShapeDtypeStruct], model: Any, rows: list[Row]
) -> list[dict[str, jax.Array]]:
    """Batches of random inputs and labels with weights of 1, on their devices: values do not change the time of a step.

    Texts are as long as their rows, masked positions anywhere in them. Of parallel text, `rows` holds the pairs of all
    batches' rows.
    """
    rng = np.random.default_rng(0)
    length = max(x.shape[1] for x in batch.values() if len(x.shape) > 1)
    below = {"types": 2, "pair": 2, "starts": length, "ends": length, "images": 256}
    if "images" in batch:
        below["labels"] = model.num_classes
    elif "positions" not in batch and "labels" in batch:  # with positions, labels are tokens
        below["labels"] = model.num_labels
    tokens = getattr(model, "vocab_size", 0)

    def segments(shape: tuple[int, ...], side: int) -> np.ndarray:
        """[B, T]: pair k of a row is segment k + 1, and what is left over 0."""
        value = np.zeros(shape, np.int32)
        for row, pairs in zip(value, mine, strict=True):
            numbers = np.repeat(np.arange(1, len(pairs) + 1), [pair[side] for pair in pairs])
            row[: len(numbers)] = numbers
        return value

    def leaf(name: str, x: jax.ShapeDtypeStruct) -> jax.Array:
        if name in ("source_segments", "target_segments"):
            value = segments(x.shape, side=0 if name == "source_segments" else 1)
        elif name == "weights" and rows:
            value = np.asarray(segments(x.shape, side=1) > 0, x.dtype)
        elif name == "lengths":
            value = np.full(x.shape, length, x.dtype)
        elif name == "positions":  # each once in a row
            value = np.argsort(rng.random((x.shape[0], length)))[:, : x.shape[1]].astype(x.dtype)
        elif not jnp.issubdtype(x.dtype, jnp.integer) or name.endswith("segments"):
            value = np.ones(x.shape, x.dtype)
        else:
            value = rng.integers(0, below.get(name, tokens), x.shape, x.dtype)
        return jax.device_put(value, x.sharding)

    made = []
    for n in range(BATCHES):
        mine = rows[n * len(rows) // BATCHES : (n + 1) * len(rows) // BATCHES]
        made.append({name: leaf(name, x) for name, x in batch.items()})
    return made


def prepare_matmul(dtype: str) -> tuple[Block, float]:
    """Products [n, n] x [n, n], one on each device at once; and the FLOPs of one such step."""
    n = 1024 if jax.default_backend() == "cpu" else 8192
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.NamedSharding(mesh, jax.P(*spec)) for spec in (("all",), ()))
    x = jax.device_put(jnp.full((n * count, n), 1e-3, dtype), rows)
    w = jax.device_put(jnp.full((n, n), 1e-3, dtype), whole)
    product = jax.jit(jnp.matmul, out_shardings=rows).lower(x, w).compile()
    product(x, w).block_until_ready()

    def run(steps: int) -> list[float]:
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            product(x, w).block_until_ready()
            seconds.append(time.perf_counter() - began)
        return seconds

    return run, 2.0 * n**3 * count


def spent() -> tuple[float, float]:
    """Seconds of CPU time and page faults of this process so far, all threads."""
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_memory() -> dict[str, int]:
    """Bytes: the process's peak resident set on CPU, the fullest device's peak elsewhere."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if jax.default_backend() != "cpu" and all(stats):
        return {"peak_device_bytes": max(s["peak_bytes_in_use"] for s in stats if s)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
