"""The steps of a run that are saved: which there are, which of them are as they were written, and what one states.

    checkpoints/1200/params         the parameters, a nested dict of float32 arrays
                     optimizer      the optimiser's state and the count of skipped steps
                     ema            the parameters to evaluate, where they are not the trained ones: averaged by
                                    the run, or made by an optimiser such as schedule-free
                     meta           JSON: format, step, rows consumed, family, the resolved experiment, dtypes,
                                    versions and, where it is a mean of steps, which ("averaged")
                     manifest.json  step, run, size and SHA-256 of every file (`manifest.py`)

`writer.py` writes it, wholly or not at all, and `checkpoint.py` restores its arrays.

A reader compares files with the manifest before it restores them, and of a run takes the newest step that is as it was
written, naming each that is not: files that differ, or a folder whose name is another step's, or that is of another
run. It asks for the items that it needs: a reader of parameters neither reads nor checks the moments.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import jax

from transformer_jax import files, hosts
from transformer_jax.errors import InputError, first_line
from transformer_jax.runs import identity, manifest, store
from transformer_jax.runs.manifest import Damaged

FORMAT = 3  # raised when an older reader would misread what is written
FORMATS = (1, 2, 3)  # those that this version reads: 1 has no manifest, and 2's does not name step and run
META_BYTES = 2**24
ROUNDS = 10  # how often a reader looks for the newest step again if a trainer has deleted it meanwhile

T = TypeVar("T")


def steps(folder: Path) -> list[int]:
    """The complete steps of `folder`, WORKDIR/checkpoints, in order: those with a whole manifest that names them, and
    those of earlier formats.

    Their files are not compared with the manifest: `newest` and `check_files` do.
    """
    run = _run_of(folder)
    return [step for step in numbered(folder) if not misplaced(folder / str(step), run)]


def latest_step(folder: Path) -> int | None:
    """The newest complete step of `folder`, or None; unlike `newest`, it does not compare files with their manifest."""
    return max(steps(folder), default=None)


def newest(
    folder: Path,
    say: Callable[[str], object] = warnings.warn,
    *,
    weights_only: bool = False,
    verify: bool = True,
    together: bool = False,
) -> int | None:
    """The newest step whose files are as they were written; None where there is no step at all.

    Args:
      folder: WORKDIR/checkpoints.
      say: receives a line about each damaged step that is passed over.
      weights_only: check what `restore_params` reads.
      verify: False does not compare the files, and takes the newest that is wholly there.
      together: every process calls this, each reads its part of the files, and all return the same answer.

    Raises:
      InputError: there are steps and none is good.
    """
    for _ in range(ROUNDS):
        lines: list[str] = []
        there, found = numbered(folder), None
        for step in reversed(there):
            path = folder / str(step)
            if verify:
                damage = damage_of(
                    path, lines.append, items=[weights(path)] if weights_only else None, together=together
                )
            else:
                damage = misplaced(path, _run_of(folder))
            if not damage:
                found = step
                break
            lines.append(f"step {step:,} is not used: {damage}")
        if lines and numbered(folder) != there:
            continue  # a trainer has deleted what was being looked at, and has a newer step
        for line in lines:
            say(line)
        if there and found is None:
            raise InputError(
                f"none of the steps in {folder} ({', '.join(map(str, there))}) is as it was written; restore a copy "
                "of one, or look at what is there with --no-verify"
            )
        return found
    raise _pruned_too_fast(folder)


def of_newest(folder: Path, read: Callable[[Path], T], *, verify: bool = True) -> T:
    """`read(folder of the newest good step)`.

    A trainer may delete the step meanwhile. What `read` returns or raises then does not count: it is called again with
    the step that has taken its place.

    Args:
      folder: WORKDIR/checkpoints.
      read: need not check the weights, which were checked.
      verify: False does not compare the files.

    Raises:
      InputError: there is no good step, or each was deleted before it was read.
    """
    for _ in range(ROUNDS):
        step = newest(folder, weights_only=True, verify=verify)
        if step is None:
            raise InputError(f"{folder} holds no complete step yet; train until the first save")
        with contextlib.suppress(Deleted):
            return undeleted(folder / str(step), read)
    raise _pruned_too_fast(folder)


def _pruned_too_fast(folder: Path) -> InputError:
    return InputError(
        f"{folder}: {ROUNDS} times a trainer deleted the steps that were being read; try again, or have it keep more "
        "(--checkpoint.keep)"
    )


class Deleted(InputError):
    """The step was deleted, or replaced, while it was read."""


def undeleted(step_folder: Path, read: Callable[[Path], T]) -> T:
    """`read(step_folder)`, of a step that was there all the time.

    A step that a trainer deletes loses its name first, so what was read under a name that is still there was whole.

    Raises:
      Deleted: the folder is not the same afterwards.
    """
    before = _mark(step_folder)
    try:
        result = read(step_folder)
    except Exception as error:
        if _mark(step_folder) == before is not None:
            raise
        raise _deleted(step_folder) from error
    if _mark(step_folder) != before:
        raise _deleted(step_folder)
    return result


def _deleted(step_folder: Path) -> Deleted:
    return Deleted(f"{step_folder} is gone: a trainer deletes old steps; give the workdir, whose newest step is read")


def _mark(step_folder: Path) -> Any:
    """What is another after a step was deleted, or deleted and written again; None where it is not there."""
    with contextlib.suppress(OSError):
        if store.remote(step_folder):
            return store.get(step_folder / manifest.NAME)[1].generation
        found = step_folder.stat()
        return found.st_dev, found.st_ino
    return None


def damage_of(
    step_folder: Path,
    say: Callable[[str], object] = warnings.warn,
    *,
    items: Collection[str] | None = None,
    together: bool = False,
) -> str:
    """The file of a step that is not as it was written, and how; "" where all are.

    Args:
      step_folder: the folder of the step.
      say: receives a line about a step of format 1, which cannot be checked.
      items: only these items, such as {"params"}; None: all.
      together: every process calls this, each reads its part of the files, and all return the same answer.
    """
    damage, part = "", (jax.process_index(), jax.process_count()) if together else (0, 1)
    try:
        check_files(step_folder, say, items=items, part=part)
    except Damaged as error:
        damage = str(error)
    if together:
        damage = next(filter(None, hosts.gather(f"the files of step {step_folder.name}", damage)), "")
    return damage


def check_files(
    step_folder: Path,
    say: Callable[[str], object] = warnings.warn,
    *,
    items: Collection[str] | None = None,
    part: tuple[int, int] = (0, 1),
) -> tuple[int, int]:
    """Compares a step's files with its manifest; returns how many files and bytes were read, (0, 0) for format 1.

    Args:
      step_folder: the folder of the step.
      say: receives a line about a step of format 1, which cannot be checked.
      items: only these items, such as {"params"}; None: all.
      part: (i, n): this process reads the i-th of n parts.

    Raises:
      Damaged: a file differs, or the folder is another step's; the message names it.
    """
    if damage := misplaced(step_folder, _run_of(store.absolute(step_folder).parent)):
        raise Damaged(damage)
    if _is_format_1(step_folder):
        say(f"{step_folder} was written before there were manifests: its files are not verified")
        return 0, 0
    return manifest.verify(step_folder, items, part)


def misplaced(step_folder: Path, run: str | None) -> str:
    """Why a folder is not the step that its name says, of the run whose folder it is in; "" where it is.

    A manifest that is not whole is a reason. A folder whose name is no number may hold any step: it is a copy.

    Args:
      step_folder: the folder.
      run: the id of the run; None where that is not known.
    """
    try:
        found = manifest.read(step_folder / manifest.NAME)
    except Damaged as error:
        if _is_format_1(step_folder):
            found = manifest.Manifest({})
        else:
            return str(error)
    if found.step is None:  # written by an earlier version: meta says it
        try:
            found = dataclasses.replace(found, step=read_meta(step_folder)["step"])
        except InputError as error:
            return str(error)
    name = step_folder.name
    if _is_number(name) and int(name) != found.step:
        return f"{step_folder} holds step {found.step:,}: it was renamed, copied or exchanged; take it away"
    if run and found.run and found.run != run:
        return f"{step_folder} is of run {found.run[:8]}..., and this is run {run[:8]}...; take it away"
    return ""


def _run_of(folder: Path) -> str | None:
    """The id of the run whose steps are in this folder, where that is WORKDIR/checkpoints and the run has an id."""
    return identity.stored(folder.parent) if folder.name == "checkpoints" else None


def _is_format_1(step_folder: Path) -> bool:
    with contextlib.suppress(InputError):
        orbax_was_done = (step_folder / "_CHECKPOINT_METADATA").is_file()
        if orbax_was_done and not (step_folder / manifest.NAME).exists():
            return bool(read_meta(step_folder)["format"] == 1)
    return False


def read_meta(step_folder: Path) -> dict[str, Any]:
    """The meta of the step in `step_folder`: format, step, rows, family, config, dtypes, versions, metric.

    Raises:
      InputError: it is missing, not JSON, or of a format that this version does not know.
    """
    path = step_folder / "meta" / "metadata"
    try:
        meta = files.read_json(path, META_BYTES, inside=step_folder)
    except (OSError, InputError) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}; is {step_folder} a step's folder?") from None
    if not isinstance(meta, dict) or meta.get("format") not in FORMATS:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise InputError(
            f"{path}: format {found!r} is not {' or '.join(map(str, FORMATS))}, which this version reads; upgrade "
            "transformer_jax"
        )
    for name, kind in (("step", int), ("rows", int), ("family", str), ("config", dict)):
        if type(meta.get(name)) is not kind:
            raise InputError(f"{path}: {name!r} is {meta.get(name)!r}, which is not of type {kind.__name__}")
    return meta


def numbered(folder: Path) -> list[int]:
    """The steps that have a folder in `folder`, in order; in a store, those that have a manifest."""
    if store.remote(folder):
        names = [name for name in store.folders(folder) if store.there(folder / name / manifest.NAME)]
    elif folder.is_dir():
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    else:
        return []
    return sorted(int(name) for name in names if _is_number(name))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 19 and str(int(name)) == name


def weights(step_folder: Path, *, ema: bool = True) -> str:
    """The item of `step_folder` to evaluate with: the average where the run kept one and `ema` is true.

    A manifest lists files that were deleted, too.
    """
    there = (step_folder / "ema").is_dir()
    with contextlib.suppress(Damaged):
        listed = manifest.read(step_folder / manifest.NAME).files
        there = there or any(name.startswith("ema/") for name in listed)
    return "ema" if ema and there else "params"
