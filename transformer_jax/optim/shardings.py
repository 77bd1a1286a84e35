"""Where the state of any Optax transformation is on a mesh, derived from the declaration of the parameters."""

import itertools
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformer_jax import sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param

SMALL = 1024  # elements of a leaf that belongs to no parameter and that every device may hold: counts, coefficients


def of_state(state: Any, declaration: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree like the state with a `NamedSharding` at each leaf.

    A leaf belongs to the parameter whose path its own path ends in, and is sharded as `axes_of` says. Small leaves that
    belong to none are whole on every device.

    Args:
      state: of `optimizer.init`, abstract or not.
      declaration: the tree of `Param`s.
    Raises: `InputError` naming a leaf for which no sharding can be derived.
    """
    declared = {tuple(path.split("/")): p for path, p in params_lib.flatten(declaration).items()}

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        keys = tuple(name.split("/"))
        owner = next((declared[keys[i:]] for i in range(len(keys)) if keys[i:] in declared), None)
        axes = None if owner is None else axes_of(leaf.shape, owner)
        if axes is not None:
            return NamedSharding(mesh, sharding.partition_spec(axes, leaf.shape, mesh, name=f"optimizer state {name}"))
        if math.prod(leaf.shape) <= SMALL:
            return NamedSharding(mesh, PartitionSpec())
        raise InputError(
            f"optim: no sharding can be derived for the leaf {name} {leaf.dtype}{list(leaf.shape)} of the optimiser's "
            f"state; a leaf of more than {SMALL:,} elements must be in a tree like the parameters, with its "
            "parameter's shape, or that shape without some axes"
        )

    return jax.tree_util.tree_map_with_path(place, state)


def axes_of(shape: tuple[int, ...], param: Param) -> tuple[str | None, ...] | None:
    """The logical axes of a leaf that belongs to a parameter; None where its shape says nothing.

    The leaf may have the parameter's shape, or lack some of its axes or have them with size 1 (factored moments, a
    ratio for each layer), and may have further axes in front (a history of gradients). Where several axes are equally
    long the first that fit are taken: the layout is then a matter of speed alone.
    """
    rank = len(param.shape)
    front = max(0, len(shape) - rank)
    own = shape[front:]
    for kept in itertools.combinations(range(rank), len(own)):
        if all(size in (param.shape[i], 1) for size, i in zip(own, kept, strict=True)):
            axes = (param.axes[i] if size == param.shape[i] else None for size, i in zip(own, kept, strict=True))
            return (None,) * front + tuple(axes)
    return None
