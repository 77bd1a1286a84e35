"""Batches on devices: which device holds which rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformer_jax import sharding
from transformer_jax.errors import InputError

Example = Mapping[str, jax.ShapeDtypeStruct]  # one row of a batch, without the batch dimension


def shardings(example: Example, batch_size: int, mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """A sharding for each leaf of a batch: its rows over the batch axes, its length over the sequence axis.

    The length is the longest dimension of the vectors of an example. A shorter one, such as the few positions that a
    masked language model predicts, is whole on every device, and so is an image.
    Errors: `InputError` when a dimension does not divide over the mesh.
    """
    if "weights" not in example:
        raise InputError(
            f"the task's example has {', '.join(example)}, but no 'weights': 1 for an example that counts, or for each "
            "of its positions, and 0 for padding"
        )
    places = {}
    length = max((x.shape[0] for x in example.values() if len(x.shape) == 1), default=0)
    for name, x in example.items():
        along = "length" if x.shape == (length,) else None
        axes = ("batch", along, *(None,) * len(x.shape))[: len(x.shape) + 1]
        spec = sharding.partition_spec(axes, (batch_size, *x.shape), mesh, name=f"the batch's {name!r}")
        places[name] = NamedSharding(mesh, spec)  # type: ignore[arg-type]
    return places


def abstract(example: Example, batch_size: int, places: Mapping[str, NamedSharding]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, to compile for."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype, sharding=places[name])
        for name, x in example.items()
    }


def check_parts(batch_size: int, accumulate: int, mesh: Mesh | AbstractMesh) -> None:
    """Errors: `InputError` when a device's rows do not divide into the accumulated parts."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * accumulate):
        raise InputError(
            f"train.batch_size {batch_size} does not divide by {devices} devices x train.accumulate {accumulate}; "
            f"the nearest that does is {max(round(batch_size / (devices * accumulate)), 1) * devices * accumulate}"
        )


def here(place: NamedSharding, batch_size: int) -> Sequence[int]:
    """The rows of a global batch that this host's devices hold, in order: what it has to read.

    Hosts whose devices hold the same rows, and share a length or the heads, read the same. On a torus of TPUs a host's
    rows need not be neighbours.
    """
    rows = NamedSharding(place.mesh, PartitionSpec(*place.spec[:1]))
    held: Any = rows.addressable_devices_indices_map((batch_size,))
    parts = {part.indices(batch_size)[:2] for (part,) in held.values()}
    return [row for start, stop in sorted(parts) for row in range(start, stop)]


def place(batch: Mapping[str, np.ndarray], places: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """This host's rows of a batch, those of `here`, as part of the global arrays."""

    def put(place: NamedSharding, x: np.ndarray) -> jax.Array:
        if place.is_fully_addressable:
            return jax.make_array_from_process_local_data(place, x)
        parts = place.num_devices
        batch_size = len(x) * parts // len(here(place, parts))
        return jax.make_array_from_process_local_data(place, x, (batch_size, *x.shape[1:]))

    return {name: put(places[name], x) for name, x in batch.items()}
