"""The process of a command: its experiment, from a file and arguments, and the settings of JAX and of the allocator.

Only the command line makes these settings, once, before JAX starts, and only where neither the environment nor JAX's
configuration states them. Importing the library sets nothing.
"""

import ctypes
import dataclasses
import importlib
import importlib.util
import inspect
import math
import os
import socket
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import jax

from transformer_jax import config_json, models, overrides
from transformer_jax import hosts as several
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib

# ---------------------------------------------------------------------------------------------------- experiment files


def variants(module: ModuleType) -> dict[str, Callable[[], Experiment]]:
    """{name: function} of the public functions in `module` that return an Experiment and need no arguments.

    These are `experiment`, and those whose annotation states it.
    """

    def makes_one(name: str, value: Any) -> bool:
        returns = getattr(value, "__annotations__", {}).get("return")
        text = returns if isinstance(returns, str) else ""  # a str after `from __future__ import annotations`
        is_annotated = returns is Experiment or text.strip("\"'").rpartition(".")[2] == "Experiment"
        return name == "experiment" or (is_annotated and not _needed(value))

    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, FunctionType) and value.__module__ == module.__name__
    }
    return {name: value for name, value in own.items() if makes_one(name, value)}


def made(recipe: Callable[[], Experiment], target: str) -> Experiment:
    """The experiment that `recipe`, a function of the file `target`, returns. Raises `InputError` if it is none."""
    name = getattr(recipe, "__name__", "experiment")
    if needed := _needed(recipe):
        raise InputError(f"{name} in {target} needs {', '.join(needed)}; it must make an Experiment without arguments")
    experiment = recipe()
    if not isinstance(experiment, Experiment):
        raise InputError(f"{name}() in {target} returned a {type(experiment).__name__}; it must return an Experiment")
    config_json.to_json(experiment)  # a value that config.json cannot hold has no form on the command line either
    return experiment


def _needed(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a function cannot be called without."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@dataclass(frozen=True)
class Debug:
    """Checks during training."""

    nans: bool = False
    """Stop at the first step that is not finite, and report the operation and the layer."""


def parse(default: Experiment, arguments: list[str], *, workdir: str, description: str, program: str) -> Any:
    """The experiment with its overrides, and the settings of this launch: `.workdir`, `.profile`, `.verify`, `.hosts`.

    `--help` prints all fields and exits.

    Args:
      default: the recipe.
      arguments: the overrides.
      workdir: the default workdir.
      description: the first text of `--help`.
      program: the command's name in `--help`.

    Raises:
      InputError: an unknown field, or a value of another type.
    """
    import tyro

    default_workdir = workdir

    @dataclass(frozen=True)
    class Launch:
        workdir: str = default_workdir
        """Folder of the run; if it holds a checkpoint, the run resumes from it."""
        profile: str = ""
        """FIRST:LAST, the steps whose trace is written to WORKDIR/profile, such as 10:15."""
        verify: bool = True
        """Compare the checkpoint's files with their manifest before resuming from it."""
        log: str = ""
        """Services to log the run to, such as wandb,mlflow,trackio."""
        debug: Debug = field(default_factory=Debug)
        hosts: several.Hosts = field(default_factory=several.Hosts)
        experiment: typing.Annotated[Experiment, tyro.conf.arg(name="")] = field(
            default_factory=lambda: default, metadata={"flat": True}
        )

    return overrides.override(Launch(), arguments, description=description, program=program)


_COUNTS = ("optim.warmup_steps", "optim.decay_steps", "optim.cooldown_steps")
_INTERVALS = ("train.log_every", "evaluate.every", "checkpoint.every")


def smoke(experiment: Experiment, recipe: Experiment) -> tuple[Experiment, str]:
    """The experiment of a smoke run, `--train.steps 30`: its warm-up and intervals are shortened in proportion.

    A smoke run has at most a tenth of the recipe's steps, or fewer than twice its warm-up.

    Args:
      experiment: the recipe with its overrides, which are kept.
      recipe: without overrides.

    Returns:
      The experiment, and the changes in words; "" where it is not a smoke run.
    """
    steps, recipe_steps = experiment.train.steps, recipe.train.steps
    counts = {name: getattr(recipe.optim, name.partition(".")[2], 0) for name in _COUNTS}
    ramps = counts["optim.warmup_steps"] + counts["optim.cooldown_steps"]
    if steps >= recipe_steps or (10 * steps > recipe_steps and 2 * ramps <= steps):
        return experiment, ""
    changes = []
    for name in (*_COUNTS, *_INTERVALS):
        part, field_name = name.split(".")
        before = getattr(getattr(recipe, part), field_name, 0)
        least = 0 if name == "optim.warmup_steps" else 1
        after = max(before * steps // recipe_steps, least)
        value = getattr(experiment, part)
        if before and after != before and getattr(value, field_name, None) == before:
            changed = dataclasses.replace(value, **{field_name: after})
            experiment = dataclasses.replace(experiment, **{part: changed})
            changes.append(f"{name} {before:,} -> {after:,}")
    shortened = f"; shortened in proportion: {', '.join(changes)}" if changes else ""
    return experiment, f"a smoke run, {steps:,} of the recipe's {recipe_steps:,} steps{shortened}"


def parse_profile(text: str) -> tuple[int, int] | None:
    """(10, 15) for the `text` "10:15", None for an empty one. Raises `InputError` for anything else."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--profile {text!r} is not FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15")
    return int(first), int(last)


# --------------------------------------------------------------------------------------------------------- the process


def use_cpu_cores(experiment: Experiment) -> None:
    """Makes a CPU device per core, as far as the batches of `experiment` divide over them, where that is faster."""
    given = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if given or jax.config.values["jax_num_cpu_devices"] >= 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    processes = len(several.names()) or 1
    on_this_machine = several.names().count(socket.gethostname()) or 1  # processes that share its cores
    jax.config.update("jax_num_cpu_devices", num_cpu_devices(experiment, max(cores // on_this_machine, 1), processes))


def keep_freed_memory(experiment: Experiment) -> None:
    """Makes glibc keep the memory that XLA's CPU backend frees, if the steps of `experiment` are large.

    It must be called before the backend exists. XLA allocates a step's temporary memory in every step. Above 32 MiB
    glibc gets it from the kernel and returns it, so that every page is faulted in again in every step, which takes an
    eighth to a fifth of the step (docs/performance.md). Keeping it requires a single arena, which makes small steps a
    little slower; therefore their size is estimated first. Nothing is done where another allocator is used or an
    accelerator's plugin is installed.
    """
    train = experiment.train
    declaration = models.family(experiment.model).declare(experiment.model)
    tokens = train.batch_size // train.accumulate * _tokens(experiment, declaration)
    nbytes = 140 * tokens * _stream(declaration)  # about 140 bytes for each element of the residual stream
    plugins = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    if nbytes < 2**27 or sys.platform != "linux" or any(importlib.util.find_spec(name) for name in plugins):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # the values in malloc.h
    libc.mallopt(m_arena_max, 1)  # only the main arena can hold a block this large
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)  # never trim: BERT-base frees more than 2 GiB, the largest threshold, at once


def num_cpu_devices(experiment: Experiment, cores: int, processes: int = 1) -> int:
    """The largest number of CPU devices per process, at most `cores`, that fits the mesh and divides the batches.

    It is the smallest possible number for a mesh without -1, and for more than 5,000 parameters per token of a batch:
    each device updates all parameters and their gradients are summed over devices, so that one device is then up to 11
    % faster (measured on two cores: BERT-base, Transformer-base, ViT-S/16; from 1,200 to 2,600 parameters per token
    there is no difference).

    Args:
      experiment: the recipe.
      cores: that this process may use.
      processes: the run's processes.
    """
    mesh, train = experiment.mesh, experiment.train
    sizes = dataclasses.astuple(mesh)
    fixed = math.prod(size for size in sizes if size > 0)
    least = max(-(-fixed // processes), 1)
    declaration = models.family(experiment.model).declare(experiment.model)
    tokens = train.batch_size * _tokens(experiment, declaration)
    if -1 not in sizes or params_lib.count(declaration) > 5000 * tokens:
        return least
    part = train.batch_size // train.accumulate
    for count in range(cores, least, -1):
        batch_shards = count * processes // (mesh.tensor * mesh.sequence)
        if (
            count * processes % fixed == 0
            and part % batch_shards == 0
            and (experiment.evaluate.batch_size or part) % batch_shards == 0
        ):
            return count
    return least


def _tokens(experiment: Experiment, declaration: Any) -> float:
    """The approximate number of tokens per example, from its FLOPs: 6 per token and parameter."""
    flops = experiment.task.flops(experiment.model, experiment.data)
    return flops / (6.0 * params_lib.count(declaration)) or experiment.task.tokens(experiment.data)


def _stream(declaration: Any) -> int:
    """Elements of the residual stream of one position, over all layers of all stacks."""
    stacks: dict[str, int] = {}
    for path, p in params_lib.flatten(declaration).items():
        if p.axes[:1] == ("layers",) and "embed" in p.axes:
            stacks[path.partition("blocks/")[0]] = p.shape[0] * p.shape[p.axes.index("embed")]
    return sum(stacks.values())


def keep_compilations() -> None:
    """Sets JAX's compilation cache to a folder per jaxlib version, which only this user can write.

    It is below $TRANSFORMER_JAX_CACHE, or transformer_jax below $XDG_CACHE_HOME or ~/.cache. An entry is machine code,
    which is executed if its key matches; therefore the mode is 0700.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    import jaxlib

    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "transformer_jax"
    folder = Path(os.environ.get("TRANSFORMER_JAX_CACHE") or user) / "compilations" / jaxlib.__version__
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError:
        return  # the folder cannot be written: programs are compiled in every run
    jax.config.update("jax_compilation_cache_dir", str(folder))
