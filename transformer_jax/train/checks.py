"""Checks of what a user's task returns, against `contracts.Task`, before the first step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from transformer_jax import adapters, contracts
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib


def check_prepared(task: contracts.Task, prepared: Any) -> None:
    """Raises `InputError` where `prepared`, returned by `task.prepare`, is not as the contract states."""
    name = type(task).__name__
    if not isinstance(prepared, contracts.Prepared):
        raise InputError(f"task {name}.prepare returned a {type(prepared).__name__}; it must return contracts.Prepared")
    for what, examples in {"validation": prepared.validation, "test": prepared.test}.items():
        if not isinstance(examples, contracts.Evaluation) and (what, examples) != ("test", None):
            raise InputError(
                f"task {name}.prepare returned a {type(examples).__name__} as {what}; it must be contracts.Evaluation"
            )
        if examples is not None and len(examples.examples) == 0:
            raise InputError(f"task {name}.prepare returned a {what} set without examples")


def check_loss(task: contracts.Task, returned: Any) -> None:
    """Raises `InputError` where `returned`, the shapes of `task.loss`, are not as the contract states."""
    name, right = type(task).__name__, "(sum, weight, {name: (sum, weight)}) of scalars"
    if not isinstance(returned, tuple) or len(returned) != 3 or not isinstance(returned[2], Mapping):
        raise InputError(f"task {name}.loss returned {_shapes(returned)}; it must return {right}")
    pairs = {"the loss": returned[:2], **returned[2]}
    for what, pair in pairs.items():
        if not _is_sum(pair):
            raise InputError(f"task {name}.loss returned {_shapes(pair)} for {what!r}; it must return {right}")


def check_evaluate(task: contracts.Task, returned: Any) -> None:
    """Raises `InputError` where `returned`, the shapes of `task.evaluate`, are not as the contract states."""
    is_pair = isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(x, Mapping) for x in returned)
    if not is_pair or not all(map(_is_sum, returned[0].values())):
        raise InputError(
            f"task {type(task).__name__}.evaluate returned {_shapes(returned)}; it must return "
            "({name: (sum, weight)} of scalars, {name: [B, ...]})"
        )


def check_dense(loss: Any, params: Any, batch: Any) -> None:
    """Refuses a kernel with an adapter, or of eight bits, that the model multiplies by itself: it would be computed
    without its adapter, or without its scales.

    Args:
      loss: (params, batch, key) -> (sum, weight, sums).
      params: the whole abstract parameter tree.
      batch: an abstract batch.

    Raises:
      InputError: the loss does not depend on a leaf of the adapter, or on the kernel without its scales.
    """
    traced = jax.make_jaxpr(lambda params, batch: loss(params, batch, None)[0])(params, batch)
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True])  # which parameters are used, then which fields of the batch
    flat = params_lib.flatten(params)
    is_used = dict(zip(flat, used, strict=False))
    for path in flat:
        kernel = f"{path.removesuffix('scale')}kernel"
        is_scale = path.endswith("/scale") and kernel in flat and flat[kernel].dtype == jnp.int8
        if is_used[path] or not (path.endswith(adapters.LEAVES) or (is_scale and is_used[kernel])):
            continue
        setting, without = ("compress", "scales") if is_scale else ("adapter", "adapter")
        raise InputError(
            f"the loss does not depend on {path}, so that kernel is computed without its {without}; let "
            f"{setting}.target leave it out, or multiply by it with nn.layers.dense"
        )


def _is_sum(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(np.shape(x) == () for x in pair)


def _shapes(tree: Any) -> str:
    """A tree with a shape in place of each array, for messages."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))[:120]
