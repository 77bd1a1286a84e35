"""Batches from random-access examples.

A batch is a pure function of the row it starts at, so resuming needs the number of rows consumed and nothing else: not
the number of hosts, nor the depth of the prefetch, nor where in an epoch it was. With several hosts each takes a
contiguous part of every global batch; their parts in order are the batch that one host would make.
"""

import atexit
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from transformer_jax.errors import InputError

Batch = dict[str, np.ndarray]

TIMEOUT = 300.0  # seconds without a batch after which the data is taken for hung


class Dataset(Protocol):
    """Examples by row: dicts of arrays. A Grain MapDataset is one; so is corpus.Windows.

    One with a method `stacked(rows) -> Batch` of its own, equal to stacking its examples, is asked for whole batches:
    for small examples that is many times faster.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Any: ...


def epochs(rows: int, seed: int) -> Sequence[int]:
    """Numbers below `rows` for ever: each once an epoch, in an order drawn anew each epoch (Grain's shuffle)."""
    import grain

    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed = {seed} must lie between 0 and {(1 << 32) - 1}")
    return grain.MapDataset.range(rows).shuffle(seed=seed).repeat()


def batches(
    dataset: Dataset,
    first_row: int,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """This host's part of the batches of rows `first_row`, `first_row + batch_size`, ...

    Arguments:
        dataset: endless (len is sys.maxsize) for training, finite for evaluation. A finite one ends with a full batch:
            rows past the end are zeros, their "weights" too.
        batch_size: rows in a global batch; the hosts share it evenly.
        prefetch: batches made ahead by a thread; 0 makes each when it is asked for.

    An exception while making a batch is raised here, naming the rows, as soon as the batches before it are consumed;
    InputError stays InputError. TimeoutError after TIMEOUT seconds without a batch.
    """
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f"batch size {batch_size} must be a positive multiple of the {process_count} hosts sharing it")
    if not 0 <= process_index < process_count or first_row < 0 or prefetch < 0:
        raise ValueError(f"{process_index=} of {process_count=}, {first_row=}, {prefetch=}")
    share = batch_size // process_count
    starts = range(first_row, len(dataset), batch_size)
    parts = (range(start + process_index * share, start + (process_index + 1) * share) for start in starts)
    made = (_make(dataset, rows) for rows in parts)
    return _ahead(made, prefetch) if prefetch else made


def _make(dataset: Dataset, rows: range) -> Batch:
    try:
        here = rows[: max(len(dataset) - rows.start, 0)]
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
        where = f"data rows {rows.start}-{rows.stop - 1}"
        if isinstance(error, InputError):
            raise InputError(f"{where}: {error}") from error
        raise RuntimeError(f"{where} could not be made: {type(error).__name__}: {error}") from error


def _stack(dataset: Dataset, rows: Sequence[int]) -> Batch:
    if stacked := getattr(dataset, "stacked", None):
        return stacked(rows)
    examples = [dataset[row] for row in rows]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _ahead(made: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same batches, up to `depth` of them made by a thread before they are asked for."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)  # None: the end
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                pass

    def work() -> None:
        try:
            for batch in made:
                put(batch)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    def finish() -> None:
        stop.set()
        worker.join(timeout=5)

    # A daemon, so that a source that hangs cannot keep the program from ending; and stopped before the interpreter
    # goes, which would otherwise tear the thread out of the middle of somebody's C++ and abort.
    worker = threading.Thread(target=work, name="data", daemon=True)
    atexit.register(finish)
    worker.start()
    try:
        while (item := _next(ready, worker)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        if not stop.is_set():  # set already: the interpreter is ending, and atexit came first
            finish()
            atexit.unregister(finish)


def _next(ready: "queue.Queue[Batch | BaseException | None]", worker: threading.Thread) -> Batch | BaseException | None:
    waited_since = time.monotonic()
    while True:
        try:
            return ready.get(timeout=1)
        except queue.Empty:
            if not worker.is_alive() and ready.empty():
                raise RuntimeError("the data thread ended without a word") from None
            if time.monotonic() - waited_since > TIMEOUT:
                raise TimeoutError(f"no batch for {TIMEOUT:.0f} s: the data source hangs") from None
