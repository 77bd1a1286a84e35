"""Checkpoints: what a step's folder holds, how it is written while training goes on, and how it is read back strictly.

    checkpoints/1200/params      the parameters, a nested dict of float32 arrays
                     optimizer   the optimiser's state and the count of skipped steps
                     ema         the averaged parameters, where the run keeps an average
                     meta        JSON: format, step, rows consumed, family, the resolved experiment, dtypes, versions,
                                 and, where it is a mean of steps, which ("averaged")

Orbax writes the items; a step's folder gets its name only when all of it is there, so a killed save leaves a temporary
folder that is ignored and cleaned up by the next run. A reader asks for the items it needs: `restore_params` never
touches the moments.

Reading compares the trees first. Orbax's own check prints both trees, and it casts dtypes silently; here a missing,
extra or misshapen leaf, or one of another dtype, is one line that names it.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from transformer_jax.errors import InputError
from transformer_jax.train.state import TrainState

FORMAT = 1  # raised when an older reader would misread what is written

# ------------------------------------------------------------------------------------------------------------- writing


class Writer:
    """Saves states of one run into one folder, asynchronously, and deletes the old ones.

        with Writer(workdir / "checkpoints", family="gpt", config=experiment_json, keep=2, keep_best=1) as writer:
            writer.save(state, rows=step * batch_size, metric=validation_loss)

    `save` returns when the arrays have left the device and may be donated; a thread writes them. A failure there is
    raised by the next `save`, `check` or `wait`. Leaving the block waits.

    Arguments:
      folder: made if it is missing; temporary folders of killed saves in it are removed.
      family: the name of the model's family. config: the resolved experiment as JSON values.
      keep: the newest n are kept. keep_best: and the n best by their metric, of which the `best` one, "lowest" or
        "highest", is best.
      averaged: the steps of which the parameters are the mean (`average.create`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        family: str,
        config: dict[str, Any],
        keep: int = 2,
        keep_best: int = 0,
        best: str = "lowest",
        averaged: Sequence[int] = (),
    ) -> None:
        ocp = _orbax()
        managers = ocp.checkpoint_managers
        policies = [managers.LatestN(keep)]
        if keep_best:
            best_few = managers.BestN(  # the last n of a sort, which `reverse` makes descending
                get_metric_fn=_metric, reverse=best == "lowest", n=keep_best, keep_checkpoints_without_metrics=False
            )
            policies.append(best_few)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies),
            best_fn=_metric,  # without it Orbax does not store the metric, and a resumed run forgets its best step
            cleanup_tmp_directories=True,
        )
        self.folder = folder
        self._facts = {"format": FORMAT, "family": family, "config": config, "versions": _versions()}
        if averaged:
            self._facts["averaged"] = list(averaged)
        self._last: int | None = None
        # Every call into Orbax runs on this thread. Ctrl-C interrupts the main thread alone, which goes on waiting:
        # an interrupt inside Orbax would leave its bookkeeping and the folder at odds.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._manager = self._call(lambda: ocp.CheckpointManager(folder.absolute(), options=options))

    def save(self, state: TrainState, *, rows: int, metric: float | None = None) -> None:
        """Begins to save `state` under its step; does nothing when that step is there already.

        Arguments:
          rows: examples consumed, all that the input pipeline needs to go on.
          metric: the reported number that says which checkpoint is best, where there was one.
        """
        ocp = _orbax()
        self.wait()
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = _items(state)
        dtypes = {item: sorted({str(x.dtype) for x in jax.tree.leaves(tree)}) for item, tree in items.items()}
        meta = {**self._facts, "step": step, "rows": rows, "metric": metric, "dtypes": dtypes}
        saves = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        args = ocp.args.Composite(**saves, meta=ocp.args.JsonSave(meta))
        metrics = None if metric is None or not math.isfinite(metric) else {"metric": metric}
        self._last = step
        self._call(lambda: self._manager.save(step, args=args, metrics=metrics, force=True))

    def check(self) -> None:
        """Raises what went wrong in the save that is under way, without waiting for it."""
        self._call(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits until what was saved is wholly there. Ctrl-C is raised afterwards."""
        self._call(self._manager.wait_until_finished)
        self.check()
        if self._last is not None and self._last not in steps(self.folder):
            raise RuntimeError(f"step {self._last} was saved to {self.folder} but is not there; is the disk full?")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            try:
                self._call(self._manager.close)
            finally:
                self._thread.shutdown()

    def _call(self, function: Callable[[], Any]) -> Any:
        """The function's result, from the checkpoint thread, waited for through any number of Ctrl-C."""
        future = self._thread.submit(function)
        interrupt: KeyboardInterrupt | None = None
        while not future.done():
            try:
                future.exception()
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt
        failure = future.exception()
        if failure is not None:
            raise RuntimeError(f"saving to {self.folder} failed: {_first_line(failure)}") from failure
        return future.result()


def _items(state: TrainState) -> dict[str, Any]:
    """The array items of a step's folder, as nested dicts that need no class of ours or optax's to be read."""
    optimizer = {"skipped": state.skipped} | {f"state/{name}": leaf for name, leaf in _named(state.opt_state).items()}
    items = {"params": _nested(_named(state.params)), "optimizer": _nested(optimizer)}
    return items if state.ema is None else items | {"ema": _nested(_named(state.ema))}


def _metric(metrics: dict[str, float]) -> float:
    return metrics["metric"]


def _versions() -> dict[str, str]:
    from transformer_jax import __version__

    return {"transformer_jax": __version__, "jax": jax.__version__}


# ------------------------------------------------------------------------------------------------------------- reading


def steps(folder: Path) -> list[int]:
    """The steps that are wholly there, in order. Temporary folders of a killed save are not among them."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal()]
    return sorted(int(path.name) for path in named if (path / "_CHECKPOINT_METADATA").is_file())


def latest_step(folder: Path) -> int | None:
    """The newest step that is wholly there, or None."""
    return max(steps(folder), default=None)


def read_meta(step_folder: Path) -> dict[str, Any]:
    """What the step says of itself: format, step, rows, family, config, dtypes, versions, metric.

    Errors: `InputError` when it is missing, not JSON, or of a format that this version does not know.
    """
    path = step_folder / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}; is {step_folder} a step's folder?") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise InputError(f"{path}: format {found!r} is not {FORMAT}, which this version reads; upgrade transformer_jax")
    for name, kind in (("step", int), ("rows", int), ("family", str), ("config", dict)):
        if type(meta.get(name)) is not kind:
            raise InputError(f"{path}: {name!r} is {meta.get(name)!r}, which is not of type {kind.__name__}")
    return meta


def restore_state(step_folder: Path, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The whole state, placed as `target` (of `state.abstract`) says, and the step's meta.

    The shardings may differ from those of the run that saved. Errors: `InputError` naming the leaf that is missing,
    extra, misshapen or of another dtype.
    """
    meta = read_meta(step_folder)
    wanted = _items(target)
    for item in ("params", "optimizer", "ema"):
        if (item in wanted) != (step_folder / item).is_dir():
            here, there = ("the run", step_folder) if item in wanted else (step_folder, "the run")
            raise InputError(f"{here} has {item!r} but {there} has not; resume with the same experiment (--ema.decay)")
    items = {item: _named(_restore(step_folder / item, tree)) for item, tree in wanted.items()}
    state = TrainState(
        step=jax.device_put(jnp.asarray(meta["step"], jnp.int32), target.step.sharding),
        params=_like(target.params, items["params"]),
        opt_state=_like(target.opt_state, items["optimizer"], "state/"),
        ema=None if target.ema is None else _like(target.ema, items["ema"]),
        skipped=items["optimizer"]["skipped"],
    )
    return state, meta


def restore_params(
    step_folder: Path, target: Any, *, ema: bool = True, dtype: jax.typing.DTypeLike | None = None
) -> tuple[Any, int]:
    """The parameters alone, placed as `target` (ShapeDtypeStructs with shardings) says, and the bytes read from disk.

    Arguments:
      ema: take the average in place of the parameters where the run kept one.
      dtype: cast floating-point leaves to it; without it a stored dtype other than the target's is refused.
    Errors: `InputError` naming the leaf that is missing, extra, misshapen or of another dtype.
    """
    averaged = step_folder / "ema"
    before = _bytes_read()
    item = averaged if ema and averaged.is_dir() else step_folder / "params"
    restored = _restore(item, _nested(_named(target)), dtype)
    return _like(target, _named(restored)), _bytes_read() - before


def _restore(item: Path, target: Any, dtype: jax.typing.DTypeLike | None = None) -> Any:
    """The arrays of one item, after its tree has been compared with the target's."""
    ocp = _orbax()
    if not item.is_dir():
        raise InputError(f"{item} does not exist, so {item.parent} is not a complete step; give another step")
    # An integrity check of the item's files belongs here, before anything reads them.
    handler = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        stored = _named(handler.metadata(item.absolute()).item_metadata.tree)
    except Exception as error:  # whatever a damaged file raises, three libraries down
        raise InputError(f"{item} cannot be read: {_first_line(error)}") from error
    wanted = _named(target)
    if dtype is not None:
        wanted = {name: _cast(leaf, dtype) for name, leaf in wanted.items()}
    _compare(stored, wanted, item, any_float=dtype is not None)
    try:
        return handler.restore(item.absolute(), args=ocp.args.StandardRestore(_nested(wanted)))
    except Exception as error:
        raise InputError(f"{item} cannot be read: {_first_line(error)}") from error


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


def _named(tree: Any) -> dict[str, Any]:
    """{"1/mu/blocks/mlp/up/kernel": leaf, ...} for any pytree: dicts by key, tuples by index, dataclasses by field."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(flat, sep="/")


def _like(target: Any, flat: dict[str, Any], prefix: str = "") -> Any:
    """The leaves of `flat` in the structure of `target`."""
    return jax.tree.unflatten(jax.tree.structure(target), [flat[prefix + name] for name in _named(target)])


def _orbax() -> Any:
    """Orbax, imported where it is used (0.3 s) and kept off the screen: what went wrong is raised here."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    if _not_orbax not in logger.filters:
        logger.addFilter(_not_orbax)
    return ocp


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


def _bytes_read() -> int:
    """Bytes that TensorStore, which reads for Orbax, has read from files and buckets in this process so far."""
    import tensorstore as ts

    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    counters = [m for m in metrics if m["name"].endswith("/bytes_read")]
    return sum(int(value["value"]) for m in counters for value in m["values"])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
