"""From an experiment and a folder to a run that is ready for its next step.

    place = enter(experiment, folder, held)     the workdir: what is in it, whether the run may go on there, its lock
    run = setup(place, held, load=...)          devices, the step, where to start, the data; the folder is the run's

Whatever the user can mend is refused here, before anything is written.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax import brought, config_json, contracts, files, hosts, models, observe, sharding
from transformer_jax.data import pipeline, tokenizers
from transformer_jax.errors import InputError, RunError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, fingerprint, lock, store, store_lock
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import best as best_lib
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import program as programs
from transformer_jax.train import start
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib

say = observe.banner


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


@dataclass
class Place:
    """A run's folder, entered.

    Fields:
      experiment: what is to be run there: settled with the data, and with what the folder holds.
      folder: the workdir. near: where this host writes what is no checkpoint: the workdir, or a local mirror of one
        that is in an object store.
      publish: uploads what has changed in `near`; nothing to do on a disk.
      saved_step: the newest good step; None where there is none.
      is_new: whether nothing of a run is there yet.
      done: the results, where the run is complete and nothing is to be done.
      still_ours: raises `lock.Lost` where another run has taken the folder.
    """

    experiment: Experiment
    folder: Path
    near: Path
    publish: Callable[[], None]
    saved_step: int | None
    is_new: bool
    seen: dict[str, str]
    done: Results | None = None
    still_ours: Callable[[], None] = lambda: None

    def named(self, line: str) -> str:
        """A line for people, with the workdir's name in place of its mirror's."""
        return line.replace(str(self.near), str(self.folder))


@dataclass
class Run:
    """A run in progress. The first fields are set up once; the others change from step to step."""

    experiment: Experiment
    place: Place
    mesh: Mesh
    program: programs.Program
    evaluator: evaluation.Evaluator
    prepared: contracts.Prepared
    train_key: jax.Array
    step_fn: Any
    meter: observe.Meter
    began: float
    compile_seconds: float
    run_id: str = ""
    observing: Any = None
    writer: Any = None
    batches: Iterator[Any] = field(default_factory=lambda: iter(()))
    stop: Any = None

    state: Any = None
    step: int = 0
    rows: int = 0  # examples consumed: all that the input pipeline needs to go on
    first_step: int = 0
    first_row: int = 0
    best: best_lib.Best = field(default_factory=best_lib.Best)
    report: Mapping[str, Any] = field(default_factory=dict)  # of the last evaluation, of this step
    outputs: Mapping[str, Any] = field(default_factory=dict)
    saved_at: int | None = None
    to_first_step: float = 0.0

    @property
    def metric(self) -> str:
        """The reported number that the run is judged by."""
        return self.experiment.checkpoint.best_metric

    @property
    def last_step(self) -> int:
        return self.experiment.train.steps

    @property
    def complete(self) -> bool:
        """Whether the last step is taken, or patience has run out."""
        return self.step >= self.last_step or self.best.impatient(self.experiment.evaluate.patience)

    def evaluated(self) -> Any:
        """The parameters to evaluate."""
        return state_lib.evaluated(self.state, self.experiment.optim)


# -------------------------------------------------------------------------------------------------------- 1. the folder


def enter(experiment: Experiment, folder: Path, held: contextlib.ExitStack, *, verify: bool = True) -> Place:
    """Looks at a folder, compares it with the experiment, and takes its lock where a run is in it already.

    Args:
      experiment: what is to be run.
      folder: the workdir, or where it will be.
      held: closes what is opened here.
      verify: compare the files of the step to go on from with its manifest.
    Raises:
      InputError: where the folder holds another run, or something that is no run.
    """
    say(1, f"workdir {folder}")
    seen = workdirs.seen(folder)
    experiment = dataclasses.replace(experiment, task=experiment.task.settle(experiment.data))
    stored = workdirs.stored_experiment(folder, brought.types_in(experiment))
    if stored is not None:
        experiment = dataclasses.replace(experiment, order=stored.order)  # a run keeps its rule to its end
        if experiment.init_from and experiment.init_from == stored.init_from:  # as it was adopted when the run began
            experiment = start.adopt(experiment, stored.model, lambda line: None, task=stored.task)
    for line in workdirs.check(folder, experiment):
        say(1, f"changed since it was last run: {line}")
    saved_step = checkpoint.latest_step(folder / "checkpoints")
    done = workdirs.read_results(folder)
    if not hosts.alone():
        hosts.agree("what is to be run", fingerprint.program(experiment, saved_step, done.get("step")))
    if (results := _complete(experiment, saved_step, done)) is not None:
        return Place(experiment, folder, folder, lambda: None, saved_step, False, seen, done=results)

    near, publish = held.enter_context(store.near(folder, ("metrics.jsonl", "tokenizer/")))
    place = Place(experiment, folder, near, publish, None, stored is None, seen)
    if stored is not None:  # a new folder is made, and locked, when nothing is left to refuse
        take(place, held)
    place.saved_step = checkpoint.newest(
        folder / "checkpoints", lambda line: say(1, line), verify=verify, together=True
    )
    return place


def _complete(experiment: Experiment, saved_step: int | None, done: Mapping[str, Any]) -> Results | None:
    """The results of a run that has nothing left to do; None where it has."""
    if saved_step is None or done.get("step") != saved_step:
        return None
    numbers = observe.describe(done["report"], experiment.checkpoint.best_metric)
    if saved_step >= experiment.train.steps:
        say(1, f"already complete at step {saved_step:,}: {numbers}")
        say(1, f"to go on, give more steps: --train.steps {2 * saved_step}")
    elif done.get("stopped_by_patience") == experiment.evaluate.patience > 0:
        say(1, f"complete: stopped by evaluate.patience at step {saved_step:,}: {numbers}")
        say(1, "to go on, wait for longer: --evaluate.patience 0")
    else:
        return None
    return Results(saved_step, done["report"], test=done.get("test", {}))


def take(place: Place, held: contextlib.ExitStack) -> None:
    """Takes the folder's lock on host 0, and looks again: another run may have been there meanwhile."""
    if jax.process_index() != 0:
        return
    hold = store_lock.hold if store.remote(place.folder) else lock.hold
    place.still_ours = held.enter_context(hold(place.folder, lambda line: say(1, line)))
    workdirs.refuse_changed(place.folder, place.seen)


# ----------------------------------------------------------------------------------------------------------- 2. the run


def setup(place: Place, held: contextlib.ExitStack, *, load: Callable[..., Any]) -> Run:
    """A run that is ready for its next step, with its folder written.

    Args:
      place: from `enter`.
      held: closes what is opened here.
      load: `transformer_jax.load`, which reads the parameters that `experiment.init_from` names.
    Raises:
      InputError: for all that the user can mend, before anything is written.
    """
    began = time.perf_counter()
    experiment = place.experiment
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    loaded = None
    if place.saved_step is None and experiment.init_from:
        loaded = load(experiment.init_from, dtype="float32", sharding=mesh)
        experiment = start.adopt(experiment, loaded.config, lambda line: say(2, line), task=loaded.task)
        place.experiment = experiment
    program = programs.make(experiment, mesh)
    used = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    dtype = experiment_dtype(program.model)
    say(2, f"{jax.device_count()} x {jax.devices()[0].device_kind} ({used}), compute in {dtype}")
    say(2, f"{program.family}: {params_lib.count(program.declaration):,} parameters")

    init_key, train_key = jax.random.split(jax.random.key(experiment.seed))
    state, tokenizer, rows = _initial_state(place, program, mesh, loaded, init_key)
    loaded = None  # one copy of the parameters is enough
    prepared = _prepare_data(experiment, program, mesh, tokenizer)
    _claim(place, prepared, held)

    compiling = time.perf_counter()
    with jax.set_mesh(mesh):
        step_fn = program.step.lower(program.state, program.batch, train_key).compile()  # another shape is an error now
    compile_seconds = time.perf_counter() - compiling
    say(5, f"compiled in {compile_seconds:.1f} s")
    train, task, first = experiment.train, experiment.task, place.saved_step or 0
    size = experiment.evaluate.batch_size or train.batch_size // train.accumulate
    return Run(
        experiment,
        place,
        mesh,
        program,
        evaluation.make(task, experiment.data, program.model, mesh, batch_size=size),
        prepared,
        train_key,
        step_fn,
        observe.Meter(
            first_step=first,
            steps=train.steps,
            tokens_per_step=train.batch_size * task.tokens(experiment.data),
            flops_per_step=train.batch_size * task.flops(program.model, experiment.data),
            peak=observe.peak_flops(jax.devices()),
            unit=task.unit,
        ),
        began,
        compile_seconds,
        state=state,
        step=first,
        rows=rows,
        first_step=first,
        first_row=rows,
        saved_at=place.saved_step,
    )


def experiment_dtype(model: Any) -> str:
    """What a model computes in, for people."""
    return model.dtype if "dtype" in {f.name for f in dataclasses.fields(model)} else "float32"


def _initial_state(place: Place, program: programs.Program, mesh: Mesh, loaded: Any, key: jax.Array) -> Any:
    """(state, tokenizer, rows consumed): resumed, else from `init_from`, else from scratch."""
    experiment = place.experiment
    task, train = experiment.task, experiment.train
    log = lambda line: say(3, line)  # noqa: E731
    if place.saved_step is not None:
        log(f"resume from step {place.saved_step:,} of {train.steps:,}")
        folder = place.folder / "checkpoints" / str(place.saved_step)
        state, meta = checkpoint.restore_state(folder, program.state, verify=False)
        for name in brought.changed(meta.get("code", {}), brought.code_of(experiment)):
            log(f"{name} has changed since step {place.saved_step:,} was written")
        return state, tokenizers.load(place.near / "tokenizer") if task.reads_text else None, meta["rows"]
    if loaded is not None:
        log(f"parameters from {experiment.init_from}")
        if (
            task.reads_text
            and loaded.tokenizer is None
            and not isinstance(experiment.data.tokenizer, tokenizers.TokenizerFile)
        ):
            raise InputError(
                f"init_from {experiment.init_from} has no tokenizer, so its ids have no meaning here; add its "
                "tokenizer.json, or state it in the experiment as data.tokenizer"
            )
        resized = models.hook(program.model, "resized")(loaded.params, loaded.config, program.model, log)
        params = start.transfer(resized, program.declaration, experiment, key, mesh, log)
        return program.create(params), loaded.tokenizer, 0
    log(f"from scratch, seed {experiment.seed}")
    has_ema, recent = program.state.ema is not None, step_lib.RECENT * (train.spike > 0)
    state = state_lib.init(key, program.declaration, program.optimizer, mesh, ema=has_ema, recent=recent)
    return state, None, 0


def _prepare_data(experiment: Experiment, program: programs.Program, mesh: Mesh, tokenizer: Any) -> contracts.Prepared:
    """The data, checked against all that the run will need until its end."""
    task, metric = experiment.task, experiment.checkpoint.best_metric
    with pipeline.order_rule(experiment.order):
        prepared = task.prepare(experiment.data, program.model, seed=experiment.seed, workdir_tokenizer=tokenizer)
    for fact, value in prepared.facts.items():
        form = {int: ",", float: ".4f"}.get(type(value), "")
        say(4, f"{fact.replace('_', ' ')}: {value:{form}}")
    with jax.set_mesh(mesh):
        arguments = (program.evaluate, program.state.params, program.batch)
        reported = evaluation.reported(*arguments, task, prepared.validation)
    if metric not in reported:
        raise InputError(f"checkpoint.best_metric is {metric!r}; this task reports {', '.join(reported)}")
    task.check_sample(program.model, prepared.tokenizer, experiment.sample)
    if not hosts.alone():
        hosts.agree("the data", fingerprint.data(prepared))
    return prepared


def _claim(place: Place, prepared: contracts.Prepared, held: contextlib.ExitStack) -> None:
    """Nothing was refused: from here on the folder is this run's. Writes what explains it, where it is not there."""
    if place.is_new:
        take(place, held)
    if jax.process_index() == 0:
        config, path = config_json.to_json(place.experiment), place.near / "config.json"
        if not path.exists() or files.read_json(path, inside=place.near) != config:
            workdirs.write_json(path, config)
        if prepared.tokenizer is not None and not (place.near / "tokenizer").is_dir():
            _save_tokenizer(prepared.tokenizer, place.near / "tokenizer")
        for name, text in brought.code_of(place.experiment).items():
            (place.near / "code").mkdir(exist_ok=True)
            files.write(place.near / "code" / name, text)
        place.publish()
        held.push(lambda kind, *_: _publish_last(place, failed=kind is not None))
    hosts.gather("the workdir", "")  # now host 0 has written
    workdirs.refuse_unshared(place.folder)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The folder is there whole or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.save(part)
    part.rename(folder)


def _publish_last(place: Place, *, failed: bool) -> None:
    """Uploads what a run that ends has written beside its checkpoints. The error of one that failed comes first."""
    try:
        place.still_ours()
        place.publish()
    except RunError:
        if not failed:
            raise
