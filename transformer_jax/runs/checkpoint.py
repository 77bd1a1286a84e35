"""Checkpoints: what a step's folder holds, which steps are good, and how one is read back strictly.

    checkpoints/1200/params         the parameters, a nested dict of float32 arrays
                     optimizer      the optimiser's state and the count of skipped steps
                     ema            the parameters to evaluate, where they are not the trained ones: averaged by
                                    the run, or made by an optimiser such as schedule-free
                     meta           JSON: format, step, rows consumed, family, the resolved experiment, dtypes,
                                    versions and, where it is a mean of steps, which ("averaged")
                     manifest.json  step, run, size and SHA-256 of every file (`manifest.py`)

`writer.py` writes it, wholly or not at all.

A reader compares files with the manifest before it restores them, and of a run takes the newest step that is as it was
written, naming each that is not: files that differ, or a folder whose name is another step's, or that is of another
run. It asks for the items it needs: `restore_params` neither reads nor checks the moments. Then the trees are compared.
Orbax's own check prints both trees, and it casts dtypes silently; here a missing, extra or misshapen leaf, or one of
another dtype, is one line that names it.
"""

import contextlib
import dataclasses
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from transformer_jax import files, hosts
from transformer_jax.contracts import TrainState
from transformer_jax.errors import InputError
from transformer_jax.runs import identity, manifest, store
from transformer_jax.runs.manifest import Damaged

FORMAT = 3  # raised when an older reader would misread what is written
FORMATS = (1, 2, 3)  # that this version reads: 1 had no manifest, 2 none that names step and run
META_BYTES = 2**24
ROUNDS = 10  # of looking for the newest step while a trainer deletes it

T = TypeVar("T")


def steps(folder: Path) -> list[int]:
    """The steps that are wholly there, in order: those with a manifest that is whole and names them, and those of
    earlier formats.

    Their files are not compared with it: `newest` and `verify` do.
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
    """What `read` makes of the newest good step's folder, which it need not check: its weights have been.

    A trainer may delete the step meanwhile. Whatever `read` says or raises then does not count: it is called again with
    the step that has taken its place.

    Raises: `InputError` where there is no good step, or where every one was deleted before it was read.
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
    """`read(step_folder)`. Raises `Deleted` where the folder is not the same afterwards: a step that a trainer deletes
    loses its name first, so what was read under a name that is still there was whole."""
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
    """The file of a step that is not as it was written, and how; "" where all are. The arguments are those of `newest`
    and `check_files`."""
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
    """Compares a step's files with its manifest: how many files and bytes were read, (0, 0) of a step of format 1.

    Arguments: items, part: as of `manifest.verify`. Errors: `Damaged` naming the file and what differs.
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
    """What the step says of itself: format, step, rows, family, config, dtypes, versions, metric.

    Errors: `InputError` when it is missing, not JSON, or of a format that this version does not know.
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


def restore_state(step_folder: Path, target: TrainState, *, verify: bool = True) -> tuple[TrainState, dict[str, Any]]:
    """The whole state, placed as `target` (of `state.abstract`) says, and the step's meta.

    The shardings may differ from those of the run that saved. What only a reader of parameters needs is not read:
    averages that the state does not hold (`state.to_store`), and moments of frozen parameters, which older versions
    wrote. Arguments: verify, False where the files were checked
    already (`newest`), or are not to be. Errors: `Damaged`; `InputError` naming the leaf that is missing, extra,
    misshapen or of another dtype.
    """
    if verify:
        check_files(step_folder)
    meta = read_meta(step_folder)
    wanted = state_items(target)
    for item in wanted:
        if not (step_folder / item).is_dir():
            raise InputError(
                f"the run has {item!r} but {step_folder} has not; resume with the same experiment (--ema.decay)"
            )
    with_moments = _named(target.opt_state)
    frozen = tuple(f"/{name}" for name in _named(target.params) if not any(m.endswith(name) for m in with_moments))
    unused = lambda name: name.startswith("state/") and name.endswith(frozen)  # noqa: E731
    items = {
        item: _named(_restore(step_folder / item, tree, unused=unused if item == "optimizer" else None))
        for item, tree in wanted.items()
    }
    state = TrainState(
        step=jax.device_put(jnp.asarray(meta["step"], jnp.int32), target.step.sharding),
        params=_like(target.params, items["params"]),
        opt_state=_like(target.opt_state, items["optimizer"], "state/"),
        ema=None if target.ema is None else _like(target.ema, items["ema"]),
        skipped=items["optimizer"]["skipped"],
        recent=items["optimizer"].get("recent"),
    )
    return state, meta


def restore_params(
    step_folder: Path,
    target: Any,
    *,
    ema: bool = True,
    dtype: jax.typing.DTypeLike | None = None,
    verify: bool = True,
    unused: Callable[[str], bool] | None = None,
) -> tuple[Any, int]:
    """The parameters alone, and the bytes read from disk.

    Args:
      step_folder: of the step.
      target: `ShapeDtypeStruct`s with shardings, in which the parameters are placed.
      ema: take the average in place of the parameters where the run kept one.
      dtype: cast floating-point leaves to it; without it a stored dtype other than the target's is refused.
      verify: False where the files were checked already (`newest`), or are not to be.
      unused: says of a name whether the leaf may be there although the target has none; it is not read.

    Raises:
      Damaged: a file is not as it was written.
      InputError: a leaf is missing, extra, misshapen or of another dtype; the message names it.
    """
    if verify:
        check_files(step_folder, items=[weights(step_folder, ema=ema)])
    before = _bytes_read()
    restored = _restore(step_folder / weights(step_folder, ema=ema), _nested(_named(target)), dtype, unused)
    return _like(target, _named(restored)), _bytes_read() - before


def numbered(folder: Path) -> list[int]:
    """The steps that have a folder, in order; in a store, those that have a manifest: the others are no steps."""
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
    """The item to evaluate with: the average where the run kept one. A manifest lists files that were deleted, too."""
    there = (step_folder / "ema").is_dir()
    with contextlib.suppress(Damaged):
        listed = manifest.read(step_folder / manifest.NAME).files
        there = there or any(name.startswith("ema/") for name in listed)
    return "ema" if ema and there else "params"


def _restore(
    item: Path,
    target: Any,
    dtype: jax.typing.DTypeLike | None = None,
    unused: Callable[[str], bool] | None = None,
) -> Any:
    """The arrays of one item, after its tree has been compared with the target's; leaves with an `unused` name may be
    there and are not read."""
    ocp = orbax()
    if not item.is_dir():
        raise InputError(f"{item} does not exist, so {item.parent} is not a complete step; give another step")
    handler = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        stored = _named(handler.metadata(store.absolute(item)).item_metadata.tree)
    except Exception as error:  # Orbax and the libraries below it raise many types of errors for a damaged file
        raise InputError(f"{item} cannot be read: {first_line(error)}") from error
    whole = len(stored)
    stored = {name: leaf for name, leaf in stored.items() if unused is None or not unused(name)}
    wanted = _named(target)
    if dtype is not None:
        wanted = {name: _cast(leaf, dtype) for name, leaf in wanted.items()}
    _compare(stored, wanted, item, any_float=dtype is not None)
    tree = _nested(wanted)
    args = ocp.args.StandardRestore(tree)
    if len(stored) < whole:
        handler = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        options = ocp.checkpoint_utils.construct_restore_args(tree)
        args = ocp.args.PyTreeRestore(tree, restore_args=options, partial_restore=True)
    try:
        return handler.restore(store.absolute(item), args=args)
    except Exception as error:
        quieten()
        raise InputError(f"{item} cannot be read: {first_line(error)}") from error


def quieten() -> None:
    """Keeps one complaint off the screen, from now on: when one file fails, the other reads and writes report, with
    tracebacks and as late as the process ends, that Orbax waits for them no longer."""
    hook = sys.unraisablehook

    def quietly(unraisable: Any) -> None:
        error = unraisable.exc_value  # may be None
        given_up = isinstance(getattr(error, "__cause__", None), GeneratorExit)
        if not given_up and str(error) != "Event loop is closed":
            hook(unraisable)

    if getattr(hook, "__qualname__", "") != quietly.__qualname__:
        sys.unraisablehook = quietly


def _compare(stored: dict[str, Any], wanted: dict[str, Any], item: Path, *, any_float: bool) -> None:
    """Raises `InputError` naming the first leaf in which the trees differ."""
    problems = []
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name), wanted.get(name)
        if there is None:
            problems.append(f"leaf {name} is missing there; the model wants {_describe(here)}")
        elif here is None:
            problems.append(f"leaf {name} {_describe(there)} is extra; the model has no such leaf")
        elif tuple(there.shape) != tuple(here.shape):
            problems.append(f"leaf {name} is {_describe(there)} there, but the model wants {_describe(here)}")
        elif there.dtype != here.dtype and not (any_float and _is_float(there)):
            problems.append(
                f"leaf {name} is {_describe(there)} there, but {_describe(here)} is wanted; "
                "nothing is cast unless dtype= asks for it"
            )
    if problems:
        more = f" (and {len(problems) - 1} more such leaves)" if problems[1:] else ""
        raise InputError(f"{item}: {problems[0]}{more}")


def _cast(leaf: jax.ShapeDtypeStruct, dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding) if _is_float(leaf) else leaf


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _describe(leaf: Any) -> str:
    return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


# ---------------------------------------------------------------------------------------------------- trees and Orbax


def state_items(state: TrainState) -> dict[str, Any]:
    """The array items of a step's folder, as nested dicts that need no class of ours or optax's to be read."""
    optimizer = {"skipped": state.skipped} | {f"state/{name}": leaf for name, leaf in _named(state.opt_state).items()}
    if state.recent is not None:
        optimizer["recent"] = state.recent
    items = {"params": _nested(_named(state.params)), "optimizer": _nested(optimizer)}
    return items if state.ema is None else items | {"ema": _nested(_named(state.ema))}


def _named(tree: Any) -> dict[str, Any]:
    """{"1/mu/blocks/mlp/up/kernel": leaf, ...} for any pytree: dicts by key, tuples by index, dataclasses by field."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(flat, sep="/")


def _like(target: Any, flat: dict[str, Any], prefix: str = "") -> Any:
    """The leaves of `flat` in the structure of `target`."""
    return jax.tree.unflatten(jax.tree.structure(target), [flat[prefix + name] for name in _named(target)])


def orbax() -> Any:
    """Orbax, imported where it is used (0.3 s) and kept off the screen: what went wrong is raised here."""
    import orbax.checkpoint as ocp

    for logger in (logging.getLogger("absl"), logging.getLogger("asyncio")):
        if _not_orbax not in logger.filters:
            logger.addFilter(_not_orbax)
    return ocp


def _not_orbax(record: logging.LogRecord) -> bool:
    """Neither what Orbax says, nor what asyncio says of the writes that were under way when one of Orbax's failed."""
    if record.name != "asyncio":
        return "orbax" not in Path(record.pathname).parts
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return not any(word in record.getMessage() + trace for word in ("orbax", "tensorstore"))


def _bytes_read() -> int:
    """Bytes that TensorStore, which reads for Orbax, has read from files and buckets in this process so far."""
    import tensorstore as ts

    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    counters = [m for m in metrics if m["name"].endswith("/bytes_read")]
    return sum(int(value["value"]) for m in counters for value in m["values"])


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
