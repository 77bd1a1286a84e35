"""The steps of a run: batch, step, metrics; evaluations and saves when they are due."""

import collections
import contextlib
import dataclasses
import math
import time
from typing import Any

import jax

from transformer_jax import observe
from transformer_jax.data import pipeline
from transformer_jax.errors import RunError
from transformer_jax.experiment import computed_in
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import records, saved
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import diagnose, sampling
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import program as programs
from transformer_jax.train import state as state_lib
from transformer_jax.train.setup import Run

LONG = 480.0  # seconds of a run on a CPU above which its start says how to shorten it


def steps(run: Run, *, profile: tuple[int, int] | None = None, debug_nans: bool = False) -> None:
    """Takes steps until the last one, a signal, or the end of `evaluate.patience`.

    The metrics of a step are read while the next one runs, so that the host never waits for the device, except before
    an evaluation or a save.

    Args:
      run: ready for its next step.
      profile: (first, last): these steps are traced into WORKDIR/profile.
      debug_nans: stop at the first step that is not finite and report the operation; each step is then waited for.

    Raises:
      RunError: `train.max_skips` steps in a row were not finite.
    """
    experiment, train = run.experiment, run.experiment.train
    limit = 1 if debug_nans else train.max_skips
    watch = diagnose.Watch(limit=limit, spike=train.spike, skipped=int(run.state.skipped))
    trace = Trace(run, profile)
    unread: collections.deque[tuple[int, Any]] = collections.deque()  # (step, metrics) that the device still computes
    batch = place(run, next(run.batches))
    if is_due(run.step, experiment.evaluate.every, run.last_step) and run.step not in run.best.values:
        validate(run)  # a signal interrupted this evaluation; the best step and `patience` depend on it
    while not run.complete and not run.stop():
        run.step += 1
        trace.begin(run.step)
        run.state, metrics = run.step_fn(run.state, batch, run.train_key, *run.frozen)
        run.rows += train.batch_size
        unread.append((run.step, metrics))
        # While the device computes this step, the host makes the next batch and reads the previous step's metrics.
        if run.step < run.last_step:
            with run.meter.waiting():
                ready = next(run.batches)
            batch = place(run, ready)
        evaluate_now = is_due(run.step, experiment.evaluate.every, run.last_step)
        save_now = is_due(run.step, experiment.checkpoint.every, run.last_step) or run.writer.check()
        wait_for_step = evaluate_now or save_now or debug_nans or trace.ends(run.step)
        while len(unread) > (0 if wait_for_step else 1):
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


def is_due(step: int, every: int, last: int) -> bool:
    """Whether an event with this interval happens after this step. The last step is handled when the run ends.

    Args:
      step: steps taken.
      every: the interval in steps; 0: never.
      last: the run's last step.
    """
    return every > 0 and step % every == 0 and 0 < step < last


def scheduled(run: Run, step: int) -> bool:
    """Whether a run that nothing interrupts saves after this step: it is due, the best so far, or the last one.

    Args:
      run: with the evaluations up to now.
      step: steps taken.
    """
    keeps, best = run.experiment.checkpoint, run.best.up_to(step)
    is_best = keeps.keep_best > 0 and best.step == step
    out_of_patience = step in best.values and best.is_out_of_patience(run.experiment.evaluate.patience)
    return step >= run.last_step or is_due(step, keeps.every, run.last_step) or is_best or out_of_patience


def place(run: Run, rows: Any) -> Any:
    """A global batch of `run` on the devices, from `rows`, this host's part of it."""
    return batch_lib.place(rows, {name: leaf.sharding for name, leaf in run.program.batch.items()})


def read(run: Run, watch: diagnose.Watch, step: int, metrics: Any) -> None:
    """Waits for a step, so that the host is never more than one step ahead of the device, and logs it when it is due.

    Args:
      run: in progress.
      watch: counts skipped steps.
      step: the step.
      metrics: its metrics, which the device may still compute.

    Raises:
      RunError: too many steps in a row were not finite.
    """
    jax.block_until_ready(metrics)
    run.to_first_step = run.to_first_step or time.perf_counter() - run.began
    for line in watch.update(step, metrics):
        run.observing.print_line(line)
    if watch.limit_reached:
        raise diagnosed(run, watch, step)
    every = run.experiment.train.log_every
    if step % every == 0 or step in (1, run.last_step):
        row = run.meter.row(step, metrics)
        run.observing.row(row)
        if step == ((run.first_step + 1) // every + 1) * every:  # the first row of more than one step
            elapsed = time.perf_counter() - run.began
            if notice := long_run(step, elapsed, row["seconds_per_step"], row["seconds_left"]):
                run.observing.print_line(notice)


def long_run(step: int, elapsed: float, seconds_per_step: float, seconds_left: float) -> str:
    """A line for a run on a CPU that takes more than eight minutes: how long, and the flag that shortens it; else "".

    Args:
      step: steps taken.
      elapsed: seconds since the run began.
      seconds_per_step: the mean seconds per step since the previous row.
      seconds_left: by that rate.
    """
    if jax.default_backend() != "cpu" or elapsed + seconds_left <= LONG:
        return ""
    total = f"on this machine the run takes about {observe.duration(elapsed + seconds_left)}"
    fewer = step + int((LONG - elapsed) / seconds_per_step)
    fewer -= fewer % 10
    return f"{total}; --train.steps {fewer} takes eight minutes" if fewer > step else total


def validate(run: Run) -> None:
    """Evaluates `run`, logs the numbers and updates `run.best`; after a signal it does nothing."""
    run.report = {}
    with run.meter.pause("evaluating"), contextlib.suppress(evaluation.Stopped):
        keep = run.folder.local / records.name("validation")
        run.report, run.outputs = run.evaluator.numbers(
            run.evaluated(), run.prepared.validation, keep=keep, stop=run.stop
        )
        if run.step not in run.best.values:  # a resumed run may evaluate again what it has logged before
            run.observing.evaluation(run.step, "validation", run.report)
            sampling.draw(run)
        run.best = run.best.add(run.step, float(run.report.get(run.metric, math.nan)))
    if run.report and run.experiment.evaluate.sample and not run.complete:  # a complete run makes its last sample
        with run.meter.pause("sampling"):
            sampling.sample(run)


def save(run: Run) -> None:
    """Starts to save the state of `run`."""
    with run.meter.pause("saving"):
        run.observing.save(run.step)
        state = state_lib.to_store(run.state, run.experiment.optim)
        run.writer.save(state, rows=run.rows, metric=run.best.values.get(run.step))


def diagnosed(run: Run, watch: diagnose.Watch, step: int) -> RunError:
    """The error of a step that is not finite. Its batch is made again and diagnosed, in WORKDIR/diagnosis.json.

    Args:
      run: in progress.
      watch: counts skipped steps.
      step: the last one that was skipped.
    """
    experiment, folder = run.experiment, run.folder.path
    size = experiment.train.batch_size
    row = run.first_row + (step - run.first_step - 1) * size
    shardings = {name: leaf.sharding for name, leaf in run.program.batch.items()}
    local_rows = batch_lib.local_rows(next(iter(shardings.values())), size)
    again = next(pipeline.batches(run.prepared.train, row, size, local_rows=local_rows, prefetch=0))
    plain = dataclasses.replace(experiment, model=computed_in(experiment.model, "float32", remat="none"))
    loss = programs.make(plain, run.mesh).loss
    found = diagnose.diagnose(
        lambda params, *rest: loss(params_lib.join(params, run.state.base), *rest),
        run.state.params,
        batch_lib.place(again, shardings) | (run.frozen[0] if run.frozen else {}),
        jax.random.fold_in(run.train_key, step - 1),
        declaration=params_lib.split(run.program.declaration, run.program.declaration)[0],
        copies=run.mesh.shape["data"] * run.mesh.shape["fsdp"],
    )
    run.observing.print_line(found.table())
    if jax.process_index() == 0:
        facts = {"step": step, "first_row": row, "skipped_in_a_row": watch.in_a_row}
        workdirs.write_json(run.folder.local / "diagnosis.json", facts | found.to_json())
    newest, n = saved.latest_step(folder / "checkpoints"), watch.in_a_row
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
        """Starts the trace if `step` is its first."""
        if self.profile is not None and self.profile[0] <= step <= self.profile[1] and not self.is_on:
            jax.profiler.start_trace(str(self.run.folder.local / "profile"))
            self.is_on = True

    def ends(self, step: int) -> bool:
        """Whether `step` is the last one of the trace."""
        last = self.run.last_step if self.profile is None else min(self.profile[1], self.run.last_step)
        return self.is_on and (step >= last or self.run.stop())

    def end(self, step: int) -> None:
        """Stops the trace if `step` is its last."""
        if self.ends(step):
            jax.profiler.stop_trace()
            self.is_on = False
            where = self.run.folder.path / "profile"
            self.run.observing.print_line(f"profile up to step {step} in {where}; Perfetto and TensorBoard open it")
