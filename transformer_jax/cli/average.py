"""The mean of a run's last checkpoints (Vaswani et al. 2017, section 6.1: the last 5 of the base model, 20 of the big).

It is the mean of the parameters, not of their moving averages, which a run may keep as well for the same purpose.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding

from transformer_jax import config_json, files
from transformer_jax import experiment as experiments
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, identity, mirror, saved
from transformer_jax.runs.workdir import write_json
from transformer_jax.runs.writer import Writer
from transformer_jax.train import state as state_lib

COPIED_BYTES = 2**30  # the largest file beside the checkpoints that is copied, such as the tokenizer


def mean(step_folders: list[Path], target: Any) -> Any:
    """The mean of the parameters of several steps, a tree of float32 NumPy arrays.

    Two copies of the parameters are in memory: the sum, and the step that is added.

    Args:
      step_folders: at least one.
      target: the parameters as `ShapeDtypeStruct`s with shardings.

    Raises:
      InputError: the tree of a step differs; the message names the step and the leaf.
    """
    total = None
    for folder in step_folders:
        params, _ = checkpoint.restore_params(folder, target, ema=False)
        if total is None:
            total = jax.tree.map(lambda x: np.array(x, np.float32), params)
        else:
            jax.tree.map(lambda x, y: np.add(x, y, out=x), total, params)
    return jax.tree.map(lambda x: np.divide(x, np.float32(len(step_folders)), out=x), total)


def create(folder: Path, run: Path, *, last: int, types: Any = ()) -> list[int]:
    """Makes a workdir with one checkpoint, the mean of a run's newest complete steps; returns the steps.

    The workdir has the run's experiment and tokenizer. The number of its step is that of the newest one, and its meta
    lists them all ("averaged"). It has no moments: it serves to evaluate, predict, convert, or start a run
    (`init_from`).

    Args:
      folder: the new workdir, which must not exist.
      run: the run's workdir.
      last: how many steps.
      types: the user's types that the run's config names.

    Raises:
      InputError: the folder exists, the run has fewer steps, or steps of different models. Nothing is written then.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; nothing is overwritten, so name another folder")
    if not (run / "config.json").is_file() or not (run / "checkpoints").is_dir():
        raise InputError(f"{run} is not a run's workdir: config.json and checkpoints/ are not both there")
    if last < 1:
        raise InputError(f"--last is {last}; it must be at least 1")
    held = saved.steps(run / "checkpoints")
    if len(held) < last:
        raise InputError(
            f"{run / 'checkpoints'} holds {len(held)} complete steps ({', '.join(map(str, held)) or 'none'}), and "
            f"--last is {last}; give --last {max(len(held), 1)}, or train with --checkpoint.keep {last}"
        )
    chosen = held[-last:]
    step_folders = [run / "checkpoints" / str(step) for step in chosen]
    meta = saved.read_meta(step_folders[-1])
    experiment = config_json.from_json(meta["config"], where=f"{step_folders[-1] / 'meta'}: config", types=types)
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    declaration = experiments.declare(experiment)
    abstract = params_lib.abstract(params_lib.split(declaration, declaration)[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    state = state_lib.create(mean(step_folders, target), optax.identity())
    state = dataclasses.replace(state, step=jnp.int32(meta["step"]))

    write(folder, run, state, meta, meta["config"], averaged=chosen, base=meta.get("base"))
    return chosen


def write(folder: Path, run: Path, state: Any, meta: Any, config: Any, **facts: Any) -> None:
    """Writes a workdir with one checkpoint, and the tokenizer and code of another run.

    Args:
      folder: the new workdir, which must not exist.
      run: the run's workdir.
      state: to save.
      meta: the metadata of the run's checkpoint.
      config: the experiment, as config.json stores it.
      **facts: further ones for `Writer`.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with mirror.local_mirror(run, ("tokenizer/", "code/")) as (local, _):
            beside = [path for name in ("tokenizer", "code") for path in sorted((local / name).rglob("*"))]
            for path in [path for path in beside if not path.is_dir()]:
                target = part / path.relative_to(local)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.copy(path, target, COPIED_BYTES, inside=local)
        write_json(part / "config.json", config)
        facts |= {"family": meta["family"], "config": config, "run": identity.run_id(part)}
        with Writer(part / "checkpoints", code=meta.get("code", {}), **facts) as writer:
            writer.save(state, rows=meta["rows"])
        part.rename(folder)
        files.sync(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
