"""Evaluation: sums of losses and weights over a whole set, divided once at the end; for the loop and for `evaluate`.

    evaluator = make(task, data, model, mesh, batch_size=64)
    report, outputs = evaluator.numbers(params, prepared.validation)

Every example counts exactly once and in the same way, whatever the batch size and the number of devices: the last
batch is filled up with rows of weight 0, never dropped.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax import hosts, observe
from transformer_jax.contracts import Evaluation, Task
from transformer_jax.data import pipeline
from transformer_jax.train import batch as batch_lib

Sums = dict[str, tuple[float, float]]


class Stopped(Exception):
    """An evaluation was given up because the run is to stop."""


@dataclass(frozen=True)
class Evaluator:
    """What is needed to evaluate a model's parameters on a set. `make` makes it.

    Fields:
      task, model: the task and the model's config.
      mesh: the devices.
      batch_size: rows of the global batch.
      shardings: of a batch's leaves.
      step: (params, batch) -> (sums, outputs), jitted: one compilation for all sets.
    """

    task: Task
    model: Any
    mesh: Mesh
    batch_size: int
    shardings: Mapping[str, Any]
    step: Callable[[Any, Any], Any]

    def numbers(
        self, params: Any, examples: Evaluation, *, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The reported numbers of a set, and each example's outputs.

        Args:
          stop: asked before each batch; where it says True, `Stopped` is raised.
        """
        with jax.set_mesh(self.mesh):
            sums, outputs = evaluate(
                self.step,
                params,
                examples.examples,
                self.batch_size,
                lambda rows: batch_lib.place(rows, self.shardings),
                here=batch_lib.here(self.shardings["weights"], self.batch_size),
                stop=stop,
            )
        return self.task.report(sums, outputs, examples), outputs

    def scores(
        self,
        params: Any,
        tokenizer: Any,
        examples: Evaluation,
        folder: Path,
        name: str,
        *,
        log: Callable[[str], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float | str]:
        """The numbers of the text that the model makes; none where `stop` said True meanwhile."""

        def progress(done: int, total: int) -> None:
            if hosts.alone() and stop():  # several hosts do not get here equally often
                raise Stopped
            count(done, total)

        with (
            jax.set_mesh(self.mesh),
            observe.counting(f"{name} set") as count,
            contextlib.suppress(Stopped),
        ):
            if not stop():
                return self.task.score(
                    params, self.model, tokenizer, examples, folder, name, mesh=self.mesh, log=log, progress=progress
                )
        return {}


def make(task: Task, data: Any, model: Any, mesh: Mesh, *, batch_size: int) -> Evaluator:
    """An evaluator. Raises `InputError` where the batch does not divide over the mesh."""
    shardings = batch_lib.shardings(task.example(data), batch_size, mesh)
    step = make_eval_step(lambda params, rows: task.evaluate(params, model, rows))
    return Evaluator(task, model, mesh, batch_size, shardings, step)


def make_eval_step(evaluate: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """(params, batch) -> (sums, outputs), jitted. `evaluate` is the task's, with the model's config bound."""
    return jax.jit(evaluate)


def evaluate(
    eval_step: Callable[[Any, Any], Any],
    params: Any,
    examples: pipeline.Dataset,
    batch_size: int,
    place: Callable[[Any], Any],
    *,
    here: Sequence[int] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Sums, dict[str, np.ndarray]]:
    """The sums over all of `examples`, added in float64 on the host, and each one's outputs, {"name": [examples, ...]}.

    Args:
      eval_step: from `make_eval_step`.
      examples: finite; each has "weights".
      batch_size: rows of the global batch; every batch has this size, so there is one compilation.
      place: puts this host's rows of a batch on the devices. here: which rows these are; None: all.
      stop: asked before each batch; True raises `Stopped`.
    """
    totals: dict[str, np.ndarray] = {}
    kept: list[dict[str, np.ndarray]] = []
    pending: tuple[Any, Any] = ({}, {})
    for batch in pipeline.batches(examples, 0, batch_size, here=here):
        if stop():
            raise Stopped
        ahead = eval_step(params, place(batch))  # the device works on this while the host adds the one before
        _add(totals, pending[0])
        kept.append(_whole(pending[1]))
        pending = ahead
    _add(totals, pending[0])
    kept.append(_whole(pending[1]))
    sums = {name: (float(total[0]), float(total[1])) for name, total in totals.items()}
    # The first entry belongs to no batch, and the last batch may be filled up.
    outputs = {name: np.concatenate([rows[name] for rows in kept[1:]])[: len(examples)] for name in kept[-1]}
    return sums, outputs


def reported(evaluate: Callable[..., Any], params: Any, batch: Any, task: Task, examples: Evaluation) -> list[str]:
    """The names of a report on this set: of outputs that are all 0, so that nothing has to be computed.

    Args:
      evaluate: (params, batch) -> (sums, outputs).
      params, batch: abstract.
    """
    sums, outputs = jax.eval_shape(evaluate, params, batch)
    nothing = {
        name: np.broadcast_to(np.zeros((), x.dtype), (len(examples.examples), *x.shape[1:]))
        for name, x in outputs.items()
    }
    return list(task.report({name: (1.0, 1.0) for name in sums}, nothing, examples))


def _whole(outputs: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Every host's rows of these arrays, on every host."""
    if jax.process_count() == 1:
        return jax.device_get(outputs)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(outputs, tiled=True)


def _add(totals: dict[str, np.ndarray], sums: Any) -> None:
    for name, pair in jax.device_get(sums).items():
        totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
