"""`convert int8`, `low-rank`, `prune`, `heads`: a smaller run, and what that changes: bytes, time and the numbers."""

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax import adapters, compress, config_json, restore, sharding
from transformer_jax.adapters import Lora
from transformer_jax.cli import average
from transformer_jax.compress import Int8, pruning
from transformer_jax.compress.low_rank import LowRank
from transformer_jax.compress.pruning import Prune
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


@dataclass(frozen=True)
class Heads:
    """How many attention heads stay."""

    keep: int = 1
    """In each layer: those that can change its states most (`compress.pruning.without_heads`)."""

    def change(self, model: Any, params: Any, declare: Callable[[Any], Any]) -> tuple[Any, Any]:
        """(config, parameters) with fewer heads; `model`, `params` and `declare` as for `without_heads`."""
        return pruning.without_heads(model, params, declare, self.keep)


KINDS: dict[str, Any] = {"int8": Int8("blocks/"), "low-rank": LowRank(), "prune": Prune(), "heads": Heads()}
"""The kinds of smaller models, with the defaults of their options."""


def create(folder: Path, run: Path, rule: Any, *, types: Any = (), base: str | None = None) -> list[str]:
    """Makes a workdir of a smaller model; returns lines that compare the two on the validation set.

    An adapter of the run is merged first.

    Args:
      folder: the new workdir, which must not exist.
      run: the workdir of the run.
      rule: how kernels are stored, a `compress.Rule`; or a value that has `change`, as `Heads` and `Prune`.
      types: the user's types that the run's config names.
      base: the folder of the model that an adapter of the run is of; None: where it was.

    Raises:
      InputError: `run` is no workdir, or the rule does not fit its model. Nothing is written then.
    """
    if not (run / "config.json").is_file() or not (run / "checkpoints").is_dir():
        raise InputError(f"{run} is not a run's workdir; make one of a Hugging Face folder with convert hf")
    stored = config_json.load(run / "config.json", types)
    plain = dataclasses.replace(stored, adapter=Lora(), compress=Int8())
    loaded = restore.load(workdirs.chosen(run), types=types, base=base)
    before = compress.unpack(adapters.merge(loaded.params))
    if hasattr(rule, "change"):
        model, after = rule.change(plain.model, before, loaded.family.declare)
        experiment = dataclasses.replace(plain, model=model)
    else:
        experiment = dataclasses.replace(plain, compress=rule)
        declare(experiment)  # refuses a rule that does not fit
        after = rule.apply(before)
    config = dataclasses.replace(experiment.model, dtype=loaded.config.dtype)
    lines = _compared(
        experiment,
        loaded.tokenizer,
        {"before": (loaded.config, before), "after": (config, after)},
        functools.partial(restore.load, types=types),
    )
    step = run / "checkpoints" / str(loaded.step)
    state = dataclasses.replace(state_lib.create(after, optax.identity()), step=jnp.int32(loaded.step))
    average.write(folder, run, state, saved.read_meta(step), config_json.to_json(experiment))
    return lines


def _compared(experiment: Any, tokenizer: Any, versions: dict[str, Any], load: Callable[..., Any]) -> list[str]:
    """A line for each (config, parameters): the bytes, the time of an evaluation, and the numbers."""
    task, mesh = experiment.task, sharding.make_mesh(data=1, devices=jax.devices()[:1])
    prepared = task.prepare(experiment.data, experiment.model, seed=experiment.seed, workdir_tokenizer=tokenizer)
    size = experiment.evaluate.batch_size or experiment.train.batch_size // experiment.train.accumulate
    example = task.example(experiment.data)
    rows = batch_lib.abstract(example, size, batch_lib.shardings(example, size, mesh))
    lines = []
    for name, (config, params) in versions.items():
        reads_frozen = further_lib.evaluate_reads(experiment, config, mesh)
        frozen = further_lib.load(experiment, config, mesh, load)[0] if reads_frozen else {}
        with jax.set_mesh(mesh):
            sums = lambda p, b, key, config=config: (sum(x for x, _ in task.evaluate(p, config, b)[0].values()),)  # noqa: E731
            checks.check_dense(sums, params, rows | frozen)
        evaluator = evaluation.make(task, experiment.data, config, mesh, batch_size=size, frozen=frozen)
        evaluator.numbers(params, prepared.validation)  # compiles
        began = time.perf_counter()
        report, _ = evaluator.numbers(params, prepared.validation)
        seconds = time.perf_counter() - began
        numbers = "  ".join(f"{key.replace('_', ' ')} {x:.4f}" for key, x in report.items() if isinstance(x, float))
        kernels = sum(x.nbytes for path, x in params_lib.flatten(params).items() if path.endswith(compress.KERNELS))
        empty = f" ({zeros:.0%} zeros)" if (zeros := pruning.zeros(params)) > 0.005 else ""
        total = compress.size(params)
        lines.append(f"{name}: kernels {kernels:,}{empty} of {total:,} bytes  evaluation {seconds:.1f} s  {numbers}")
    return lines
