"""The state of a training run: one value that the train step maps to the next one.

Everything about it is derived from the family's declaration of its parameters and from the optimiser: abstract values
(what a restore aims at), shardings (the moments and the averages lie where their parameters lie), initial values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformer_jax.contracts import EvaluatesOther, TrainState
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import shardings


def create(params: Any, optimizer: optax.GradientTransformation, *, ema: bool = False, recent: int = 0) -> TrainState:
    """The state before the first step. The average starts as a copy of the parameters; `recent` losses are kept."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
        recent=jnp.full(recent, jnp.nan, jnp.float32) if recent else None,
    )


def init(
    key: jax.Array,
    declaration: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool = False,
    recent: int = 0,
) -> TrainState:
    """The state before the first step, drawn straight onto the devices of `mesh`: no device ever holds all of it."""
    places = state_shardings(declaration, optimizer, mesh, ema=ema, recent=recent)
    make = jax.jit(
        lambda k: create(params_lib.init(k, declaration), optimizer, ema=ema, recent=recent), out_shardings=places
    )
    return make(key)


def abstract(
    declaration: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    *,
    ema: bool = False,
    recent: int = 0,
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with shardings: what a restore aims at, and what can be compiled for.

    Errors: `InputError` naming the parameter that does not divide over the mesh.
    """
    values = params_lib.abstract(declaration, mesh)
    state = jax.eval_shape(lambda p: create(p, optimizer, ema=ema, recent=recent), values)
    places = state_shardings(declaration, optimizer, mesh, ema=ema, recent=recent)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places)


def state_shardings(
    declaration: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    *,
    ema: bool = False,
    recent: int = 0,
) -> TrainState:
    """A tree like the state with a `NamedSharding` at each leaf: the average's are its parameters', those of the
    optimiser's state are derived by `optim.shardings`.

    Raises: `InputError` naming a leaf of the optimiser's state for which no sharding can be derived.
    """
    places = params_lib.shardings(declaration, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = jax.eval_shape(optimizer.init, params_lib.abstract(declaration))
    return TrainState(
        step=everywhere,
        params=places,
        opt_state=shardings.of_state(opt_state, declaration, mesh),
        ema=places if ema else None,
        skipped=everywhere,
        recent=everywhere if recent else None,
    )


def evaluated(state: TrainState, optimizer: Any) -> Any:
    """The parameters to evaluate: the average where the run keeps one, those of the optimiser where it has others than
    the trained ones, such as schedule-free, and else the trained ones.

    Args:
      optimizer: the experiment's `contracts.Optimizer`, not its transformation.
    """
    if state.ema is not None:
        return state.ema
    if isinstance(optimizer, EvaluatesOther):
        return jax.jit(optimizer.evaluated)(state.opt_state, state.params)
    return state.params


def to_store(state: TrainState, optimizer: Any) -> TrainState:
    """The state as a checkpoint holds it: with the parameters to evaluate as its average where they are not the trained
    ones, so that a reader of parameters needs no optimiser. `checkpoint.restore_state` leaves them out again."""
    if state.ema is None and isinstance(optimizer, EvaluatesOther):
        return state.replace(ema=evaluated(state, optimizer))  # type: ignore[attr-defined]
    return state
