"""`convert int8`: a run with its kernels in eight bits, and what that changes: bytes, time and the numbers."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax import adapters, compress, config_json, restore, sharding
from transformer_jax.adapters import Lora
from transformer_jax.cli import average
from transformer_jax.compress import Int8
from transformer_jax.errors import InputError
from transformer_jax.experiment import declare
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import saved
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import checks
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import further as further_lib
from transformer_jax.train import state as state_lib


def create(folder: Path, run: Path, rule: Int8, *, types: Any = (), base: str | None = None) -> list[str]:
    """Makes a workdir of a run with kernels of eight bits; returns lines that compare the two on the validation set.

    An adapter of the run is merged first.

    Args:
      folder: the new workdir, which must not exist.
      run: the workdir of the run.
      rule: which kernels.
      types: the user's types that the run's config names.
      base: the folder of the model that an adapter of the run is of; None: where it was.

    Raises:
      InputError: `run` is no workdir, or the rule matches no kernel. Nothing is written then.
    """
    if not (run / "config.json").is_file() or not (run / "checkpoints").is_dir():
        raise InputError(f"{run} is not a run's workdir; make one of a Hugging Face folder with convert hf")
    stored = config_json.load(run / "config.json", types)
    experiment = dataclasses.replace(stored, adapter=Lora(), compress=rule)
    declare(experiment)
    loaded = restore.load(workdirs.chosen(run), types=types, base=base)
    before = compress.unpack(adapters.merge(loaded.params))
    after = compress.quantize(before, rule)
    lines = _compared(
        experiment, loaded, {"float32": before, "int8": after}, functools.partial(restore.load, types=types)
    )
    step = run / "checkpoints" / str(loaded.step)
    state = dataclasses.replace(state_lib.create(after, optax.identity()), step=jnp.int32(loaded.step))
    average.write(folder, run, state, saved.read_meta(step), config_json.to_json(experiment))
    return lines


def _compared(experiment: Any, loaded: Any, trees: dict[str, Any], load: Callable[..., Any]) -> list[str]:
    """A line for each tree of parameters: its bytes, the time of an evaluation, and the numbers."""
    task, mesh = experiment.task, sharding.make_mesh(data=1, devices=jax.devices()[:1])
    prepared = task.prepare(experiment.data, loaded.config, seed=experiment.seed, workdir_tokenizer=loaded.tokenizer)
    size = experiment.evaluate.batch_size or experiment.train.batch_size // experiment.train.accumulate
    reads_frozen = further_lib.evaluate_reads(experiment, loaded.config, mesh)
    frozen = further_lib.load(experiment, loaded.config, mesh, load)[0] if reads_frozen else {}
    example = task.example(experiment.data)
    rows = batch_lib.abstract(example, size, batch_lib.shardings(example, size, mesh))
    sums = lambda p, b, key: (sum(total for total, _ in task.evaluate(p, loaded.config, b)[0].values()),)  # noqa: E731
    with jax.set_mesh(mesh):
        checks.check_dense(sums, trees["int8"], rows | frozen)
    lines = []
    for name, params in trees.items():
        evaluator = evaluation.make(task, experiment.data, loaded.config, mesh, batch_size=size, frozen=frozen)
        evaluator.numbers(params, prepared.validation)  # compiles
        began = time.perf_counter()
        report, _ = evaluator.numbers(params, prepared.validation)
        seconds = time.perf_counter() - began
        numbers = "  ".join(f"{key.replace('_', ' ')} {x:.4f}" for key, x in report.items() if isinstance(x, float))
        kernels = sum(x.nbytes for path, x in params_lib.flatten(params).items() if path.endswith("/kernel"))
        total = compress.size(params)
        lines.append(f"{name}: kernels {kernels:,} of {total:,} bytes  evaluation {seconds:.1f} s  {numbers}")
    return lines
