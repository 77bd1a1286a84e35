"""The further models that a task reads beside the trained one: a teacher, or the reference of DPO (`Task.frozen`)."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jax.sharding import AbstractMesh, Mesh

from transformer_jax import adapters, compress, contracts, models
from transformer_jax import experiment as experiments
from transformer_jax.contracts import Frozen
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import frozen as frozen_lib
from transformer_jax.train import batch as batch_lib

# What two tokenizers are compared by: words, digits, brackets, accents, and letters of several scripts.
PROBE = (
    "The quick brown fox jumps over 13 lazy dogs; 2,048 + 96.5 = f(x)[i] / {a: b}. Über den Flüssen, à côté de l'été, "
    "mañana. def train(self, batch): return None  # loss. Привет, мир. 你好，世界。 こんにちは。 नमस्ते"
)


def of_base(experiment: Experiment, model: Any) -> tuple[str, ...]:
    """The names of the further models that are the run's own base, without its adapter: they need no second copy.

    That is so where the task names no path, so that the model is what the run starts from, and an adapter alone is
    trained beside it.

    Args:
      experiment: the recipe.
      model: the Config that is trained.
    """
    if not experiment.adapter.rank or experiment.adapter.full:
        return ()
    return tuple(name for name, (path, cfg) in experiment.task.frozen(model).items() if not path and cfg == model)


def reading_base(names: Sequence[str], model: Any, params: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch that a task reads, with the base of an adapter as further models.

    Args:
      names: the names that `of_base` returned.
      model: the Config.
      params: the parameters of the model with its adapter.
      batch: the rows, and the other further models.
    """
    base = Frozen(jax.lax.stop_gradient(adapters.without(params)), model) if names else None
    return {**batch, **dict.fromkeys(names, base)}


def described(
    task: contracts.Task, model: Any, mesh: Mesh | AbstractMesh, without: Sequence[str] = ()
) -> dict[str, Frozen]:
    """{name: a further model as `jax.ShapeDtypeStruct`s}, by the Config that the task states.

    Args:
      task: names them.
      model: the Config that is trained, with its compute dtype.
      mesh: the devices.
      without: names that are left out.
    """
    found = {}
    for name, (_, cfg) in task.frozen(model).items():
        if name in without:
            continue
        cfg = experiments.computed_in(cfg, getattr(model, "dtype", "float32"))
        dtype = getattr(cfg, "dtype", "float32")
        found[name] = Frozen(params_lib.abstract(models.family(cfg).declare(cfg), mesh, dtype), cfg)
    return found


def load(
    experiment: Experiment, model: Any, mesh: Mesh, load_model: Callable[..., Any], without: Sequence[str] = ()
) -> tuple[dict[str, Frozen], dict[str, Any]]:
    """({name: the further models that the task reads}, {name: their tokenizers}), on a mesh, with adapters merged.

    Args:
      experiment: its task names them; `init_from` is where the task names no path.
      model: the Config that is trained, with its compute dtype.
      mesh: the devices.
      load_model: `transformer_jax.load`.
      without: names that are left out.

    Raises:
      InputError: a path that is not a model, or a model with other labels than the task.
    """
    found, tokenizers, wanted = {}, {}, tuple(experiment.task.snapshot_settings().get("labels", ()))
    for name, (path, _) in experiment.task.frozen(model).items():
        if name in without:
            continue
        path = path or experiment.init_from
        if not path:
            raise InputError(f"task.{name} is empty, and so is init_from; give one a run, a step or a folder")
        dtype = getattr(model, "dtype", None)
        loaded = load_model(path, dtype=dtype, sharding=mesh)
        labels = () if loaded.task is None else tuple(loaded.task.snapshot_settings().get("labels", ()))
        unnamed = all(re.fullmatch(r"LABEL_\d+", label) for label in labels)
        if wanted and not unnamed and labels != wanted:
            raise InputError(
                f"task.{name} {path} has the labels {', '.join(labels[:6])}, and the task has {', '.join(wanted[:6])}; "
                "they must be the same, in the same order"
            )
        params = compress.unpack(adapters.merge(loaded.params))
        params = params if dtype is None else jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
        found[name], tokenizers[name] = Frozen(params, loaded.config), loaded.tokenizer
    return found, tokenizers


def evaluate_reads(experiment: Experiment, model: Any, mesh: Mesh) -> bool:
    """Whether the task's `evaluate` depends on its further models: a student is evaluated without its teacher.

    Args:
      experiment: the recipe.
      model: its Config, with the compute dtype.
      mesh: the devices.
    """
    task = experiment.task
    frozen = described(task, model, mesh)
    if not frozen:
        return False
    size, example = mesh.size, task.example(experiment.data)
    rows = batch_lib.abstract(example, size, batch_lib.shardings(example, size, mesh))
    params = params_lib.abstract(experiments.declare(experiment, model), mesh)
    with jax.set_mesh(mesh):
        traced = jax.make_jaxpr(lambda frozen, p, b: task.evaluate(p, model, {**b, **frozen}))(frozen, params, rows)
    _, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return any(used[: len(jax.tree.leaves(frozen))])


def check_tokenizers(tokenizers: Mapping[str, Any], own: Any) -> None:
    """Refuses a further model of a task for which the ids of a batch are other texts.

    Args:
      tokenizers: {name: the tokenizer of the further model; None: it has none}.
      own: the run's; None: it has none.

    Raises:
      InputError: a tokenizer gives a text other ids than the run's.
    """
    for name, theirs in tokenizers.items():
        if own is None or theirs is None or theirs.fingerprint == own.fingerprint:
            continue
        if not np.array_equal(theirs.encode(PROBE), own.encode(PROBE)):
            raise InputError(
                f"task.{name} has another tokenizer than this run, so the same ids are other texts to it; take its "
                "tokenizer: data.tokenizer, or --init-from a model that has it"
            )


def digests(further: Mapping[str, Frozen]) -> dict[str, str]:
    """{name: what a checkpoint states of a further model that its task reads}: a hash of the parameters in bfloat16,
    which is the same in every compute dtype.

    Args:
      further: the models.
    """
    return {name: frozen_lib.digest(one.params, jnp.bfloat16) for name, one in further.items()}
