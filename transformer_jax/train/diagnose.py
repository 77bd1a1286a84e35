"""Losses and gradients that are not finite: detected, then traced to the rows, the layer and the operation.

    watch = Watch(limit=10, spike=0.0)
    for line in watch.update(step, metrics): ...          # after every step: lines to log
    if watch.limit_reached: ...                           # `limit` steps in a row were skipped
    found = diagnose(loss, params, batch, key, declaration=declaration, copies=1)

A skipped step does not change the state, so the same parameters and batch reproduce the fault at any later time. The
rows are computed one at a time, so that the diagnosis needs no more memory than the step that failed.
"""

import math
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.nn import params as params_lib
from transformer_jax.nn import stack


class Watch:
    """Counts the steps that are skipped in a row.

    Args:
      limit: skipped steps in a row after which the run stops; 0: it never does.
      spike: a loss this many deviations above the recent ones is logged as a spike; 0: none is.
      skipped: steps that the state has skipped before.
    """

    def __init__(self, *, limit: int, spike: float = 0.0, skipped: int = 0) -> None:
        self.limit, self.spike, self.skipped, self.in_a_row = limit, spike, skipped, 0

    @property
    def limit_reached(self) -> bool:
        return 0 < self.limit <= self.in_a_row

    def update(self, step: int, metrics: Mapping[str, Any]) -> Iterator[str]:
        """Lines to log about `step`: that it was skipped, that its loss is a spike. `metrics` must be computed."""
        names = ("skipped", "loss", "grad_norm", "deviations")
        seen = {name: float(x) for name, x in jax.device_get({n: metrics[n] for n in names if n in metrics}).items()}
        skipped, self.skipped = seen["skipped"] > self.skipped, int(seen["skipped"])
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        loss, what = seen["loss"], ""
        if self.spike and seen.get("deviations", 0.0) > self.spike:
            what = f"its loss {loss:.4g} is a spike, {seen['deviations']:.0f} deviations above the last ones"
        elif skipped:
            what = f"its loss is {loss:.4g}" if not math.isfinite(loss) else f"its gradient is {seen['grad_norm']:.4g}"
        if what:
            yield f"step {step:,}{f' skipped, {self.in_a_row} in a row' if skipped else ''}: {what}"


class Diagnosis(NamedTuple):
    """The losses and norms of a batch.

    Attributes:
      losses: float32 [B], the loss of each row alone.
      gradients: float64 [B], the norm of each row's gradient.
      bad: the rows whose loss or gradient is not finite.
      operation: the operation that first computes a NaN in the first bad row (`find_nan`); "" where none does.
      parameter_norms: {path: [L] or []}, the norm of each leaf, per layer where leaves are stacked.
      gradient_norms: the same for the gradient of the first bad row; of row 0 where no row is bad.
    """

    losses: np.ndarray
    gradients: np.ndarray
    bad: list[int]
    operation: str
    parameter_norms: Mapping[str, np.ndarray]
    gradient_norms: Mapping[str, np.ndarray]

    def describe(self, first_row: int) -> str:
        """One line: the bad rows and the operation. `first_row`: the position of the batch's first row in the data."""
        span = f"data rows {first_row}-{first_row + len(self.losses) - 1}"
        if not self.bad:
            return f"each of {span} is finite by itself now"
        shown = ", ".join(str(first_row + i) for i in self.bad[:10]) + ", ..." * (len(self.bad) > 10)
        made = f"; in the first a NaN is made by {self.operation}" if self.operation else ""
        return f"{len(self.bad)} of {span} are not finite ({shown}){made}"

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as JSON values; a number that is not finite is null."""

        def finite(x: np.ndarray) -> Any:
            return [finite(y) for y in x] if np.ndim(x) else float(x) if np.isfinite(x) else None

        return {
            name: {path: finite(x) for path, x in value.items()} if isinstance(value, Mapping) else value
            for name, value in self._asdict().items()
        } | {"losses": finite(self.losses), "gradients": finite(self.gradients)}

    def table(self) -> str:
        """A line per leaf: the norms of parameter and gradient, per layer for a stacked leaf."""

        def shown(norms: np.ndarray) -> str:
            return " ".join(f"{x:.3g}" for x in np.atleast_1d(norms))

        width = max(map(len, self.parameter_norms))
        lines = [
            f"  {path:{width}}  {shown(norm)}  |  {shown(self.gradient_norms[path])}"
            for path, norm in self.parameter_norms.items()
        ]
        return "\n".join([f"  {'norms by layer':{width}}  parameter  |  gradient", *lines])


def diagnose(
    loss: Callable[..., Any],
    params: Any,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    declaration: Any,
    copies: int,
) -> Diagnosis:
    """Computes the loss and the gradient of each row of a batch alone.

    Args:
      loss: (params, batch, key) -> (sum, weight, sums).
      params: the parameter tree.
      batch: {name: [B, ...]}, on the devices.
      key: the random key of the step, `jax.random.fold_in(the run's key, steps before it)`.
      declaration: the declaration of the parameters; it states which leaves are stacked.
      copies: how often a row is repeated to make a batch that shards over all devices.
    """
    stacked = {path: leaf.axes[:1] == ("layers",) for path, leaf in params_lib.flatten(declaration).items()}
    rows = len(jax.tree.leaves(batch)[0])

    def value(params: Any, row: Any) -> jax.Array:
        total, weight, _ = loss(params, row, key)
        return total / jnp.where(weight == 0, 1.0, weight)

    def norms(tree: Any) -> dict[str, jax.Array]:
        def norm(path: str, x: jax.Array) -> jax.Array:
            top = jnp.maximum(jnp.max(jnp.abs(x)), 1e-30)  # scaled by the maximum, because large squares overflow
            return top * jnp.sqrt(jnp.sum(jnp.square(x / top), axis=tuple(range(1, x.ndim)) if stacked[path] else None))

        return {path: norm(path, x) for path, x in params_lib.flatten(tree).items()}

    def only_row(batch: Any, i: Any) -> Any:
        return jax.tree.map(lambda x: jnp.repeat(jax.lax.dynamic_slice_in_dim(x, i, 1), copies, axis=0), batch)

    def compute(params: Any, batch: Any) -> Any:
        def one(i: jax.Array) -> Any:
            total, grads = jax.value_and_grad(value)(params, only_row(batch, i))
            return total, norms(grads)

        return jax.lax.map(one, jnp.arange(rows)), norms(params)

    (losses_B, by_row), parameter_norms = jax.device_get(jax.jit(compute)(params, batch))
    squares = sum(np.square(x.astype(np.float64)).reshape(rows, -1).sum(-1) for x in by_row.values())
    gradients_B = np.sqrt(squares)
    bad = np.flatnonzero(~np.isfinite(losses_B + gradients_B)).tolist()
    row = bad[0] if bad else 0
    operation = ""
    if bad and jax.process_count() == 1:  # with several, a process that finds a NaN stops, and the others wait for it
        operation = find_nan(value, params, jax.jit(only_row)(batch, row))
    gradient_norms = {path: x[row] for path, x in by_row.items()}
    return Diagnosis(losses_B, gradients_B, bad, operation, parameter_norms, gradient_norms)


def find_nan(forward: Callable[..., jax.Array], *arguments: Any) -> str:
    """The operation that first computes a NaN, such as "log at losses.py:88 cross_entropy, layer 3"; "" if none does.

    The function runs without `jit`, and every result is checked for NaN, but not for infinity, which masks use. Then
    its backward pass runs in the same way; there the line of the operation is not known.

    Args:
      forward: a function of arrays to a scalar.
      *arguments: its arguments; the gradient is with respect to the first.
    """
    for function, where in ((forward, "the forward pass"), (jax.grad(forward), "the backward pass")):
        try:
            with jax.disable_jit(), jax.debug_nans(True):
                function(*arguments)
        except FloatingPointError as error:
            found = re.search(r"encountered in ([\w-]+)", str(error))
            return f"{found[1] if found else 'an operation'} {_place(error) or f'in {where}'}"
    return ""


def _place(error: BaseException) -> str:
    """The innermost lines outside of JAX and Python's own library, and the layer that was being computed."""
    libraries = (str(Path(jax.__file__).parent), sysconfig.get_path("stdlib"), "<", __file__)
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [(f.f_code, line) for f, line in frames if not f.f_code.co_filename.startswith(libraries)]
    if not own:
        return ""
    lines = [f"{Path(code.co_filename).name}:{line} {code.co_name}" for code, line in own[:-4:-1]]
    inside = [f.f_locals for f, _ in frames if f.f_code.co_filename == stack.__file__]
    layers = [int(names["layer"]) for names in inside if "layer" in names]
    return f"at {' < '.join(lines)}" + (f", layer {layers[-1]}" if layers else "")
