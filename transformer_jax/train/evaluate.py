"""Evaluation: sums of losses and weights over the whole validation set, divided once at the end.

Every example counts exactly once and in the same way, whatever the batch size and the number of devices: the last
batch is filled up with rows of weight 0, never dropped.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax.data import pipeline

Sums = dict[str, tuple[float, float]]


class Stopped(Exception):
    """An evaluation was given up because the run is to stop."""


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

    Arguments:
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


def _whole(outputs: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Every host's rows of these arrays, on every host."""
    if jax.process_count() == 1:
        return jax.device_get(outputs)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(outputs, tiled=True)


def _add(totals: dict[str, np.ndarray], sums: Any) -> None:
    for name, pair in jax.device_get(sums).items():
        totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
