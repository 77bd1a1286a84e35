"""The steps of a run: batch, step, metrics; evaluations and saves when they are due."""

import collections
import contextlib
import dataclasses
import math
import time
from typing import Any

import jax

from transformer_jax.data import pipeline
from transformer_jax.errors import RunError
from transformer_jax.experiment import computed_in
from transformer_jax.runs import checkpoint
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import diagnose
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import program as programs
from transformer_jax.train import state as state_lib
from transformer_jax.train.setup import Run


def steps(run: Run, *, profile: tuple[int, int] | None = None, debug_nans: bool = False) -> None:
    """Takes steps until the last one, a signal, or the end of patience.

    The metrics of a step are read while the next one runs: nothing here waits for the device, except before an
    evaluation or a save.

    Args:
      profile: (first, last): these steps are traced into WORKDIR/profile.
      debug_nans: stop at the first step that is not finite, and say which operation it is; no step runs ahead.
    Raises:
      RunError: where `train.max_skips` steps in a row were not finite.
    """
    experiment, train = run.experiment, run.experiment.train
    limit = 1 if debug_nans else train.max_skips
    watch = diagnose.Watch(limit=limit, spike=train.spike, skipped=int(run.state.skipped))
    trace = Trace(run, profile)
    unread: collections.deque[tuple[int, Any]] = collections.deque()  # the step that the device is working on
    batch = place(run, next(run.batches))
    if due(run.step, experiment.evaluate.every, run.last_step) and run.step not in run.best.values:
        validate(run)  # a signal interrupted it; what is best and when patience ends depend on it
    while not run.complete and not run.stop():
        run.step += 1
        trace.begin(run.step)
        run.state, metrics = run.step_fn(run.state, batch, run.train_key)
        run.rows += train.batch_size
        unread.append((run.step, metrics))
        # The device is busy with this step: time to make the next batch ready and to read the step before.
        if run.step < run.last_step:
            with run.meter.waiting():
                ready = next(run.batches)
            batch = place(run, ready)
        evaluate_now = due(run.step, experiment.evaluate.every, run.last_step)
        save_now = due(run.step, experiment.checkpoint.every, run.last_step) or run.writer.check()
        settle = evaluate_now or save_now or debug_nans or trace.ends(run.step)
        while len(unread) > (0 if settle else 1):
            read(run, watch, *unread.popleft())
        trace.end(run.step)
        if evaluate_now:
            validate(run)
            save_now |= experiment.checkpoint.keep_best > 0 and run.best.step == run.step
        if save_now:
            save(run)
    while unread:
        read(run, watch, *unread.popleft())
    run.meter.stop()


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps happens after this one; the end has its own."""
    return every > 0 and step % every == 0 and 0 < step < last


def place(run: Run, rows: Any) -> Any:
    """This host's rows of a batch on the devices."""
    return batch_lib.place(rows, {name: leaf.sharding for name, leaf in run.program.batch.items()})


def read(run: Run, watch: diagnose.Watch, step: int, metrics: Any) -> None:
    """Waits for a step, so that never more than one is ahead of us, and logs it when it is its turn."""
    jax.block_until_ready(metrics)
    run.to_first_step = run.to_first_step or time.perf_counter() - run.began
    for line in watch.note(step, metrics):
        run.observing.say(line)
    if watch.hopeless:
        raise went_bad(run, watch, step)
    if step % run.experiment.train.log_every == 0 or step in (1, run.last_step):
        run.observing.row(run.meter.row(step, metrics))


def validate(run: Run) -> None:
    """Evaluates, logs and remembers; nothing when a signal came meanwhile."""
    run.report = {}
    with run.meter.pause("evaluating"), contextlib.suppress(evaluation.Stopped):
        run.report, run.outputs = run.evaluator.numbers(run.evaluated(), run.prepared.validation, stop=run.stop)
        if run.step not in run.best.values:  # a resumed run may look again at what it has logged before
            run.observing.evaluation(run.step, "validation", run.report)
        run.best = run.best.add(run.step, float(run.report.get(run.metric, math.nan)))


def save(run: Run) -> None:
    """Begins to save the state."""
    with run.meter.pause("saving"):
        run.observing.save(run.step)
        state = state_lib.to_store(run.state, run.experiment.optim)
        run.writer.save(state, rows=run.rows, metric=run.best.values.get(run.step))
        run.saved_at = run.step


def went_bad(run: Run, watch: diagnose.Watch, step: int) -> RunError:
    """What is wrong with a step's batch, which is made again: in WORKDIR/diagnosis.json, and as the error."""
    experiment, folder = run.experiment, run.place.folder
    size = experiment.train.batch_size
    row = run.first_row + (step - run.first_step - 1) * size
    shardings = {name: leaf.sharding for name, leaf in run.program.batch.items()}
    here = batch_lib.here(next(iter(shardings.values())), size)
    again = next(pipeline.batches(run.prepared.train, row, size, here=here, prefetch=0))
    plain = dataclasses.replace(experiment, model=computed_in(experiment.model, "float32", remat="none"))
    found = diagnose.diagnose(
        programs.make(plain, run.mesh).loss,
        run.state.params,
        batch_lib.place(again, shardings),
        jax.random.fold_in(run.train_key, step - 1),
        declaration=run.program.declaration,
        copies=run.mesh.shape["data"] * run.mesh.shape["fsdp"],
    )
    run.observing.say(found.table())
    if jax.process_index() == 0:
        facts = {"step": step, "first_row": row, "skipped_in_a_row": watch.in_a_row}
        workdirs.write_json(run.place.near / "diagnosis.json", facts | found.to_json())
    newest, n = checkpoint.latest_step(folder / "checkpoints"), watch.in_a_row
    return RunError(
        f"{f'steps {step - n + 1:,}-{step:,} were' if n > 1 else f'step {step:,} was'} skipped; of the last, "
        f"{found.describe(row)}; norms are in {folder / 'diagnosis.json'}; look at these rows, lower "
        f"optim.peak_lr, or never stop (--train.max-skips 0): the same command goes on from "
        f"{'the beginning' if newest is None else f'the newest checkpoint, step {newest:,}'}"
    )


class Trace:
    """A trace of the steps FIRST to LAST in WORKDIR/profile."""

    def __init__(self, run: Run, profile: tuple[int, int] | None) -> None:
        self.run, self.profile, self.is_on = run, profile, False

    def begin(self, step: int) -> None:
        """Starts before the first of the steps."""
        if self.profile is not None and self.profile[0] <= step <= self.profile[1] and not self.is_on:
            jax.profiler.start_trace(str(self.run.place.near / "profile"))
            self.is_on = True

    def ends(self, step: int) -> bool:
        """Whether this is the last step of the trace."""
        last = self.run.last_step if self.profile is None else min(self.profile[1], self.run.last_step)
        return self.is_on and (step >= last or self.run.stop())

    def end(self, step: int) -> None:
        """Stops after the last of the steps."""
        if self.ends(step):
            jax.profiler.stop_trace()
            self.is_on = False
            where = self.run.place.folder / "profile"
            self.run.observing.say(f"profile up to step {step} in {where}; Perfetto and TensorBoard open it")
