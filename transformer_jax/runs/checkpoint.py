"""A step's arrays, read back strictly, and the names under which they are stored.

The files are compared with the manifest first (`saved.check_files`), then the trees. Orbax's own check prints both
trees, and it casts dtypes silently; here a missing, extra or misshapen leaf, or one of another dtype, is one line that
names it. `restore_params` neither reads nor checks the moments.
"""

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from transformer_jax.contracts import TrainState
from transformer_jax.errors import InputError, first_line
from transformer_jax.runs import saved, store


def restore_state(step_folder: Path, target: TrainState, *, verify: bool = True) -> tuple[TrainState, dict[str, Any]]:
    """The whole state, placed as `target` (of `state.abstract`) says, and the step's meta.

    The shardings may differ from those of the run that saved. What only a reader of parameters needs is not read:
    averages that the state does not hold (`state.to_store`), and moments of frozen parameters, which older versions
    wrote.

    Args:
      step_folder: the folder of the step.
      target: the state as `ShapeDtypeStruct`s with shardings.
      verify: False where the files were checked already (`saved.newest`), or are not to be.

    Raises:
      Damaged: a file is not as it was written.
      InputError: a leaf is missing, extra, misshapen or of another dtype; the message names it.
    """
    if verify:
        saved.check_files(step_folder)
    meta = saved.read_meta(step_folder)
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
      step_folder: the folder of the step.
      target: `ShapeDtypeStruct`s with shardings, in which the parameters are placed.
      ema: take the average in place of the parameters where the run kept one.
      dtype: cast floating-point leaves to it; without it a stored dtype other than the target's is refused.
      verify: False where the files were checked already (`saved.newest`), or are not to be.
      unused: says of a name whether the leaf may be there although the target has none; it is not read.

    Raises:
      Damaged: a file is not as it was written.
      InputError: a leaf is missing, extra, misshapen or of another dtype; the message names it.
    """
    if verify:
        saved.check_files(step_folder, items=[saved.weights(step_folder, ema=ema)])
    before = _bytes_read()
    restored = _restore(step_folder / saved.weights(step_folder, ema=ema), _nested(_named(target)), dtype, unused)
    return _like(target, _named(restored)), _bytes_read() - before


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
    """The array items of a step's folder for `state`, as nested dicts that need no class of ours or optax's to read."""
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
