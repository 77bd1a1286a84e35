"""Batches from random-access examples.

A batch is a pure function of the row it starts at, so resuming needs the number of rows consumed and nothing else: not
the number of hosts, nor the depth of the prefetch, nor where in an epoch it was. With several hosts each makes those
rows of every global batch that its devices hold; put in their places, they are the batch that one host would make.
"""

import atexit
import contextlib
import contextvars
import functools
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from transformer_jax.errors import InputError, RunError

Batch = dict[str, np.ndarray]

NOTICE = 10.0  # seconds without a batch after which it is said what is being made, and again after 30, 90, ...
TIMEOUT = 300.0  # seconds without a batch after which the data is taken for hung
ENDING = 5.0  # seconds that the thread has to finish its batch when nobody wants more


class Dataset(Protocol):
    """Examples by row: dicts of arrays. A Grain MapDataset is one; so is corpus.Windows.

    One with a method `stacked(rows) -> Batch` of its own, equal to stacking its examples, is asked for whole batches:
    for small examples that is many times faster.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Any: ...


RULE = 2  # the rule of the order of examples that a new run follows; a run keeps the one that it began with
_rule = contextvars.ContextVar("rule", default=RULE)


@contextlib.contextmanager
def order_rule(rule: int) -> Iterator[None]:
    """Orders that are made in this block follow a rule of `epochs`: a run that goes on prepares its data so."""
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)


def epochs(rows: int, seed: int, rule: int | None = None) -> Sequence[int]:
    """Numbers below `rows` for ever: each once an epoch, in an order drawn anew each epoch (Grain's shuffle).

    Args:
      rule: 2: the order of an epoch is drawn from (seed, epoch) hashed together, so no two seeds share one. 1, of runs
        from before: from seed + epoch, so that the second epoch of seed 0 is the first of seed 1. None: that of
        `order_rule`, else RULE.
    Raises:
      InputError: for a seed or a rule that there is not.
    """
    import grain

    rule = _rule.get() if rule is None else rule

    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed = {seed} must lie between 0 and {(1 << 32) - 1}")
    if rule == 1:
        return grain.MapDataset.range(rows).shuffle(seed=seed).repeat()
    if rule != 2:
        raise InputError(f"the order of the data follows rule {rule}, and this version knows 1 and 2; update it")
    return _Epochs(rows, seed)


@dataclass(frozen=True)
class _Epochs(Sequence[int]):
    rows: int
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, i: Any) -> Any:
        epoch, row = divmod(i, self.rows)
        return int(_epoch(self.rows, self.seed, epoch)[row])


@functools.lru_cache(maxsize=8)  # a batch may lie across the border of two epochs
def _epoch(rows: int, seed: int, epoch: int) -> Any:
    import grain

    (folded,) = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return grain.MapDataset.range(rows).shuffle(seed=int(folded))


def batches(
    dataset: Dataset,
    first_row: int,
    batch_size: int,
    *,
    here: Sequence[int] | None = None,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """This host's part of the batches of rows `first_row`, `first_row + batch_size`, ...

    Arguments:
        dataset: endless (len is sys.maxsize) for training, finite for evaluation. A finite one ends with a full batch:
            rows past the end are zeros, their "weights" too.
        batch_size: rows in a global batch.
        here: which of them this host makes, such as range(4, 8), in increasing order (`train.batch.here`); None: all.
        prefetch: batches made ahead by a thread; 0 makes each when it is asked for.

    An exception while making a batch is raised here, naming the rows, as soon as the batches before it are consumed;
    InputError stays InputError. After NOTICE seconds without a batch a line on stderr says which rows are being made
    and where the thread is; after TIMEOUT seconds that is a `RunError`.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be 1 or more")
    here = range(batch_size) if here is None else here
    if not 0 <= here[0] <= here[-1] < batch_size or first_row < 0 or prefetch < 0:
        raise ValueError(f"{here=} of {batch_size=}, {first_row=}, {prefetch=}")
    starts = range(first_row, len(dataset), batch_size)
    parts = ([start + row for row in here] for start in starts)
    return _ahead(dataset, parts, prefetch) if prefetch else (_make(dataset, rows) for rows in parts)


def _make(dataset: Dataset, rows: Sequence[int]) -> Batch:
    try:
        here = [row for row in rows if row < len(dataset)]
        if len(here) == len(rows):
            return _stack(dataset, rows)
        padding = _stack(dataset, [len(dataset) - 1])
        if "weights" not in padding:
            raise ValueError('examples without "weights" cannot be padded to a full batch')
        zeros = {name: np.zeros((len(rows) - len(here), *a.shape[1:]), a.dtype) for name, a in padding.items()}
        if not here:
            return zeros
        return {name: np.concatenate([a, zeros[name]]) for name, a in _stack(dataset, here).items()}
    except Exception as error:
        where = f"data rows {rows[0]}-{rows[-1]}"
        if isinstance(error, InputError):
            raise InputError(f"{where}: {error}") from error
        raise RuntimeError(f"{where} could not be made: {type(error).__name__}: {error}") from error


def _stack(dataset: Dataset, rows: Sequence[int]) -> Batch:
    if stacked := getattr(dataset, "stacked", None):
        return stacked(rows)
    examples = [dataset[row] for row in rows]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _ahead(dataset: Dataset, parts: Iterator[Sequence[int]], depth: int) -> Iterator[Batch]:
    """The batches of these rows, up to `depth` of them made by a thread before they are asked for."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)  # None: the end
    stop = threading.Event()
    making: Sequence[int] = [0]

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                pass

    def work() -> None:
        nonlocal making
        try:
            for making in parts:
                put(_make(dataset, making))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    def doing() -> str:
        """The rows that the thread makes, and the calls it is in, the innermost first: they name a hung source."""
        frame = sys._current_frames().get(worker.ident or 0)
        calls = traceback.extract_stack(frame)[:-4:-1] if frame else []
        where = " < ".join(f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls)
        return f"data rows {making[0]}-{making[-1]}, at {where or 'no line of Python'}"

    def finish() -> None:
        stop.set()
        worker.join(ENDING)

    # A daemon, so that a source that hangs cannot keep the program from ending; and stopped before the interpreter
    # goes, which would otherwise tear the thread out of the middle of somebody's C++ and abort.
    worker = threading.Thread(target=work, name="data", daemon=True)
    atexit.register(finish)
    worker.start()
    try:
        while (item := _next(ready, worker, doing)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        if not stop.is_set():  # set already: the interpreter is ending, and atexit came first
            finish()
            atexit.unregister(finish)


def _next(
    ready: "queue.Queue[Batch | BaseException | None]", worker: threading.Thread, doing: Callable[[], str]
) -> Batch | BaseException | None:
    """What the thread has made, as soon as it is there; says on stderr, now and then, that it is not."""
    since, notice = time.monotonic(), NOTICE
    while True:
        try:
            return ready.get(timeout=min(1.0, NOTICE))
        except queue.Empty:
            waited = time.monotonic() - since
            if not worker.is_alive() and ready.empty():
                raise RunError(f"the data thread ended without a word; it was at {doing()}") from None
            if waited > TIMEOUT:
                raise RunError(f"no batch for {waited:.0f} s, the data source hangs: {doing()}") from None
            if waited > notice:
                print(f"no batch for {waited:.0f} s: {doing()}; the run ends after {TIMEOUT:.0f} s", file=sys.stderr)
                notice *= 3
