"""How a step is saved while training continues: `with Writer(folder, ...) as writer: writer.save(state, ...)`.

A step is wholly there or absent, whatever instant the process is killed or the power fails at:

 1. Orbax writes the items into 1200.part. A folder of that name is no step: readers look for a number.
 2. Every file and every folder in it is synced. Now the items are on the disk.
 3. The files are digested, and the manifest is written and synced: it cannot be on the disk before what it lists.
 4. 1200.part is renamed to 1200, in one operation of the file system, and the folder of steps is synced. A power
    failure before that leaves 1200.part; after it, 1200 with all its files, which were on the disk before its name was.
 5. The files are read back, from the disk where the kernel can drop its copies, and compared with the
    manifest. Only then are older steps deleted: renamed first (800.deleting), so that none is ever half there.

What a killed save leaves (*.part, *.deleting) is removed by the next run, which says so. With several processes each
digests its share of the files, and process 0 does the rest between two barriers.

In an object store (`store.py`) there is no rename and no sync. Orbax writes the items to 1200/ itself, they are
digested by reading them back, listed once more, and the manifest, which makes 1200 a step there, comes last; it goes
first when an old step is deleted. A 1200/ without one is what a killed save leaves.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from transformer_jax import files, hosts
from transformer_jax.contracts import TrainState
from transformer_jax.errors import RunError, first_line
from transformer_jax.runs import checkpoint, lock, manifest, pruning, saved, store, versions
from transformer_jax.runs.manifest import Damaged

PAUSES = (1.0, 10.0)  # seconds before a save that failed is tried again; after as many tries the run ends
BARRIER = 600.0  # seconds that processes wait for each other at the end of a save


class Writer:
    """Saves states of one run into one folder, asynchronously, and deletes the old ones.

        with Writer(workdir / "checkpoints", family="gpt", config=experiment_json, keep=2, keep_best=1) as writer:
            writer.save(state, rows=step * batch_size, metric=validation_loss)
            ...
            if writer.check():  # at every step: the save failed, and is to be tried again with the state of now
                writer.save(state, ...)

    `save` returns when the arrays have left the device and may be donated; a thread writes them. Leaving the block
    waits, and raises where the last save failed.

    Args:
      folder: made if it is missing; what killed saves left in it is removed.
      run: the id of the run (`workdir.run_id`), which each step states; "": of none.
      family: the name of the model's family. config: the resolved experiment as JSON values.
      keep: the newest n are kept. keep_best: and the n best by their metric, of which the `best` one, "lowest" or
        "highest", is best; of equals the earliest.
      data: what tells the run's data from others (`fingerprint.identity`).
      code: {file: digest} of the user's files that define types of the experiment.
      base: the model that an adapter is of (`frozen.identity`).
      further: the models that the task reads beside the trained one (`train.further.digests`).
      averaged: the steps of which the parameters are the mean (`average.create`).
      metrics: {step: value} of what is known by now, which counts before what the steps themselves state: a step may
        have been saved before it was evaluated.
      scheduled: whether an uninterrupted run saves a step. Any other, which a signal or a failed save has made, is kept
        while it is the newest and takes no other's room, so that the same steps are left in the end.
      resumed: the step that the run resumes from. Newer ones are damaged; they are set aside as STEP.damaged.
      is_owner: called before a save writes anything, and before what it wrote becomes a step. It raises `lock.Lost`
        where another run has the folder, and that ends this one.
      before: called before what was written becomes a step: what a step needs beside it is made safe there. What these
        two raise fails the save; the thread that saves calls them.
      say: receives a line on what is cleaned up, set aside, and tried again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        family: str,
        config: dict[str, Any],
        run: str = "",
        keep: int = 2,
        keep_best: int = 0,
        best: str = "lowest",
        code: Mapping[str, str] | None = None,
        data: str = "",
        base: Mapping[str, str] | None = None,
        further: Mapping[str, str] | None = None,
        averaged: Sequence[int] = (),
        metrics: Callable[[], Mapping[int, float]] = dict,
        scheduled: Callable[[int], bool] = lambda step: True,
        resumed: int | None = None,
        is_owner: Callable[[], object] = lambda: None,
        before: Callable[[], object] = lambda: None,
        say: Callable[[str], object] = warnings.warn,
    ) -> None:
        self.folder, self.say = store.absolute(folder), say
        self._is_owner, self._before = is_owner, before
        self._remote, self._run = store.remote(folder), run
        self._metrics, self._scheduled = metrics, scheduled
        self._keep: Any = {"keep": keep, "keep_best": keep_best, "best": best}
        self._facts = {
            "format": saved.FORMAT,
            "family": family,
            "config": config,
            "run": run,
            "versions": versions.here(),
        }
        if code:
            self._facts["code"] = dict(code)
        if data:
            self._facts["data"] = data
        if base:
            self._facts["base"] = dict(base)
        if further:
            self._facts["further"] = dict(further)
        if averaged:
            self._facts["averaged"] = list(averaged)
        self._first = jax.process_index() == 0
        if self._first:
            if not self._remote:
                self.folder.mkdir(parents=True, exist_ok=True)
                files.sync(self.folder.parent)
            pruning.clean(self.folder, resumed, say)
        # Every call into Orbax runs on this thread. Ctrl-C interrupts the main thread alone, which keeps waiting:
        # an interrupt inside Orbax would leave its bookkeeping and the folder at odds.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._checkpointer: Any = None
        self._step = 0
        self._saving: Future[None] | None = None
        self._failures, self._retry_at = 0, 0.0

    def save(self, state: TrainState, *, rows: int, metric: float | None = None) -> None:
        """Begins to save `state` under its step; when that step is there already, old ones are deleted, no more.

        Waits for a save that is under way; if it failed, this one takes its place.

        Args:
          state: what is saved.
          rows: examples consumed, all that the input pipeline needs to resume.
          metric: the reported number that says which checkpoint is best, where there was one.

        Raises:
          RunError: as `check`.
        """
        ocp = checkpoint.orbax()
        self._settle()
        self._step = int(state.step)
        items = checkpoint.state_items(state)
        dtypes = {item: sorted({str(x.dtype) for x in jax.tree.leaves(tree)}) for item, tree in items.items()}
        meta = {**self._facts, "step": self._step, "rows": rows, "metric": metric, "dtypes": dtypes}
        saves = {item: ocp.args.StandardSave(tree) for item, tree in items.items()}
        args = ocp.args.Composite(**saves, meta=ocp.args.JsonSave(meta))
        begun = self._thread.submit(self._begin, args)
        self._saving = self._thread.submit(self._finish, begun)
        _outlast_interrupts(begun)

    def check(self) -> bool:
        """Whether the last save has failed and the state of now is to be saved in its place; waits for nothing.

        What went wrong is logged. Raises `RunError` when it is the last of `len(PAUSES) + 1` tries in a row, or one of
        several processes, which have no way to agree on another try.
        """
        if self._saving is not None and self._saving.done():
            self._settle()
        return self._failures > 0 and time.monotonic() >= self._retry_at

    def wait(self) -> bool:
        """Waits until what was saved is wholly there; True when it failed and is to be saved again, as of `check`.

        Ctrl-C is raised afterwards.
        """
        self._settle()
        if self._failures:
            time.sleep(max(0.0, self._retry_at - time.monotonic()))
        return self._failures > 0

    def __enter__(self) -> "Writer":
        checkpoint.quieten()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            self._settle()
            if self._failures and kind is None:
                raise RunError(f"saving step {self._step} to {self.folder} failed; the message above says how")
        finally:
            _outlast_interrupts(self._thread.submit(self._close))
            self._thread.shutdown()

    def _settle(self) -> None:
        """Waits for the save that is under way and takes note of how it ended."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            _outlast_interrupts(saving)
        finally:
            failure = saving.exception()
            if failure is None:
                self._failures = 0
            else:
                self._failed(failure)

    def _failed(self, failure: BaseException) -> None:
        if isinstance(failure, lock.Lost):
            raise failure
        what = f"saving step {self._step} to {self.folder} failed: {first_line(failure)}"
        self._failures += 1
        if self._failures > len(PAUSES) or jax.process_count() > 1:
            left = "which step is the newest there cannot be read either"
            with contextlib.suppress(store.Failed):
                newest = saved.latest_step(self.folder)
                left = "no step is there yet" if newest is None else f"the newest step there is {newest:,}"
            mend = "see the store" if self._remote else "make room or mend the disk"
            raise RunError(f"{what}; {left}; {mend}, and give the command again") from failure
        pause = PAUSES[self._failures - 1]
        self._retry_at = time.monotonic() + pause
        self.say(f"{what}; trying again in {pause:.0f} s (try {self._failures + 1} of {len(PAUSES) + 1})")

    # On the checkpoint thread:

    def _begin(self, args: Any) -> bool:
        """Copies the arrays off the device and begins to write them to STEP.part, in a store to STEP; False where the
        step is there: it became one, and then an old one could not be deleted."""
        ocp = checkpoint.orbax()
        self._is_owner()
        if self._step in saved.steps(self.folder):
            return False
        if self._checkpointer is None:
            self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        part = self._part()
        if self._first and not self._remote and os.path.lexists(part):  # a failed attempt's part
            pruning.delete(part, self.say)
        if self._first and self._remote:
            if store.there(part / manifest.NAME):  # a step that is there but was not counted as one
                pruning.set_aside(part, self.say)
            store.delete_folder(part, manifest.NAME)
        self._checkpointer.save(part, args=args)
        return True

    def _part(self) -> Path:
        return self.folder / (str(self._step) if self._remote else f"{self._step}.part")

    def _finish(self, begun: Future[bool]) -> None:
        """Waits for the arrays, and makes what was written a step: the steps 2 to 5 above."""
        part, final = self._part(), self.folder / str(self._step)
        index, count = jax.process_index(), jax.process_count()
        try:
            if not begun.result():
                if self._first:
                    self._delete_old()
                return
            self._checkpointer.wait_until_finished()
        except BaseException:
            self._checkpointer = None  # its bookkeeping is at odds with the folder; the next try gets a new one
            raise
        if not self._remote:
            files.sync_tree(part)
        listed = manifest.digest(part, manifest.names(part)[index::count])
        if count > 1:
            if not self._first:
                manifest.write(self.folder / f"{self._step}.part.{index}.json", listed)
            self._barrier("digested")
        if self._first:
            for shared in [self.folder / f"{self._step}.part.{i}.json" for i in range(1, count)]:
                listed |= manifest.read(shared).files
            if self._remote:
                manifest.compare(part, listed)  # one listing, also where several hosts made the digests
            self._before()
            self._is_owner()
            manifest.write(part / manifest.NAME, listed, step=self._step, run=self._run)
            if not self._remote:
                if os.path.lexists(final):  # a step that is there but was not counted as one
                    pruning.set_aside(final, self.say)
                part.rename(final)
                files.sync(self.folder)
                self._read_back(final)
            for i in range(1, count):
                shared = self.folder / f"{self._step}.part.{i}.json"
                store.delete(shared) if self._remote else shared.unlink()
            self._delete_old()
        self._barrier("committed")

    def _read_back(self, final: Path) -> None:
        try:
            manifest.forget(final)
            manifest.verify(final)
        except Damaged:
            pruning.set_aside(final, self.say)
            raise

    def _delete_old(self) -> None:
        pruning.delete_old(self.folder, self._metrics(), self._scheduled, **self._keep, say=self.say)

    def _barrier(self, name: str) -> None:
        """Waits for the other processes, by the coordination service: the devices are busy with training."""
        hosts.gather(f"step {self._step} {name}", "", wait=BARRIER)

    def _close(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()


def _outlast_interrupts(future: Future[Any]) -> None:
    """Waits for what the checkpoint thread does, through any number of Ctrl-C, the last of which is raised then."""
    interrupt: KeyboardInterrupt | None = None
    while not future.done():
        try:
            future.exception()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
