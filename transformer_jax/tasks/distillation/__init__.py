"""Distillation: a student learns a task from a teacher's logits beside the labels (Hinton et al. 2015).

    Distillation(of=Classification(labels), teacher="runs/topics", temperature=2.0, hard=0.5)

Of the loss, `hard` is the task's own and 1 - `hard` is T^2 KL(teacher || student), the softmaxes at temperature T; T^2
keeps the gradients' size. `states` adds the cosine distance of the last hidden states, as in DistilBERT (Sanh et al.
2019), for a student of the teacher's width. `evaluate`, `predict` and all else are those of the task `of`.

Every row shows the task's own numbers, `soft_loss`, and `agreement`: the share of predictions in which the student's
likeliest answer is the teacher's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import contracts, models
from transformer_jax.contracts import Frozen, Outputs, Prepared, Sums, Task
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib


@dataclass(frozen=True)
class Distillation(Task):
    """A task that is learned from a teacher."""

    of: contracts.Task
    """The task."""
    teacher: str = ""
    """The teacher: a run, a step or a Hugging Face folder of the same task, with the same tokenizer and labels."""
    temperature: float = 2.0
    """T, which divides the logits of both."""
    hard: float = 0.5
    """The share of the task's own loss; 1: the teacher's logits are not learned from."""
    states: float = 0.0
    """Weight of the cosine distance of the last hidden states; the widths must be equal."""
    start: Literal["scratch", "layers"] = "scratch"
    """`layers`: a run from scratch starts from the teacher's parameters, of its layers from evenly spaced ones."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise InputError(f"task.temperature = {self.temperature}: must be positive")
        if not 0 <= self.hard <= 1:
            raise InputError(f"task.hard = {self.hard}: must be between 0 and 1, the share of the task's own loss")
        if not 0 <= self.states < math.inf:
            raise InputError(f"task.states = {self.states}: must be 0 or more")
        if self.start not in ("scratch", "layers"):
            raise InputError(f"task.start = {self.start!r}: must be 'scratch' or 'layers'")

    def settle(self, data: Any) -> "Distillation":
        """The task with the settings that the data decide."""
        return replace(self, of=self.of.settle(data))

    def check(self, model_cfg: Any, data: Any) -> None:
        """The checks of the task."""
        self.of.check(model_cfg, data)

    def frozen(self, model_cfg: Any) -> Mapping[str, tuple[str, Any]]:
        """The teacher, which to a compiler is the student with twice the layers."""
        layers = {"num_layers": 2 * model_cfg.num_layers} if hasattr(model_cfg, "num_layers") else {}
        return {**self.of.frozen(model_cfg), "teacher": (self.teacher, replace(model_cfg, **layers))}

    def initial(self, params: Any, frozen: Mapping[str, Frozen]) -> Any:
        """`params`, or the teacher's where `start` is `layers`.

        Raises:
          InputError: a leaf of the student is not one of the teacher's with fewer layers.
        """
        if self.start == "scratch":
            return params
        teacher = frozen["teacher"]
        theirs = params_lib.flatten(teacher.params)
        declared = params_lib.flatten(models.family(teacher.config).declare(teacher.config))

        def of_teacher(path: str, mine: Any) -> Any:
            found = theirs.get(path)
            if found is not None and found.shape == mine.shape:
                return found.astype(mine.dtype)
            if found is None or found.shape[1:] != mine.shape[1:] or declared[path].axes[:1] != ("layers",):
                has = "no such leaf" if found is None else f"one of shape {found.shape}"
                raise InputError(
                    f"task.start = layers: the student's {path} has shape {mine.shape}, the teacher {has}; they may "
                    "differ in the number of layers alone"
                )
            return found[jnp.arange(len(mine)) * len(found) // len(mine)].astype(mine.dtype)

        mine = params_lib.flatten(params)
        return params_lib.nested({path: of_teacher(path, x) for path, x in mine.items()})

    def example(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example, as the student's own task `of` reads it."""
        return self.of.example(data)

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The data of the task."""
        return self.of.prepare(data, model_cfg, seed=seed, workdir_tokenizer=workdir_tokenizer)

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, Any], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, sums); the sums are the task's own and those of the teacher's part.

        Raises:
          InputError: the teacher has other outputs than the student.
        """
        teacher, weights = batch["teacher"], batch["weights"].astype(jnp.float32)
        total, weight, sums = self.of.loss(params, model_cfg, batch, key=key)
        logits, states_BTD, mask_BT = self.of.logits_and_states(params, model_cfg, batch, key=key)
        taught, wanted_BTD, _ = jax.lax.stop_gradient(self.of.logits_and_states(teacher.params, teacher.config, batch))
        if taught.shape != logits.shape:
            raise InputError(
                f"task.teacher has {taught.shape[-1]} outputs, the student {logits.shape[-1]}: other labels, or "
                "another vocabulary"
            )
        T = self.temperature
        aims = jax.nn.softmax(taught / T)
        kl = jnp.sum(aims * (jax.nn.log_softmax(taught / T) - jax.nn.log_softmax(logits / T)), axis=-1)
        count = weights.sum()
        soft = T * T * jnp.sum(weights * kl)
        mean_of = weight / jnp.maximum(count, 1.0)  # the task may count otherwise than by position
        total = self.hard * total + (1 - self.hard) * soft * mean_of
        if self.states:
            if wanted_BTD.shape != states_BTD.shape:
                raise InputError(
                    f"task.states = {self.states}, but the teacher's hidden states have width {wanted_BTD.shape[-1]} "
                    f"and the student's {states_BTD.shape[-1]}; give --task.states 0"
                )
            distance_BT = 1.0 - _cosine(states_BTD.astype(jnp.float32), wanted_BTD.astype(jnp.float32))
            total += self.states * weight * jnp.sum(mask_BT * distance_BT) / jnp.maximum(mask_BT.sum(), 1.0)
        alike = jnp.sum(weights * (jnp.argmax(logits, -1) == jnp.argmax(taught, -1)))
        return (
            total,
            weight,
            {**sums, **jax.lax.stop_gradient({"soft_loss": (soft, count), "agreement": (alike, count)})},
        )

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The sums and outputs of the task; the teacher is not computed."""
        return self.of.evaluate(params, model_cfg, batch)

    def best_metric(self) -> str:
        """The metric by which the student's own task `of` chooses."""
        return self.of.best_metric()

    def report(self, sums: Sums, outputs: Outputs, evaluation: Any) -> dict[str, float]:
        """The numbers of the task."""
        return self.of.report(sums, outputs, evaluation)

    def records(self, outputs: Outputs, evaluation: Any) -> Mapping[str, Sequence[Any]]:
        """The records of the task."""
        return self.of.records(outputs, evaluation)

    def flops(self, model_cfg: Any, data: Any) -> float:
        """The FLOPs of the student's step; the teacher's forward pass is not counted."""
        return self.of.flops(model_cfg, data)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-8)


def _delegate(name: str) -> Any:
    def of_task(self: Distillation, *args: Any, **options: Any) -> Any:
        return getattr(self.of, name)(*args, **options)

    of_task.__doc__ = getattr(Task, name).__doc__
    return of_task


def _constant(name: str) -> Any:
    return property(lambda self: getattr(self.of, name))


# Everything else that a task may define is the task's own.
for _name in contracts.defaults(Task):
    if _name not in vars(Distillation):
        setattr(Distillation, _name, (_delegate if callable(getattr(Task, _name)) else _constant)(_name))
