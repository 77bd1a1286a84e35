"""Batches on devices: which device holds which rows."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from transformer_jax import sharding
from transformer_jax.errors import InputError

Example = Mapping[str, jax.ShapeDtypeStruct]  # one row of a batch, without the batch dimension


def shardings(example: Example, batch_size: int, mesh: Mesh | AbstractMesh) -> dict[str, NamedSharding]:
    """A sharding for each leaf of a batch: its rows over the batch axes, its length over the sequence axis.

    The length is the longest first dimension of an example. A shorter one, such as the few positions that a masked
    language model predicts, is whole on every device.
    Errors: `InputError` when a dimension does not divide over the mesh.
    """
    places = {}
    length = max((x.shape[0] for x in example.values() if x.shape), default=0)
    for name, x in example.items():
        along = "length" if x.shape[:1] == (length,) else None
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


def place(batch: Mapping[str, np.ndarray], places: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """This host's rows of a batch, as part of the global arrays."""
    return {name: jax.make_array_from_process_local_data(places[name], x) for name, x in batch.items()}
