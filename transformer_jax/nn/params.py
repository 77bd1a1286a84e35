"""One declaration per parameter; everything else about parameters is derived from it.

A family declares a tree (nested dicts) of `Param(shape, axes, init)`. From that tree follow initial values, abstract
values, shardings, counts, the weight-decay mask and the list of paths that an imported checkpoint must fill.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from transformer_jax import sharding

Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]
Tree = Any  # nested dicts with the same keys as the declaration


@dataclass(frozen=True)
class Param:
    """One parameter.

    Attributes:
      shape: the shape of the array.
      axes: the logical name of each axis; None: never sharded.
      init: (key, shape) -> initial values, float32.
      decay: whether weight decay applies to it if it is a matrix.
      trained: whether training changes it. What is not trained has no gradient and no moments, and a checkpoint does
        not hold it (`adapters`).
      dtype: the dtype of the values; kernels of eight bits are "int8" (`compress`).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    decay: bool = True
    trained: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.axes), f"Param of shape {self.shape} names {len(self.axes)} axes"


def normal(std: float) -> Initializer:
    """The initialiser of Normal(0, `std`^2)."""
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


def xavier(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform values by `key` for a kernel of `shape` [in, out], variance 2 / (in + out) (Glorot and Bengio 2010)."""
    bound = math.sqrt(6 / sum(shape))
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """All zeros of `shape`, for biases; `key` is not used."""
    return jnp.zeros(shape, jnp.float32)


def ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """All ones of `shape`, for the scales of norms; `key` is not used."""
    return jnp.ones(shape, jnp.float32)


def flatten(tree: Tree) -> dict[str, Any]:
    """{"blocks/mlp/up/kernel": leaf, ...} of `tree`, in sorted order of the keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_param)
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def nested(flat: Mapping[str, Any]) -> Tree:
    """The nested dicts of `flat`, {"blocks/mlp/up/kernel": leaf, ...}: the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def split(tree: Tree, declaration: Tree) -> tuple[Tree, Tree | None]:
    """The leaves of `tree` that are trained, and those that are not; None in place of the latter where all are trained.

    Args:
      tree: arrays, shardings or anything else for each parameter; or the declaration itself.
      declaration: the tree of `Param`.
    """
    declared = flatten(declaration)
    if all(p.trained for p in declared.values()):
        return tree, None
    flat = flatten(tree)
    parts = [{path: leaf for path, leaf in flat.items() if declared[path].trained is kind} for kind in (True, False)]
    return nested(parts[0]), nested(parts[1])


def join(trained: Tree, frozen: Tree | None) -> Tree:
    """The whole tree of the two parts that `split` returned, `trained` and `frozen`."""
    return trained if frozen is None else nested(flatten(frozen) | flatten(trained))


def stack(tree: Tree, num_layers: int) -> Tree:
    """The declaration of `num_layers` copies of `tree`, each leaf with a leading "layers" axis."""

    def stacked(p: Param) -> Param:
        return dataclasses.replace(p, shape=(num_layers, *p.shape), axes=("layers", *p.axes))

    return jax.tree.map(stacked, tree, is_leaf=_is_param)


def init(key: jax.Array, tree: Tree) -> Tree:
    """The initial float32 values of the declaration `tree`.

    A leaf's path, and when stacked its layer's number, are folded into `key`: a new leaf or layer changes no other
    initial value.
    """
    leaves = flatten(tree)
    depth = max([p.shape[0] for p in leaves.values() if _is_stacked(p)], default=0)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    # The keys of all leaves K at once: a hash for each leaf would take a third of the compilation.
    keys_K = fold(key, jnp.array([zlib.crc32(name.encode()) for name in leaves], jnp.uint32))
    keys_KL = jax.vmap(fold, (0, None))(keys_K, jnp.arange(depth))
    values = [
        jax.vmap(lambda k, p=p: p.init(k, p.shape[1:]))(keys_KL[i, : p.shape[0]])
        if _is_stacked(p)
        else p.init(keys_K[i], p.shape)
        for i, p in enumerate(leaves.values())
    ]
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=_is_param), values)


def _is_stacked(p: Param) -> bool:
    return p.axes[:1] == ("layers",)


def abstract(tree: Tree, mesh: Mesh | AbstractMesh | None = None, dtype: Any = jnp.float32) -> Tree:
    """`jax.ShapeDtypeStruct`s of the values.

    Args:
      tree: the declaration.
      mesh: its shardings are given to the structs; None: they have none.
      dtype: the dtype of the values that are declared as float32.
    """

    def struct(p: Param, sharding: NamedSharding | None = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(p.shape, dtype if p.dtype == "float32" else p.dtype, sharding=sharding)

    if mesh is None:
        return jax.tree.map(struct, tree, is_leaf=_is_param)
    return jax.tree.map(struct, tree, shardings(tree, mesh), is_leaf=_is_param)


def shardings(tree: Tree, mesh: Mesh | AbstractMesh) -> Tree:
    """A `NamedSharding` on `mesh` for each leaf of the declaration `tree`.

    Raises:
      InputError: with the leaf whose dimension does not divide.
    """
    flat = flatten(tree)
    specs = {name: sharding.partition_spec(p.axes, p.shape, mesh, name=name) for name, p in flat.items()}
    treedef = jax.tree.structure(tree, is_leaf=_is_param)
    return jax.tree.unflatten(treedef, [NamedSharding(mesh, spec) for spec in specs.values()])  # type: ignore[arg-type]


def constrain(tree: Tree, values: Tree) -> Tree:
    """The arrays `values`, sharded as `tree` declares in the current mesh; their gradients get the same shardings."""
    flat = flatten(tree)
    sharded = [sharding.constrain(x, flat[name].axes, name=name) for name, x in flatten(values).items()]
    return jax.tree.unflatten(jax.tree.structure(values), sharded)


def count(tree: Tree) -> int:
    """The number of parameters that `tree` declares."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(tree, is_leaf=_is_param))


def flops(tree: Tree, tokens: Callable[[str], float], scores: float) -> float:
    """FLOPs of one training step on one example, forward and backward (PaLM, Chowdhery et al. 2022, appendix B).

    They are 6 for each element of a kernel and each token that it multiplies, and 12 for each element of attention's
    products.

    Args:
      tree: the declaration.
      tokens: how many tokens of an example the kernel of this path multiplies; layers that share it count each.
      scores: pairs of a query and a key, masked ones included, times the width of all heads, summed over the layers.
    """
    kernels = {path: math.prod(p.shape) for path, p in flatten(tree).items() if path.endswith("/kernel")}
    return sum(6.0 * size * tokens(path) for path, size in kernels.items()) + 12.0 * scores


def decay_mask(tree: Tree) -> Tree:
    """True for each leaf of the declaration `tree` that weight decay applies to: a matrix not declared without it.

    The "layers" axis does not make a vector a matrix.
    """
    return jax.tree.map(lambda p: p.decay and len([a for a in p.axes if a != "layers"]) >= 2, tree, is_leaf=_is_param)


def unstack(tree: Mapping[str, Any], num_layers: int) -> list[Tree]:
    """The arrays of a stacked `tree` as one tree for each of `num_layers` layers.

    Uses `lax.split`, whose transpose is one concatenation. The gradient of indexing would be a zero-padded copy of the
    stack for each layer.
    """
    leaves, treedef = jax.tree.flatten(tree)
    rows = [jax.lax.split(leaf, (1,) * num_layers) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [row[i].reshape(row[i].shape[1:]) for row in rows]) for i in range(num_layers)]


def unstack_from(tree: Mapping[str, Any], begin: int, num_layers: int) -> tuple[Tree, list[Tree]]:
    """The arrays of a stacked `tree` as the stack of the layers before `begin`, and a list of the other layers' trees.

    Args:
      tree: the arrays, with a leading dimension of layers.
      begin: the first layer of the list, at least 1.
      num_layers: L.
    """
    if begin == num_layers:
        return tree, []
    leaves, treedef = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, (begin, *[1] * (num_layers - begin))) for leaf in leaves]
    rest = [[one.reshape(one.shape[1:]) for one in layer] for layer in zip(*[part[1:] for part in parts], strict=True)]
    rest = rest if leaves else [[] for _ in range(num_layers - begin)]
    return jax.tree.unflatten(treedef, [part[0] for part in parts]), [jax.tree.unflatten(treedef, one) for one in rest]


def _is_param(x: Any) -> bool:
    return isinstance(x, Param)
