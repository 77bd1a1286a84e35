"""Batches from random-access examples.

A batch is a pure function of its first row. So a run resumes from the number of rows consumed alone, whatever the
number of hosts, the prefetch depth or the position in the epoch. Each of several hosts makes the rows that its devices
hold; together they are the batch that one host would make.
"""

import abc
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

NOTICE = 10.0  # seconds without a batch before a notice on stderr, repeated after 30, 90, ...
TIMEOUT = 300.0  # seconds without a batch before the run ends
ENDING = 5.0  # seconds to wait for the thread to finish its last batch


class Dataset(Protocol):
    """Random-access examples: dicts of arrays by row, such as a Grain MapDataset or `corpus.Windows`.

    A dataset may define `stacked(rows) -> Batch`, equal to its stacked examples. It makes small examples much faster.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Any: ...


class Examples(abc.ABC):
    """Random-access examples over the rows of a set: `examples[i]` is made from row `order[i]`."""

    order: Sequence[int]
    """Example -> row."""

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self.example(i)

    @abc.abstractmethod
    def example(self, i: int) -> Batch:
        """Example i, a dict of arrays.

        Args:
          i: in [0, len(self)).
        """


class StackedExamples(Examples):
    """`Examples` that are made in batches, which is faster for small ones."""

    def example(self, i: int) -> Batch:
        """Example i, a dict of arrays.

        Args:
          i: in [0, len(self)).
        """
        return {name: array[0] for name, array in self.stacked([i]).items()}

    @abc.abstractmethod
    def stacked(self, numbers: Sequence[int]) -> Batch:
        """These examples with a leading dimension B.

        Args:
          numbers: the numbers of the examples.
        """


RULE = 2  # the ordering rule of new runs; a resumed run keeps the rule that it began with
_rule = contextvars.ContextVar("rule", default=RULE)


@contextlib.contextmanager
def order_rule(rule: int) -> Iterator[None]:
    """A context in which `epochs` follows this rule, for a resumed run that began with another one.

    Args:
      rule: 1 or 2, see `epochs`.
    """
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)


def epochs(rows: int, seed: int, rule: int | None = None) -> Sequence[int]:
    """An endless sequence of row numbers: each row once per epoch, reshuffled every epoch (Grain's shuffle).

    Args:
      rows: how many rows there are.
      seed: in [0, 2**32).
      rule: 2 shuffles an epoch by a hash of (seed, epoch), so no two seeds share an order. 1, of older runs, shuffles
        by seed + epoch, so the second epoch of seed 0 is the first of seed 1. None: the rule of `order_rule`, or RULE.

    Raises:
      InputError: a seed out of range, or an unknown rule.
    """
    import grain

    rule = _rule.get() if rule is None else rule
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed = {seed} must be between 0 and {(1 << 32) - 1}")
    if rule == 1:
        return grain.MapDataset.range(rows).shuffle(seed=seed).repeat()
    if rule != 2:
        raise InputError(f"the order of the data follows rule {rule}, but this version knows 1 and 2; update it")
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


@functools.lru_cache(maxsize=8)  # a batch may span two epochs
def _epoch(rows: int, seed: int, epoch: int) -> Any:
    import grain

    (folded,) = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return grain.MapDataset.range(rows).shuffle(seed=int(folded))


def batches(
    dataset: Dataset,
    first_row: int,
    batch_size: int,
    *,
    local_rows: Sequence[int] | None = None,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """This host's rows of the global batches that start at `first_row`, `first_row + batch_size`, ...

    After NOTICE seconds without a batch, a line on stderr names the rows being made and the code that makes them.

    Args:
      dataset: endless (len is sys.maxsize) for training, finite for evaluation. The last batch of a finite one is
        padded with rows of zeros, so their "weights" are 0.
      first_row: the first row of the first batch.
      batch_size: rows in a global batch.
      local_rows: the rows of a global batch that this host makes, such as range(4, 8), in increasing order; None: all.
      prefetch: batches that a thread makes ahead; 0: each batch is made when it is read.

    Raises:
      InputError: as the dataset raised it, with the rows named, after the batches before it are consumed.
      RuntimeError: any other exception of the dataset, in the same way.
      RunError: no batch for TIMEOUT seconds.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be 1 or more")
    local_rows = range(batch_size) if local_rows is None else local_rows
    if not 0 <= local_rows[0] <= local_rows[-1] < batch_size or first_row < 0 or prefetch < 0:
        raise ValueError(f"{local_rows=} of {batch_size=}, {first_row=}, {prefetch=}")
    starts = range(first_row, len(dataset), batch_size)
    parts = ([start + row for row in local_rows] for start in starts)
    return _ahead(dataset, parts, prefetch) if prefetch else (_make(dataset, rows) for rows in parts)


def _make(dataset: Dataset, rows: Sequence[int]) -> Batch:
    try:
        existing = [row for row in rows if row < len(dataset)]
        if len(existing) == len(rows):
            return _stack(dataset, rows)
        padding = _stack(dataset, [len(dataset) - 1])
        if "weights" not in padding:
            raise ValueError('examples without "weights" cannot be padded to a full batch')
        zeros = {name: np.zeros((len(rows) - len(existing), *a.shape[1:]), a.dtype) for name, a in padding.items()}
        if not existing:
            return zeros
        return {name: np.concatenate([a, zeros[name]]) for name, a in _stack(dataset, existing).items()}
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
    """The batches of these rows; a thread makes up to `depth` of them ahead."""
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
        """The rows being made and the thread's calls, innermost first. They show which source hangs."""
        frame = sys._current_frames().get(worker.ident or 0)
        calls = traceback.extract_stack(frame)[:-4:-1] if frame else []
        where = " < ".join(f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls)
        return f"data rows {making[0]}-{making[-1]}, at {where or 'no line of Python'}"

    def finish() -> None:
        stop.set()
        worker.join(ENDING)

    # The thread is a daemon, so that a hung source cannot keep the program from ending. It is stopped before the
    # interpreter exits: a thread that is killed inside C++ code would abort the process.
    worker = threading.Thread(target=work, name="data", daemon=True)
    atexit.register(finish)
    worker.start()
    try:
        while (item := _next(ready, worker, doing)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        if not stop.is_set():  # it is set if the interpreter is exiting and atexit ran first
            finish()
            atexit.unregister(finish)


def _next(
    ready: "queue.Queue[Batch | BaseException | None]", worker: threading.Thread, doing: Callable[[], str]
) -> Batch | BaseException | None:
    """The thread's next item. While it waits, it prints notices on stderr."""
    since, notice = time.monotonic(), NOTICE
    while True:
        try:
            return ready.get(timeout=min(1.0, NOTICE))
        except queue.Empty:
            waited = time.monotonic() - since
            if not worker.is_alive() and ready.empty():
                raise RunError(f"the data thread died; it was at {doing()}") from None
            if waited > TIMEOUT:
                raise RunError(f"no batch for {waited:.0f} s, the data source hangs: {doing()}") from None
            if waited > notice:
                print(f"no batch for {waited:.0f} s: {doing()}; the run ends after {TIMEOUT:.0f} s", file=sys.stderr)
                notice *= 3
