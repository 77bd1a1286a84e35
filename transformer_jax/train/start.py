"""Starting from the parameters of another run: its model comes with them, and each head says where it is from.

What a checkpoint holds is the trunk (the family's `TRUNK`), which must fit to the last leaf, and heads. A head that the
experiment has and the checkpoint has not, or that the user wants anew, is initialised as from scratch; one that the
experiment does not have is left out. All of it is said.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
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
    *,
    labels: Sequence[str] = (),
) -> Any:
    """The parameters to start from: `found`, a checkpoint's, as far as the experiment uses them, and fresh heads.

    Arguments:
      declaration: the experiment's tree of `Param`s, whose trunk is that of the checkpoint (`adopt`).
      key: what a run from scratch would initialise with: fresh heads are the same.
      labels: those of the checkpoint's task; heads are compared with the experiment's by name.
    Errors: `InputError` for a head of another shape or of other labels, and for a name in `experiment.fresh` that is no
      head.
    """
    trunk, labelled = (models.hook(experiment.model, part) for part in ("TRUNK", "LABEL_HEADS"))
    ours = experiment.task.snapshot_settings().get("labels", ())
    found = dict(found)
    heads = [] if trunk is None else [name for name in declaration if name not in trunk]
    for name in experiment.fresh:
        if name not in heads:
            raise InputError(
                f"fresh has {name!r}, which is no head of this model; its heads: {', '.join(heads) or 'none'}"
            )
    for name in heads:
        if name in found and name not in experiment.fresh:
            hint = f"give --fresh {' '.join((*experiment.fresh, name))}"  # all of them: the flag is read once
            _refuse_other_shape(name, found[name], declaration[name], experiment.init_from, hint)
            if name in labelled and labels and ours:
                found[name] = _in_order(
                    found[name], labels, ours, f"init_from {experiment.init_from}: head {name!r}", hint, say
                )
            say(f"head {name!r}: as in {experiment.init_from}; to initialise it from scratch, {hint}")
    fresh = {name: declaration[name] for name in heads if name not in found or name in experiment.fresh}
    for name in fresh:
        why = "asked for with --fresh" if name in found else f"{experiment.init_from} has none"
        say(f"head {name!r}: initialised from scratch ({why})")
    for name in found:
        if name not in declaration:
            say(f"head {name!r} of {experiment.init_from}: left out, this experiment has no use for it")
    places = params_lib.shardings(fresh, mesh)
    made = jax.jit(lambda key: params_lib.init(key, fresh), out_shardings=places)(key) if fresh else {}
    return {name: made[name] if name in made else found[name] for name in declaration}


def _in_order(
    head: Any, theirs: Sequence[str], ours: Sequence[str], where: str, hint: str, say: Callable[[str], None]
) -> Any:
    """A head's columns in the order of our labels, by name. Names such as LABEL_0 state an order and no meaning."""
    if tuple(theirs) == tuple(ours) or all(re.fullmatch(r"LABEL_\d+", name) for name in theirs):
        return head
    if sorted(theirs) != sorted(ours):
        raise InputError(
            f"{where} tells apart {_few(theirs)}, this experiment's labels are {_few(ours)}; to initialise the head "
            f"from scratch, {hint}"
        )
    say(f"{where}: its labels are moved from the order {_few(theirs)} to {_few(ours)}")
    order = np.array([list(theirs).index(label) for label in ours])
    return jax.tree.map(lambda x: x[..., order], head)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _refuse_other_shape(name: str, found: Any, declared: Any, path: str, hint: str) -> None:
    theirs = {leaf: tuple(x.shape) for leaf, x in params_lib.flatten(found).items()}
    ours = {leaf: p.shape for leaf, p in params_lib.flatten(declared).items()}
    for leaf in ours.keys() | theirs.keys():
        if theirs.get(leaf) != ours.get(leaf):
            raise InputError(
                f"init_from {path}: its head {name!r} has {leaf} of shape {theirs.get(leaf)}, this experiment's "
                f"{ours.get(leaf)} (another number of labels?); to initialise the head from scratch, {hint}"
            )
