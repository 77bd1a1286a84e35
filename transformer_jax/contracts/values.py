"""Values that pass between the rooms of the package: the state of a run, its data, its numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flax import struct

if TYPE_CHECKING:
    import numpy as np

Sums = Mapping[str, tuple[float, float]]
"""{name: (sum, weight)}: each mean is sum / weight."""
Outputs = Mapping[str, "np.ndarray"]
"""{name: [examples, ...]}: what `Task.evaluate` keeps of each example."""
Row = Mapping[str, float]
"""One row of training metrics; "step" is one of its names."""
Report = Mapping[str, float | str]
"""The numbers of an evaluation by name; strings state the conventions that they were computed by."""
Query = str | tuple[str, ...]
"""An input of `Task.predict`: a text, a pair of texts, or the words of a sentence."""
Progress = Callable[[int, int], None]
"""Called with (done, total) from time to time."""


def no_progress(done: int, total: int) -> None:
    """Ignores `done` and `total`: the default `Progress`."""


@struct.dataclass
class TrainState:
    """What a training step reads and writes. All leaves are arrays, so that the whole state can be donated.

    The same structure also holds one description per leaf: shapes and dtypes (`train.state.abstract`), or shardings.

    Attributes:
      step: int32 scalar, steps taken, skipped ones included.
      params: the family's parameter tree, float32; with an adapter the parameters that are trained.
      opt_state: the Optax state.
      ema: the exponential moving average of `params`, or None when it is off.
      skipped: int32 scalar, steps that changed nothing, because the loss or the gradient was not finite, or because the
        loss was a spike and `train.skip_spikes` is on.
      recent: float32 [n], the last n finite losses, newest last, NaN before there are n; None when `train.spike` is 0.
      base: the parameters that an adapter leaves as they are, the rest of the family's tree; None without an adapter.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    skipped: Any
    recent: Any = None
    base: Any = None


@struct.dataclass
class Frozen:
    """A model that a loss reads and training never changes: a teacher, or the reference of DPO.

    Attributes:
      params: its family's own parameter tree, in the run's compute dtype.
      config: its Config.
    """

    params: Any
    config: Any = struct.field(pytree_node=False)


@dataclass(frozen=True)
class Evaluation:
    """A finite set to evaluate on.

    Attributes:
      examples: `examples[i]` is a dict of arrays without the batch dimension; "weights" is one of its names.
      reference: what the task's `report` needs besides the model's outputs, such as gold answers.
    """

    examples: Any
    reference: Any = None


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    Attributes:
      train: an endless stream; `train[i]` is example i, a dict of arrays without the batch dimension.
      validation: the set that is evaluated during training and that chooses the best checkpoint.
      facts: what to print and store about the data.
      tokenizer: the tokenizer whose ids the model is trained on; None where the task reads no text.
      test: the set that the best checkpoint is evaluated on once, at the end; None where there is none.
      identity: a hash of all data, where it is known without reading them again; hosts compare it.
    """

    train: Any
    validation: Evaluation
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    test: Evaluation | None = None
    identity: str = ""


@dataclass(frozen=True)
class Special:
    """Ids of the special tokens; None where the tokenizer has none."""

    cls: int | None = None
    """The first token of an example; its hidden state represents the example."""
    sep: int | None = None
    """The last token of each part of an example."""
    pad: int | None = None
    mask: int | None = None
    unk: int | None = None

    def present(self) -> dict[str, int]:
        """{"cls": 2, ...}: the tokens that the tokenizer has."""
        return {f.name: id for f in fields(self) if (id := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class RunFacts:
    """What an observer receives when a run starts.

    Attributes:
      folder: a local folder to write files into: the workdir, or the local mirror of one in an object store.
      workdir: the workdir's path or URL.
      run_id: identifies the run; the same on all hosts, and after a resume.
      config: the resolved experiment, as config.json stores it.
      first_step: the step that the run resumes from; 0 for a new run.
      steps: the run's last step.
      metric: the reported number that chooses the best checkpoint (`checkpoint.best_metric`).
      recipe: the experiment as its file states it, before the command's overrides; {} where it is not known.
      data: what is known of the data (`Prepared.facts`).
      parameters: how many the model has.
      devices: their number and kind, "8 x TPU v5e".
    """

    folder: Path
    workdir: str
    run_id: str
    config: Mapping[str, Any]
    first_step: int
    steps: int
    metric: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    devices: str = ""


class Input(NamedTuple):
    """One input of the command `predict`.

    Attributes:
      query: what `Task.predict` receives.
      where: the input's name in messages, "new.csv:17".
      columns: the record of a table that the input comes from; {} for other inputs.
      error: why the input cannot be answered; "" where it can.
    """

    query: Query
    where: str
    columns: Mapping[str, Any]
    error: str = ""
