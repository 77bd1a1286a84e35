"""The shardings of the state of any Optax transformation, derived from the declaration of the parameters."""

import itertools
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformer_jax import sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param

SMALL = 1024  # elements up to which a leaf that belongs to no parameter, such as a count, is replicated


def of_state(state: Any, declaration: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree like the state with a `NamedSharding` at each leaf.

    A leaf belongs to a parameter if its path ends in the parameter's path; it is then sharded along `axes_of`. Small
    leaves that belong to no parameter are replicated.

    Args:
      state: the state of `optimizer.init`, abstract or not.
      declaration: the tree of `nn.params.Param`.
      mesh: the devices; an abstract mesh is enough.

    Raises:
      InputError: no sharding can be derived for a leaf.
    """
    declared = {tuple(path.split("/")): p for path, p in params_lib.flatten(declaration).items()}

    def of_leaf(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
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

    return jax.tree_util.tree_map_with_path(of_leaf, state)


def axes_of(shape: tuple[int, ...], param: Param) -> tuple[str | None, ...] | None:
    """The logical axes of a leaf that belongs to a parameter; None where they cannot be derived from its shape.

    The leaf may have the parameter's shape; it may lack some axes or have them with size 1, as factored moments and
    ratios per layer do; and it may have further leading axes, such as a history of gradients. Where axes have the same
    size the first that match are chosen; this affects only the speed.

    Args:
      shape: the shape of the leaf.
      param: the parameter.
    """
    rank = len(param.shape)
    front = max(0, len(shape) - rank)
    own = shape[front:]
    for kept in itertools.combinations(range(rank), len(own)):
        if all(size in (param.shape[i], 1) for size, i in zip(own, kept, strict=True)):
            axes = (param.axes[i] if size == param.shape[i] else None for size, i in zip(own, kept, strict=True))
            return (None,) * front + tuple(axes)
    return None
