"""The mean of a run's last checkpoints (Vaswani et al. 2017, section 6.1: the last 5 of the base model, 20 of the big).

It is the mean of the parameters themselves, not of their moving averages, where a run keeps those too; the two are
other ways to the same end.
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

from transformer_jax import config_json, models
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, identity, store
from transformer_jax.runs.writer import Writer
from transformer_jax.train import state as state_lib


def mean(step_folders: list[Path], target: Any) -> Any:
    """The mean of the parameters of these steps, float32 in NumPy.

    Two copies of the parameters are in memory: the sum, and what is being added. Arguments: target,
    `ShapeDtypeStruct`s with shardings. Errors: `InputError` naming the step and the leaf in which its tree differs.
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
    """A new workdir with the mean of a run's newest `last` complete steps as its one checkpoint; returns the steps.

    The run's experiment and tokenizer are the new folder's; its step is the newest of them, and its meta says them all
    ("averaged"). There are no moments, so it is to evaluate, predict, convert, or begin a run from (`init_from`).

    Errors: `InputError`, with nothing left behind, for a folder that is there, a run with fewer steps, and steps of
      different models.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; nothing is overwritten, so name another folder")
    if not (run / "config.json").is_file() or not (run / "checkpoints").is_dir():
        raise InputError(f"{run} is not a run's workdir: config.json and checkpoints/ are not both there")
    if last < 1:
        raise InputError(f"--last is {last}; it must be at least 1")
    held = checkpoint.steps(run / "checkpoints")
    if len(held) < last:
        raise InputError(
            f"{run / 'checkpoints'} holds {len(held)} complete steps ({', '.join(map(str, held)) or 'none'}), and "
            f"--last is {last}; give --last {max(len(held), 1)}, or train with --checkpoint.keep {last}"
        )
    chosen = held[-last:]
    step_folders = [run / "checkpoints" / str(step) for step in chosen]
    meta = checkpoint.read_meta(step_folders[-1])
    experiment = config_json.from_json(meta["config"], where=f"{step_folders[-1] / 'meta'}: config", types=types)
    place = SingleDeviceSharding(jax.local_devices()[0])
    abstract = params_lib.abstract(models.family(experiment.model).declare(experiment.model))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract)
    state = state_lib.create(mean(step_folders, target), optax.identity())
    state = dataclasses.replace(state, step=jnp.int32(meta["step"]))

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with store.near(run, ("config.json", "tokenizer/", "code/")) as (near, _):
            shutil.copyfile(near / "config.json", part / "config.json")
            for name in ("tokenizer", "code"):
                if (near / name).is_dir():
                    shutil.copytree(near / name, part / name)
        facts = {"family": meta["family"], "config": meta["config"], "run": identity.run_id(part)}
        facts["code"] = meta.get("code", {})
        with Writer(part / "checkpoints", averaged=chosen, **facts) as writer:
            writer.save(state, rows=meta["rows"])
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return chosen
