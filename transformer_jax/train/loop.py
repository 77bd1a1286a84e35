"""A run, from the experiment to the last number.

    results = run(experiment, "runs/a", load=transformer_jax.load)

The folder is complete at every moment: config.json is written before the first step, and each checkpoint is whole or
absent. Running it again resumes from the newest undamaged checkpoint; the order is always resume -> init_from ->
scratch. A batch is a function of the rows consumed, and the dropout key is a function of the step. Therefore a run that
was stopped and resumed gives the same parameters as one that was not, to the bit, on the same devices.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from transformer_jax import brought, config_json, hosts, observe
from transformer_jax.contracts import RunFacts
from transformer_jax.data import pipeline
from transformer_jax.errors import RunError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import fingerprint, saved, store
from transformer_jax.runs import workdir as workdirs
from transformer_jax.runs.writer import Writer
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import best as best_lib
from transformer_jax.train import finish
from transformer_jax.train.folder import Results, enter
from transformer_jax.train.setup import Run, setup
from transformer_jax.train.steps import scheduled, steps
from transformer_jax.train.stop import StopSignals

__all__ = ["Results", "Run", "run"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # errors of a disk that cannot be written


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    *,
    load: Callable[..., Any],
    types: Any = (),
    recipe: Experiment | None = None,
    profile: tuple[int, int] | None = None,
    debug_nans: bool = False,
    verify: bool = True,
) -> Results:
    """Trains `experiment` in `workdir`, or resumes it there, and returns how it ended.

    Args:
      experiment: the recipe; its `observers` receive the events of the run.
      workdir: a folder, or gs://BUCKET/RUN.
      load: `transformer_jax.load`, which reads the parameters that `experiment.init_from` names.
      types: the user's types that the folder's config may name besides those of `experiment`: a module, a class, or
        several of them.
      recipe: `experiment` without the overrides of a command, to record what they changed.
      profile: (first, last): these steps are traced into WORKDIR/profile.
      debug_nans: stop at the first step that is not finite and report the operation; each step is then waited for.
      verify: False resumes from the newest checkpoint without comparing its files with its manifest.

    Raises:
      InputError: for everything that the user can correct, before anything is written.
      RunError: the run has to stop; what was saved before is unchanged.
    """
    path = store.path(workdir)
    with _explained(path), contextlib.ExitStack() as stack:  # holds the workdir's lock until the last number is written
        folder = enter(experiment, path, stack, types=types, verify=verify)
        if folder.done is not None:
            return folder.done
        run = setup(folder, stack, load=load)
        observe_run(run, stack, recipe)
        with live(run):
            steps(run, profile=profile, debug_nans=debug_nans)
            test, best_step = finish.last_numbers(run)
        return finish.stopped(run) if run.stop.number else finish.finish(run, test, best_step)


def observe_run(run: Run, stack: contextlib.ExitStack, recipe: Experiment | None = None) -> None:
    """Reads what `run` has logged before, and starts the observers.

    Args:
      run: ready for its next step.
      stack: ends the observers.
      recipe: as for the function `run`.
    """
    folder, experiment = run.folder, run.experiment
    rows = observe.rows(folder.local / "metrics.jsonl")
    history = best_lib.read(rows, f"validation/{run.metric}", up_to=run.first_step)
    # Host 0 decides for all hosts, because only host 0 writes the file.
    run.best = best_lib.Best(experiment.checkpoint.best, tuple(map(tuple, hosts.first("the history", history))))
    run.run_id = workdirs.run_id(folder.path)
    facts = RunFacts(
        folder=folder.local,
        workdir=str(folder.path),
        run_id=run.run_id,
        config=config_json.to_json(experiment),
        first_step=run.first_step,
        steps=experiment.train.steps,
        metric=run.metric,
        recipe={} if recipe is None else config_json.to_json(recipe),
        data=run.prepared.facts,
        parameters=params_lib.count(run.program.declaration),
        devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    )
    primary = jax.process_index() == 0
    run.observing = stack.enter_context(observe.start(experiment.observers, facts, primary=primary))


@contextlib.contextmanager
def live(run: Run) -> Iterator[None]:
    """The context in which `run` takes steps: it handles signals, writes checkpoints and prefetches batches."""
    folder, experiment = run.folder, run.experiment
    train, keeps = experiment.train, experiment.checkpoint
    sharding = next(iter(run.program.batch.values())).sharding
    rows = batch_lib.local_rows(sharding, train.batch_size)
    with (
        jax.set_mesh(run.mesh),
        StopSignals() as run.stop,
        Writer(
            folder.path / "checkpoints",
            family=run.program.family,
            config=config_json.to_json(experiment),
            run=run.run_id,
            data=fingerprint.identity(run.prepared),
            code=brought.digests(brought.code_of(experiment)),
            base=run.base,
            further=run.further,
            keep=keeps.keep,
            keep_best=keeps.keep_best,
            best=keeps.best,
            metrics=lambda: run.best.values,
            scheduled=lambda step: scheduled(run, step),
            resumed=folder.saved_step,
            is_owner=folder.check_owner,
            before=folder.publish,  # a resumed run reads its best step from the rows before the checkpoint
            say=lambda line: observe.banner(6, line),
        ) as run.writer,
        contextlib.closing(  # type: ignore[type-var]
            pipeline.batches(run.prepared.train, run.rows, train.batch_size, local_rows=rows)
        ) as run.batches,
    ):
        yield


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Reports a write that a disk or an object store refused in one line, with the newest step and the fix."""
    try:
        yield
    except Exception as error:
        if store.remote(folder) and (explained := store.explain(error)):
            raise RunError(f"{folder}: {explained}") from error
        if not isinstance(error, OSError) or error.errno not in _DISK:
            raise
        newest = saved.latest_step(folder / "checkpoints")
        raise RunError(
            f"{error.filename or folder}: {error.strerror}; the newest step in {folder} is {newest}; make room or "
            "mend the disk, and give the command again"
        ) from error
