"""Evaluation: sums of losses and weights over a whole set, divided once at the end.

    evaluator = make(task, data, model, mesh, batch_size=64)
    report, outputs = evaluator.numbers(params, prepared.validation)

Every example counts exactly once, whatever the batch size and the number of devices: the last batch is padded with rows
of weight 0, never dropped. The training loop and the command `evaluate` both use this.
"""

import contextlib
import functools
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
from transformer_jax.runs import records as records_lib
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import further as further_lib

Sums = dict[str, tuple[float, float]]


class Stopped(Exception):
    """An evaluation ended early because the run has to stop."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates parameters on sets of examples; `make` constructs it.

    Attributes:
      task: the experiment's task.
      model: the model's config.
      mesh: the devices.
      batch_size: rows of the global batch.
      shardings: {name: sharding} of a batch.
      step: (params, batch) -> (sums, outputs), jitted: one compilation for all sets.
    """

    task: Task
    model: Any
    mesh: Mesh
    batch_size: int
    shardings: Mapping[str, Any]
    step: Callable[[Any, Any], Any]

    def numbers(
        self,
        params: Any,
        examples: Evaluation,
        *,
        keep: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The reported numbers of a set, and {name: [examples, ...]}, the outputs for each example.

        Args:
          params: the parameter tree, on the devices.
          examples: the set.
          keep: a file for the numbers of each example (`Task.records`), which process 0 writes; None: none.
          stop: called before each batch; True ends the evaluation.

        Raises:
          Stopped: `stop` returned True.
        """
        with jax.set_mesh(self.mesh):
            batches, outputs = evaluate(
                self.step,
                params,
                examples.examples,
                self.batch_size,
                lambda rows: batch_lib.place(rows, self.shardings),
                local_rows=batch_lib.local_rows(self.shardings["weights"], self.batch_size),
                stop=stop,
            )
        report = self.task.report(total(batches), outputs, examples)
        if keep is not None and jax.process_index() == 0:
            records = self.task.records(outputs, examples)
            records_lib.write(keep, records or of_batches(batches, self.batch_size, len(examples.examples)))
        return report, outputs

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
        """The numbers of generated text (`Task.score`); {} where `stop` returned True.

        Args:
          params: the parameter tree, on the devices.
          tokenizer: the tokenizer of the run.
          examples: the set.
          folder: where the text is written.
          name: the name of the set, with which the files' names begin.
          log: called with each line to print.
          stop: called from time to time on a single host; True ends the scoring.
        """

        def progress(done: int, total: int) -> None:
            # Several hosts call this at different rates, and `stop` must be called equally often on all of them.
            if hosts.alone() and stop():
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


def make(
    task: Task,
    data: Any,
    model: Any,
    mesh: Mesh,
    *,
    batch_size: int,
    frozen: Mapping[str, Any] | None = None,
    of_base: Sequence[str] = (),
) -> Evaluator:
    """An evaluator of a task's model.

    Args:
      task: the experiment's task.
      data: the experiment's data.
      model: the model's config.
      mesh: the devices.
      batch_size: rows of the global batch.
      frozen: further models that the task reads; None: none.
      of_base: the names of those that are the base of the adapter (`further.of_base`).

    Raises:
      InputError: the batch does not divide over the mesh.
    """
    shardings = batch_lib.shardings(task.example(data), batch_size, mesh)

    def whole(params: Any, rows: Any, frozen: Any) -> Any:
        return task.evaluate(params, model, further_lib.reading_base(of_base, model, params, {**rows, **frozen}))

    jitted = jax.jit(whole)
    step = functools.partial(_evaluated, jitted, frozen or {})
    return Evaluator(task, model, mesh, batch_size, shardings, step)


def _evaluated(jitted: Callable[..., Any], frozen: Mapping[str, Any], params: Any, rows: Any) -> Any:
    return jitted(params, rows, dict(frozen))


def evaluate(
    eval_step: Callable[[Any, Any], Any],
    params: Any,
    examples: pipeline.Dataset,
    batch_size: int,
    place: Callable[[Any], Any],
    *,
    local_rows: Sequence[int] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """({name: float64 [batches, 2]}, {name: [examples, ...]}): (sum, weight) of each batch, and each example's outputs.

    Args:
      eval_step: (params, batch) -> (sums, outputs), jitted.
      params: the parameter tree, on the devices.
      examples: a finite dataset; each example has "weights".
      batch_size: rows of the global batch; every batch has this size, so there is one compilation.
      place: puts this host's rows of a batch on the devices.
      local_rows: which rows of a global batch this host reads; None: all.
      stop: called before each batch; True ends the evaluation.

    Raises:
      Stopped: `stop` returned True.
    """
    sums: list[dict[str, np.ndarray]] = []
    kept: list[dict[str, np.ndarray]] = []
    pending: tuple[Any, Any] = ({}, {})
    for batch in pipeline.batches(examples, 0, batch_size, local_rows=local_rows):
        if stop():
            raise Stopped
        running = eval_step(
            params, place(batch)
        )  # the device computes this batch while the host reads the previous one
        sums.append(jax.device_get(pending[0]))
        kept.append(_gathered(pending[1]))
        pending = running
    sums.append(jax.device_get(pending[0]))
    kept.append(_gathered(pending[1]))
    # The first of both belongs to no batch: it is the empty `pending` of the start. The last batch may be padded.
    batches = {name: np.array([pairs[name] for pairs in sums[1:]], np.float64).reshape(-1, 2) for name in sums[-1]}
    outputs = {name: np.concatenate([rows[name] for rows in kept[1:]])[: len(examples)] for name in kept[-1]}
    return batches, outputs


def total(batches: Mapping[str, np.ndarray]) -> Sums:
    """{name: (sum, weight)} over all batches.

    Args:
      batches: {name: float64 [batches, 2], (sum, weight)}, as `evaluate` returned them.
    """
    return {name: (float(pairs_N2[:, 0].sum()), float(pairs_N2[:, 1].sum())) for name, pairs_N2 in batches.items()}


def of_batches(batches: Mapping[str, np.ndarray], batch_size: int, examples: int) -> dict[str, Any]:
    """The records of a task that states none of its examples: the sums of each batch, and which examples it has.

    Args:
      batches: {name: float64 [batches, 2], (sum, weight)}, as `evaluate` returned them.
      batch_size: rows of a batch.
      examples: the examples of the set.
    """
    firsts = range(0, examples, batch_size)
    return {"examples": [f"{at + 1}-{min(at + batch_size, examples)}" for at in firsts], **batches} if batches else {}


def reported(evaluate: Callable[..., Any], params: Any, batch: Any, task: Task, examples: Evaluation) -> list[str]:
    """The names of the numbers that a task reports on a set. Nothing is computed: the outputs are taken as 0.

    Args:
      evaluate: (params, batch) -> (sums, outputs).
      params: the abstract parameter tree.
      batch: an abstract batch.
      task: the experiment's task.
      examples: the set.
    """
    sums, outputs = jax.eval_shape(evaluate, params, batch)
    nothing = {
        name: np.broadcast_to(np.zeros((), x.dtype), (len(examples.examples), *x.shape[1:]))
        for name, x in outputs.items()
    }
    return list(task.report({name: (1.0, 1.0) for name in sums}, nothing, examples))


def _gathered(outputs: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """The global arrays on every host."""
    if jax.process_count() == 1:
        return jax.device_get(outputs)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(outputs, tiled=True)
