"""The functions that an experiment computes on a mesh. No array exists yet: they can be traced, lowered and compiled.

program = program.make(experiment, mesh)                     # the mesh may be an abstract one
program.step.lower(program.state, program.batch, key, *program.frozen)      # the train step, without data or devices
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from transformer_jax import experiment as experiments
from transformer_jax import models, optim, sharding
from transformer_jax.contracts import EvaluatesOther, Frozen
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.train import batch as batch_lib
from transformer_jax.train import further as further_lib
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib


@dataclass(frozen=True)
class Program:
    """The functions of a run, and their abstract arguments.

    Attributes:
      family: the name of the model's family.
      model: its config, with the compute dtype.
      declaration: the tree of `nn.params.Param`.
      optimizer: the Optax transformation.
      loss: (params, batch, key) -> (sum, weight, sums), of all parameters (`state.whole`).
      evaluate: (params, batch) -> (sums, outputs), likewise.
      step: (state, batch, key) -> (state, metrics), jitted; the state is donated.
      state: the step's first argument, as `jax.ShapeDtypeStruct`s with shardings.
      batch: its second argument, in the same form.
      frozen: (its fourth argument,) in the same form; () where the task reads no further models.
    """

    family: str
    model: Any
    declaration: Any
    optimizer: Any
    loss: Callable[..., Any]
    evaluate: Callable[..., Any]
    step: Any
    state: state_lib.TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    frozen: tuple[dict[str, Frozen], ...] = ()

    @property
    def rows(self) -> dict[str, Any]:
        """What the loss receives as its batch."""
        return self.batch | (self.frozen[0] if self.frozen else {})

    def create(self, params: Any) -> state_lib.TrainState:
        """The state before the first step, with the given `params`, of all that are declared."""
        ema = self.state.ema is not None
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        recent = 0 if self.state.recent is None else len(self.state.recent)
        options: Any = {"ema": ema, "recent": recent}
        make = jax.jit(lambda p, b: state_lib.create(p, self.optimizer, base=b, **options), out_shardings=shardings)
        return make(*params_lib.split(params, self.declaration))


def make(
    experiment: Experiment,
    mesh: Mesh | AbstractMesh,
    platform: str | None = None,
    *,
    frozen: Mapping[str, Frozen] | None = None,
) -> Program:
    """The functions of an experiment on a mesh.

    Args:
      experiment: the recipe.
      mesh: the devices; an abstract mesh is enough.
      platform: "cpu", "gpu" or "tpu", which decides the compute dtype; None: that of this process.
      frozen: the further models of the task, where they are loaded; None: as the task describes them.

    Raises:
      InputError: a parameter or the batch does not divide over the mesh, or the schedule does not fit the run.
    """
    train, model = experiment.train, computed(experiment, platform)
    declaration = experiments.declare(experiment, model)
    trained, _ = params_lib.split(declaration, declaration)
    if not trained:
        raise InputError(
            "compress.target is given without an adapter, and kernels of eight bits are not trained: give an "
            "adapter.rank, or train first, and then `convert int8`"
        )
    optimizer = optim.make(experiment.optim, train.steps, trained)
    scales = optim.lr_scales(experiment.optim, trained)
    if experiment.ema.decay and isinstance(experiment.optim, EvaluatesOther):
        raise InputError(
            f"ema.decay is {experiment.ema.decay}, but {type(experiment.optim).__name__} averages the parameters by "
            "itself; give --ema.decay 0"
        )
    example = experiment.task.example(experiment.data)
    batch_shardings = batch_lib.shardings(example, train.batch_size, mesh)
    batch_lib.check_parts(train.batch_size, train.accumulate, mesh)
    of_base = further_lib.of_base(experiment, model)
    frozen = further_lib.described(experiment.task, model, mesh, of_base) if frozen is None else frozen
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(frozen))
    further = (abstract,) if abstract else ()
    for name, (axis, size) in models.hook(model, "mesh_sizes")(model).items():
        sharding.partition_spec((axis,), (size,), mesh, name=f"model.{name}")

    own = {"accumulate": train.accumulate} if experiment.task.accumulates else {}
    with_base = functools.partial(further_lib.reading_base, of_base, model)

    def loss(params: Any, batch: Any, key: jax.Array | None) -> Any:
        params, base = params_lib.split(params_lib.constrain(declaration, params), declaration)
        params = params_lib.join(optim.freeze(params, scales), base)
        return experiment.task.loss(params, model, with_base(params, batch), key=key, **own)

    def evaluate(params: Any, batch: Any) -> Any:
        return experiment.task.evaluate(params, model, with_base(params, batch))

    step = step_lib.make_step(
        loss,
        optimizer,
        experiment.optim.schedule(train.steps),
        accumulate=1 if own else train.accumulate,
        ema_decay=experiment.ema.decay,
        skip_spikes=train.spike if train.skip_spikes else 0.0,
    )
    state = state_lib.abstract(
        declaration, optimizer, mesh, ema=experiment.ema.decay > 0, recent=step_lib.RECENT * (train.spike > 0)
    )
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return Program(
        family=models.name(model),
        model=model,
        declaration=declaration,
        optimizer=optimizer,
        loss=loss,
        evaluate=evaluate,
        step=step_lib.jit_step(
            step, state_shardings, batch_shardings, *jax.tree.map(lambda leaf: leaf.sharding, further)
        ),
        state=state,
        batch=batch_lib.abstract(example, train.batch_size, batch_shardings),
        frozen=further,
    )


def computed(experiment: Experiment, platform: str | None = None) -> Any:
    """The Config of an experiment's model with its compute dtype.

    Args:
      experiment: the recipe.
      platform: as for `make`.
    """
    model: Any = experiment.model
    return experiments.computed_in(model, experiments.compute_dtype(experiment.precision, platform))
