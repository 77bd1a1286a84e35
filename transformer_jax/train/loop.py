"""A run, from the experiment to the last number.

    results = run(experiment, "runs/a", load=transformer_jax.load)

The folder explains itself at every moment: config.json is there before the first step, and each checkpoint is whole or
absent. Running it again goes on from the newest good one; the order is always resume -> init_from -> scratch. A batch
is a function of the rows consumed and dropout's key one of the step, so a run that was stopped and resumed gives the
parameters of one that was not, to the bit (on the same devices).
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
from transformer_jax.runs import checkpoint, fingerprint, store
from transformer_jax.runs import workdir as workdirs
from transformer_jax.runs.writer import Writer
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import best as best_lib
from transformer_jax.train import finish
from transformer_jax.train.place import Results, enter
from transformer_jax.train.setup import Run, setup
from transformer_jax.train.steps import steps
from transformer_jax.train.stop import StopSignals

__all__ = ["Results", "Run", "run"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # what a disk may answer to a write


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    *,
    load: Callable[..., Any],
    types: Any = (),
    profile: tuple[int, int] | None = None,
    debug_nans: bool = False,
    verify: bool = True,
) -> Results:
    """Trains `experiment` in `workdir`, or goes on with it, and returns how it ended.

    Args:
      experiment: the recipe; its `observers` hear of the run.
      workdir: a folder, or gs://BUCKET/RUN.
      load: `transformer_jax.load`, which reads the parameters that `experiment.init_from` names.
      types: the user's types that the folder's config may name besides those of `experiment`: a module, a class, or
        several of them.
      profile: (first, last): these steps are traced into WORKDIR/profile.
      debug_nans: stop at the first step that is not finite, and say which operation it is; no step runs ahead.
      verify: False goes on from the newest checkpoint without comparing its files with its manifest.
    Raises:
      InputError: for all that the user can mend, before anything is written.
      RunError: when the run has to stop, with what was saved before as it was.
    """
    folder = store.path(workdir)
    with _explained(folder), contextlib.ExitStack() as held:  # the workdir's lock, until the last number is written
        place = enter(experiment, folder, held, types=types, verify=verify)
        if place.done is not None:
            return place.done
        run = setup(place, held, load=load)
        observe_run(run, held)
        with live(run):
            steps(run, profile=profile, debug_nans=debug_nans)
            test, best_step = finish.last_numbers(run)
        return finish.stopped(run) if run.stop.number else finish.finish(run, test, best_step)


def observe_run(run: Run, held: contextlib.ExitStack) -> None:
    """Starts the observers, and reads what the run has logged before."""
    place, experiment, first = run.place, run.experiment, run.first_step
    rows = observe.read_rows(place.near / "metrics.jsonl")
    history = best_lib.read(rows, f"validation/{run.metric}", up_to=first)
    # Host 0's: it is about to write that file.
    run.best = best_lib.Best(experiment.checkpoint.best, tuple(map(tuple, hosts.first("the history", history))))
    run.run_id = workdirs.run_id(place.folder)
    facts = RunFacts(
        folder=place.near,
        workdir=str(place.folder),
        run_id=run.run_id,
        config=config_json.to_json(experiment),
        first_step=first,
        steps=experiment.train.steps,
        metric=run.metric,
    )
    primary = jax.process_index() == 0
    run.observing = held.enter_context(observe.start(experiment.observers, facts, primary=primary))


@contextlib.contextmanager
def live(run: Run) -> Iterator[None]:
    """While steps are taken: signals stop the run after its step, checkpoints are written, batches are made ready."""
    place, experiment = run.place, run.experiment
    train, keeps = experiment.train, experiment.checkpoint
    sharding = next(iter(run.program.batch.values())).sharding
    rows = batch_lib.here(sharding, train.batch_size)
    with (
        jax.set_mesh(run.mesh),
        StopSignals() as run.stop,
        Writer(
            place.folder / "checkpoints",
            family=run.program.family,
            config=config_json.to_json(experiment),
            run=run.run_id,
            data=fingerprint.identity(run.prepared),
            code=brought.digests(brought.code_of(experiment)),
            keep=keeps.keep,
            keep_best=keeps.keep_best,
            best=keeps.best,
            metrics=lambda: run.best.values,
            resumed=place.saved_step,
            still_ours=place.still_ours,
            before=place.publish,  # the rows up to a step, by which a resumed run knows its best
            say=lambda line: observe.banner(6, line),
        ) as run.writer,
        contextlib.closing(  # type: ignore[type-var]
            pipeline.batches(run.prepared.train, run.rows, train.batch_size, here=rows)
        ) as run.batches,
    ):
        yield


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What a disk or an object store answers to a write becomes one line, with what is there and what to do."""
    try:
        yield
    except Exception as error:
        if store.remote(folder) and (explained := store.explain(error)):
            raise RunError(f"{folder}: {explained}") from error
        if not isinstance(error, OSError) or error.errno not in _DISK:
            raise
        newest = checkpoint.latest_step(folder / "checkpoints")
        raise RunError(
            f"{error.filename or folder}: {error.strerror}; the newest step in {folder} is {newest}; make room or "
            "mend the disk, and give the command again"
        ) from error
