"""A run, from the experiment to the last number: read it from top to bottom.

    results = run(experiment, "runs/a", load=transformer_jax.load)

The folder explains itself at every moment: config.json is there before the first step, and each checkpoint is whole or
absent. Running it again goes on from the newest good one; the order is always resume -> init_from -> scratch. A batch
is a function of the rows consumed and dropout's key one of the step, so a run that was stopped and taken up gives the
parameters of one that was not, to the bit (on the same devices).
"""

import contextlib
import dataclasses
import errno
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer_jax import brought, config_json, hosts, models, observe, sharding
from transformer_jax.data import pipeline, tokenizers
from transformer_jax.errors import InputError, RunError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, fingerprint, lock, store, store_lock
from transformer_jax.runs import workdir as workdirs
from transformer_jax.runs.writer import Writer
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import diagnose, start
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import program as programs
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib
from transformer_jax.train.stop import StopSignals

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # what a disk may answer to a write


@dataclass(frozen=True)
class Results:
    """How a run ended.

    Fields:
      step: optimiser steps taken.
      report: the validation numbers by name, and as strings their conventions; empty when a signal ended the run.
      signal: the number of the signal that ended the run; 0 when it is complete.
      test: the numbers of the test set by the best checkpoint; empty where there is no test set.
    """

    step: int
    report: Mapping[str, float | str]
    signal: int = 0
    test: Mapping[str, float | str] = field(default_factory=dict)


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    *,
    load: Callable[..., Any],
    on_row: Callable[[observe.Row], None] | None = None,
    profile: tuple[int, int] | None = None,
    debug_nans: bool = False,
    verify: bool = True,
) -> Results:
    """Trains `experiment` in `workdir`, or goes on with it.

    Arguments:
      load: `transformer_jax.load`, which reads the parameters that `experiment.init_from` names.
      on_row: called with each logged row, on every process.
      profile: (first, last): these steps are traced into WORKDIR/profile.
      debug_nans: stop at the first step that is not finite, and say which operation it is; no step runs ahead.
      verify: False goes on from the newest checkpoint without comparing its files with its manifest.
    Errors: `InputError` for all that the user can mend, before anything is written; `RunError` when the run has to
      stop, with what was saved before as it was.
    """
    folder = store.path(workdir)
    try:
        with contextlib.ExitStack() as held:  # the workdir's lock, until the last number is written
            return _run(
                experiment,
                folder,
                held,
                load=load,
                on_row=on_row,
                profile=profile,
                debug_nans=debug_nans,
                verify=verify,
            )
    except Exception as error:
        if store.remote(folder) and (told := store.explain(error)):
            raise RunError(f"{folder}: {told}") from error
        if not isinstance(error, OSError) or error.errno not in _DISK:
            raise
        newest = checkpoint.latest_step(folder / "checkpoints")
        raise RunError(
            f"{error.filename or workdir}: {error.strerror}; the newest step in {workdir} is {newest}; make room or "
            "mend the disk, and give the command again"
        ) from error


def _run(
    experiment: Experiment,
    folder: Path,
    held: contextlib.ExitStack,
    *,
    load: Callable[..., Any],
    on_row: Callable[[observe.Row], None] | None,
    profile: tuple[int, int] | None,
    debug_nans: bool,
    verify: bool,
) -> Results:
    began = time.perf_counter()
    primary = jax.process_index() == 0
    say = observe.banner
    train, best_metric = experiment.train, experiment.checkpoint.best_metric

    # ------------------------------------------------------------------------------------------------- 1. The workdir
    say(1, f"workdir {folder}")
    experiment = dataclasses.replace(experiment, task=experiment.task.settle(experiment.data))
    stored = workdirs.stored_experiment(folder, brought.types_in(experiment))
    if stored is not None and experiment.init_from and experiment.init_from == stored.init_from:
        # What it said when the run began.
        experiment = start.adopt(experiment, stored.model, lambda line: None, task=stored.task)
    changed = workdirs.check(folder, experiment)
    saved_step = checkpoint.latest_step(folder / "checkpoints")
    for line in changed:
        say(1, f"changed since it was last run: {line}")
    done = workdirs.read_results(folder)
    if not hosts.alone():
        hosts.agree("what is to be run", fingerprint.program(experiment, saved_step, done.get("step")))
    if saved_step is not None and done.get("step") == saved_step:
        numbers = observe.describe(done["report"], best_metric)
        if saved_step >= train.steps:
            say(1, f"already complete at step {saved_step:,}: {numbers}")
            say(1, f"to go on, give more steps: --train.steps {2 * saved_step}")
            return Results(saved_step, done["report"], test=done.get("test", {}))
        if done.get("stopped_by_patience") == experiment.evaluate.patience > 0:
            say(1, f"complete: stopped by evaluate.patience at step {saved_step:,}: {numbers}")
            say(1, "to go on, wait for longer: --evaluate.patience 0")
            return Results(saved_step, done["report"], test=done.get("test", {}))
    still_ours: Callable[[], None] = lambda: None  # noqa: E731
    hold = store_lock.hold if store.remote(folder) else lock.hold
    if primary and stored is not None:  # a new folder is made, and locked, when nothing is left to refuse
        still_ours = held.enter_context(hold(folder, lambda line: say(1, line)))
    # What is not a checkpoint is written here: in the workdir, or in place of it where that is in a store.
    near, publish = held.enter_context(store.near(folder, ("metrics.jsonl", "tokenizer/")))
    named = lambda line: line.replace(str(near), str(folder))  # noqa: E731
    saved_step = checkpoint.newest(folder / "checkpoints", lambda line: say(1, line), verify=verify, together=True)

    # ------------------------------------------------------------------------- 2. Devices, model, the step to compile
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    loaded = None
    if saved_step is None and experiment.init_from:
        loaded = load(experiment.init_from, dtype="float32", sharding=mesh)
        experiment = start.adopt(experiment, loaded.config, lambda line: say(2, line), task=loaded.task)
    task = experiment.task
    program = programs.make(experiment, mesh)
    model = program.model
    eval_size = experiment.evaluate.batch_size or train.batch_size // train.accumulate
    eval_places = batch_lib.shardings(task.example(experiment.data), eval_size, mesh)
    used = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    say(2, f"{jax.device_count()} x {jax.devices()[0].device_kind} ({used}), compute in {model.dtype}")
    say(2, f"{program.family}: {params_lib.count(program.declaration):,} parameters")

    # ---------------------------------------------------------- 3. Where to start: resume, else init_from, else scratch
    init_key, train_key = jax.random.split(jax.random.key(experiment.seed))
    tokenizer, rows = None, 0  # rows: examples consumed, all that the input pipeline needs to go on
    if saved_step is not None:
        say(3, f"resume from step {saved_step:,} of {train.steps:,}")
        state, meta = checkpoint.restore_state(folder / "checkpoints" / str(saved_step), program.state, verify=False)
        tokenizer, rows = tokenizers.load(near / "tokenizer") if task.reads_text else None, meta["rows"]
    elif loaded is not None:
        say(3, f"parameters from {experiment.init_from}")
        if (
            task.reads_text
            and loaded.tokenizer is None
            and not isinstance(experiment.data.tokenizer, tokenizers.TokenizerFile)
        ):
            raise InputError(
                f"init_from {experiment.init_from} has no tokenizer, so its ids have no meaning here; add its "
                "tokenizer.json, or state it in the experiment as data.tokenizer"
            )
        tokenizer = loaded.tokenizer
        resized = models.hook(model, "resized")(loaded.params, loaded.config, model, lambda line: say(3, line))
        state = program.create(
            start.transfer(resized, program.declaration, experiment, init_key, mesh, lambda line: say(3, line))
        )
        loaded = None  # one copy of the parameters is enough
    else:
        say(3, f"from scratch, seed {experiment.seed}")
        extras: dict[str, Any] = {"ema": program.state.ema is not None, "recent": step_lib.RECENT * (train.spike > 0)}
        state = state_lib.init(init_key, program.declaration, program.optimizer, mesh, **extras)
    first = saved_step or 0

    # ---------------------------------------------------------------------------------------------------- 4. The data
    prepared = task.prepare(experiment.data, model, seed=experiment.seed, workdir_tokenizer=tokenizer)
    for fact, value in prepared.facts.items():
        form = {int: ",", float: ".4f"}.get(type(value), "")
        say(4, f"{fact.replace('_', ' ')}: {value:{form}}")
    with jax.set_mesh(mesh):
        reported = _reported(program, task, prepared.validation)
    if best_metric not in reported:
        raise InputError(f"checkpoint.best_metric is {best_metric!r}; this task reports {', '.join(reported)}")

    if not hosts.alone():
        hosts.agree("the data", fingerprint.data(prepared))

    # Nothing was refused: from here on the folder is this run's.
    if primary:
        if stored is None:
            still_ours = held.enter_context(hold(folder, lambda line: say(4, line)))
        workdirs.write_json(near / "config.json", config_json.to_json(experiment))
        if prepared.tokenizer is not None:
            prepared.tokenizer.save(near / "tokenizer")
        publish()
        held.push(lambda kind, *_: _publish_last(still_ours, publish, failed=kind is not None))
    hosts.gather("the workdir", "")  # now host 0 has written
    workdirs.refuse_unshared(folder)

    # ----------------------------------------------------------------------------------------------- 5. Compile, once
    compiling = time.perf_counter()
    with jax.set_mesh(mesh):
        step_fn = program.step.lower(program.state, program.batch, train_key).compile()  # another shape is an error now
    compile_seconds = time.perf_counter() - compiling
    say(5, f"compiled in {compile_seconds:.1f} s")

    # ------------------------------------------------------------------------------------------------------ 6. Train
    eval_step = evaluation.make_eval_step(program.evaluate)
    batch_places = {name: leaf.sharding for name, leaf in program.batch.items()}
    batch_here = batch_lib.here(next(iter(batch_places.values())), train.batch_size)
    chooses = experiment.checkpoint
    # Host 0's: it is about to write that file.
    history = hosts.first("the history", _history(near / "metrics.jsonl", f"validation/{best_metric}", up_to=first))
    to_first_step = 0.0
    report: Mapping[str, Any] = {}
    outputs: Mapping[str, Any] = {}

    with (
        jax.set_mesh(mesh),
        StopSignals() as stop,
        observe.Observer(
            near, steps=train.steps, metric=best_metric, first_step=first, on_row=on_row, primary=primary
        ) as observer,
        Writer(
            folder / "checkpoints",
            family=program.family,
            config=config_json.to_json(experiment),
            keep=experiment.checkpoint.keep,
            keep_best=experiment.checkpoint.keep_best,
            best=experiment.checkpoint.best,
            resumed=saved_step,
            still_ours=still_ours,
            before=publish,  # the rows up to a step, by which a resumed run knows its best
            say=lambda line: say(6, line),
        ) as writer,
        contextlib.closing(  # type: ignore[type-var]
            pipeline.batches(prepared.train, rows, train.batch_size, here=batch_here)
        ) as batches,
    ):

        def read(step: int, metrics: Any) -> None:
            """Waits for the step, so that never more than one is ahead of us, and logs it when it is its turn."""
            nonlocal to_first_step
            jax.block_until_ready(metrics)
            to_first_step = to_first_step or time.perf_counter() - began
            for line in watch.note(step, metrics):
                observer.say(line)
            if watch.hopeless:
                raise went_bad(step)
            if step % train.log_every == 0 or step in (first + 1, train.steps):
                observer.row(meter.row(step, metrics))

        def went_bad(step: int) -> RunError:
            """What is wrong with the step's batch, which is made again: in WORKDIR/diagnosis.json, and as the error."""
            row = first_row + (step - first - 1) * train.batch_size
            again = next(pipeline.batches(prepared.train, row, train.batch_size, here=batch_here, prefetch=0))
            plain = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, remat="none"))
            found = diagnose.diagnose(
                programs.make(plain, mesh).loss,
                state.params,
                batch_lib.place(again, batch_places),
                jax.random.fold_in(train_key, step - 1),
                declaration=program.declaration,
                copies=mesh.shape["data"] * mesh.shape["fsdp"],
            )
            observer.say(found.table())
            if primary:
                facts = {"step": step, "first_row": row, "skipped_in_a_row": watch.in_a_row}
                workdirs.write_json(near / "diagnosis.json", facts | found.to_json())
            newest, n = checkpoint.latest_step(folder / "checkpoints"), watch.in_a_row
            return RunError(
                f"{f'steps {step - n + 1:,}-{step:,} were' if n > 1 else f'step {step:,} was'} skipped; of the last, "
                f"{found.describe(row)}; norms are in {folder / 'diagnosis.json'}; look at these rows, lower "
                f"optim.peak_lr, or never stop (--train.max-skips 0): the same command goes on from "
                f"{'the beginning' if newest is None else f'the newest checkpoint, step {newest:,}'}"
            )

        def evaluate(
            params: Any, examples: Any, stop: Callable[[], bool] = lambda: False
        ) -> tuple[dict[str, Any], Mapping[str, Any]]:
            """The numbers and outputs of a whole evaluation set."""
            sums, outputs = evaluation.evaluate(
                eval_step,
                params,
                examples.examples,
                eval_size,
                lambda batch: batch_lib.place(batch, eval_places),
                here=batch_lib.here(eval_places["weights"], eval_size),
                stop=stop,
            )
            return task.report(sums, outputs, examples), outputs

        def validate(step: int, state: state_lib.TrainState) -> None:
            """Evaluates, logs and remembers; nothing when a signal came meanwhile."""
            nonlocal report, outputs
            report = {}
            with meter.pause("evaluating"), contextlib.suppress(evaluation.Stopped):
                report, outputs = evaluate(state_lib.evaluated(state, experiment.optim), prepared.validation, stop)
                observer.row({"step": step} | {f"validation/{name}": value for name, value in report.items()})
                history.append((step, report.get(best_metric, math.nan)))

        def score(params: Any, examples: Any, name: str) -> dict[str, float | str]:
            """The numbers of the text that the model makes; none when a signal came meanwhile."""
            with observe.counting(f"{name} set") as count, contextlib.suppress(evaluation.Stopped):

                def progress(done: int, total: int) -> None:
                    if hosts.alone() and stop():  # several do not get here equally often
                        raise evaluation.Stopped
                    count(done, total)

                if not stop():
                    tokenizer, tell = prepared.tokenizer, lambda line: say(7, named(line))
                    return task.score(
                        params, model, tokenizer, examples, near, name, mesh=mesh, say=tell, progress=progress
                    )
            return {}

        def save(state: state_lib.TrainState, report: Mapping[str, Any]) -> None:
            with meter.pause("saving"):
                observer.flush()
                writer.save(state_lib.to_store(state, experiment.optim), rows=rows, metric=report.get(best_metric))

        batch = batch_lib.place(next(batches), batch_places)
        step, saved_at, tracing = first, first, False
        unread: list[tuple[int, Any]] = []  # the step that the device is working on
        first_row = rows
        limit = 1 if debug_nans else train.max_skips
        watch = diagnose.Watch(limit=limit, spike=train.spike, skipped=int(state.skipped))
        meter = observe.Meter(
            first_step=first,
            steps=train.steps,
            tokens_per_step=train.batch_size * task.tokens(experiment.data),
            flops_per_step=train.batch_size * task.flops(model, experiment.data),
            peak=observe.peak_flops(jax.devices()),
            unit=task.unit,
        )
        if _due(first, experiment.evaluate.every, train.steps) and first not in dict(history):
            validate(first, state)  # a signal cut it short; what is best and when patience ends depend on it
        # A signal may also have come after the evaluation that patience ran out at.
        impatient = bool(history) and 0 < experiment.evaluate.patience <= _best(history, chooses.best)[1]
        while step < train.steps and not stop() and not impatient:
            step += 1
            if profile is not None and profile[0] <= step <= profile[1] and not tracing:
                jax.profiler.start_trace(str(near / "profile"))
                tracing = True
            state, metrics = step_fn(state, batch, train_key)
            rows += train.batch_size
            unread.append((step, metrics))
            # The device is busy with this step: time to make the next batch ready and to read the step before.
            if step < train.steps:
                with meter.waiting():
                    ready = next(batches)
                batch = batch_lib.place(ready, batch_places)
            evaluate_now = _due(step, experiment.evaluate.every, train.steps)
            save_now = _due(step, experiment.checkpoint.every, train.steps) or writer.check()
            trace_ends = tracing and (profile is None or step >= profile[1] or step == train.steps or stop())
            while len(unread) > (0 if evaluate_now or save_now or trace_ends or debug_nans else 1):
                read(*unread.pop(0))
            if trace_ends:
                jax.profiler.stop_trace()
                tracing = False
                observer.say(f"profile up to step {step} in {folder / 'profile'}; Perfetto and TensorBoard open it")
            if evaluate_now:
                validate(step, state)
                best_step, waited = _best(history, chooses.best)
                impatient = 0 < experiment.evaluate.patience <= waited
                save_now |= chooses.keep_best > 0 and best_step == step
            if save_now:
                save(state, report if evaluate_now else {})
                saved_at = step
        while unread:
            read(*unread.pop(0))
        meter.stop()

        # --------------------------------------------------------------------------- 7. The last numbers, and save
        if step >= train.steps or (impatient and not report):
            validate(step, state)
        if step > saved_at or saved_step is None:
            save(state, report if step >= train.steps or impatient else {})
        while writer.wait():
            save(state, report if step >= train.steps or impatient else {})
        if report and (step >= train.steps or impatient):
            scores = score(state_lib.evaluated(state, experiment.optim), prepared.validation, "validation")
            if scores:
                row = {f"validation/{name}": x for name, x in scores.items() if not isinstance(x, str)}
                observer.row({"step": step} | row)
            report = {**report, **scores}
        test_report: dict[str, Any] = {}
        there = hosts.first("the steps that are kept", checkpoint.steps(folder / "checkpoints"))
        best_step = _best([h for h in history if h[0] in there], chooses.best)[0]
        if prepared.test is not None and not stop.number:
            params = state_lib.evaluated(state, experiment.optim)
            if best_step not in (None, step):  # None: no evaluation gave a number
                best = folder / "checkpoints" / str(best_step)
                damage = checkpoint.damage_of(best, items=[checkpoint.weights(best)], together=True)
                if damage:
                    say(7, f"step {best_step:,}, the best on validation, is damaged, so step {step:,} it is: {damage}")
                    best_step = None
                else:
                    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
                    params, _ = checkpoint.restore_params(best, shapes, verify=False)
            test_report, outputs = evaluate(params, prepared.test)
            test_report |= score(params, prepared.test, "test")
        if stop.number:
            say(7, f"{signal.Signals(stop.number).name}: saved at step {step:,} of {train.steps:,}")
            say(7, meter.goodput_in_words(time.perf_counter() - began))
    if primary:
        observe.plot_loss(observe.read_rows(near / "metrics.jsonl"), near / "loss.png")
    if stop.number:
        return Results(step, {}, stop.number)

    # ------------------------------------------------------------------------------------ 8. A sample, and the results
    pictured, name = (prepared.validation, "validation") if prepared.test is None else (prepared.test, "test")
    if primary:
        for path in task.pictures(outputs, pictured, near, name):
            say(8, named(f"picture: {path}"))
    params = _here(
        state_lib.evaluated(state, experiment.optim), program.declaration
    )  # host 0 writes the text by itself
    made = task.sample(params, model, prepared.tokenizer, experiment.sample, seed=experiment.seed) if primary else ()
    text = "".join(made)
    if text:
        say(8, "a sample:")
        print(text, flush=True)
    seconds = time.perf_counter() - began
    results = {
        "step": step,
        "report": dict(report),
        "best_step": best_step,
        "test": dict(test_report),
        "stopped_by_patience": experiment.evaluate.patience if step < train.steps else 0,
        "facts": dict(prepared.facts),
        "sample": text,
        "parameters": params_lib.count(program.declaration),
        "skipped_steps": int(state.skipped),
        "seconds": seconds,
        "seconds_to_first_step": to_first_step,
        "seconds_compiling": compile_seconds,
        "goodput": meter.goodput(seconds),
        "seconds_by_activity": dict(meter.spent),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    if primary:
        workdirs.write_json(near / "results.json", results)
    if step < train.steps:
        say(8, f"stopped: {experiment.evaluate.patience} evaluations without a better {best_metric}")
    say(8, f"done in {observe.duration(seconds)}: {observe.describe(dict(report), best_metric)}")
    if test_report:
        by = f"step {step:,}" if best_step is None else f"step {best_step:,}, the best on validation"
        say(8, f"test set, by {by}: {observe.describe(dict(test_report), best_metric)}")
    for name, value in {**report, **test_report}.items():
        if isinstance(value, str):
            say(8, f"{name.replace('_', ' ')}: {value}")
    say(8, meter.goodput_in_words(seconds))
    say(8, f"all numbers: {folder / 'results.json'}")
    return Results(step, report, test=test_report)


# ------------------------------------------------------------------------------------------------------------ the parts


def _publish_last(still_ours: Callable[[], None], publish: Callable[[], None], *, failed: bool) -> None:
    """Uploads what a run that ends has written beside its checkpoints. The error of one that failed comes first."""
    try:
        still_ours()
        publish()
    except RunError:
        if not failed:
            raise


def _here(params: Any, declaration: Any) -> Any:
    """The parameters on devices of this host: where all devices have a copy, on the first one."""
    if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params)):
        return jax.device_put(jax.tree.map(lambda leaf: leaf.addressable_data(0), params), jax.local_devices()[0])
    if hosts.alone():
        return params
    mesh = sharding.make_mesh(data=1, fsdp=-1, devices=jax.local_devices())
    try:
        places = params_lib.shardings(declaration, mesh)
    except InputError:  # what does not divide over these devices has to be whole
        places = jax.local_devices()[0]
    return jax.device_put(multihost_utils.process_allgather(params, tiled=True), places)


def _reported(program: programs.Program, task: Any, examples: Any) -> list[str]:
    """The names of a report on this set: of outputs that are all 0, so that nothing has to be computed."""
    sums, outputs = jax.eval_shape(program.evaluate, program.state.params, program.batch)
    nothing = {
        name: np.broadcast_to(np.zeros((), x.dtype), (len(examples.examples), *x.shape[1:]))
        for name, x in outputs.items()
    }
    return list(task.report({name: (1.0, 1.0) for name in sums}, nothing, examples))


def _history(path: Path, name: str, *, up_to: int) -> list[tuple[int, float]]:
    """(step, value) of each evaluation in metrics.jsonl up to a step, so that a resumed run knows its best."""
    rows = [row for row in observe.read_rows(path) if row.get(name) is not None and row["step"] <= up_to]
    return [(int(row["step"]), row[name]) for row in rows]


def _best(history: list[tuple[int, float]], which: str) -> tuple[int | None, int]:
    """The step of the lowest or highest value, the earliest of equals, and the evaluations since."""
    finite = [
        (value if which == "lowest" else -value, i) for i, (_, value) in enumerate(history) if math.isfinite(value)
    ]
    if not finite:
        return None, len(history)
    _, i = min(finite)
    return history[i][0], len(history) - 1 - i


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and step % every == 0 and 0 < step < last
