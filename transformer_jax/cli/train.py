"""`train`: an experiment file and its overrides become a run."""

import dataclasses
import functools
import os
import shlex
import shutil
import sys
from pathlib import Path

from transformer_jax import brought, hosts, observe
from transformer_jax.cli import process
from transformer_jax.cli.arguments import PROGRAM, positional, with_types
from transformer_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """Train an experiment, or resume it.

        transformer-jax train EXPERIMENT [VARIANT] [--workdir DIR] [--profile FIRST:LAST] [--FIELD VALUE ...]

    EXPERIMENT is a recipe (`transformer-jax recipes` lists them), a Python file, or a module, with a function
    `experiment() -> Experiment`; VARIANT names another such function in it. `train EXPERIMENT --help` lists every field
    with its meaning, unit and default.

        transformer-jax train causal_lm.stdlib --workdir runs/a --optim.peak-lr 3e-4
        transformer-jax train path/to/mine.py --train.steps 500

    The file may define its own model, task, data, optimiser and observers; --with FILE adds the types of further files.

    --log wandb,mlflow,trackio also reports to these services (docs/logging.md).

    A run whose workdir holds a checkpoint resumes from it; to continue a complete run, give more --train.steps. Ctrl-C,
    SIGTERM and SIGUSR1 end a run after its step. It then saves a checkpoint and prints the command that resumes it; the
    exit code is 128 + the signal.
    """
    modules, given = with_types(arguments)
    if not given or given[0].startswith("-"):
        positional(main, given, 1)
    target, *rest = given
    module, name = brought.read(target)
    where = os.path.relpath(target) if target.endswith(".py") else target
    recipes = process.variants(module)
    chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "experiment"
    if chosen not in recipes:
        raise InputError(f"{target} has no variant {chosen!r}; it has {', '.join(recipes) or 'no experiment()'}")
    recipe = process.made(recipes[chosen], target)
    launched = process.parse(
        recipe,
        rest,
        workdir=str(Path("runs") / (name if chosen == "experiment" else f"{name}-{chosen}")),
        description=module.__doc__ or "",
        program=f"{PROGRAM} train {where}",
    )
    profile = process.parse_profile(launched.profile)
    experiment, shortened = process.smoke(launched.experiment, recipe)
    hosts.start(launched.hosts)
    process.keep_freed_memory(experiment)
    process.use_cpu_cores(experiment)
    process.keep_compilations()
    if shortened:
        observe.banner(1, shortened)
    named = observe.named(launched.log) if launched.log else ()
    experiment = dataclasses.replace(experiment, observers=(*experiment.observers, *named))
    with hosts.together(timeout=launched.hosts.timeout):
        from transformer_jax import restore
        from transformer_jax.train import loop

        types = [module, *modules]
        results = loop.run(
            experiment,
            launched.workdir,
            load=functools.partial(restore.load, types=types),
            types=types,
            recipe=recipe,
            profile=profile,
            debug_nans=launched.debug.nans,
            verify=launched.verify,
        )
    if results.signal:
        again = [*_program(), "train", *(where if a == target else a for a in arguments)]
        print(f"to go on: {shlex.join(again)}", flush=True)
        return 128 + results.signal
    return 0


def _program() -> list[str]:
    """The first words of a command that starts this program: the console script, or the module by this interpreter."""
    if Path(sys.argv[0]).name == PROGRAM:
        return [PROGRAM if shutil.which(PROGRAM) == sys.argv[0] else os.path.relpath(sys.argv[0])]
    python = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
    return [python, "-m", "transformer_jax"]
