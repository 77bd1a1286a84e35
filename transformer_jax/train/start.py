"""Starting from the parameters of another run: its architecture is adopted, and each head is transferred or not.

A checkpoint holds the trunk (the family's `TRUNK`), of which every leaf must match, and heads. A head is initialised
from scratch if only the experiment has it, or if `fresh` names it. A head that only the checkpoint has is dropped. Each
of these decisions is logged.
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


def adopt(experiment: Experiment, trained: Any, log: Callable[[str], None], *, task: Any = None) -> Experiment:
    """The experiment with the architecture of the checkpoint that it starts from; each change is logged.

    The fields of the Config that are marked `LAUNCH`, `TRAINING` or `RUN` keep the experiment's values (`contracts`).
    The task may adopt settings as well, such as the normalisation of images.

    Args:
      experiment: the recipe.
      trained: the Config of the checkpoint's model.
      log: called with each line to print.
      task: the checkpoint's; None: it has none.

    Raises:
      InputError: another family, or data longer than the checkpoint's positions.
    """
    wanted: Any = experiment.model
    if type(trained) is not type(wanted):
        names = (models.name(cfg) for cfg in (trained, wanted))
        raise InputError("init_from {} is a {}, the experiment's model is a {}".format(experiment.init_from, *names))
    own = contracts.decided_by(wanted, "launch", "training", "run")
    model = dataclasses.replace(trained, **{name: getattr(wanted, name) for name in own})
    for f in dataclasses.fields(model):
        name = f.metadata.get("means", f.name)
        if getattr(model, name) != getattr(wanted, name):
            log(f"model.{f.name} is {getattr(model, name)} as in {experiment.init_from}, not {getattr(wanted, name)}")
    experiment = dataclasses.replace(experiment, model=model)
    if type(task) is not type(experiment.task):
        return experiment
    return dataclasses.replace(experiment, task=experiment.task.adopt(task, log, experiment.init_from))


def transfer(
    found: Any,
    declaration: Any,
    experiment: Experiment,
    key: jax.Array,
    mesh: Mesh,
    log: Callable[[str], None],
    *,
    labels: Sequence[str] = (),
) -> Any:
    """The parameters to start from: those of a checkpoint that the experiment uses, and fresh heads.

    Args:
      found: the checkpoint's parameter tree.
      declaration: the experiment's tree of `nn.params.Param`; its trunk is the checkpoint's (`adopt`).
      experiment: the recipe; `fresh` names the heads to initialise from scratch.
      key: the key that a run from scratch would initialise with, so that fresh heads are the same.
      mesh: the devices of fresh heads.
      log: called with each line to print.
      labels: the labels of the checkpoint's task. A head's columns are reordered by name where the experiment's order
        differs.

    Raises:
      InputError: a head has another shape or other labels, or `experiment.fresh` names something that is not a head.
    """
    trunk, labelled = (models.hook(experiment.model, part) for part in ("TRUNK", "LABEL_HEADS"))
    wanted = experiment.task.snapshot_settings().get("labels", ())
    found = dict(found)
    heads = [] if trunk is None else [name for name in declaration if name not in trunk]
    for name in experiment.fresh:
        if name not in heads:
            raise InputError(
                f"fresh has {name!r}, which is no head of this model; its heads: {', '.join(heads) or 'none'}"
            )
    for name in heads:
        if name in found and name not in experiment.fresh:
            hint = f"give --fresh {' '.join((*experiment.fresh, name))}"  # --fresh is given once, with all names
            _refuse_other_shape(name, found[name], declaration[name], experiment.init_from, hint)
            if name in labelled and labels and wanted:
                found[name] = _reordered(
                    found[name], labels, wanted, f"init_from {experiment.init_from}: head {name!r}", hint, log
                )
            log(f"head {name!r}: as in {experiment.init_from}; to initialise it from scratch, {hint}")
    fresh = {name: declaration[name] for name in heads if name not in found or name in experiment.fresh}
    for name in fresh:
        why = "asked for with --fresh" if name in found else f"{experiment.init_from} has none"
        log(f"head {name!r}: initialised from scratch ({why})")
    for name in found:
        if name not in declaration:
            log(f"head {name!r} of {experiment.init_from}: dropped, this experiment does not use it")
    shardings = params_lib.shardings(fresh, mesh)
    made = jax.jit(lambda key: params_lib.init(key, fresh), out_shardings=shardings)(key) if fresh else {}
    return {name: made[name] if name in made else found[name] for name in declaration}


def _reordered(
    head: Any, found: Sequence[str], wanted: Sequence[str], where: str, hint: str, log: Callable[[str], None]
) -> Any:
    """A head with its columns in the order of the experiment's labels. Names such as LABEL_0 have no meaning."""
    if tuple(found) == tuple(wanted) or all(re.fullmatch(r"LABEL_\d+", name) for name in found):
        return head
    if sorted(found) != sorted(wanted):
        raise InputError(
            f"{where} tells apart {_few(found)}, this experiment's labels are {_few(wanted)}; to initialise the head "
            f"from scratch, {hint}"
        )
    log(f"{where}: its labels are moved from the order {_few(found)} to {_few(wanted)}")
    order = np.array([list(found).index(label) for label in wanted])
    return jax.tree.map(lambda x: x[..., order], head)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _refuse_other_shape(name: str, found: Any, declared: Any, path: str, hint: str) -> None:
    shapes = {leaf: tuple(x.shape) for leaf, x in params_lib.flatten(found).items()}
    wanted = {leaf: p.shape for leaf, p in params_lib.flatten(declared).items()}
    for leaf in wanted.keys() | shapes.keys():
        if shapes.get(leaf) != wanted.get(leaf):
            raise InputError(
                f"init_from {path}: its head {name!r} has {leaf} of shape {shapes.get(leaf)}, this experiment's "
                f"{wanted.get(leaf)} (another number of labels?); to initialise the head from scratch, {hint}"
            )
