"""Optimisers, and observers of a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from transformer_jax.contracts.values import Report, Row, RunFacts

if TYPE_CHECKING:
    import optax


class Optimizer(Protocol):
    """A frozen dataclass that makes an Optax transformation. Every count is in updates of the optimiser."""

    def schedule(self, total_updates: int) -> "optax.Schedule":
        """The learning rate of a run of `total_updates`, as a function of the number of updates applied so far."""
        ...

    def make(self, total_updates: int, declaration: Any) -> "optax.GradientTransformation":
        """The transformation of the gradients.

        Its `update` may take two keyword arguments: `grad_norm`, the global norm of the gradients, and `finite`, a bool
        scalar. Where `finite` is False the state must not change. A transformation without `finite` is wrapped so that
        this holds.

        Args:
          total_updates: updates of the whole run.
          declaration: the tree of `nn.params.Param` of the parameters.
        """
        ...


@runtime_checkable
class ScalesRates(Optimizer, Protocol):
    """An optimiser with a learning rate per parameter; all that inherit `optim.Rates` are."""

    def lr_scales(self, declaration: Any) -> Any:
        """The factor of each parameter's learning rate: a tree like `declaration`, of arrays that broadcast.

        A parameter whose factor is 0 is frozen: its gradient is not computed.
        """
        ...


@runtime_checkable
class EvaluatesOther(Optimizer, Protocol):
    """An optimiser that evaluates other weights than it trains, such as schedule-free."""

    def evaluated(self, opt_state: Any, params: Any) -> Any:
        """The parameters to evaluate, from `opt_state` and the trained `params`. Each checkpoint stores both."""
        ...


class Observer(Protocol):
    """Receives the events of a run: a logger, a plot, a notification. Its methods are called on host 0 only.

    Every method has a default that does nothing. An exception in a method never ends the run: it is logged once, and
    the observer is not called again.
    """

    def start(self, run: RunFacts) -> None:
        """Called before the first step; `run` describes the run, which may be a resumed one."""
        return  # otherwise a type checker treats a method with only a docstring as abstract

    def row(self, row: Row) -> None:
        """Called with each `row` of training metrics."""
        return

    def evaluation(self, step: int, name: str, report: Report) -> None:
        """Called after an evaluation.

        Args:
          step: steps taken.
          name: the set, "validation" or "test".
          report: its numbers.
        """
        return

    def sample(self, step: int, text: str) -> None:
        """Called with the task's sample: at the end of a run and, with `evaluate.sample`, after each evaluation.

        Args:
          step: steps taken.
          text: what `Task.sample` returned.
        """
        return

    def save(self, step: int) -> None:
        """Called before the checkpoint of `step` is written: flush to the disk."""
        return

    def end(self, results: Mapping[str, Any]) -> None:
        """Called when the run has ended. `results`: what results.json holds; {} after a signal or an error."""
        return
