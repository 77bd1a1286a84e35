"""The train step: one pure function from (state, batch, key) to (state, metrics).

    step = make_step(loss, optimizer, learning_rate, accumulate=4, ema_decay=0.999)
    step = jit_step(step, state_shardings(...), batch_sharding)      # compiled once, the state donated
    state, metrics = step(state, batch, key)

Losses are sums with weights, so that a batch gives the same result whole, in micro-batches, or sharded over devices:
sums are added, and divided once by the total weight.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax import kernels, sharding
from transformer_jax.contracts import TrainState
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import skippable

Batch = Mapping[str, jax.Array]
"""{name: [B, ...]}: the leading dimension of every leaf is the batch."""
Sums = dict[str, tuple[jax.Array, jax.Array]]
"""{name: (sum, weight)}."""
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array, Sums]]
Step = Callable[..., tuple[TrainState, dict[str, Any]]]

RECENT = 64  # losses that a new one is compared with, to detect a spike


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    skip_spikes: float = 0.0,
) -> Step:
    """The step, a pure function that the caller compiles.

    A loss or gradient that is not finite leaves parameters, optimiser state and average unchanged, to the bit; `step`
    and `skipped` still count it. A batch of weight 0 has loss 0 and gradient 0.

    Args:
      loss: (params, batch, key) -> (sum, weight, sums), the task's loss of all parameters, those of `state.base`
        included; `sums` are further numbers to report.
      optimizer: an Optax transformation; its `update` receives the global norm of the gradient as `grad_norm=`.
      learning_rate: the optimiser's schedule, a function of the number of updates applied, for the metrics.
      accumulate: micro-batches per batch; it must divide the rows of the batch.
      ema_decay: d in `ema = d * ema + (1 - d) * params`; 0 when the state has no average.
      skip_spikes: a step is skipped whose loss is this many `deviations` above the recent ones; 0: none is.

    Returns:
      step(state, batch, key) -> (state, metrics), where `key` is the run's key: the step folds in its number. A fourth
      argument, {name: `Frozen`}, is added to the batch that the loss reads, whole in every micro-batch. The
      metrics are scalars on the device: "loss" (nats per unit of weight), "weight", "grad_norm" (before clipping),
      "learning_rate" (of this update), "skipped" (steps so far, int32), and "sums", {name: (sum, weight)}; with
      `recent` losses in the state also "deviations".
    """
    optimizer = skippable(optimizer)

    def step(
        state: TrainState, batch: Batch, key: jax.Array, *frozen: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Any]]:
        if (state.ema is None) != (ema_decay == 0):
            raise ValueError(f"ema_decay {ema_decay} with a state whose ema is {'off' if state.ema is None else 'on'}")
        step_key = jax.random.fold_in(key, state.step)
        of_all = _of_all(loss, state.base, frozen)
        (loss_sum, (weight, sums)), grads = _gradients(of_all, state.params, batch, step_key, accumulate)
        scale = jnp.where(weight == 0, 0.0, 1.0 / jnp.where(weight == 0, 1.0, weight))
        mean_loss = loss_sum * scale
        grads = jax.tree.map(lambda g: g * scale, grads)
        with jax.named_scope("optimizer"):
            grad_norm = global_norm(grads)  # it is not finite if any gradient is not

        good = jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)
        recent, spike = state.recent, {}
        if recent is not None:
            spike = {"deviations": deviations(recent, mean_loss)}
            recent = _pushed(recent, mean_loss)
            if skip_spikes:
                good &= ~(spike["deviations"] > skip_spikes)

        def unless_skipped(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(good, new, old)

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(
                grads, state.opt_state, state.params, grad_norm=grad_norm, finite=good
            )
            params = jax.tree.map(unless_skipped, optax.apply_updates(state.params, updates), state.params)
            ema = state.ema
            if ema is not None:
                averaged = jax.tree.map(lambda average, p: ema_decay * average + (1.0 - ema_decay) * p, ema, params)
                ema = jax.tree.map(unless_skipped, averaged, ema)

        skipped = state.skipped + jnp.where(good, 0, 1).astype(jnp.int32)
        metrics = {
            "loss": mean_loss,
            "weight": weight,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(state.step - state.skipped),
            "skipped": skipped,
            "sums": sums,
            **spike,
        }
        return TrainState(state.step + 1, params, opt_state, ema, skipped, recent, state.base), metrics

    return step


def _of_all(loss: Loss, base: Any, frozen: Any) -> Loss:
    """The loss as a function of the trained parameters alone, and of the batch's rows alone."""
    return lambda params, rows, key: loss(params_lib.join(params, base), {**rows, **frozen[0]} if frozen else rows, key)


def _gradients(loss: Loss, params: Any, batch: Batch, key: jax.Array, accumulate: int) -> Any:
    """((loss_sum, (weight, sums)), gradients of loss_sum), summed over the micro-batches; each has its own key."""

    def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Sums]]:
        loss_sum, weight, sums = loss(params, batch, key)
        return loss_sum, (weight, sums)

    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    if accumulate == 1:
        return value_and_grad(params, batch, key)

    def add(total: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        i, rows = numbered
        part = value_and_grad(params, rows, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, part), None

    parts = sharding.micro_batches(batch, accumulate)
    shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))[0]


def global_norm(grads: Any) -> jax.Array:
    """The norm of all `grads` as one vector, float32. Unsharded gradients are summed by `sharding.sum_last`."""
    if any(sharding.shards(axis) > 1 for axis in ("embed", "heads", "kv_heads", "mlp", "vocab")):
        # `sum_last` of a sharded gradient would all-reduce a vector per matrix; this all-reduces one scalar.
        return optax.tree.norm(grads)
    squares = [jnp.square(g) for g in jax.tree.leaves(grads)]
    return jnp.sqrt(sum(jnp.sum(kernels.row_sums(x) if x.ndim > 1 else x) for x in squares))


def deviations(recent: jax.Array, loss: jax.Array) -> jax.Array:
    """The distance of a loss above the median of the recent ones, in deviations; NaN until there are enough losses.

    A deviation is 1.4826 times the median absolute deviation, which for a normal distribution is the standard
    deviation, and at least 1 % of the median. It is robust: half of the losses may be outliers.

    Args:
      recent: float32 [n].
      loss: scalar.
    """
    middle = jnp.median(recent)
    usual = 1.4826 * jnp.median(jnp.abs(recent - middle))
    return (loss - middle) / jnp.maximum(jnp.maximum(usual, 0.01 * jnp.abs(middle)), 1e-30)


def _pushed(recent: jax.Array, loss: jax.Array) -> jax.Array:
    """The recent losses with this one, if it is finite. A spike is added too, so that a lasting rise is no spike."""
    return jnp.where(jnp.isfinite(loss), jnp.append(recent[1:], loss), recent)


def jit_step(step: Step, state_shardings: TrainState, batch_sharding: Any, *frozen: Any) -> jax.stages.Wrapped:
    """The step under `jax.jit`, with the state's buffers donated to the new state.

    Args:
      step: from `make_step`.
      state_shardings: a tree like the state.
      batch_sharding: one sharding for every leaf of the batch, or a tree of them.
      *frozen: the shardings of the step's fourth argument, where it has one.
    """
    in_shardings, out_shardings = (state_shardings, batch_sharding, None, *frozen), (state_shardings, None)
    return jax.jit(step, in_shardings=in_shardings, out_shardings=out_shardings, donate_argnums=0)
