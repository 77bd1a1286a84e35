"""Where arrays live: the mesh, the one table from logical names to mesh axes, and the three functions that read it.

A model names the dimensions of its arrays ("batch", "heads", "mlp", ...) and never a device. This file turns those
names into shardings. The same model function must run

- with no mesh at all,
- in an Auto mesh (ours: the compiler propagates shardings from our constraints),
- in an Explicit mesh (shardings are part of the types, and ambiguous operations must say what they produce),
- inside a `shard_map` that is manual over some axes (those axes are not ours to constrain).

No single JAX primitive does all four, so every layer goes through three functions:

    constrain(x, axes)             the value x, laid out as its axes' names say
    einsum(eq, x, w, out=axes)     a contraction of activations with a kernel, and how its result is laid out
    take(table, ids, out=axes)     rows of a table, and how the result is laid out

Sharding follows the logical-axis idea of T5X and Flax (`flax.linen.spmd`): a rule table is the only place that knows
both vocabularies. Nothing falls back to replicated silently: an unknown name, a size that does not divide or a mesh
axis used twice is an error.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from transformer_jax.errors import InputError

Axes = Sequence[str | None]
Rules = Mapping[str, str | tuple[str, ...] | None]

MESH_AXES = ("data", "fsdp", "sequence", "tensor")

# Logical axis -> mesh axis or axes. "embed" names the model width of parameters; activations keep their width whole
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
    "matrices": MESH_AXES,  # whole matrices of the optimiser, each worked on by one device
}

# A context that is part of jit's cache key, so that one function traced under two tables is compiled twice.
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


def whole_length():
    """A context manager: inside, the length is whole on every device of the sequence axis.

    For lengths that have no parts to spread: one token when decoding, the first one, the few that are predicted.
    """
    return rules({**current_rules(), "length": None})


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """An Auto mesh with the four axes of `MESH_AXES`; one size may be -1 and takes the devices that remain.

    Errors: `InputError` when the sizes do not multiply to the number of devices, and for slices of different sizes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(data, fsdp, sequence, tensor, num_devices=len(devices))
    return Mesh(device_grid(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def device_grid(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of these sizes, such that those along a later axis are closer to each other.

    On a TPU neighbours along an axis are neighbours in the torus, as JAX's own `mesh_utils` place them. Devices of
    several slices (`slice_index`: TPU pods joined by a data-centre network, GPUs beyond NVLink) have the slow network
    between them: the first axes go over it, data before fsdp before the others, as far as their sizes have room.
    Errors: `InputError` for slices of different sizes.
    """
    counts = Counter(getattr(device, "slice_index", None) for device in devices)
    if len(counts) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if len(set(counts.values())) > 1:
        parts = ", ".join(f"slice {i}: {n}" for i, n in sorted(counts.items()))
        raise InputError(f"the devices are {parts}; a mesh needs as many of every slice")
    between, left = [], len(counts)
    for size in sizes:
        between.append(math.gcd(size, left))
        left //= between[-1]
    within = [size // outer for size, outer in zip(sizes, between, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def mesh_shape(data: int, fsdp: int, sequence: int, tensor: int, *, num_devices: int) -> tuple[int, ...]:
    """The sizes with -1 filled in. Errors: `InputError` when they do not multiply to `num_devices`."""
    sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
    written = ", ".join(f"mesh.{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"mesh sizes must be positive, and one of them may be -1 (the rest); got {written}")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and num_devices % fixed == 0:
        sizes[free[0]] = num_devices // fixed
    elif fixed != num_devices or free:
        raise InputError(f"{written} do not multiply to the {num_devices} devices here; set one size to -1")
    return tuple(sizes.values())


def partition_spec(
    axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh, *, name: str = "an activation"
) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes and this shape on `mesh`.

    Mesh axes of size 1 are left out, so that one device gives the plain program, and so are Manual ones: inside a
    shard_map the shape is already the shard's own.
    Errors: `InputError`, naming `name`, for an unknown logical axis, a mesh without the axes of the rules, a dimension
    that does not divide, and two dimensions that want the same mesh axis.
    """
    table = current_rules()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    entries: list[Any] = []
    used: dict[str, str | None] = {}
    for logical, size in zip(axes, shape, strict=True):
        if logical is not None and logical not in table:
            raise InputError(f"{name}: no rule for the logical axis {logical!r}; the table has {sorted(table)}")
        rule = None if logical is None else table[logical]
        wanted = (rule,) if isinstance(rule, str) else rule or ()
        for mesh_axis in wanted:
            if mesh_axis not in types:
                raise InputError(
                    f"{name}: axis {logical!r} goes to mesh axis {mesh_axis!r}, but the mesh has {mesh.axis_names}; "
                    "pass a table for this mesh with sharding.rules(...)"
                )
        names = tuple(n for n in wanted if mesh.shape[n] > 1 and types[n] != AxisType.Manual)
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
    """x with the layout that its logical axes ask for in the mesh around this call; x itself where there is none.

    Auto mesh axes get a constraint, Explicit ones a reshard, Manual ones (inside shard_map or pmap) are the caller's.
    A gradient gets the layout of its value. `name` is what an error calls x.
    """
    auto, explicit = _layout(axes, x.shape, name)
    if explicit is not None:
        x = jax.sharding.reshard(x, explicit)
    if auto is not None:
        x = jax.lax.with_sharding_constraint(x, auto)
    return x


def einsum(eq: str, x: jax.Array, w: jax.Array, *, out: Axes, dtype: Any = None) -> jax.Array:
    """`jnp.einsum(eq, x, w)`, the result laid out as `out`.

    For the products of a layer, "BTD,DF->BTF" with a kernel (or its transpose, "BTD,VD->BTV"), and for the kernel's
    gradient, "BTD,BTF->DF". `dtype` is the result's and the accumulation's (None: the operands').

    Batch and length are collapsed to one dimension for the product and split again: XLA's CPU backend otherwise makes
    single-threaded transposed copies in the backward pass, and elsewhere the reshape costs nothing. Where the length
    is sharded, collapsing would move data, so there the product stays as written. On CPUs a layer's product has its
    gradient written out (`_cpu_product`), which leaves it without forward-mode derivatives there.
    """
    left, right, result = eq.replace("->", ",").split(",")
    sizes = dict(zip(left, x.shape, strict=True)) | dict(zip(right, w.shape, strict=True))
    _, explicit = _layout(out, [sizes[letter] for letter in result])
    if explicit is not None:
        return constrain(jnp.einsum(eq, x, w, preferred_element_type=dtype, out_sharding=explicit), out)
    if shards("length") > 1:
        return constrain(jnp.einsum(eq, x, w, preferred_element_type=dtype), out)
    batch = left[:-1]
    if right.startswith(batch):
        w = w.reshape(-1, w.shape[-1])
    flat_eq = eq.replace(batch, "z")
    x = x.reshape(-1, x.shape[-1])
    if flat_eq == "zD,DF->zF" and dtype is None and target_platform() == "cpu":
        y = _cpu_product(*vary_together(x, w))
    else:
        y = jnp.einsum(flat_eq, x, w, preferred_element_type=dtype)
    return constrain(y.reshape([sizes[letter] for letter in result]), out)


@jax.custom_vjp
def _cpu_product(x_zD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x w, whose gradient for w comes out as w lies.

    JAX's own rule gives it transposed, and XLA's CPU backend then copies it, in one thread: a twelfth of the time of a
    training step of BERT-base (measured: 2 cores, medians of interleaved runs).
    """
    return jnp.einsum("zD,DF->zF", x_zD, w_DF)


def _cpu_product_forward(x_zD, w_DF):
    return _cpu_product(x_zD, w_DF), (x_zD, w_DF)


def _cpu_product_backward(operands, dy_zF):
    x_zD, w_DF = operands
    dx_zD = jnp.einsum("zF,DF->zD", dy_zF, w_DF)
    (z, D), F = x_zD.shape, dy_zF.shape[1]
    if not z >= D > F:
        return dx_zD, jnp.einsum("zD,zF->DF", x_zD, dy_zF)
    # A kernel with more rows than columns comes out faster as its transpose, unless it is large beside the batch. The
    # barrier keeps the compiler from turning the product around again.
    return dx_zD, jax.lax.optimization_barrier(jnp.einsum("zF,zD->FD", dy_zF, x_zD)).T


_cpu_product.defvjp(_cpu_product_forward, _cpu_product_backward)


def add_bias(y_BTF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """y + bias. On CPUs the bias's gradient, a sum over all rows, is written as a product with ones, which XLA's CPU
    backend computes faster: 3 % of the CPU time of a training step of ViT-S/16 (measured). Like a layer's product it is
    without forward-mode derivatives there."""
    axis_types = jax.sharding.get_abstract_mesh().axis_types
    if target_platform() == "gpu" or AxisType.Explicit in axis_types or shards("length") > 1:
        return y_BTF + bias_F
    return _cpu_add_bias(*vary_together(y_BTF, bias_F))


@jax.custom_vjp
def _cpu_add_bias(y_BTF: jax.Array, bias_F: jax.Array) -> jax.Array:
    return y_BTF + bias_F


def _cpu_add_bias_forward(y_BTF, bias_F):
    return y_BTF + bias_F, None


def _cpu_add_bias_backward(_, dy_BTF):
    dy_zF = dy_BTF.reshape(-1, dy_BTF.shape[-1])
    # Eight rows of ones: the compiler would fuse a product with a vector into a loop that computes dy anew.
    return dy_BTF, jnp.einsum("yz,zF->yF", jnp.ones((8, len(dy_zF)), dy_zF.dtype), dy_zF)[0]


_cpu_add_bias.defvjp(_cpu_add_bias_forward, _cpu_add_bias_backward)


def sum_last(x: jax.Array) -> jax.Array:
    """The sums of a float32 array over its last axis, which no mesh axis should cut.

    On TPUs as a product with ones: a sum over rows takes the vector unit two to four times as long as it takes to read
    them, by the compiler's own estimate. Each number goes in as the sum of two of bfloat16, with an error of 2^-17.
    """
    if target_platform() != "tpu" or AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        return jnp.sum(x, axis=-1)
    # Eight columns of ones: a product with a vector is made a sum again.
    ones = jnp.ones((x.shape[-1], 8), x.dtype)
    return jnp.einsum("...F,Fy->...y", x, ones, precision=jax.lax.Precision.HIGH)[..., 0]


def target_platform() -> str:
    """The platform that the program being traced is for: the mesh's devices where there is a mesh, or the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def target_chip() -> str:
    """The kind of device that the program being traced is for, as JAX calls it: "TPU v5p", "NVIDIA H100", "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def take(table: jax.Array, ids: jax.Array, *, out: Axes, rows: str = "vocab") -> jax.Array:
    """Rows `table[ids]`, laid out as `out`. ids are in range (the input pipeline checks); others are clipped.

    Arguments: table [V, D], sharded as (rows, "embed"); its width is gathered first, so that a row is whole.
    """
    table = constrain(table, (rows, None))
    _, explicit = _layout(out, (*ids.shape, *table.shape[1:]))
    if explicit is not None:
        return constrain(table.at[ids].get(mode="clip", out_sharding=explicit), out)
    return constrain(jnp.take(table, ids, axis=0, mode="clip"), out)


def gather(x_BTD: jax.Array, index_BP: jax.Array, *, out: Axes) -> jax.Array:
    """x[b, index[b, p]] for a few positions of each row, [B, T, D] -> [B, P, D], laid out as `out`.

    A product with one-hot rows, which is exact: it runs on any mesh, an index into a sharded length included, and its
    gradient is a product as well where that of indexing is a scatter. It costs P / V of the vocabulary's projection.
    """
    one_hot_BPT = jax.nn.one_hot(index_BP, x_BTD.shape[1], dtype=x_BTD.dtype)
    _, explicit = _layout(out, (*index_BP.shape, x_BTD.shape[2]))
    if explicit is not None:
        one_hot_BPT = jax.sharding.reshard(one_hot_BPT, _layout(("batch", None, "length"), one_hot_BPT.shape)[1])
        return constrain(jnp.einsum("BPT,BTD->BPD", one_hot_BPT, x_BTD, out_sharding=explicit), out)
    return constrain(jnp.einsum("BPT,BTD->BPD", one_hot_BPT, x_BTD), out)


def token(x_BTD: jax.Array, index: int) -> jax.Array:
    """x[:, index] with its dimension kept, [B, T, D] -> [B, 1, D]; the rest of a length that is cut does not move."""
    if shards("length") == 1:
        return constrain(x_BTD[:, index : index + 1], ("batch", None, None))
    index_B1 = constrain(jnp.full((x_BTD.shape[0], 1), index, jnp.int32), ("batch", None))
    return gather(x_BTD, index_B1, out=("batch", None, None))


def untyped(f: Callable[..., Any], *arrays: jax.Array, out: Sequence[Axes]) -> tuple[jax.Array, ...]:
    """f(*arrays), where f is written without regard to layouts: augmentations of images, not a model's layers.

    f returns a tuple of arrays of the shapes of the last that go in, which are laid out as `out`. In an Explicit mesh
    the compiler chooses the layouts inside; f must not close over arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in mesh.axis_types:
        places = tuple(_layout(axes, x.shape)[1] for axes, x in zip(out, arrays[-len(out) :], strict=True))
        return jax.sharding.auto_axes(f, out_sharding=places)(*arrays)
    return tuple(constrain(x, axes) for x, axes in zip(f(*arrays), out, strict=True))


def on_each_device(f: Callable[..., jax.Array], *arrays: jax.Array, axes: Sequence[Axes], out: Axes) -> jax.Array:
    """f of the parts that each device has of the arrays, laid out as `axes`; of whole arrays where there is no mesh.

    For kernels that no compiler can cut: it would gather their operands. f's result has the last dimensions of the
    first array, laid out as `out`; a row may be cut over devices only along the dimensions that `axes` names.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}
    if not free or math.prod(mesh.shape[n] for n in free) == 1:
        return f(*arrays)
    specs = tuple(partition_spec(a, x.shape, mesh) for a, x in zip(axes, arrays, strict=True))
    whole = partition_spec(out, arrays[0].shape[-len(out) :], mesh)
    return jax.shard_map(f, in_specs=specs, out_specs=whole, axis_names=free, check_vma=False)(*arrays)


def in_order(x: jax.Array) -> jax.Array:
    """x, in a TPU's memory in the order of its dimensions, as kernels want their operands.

    Left alone, the compiler puts the batch of images inside their tokens, whose 197 do not fill its tiles, and copies
    every operand and result of the attention kernel: a fifth of the time of ViT-S/16's step (docs/performance.md).
    """
    if target_platform() != "tpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def shards(logical: str) -> int:
    """How many parts the mesh around this call cuts an activation's logical axis into, leaving out Manual axes."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[n] for n in cut_by(logical))


def cut_by(logical: str) -> tuple[str, ...]:
    """The mesh axes, of several devices and not Manual, that cut an activation's logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(mesh.axis_types) & {AxisType.Auto, AxisType.Explicit}:
        return ()
    rule = current_rules()[logical]
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = (rule,) if isinstance(rule, str) else rule or ()
    return tuple(n for n in names if types[n] != AxisType.Manual and mesh.shape[n] > 1)


def vary_together(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """The arrays, each marked as varying over every manual mesh axis that one of them varies over; None stays None.

    Inside a shard_map that checks this (`check_vma=True`), a scan's carry and a custom gradient must have the very type
    of what they meet: JAX's own operations cast by themselves, ours call this. The cast's transpose is the sum over
    those axes, so the gradient of what all devices share is the whole batch's.
    """
    varying = [frozenset() if a is None else jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*varying)
    pairs = zip(arrays, varying, strict=True)
    return tuple(a if a is None else jax.lax.pcast(a, tuple(sorted(union - v)), to="varying") for a, v in pairs)


def _layout(
    axes: Axes, shape: Sequence[int], name: str = "an activation"
) -> tuple[PartitionSpec | None, PartitionSpec | None]:
    """What the mesh around this call asks of such an array: its spec on Auto axes, and its spec on Explicit axes.

    Of a single device nothing: a constraint without effect would still stand in the way of the compiler's layouts.
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
        names = [((e,) if isinstance(e, str) else e or ()) for e in spec]
        kept = [tuple(n for n in entry if types[n] == kind) for entry in names]
        return PartitionSpec(*(k or None for k in kept)) if kind in kinds else None

    return part(AxisType.Auto), part(AxisType.Explicit)
