"""What is deleted from a folder of steps, and what is set aside: old steps, and what killed saves have left there."""

import contextlib
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from transformer_jax import files
from transformer_jax.errors import InputError, RunError
from transformer_jax.runs import manifest, saved, store
from transformer_jax.runs.manifest import Damaged

_LEFT = re.compile(r"\d+\.(part|deleting|orbax-checkpoint-tmp)\b.*")  # what a killed save leaves; the last, of format 1


def delete_old(
    folder: Path,
    known: Mapping[int, float],
    scheduled: Callable[[int], bool],
    *,
    keep: int,
    keep_best: int,
    best: str,
    say: Callable[[str], object],
) -> None:
    """Deletes the steps that are neither among the newest nor among the best, each at once and for good.

    One that is damaged is deleted too when it is its turn, and logged: the same disk holds the others.

    Args:
      folder: WORKDIR/checkpoints.
      known: {step: metric}, which counts before what the steps themselves state.
      scheduled: whether an uninterrupted run saves a step. Any other is kept only while it is the newest.
      keep: the number of newest steps that are kept.
      keep_best: the number of best ones.
      best: "lowest" or "highest", the metric that is best; of equals the earliest step.
      say: receives a line about each damaged step.
    """
    held = [step for step in saved.steps(folder) if _can_be_read(folder / str(step))]
    counted = [step for step in held if scheduled(step)]
    metrics = {step: known.get(step, _metric(folder / str(step))) for step in counted}
    sign = 1 if best == "lowest" else -1
    ranked = sorted(
        (sign * metric, step) for step, metric in metrics.items() if metric is not None and math.isfinite(metric)
    )
    kept = {*held[-1:], *counted[-keep:], *(step for _, step in ranked[:keep_best])}
    for step in held:
        if step in kept:
            continue
        step_folder = folder / str(step)
        if damage := _damage(step_folder):
            say(f"step {step:,}, which is deleted as an old one, was damaged: {damage}")
        if store.remote(folder):
            store.delete_folder(step_folder, manifest.NAME)
        else:
            doomed = folder / f"{step}.deleting"
            step_folder.rename(doomed)
            files.sync(folder)
            delete(doomed, say)


def clean(folder: Path, resumed: int | None, say: Callable[[str], object]) -> None:
    """Removes what killed saves left, and sets aside the steps after the one that a run resumes from.

    Args:
      folder: WORKDIR/checkpoints.
      resumed: the step that the run resumes from; None: it begins.
      say: receives a line about each.
    """
    if store.remote(folder):
        _clean_store(folder, say)
    for path in sorted(folder.iterdir()) if not store.remote(folder) else ():
        if _LEFT.fullmatch(path.name):
            say(f"{path.name}: left by an interrupted save; removed")
            delete(path, say)
    for step in saved.numbered(folder):
        if resumed is not None and step > resumed:
            set_aside(folder / str(step), say)


def delete(path: Path, say: Callable[[str], object]) -> None:
    """Deletes a file or a folder; of a link, which leads to another disk, the link alone.

    Args:
      path: the file, folder or link.
      say: receives a line about a link.
    """
    if path.is_symlink():
        say(f"{path.name} is a link to {os.readlink(path)}: the link is removed, and what it leads to is left there")
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _clean_store(folder: Path, say: Callable[[str], object]) -> None:
    """Removes the prefixes that are no steps, and the digests that hosts had shared for one."""
    numbers = [name for name in store.folders(folder) if name.isdecimal()]
    for name in numbers:
        if not store.there(folder / name / manifest.NAME):
            say(f"{name}: left by an interrupted save or deletion; removed")
            store.delete_folder(folder / name, manifest.NAME)
    for name in store.names(folder):
        if _LEFT.fullmatch(name):
            say(f"{name}: left by an interrupted save; removed")
            store.delete(folder / name)


def set_aside(step_folder: Path, say: Callable[[str], object]) -> None:
    """Renames a damaged step, so that it can be looked at and its number used again. In a store it is copied first.

    Args:
      step_folder: the folder of the step.
      say: receives a line with its new name.

    Raises:
      RunError: there are a thousand such copies.
    """
    for i in range(1, 1000):
        aside = step_folder.with_name(f"{step_folder.name}.damaged" + (f"-{i}" if i > 1 else ""))
        if not (aside.exists() or os.path.lexists(aside)):
            if store.remote(step_folder):
                store.copy_folder(step_folder, aside)
                store.delete_folder(step_folder, manifest.NAME)
            else:
                step_folder.rename(aside)
            say(f"{step_folder} is set aside as {aside.name}; delete it when you have looked at it")
            return
    raise RunError(f"{step_folder.parent} holds 1,000 damaged copies of step {step_folder.name}; look at the disk")


def _metric(step_folder: Path) -> float | None:
    """The metric of a stored step; None where there was none, or no number."""
    metric = saved.read_meta(step_folder).get("metric")
    return metric if isinstance(metric, float | int) and math.isfinite(metric) else None


def _can_be_read(step_folder: Path) -> bool:
    with contextlib.suppress(InputError):
        return bool(saved.read_meta(step_folder))
    return False


def _damage(step_folder: Path) -> str:
    """The file of a step that is not as it was written; of one in a store, whose bytes are far away, its size alone."""
    try:
        if store.remote(step_folder):
            manifest.compare(step_folder, manifest.read(step_folder / manifest.NAME).files)
        else:
            saved.check_files(step_folder, lambda line: None)
    except Damaged as error:
        return str(error)
    return ""
