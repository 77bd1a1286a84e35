"""The model that an adapter was trained on. No checkpoint of the run holds it: each names its folder and its digest.

{"path": "runs/mlm", "absolute": "/home/me/runs/mlm", "digest": "5f0c..."}        # in a step's meta, as "base"
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer_jax import adapters, compress, models
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import store


def identity(path: str, frozen: Any) -> dict[str, str]:
    """What a checkpoint says of its base.

    Args:
      path: the path of the base's folder, as the run was given it.
      frozen: the base's parameters.
    """
    absolute = path if "://" in path else str(Path(path).absolute())
    return {"path": path, "absolute": absolute, "digest": digest(frozen)}


def digest(frozen: Any, dtype: Any = None) -> str:
    """A hash of the parameters `frozen`: of every path, shape, dtype and byte. Each process of a run calls it.

    Args:
      frozen: the parameters.
      dtype: that they are converted to first; None: their own.
    """
    total = hashlib.sha256()
    for path, leaf in sorted(params_lib.flatten(frozen).items()):
        if path.endswith(adapters.LEAVES):
            continue
        gathered = leaf if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable else _gathered(leaf)
        array = np.ascontiguousarray(jax.device_get(gathered), dtype)
        total.update(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def _gathered(leaf: jax.Array) -> Any:
    return multihost_utils.process_allgather(leaf, tiled=True)


def tree(loaded: Any, config: Any, rule: compress.Rule, log: Callable[[str], None] = lambda line: None) -> Any:
    """The parameters of a model that a run starts from, as the run's model needs them, with an adapter merged.

    Args:
      loaded: a `restore.Loaded`.
      config: the config of the run's model.
      rule: how the run stores kernels.
      log: called with each line to print.
    """
    if adapters.is_adapted(loaded.params):
        log("its adapter is merged")
    params = compress.unpack(adapters.merge(loaded.params))
    return rule.apply(models.hook(config, "resized")(params, loaded.config, config, log))


def of(found: Any, declaration: Any) -> Any:
    """The parameters that an adapter does not train: those of its base, and the adapter's scales.

    Args:
      found: the parameters of `tree`, float32.
      declaration: the declaration of the run, with the adapter's leaves.

    Raises:
      InputError: the base lacks a parameter, or has one of another shape.
    """
    flat, taken = params_lib.flatten(found), params_lib.flatten(adapters.scales(declaration))
    for path, p in params_lib.flatten(params_lib.split(declaration, declaration)[1]).items():
        if path in taken:
            continue
        if path not in flat:
            raise InputError(
                f"the model that the adapter is of has no {path}, which would stay as it was drawn; train it: "
                f"--adapter.full {path.partition('/')[0]}/"
            )
        if flat[path].shape != p.shape:
            raise InputError(
                f"the model that the adapter is of has {path} of shape {list(flat[path].shape)}, not {list(p.shape)}"
            )
        taken[path] = flat[path]
    return params_lib.nested(taken)


def refuse_changed(frozen: Any, params: Any) -> None:
    """Raises `InputError` where the start of a run has changed a parameter that is not trained: a head drawn again, or
    with its columns in another order.

    Args:
      frozen: the value that `of` returned.
      params: the parameters that the run starts with.
    """
    flat = params_lib.flatten(params)
    for path, leaf in params_lib.flatten(frozen).items():
        if path in flat and flat[path] is not leaf:
            raise InputError(
                f"{path} is not as in the model that the adapter is of; train it: "
                f"--adapter.full {path.partition('/')[0]}/"
            )


def check(known: Mapping[str, str], frozen: Any, path: str) -> None:
    """Raises `InputError` where the parameters `frozen`, read from `path`, are not those of the base `known`."""
    if digest(frozen) != known["digest"]:
        raise InputError(
            f"{path} is not the model that this adapter was trained on: its parameters have another digest than those "
            f"of {known['path']} when the run began; name the right folder"
        )


def folder(known: Mapping[str, str], step_folder: Path) -> str:
    """The folder of the base of a step: where it was, or beside the run.

    Args:
      known: what the step says of its base.
      step_folder: the folder of the step, WORKDIR/checkpoints/STEP.

    Raises:
      InputError: it is in none of these places.
    """
    if known["path"].startswith("hf://"):
        return known["path"]
    beside = store.absolute(step_folder).parents[2] / Path(known["path"]).name
    for path in (known["path"], known["absolute"], str(beside)):
        if store.path(path).is_dir():
            return path
    raise InputError(
        f"{step_folder} is an adapter of {known['path']}, which is not here; name its folder: --base DIR, "
        "or load(path, base=...)"
    )
