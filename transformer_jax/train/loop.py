"""A run, from the experiment to the last number: read it from top to bottom.

    results = run(experiment, "runs/a", load=transformer_jax.load)

The folder explains itself at every moment: config.json is there before the first step, and each checkpoint is whole or
absent. Running it again goes on from the newest checkpoint; the order is always resume -> init_from -> scratch. A batch
is a function of the rows consumed and dropout's key one of the step, so a run that was stopped and taken up gives the
parameters of one that was not, to the bit (on the same devices).
"""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from transformer_jax import experiment as experiments
from transformer_jax import hub, models, optim, sharding
from transformer_jax.data import pipeline, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import checkpoint, observe
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib
from transformer_jax.train import workdir as workdirs
from transformer_jax.train.stop import StopSignals


@dataclass(frozen=True)
class Results:
    """How a run ended.

    Fields:
      step: optimiser steps taken.
      report: the validation numbers by name; empty when a signal ended the run.
      signal: the number of the signal that ended the run; 0 when it is complete.
    """

    step: int
    report: Mapping[str, float]
    signal: int = 0


def run(
    experiment: Experiment,
    workdir: str | os.PathLike[str],
    *,
    load: Callable[..., Any],
    on_row: Callable[[observe.Row], None] | None = None,
    profile: tuple[int, int] | None = None,
) -> Results:
    """Trains `experiment` in `workdir`, or goes on with it.

    Arguments:
      load: `transformer_jax.load`, which reads the parameters that `experiment.init_from` names.
      on_row: called with each logged row, on every process.
      profile: (first, last): these steps are traced into WORKDIR/profile.
    Errors: `InputError` for all that the user can mend, before anything is written.
    """
    began = time.perf_counter()
    folder = Path(workdir)
    primary = jax.process_index() == 0
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    say = observe.banner
    task, train = experiment.task, experiment.train

    # ------------------------------------------------------------------------------------------------- 1. The workdir
    changed = workdirs.check(folder, experiment)
    saved_step = checkpoint.latest_step(folder / "checkpoints")
    say(1, f"workdir {folder}")
    for line in changed:
        say(1, f"changed since it was last run: {line}")
    done = workdirs.read_results(folder)
    if saved_step is not None and saved_step >= train.steps and done.get("step") == saved_step:
        say(1, f"already complete at step {saved_step:,}: {observe.describe(done['report'])}")
        say(1, f"to go on, give more steps: --train.steps {2 * saved_step}")
        return Results(saved_step, done["report"])

    # ------------------------------------------------------------------------- 2. Devices, model, the step to compile
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    program = make_program(experiment, mesh)
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
        state, meta = checkpoint.restore_state(folder / "checkpoints" / str(saved_step), program.state)
        tokenizer, rows = tokenizers.load(folder / "tokenizer"), meta["rows"]
    elif experiment.init_from:
        say(3, f"parameters from {experiment.init_from}")
        loaded = load(experiment.init_from, dtype="float32", sharding=mesh)
        refuse_other_model(loaded.config, model, experiment.init_from)
        tokenizer = loaded.tokenizer
        state = program.create(loaded.params)
    else:
        say(3, f"from scratch, seed {experiment.seed}")
        state = state_lib.init(
            init_key, program.declaration, program.optimizer, mesh, ema=program.state.ema is not None
        )
    first = saved_step or 0

    # ---------------------------------------------------------------------------------------------------- 4. The data
    prepared = task.prepare(experiment.data, model, seed=experiment.seed, workdir_tokenizer=tokenizer)
    for fact, value in prepared.facts.items():
        say(
            4,
            f"{fact.replace('_', ' ')}: {value:,}"
            if isinstance(value, int)
            else f"{fact.replace('_', ' ')}: {value:.4f}",
        )

    # Nothing was refused: from here on the folder is this run's.
    if primary:
        folder.mkdir(parents=True, exist_ok=True)
        workdirs.write_json(folder / "config.json", experiments.to_json(experiment))
        prepared.tokenizer.save(folder / "tokenizer")

    # ----------------------------------------------------------------------------------------------- 5. Compile, once
    compiling = time.perf_counter()
    with jax.set_mesh(mesh):
        step_fn = program.step.lower(program.state, program.batch, train_key).compile()  # another shape is an error now
    compile_seconds = time.perf_counter() - compiling
    say(5, f"compiled in {compile_seconds:.1f} s")

    # ------------------------------------------------------------------------------------------------------ 6. Train
    eval_step = evaluation.make_eval_step(program.loss)
    to_first_step = 0.0
    report: Mapping[str, float] = {}
    with (
        jax.set_mesh(mesh),
        StopSignals() as stop,
        observe.Observer(folder, steps=train.steps, first_step=first, on_row=on_row, primary=primary) as observer,
        checkpoint.Writer(
            folder / "checkpoints",
            family=program.family,
            config=experiments.to_json(experiment),
            keep=experiment.checkpoint.keep,
            keep_best=experiment.checkpoint.keep_best,
        ) as writer,
        contextlib.closing(pipeline.batches(prepared.train, rows, train.batch_size, **hosts)) as batches,  # type: ignore[type-var]
    ):

        def read(step: int, metrics: Any) -> None:
            """Waits for the step, so that never more than one is ahead of us, and logs it when it is its turn."""
            nonlocal to_first_step
            jax.block_until_ready(metrics)
            to_first_step = to_first_step or time.perf_counter() - began
            if step % train.log_every == 0 or step in (first + 1, train.steps):
                observer.row(meter.row(step, metrics))
                writer.check()

        def evaluate(step: int, state: state_lib.TrainState) -> Mapping[str, float]:
            """The numbers of the whole validation set; none when a signal came meanwhile."""
            params = state.params if state.ema is None else state.ema
            with meter.pause(), contextlib.suppress(evaluation.Stopped):
                sums = evaluation.evaluate(
                    eval_step,
                    params,
                    prepared.validation,
                    eval_size,
                    lambda batch: batch_lib.place(batch, eval_places),
                    stop=stop,
                )
                numbers = task.report(sums, prepared)
                observer.row({"step": step} | {f"validation/{name}": value for name, value in numbers.items()})
                return numbers
            return {}

        def save(state: state_lib.TrainState, report: Mapping[str, float]) -> None:
            with meter.pause():
                writer.save(state, rows=rows, metric=report.get(experiment.checkpoint.best_metric))

        batch_places = {name: leaf.sharding for name, leaf in program.batch.items()}
        batch = batch_lib.place(next(batches), batch_places)
        step, saved_at, tracing = first, first, False
        unread: list[tuple[int, Any]] = []  # the step that the device is working on
        meter = observe.Meter(
            first_step=first,
            steps=train.steps,
            flops_per_token=task.flops_per_token(model, experiment.data.length),
            peak=observe.peak_flops(jax.devices()),
        )
        while step < train.steps and not stop():
            step += 1
            if profile is not None and profile[0] <= step <= profile[1] and not tracing:
                jax.profiler.start_trace(str(folder / "profile"))
                tracing = True
            state, metrics = step_fn(state, batch, train_key)
            rows += train.batch_size
            unread.append((step, metrics))
            # The device is busy with this step: time to make the next batch ready and to read the step before.
            if step < train.steps:
                batch = batch_lib.place(next(batches), batch_places)
            evaluate_now = _due(step, experiment.evaluate.every, train.steps)
            save_now = _due(step, experiment.checkpoint.every, train.steps)
            trace_ends = tracing and (profile is None or step >= profile[1] or step == train.steps or stop())
            while len(unread) > (0 if evaluate_now or save_now or trace_ends else 1):
                read(*unread.pop(0))
            if trace_ends:
                jax.profiler.stop_trace()
                tracing = False
                observer.say(f"profile up to step {step} in {folder / 'profile'}; Perfetto and TensorBoard open it")
            if evaluate_now:
                report = evaluate(step, state)
            if save_now:
                save(state, report if evaluate_now else {})
                saved_at = step
        while unread:
            read(*unread.pop(0))

        # --------------------------------------------------------------------------- 7. The last numbers, and save
        report = evaluate(step, state) if step >= train.steps else {}
        if step > saved_at or saved_step is None:
            save(state, report)
        writer.wait()
        if stop.number:
            say(7, f"{signal.Signals(stop.number).name}: saved at step {step:,} of {train.steps:,}")
    if primary:
        observe.plot_loss(
            observe.read_rows(folder / "metrics.jsonl"),
            folder / "loss.png",
            validation=f"validation/{experiment.checkpoint.best_metric}",
        )
    if stop.number:
        return Results(step, {}, stop.number)

    # ------------------------------------------------------------------------------------ 8. A sample, and the results
    params = state.params if state.ema is None else state.ema
    if all(leaf.is_fully_replicated and leaf.is_fully_addressable for leaf in jax.tree.leaves(params)):
        params = jax.device_put(params, jax.local_devices()[0])  # one copy is enough to write one text
    text = "".join(task.sample(params, model, prepared.tokenizer, experiment.sample, seed=experiment.seed))
    if primary and text:
        say(8, "a sample:")
        print(text, flush=True)
    seconds = time.perf_counter() - began
    results = {
        "step": step,
        "report": dict(report),
        "facts": dict(prepared.facts),
        "sample": text,
        "parameters": params_lib.count(program.declaration),
        "skipped_steps": int(state.skipped),
        "seconds": seconds,
        "seconds_to_first_step": to_first_step,
        "seconds_compiling": compile_seconds,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    if primary:
        workdirs.write_json(folder / "results.json", results)
    say(8, f"done in {observe.duration(seconds)}: {observe.describe(dict(report))}")
    return Results(step, report)


# ------------------------------------------------------------------------------------------------------------ the parts


@dataclass(frozen=True)
class Program:
    """What an experiment computes on a mesh, before any array exists: it can be traced, lowered and compiled.

    Fields:
      family: the name of the model's family.
      model: its config, in the dtype of the computation.
      declaration: the tree of `Param`s.
      optimizer: the optax transformation.
      loss: (params, batch, key) -> (sum, weight, sums).
      step: (state, batch, key) -> (state, metrics), jitted, the state donated.
      state, batch: the step's arguments as `jax.ShapeDtypeStruct`s with shardings.
    """

    family: str
    model: Any
    declaration: Any
    optimizer: Any
    loss: Callable[..., Any]
    step: Any
    state: state_lib.TrainState
    batch: dict[str, jax.ShapeDtypeStruct]

    def create(self, params: Any) -> state_lib.TrainState:
        """The state before the first step with these parameters."""
        ema = self.state.ema is not None
        places = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return jax.jit(lambda p: state_lib.create(p, self.optimizer, ema=ema), out_shardings=places)(params)


def make_program(experiment: Experiment, mesh: Mesh | AbstractMesh, platform: str | None = None) -> Program:
    """The train step of an experiment on a mesh, which may be an abstract one.

    Arguments:
      platform: "cpu", "gpu" or "tpu", which decides the dtype of the computation; None: the one here.
    Errors: `InputError` for a parameter, a batch or a schedule that does not fit.
    """
    train = experiment.train
    model: Any = experiment.model
    model = dataclasses.replace(model, dtype=experiments.compute_dtype(experiment.precision, platform))
    family = models.family(model)
    declaration = family.declare(model)
    optimizer = optim.make(experiment.optim, train.steps, declaration)
    example = experiment.task.example(experiment.data)
    places = batch_lib.shardings(example, train.batch_size, mesh)
    batch_lib.check_parts(train.batch_size, train.accumulate, mesh)

    def loss(params: Any, batch: Any, key: jax.Array | None) -> Any:
        return experiment.task.loss(params, model, batch, key=key)

    step = step_lib.make_step(
        loss,
        optimizer,
        optim.schedule(experiment.optim, train.steps),
        accumulate=train.accumulate,
        ema_decay=experiment.ema.decay,
    )
    state = state_lib.abstract(declaration, optimizer, mesh, ema=experiment.ema.decay > 0)
    state_places = jax.tree.map(lambda leaf: leaf.sharding, state)
    return Program(
        family=family.__name__.rpartition(".")[2],
        model=model,
        declaration=declaration,
        optimizer=optimizer,
        loss=loss,
        step=step_lib.jit_step(step, state_places, places),
        state=state,
        batch=batch_lib.abstract(example, train.batch_size, places),
    )


def refuse_other_model(found: Any, wanted: Any, path: str) -> None:
    """Errors: `InputError` when the parameters at `path` belong to a model that computes something else."""
    if type(found) is not type(wanted):
        raise InputError(f"init_from {path} is a {type(found).__module__}, the experiment's model is another family")
    flags = []
    for f in dataclasses.fields(wanted):
        name = hub.DERIVED.get(f.name, f.name)
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if f.name not in {*hub.RUN_FIELDS, "init_std"} and theirs != ours:
            flags.append(f"--model.{f.name.replace('_', '-')} {theirs}")
    if flags:
        raise InputError(f"init_from {path} is another model than the experiment's; to use it, add {' '.join(flags)}")


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and step % every == 0 and step < last
