"""From an experiment file and arguments to a process that is ready to run it.

The settings here belong to the command line alone: they are made once, before JAX starts, and only where neither the
environment nor the configuration says otherwise. Importing the library sets nothing.
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
    """The module's own public functions that make an Experiment without arguments: `experiment`, and those annotated to
    return one."""

    def makes_one(name: str, value: Any) -> bool:
        returns = getattr(value, "__annotations__", {}).get("return")
        text = returns if isinstance(returns, str) else ""  # from __future__ import annotations
        says_so = returns is Experiment or text.strip("\"'").rpartition(".")[2] == "Experiment"
        return name == "experiment" or (says_so and not _needed(value))

    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, FunctionType) and value.__module__ == module.__name__
    }
    return {name: value for name, value in own.items() if makes_one(name, value)}


def made(recipe: Callable[[], Experiment], target: str) -> Experiment:
    """What a function of an experiment file gives. Raises `InputError` where it is no Experiment."""
    name = getattr(recipe, "__name__", "experiment")
    if needed := _needed(recipe):
        raise InputError(f"{name} in {target} needs {', '.join(needed)}; it must make an Experiment without arguments")
    experiment = recipe()
    if not isinstance(experiment, Experiment):
        raise InputError(f"{name}() in {target} returned a {type(experiment).__name__}; it must return an Experiment")
    config_json.to_json(experiment)  # what it cannot hold has no place on the command line either
    return experiment


def _needed(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a function cannot be called without."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@dataclass(frozen=True)
class Debug:
    """What a launch looks for besides training."""

    nans: bool = False
    """Stop at the first step that is not finite, and say which operation of which layer it is."""


def parse(default: Experiment, arguments: list[str], *, workdir: str, description: str, program: str) -> Any:
    """The experiment with its overrides and what belongs to this launch alone: `.workdir .profile .verify .hosts`.

    Errors: `InputError` for an unknown name or a wrong type. `--help` prints and exits.
    """
    import tyro

    default_workdir = workdir

    @dataclass(frozen=True)
    class Launch:
        workdir: str = default_workdir
        """Folder of the run; one that holds a checkpoint goes on from it."""
        profile: str = ""
        """FIRST:LAST, the steps whose trace is written to WORKDIR/profile, such as 10:15."""
        verify: bool = True
        """Compare the checkpoint's files with their manifest before going on from it."""
        log: str = ""
        """Services that hear of the run as well, such as wandb,mlflow,trackio."""
        debug: Debug = field(default_factory=Debug)
        hosts: several.Hosts = field(default_factory=several.Hosts)
        experiment: typing.Annotated[Experiment, tyro.conf.arg(name="")] = field(
            default_factory=lambda: default, metadata={"flat": True}
        )

    return overrides.override(Launch(), arguments, description=description, program=program)


_COUNTS = ("optim.warmup_steps", "optim.decay_steps", "optim.cooldown_steps")
_INTERVALS = ("train.log_every", "evaluate.every", "checkpoint.every")


def smoke(experiment: Experiment, recipe: Experiment) -> tuple[Experiment, str]:
    """A smoke run of a recipe, `--train.steps 30`: its warm-up and intervals are shortened in proportion.

    It is one where the steps are at most a tenth of the recipe's, or where half of them would not hold its warm-up.

    Args:
      experiment: the recipe with its overrides. What these say of a warm-up or of an interval is kept.
      recipe: as its file gives it.

    Returns: the experiment, and what was shortened, in words; "" where it is no smoke run.
    """
    steps, whole = experiment.train.steps, recipe.train.steps
    counts = {name: getattr(recipe.optim, name.partition(".")[2], 0) for name in _COUNTS}
    ramps = counts["optim.warmup_steps"] + counts["optim.cooldown_steps"]
    if steps >= whole or (10 * steps > whole and 2 * ramps <= steps):
        return experiment, ""
    said = []
    for name in (*_COUNTS, *_INTERVALS):
        part, field_name = name.split(".")
        before = getattr(getattr(recipe, part), field_name, 0)
        least = 0 if name == "optim.warmup_steps" else 1
        after = max(before * steps // whole, least)
        held = getattr(experiment, part)
        if before and after != before and getattr(held, field_name, None) == before:
            changed = dataclasses.replace(held, **{field_name: after})
            experiment = dataclasses.replace(experiment, **{part: changed})
            said.append(f"{name} {before:,} -> {after:,}")
    shortened = f"; shortened in proportion: {', '.join(said)}" if said else ""
    return experiment, f"a smoke run, {steps:,} of the recipe's {whole:,} steps{shortened}"


def parse_profile(text: str) -> tuple[int, int] | None:
    """ "10:15" -> (10, 15); an empty text -> None. Errors: `InputError` for anything else."""
    if not text:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--profile {text!r} is not FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15")
    return int(first), int(last)


# --------------------------------------------------------------------------------------------------------- the process


def use_cpu_cores(experiment: Experiment) -> None:
    """Makes a CPU device of each core, as far as the batches divide over them, where that is faster than one of all."""
    given = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if given or jax.config.values["jax_num_cpu_devices"] >= 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    processes = len(several.names()) or 1
    here = several.names().count(socket.gethostname()) or 1  # each has its share of this machine
    jax.config.update("jax_num_cpu_devices", num_cpu_devices(experiment, max(cores // here, 1), processes))


def keep_freed_memory(experiment: Experiment) -> None:
    """Makes glibc keep what XLA's CPU backend frees, where steps are large; call it before the backend exists.

    XLA allocates a step's temporary memory anew each time. Above 32 MiB glibc takes it from the kernel and gives it
    back, so every page of it is faulted in again in every step: an eighth to a fifth of the step (docs/performance.md).
    Steps with less lose a little by the single arena that this needs, hence the estimate. Nothing is done where
    another library than glibc allocates, or an accelerator's plugin is installed.
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
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    libc.mallopt(m_arena_max, 1)  # an arena other than the main one cannot hold a block this large
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)  # never: the largest number, 2 GiB, is less than what BERT-base frees at once


def num_cpu_devices(experiment: Experiment, cores: int, processes: int = 1) -> int:
    """The most devices, at most `cores`, that each of the processes can have: they fit the mesh and divide the batches.
    A mesh without -1 has its way.

    Of a large model with few tokens in a batch, the fewest: each device updates all parameters, and their gradients are
    summed over the devices. Measured on two cores, a step on one device against two: 0.89 of the time for BERT-base
    (107,000 parameters a token), 0.93 for Transformer-base (31,000), 0.91 for ViT-S/16 (14,000); from 1,200 to 2,600
    they are equal.
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
    """About how many positions of an example go through the parameters: what its FLOPs say, 6 for each of both."""
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
    """Keeps compiled programs between runs, one folder per jaxlib version, which only this user can write.

    In $TRANSFORMER_JAX_CACHE, else in transformer_jax below $XDG_CACHE_HOME or ~/.cache. An entry is machine code that
    is run when its key matches, hence the mode 0700.
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
        return  # a home that cannot be written compiles anew each time
    jax.config.update("jax_compilation_cache_dir", str(folder))
