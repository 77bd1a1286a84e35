"""Evaluation: sums of losses and weights over the whole validation set, divided once at the end.

Every example counts exactly once and in the same way, whatever the batch size and the number of devices: the last
batch is filled up with rows of weight 0, never dropped.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from transformer_jax.data import pipeline

Sums = dict[str, tuple[float, float]]


class Stopped(Exception):
    """An evaluation was given up because the run is to stop."""


def make_eval_step(loss: Callable[..., Any]) -> Callable[[Any, Any], dict[str, tuple[jax.Array, jax.Array]]]:
    """(params, batch) -> {"name": (sum, weight)}, jitted. `loss` is the train step's loss; here it gets no key."""
    return jax.jit(lambda params, batch: loss(params, batch, None)[2])


def evaluate(
    eval_step: Callable[[Any, Any], Any],
    params: Any,
    examples: pipeline.Dataset,
    batch_size: int,
    place: Callable[[Any], Any],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Sums:
    """The sums over all of `examples`, added in float64 on the host.

    Arguments:
      eval_step: from `make_eval_step`.
      examples: finite; each has "weights".
      batch_size: rows of the global batch; every batch has this size, so there is one compilation.
      place: puts this host's rows of a batch on the devices.
      stop: asked before each batch; True raises `Stopped`.
    """
    totals: dict[str, np.ndarray] = {}
    pending = None
    here = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for batch in pipeline.batches(examples, 0, batch_size, **here):
        if stop():
            raise Stopped
        ahead = eval_step(params, place(batch))  # the device works on this while the host adds the one before
        _add(totals, pending)
        pending = ahead
    _add(totals, pending)
    return {name: (float(total[0]), float(total[1])) for name, total in totals.items()}


def _add(totals: dict[str, np.ndarray], sums: Any) -> None:
    for name, pair in jax.device_get(sums or {}).items():
        totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
