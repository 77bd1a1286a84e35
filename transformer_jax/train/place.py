"""A run's folder, entered: what is in it, whether the run may go on there, its lock."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from transformer_jax import brought, config_json, hosts, observe
from transformer_jax.experiment import Experiment
from transformer_jax.runs import checkpoint, fingerprint, lock, store, store_lock
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import start

say = observe.banner


@dataclass(frozen=True)
class Results:
    """How a run ended.

    Fields:
      step: optimiser steps taken.
      report: the validation numbers by name, and as strings their conventions; empty when a signal ended the run.
      signal: the number of the signal that ended the run; 0 when it is complete.
      test: the numbers of the test set by the best checkpoint; empty where there is no test set.
    """

    step: int
    report: Mapping[str, float | str]
    signal: int = 0
    test: Mapping[str, float | str] = field(default_factory=dict)


@dataclass
class Place:
    """A run's folder, entered.

    Fields:
      experiment: what is to be run there: settled with the data, and with what the folder holds.
      folder: the workdir. near: where this host writes what is no checkpoint: the workdir, or a local mirror of one
        that is in an object store.
      publish: uploads what has changed in `near`; nothing to do on a disk.
      saved_step: the newest good step; None where there is none.
      is_new: whether nothing of a run is there yet.
      done: the results, where the run is complete and nothing is to be done.
      still_ours: raises `lock.Lost` where another run has taken the folder.
    """

    experiment: Experiment
    folder: Path
    near: Path
    publish: Callable[[], None]
    saved_step: int | None
    is_new: bool
    seen: dict[str, str]
    done: Results | None = None
    still_ours: Callable[[], None] = lambda: None

    def named(self, line: str) -> str:
        """A line for people, with the workdir's name in place of its mirror's."""
        return line.replace(str(self.near), str(self.folder))


def enter(
    experiment: Experiment, folder: Path, held: contextlib.ExitStack, *, types: Any = (), verify: bool = True
) -> Place:
    """Looks at a folder, compares it with the experiment, and takes its lock where a run is in it already.

    Args:
      experiment: what is to be run.
      folder: the workdir, or where it will be.
      held: closes what is opened here.
      types: the user's types that the folder's config may name besides those of `experiment`.
      verify: compare the files of the step to go on from with its manifest.
    Raises:
      InputError: where the folder holds another run, or something that is no run.
    """
    say(1, f"workdir {folder}")
    seen = workdirs.seen(folder)
    experiment = dataclasses.replace(experiment, task=experiment.task.settle(experiment.data))
    config_json.refuse_unreadable(experiment)
    stored = workdirs.stored_experiment(folder, [brought.types_in(experiment), types])
    if stored is not None:
        experiment = dataclasses.replace(experiment, order=stored.order)  # a run keeps its rule to its end
        if experiment.init_from and experiment.init_from == stored.init_from:  # as it was adopted when the run began
            experiment = start.adopt(experiment, stored.model, lambda line: None, task=stored.task)
    for line in workdirs.check(folder, experiment, types):
        say(1, f"changed since it was last run: {line}")
    saved_step = checkpoint.latest_step(folder / "checkpoints")
    done = workdirs.read_results(folder)
    if not hosts.alone():
        hosts.agree("what is to be run", fingerprint.program(experiment, saved_step, done.get("step")))
    if (results := _complete(experiment, saved_step, done)) is not None:
        return Place(experiment, folder, folder, lambda: None, saved_step, False, seen, done=results)

    near, publish = held.enter_context(store.near(folder, ("metrics.jsonl", "tokenizer/")))
    is_new = "config.json" not in seen
    place = Place(experiment, folder, near, publish, None, is_new, seen)
    if not is_new:  # a new folder is made, and locked, when nothing is left to refuse
        take(place, held)
    place.saved_step = checkpoint.newest(
        folder / "checkpoints", lambda line: say(1, line), verify=verify, together=True
    )
    return place


def _complete(experiment: Experiment, saved_step: int | None, done: Mapping[str, Any]) -> Results | None:
    """The results of a run that has nothing left to do; None where it has."""
    if saved_step is None or done.get("step") != saved_step:
        return None
    numbers = observe.describe(done["report"], experiment.checkpoint.best_metric)
    if saved_step >= experiment.train.steps:
        say(1, f"already complete at step {saved_step:,}: {numbers}")
        say(1, f"to go on, give more steps: --train.steps {2 * saved_step}")
    elif done.get("stopped_by_patience") == experiment.evaluate.patience > 0:
        say(1, f"complete: stopped by evaluate.patience at step {saved_step:,}: {numbers}")
        say(1, "to go on, wait for longer: --evaluate.patience 0")
    else:
        return None
    return Results(saved_step, done["report"], test=done.get("test", {}))


def take(place: Place, held: contextlib.ExitStack) -> None:
    """Takes the folder's lock on host 0, and looks again: another run may have been there meanwhile."""
    if jax.process_index() != 0:
        return
    hold = store_lock.hold if store.remote(place.folder) else lock.hold
    place.still_ours = held.enter_context(hold(place.folder, lambda line: say(1, line)))
    workdirs.refuse_changed(place.folder, place.seen)
