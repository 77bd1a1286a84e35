"""The state of a training run: one value that the train step maps to the next one.

Everything about it is derived from the family's declaration of its parameters and from the optimiser: abstract values
(what a restore aims at), shardings (the moments and the averages lie where their parameters lie), initial values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformer_jax.contracts import TrainState
from transformer_jax.nn import params as params_lib


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
    """A tree like the state with a `NamedSharding` at each leaf: moments and average where their parameter lies.

    What is not shaped like the parameters (the counts) is a scalar, and every device holds it.
    """
    places = params_lib.shardings(declaration, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    moments = jax.eval_shape(optimizer.init, params_lib.abstract(declaration))
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda moment, place: place, moments, places, transform_non_params=lambda leaf: everywhere
    )
    return TrainState(
        step=everywhere,
        params=places,
        opt_state=opt_state,
        ema=places if ema else None,
        skipped=everywhere,
        recent=everywhere if recent else None,
    )
