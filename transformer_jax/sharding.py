"""How arrays are sharded: the table from logical names to mesh axes, and the three functions that read it.

A model names the dimensions of its arrays ("batch", "heads", "mlp", ...) and never a device. This file translates the
names into shardings. The same model function must run

- with no mesh at all,
- in an Auto mesh (ours: the compiler propagates shardings from our constraints),
- in an Explicit mesh (shardings are part of the types, and ambiguous operations must state their result's sharding),
- inside a `shard_map` that is manual over some axes (the caller shards those).

No single JAX primitive does all four, so every layer goes through three functions:

    constrain(x, axes)             x with the sharding that its axes' names ask for
    einsum(eq, x, w, out=axes)     a product, and the sharding of its result
    take(table, ids, out=axes)     rows of a table, and the sharding of the result

The idea of logical axes is T5X's and Flax's (`flax.linen.spmd`). Nothing falls back to replicated silently: an unknown
name, a size that does not divide or a mesh axis used twice is an error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from transformer_jax.errors import InputError
from transformer_jax.mesh import MESH_AXES as MESH_AXES
from transformer_jax.mesh import make_mesh as make_mesh

Axes = Sequence[str | None]
Rules = Mapping[str, str | tuple[str, ...] | None]

# Logical axis -> mesh axis or axes. "embed" is the model width of parameters. Activations do not shard their width
# (None), because their batch already uses the fsdp axis.
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "layers": None,
    "position": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "matrices": MESH_AXES,  # whole matrices of the optimiser, each updated by one device
}

# A context that is part of jit's cache key: one function traced under two tables is compiled twice.
_rules = jax.make_user_context(default_value=None)


def rules(table: Rules):
    """A context manager that installs `table` in place of `RULES`, for a mesh with other axis names.

    with jax.set_mesh(my_mesh), sharding.rules({"batch": "x", "heads": "y", ...}): gpt.apply(...)

    The table must name every logical axis of the model (None: not sharded).
    """
    return _rules(tuple(sorted(table.items())))


def current_rules() -> Rules:
    """The rule table in force."""
    return RULES if _rules.value is None else dict(_rules.value)


def replicated_length():
    """A context manager inside which the length is not sharded.

    For lengths that the sequence axis need not divide: one token while decoding, the first token, masked positions.
    """
    return rules({**current_rules(), "length": None})


def shards(logical: str) -> int:
    """The number of parts that the current mesh shards an activation's `logical` axis into; Manual axes not counted."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[n] for n in mesh_axes(logical))


def mesh_axes(logical: str) -> tuple[str, ...]:
    """The axes of the current mesh, larger than 1 and not Manual, that shard an activation's `logical` axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(mesh.axis_types) & {AxisType.Auto, AxisType.Explicit}:
        return ()
    return tuple(n for n in _names(current_rules()[logical]) if _is_sharding(n, mesh))


def partition_spec(
    axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh, *, name: str = "an activation"
) -> PartitionSpec:
    """The PartitionSpec of an array on a mesh.

    Mesh axes of size 1 are omitted, so that one device gives the plain program, and so are Manual ones: inside a
    shard_map the shape is already the shard's own.

    Args:
      axes: the logical name of each dimension; None: not sharded.
      shape: the array's.
      mesh: with all axes that the rules name.
      name: what errors call the array.

    Raises:
      InputError: an unknown logical axis, a mesh without the axes of the rules, a dimension that does not divide, or
        two dimensions on one mesh axis.
    """
    table = current_rules()
    entries: list[Any] = []
    used: dict[str, str | None] = {}
    for logical, size in zip(axes, shape, strict=True):
        if logical is not None and logical not in table:
            raise InputError(f"{name}: no rule for the logical axis {logical!r}; the table has {sorted(table)}")
        wanted = () if logical is None else _names(table[logical])
        for mesh_axis in wanted:
            if mesh_axis not in mesh.axis_names:
                raise InputError(
                    f"{name}: axis {logical!r} goes to mesh axis {mesh_axis!r}, but the mesh has {mesh.axis_names}; "
                    "pass a table for this mesh with sharding.rules(...)"
                )
        names = tuple(n for n in wanted if _is_sharding(n, mesh))
        for mesh_axis in names:
            if mesh_axis in used:
                raise InputError(
                    f"{name}: axes {used[mesh_axis]!r} and {logical!r} of {tuple(axes)} both go to mesh axis "
                    f"{mesh_axis!r}"
                )
            used[mesh_axis] = logical
        parts = math.prod(mesh.shape[n] for n in names)
        if size % parts:
            raise InputError(
                f"{name}: axis {logical!r} of size {size} does not divide over mesh axes {names} of {parts} devices; "
                f"change mesh.{' or mesh.'.join(names)}, or the size ({-(-size // parts) * parts} divides)"
            )
        entries.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, axes: Axes, *, name: str = "an activation") -> jax.Array:
    """x with the sharding of its logical axes in the current mesh, which its gradient gets too; x where there is none.

    Args:
      x: any array.
      axes: the logical name of each dimension; None: not sharded.
      name: what errors call x.

    Raises:
      InputError: as `partition_spec`.
    """
    auto, explicit = specs(axes, x.shape, name=name)
    if explicit is not None:
        x = jax.sharding.reshard(x, explicit)
    if auto is not None:
        x = jax.lax.with_sharding_constraint(x, auto)
    return x


def einsum(eq: str, x: jax.Array, w: jax.Array, *, out: Axes, dtype: Any = None) -> jax.Array:
    """`jnp.einsum(eq, x, w)` with a stated sharding.

    Where x's leading dimensions are not w's, or all of them are, they are collapsed to one for the product: XLA's CPU
    backend otherwise makes single-threaded transposed copies in the backward pass, and elsewhere a reshape is free.
    Where the length is sharded, a reshape would move data, so there the product stays as written.

    Args:
      eq: two operands, such as "BTD,DF->BTF", or "BTD,BTF->DF" for the gradient of a kernel.
      x: activations; all dimensions but the last are collapsed.
      w: a kernel, or other activations.
      out: the logical axes of the result.
      dtype: the dtype of the result and of the accumulation; None: the operands'.
    """
    left, right, result = eq.replace("->", ",").split(",")
    sizes = dict(zip(left, x.shape, strict=True)) | dict(zip(right, w.shape, strict=True))
    _, explicit = specs(out, [sizes[letter] for letter in result])
    if explicit is not None:
        return constrain(jnp.einsum(eq, x, w, preferred_element_type=dtype, out_sharding=explicit), out)
    batch = left[:-1]
    collapses = right.startswith(batch) or not set(batch) & set(right)
    if shards("length") > 1 or not collapses:
        return constrain(jnp.einsum(eq, x, w, preferred_element_type=dtype), out)
    w = w.reshape(-1, w.shape[-1]) if right.startswith(batch) else w
    y = jnp.einsum(eq.replace(batch, "z"), x.reshape(-1, x.shape[-1]), w, preferred_element_type=dtype)
    return constrain(y.reshape([sizes[letter] for letter in result]), out)


def take(table: jax.Array, ids: jax.Array, *, out: Axes, rows: str = "vocab") -> jax.Array:
    """Rows `table[ids]`; ids out of range are clipped (the input pipeline checks them).

    Args:
      table: [V, D], sharded as (rows, "embed"); its width is gathered first, so that each row is complete.
      ids: integers of any shape.
      out: the logical axes of the result, those of ids and one for D.
      rows: the logical axis of the table's rows.
    """
    table = constrain(table, (rows, None))
    _, explicit = specs(out, (*ids.shape, *table.shape[1:]))
    if explicit is not None:
        return constrain(table.at[ids].get(mode="clip", out_sharding=explicit), out)
    return constrain(jnp.take(table, ids, axis=0, mode="clip"), out)


def micro_batches(batch: Any, count: int) -> Any:
    """Each leaf [B, ...] as [count, B / count, ...]; micro-batch i holds the rows i, i + count, i + 2 * count, ...

    They are strided, because each device holds a contiguous block of the batch's rows: with a stride, every device
    holds an equal share of every micro-batch, and no row moves. Contiguous micro-batches would be on a few devices
    each.

    Args:
      batch: a tree of [B, ...].
      count: micro-batches; it must divide B.
    """

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % count:
            raise InputError(f"a batch of {x.shape[0]} rows does not divide into accumulate={count} micro-batches")
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def specs(
    axes: Axes, shape: Sequence[int], *, name: str = "an activation"
) -> tuple[PartitionSpec | None, PartitionSpec | None]:
    """The sharding of an array in the current mesh: its spec on Auto axes, and its spec on Explicit axes.

    A single device has neither: a constraint without effect would still restrict the compiler's layouts.

    Args:
      axes: the logical name of each dimension.
      shape: the array's.
      name: what errors call the array.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = set(mesh.axis_types)
    if not kinds & {AxisType.Auto, AxisType.Explicit}:
        return None, None
    spec = partition_spec(axes, shape, mesh, name=name)
    if mesh.size == 1 and AxisType.Explicit not in kinds:
        return None, None
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))

    def part(kind: AxisType) -> PartitionSpec | None:
        kept = [tuple(n for n in _names(entry) if types[n] == kind) for entry in spec]
        return PartitionSpec(*(k or None for k in kept)) if kind in kinds else None

    return part(AxisType.Auto), part(AxisType.Explicit)


def _names(rule: Any) -> tuple[str, ...]:
    """The mesh axes of a rule, or of an entry of a PartitionSpec."""
    return (rule,) if isinstance(rule, str) else rule or ()


def _is_sharding(name: str, mesh: Mesh | AbstractMesh) -> bool:
    """Whether a mesh axis splits arrays at all."""
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh.shape[name] > 1 and types[name] != AxisType.Manual
