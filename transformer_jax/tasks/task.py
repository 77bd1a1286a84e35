"""What a task is: how data become batches, batches a loss, and outputs the numbers and pictures that are reported.

A task is a frozen dataclass that an experiment holds as `task`. The loop and the command line know it through the
methods here and nothing else.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax.errors import InputError

Sums = Mapping[str, tuple[float, float]]  # {"name": (sum, weight)}
Outputs = Mapping[str, np.ndarray]  # {"name": [examples, ...]}


@dataclass(frozen=True)
class Evaluation:
    """A finite set to evaluate on.

    Fields:
      examples: `examples[i]` is a dict of arrays without the batch dimension; it has "weights".
      reference: what the task's `report` needs to know of the set beside the model's outputs, such as gold answers.
    """

    examples: Any
    reference: Any = None


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    Fields:
      tokenizer: with the vocabulary that the model's ids mean; None where there are none (`Task.reads_text`).
      train: example i of an endless stream, `train[i]`, a dict of arrays without the batch dimension.
      validation: the set that is watched while training, and that chooses the best checkpoint.
      facts: what to print and store about the data.
      test: the set that the best checkpoint is reported on, once, at the end; None where there is none.
      identity: a hash of the whole data where that is known anyway; several hosts compare it.
    """

    tokenizer: Any
    train: Any
    validation: Evaluation
    facts: Mapping[str, Any]
    test: Evaluation | None = None
    identity: str = ""


@dataclass(frozen=True)
class Task(abc.ABC):
    """The contract: `example`, `prepare`, `loss`, `report` and `flops`. The rest has defaults."""

    reads_text: ClassVar[bool] = True
    """Whether a model means nothing without a tokenizer."""
    unit: ClassVar[str] = "tokens"
    """What `tokens` counts, for people."""

    def settle(self, data: Any) -> "Task":
        """This task with what it leaves to the data, such as the names of classes: what config.json is to hold."""
        return self

    def check(self, model_cfg: Any, data: Any) -> None:
        """Errors: `InputError` where model and data contradict each other, as far as their settings show it."""
        if data.length > model_cfg.max_length:
            raise InputError(
                f"data.length = {data.length} is longer than model.max_length = {model_cfg.max_length}; "
                "lower the one or raise the other"
            )

    @abc.abstractmethod
    def example(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""

    @abc.abstractmethod
    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """Reads and checks the data. `workdir_tokenizer`: the one that the parameters were trained with, if any."""

    @abc.abstractmethod
    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"name": (sum, weight)}): what training minimises, and what a row of metrics shows."""

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """(sums, outputs): sums are added up over the set; outputs, {"name": [B, ...]}, are kept for every example."""
        return self.loss(params, model_cfg, batch)[2], {}

    @abc.abstractmethod
    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The numbers of an evaluation, each named with its unit where it has one."""

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """Draws what is better seen than read into FOLDER/NAME_*.png and returns the paths."""
        return []

    def score(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        evaluation: Evaluation,
        folder: Path,
        name: str,
        *,
        mesh: Mesh,
        say: Callable[[str], None],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, float | str]:
        """The final numbers that need text which the model makes, and the conventions they are computed by, as strings.

        They join those of `report`. The text is written into FOLDER/NAME.* and some of it said.

        Arguments:
          params: on the devices of `mesh`; every process calls, and gets the same numbers.
          say: takes a line for people.
          progress: called with (done, total) every now and then; what it raises ends the scoring.
        """
        return {}

    def tokens(self, data: Any) -> int:
        """The tokens of one example that throughput counts, padding included."""
        return data.length

    @abc.abstractmethod
    def flops(self, model_cfg: Any, data: Any) -> float:
        """FLOPs of one training step on one example, forward and backward (PaLM, appendix B)."""

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """What to show of the model when training ends, in pieces: by default the predictions for `options.inputs`."""
        for prediction in self.predict(params, model_cfg, tokenizer, options.inputs, top=options.top):
            yield self.describe(prediction) + "\n"

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[str], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """One JSON-able dict for each input, a line of text; `top`: how many answers of each to give."""
        raise TypeError(f"{type(self).__name__} makes text and no predictions; use `sample`")

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """A prediction as text for people."""
        raise TypeError(f"{type(self).__name__} makes text and no predictions; use `sample`")
