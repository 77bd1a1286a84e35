"""The mesh: the devices in an array with four named axes."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from transformer_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "sequence", "tensor")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """An Auto mesh with the axes of `MESH_AXES`.

    Args:
      data: size of the axis; one of the four may be -1, which takes the devices that remain.
      fsdp: as for `data`.
      sequence: as for `data`.
      tensor: as for `data`.
      devices: the devices of the mesh; None: all.

    Raises:
      InputError: the sizes do not multiply to the number of devices, or slices differ in size.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(data, fsdp, sequence, tensor, num_devices=len(devices))
    return Mesh(device_grid(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def device_grid(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """`devices` as an array of these `sizes`, in which neighbours along a later axis are closer to each other.

    On a TPU, neighbours along an axis are neighbours in the torus (`mesh_utils`). Between slices (`slice_index`: TPU
    pods joined by a data-centre network, GPUs beyond NVLink) the network is slow. The first axes use it, data before
    fsdp before the others, as far as their sizes allow.

    Raises:
      InputError: slices of different sizes.
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
    """The four sizes with -1 replaced by a number.

    Args:
      data: size of the axis; one of the four may be -1.
      fsdp: as for `data`.
      sequence: as for `data`.
      tensor: as for `data`.
      num_devices: what the sizes multiply to.

    Raises:
      InputError: they do not.
    """
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
