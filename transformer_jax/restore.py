"""Loading a model: `load(path)`.

    loaded = transformer_jax.load("runs/a")                    # a workdir: its newest complete step
    loaded = transformer_jax.load("runs/a/checkpoints/1200")   # one step; needs nothing around it but the tokenizer
    loaded = transformer_jax.load("gs://bucket/runs/a")        # either of these in an object store
    loaded = transformer_jax.load("downloads/gpt2")            # a Hugging Face snapshot folder
    loaded = transformer_jax.load("hf://openai-community/gpt2@main")   # the same, downloaded from the Hub
    logits_BTV = loaded.family.apply(loaded.params, loaded.config, tokens_BT)

A step describes itself: its meta holds the resolved experiment, whose type names are looked up in the package's own
table and among the `types` that the caller provides. Only the parameters are read, or their average where the run kept
one, never the moments. Devices and compute dtype are chosen when loading, so that a checkpoint from a TPU can be
evaluated on a CPU.
"""

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from transformer_jax import adapters, brought, compress, config_json, hf, hub, models
from transformer_jax import experiment as experiments
from transformer_jax.data import tokenizers
from transformer_jax.errors import InputError
from transformer_jax.hub import peft
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, mirror, saved, store, versions
from transformer_jax.runs import frozen as frozen_lib

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to compute.

    Attributes:
      family: the module with the model's functions, such as `models.gpt`.
      config: the family's Config, with the compute dtype of this machine.
      params: the parameter tree, on its devices.
      tokenizer: None where the folder has none.
      task: the task of the model, such as `tasks.CausalLM`; None for a snapshot with a head that no task uses.
      step: optimiser steps taken; None for a Hugging Face snapshot.
      bytes_read: bytes of weights read from the disk.
      adapter: the rule of the adapter in `params`; None: they have none, and are the family's own tree.
      base: the folder of the model that the adapter is of; "": there is no adapter.
    """

    family: ModuleType
    config: Any
    params: Any
    tokenizer: tokenizers.Tokenizer | None
    task: Any
    step: int | None
    bytes_read: int
    adapter: adapters.Lora | None = None
    base: str = ""


def load(
    path: str | os.PathLike[str],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    sharding: Mesh | Sharding | Any = None,
    verify: bool = True,
    types: Any = (),
    only: str | Callable[[str], bool] | None = None,
    base: str | os.PathLike[str] | None = None,
) -> Loaded:
    """The model in a workdir (its newest undamaged step), in one step's folder, or in a Hugging Face snapshot folder.

    Args:
      path: a local folder, one in an object store, or the name of a model on the Hub (`hf`).
      dtype: the dtype of the parameters and of the computation: float32, bfloat16 or float16. None: float32 parameters,
        and the compute dtype of the experiment's precision policy on this machine.
      sharding: a mesh, on which the rule table shards each parameter; one sharding for all parameters; or a tree of
        shardings. None: the first device.
      verify: first compare the files that are read with the step's manifest, or with the digests that the Hub states.
        A damaged step of a workdir is skipped with a warning. False: read the files as they are.
      types: the user's types that the run's config names: a module, classes, or several of either. Nothing is imported
        because a checkpoint names it.
      only: a part of the model, such as "encoder" or "blocks/attention", or a function of a parameter's path,
        "blocks/mlp/up/kernel", that returns whether to read it. `params` has this part alone. To verify the files, all
        their bytes are read.
      base: for a run that trained an adapter, the folder of its base model; None: the folder that the run used, or one
        beside the run. The digest of the model is compared with the one that the run recorded.

    Raises:
      InputError: the path is none of the three, the workdir has no complete step, or a leaf is missing, unexpected or
        has another shape.
      saved.Damaged: an `InputError`; the files of the step are not as they were written.
    """
    folder = hf.local(path, verify=verify) if hf.named(path) else store.path(path)
    if dtype is not None and jnp.dtype(dtype).name not in DTYPES:
        raise InputError(f"dtype is {jnp.dtype(dtype).name}; it must be one of {', '.join(DTYPES)}")
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{path} {what}; give a workdir, a step's folder or a local Hugging Face snapshot folder")
    if (folder / "meta").is_dir():

        def step(folder: Path) -> Loaded:
            if verify:
                saved.check_files(folder, items=[saved.weights(folder)])
            return _load_step(folder, dtype, sharding, types, only, base)

        return saved.undeleted(folder, step)
    if not store.remote(folder) and peft.is_adapter(folder):
        return _load_adapter(folder, dtype, sharding, types, only, base)
    if not store.remote(folder) and hub.is_snapshot(folder):
        return _load_snapshot(folder, dtype, sharding, only)
    if (folder / "checkpoints").is_dir():
        steps = folder / "checkpoints"  # `of_newest` tries again if a trainer deletes the step that is being read
        return saved.of_newest(steps, lambda step: _load_step(step, dtype, sharding, types, only, base), verify=verify)
    raise InputError(
        f"{path} is neither a workdir (no checkpoints/ in it), nor a step's folder (no meta/), nor a Hugging Face "
        "snapshot (no config.json with a model_type)"
    )


def _load_step(folder: Path, dtype: Any, sharding: Any, types: Any, only: Any, base: Any) -> Loaded:
    meta = saved.read_meta(folder)
    if others := versions.changed(meta):
        logging.getLogger("transformer_jax").info("%s was written with other versions: %s", folder, others)
    experiment = config_json.from_json(meta["config"], where=f"{folder / 'meta'}: config", types=types)
    for name in brought.changed(meta.get("code", {}), brought.code_of(experiment)):
        warnings.warn(f"{name} has changed since {folder} was written; the parameters' tree is compared", stacklevel=3)
    config = _compute_in(experiment.model, dtype, experiment.precision)
    family = models.family(config)
    declaration = experiments.declare(experiment, config)
    target, frozen, where = _target(declaration, sharding), None, ""
    trained, of_base = params_lib.split(target, declaration) if experiment.adapter.rank else (target, None)
    if of_base is None:
        trained = _part(trained, only)
    else:
        where = frozen_lib.folder(meta["base"], folder) if base is None else os.fspath(base)
        found = frozen_lib.tree(load(where, dtype="float32", types=types), config, experiment.compress)
        frozen = frozen_lib.of(found, declaration)
        frozen_lib.check(meta["base"], frozen, where)
        frozen = jax.tree.map(lambda x, leaf: jax.device_put(_cast(x, dtype), leaf.sharding), frozen, of_base)
    unused = None if only is None else lambda name: not _chosen(name, only)
    params, bytes_read = checkpoint.restore_params(folder, trained, dtype=dtype, verify=False, unused=unused)
    params = params if frozen is None else _part(params_lib.join(params, frozen), only)
    workdir = store.absolute(folder).parent.parent  # `folder` is WORKDIR/checkpoints/STEP
    with mirror.local_mirror(workdir, ("tokenizer/",)) as (local, _):
        spec = getattr(experiment.data, "tokenizer", None)
        tokenizer = tokenizers.load(local / "tokenizer", spec) if (local / "tokenizer").is_dir() else None
    task, rule = experiment.task, experiment.adapter if experiment.adapter.rank else None
    return Loaded(family, config, params, tokenizer, task, meta["step"], bytes_read, rule, where)


def _load_adapter(folder: Path, dtype: Any, sharding: Any, types: Any, only: Any, base: Any) -> Loaded:
    """The model of PEFT's adapter in `folder`, whose base is read first."""
    where = os.fspath(base) if base is not None else peft.base_of(folder)
    beside = folder.parent / Path(where).name
    where = str(beside) if where and base is None and not Path(where).is_dir() and beside.is_dir() else where
    if not where or not (hf.named(where) or store.path(where).is_dir()):
        named = f", {where}," if where else ""
        raise InputError(f"{folder} is an adapter; its base{named} is not here: name its folder, --base DIR, or base=")
    loaded = load(where, dtype="float32", types=types)
    rule, params = peft.read(folder, loaded.config, compress.unpack(adapters.merge(loaded.params)))
    declaration = adapters.declare(loaded.family.declare(loaded.config), rule)
    target = _target(declaration, sharding)
    params = jax.tree.map(lambda x, leaf: jax.device_put(_cast(x, dtype), leaf.sharding), params, target)
    config = _compute_in(loaded.config, dtype, experiments.Precision())
    params = _part(params, only)
    return dataclasses.replace(loaded, config=config, params=params, step=None, adapter=rule, base=where)


def _cast(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in `dtype`, if that is given and x is not of integers."""
    return x if dtype is None or not jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype)


def _load_snapshot(folder: Path, dtype: Any, sharding: Any, only: Any) -> Loaded:
    config, on_host, tokenizer, bytes_read = hub.read(folder, dtype=dtype, chosen=lambda path: _chosen(path, only))
    config = _compute_in(config, dtype, experiments.Precision())
    family = models.family(config)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, _part(_target(family.declare(config), sharding), only))
    return Loaded(
        family, config, jax.device_put(on_host, shardings), tokenizer, hub.task(folder, config), None, bytes_read
    )


def _chosen(path: str, only: str | Callable[[str], bool] | None) -> bool:
    """Whether `load`'s `only` names this parameter, "blocks/mlp/up/kernel"."""
    if isinstance(only, str):
        return f"{path}/".startswith(f"{only.rstrip('/')}/")
    return only is None or bool(only(path))


def _part(tree: Any, only: str | Callable[[str], bool] | None) -> Any:
    """The nested dict of the leaves that `only` names. Raises `InputError` where it names none."""
    flat = params_lib.flatten(tree)
    found = {path: leaf for path, leaf in flat.items() if _chosen(path, only)}
    if not found:
        names = ", ".join(dict.fromkeys(path.partition("/")[0] for path in flat))
        raise InputError(f"only={only!r} names no parameter of this model; its parts are {names}")
    return traverse_util.unflatten_dict(found, sep="/")


def _compute_in(config: Any, dtype: Any, precision: experiments.Precision) -> Any:
    name = experiments.compute_dtype(precision) if dtype is None else jnp.dtype(dtype).name
    # "auto" is this machine's attention kernel; the run may have used one that this machine lacks.
    return experiments.computed_in(config, name, attention="auto")


def _target(declaration: Any, sharding: Any) -> Any:
    """The parameters as `ShapeDtypeStruct`s, with the shardings that the argument of `load` states."""
    if isinstance(sharding, Mesh):
        return params_lib.abstract(declaration, sharding)
    target = params_lib.abstract(declaration)
    if sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda leaf: sharding, target) if isinstance(sharding, Sharding) else sharding
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), target, shardings)
