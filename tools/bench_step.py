"""Our side of `tools/bench.py`: the training step of an experiment made ready, blocks of it timed, its memory.

Beside it the machine's own rate, as one large matrix product per device.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import experiment as experiments
from transformer_jax import models, optim, sharding
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib

Block = Callable[[int], list[float]]  # run that many steps; the seconds of each


def prepare(experiment: Experiment) -> tuple[Block, dict[str, Any], jax.stages.Compiled]:
    """The compiled step with its first state: a function that times blocks of steps, and what making it took."""
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    model = dataclasses.replace(experiment.model, dtype=experiments.compute_dtype(experiment.precision))  # type: ignore[arg-type]
    declaration = models.family(model).declare(model)
    optimizer = optim.make(experiment.optim, experiment.train.steps, params_lib.decay_mask(declaration))
    ema = experiment.ema.decay > 0
    abstract_state = state_lib.abstract(declaration, optimizer, mesh, ema=ema)
    rows = random_rows(experiment)
    places = batch_lib.shardings({name: x[0] for name, x in rows[0].items()}, experiment.train.batch_size, mesh)
    batch_lib.check_parts(experiment.train.batch_size, experiment.train.accumulate, mesh)
    key = jax.random.key(experiment.seed)
    step = step_lib.make_step(
        lambda params, batch, key: experiment.task.loss(params, model, batch, key=key),
        optimizer,
        optim.schedule(experiment.optim, experiment.train.steps),
        accumulate=experiment.train.accumulate,
        ema_decay=experiment.ema.decay,
    )
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        jitted = step_lib.jit_step(step, jax.tree.map(lambda leaf: leaf.sharding, abstract_state), places)
        batches = [batch_lib.place(batch, places) for batch in rows]
        lowered = jitted.lower(abstract_state, batches[0], key)
        traced = time.perf_counter()
        compiled = lowered.compile()
        built = time.perf_counter()
        state = state_lib.init(key, declaration, optimizer, mesh, ema=ema)
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

    memory = compiled.memory_analysis()
    facts = {
        "parameters": params_lib.count(declaration),
        "flops_per_step": experiment.task.flops_per_token(model, experiment.data.length) * tokens(experiment),
        "first_loss": first_loss,
        "seconds_tracing": traced - began,
        "seconds_compiling": built - traced,
        "seconds_to_first_step": ready - began,
        "compiled_bytes_per_device": {
            name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")
        },
    }
    return run, facts, compiled


def tokens(experiment: Experiment) -> int:
    return experiment.train.batch_size * experiment.data.length


def random_rows(experiment: Experiment, count: int = 4) -> list[dict[str, np.ndarray]]:
    """Batches of random tokens: their values do not change the time of a step."""
    rng = np.random.default_rng(0)
    shape = (experiment.train.batch_size, experiment.data.length)

    def batch() -> dict[str, np.ndarray]:
        inputs, targets = (rng.integers(0, experiment.model.vocab_size, shape, np.int32) for _ in range(2))
        return {"inputs": inputs, "targets": targets, "weights": np.ones(shape, np.float32)}

    return [batch() for _ in range(count)]


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


def peak_memory() -> dict[str, int]:
    """Bytes: the process's peak resident set on CPU, the fullest device's peak elsewhere."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if jax.default_backend() != "cpu" and all(stats):
        return {"peak_device_bytes": max(s["peak_bytes_in_use"] for s in stats if s)}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
