"""Batches on devices: which device holds which rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformer_jax import sharding
from transformer_jax.errors import InputError

Example = Mapping[str, jax.ShapeDtypeStruct]
"""One row of a batch, without the batch dimension."""


def shardings(example: Example, batch_size: int, mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """A sharding for each leaf of a batch: rows over the batch axes, the sequence over the sequence axis.

    The sequence dimension is the longest vector of an example. Shorter vectors, such as the few positions that a masked
    language model predicts, and images are sharded over the rows only.

    Args:
      example: one row, with "weights".
      batch_size: rows of the global batch.
      mesh: the devices; an abstract mesh is enough.

    Raises:
      InputError: a dimension does not divide over the mesh, or "weights" is missing.
    """
    if "weights" not in example:
        raise InputError(
            f"the task's example has {', '.join(example)}, but no 'weights': 1 for an example that counts, or for each "
            "of its positions, and 0 for padding"
        )
    found = {}
    length = max((x.shape[0] for x in example.values() if len(x.shape) == 1), default=0)
    for name, x in example.items():
        along = "length" if x.shape == (length,) else None
        axes = ("batch", along, *(None,) * len(x.shape))[: len(x.shape) + 1]
        spec = sharding.partition_spec(axes, (batch_size, *x.shape), mesh, name=f"the batch's {name!r}")
        found[name] = NamedSharding(mesh, spec)  # type: ignore[arg-type]
    return found


def abstract(
    example: Example, batch_size: int, batch_shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, dtypes and shardings of a batch, to compile for.

    Args:
      example: one row.
      batch_size: rows of the global batch.
      batch_shardings: from `shardings`.
    """
    return {
        name: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype, sharding=batch_shardings[name])
        for name, x in example.items()
    }


def check_parts(batch_size: int, accumulate: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises `InputError` when a device's rows do not divide into micro-batches.

    Args:
      batch_size: rows of the global batch.
      accumulate: micro-batches per batch.
      mesh: the devices.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * accumulate):
        raise InputError(
            f"train.batch_size {batch_size} does not divide by {devices} devices x train.accumulate {accumulate}; "
            f"the nearest that does is {max(round(batch_size / (devices * accumulate)), 1) * devices * accumulate}"
        )


def local_rows(sharding: NamedSharding, batch_size: int) -> Sequence[int]:
    """The rows of a global batch that this host has to read, in order: those of its devices.

    Hosts whose devices hold the same rows, because they shard the sequence or the heads, read the same rows. On a torus
    of TPUs the rows of a host need not be contiguous.

    Args:
      sharding: the sharding of a leaf of the batch.
      batch_size: rows of the global batch.
    """
    over_rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    by_device: Any = over_rows.addressable_devices_indices_map((batch_size,))
    parts = {part.indices(batch_size)[:2] for (part,) in by_device.values()}
    return [row for start, stop in sorted(parts) for row in range(start, stop)]


def place(batch: Mapping[str, np.ndarray], batch_shardings: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """The global arrays of a batch, on the devices.

    Args:
      batch: this host's rows, those of `local_rows`.
      batch_shardings: from `shardings`.
    """

    def put(sharding: NamedSharding, x: np.ndarray) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.make_array_from_process_local_data(sharding, x)
        parts = sharding.num_devices
        batch_size = len(x) * parts // len(local_rows(sharding, parts))
        return jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))

    return {name: put(batch_shardings[name], x) for name, x in batch.items()}
