"""The state of a training run: one value that the train step maps to the next one.

Everything about it is derived from the family's declaration of its parameters and from the optimiser: abstract values,
which a restore needs; shardings, where moments and averages are sharded like their parameters; and initial values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformer_jax import hosts, sharding
from transformer_jax.contracts import EvaluatesOther, TrainState
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import shardings as optim_shardings


def create(
    params: Any, optimizer: optax.GradientTransformation, *, base: Any = None, ema: bool = False, recent: int = 0
) -> TrainState:
    """The state before the first step.

    Args:
      params: the tree of the parameters that are trained.
      optimizer: the Optax transformation, of these.
      base: the tree of the others (`nn.params.split`).
      ema: keep an exponential moving average, which starts as a copy of the parameters.
      recent: losses to keep, for the detection of spikes.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
        recent=jnp.full(recent, jnp.nan, jnp.float32) if recent else None,
        base=base,
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
    """The state before the first step, initialised shard by shard: no device ever holds all of it.

    Args:
      key: draws the parameters.
      declaration: the tree of `nn.params.Param`.
      optimizer: the Optax transformation.
      mesh: the devices.
      ema: as for `create`.
      recent: as for `create`.
    """
    shardings = state_shardings(declaration, optimizer, mesh, ema=ema, recent=recent)

    def make(key: jax.Array) -> TrainState:
        params, base = params_lib.split(params_lib.init(key, declaration), declaration)
        return create(params, optimizer, base=base, ema=ema, recent=recent)

    return jax.jit(make, out_shardings=shardings)(key)


def abstract(
    declaration: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    *,
    ema: bool = False,
    recent: int = 0,
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with shardings: the target of a restore, and what a step compiles for.

    Args:
      declaration: the tree of `nn.params.Param`.
      optimizer: the Optax transformation.
      mesh: the devices; an abstract mesh is enough.
      ema: as for `create`.
      recent: as for `create`.

    Raises:
      InputError: a parameter does not divide over the mesh.
    """
    params, base = params_lib.split(params_lib.abstract(declaration, mesh), declaration)
    state = jax.eval_shape(lambda p, b: create(p, optimizer, base=b, ema=ema, recent=recent), params, base)
    shardings = state_shardings(declaration, optimizer, mesh, ema=ema, recent=recent)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def state_shardings(
    declaration: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    *,
    ema: bool = False,
    recent: int = 0,
) -> TrainState:
    """A tree like the state with a `NamedSharding` at each leaf; `optim.shardings` derives those of the moments.

    Args:
      declaration: the tree of `nn.params.Param`.
      optimizer: the Optax transformation.
      mesh: the devices; an abstract mesh is enough.
      ema: as for `create`.
      recent: as for `create`.

    Raises:
      InputError: no sharding can be derived for a leaf of the optimiser's state.
    """
    of_params, of_base = params_lib.split(params_lib.shardings(declaration, mesh), declaration)
    replicated = NamedSharding(mesh, PartitionSpec())
    trained = params_lib.split(declaration, declaration)[0]
    opt_state = jax.eval_shape(optimizer.init, params_lib.abstract(trained))
    return TrainState(
        step=replicated,
        params=of_params,
        opt_state=optim_shardings.of_state(opt_state, trained, mesh),
        ema=of_params if ema else None,
        skipped=replicated,
        recent=replicated if recent else None,
        base=of_base,
    )


def whole(state: TrainState) -> Any:
    """All parameters of `state`, which a model computes with: those that are trained, and an adapter's base."""
    return params_lib.join(state.params, state.base)


def evaluated(state: TrainState, optimizer: Any) -> Any:
    """The parameters to evaluate, those that are trained alone; `whole` of a state with these has all.

    These are the average where the run keeps one; those of the optimiser where it evaluates other weights than it
    trains, such as schedule-free; and otherwise the trained ones.

    Args:
      state: the state of the run.
      optimizer: the experiment's `contracts.Optimizer`, not its transformation.
    """
    if state.ema is not None:
        return state.ema
    if isinstance(optimizer, EvaluatesOther):
        return jax.jit(optimizer.evaluated)(state.opt_state, state.params)
    return state.params


def to_store(state: TrainState, optimizer: Any) -> TrainState:
    """The state as a checkpoint stores it.

    Where the optimiser evaluates other weights than it trains, they are stored as `ema`, so that reading the parameters
    needs no optimiser; `checkpoint.restore_state` ignores them.

    Args:
      state: the state of the run.
      optimizer: the experiment's `contracts.Optimizer`.
    """
    if state.ema is None and isinstance(optimizer, EvaluatesOther):
        return state.replace(ema=evaluated(state, optimizer))  # type: ignore[attr-defined]
    return state


def on_this_host(params: Any, declaration: Any) -> Any:
    """The parameters on this host's devices: on the first one, if every device has a copy.

    Args:
      params: on the devices of a mesh.
      declaration: their tree of `Param`.
    """
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params)):
        return jax.device_put(jax.tree.map(lambda leaf: leaf.addressable_data(0), params), jax.local_devices()[0])
    if hosts.alone():
        return params
    mesh = sharding.make_mesh(data=1, fsdp=-1, devices=jax.local_devices())
    try:
        shardings = params_lib.shardings(declaration, mesh)
    except InputError:  # a parameter does not divide over these devices
        shardings = jax.local_devices()[0]
    return jax.device_put(multihost_utils.process_allgather(params, tiled=True), shardings)
