"""From an entered folder to a run that is ready for its next step.

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
import numpy as np
from jax.sharding import Mesh

from transformer_jax import brought, config_json, contracts, files, hosts, models, observe, sharding
from transformer_jax.data import pipeline, tokenizers
from transformer_jax.errors import InputError, RunError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, fingerprint, store, versions
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import best as best_lib
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import program as programs
from transformer_jax.train import start
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib
from transformer_jax.train.place import Place, take

say = observe.banner


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
    _say_if_changed(place, prepared)
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
        if others := versions.changed(meta):
            log(f"step {place.saved_step:,} was written with other versions: {others}")
        for name in brought.changed(meta.get("code", {}), brought.code_of(experiment)):
            log(f"{name} has changed since step {place.saved_step:,} was written")
        spec = getattr(experiment.data, "tokenizer", None)
        return state, tokenizers.load(place.near / "tokenizer", spec) if task.reads_text else None, meta["rows"]
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
        labels = () if loaded.task is None else loaded.task.snapshot_settings().get("labels", ())
        params = start.transfer(resized, program.declaration, experiment, key, mesh, log, labels=labels)
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
    check_prepared(task, prepared)
    for fact, value in prepared.facts.items():
        form = {int: ",", float: ".4f"}.get(type(value), "")
        say(4, f"{fact.replace('_', ' ')}: {value:{form}}")
    with jax.set_mesh(mesh):
        if brought.is_foreign(type(task)):
            check_loss(task, jax.eval_shape(program.loss, program.state.params, program.batch, None))
            check_evaluate(task, jax.eval_shape(program.evaluate, program.state.params, program.batch))
        arguments = (program.evaluate, program.state.params, program.batch)
        reported = evaluation.reported(*arguments, task, prepared.validation)
    if metric not in reported:
        raise InputError(
            f"checkpoint.best_metric is {metric!r}; this task reports {', '.join(reported)}; name one of these with "
            "--checkpoint.best-metric"
        )
    task.check_sample(program.model, prepared.tokenizer, experiment.sample)
    if not hosts.alone():
        hosts.agree("the data", fingerprint.data(prepared))
    return prepared


def check_prepared(task: contracts.Task, prepared: Any) -> None:
    """Raises `InputError` where a task's `prepare` did not return what the contract says."""
    name = type(task).__name__
    if not isinstance(prepared, contracts.Prepared):
        raise InputError(f"task {name}.prepare returned a {type(prepared).__name__}; it must return contracts.Prepared")
    for what, examples in {"validation": prepared.validation, "test": prepared.test}.items():
        if not isinstance(examples, contracts.Evaluation) and (what, examples) != ("test", None):
            raise InputError(
                f"task {name}.prepare returned a {type(examples).__name__} as {what}; it must be contracts.Evaluation"
            )
        if examples is not None and len(examples.examples) == 0:
            raise InputError(f"task {name}.prepare returned a {what} set without examples")


def check_loss(task: contracts.Task, returned: Any) -> None:
    """Raises `InputError` where a task's loss, evaluated for its shapes, did not return what the contract says."""
    name, right = type(task).__name__, "(sum, weight, {name: (sum, weight)}) of scalars"
    if not isinstance(returned, tuple) or len(returned) != 3 or not isinstance(returned[2], Mapping):
        raise InputError(f"task {name}.loss returned {_shapes(returned)}; it must return {right}")
    pairs = {"the loss": returned[:2], **returned[2]}
    for what, pair in pairs.items():
        if not _is_sum(pair):
            raise InputError(f"task {name}.loss returned {_shapes(pair)} for {what!r}; it must return {right}")


def check_evaluate(task: contracts.Task, returned: Any) -> None:
    """Raises `InputError` where a task's `evaluate` did not return what the contract says."""
    is_pair = isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(x, Mapping) for x in returned)
    if not is_pair or not all(map(_is_sum, returned[0].values())):
        raise InputError(
            f"task {type(task).__name__}.evaluate returned {_shapes(returned)}; it must return "
            "({name: (sum, weight)} of scalars, {name: [B, ...]})"
        )


def _is_sum(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(np.shape(x) == () for x in pair)


def _shapes(tree: Any) -> str:
    """A value whose arrays are their shapes, for messages."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))[:120]


def _say_if_changed(place: Place, prepared: contracts.Prepared) -> None:
    """Says where the data are not those that the step to go on from was trained with."""
    if place.saved_step is None:
        return
    before = checkpoint.read_meta(place.folder / "checkpoints" / str(place.saved_step)).get("data")
    if before and before != fingerprint.identity(prepared):
        say(4, f"the data have changed since step {place.saved_step:,} was written: the run goes on with those of now")


def _claim(place: Place, prepared: contracts.Prepared, held: contextlib.ExitStack) -> None:
    """Nothing was refused: from here on the folder is this run's. Writes what explains it, where it is not there."""
    if place.is_new:
        take(place, held)
    if jax.process_index() == 0:
        config, path = config_json.to_json(place.experiment), place.near / "config.json"
        if not path.exists() or files.read_json(path, inside=place.near) != config:
            workdirs.write_json(path, config)
        if place.saved_step is None:  # one that is there is of a run that ended before its first step was saved
            _remove_tokenizer(place)
        if prepared.tokenizer is not None and not (place.near / "tokenizer").is_dir():
            _save_tokenizer(prepared.tokenizer, place.near / "tokenizer")
        for name, text in brought.code_of(place.experiment).items():
            (place.near / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            files.write(place.near / "code" / name, text)
        place.publish()
        held.push(lambda kind, *_: _publish_last(place, failed=kind is not None))
    hosts.gather("the workdir", "")  # now host 0 has written
    workdirs.refuse_unshared(place.folder)


def _remove_tokenizer(place: Place) -> None:
    shutil.rmtree(place.near / "tokenizer", ignore_errors=True)
    if store.remote(place.folder):
        for name in store.sizes(place.folder / "tokenizer"):
            store.delete(place.folder / "tokenizer" / name)


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
