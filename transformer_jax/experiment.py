"""An experiment as a value: nested frozen dataclasses that are the whole recipe. Equal experiments are the same run.

An experiment file (`experiments/<task>/<name>.py`) has a function `experiment() -> Experiment` and states only the
values that differ from the defaults. `config_json` writes and reads it; `overrides` is its command line.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax

from transformer_jax import adapters, contracts, models
from transformer_jax import optim as optimizers
from transformer_jax.adapters import Lora
from transformer_jax.compress import Int8, Rule
from transformer_jax.contracts import LAUNCH, NOT_STORED, Predict
from transformer_jax.errors import InputError
from transformer_jax.tasks.causal_lm import CausalLM, Sample

__all__ = [
    "Checkpoint",
    "Ema",
    "Evaluate",
    "Experiment",
    "Int8",
    "Lora",
    "Mesh",
    "Precision",
    "Predict",
    "Sample",
    "Train",
    "compute_dtype",
    "computed_in",
]

# For a type checker the parts are Any; otherwise `dataclasses.replace` of a part would need its concrete type.
if TYPE_CHECKING:
    Task: TypeAlias = Any
    Optimizer: TypeAlias = Any
else:
    Task, Optimizer = contracts.Task, contracts.Optimizer


@dataclass(frozen=True)
class Train:
    """The length of the run and the size of a step."""

    steps: int = field(default=1000, metadata=LAUNCH)
    """Optimiser steps of the whole run. A larger number resumes a complete run; the schedule is computed for it."""
    batch_size: int = field(default=32, metadata=LAUNCH)
    """Examples per optimiser step, over all devices, hosts and micro-batches."""
    accumulate: int = field(default=1, metadata=LAUNCH)
    """Micro-batches per step, computed one after the other to save memory; the update is that of the whole batch."""
    log_every: int = field(default=10, metadata=LAUNCH)
    """Steps between two rows of metrics. A row has the values of its step, and tokens/s since the previous row."""
    max_skips: int = field(default=10, metadata=LAUNCH)
    """Skipped steps in a row (the loss or a gradient is not finite) after which the run stops with a diagnosis; 0:
    never."""
    spike: float = 0.0
    """A loss this many deviations above the median of the last 64 is logged as a spike; 0: off."""
    skip_spikes: bool = False
    """Skip a step whose loss is a spike, like one that is not finite."""


@dataclass(frozen=True)
class Evaluate:
    """When to evaluate. An evaluation always covers the whole validation set."""

    every: int = 0
    """Steps between two evaluations; 0: only at the end."""
    batch_size: int = 0
    """Examples per evaluation batch; 0: train.batch_size / train.accumulate."""
    patience: int = 0
    """Evaluations in a row without a better `checkpoint.best_metric` after which the run ends; 0: never."""
    sample: bool = False
    """Whether the run's sample is also made after each evaluation, into WORKDIR/samples.jsonl."""


@dataclass(frozen=True)
class Checkpoint:
    """Which steps to save in WORKDIR/checkpoints. A run also saves at its end, and on Ctrl-C or SIGTERM."""

    every: int = 1000
    """Steps between two saves; 0: only at the end."""
    keep: int = 2
    """How many of the newest checkpoints to keep."""
    keep_best: int = 1
    """How many of the best evaluated checkpoints, by `best_metric`, to keep in addition."""
    best_metric: str = ""
    """The reported number that chooses the best checkpoint, which is evaluated on the test set; empty: the task's."""
    best: Literal["lowest", "highest"] = "lowest"
    """Whether the lowest or the highest value is best."""


@dataclass(frozen=True)
class Mesh:
    """The mesh of devices. The product of the sizes is the number of devices; one may be -1, for the remaining ones."""

    data: int = -1
    """Data parallelism: replicas of the model, over which the batch is sharded."""
    fsdp: int = 1
    """Devices over which parameters, moments and the batch are sharded."""
    sequence: int = 1
    """Devices over which the sequence is sharded."""
    tensor: int = 1
    """Tensor parallelism: devices over which heads, MLP and vocabulary are sharded."""


@dataclass(frozen=True)
class Precision:
    """The compute dtype.

    Parameters and moments are always float32; softmax, statistics of norms, logits and losses are computed in float32.
    """

    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype of everything else; auto: bfloat16 on TPU and GPU, float32 on CPU."""


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of the parameters, which is evaluated and loaded in their place."""

    decay: float = 0.0
    """Weight of the previous average at each step, such as 0.999; 0: off."""


# Prefixes of metric names: of those whose lowest value is best, then of those whose highest value is best.
_BEST = (
    ("loss", "perplexity", "bits_per", "mean_squared", "calibration"),
    (
        *("accuracy", "f1", "precision", "recall", "mrr", "matthews", "pearson", "spearman", "roc_auc", "entity"),
        *("exact_match", "bleu", "chrf", "rouge"),
    ),
)


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run. The constructor checks what can be checked without data or devices."""

    model: Any
    """A family's Config."""
    data: Any
    """The data that the task reads."""
    task: Task = field(default_factory=CausalLM)
    optim: Optimizer = field(default_factory=optimizers.AdamW)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate, metadata=LAUNCH)
    checkpoint: Checkpoint = field(default_factory=Checkpoint, metadata=LAUNCH)
    sample: Any = field(default=None, metadata=LAUNCH)
    """What to predict or generate when training ends, and the defaults of `predict`; None: the task's default."""
    mesh: Mesh = field(default_factory=Mesh, metadata=LAUNCH)
    precision: Precision = field(default_factory=Precision, metadata=LAUNCH)
    ema: Ema = field(default_factory=Ema)
    adapter: Lora = field(default_factory=Lora)
    """What is trained beside the model that `init_from` names, which stays as it is; of rank 0: the model itself."""
    compress: Rule = field(default_factory=Int8)
    """How kernels are stored: in eight bits, beside an adapter or in a run of `convert int8`; as two factors
    (`compress.low_rank.LowRank`); of target "": as they are."""
    seed: int = 0
    """Decides the initial parameters, the order of the data, dropout and sampling."""
    order: int = field(default=2, metadata=LAUNCH)
    """The version of the rule by which the seed orders the data (`data.pipeline.epochs`); it never changes in a run."""
    init_from: str = field(default="", metadata=LAUNCH)
    """A workdir, a step, a Hugging Face folder or its name, hf://org/name@revision, whose parameters the run starts
    from; empty: from scratch. Its architecture and tokenizer replace the ones of the experiment."""
    fresh: tuple[str, ...] = field(default=(), metadata=LAUNCH)
    """Heads, such as "classification", that are initialised from scratch although `init_from` has them."""
    observers: tuple[contracts.Observer, ...] = field(default=(), metadata=NOT_STORED)
    """Observers of the run besides the terminal, metrics.jsonl and TensorBoard. config.json does not store them."""

    def __post_init__(self) -> None:
        self._check_contracts()
        object.__setattr__(self, "model", self.task.sized(self.model))
        if not self.checkpoint.best_metric:
            checkpoint = dataclasses.replace(self.checkpoint, best_metric=self.task.best_metric())
            object.__setattr__(self, "checkpoint", checkpoint)
        if self.sample is None:
            object.__setattr__(self, "sample", self.task.default_sample())
        wanted = type(self.task.default_sample())
        if not isinstance(self.sample, wanted):
            task, sample = type(self.task).__name__, type(self.sample).__name__
            raise InputError(
                f"sample is a {sample}, but {task} needs a {wanted.__name__}; give sample=None for its defaults"
            )
        train = self.train
        _positive("train.steps", train.steps)
        _positive("train.batch_size", train.batch_size)
        _positive("train.accumulate", train.accumulate)
        _positive("train.log_every", train.log_every)
        for name in (
            "evaluate.every",
            "evaluate.batch_size",
            "evaluate.patience",
            "train.max_skips",
            "train.spike",
            "checkpoint.every",
            "checkpoint.keep_best",
            "seed",
        ):
            value = _get(self, name)
            if value < 0:
                raise InputError(f"{name} = {value}: must be 0 or more")
        _positive("checkpoint.keep", self.checkpoint.keep)
        metric, best = self.checkpoint.best_metric, self.checkpoint.best
        if metric.startswith(_BEST[best == "lowest"]):
            other = "highest" if best == "lowest" else "lowest"
            raise InputError(
                f"checkpoint.best = {best!r} of {metric} would keep the worst; give --checkpoint.best {other}"
            )
        if train.batch_size % train.accumulate:
            raise InputError(
                f"train.batch_size = {train.batch_size} does not divide into train.accumulate = {train.accumulate}"
            )
        if train.skip_spikes and not train.spike:
            raise InputError("train.skip_spikes is on, but train.spike = 0 looks for none; give --train.spike 10")
        if not 0.0 <= self.ema.decay < 1.0:
            raise InputError(f"ema.decay = {self.ema.decay}: must be in [0, 1); 0 is off")
        self.task.check(self.model, self.data)

    def _check_contracts(self) -> None:
        """Raises `InputError` for a part that does not satisfy its contract."""
        parts = [("task", self.task, contracts.Task), ("optim", self.optim, contracts.Optimizer)]
        for name, value, contract in parts:
            if lacking := contracts.missing(value, contract):
                raise InputError(
                    f"{name} is a {type(value).__name__}, which has no {' and no '.join(lacking)}; "
                    f"contracts.{contract.__name__} says what it must have"
                )
            absent = [method for method in contracts.defaults(contract) if not hasattr(value, method)]
            if absent:
                raise InputError(
                    f"{name} is a {type(value).__name__}, which has no {absent[0]}; inherit "
                    f"contracts.{contract.__name__}, which has defaults for all but what it must define"
                )
        for name in ("model", "data", "task", "optim"):
            cls = type(getattr(self, name))
            if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise InputError(
                    f"{name} is a {cls.__name__}, which is no frozen dataclass; write @dataclass(frozen=True) above it"
                )
        models.family(self.model)
        self._check_observers()

    def _check_observers(self) -> None:
        """Raises `InputError` for an observer that has no method of the contract."""
        if not isinstance(self.observers, tuple | list):
            raise InputError(f"observers is a {type(self.observers).__name__}; give a tuple, such as (MyLogger(),)")
        object.__setattr__(self, "observers", tuple(self.observers))
        for observer in self.observers:
            if isinstance(observer, type):
                raise InputError(
                    f"observers has the class {observer.__name__}; give a value of it: {observer.__name__}()"
                )
            if not any(hasattr(observer, method) for method in contracts.defaults(contracts.Observer)):
                raise InputError(
                    f"observers has a {type(observer).__name__}, which has none of the methods of contracts.Observer: "
                    f"{', '.join(contracts.defaults(contracts.Observer))}"
                )


def declare(experiment: Experiment, model: Any = None) -> Any:
    """The tree of `nn.params.Param` of a run: the family's own, with its kernels stored and an adapter as it asks.

    Args:
      experiment: the recipe.
      model: in place of its Config, such as one with another compute dtype; None: its own.
    """
    model = experiment.model if model is None else model
    declaration = experiment.compress.declare(models.family(model).declare(model))
    return adapters.declare(declaration, experiment.adapter)


def compute_dtype(precision: Precision, platform: str | None = None) -> str:
    """The compute dtype of `precision` on a `platform`, "cpu", "gpu" or "tpu"; None: that of this process."""
    if precision.compute != "auto":
        return precision.compute
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def computed_in(model: Any, dtype: str, **changes: Any) -> Any:
    """A model's config with its compute dtype and other fields replaced; fields that it does not have are ignored.

    Args:
      model: a family's Config.
      dtype: the name of a dtype, "bfloat16".
      **changes: the other fields.
    """
    names = {f.name for f in dataclasses.fields(model)}
    wanted = {"dtype": dtype} | changes
    return dataclasses.replace(model, **{name: value for name, value in wanted.items() if name in names})


def _get(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} = {value}: must be 1 or more")
