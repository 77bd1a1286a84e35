"""The folder of a run: what it holds, whether the run may resume there, and its lock."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from transformer_jax import brought, config_json, files, hf, hosts, observe
from transformer_jax.contracts import Prepared
from transformer_jax.errors import RunError
from transformer_jax.experiment import Experiment
from transformer_jax.runs import fingerprint, lock, mirror, saved, store, store_lock
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import start

banner = observe.banner


@dataclass(frozen=True)
class Results:
    """How a run ended.

    Attributes:
      step: optimiser steps taken.
      report: the validation numbers by name, and as strings their conventions; empty when a signal ended the run.
      signal: the number of the signal that ended the run; 0 when it is complete.
      test: the numbers of the best checkpoint on the test set; empty where there is no test set.
    """

    step: int
    report: Mapping[str, float | str]
    signal: int = 0
    test: Mapping[str, float | str] = field(default_factory=dict)


@dataclass
class RunFolder:
    """A folder that a run has entered.

    Attributes:
      experiment: the recipe, with the settings that the data and the folder decide.
      path: the workdir.
      local: where this host writes everything but checkpoints: the workdir, or the local mirror of one in an object
        store.
      publish: uploads what has changed in `local`; does nothing on a disk.
      saved_step: the newest undamaged step; None where there is none.
      is_new: whether the folder holds no run yet.
      seen: the state of the folder's files when it was entered, to detect that another run has written there since.
      done: the results, where the run is already complete.
      check_owner: raises `lock.Lost` where another run has taken the folder.
    """

    experiment: Experiment
    path: Path
    local: Path
    publish: Callable[[], None]
    saved_step: int | None
    is_new: bool
    seen: dict[str, str]
    done: Results | None = None
    check_owner: Callable[[], None] = lambda: None

    def with_workdir(self, line: str) -> str:
        """`line` with the workdir's path in place of its local mirror's."""
        return line.replace(str(self.local), str(self.path))


def enter(
    experiment: Experiment, path: Path, stack: contextlib.ExitStack, *, types: Any = (), verify: bool = True
) -> RunFolder:
    """Reads a folder, compares it with the experiment, and takes its lock if it holds a run already.

    Args:
      experiment: the recipe.
      path: the workdir; it need not exist.
      stack: closes what is opened.
      types: the user's types that the folder's config may name besides those of `experiment`.
      verify: compare the files of the step to resume from with its manifest.

    Raises:
      InputError: the folder holds another run, or files that are not a run's.
    """
    banner(1, f"workdir {path}")
    seen = workdirs.seen(path)
    stored = workdirs.stored_experiment(path, [brought.types_in(experiment), types])
    experiment = hf.pinned(experiment, stored, lambda name: hosts.first(f"the commit of {name}", hf.pin(name)))
    experiment = dataclasses.replace(experiment, task=experiment.task.settle(experiment.data))
    config_json.refuse_unreadable(experiment)
    if stored is not None:
        experiment = dataclasses.replace(experiment, order=stored.order)  # the order of the data must not change
        if experiment.init_from and experiment.init_from == stored.init_from:  # the run adopted these when it began
            experiment = start.adopt(experiment, stored.model, lambda line: None, task=stored.task)
    for line in workdirs.check(path, experiment, types):
        banner(1, f"changed since it was last run: {line}")
    saved_step = saved.latest_step(path / "checkpoints")
    done = workdirs.read_results(path)
    if not hosts.alone():
        hosts.agree("what is to be run", fingerprint.program(experiment, saved_step, done.get("step")))
    if (results := _complete(experiment, saved_step, done)) is not None:
        return RunFolder(experiment, path, path, lambda: None, saved_step, False, seen, done=results)

    local, publish = stack.enter_context(
        mirror.local_mirror(path, ("metrics.jsonl", "launches.jsonl", "samples.jsonl", "tokenizer/"))
    )
    is_new = "config.json" not in seen
    folder = RunFolder(experiment, path, local, publish, None, is_new, seen)
    if not is_new:  # a new folder is created and locked later, when all checks have passed
        take_lock(folder, stack)
    folder.saved_step = saved.newest(path / "checkpoints", lambda line: banner(1, line), verify=verify, together=True)
    return folder


def _complete(experiment: Experiment, saved_step: int | None, done: Mapping[str, Any]) -> Results | None:
    """The results of a run that is complete; None where it is not."""
    if saved_step is None or done.get("step") != saved_step:
        return None
    numbers = observe.describe(done["report"], experiment.checkpoint.best_metric)
    if saved_step >= experiment.train.steps:
        banner(1, f"already complete at step {saved_step:,}: {numbers}")
        banner(1, f"to go on, give more steps: --train.steps {2 * saved_step}")
    elif done.get("stopped_by_patience") == experiment.evaluate.patience > 0:
        banner(1, f"complete: stopped by evaluate.patience at step {saved_step:,}: {numbers}")
        banner(1, "to go on, wait for longer: --evaluate.patience 0")
    else:
        return None
    return Results(saved_step, done["report"], test=done.get("test", {}))


def take_lock(folder: RunFolder, stack: contextlib.ExitStack) -> None:
    """Takes the lock of `folder` on host 0 until `stack` closes.

    Raises:
      InputError: another run has written into the folder since it was read.
    """
    if jax.process_index() != 0:
        return
    hold = store_lock.hold if store.remote(folder.path) else lock.hold
    folder.check_owner = stack.enter_context(hold(folder.path, lambda line: banner(1, line)))
    workdirs.refuse_changed(folder.path, folder.seen)


def claim(folder: RunFolder, prepared: Prepared, stack: contextlib.ExitStack) -> None:
    """Takes the folder for a run, after every check, and writes its config, tokenizer and code.

    Args:
      folder: from `enter`.
      prepared: the data of the run.
      stack: releases the lock and uploads the last files.
    """
    if folder.is_new:
        take_lock(folder, stack)
    if jax.process_index() == 0:
        config, path = config_json.to_json(folder.experiment), folder.local / "config.json"
        if not path.exists() or files.read_json(path, inside=folder.local) != config:
            workdirs.write_json(path, config)
        if folder.saved_step is None:  # a tokenizer that is there is from a run that ended before its first save
            _remove_tokenizer(folder)
        if prepared.tokenizer is not None and not (folder.local / "tokenizer").is_dir():
            _save_tokenizer(prepared.tokenizer, folder.local / "tokenizer")
        for name, text in brought.code_of(folder.experiment).items():
            (folder.local / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            files.write(folder.local / "code" / name, text, inside=folder.local)
        folder.publish()
        stack.push(lambda kind, *_: _publish_last(folder, failed=kind is not None))
    hosts.gather("the workdir", "")  # waits until host 0 has written
    workdirs.refuse_unshared(folder.path)


def _remove_tokenizer(folder: RunFolder) -> None:
    shutil.rmtree(folder.local / "tokenizer", ignore_errors=True)
    if store.remote(folder.path):
        for name in store.sizes(folder.path / "tokenizer"):
            store.delete(folder.path / "tokenizer" / name)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves into a temporary folder and renames it, so that a killed run leaves no partial tokenizer."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.save(part)
    files.sync_tree(part)
    part.rename(folder)
    files.sync(folder.parent)


def _publish_last(folder: RunFolder, *, failed: bool) -> None:
    """Uploads what a run has written besides checkpoints. After a failed run, errors of the upload are ignored."""
    try:
        folder.check_owner()
        folder.publish()
    except RunError:
        if not failed:
            raise
