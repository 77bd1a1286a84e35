"""From a folder to a run that is ready for its next step.

    folder = enter(experiment, path, stack)     the workdir: what it holds, whether the run may resume there, its lock
    run = setup(folder, stack, load=...)        devices, the compiled step, the initial state, the data

Everything that the user can correct is refused here, before anything is written.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax import adapters, brought, contracts, hosts, models, observe, sharding
from transformer_jax.data import pipeline, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, fingerprint, saved, versions
from transformer_jax.runs import frozen as frozen_lib
from transformer_jax.train import best as best_lib
from transformer_jax.train import checks, start
from transformer_jax.train import evaluate as evaluation
from transformer_jax.train import further as further_lib
from transformer_jax.train import program as programs
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib
from transformer_jax.train.folder import RunFolder, claim

banner = observe.banner


@dataclass
class Run:
    """A run in progress. The fields before `state` are set once; the others change from step to step."""

    experiment: Experiment
    folder: RunFolder
    mesh: Mesh
    program: programs.Program
    evaluator: evaluation.Evaluator
    prepared: contracts.Prepared
    train_key: jax.Array
    step_fn: Any
    meter: observe.Meter
    began: float
    compile_seconds: float
    base: Mapping[str, str] | None = None  # the identity of the model that an adapter is of
    further: Mapping[str, str] = field(default_factory=dict)  # {name: digest} of the other models that the task reads
    run_id: str = ""
    observing: Any = None
    writer: Any = None
    batches: Iterator[Any] = field(default_factory=lambda: iter(()))
    stop: Any = None

    frozen: tuple[Any, ...] = ()  # ({name: Frozen},), the step's fourth argument, where the task reads other models
    state: Any = None
    step: int = 0
    rows: int = 0  # examples consumed: all that the input pipeline needs to resume
    first_step: int = 0
    first_row: int = 0
    best: best_lib.Best = field(default_factory=best_lib.Best)
    report: Mapping[str, Any] = field(default_factory=dict)  # the last evaluation's numbers
    outputs: Mapping[str, Any] = field(default_factory=dict)
    to_first_step: float = 0.0

    @property
    def metric(self) -> str:
        """The reported number that chooses the best checkpoint."""
        return self.experiment.checkpoint.best_metric

    @property
    def last_step(self) -> int:
        return self.experiment.train.steps

    @property
    def complete(self) -> bool:
        """Whether the last step is taken, or `evaluate.patience` is exhausted."""
        return self.step >= self.last_step or self.best.is_out_of_patience(self.experiment.evaluate.patience)

    def evaluated(self) -> Any:
        """The parameters to evaluate, those of an adapter's base included."""
        return params_lib.join(state_lib.evaluated(self.state, self.experiment.optim), self.state.base)


def setup(folder: RunFolder, stack: contextlib.ExitStack, *, load: Callable[..., Any]) -> Run:
    """A run that is ready for its next step, with its folder written.

    Args:
      folder: from `enter`.
      stack: closes what is opened.
      load: `transformer_jax.load`, which reads the parameters that `experiment.init_from` names.

    Raises:
      InputError: for everything that the user can correct, before anything is written.
    """
    began = time.perf_counter()
    experiment = folder.experiment
    mesh = sharding.make_mesh(**dataclasses.asdict(experiment.mesh))
    loaded, base, adapted = None, None, experiment.adapter.rank > 0
    if experiment.init_from and (folder.saved_step is None or adapted):
        loaded = load(experiment.init_from, dtype="float32", sharding=mesh)
        experiment = start.adopt(experiment, loaded.config, lambda line: banner(2, line), task=loaded.task)
        folder.experiment = experiment
    elif adapted:
        raise InputError("an adapter is of a model that was trained before; name its folder with --init-from")
    model = programs.computed(experiment)
    of_base = further_lib.of_base(experiment, model)
    frozen, tokenizers_of = further_lib.load(experiment, model, mesh, load, of_base)
    program = programs.make(experiment, mesh, frozen=frozen)
    used = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    dtype = experiment_dtype(program.model)
    banner(2, f"{jax.device_count()} x {jax.devices()[0].device_kind} ({used}), compute in {dtype}")
    banner(2, f"{program.family}: {_counted(program.declaration)}")

    init_key, train_key = jax.random.split(jax.random.key(experiment.seed))
    state, tokenizer, rows = _initial_state(folder, program, mesh, loaded, init_key, frozen)
    loaded = None  # frees the checkpoint's copy of the parameters
    if adapted:
        base = frozen_lib.identity(experiment.init_from, state.base)
        with jax.set_mesh(mesh):
            checks.check_dense(program.loss, state_lib.whole(program.state), program.rows)
    prepared = _prepare_data(experiment, program, mesh, tokenizer)
    further_lib.check_tokenizers(tokenizers_of, prepared.tokenizer)
    further = further_lib.digests(frozen)
    _report_changed(folder, prepared, further)
    claim(folder, prepared, stack)

    compiling = time.perf_counter()
    with jax.set_mesh(mesh):
        # The compiled step refuses any other shape, so that no step is ever compiled twice.
        step_fn = program.step.lower(program.state, program.batch, train_key, *program.frozen).compile()
    compile_seconds = time.perf_counter() - compiling
    banner(5, f"compiled in {compile_seconds:.1f} s")
    train, task, first_step = experiment.train, experiment.task, folder.saved_step or 0
    size = experiment.evaluate.batch_size or train.batch_size // train.accumulate
    return Run(
        experiment,
        folder,
        mesh,
        program,
        evaluation.make(task, experiment.data, program.model, mesh, batch_size=size, frozen=frozen, of_base=of_base),
        prepared,
        train_key,
        step_fn,
        observe.Meter(
            first_step=first_step,
            steps=train.steps,
            tokens_per_step=train.batch_size * task.tokens(experiment.data),
            flops_per_step=train.batch_size * task.flops(program.model, experiment.data),
            peak=observe.peak_flops(jax.devices()),
            unit=task.unit,
        ),
        began,
        compile_seconds,
        frozen=(frozen,) if frozen else (),
        base=base,
        further=further,
        state=state,
        step=first_step,
        rows=rows,
        first_step=first_step,
        first_row=rows,
    )


def _counted(declaration: Any) -> str:
    """How many parameters there are and, with an adapter, how many of them are trained."""
    trained, total = params_lib.count(params_lib.split(declaration, declaration)[0]), params_lib.count(declaration)
    share = "" if trained == total else f", of which {trained:,} ({100 * trained / total:.2g} %) are trained"
    return f"{total:,} parameters{share}"


def experiment_dtype(model: Any) -> str:
    """The name of the dtype that `model` computes in."""
    return model.dtype if "dtype" in {f.name for f in dataclasses.fields(model)} else "float32"


def _initial_state(
    folder: RunFolder, program: programs.Program, mesh: Mesh, loaded: Any, key: jax.Array, frozen: Any
) -> Any:
    """(state, tokenizer, rows consumed): resumed, else from `init_from`, else from scratch."""
    experiment = folder.experiment
    task, train = experiment.task, experiment.train
    log = lambda line: banner(3, line)  # noqa: E731
    if folder.saved_step is not None:
        log(f"resume from step {folder.saved_step:,} of {train.steps:,}")
        step_folder = folder.path / "checkpoints" / str(folder.saved_step)
        state, meta = checkpoint.restore_state(step_folder, program.state, verify=False)
        if loaded is not None:
            found = frozen_lib.tree(loaded, program.model, experiment.compress)
            base = frozen_lib.of(found, program.declaration)
            frozen_lib.check(meta["base"], base, experiment.init_from)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state.base)
            state = dataclasses.replace(state, base=jax.device_put(base, shardings))
        if others := versions.changed(meta):
            log(f"step {folder.saved_step:,} was written with other versions: {others}")
        for name in brought.changed(meta.get("code", {}), brought.code_of(experiment)):
            log(f"{name} has changed since step {folder.saved_step:,} was written")
        spec = getattr(experiment.data, "tokenizer", None)
        return state, tokenizers.load(folder.local / "tokenizer", spec) if task.reads_text else None, meta["rows"]
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
        found = frozen_lib.tree(loaded, program.model, experiment.compress, log)
        labels = () if loaded.task is None else loaded.task.snapshot_settings().get("labels", ())
        declaration = experiment.compress.declare(models.family(program.model).declare(program.model))
        params = start.transfer(found, declaration, experiment, key, mesh, log, labels=labels)
        if experiment.adapter.rank:
            frozen_lib.refuse_changed(frozen_lib.of(found, program.declaration), params)
            params = adapters.attach(params, program.declaration, key)
        return program.create(params), loaded.tokenizer, 0
    log(f"from scratch, seed {experiment.seed}")
    has_ema, recent = program.state.ema is not None, step_lib.RECENT * (train.spike > 0)
    state = state_lib.init(key, program.declaration, program.optimizer, mesh, ema=has_ema, recent=recent)
    if frozen:
        state = program.create(task.initial(state.params, frozen))
    return state, None, 0


def _prepare_data(experiment: Experiment, program: programs.Program, mesh: Mesh, tokenizer: Any) -> contracts.Prepared:
    """The data, checked for everything that the run will need until its end."""
    task, metric = experiment.task, experiment.checkpoint.best_metric
    with pipeline.order_rule(experiment.order):
        prepared = task.prepare(experiment.data, program.model, seed=experiment.seed, workdir_tokenizer=tokenizer)
    checks.check_prepared(task, prepared)
    for fact, value in prepared.facts.items():
        form = {int: ",", float: ".4f"}.get(type(value), "")
        banner(4, f"{fact.replace('_', ' ')}: {value:{form}}")
    params = state_lib.whole(program.state)
    with jax.set_mesh(mesh):
        if brought.is_foreign(type(task)):
            checks.check_loss(task, jax.eval_shape(program.loss, params, program.rows, None))
            checks.check_evaluate(task, jax.eval_shape(program.evaluate, params, program.rows))
        arguments = (program.evaluate, params, program.rows)
        reported = evaluation.reported(*arguments, task, prepared.validation)
    if metric not in reported:
        raise InputError(
            f"checkpoint.best_metric is {metric!r}; this task reports {', '.join(reported)}; name one of these with "
            f"--checkpoint.best-metric, or return it from {type(task).__name__}.best_metric"
        )
    task.check_sample(program.model, prepared.tokenizer, experiment.sample)
    if not hosts.alone():
        hosts.agree("the data", fingerprint.data(prepared))
    return prepared


def _report_changed(folder: RunFolder, prepared: contracts.Prepared, further: Mapping[str, str]) -> None:
    """Prints a line where the data, or a further model, are not those that the checkpoint was trained with."""
    if folder.saved_step is None:
        return
    meta = saved.read_meta(folder.path / "checkpoints" / str(folder.saved_step))
    for name, digest in meta.get("further", {}).items():
        if further.get(name, digest) != digest:
            banner(4, f"task.{name} is another model than step {folder.saved_step:,} was trained with: name the former")
    before = meta.get("data")
    if before and before != fingerprint.identity(prepared):
        banner(
            4,
            f"the data have changed since step {folder.saved_step:,} was written: the run continues with the new data",
        )
