"""Starting from the parameters of another run: its model comes with them, and each head says where it is from.

What a checkpoint holds is the trunk (the family's `TRUNK`), which must fit to the last leaf, and heads. A head that the
experiment has and the checkpoint has not, or that the user wants anew, is initialised as from scratch; one that the
experiment does not have is left out. All of it is said.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax import contracts, models
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib


def adopt(experiment: Experiment, theirs: Any, say: Callable[[str], None], *, task: Any = None) -> Experiment:
    """The experiment with the architecture of the checkpoint that it starts from; each change is logged.

    The fields of the Config that are marked `LAUNCH`, `TRAINING` or `RUN` are the experiment's own (`contracts`). The
    task may take over something as well, such as the normalisation of images.

    Args:
      theirs: the config of the checkpoint's model.
      task: the checkpoint's.
    Raises:
      InputError: for another family, and for data longer than the checkpoint's positions.
    """
    ours: Any = experiment.model
    if type(theirs) is not type(ours):
        names = (models.name(cfg) for cfg in (theirs, ours))
        raise InputError("init_from {} is a {}, the experiment's model is a {}".format(experiment.init_from, *names))
    own = contracts.decided_by(ours, "launch", "training", "run")
    model = dataclasses.replace(theirs, **{name: getattr(ours, name) for name in own})
    for f in dataclasses.fields(model):
        name = f.metadata.get("means", f.name)
        if getattr(model, name) != getattr(ours, name):
            say(f"model.{f.name} is {getattr(model, name)} as in {experiment.init_from}, not {getattr(ours, name)}")
    experiment = dataclasses.replace(experiment, model=model)
    if type(task) is not type(experiment.task):
        return experiment
    return dataclasses.replace(experiment, task=experiment.task.adopt(task, say, experiment.init_from))


def transfer(
    found: Any,
    declaration: Any,
    experiment: Experiment,
    key: jax.Array,
    mesh: Mesh,
    say: Callable[[str], None],
) -> Any:
    """The parameters to start from: `found`, a checkpoint's, as far as the experiment uses them, and fresh heads.

    Arguments:
      declaration: the experiment's tree of `Param`s, whose trunk is that of the checkpoint (`adopt`).
      key: what a run from scratch would initialise with: fresh heads are the same.
    Errors: `InputError` for a head of another shape, and for a name in `experiment.fresh` that is no head.
    """
    trunk = models.hook(experiment.model, "TRUNK")
    heads = [] if trunk is None else [name for name in declaration if name not in trunk]
    for name in experiment.fresh:
        if name not in heads:
            raise InputError(
                f"fresh has {name!r}, which is no head of this model; its heads: {', '.join(heads) or 'none'}"
            )
    for name in heads:
        if name in found and name not in experiment.fresh:
            _refuse_other_shape(name, found[name], declaration[name], experiment.init_from)
            say(f"head {name!r}: as in {experiment.init_from}; to initialise it anew, add --fresh {name}")
    fresh = {name: declaration[name] for name in heads if name not in found or name in experiment.fresh}
    for name in fresh:
        why = "asked for with --fresh" if name in found else f"{experiment.init_from} has none"
        say(f"head {name!r}: initialised anew ({why})")
    for name in found:
        if name not in declaration:
            say(f"head {name!r} of {experiment.init_from}: left out, this experiment has no use for it")
    places = params_lib.shardings(fresh, mesh)
    made = jax.jit(lambda key: params_lib.init(key, fresh), out_shardings=places)(key) if fresh else {}
    return {name: made[name] if name in made else found[name] for name in declaration}


def _refuse_other_shape(name: str, found: Any, declared: Any, path: str) -> None:
    theirs = {leaf: tuple(x.shape) for leaf, x in params_lib.flatten(found).items()}
    ours = {leaf: p.shape for leaf, p in params_lib.flatten(declared).items()}
    for leaf in ours.keys() | theirs.keys():
        if theirs.get(leaf) != ours.get(leaf):
            raise InputError(
                f"init_from {path}: its head {name!r} has {leaf} of shape {theirs.get(leaf)}, this experiment's "
                f"{ours.get(leaf)} (another number of labels?); to initialise the head anew, add --fresh {name}"
            )
