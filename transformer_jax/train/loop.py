"""A run, from the experiment to the last number: read it from top to bottom.

    results = run(experiment, "runs/a")

The folder explains itself at every moment: config.json is there before anything else, the tokenizer before the first
step, and each checkpoint is whole or absent. Running it again goes on from the newest checkpoint; the order is always
resume -> init_from -> scratch. A batch is a function of the rows consumed and dropout's key is one of the step, so a run
that was stopped and taken up gives the parameters of one that was not, to the bit (on the same devices).
"""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_jax import experiment as experiments
from transformer_jax import hub, models, optim, sharding
from transformer_jax.data import pipeline, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.train import checkpoint, observe
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib


@dataclass(frozen=True)
class Results:
    """How a run ended.

    Fields:
      step: optimiser steps taken.
      report: the validation numbers by name; empty when a signal ended the run.
      signal: the number of the signal that ended the run; 0 when it is complete.
    """

    step: int
    report: dict[str, float]
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
      load: `transformer_jax.restore.load`, which reads the parameters that `init_from` names.
      on_row: called with each logged row, on every process.
      profile: (first, last): these steps are traced into WORKDIR/profile.
    Errors: `InputError` for all that the user can mend, before anything is written.
    """
    began = time.perf_counter()
    workdir = Path(workdir)
    primary = jax.process_index() == 0
    say = observe.banner
    train = experiment.train

    # ------------------------------------------------------------------------------------------------ 1. The workdir
    changed = check_workdir(workdir, experiment)
    saved_step = checkpoint.latest_step(workdir / "checkpoints")
    say(1, f"workdir {workdir}")
    for line in changed:
        say(1, f"changed since it was last run: {line}")
    done = read_results(workdir)
    if saved_step is not None and saved_step >= train.steps and done.get("step") == saved_step:
        say(1, f"already complete at step {saved_step:,}: {observe.describe(done['report'])}")
        say(1, f"to go on, give more steps: --train.steps {2 * saved_step}")
        return Results(saved_step, done["report"])

    # ---------------------------------------------------------------------------------------- 2. Devices, model, step
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    model = dataclasses.replace(experiment.model, dtype=experiments.compute_dtype(experiment.precision))
    family = models.family(model)
    declaration = family.declare(model)
    init_key, train_key = jax.random.split(jax.random.key(experiment.seed))
    optimizer = optim.make(experiment.optim, train.steps, params_lib.decay_mask(declaration))
    ema = experiment.ema.decay > 0
    abstract_state = state_lib.abstract(declaration, optimizer, mesh, ema=ema)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    say(2, f"{jax.device_count()} x {jax.devices()[0].device_kind} ({shape}), compute in {model.dtype}")
    say(2, f"{model.__class__.__module__.rpartition('.')[2]}: {params_lib.count(declaration):,} parameters")

    # ------------------------------------------------------------ 3. Where to start: resume, else init_from, else scratch
    tokenizer = None
    if saved_step is not None:
        say(3, f"resume from step {saved_step:,} of {train.steps:,}")
        tokenizer = tokenizers.load(workdir / "tokenizer")
    elif experiment.init_from:
        say(3, f"parameters from {experiment.init_from}")
        loaded = load(experiment.init_from, sharding=places.params)
        refuse_other_model(loaded.config, model, experiment.init_from)
        tokenizer = loaded.tokenizer
    else:
        say(3, f"from scratch, seed {experiment.seed}")

    # ---------------------------------------------------------------------------------------------------- 4. The data
    task = experiment.task
    prepared = task.prepare(experiment.data, model, seed=experiment.seed, workdir_tokenizer=tokenizer)
    for fact, value in prepared.facts.items():
        say(4, f"{fact.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"{fact.replace('_', ' ')}: {value:.4f}")

    # Nothing was refused: from here on the folder is this run's.
    if primary:
        workdir.mkdir(parents=True, exist_ok=True)
        experiments.save(experiment, workdir / "config.json")
        prepared.tokenizer.save(workdir / "tokenizer")

    # ----------------------------------------------------------------------------------------------- 5. Compile, once
    def loss(params: Any, batch: Any, key: Any) -> Any:
        return task.loss(params, model, batch, key=key)

    example = prepared.train[0]
    batch_places = batch_shardings(example, train.batch_size, mesh)
    check_parts(train.batch_size, train.accumulate, mesh)
    step_fn = step_lib.make_step(
        loss, optimizer, optim.schedule(experiment.optim, train.steps),
        accumulate=train.accumulate, ema_decay=experiment.ema.decay,
    )  # fmt: skip
    abstract_batch = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct((train.batch_size, *x.shape), x.dtype, sharding=place), example, batch_places
    )
    compiling = time.perf_counter()
    with jax.set_mesh(mesh):
        jitted = step_lib.jit_step(step_fn, places, batch_places)
        compiled = jitted.lower(abstract_state, abstract_batch, train_key).compile()  # another shape is now an error
    compile_seconds = time.perf_counter() - compiling
    say(5, f"compiled in {compile_seconds:.1f} s")

    # ---------------------------------------------------------------------------------------------- 6. The first state
    rows = 0  # examples consumed: all that the input pipeline needs to go on
    if saved_step is not None:
        state, meta = checkpoint.restore_state(workdir / "checkpoints" / str(saved_step), abstract_state)
        rows = int(meta["rows"])
    elif experiment.init_from:
        state = jax.jit(lambda p: state_lib.create(p, optimizer, ema=ema), out_shardings=places)(loaded.params)
    else:
        state = state_lib.init(init_key, declaration, optimizer, mesh, ema=ema)
    first = saved_step or 0

    # ------------------------------------------------------------------------------------------------------ 7. Train
    eval_step = evaluation.make_eval_step(loss)
    eval_size = experiment.evaluate.batch_size or train.batch_size // train.accumulate
    eval_places = batch_shardings(example, eval_size, mesh)
    peak = observe.peak_flops(jax.devices()[0])
    meter = observe.Meter(
        first_step=first, steps=train.steps, flops_per_token=task.flops_per_token(model, experiment.data.length),
        peak=peak and peak * jax.device_count(),
    )  # fmt: skip
    to_first_step = 0.0
    report: dict[str, float] = {}
    with (
        jax.set_mesh(mesh),
        StopSignals() as stop,
        observe.Observer(workdir, steps=train.steps, first_step=first, on_row=on_row, primary=primary) as observer,
        checkpoint.Writer(
            workdir / "checkpoints", family=family.__name__.rpartition(".")[2], config=experiments.to_json(experiment),
            keep=experiment.checkpoint.keep, keep_best=experiment.checkpoint.keep_best,
        ) as writer,
    ):

        def read(step: int, metrics: Any) -> None:
            """Waits for the step, so that never more than one is ahead of us, and logs it when it is its turn."""
            nonlocal to_first_step
            jax.block_until_ready(metrics)
            to_first_step = to_first_step or time.perf_counter() - began
            if step % train.log_every == 0 or step in (first + 1, train.steps):
                observer.row(meter.row(step, metrics))

        def evaluate(step: int, state: state_lib.TrainState) -> dict[str, float]:
            """The numbers of the whole validation set; none when a signal came meanwhile."""
            params = state.params if state.ema is None else state.ema
            with meter.pause(), contextlib.suppress(evaluation.Stopped):
                sums = evaluation.evaluate(
                    eval_step, params, prepared.validation, eval_size, lambda b: place(b, eval_places), stop=stop
                )
                numbers = task.report(sums, prepared)
                observer.row({"step": step} | {f"validation/{name}": value for name, value in numbers.items()})
                return numbers
            return {}

        def save(step: int, state: state_lib.TrainState, report: Mapping[str, float]) -> None:
            with meter.pause():
                writer.save(state, rows=rows, metric=report.get(experiment.checkpoint.best_metric))

        step, saved_at = first, first
        unread: list[tuple[int, Any]] = []  # the step that the device is working on
        here = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        with contextlib.closing(pipeline.batches(prepared.train, rows, train.batch_size, **here)) as batches:
            batch = place(next(batches), batch_places)
            while step < train.steps and not stop():
                step += 1
                if profile is not None and step == profile[0]:
                    jax.profiler.start_trace(str(workdir / "profile"))
                state, metrics = compiled(state, batch, train_key)
                rows += train.batch_size
                # The device is busy with this step: time to make the next batch ready and to read the step before.
                if step < train.steps:
                    batch = place(next(batches), batch_places)
                unread.append((step, metrics))
                evaluate_now = _due(step, experiment.evaluate.every, train.steps)
                save_now = _due(step, experiment.checkpoint.every, train.steps)
                profile_ends = profile is not None and step == profile[1]
                while len(unread) > (0 if evaluate_now or save_now or profile_ends else 1):
                    read(*unread.pop(0))
                if profile_ends:
                    jax.profiler.stop_trace()
                    observer.say(f"steps {profile[0]} to {profile[1]} are profiled in {workdir / 'profile'}")
                if evaluate_now:
                    report = evaluate(step, state)
                if save_now:
                    save(step, state, report if evaluate_now else {})
                    saved_at = step
        while unread:
            read(*unread.pop(0))

        # ------------------------------------------------------------------------------- 8. The last numbers, and save
        report = {} if step < train.steps else evaluate(step, state)
        if step > saved_at or saved_step is None:
            save(step, state, report)
        writer.wait()
        if primary:
            rows_logged = observe.read_rows(observer.path)
            observe.plot_loss(rows_logged, workdir / "loss.png", validation="validation/loss_nats_per_token")
        if stop.number:
            say(8, f"{signal.Signals(stop.number).name}: saved at step {step:,} of {train.steps:,}")
            return Results(step, {}, stop.number)

    # -------------------------------------------------------------------------------------- 9. A sample, and the results
    params = state.params if state.ema is None else state.ema
    text = "".join(task.sample(params, model, prepared.tokenizer, experiment.sample, seed=experiment.seed))
    if text and primary:
        say(9, "a sample:")
        print(text, flush=True)
    results = {
        "step": step,
        "report": report,
        "facts": prepared.facts,
        "sample": text,
        "parameters": params_lib.count(declaration),
        "seconds": time.perf_counter() - began,
        "seconds_to_first_step": to_first_step,
        "seconds_compiling": compile_seconds,
        "skipped_steps": int(state.skipped),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    if primary:
        write_json(workdir / "results.json", results)
    say(9, f"done in {observe.duration(results['seconds'])}: {observe.describe(report)}")
    return Results(step, report)


# ------------------------------------------------------------------------------------------------------------ the parts


def check_workdir(workdir: Path, experiment: Experiment) -> list[str]:
    """The differences from what the folder holds, all of which are allowed; none for a new folder.

    Errors: `InputError` when the folder holds another experiment, or something that is not a run.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; give a folder to --workdir")
    if (workdir / "config.json").exists():
        return experiments.refuse_other(experiments.load(workdir / "config.json"), experiment, workdir)
    if workdir.exists() and any(workdir.iterdir()):
        raise InputError(f"{workdir} is not empty and has no config.json, so it is not a run; give another --workdir")
    return []


def read_results(workdir: Path) -> dict[str, Any]:
    """results.json, or an empty dict where a run has not come to its end."""
    try:
        return json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_json(path: Path, value: Any) -> None:
    """Writes beside the target and renames, so that the file is whole or as it was."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def refuse_other_model(found: Any, wanted: Any, path: str) -> None:
    """Errors: `InputError` when the parameters at `path` belong to a model that computes something else."""
    if type(found) is not type(wanted):
        raise InputError(f"init_from {path} is a {type(found).__module__}, the experiment's model is another family")
    for f in dataclasses.fields(wanted):
        name = hub.DERIVED.get(f.name, f.name)
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if f.name not in {*hub.RUN_FIELDS, "init_std"} and theirs != ours:
            flag = f"--model.{f.name.replace('_', '-')}"
            raise InputError(f"init_from {path} has model.{f.name} {theirs!r}, the experiment {ours!r}; set {flag} {theirs}")


def batch_shardings(example: Mapping[str, np.ndarray], batch_size: int, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A NamedSharding per leaf of a batch: its rows over the batch axes, its length over the sequence axis.

    Errors: `InputError` when a dimension does not divide over the mesh.
    """
    places = {}
    for name, x in example.items():
        axes = ("batch", "length", *(None,) * (x.ndim - 1))[: x.ndim + 1]
        spec = sharding.partition_spec(axes, (batch_size, *x.shape), mesh, name=f"the batch's {name!r}")
        places[name] = jax.sharding.NamedSharding(mesh, spec)
    return places


def check_parts(batch_size: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    """Errors: `InputError` when a device's rows do not divide into the accumulated parts."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * accumulate):
        raise InputError(
            f"train.batch_size {batch_size} does not divide by {devices} devices x train.accumulate {accumulate}"
        )


def place(batch: Mapping[str, np.ndarray], places: Mapping[str, Any]) -> dict[str, jax.Array]:
    """This host's rows of a batch, as part of the global arrays."""
    return {name: jax.make_array_from_process_local_data(places[name], x) for name, x in batch.items()}


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and step % every == 0 and step < last


class StopSignals:
    """Notes SIGINT and SIGTERM instead of dying of them; calling it says whether one has come.

    The loop finishes its step and saves. Further signals are noted too, so they do not break the save. Outside the main
    thread Python delivers no signals, and nothing is noted.
    """

    number = 0

    def __call__(self) -> bool:
        return self.number != 0

    def _note(self, number: int, frame: Any) -> None:
        self.number = self.number or number

    def __enter__(self) -> "StopSignals":
        main = threading.current_thread() is threading.main_thread()
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
