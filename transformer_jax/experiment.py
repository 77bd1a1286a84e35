"""An experiment as a value: nested frozen dataclasses that are the whole recipe; two equal ones are the same run.

An experiment file (`experiments/<task>/<name>.py`) has a function `experiment() -> Experiment` and states only what
differs from the defaults here. `config_json` writes it down and reads it back; `overrides` is its command line.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax

from transformer_jax import contracts, models
from transformer_jax import optim as optimizers
from transformer_jax.contracts import LAUNCH, NOT_STORED, Predict
from transformer_jax.errors import InputError
from transformer_jax.tasks.causal_lm import CausalLM, Sample

__all__ = [
    "Checkpoint",
    "Ema",
    "Evaluate",
    "Experiment",
    "Mesh",
    "Precision",
    "Predict",
    "Sample",
    "Train",
    "compute_dtype",
    "computed_in",
]

# To a type checker the parts of an experiment are Any: `dataclasses.replace` of one would need their very types.
if TYPE_CHECKING:
    Task: TypeAlias = Any
    Optimizer: TypeAlias = Any
else:
    Task, Optimizer = contracts.Task, contracts.Optimizer


@dataclass(frozen=True)
class Train:
    """How long, how much at a time."""

    steps: int = field(default=1000, metadata=LAUNCH)
    """Optimiser steps of the whole run. A larger number lets a complete run go on (the schedule follows it)."""
    batch_size: int = field(default=32, metadata=LAUNCH)
    """Examples in one optimiser step, over all devices, hosts and accumulated parts."""
    accumulate: int = field(default=1, metadata=LAUNCH)
    """Parts the batch is cut into, one after the other, to save memory; the update is that of the whole batch."""
    log_every: int = field(default=10, metadata=LAUNCH)
    """Steps between two rows of metrics. A row reports the last step's values, and tokens/s over the steps between."""
    max_skips: int = field(default=10, metadata=LAUNCH)
    """Steps in a row that are skipped (loss or gradients are not finite) after which the run stops and says where the
    numbers went bad; 0: never."""
    spike: float = 0.0
    """A loss by this many of their usual deviations above the last 64 is a spike, and said to be one; 0: off."""
    skip_spikes: bool = False
    """A spike changes nothing, like a step that is not finite."""


@dataclass(frozen=True)
class Evaluate:
    """The whole validation set, every time."""

    every: int = 0
    """Steps between two evaluations; 0: only at the end."""
    batch_size: int = 0
    """Examples in one evaluation batch; 0: train.batch_size / train.accumulate."""
    patience: int = 0
    """Evaluations in a row without a better `checkpoint.best_metric` after which the run ends; 0: never."""


@dataclass(frozen=True)
class Checkpoint:
    """What stays in WORKDIR/checkpoints. A run always saves at its end and on Ctrl-C or SIGTERM."""

    every: int = 1000
    """Steps between two saves; 0: only at the end."""
    keep: int = 2
    """The newest n are kept."""
    keep_best: int = 1
    """Of the evaluated ones, the n best by `best_metric` are kept as well."""
    best_metric: str = "loss_nats_per_token"
    """The reported number that says which checkpoint is best. With a test set, the best is what is reported on it."""
    best: Literal["lowest", "highest"] = "lowest"
    """Which value of it is best."""


@dataclass(frozen=True)
class Mesh:
    """The shape of the devices: sizes multiply to their number, one may be -1 and takes the rest."""

    data: int = -1
    """Copies of the model, each with its share of the batch."""
    fsdp: int = 1
    """Devices that share each parameter and its moments, and split the batch as well."""
    sequence: int = 1
    """Devices that split the length."""
    tensor: int = 1
    """Devices that split heads, MLP and vocabulary."""


@dataclass(frozen=True)
class Precision:
    """Parameters and moments are float32; softmax, norms' statistics, logits and losses are computed in float32."""

    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype of the rest; auto: bfloat16 on TPU and GPU, float32 on CPU."""


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of the parameters: evaluated and loaded in their place."""

    decay: float = 0.0
    """Weight of the past at each step, such as 0.999; 0: off."""


# Beginnings of reported numbers of which the lowest is best, and of which the highest is.
_BEST = (
    ("loss", "perplexity", "bits_per", "mean_squared", "calibration"),
    (
        *("accuracy", "f1", "precision", "recall", "matthews", "pearson", "spearman", "roc_auc", "entity"),
        *("exact_match", "bleu", "chrf", "rouge"),
    ),
)


@dataclass(frozen=True)
class Experiment:
    """All that decides a run. Construction checks what can be checked without data or devices."""

    model: Any
    """A family's Config."""
    data: Any
    """What the task reads."""
    task: Task = field(default_factory=CausalLM)
    optim: Optimizer = field(default_factory=optimizers.AdamW)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate, metadata=LAUNCH)
    checkpoint: Checkpoint = field(default_factory=Checkpoint, metadata=LAUNCH)
    sample: Any = field(default=None, metadata=LAUNCH)
    """What the model is asked when training ends, and the defaults of `predict`; None: as the task says."""
    mesh: Mesh = field(default_factory=Mesh, metadata=LAUNCH)
    precision: Precision = field(default_factory=Precision, metadata=LAUNCH)
    ema: Ema = field(default_factory=Ema)
    seed: int = 0
    """Decides the initial parameters, the order of the data, dropout and sampling."""
    order: int = field(default=2, metadata=LAUNCH)
    """The rule by which the seed orders the data (`data.pipeline.epochs`). A run keeps the one that it began with."""
    init_from: str = field(default="", metadata=LAUNCH)
    """A workdir, a step or a Hugging Face folder whose parameters the run starts from; empty: from scratch. Its
    architecture and tokenizer come with it, in place of the ones stated here."""
    fresh: tuple[str, ...] = field(default=(), metadata=LAUNCH)
    """Heads, such as "classification", that are initialised from scratch although `init_from` has them."""
    observers: tuple[contracts.Observer, ...] = field(default=(), metadata=NOT_STORED)
    """What hears of the run besides the terminal, metrics.jsonl and TensorBoard. Not part of what the run is."""

    def __post_init__(self) -> None:
        self._check_contracts()
        if self.sample is None:
            object.__setattr__(self, "sample", self.task.default_sample())
        asked = type(self.task.default_sample())
        if not isinstance(self.sample, asked):
            task, sample = type(self.task).__name__, type(self.sample).__name__
            raise InputError(
                f"sample is a {sample}, but {task} needs a {asked.__name__}; give sample=None for its defaults"
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
        """Raises `InputError` for a part that is not what its contract says."""
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
        """Raises `InputError` for an observer that could not hear anything."""
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


def compute_dtype(precision: Precision, platform: str | None = None) -> str:
    """The dtype that the precision policy gives on this platform ("cpu", "gpu", "tpu"; None: the one here)."""
    if precision.compute != "auto":
        return precision.compute
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def computed_in(model: Any, dtype: str, **changes: Any) -> Any:
    """A model's config with its compute dtype and other fields replaced, as far as it has them."""
    there = {f.name for f in dataclasses.fields(model)}
    wanted = {"dtype": dtype} | changes
    return dataclasses.replace(model, **{name: value for name, value in wanted.items() if name in there})


def _get(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} = {value}: must be 1 or more")
