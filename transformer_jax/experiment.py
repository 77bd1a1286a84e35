"""An experiment as a value: nested frozen dataclasses that are the whole recipe; two equal ones are the same run.

An experiment file (`experiments/<task>/<name>.py`) has a function `experiment() -> Experiment` and states only what
differs from the defaults here. `config_json` writes it down and reads it back; `overrides` is its command line.
"""

import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from transformer_jax import optim as optimizers
from transformer_jax.data import corpus, images
from transformer_jax.decoding import decode
from transformer_jax.errors import InputError
from transformer_jax.models import bert, gpt, seq2seq, vit
from transformer_jax.tasks import (
    causal_lm,
    classification,
    denoising,
    image_classification,
    masked_lm,
    span_qa,
    tagging,
    translation,
)
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.translation import parallel


@dataclass(frozen=True)
class Train:
    """How long, how much at a time."""

    steps: int = 1000
    """Optimiser steps of the whole run. A larger number lets a complete run go on (the schedule follows it)."""
    batch_size: int = 32
    """Examples in one optimiser step, over all devices, hosts and accumulated parts."""
    accumulate: int = 1
    """Parts the batch is cut into, one after the other, to save memory; the update is that of the whole batch."""
    log_every: int = 10
    """Steps between two rows of metrics. A row reports the last step's values, and tokens/s over the steps between."""
    max_skips: int = 10
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
class Sample:
    """The text printed when training ends, and the defaults of `predict`. `decode.Sampling` says more."""

    prompt: str = ""
    """Text to continue; empty: the end-of-text token, or a newline where the tokenizer has none."""
    max_new_tokens: int = 200
    """New tokens at most; 0: no sample."""
    temperature: float = 0.8
    """Divides the logits; 0: greedy."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that hold this share of the probability."""
    min_p: float = 0.0
    """Draw from the tokens at least this likely, as a share of the likeliest one."""
    repetition_penalty: float = 1.0
    """Makes tokens that are already there less likely; 1: not."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise InputError(f"sample.max_new_tokens = {self.max_new_tokens}: must be 0 or more")
        self.sampling()

    def sampling(self, *, max_new_tokens: int = 1, stop_ids: tuple[int, ...] = ()) -> decode.Sampling:
        """These settings for `decode`. Errors: `InputError` for one outside its range."""
        return decode.Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop_ids=stop_ids,
        )


@dataclass(frozen=True)
class Predict:
    """What an encoder, a translator or a classifier of images is asked when training ends, and `predict`'s defaults."""

    inputs: tuple[str, ...] = ()
    """Texts, each on one line; the two of a pair are separated by a tab. Of images the files."""
    top: int = 5
    """Answers to give for each."""

    def __post_init__(self) -> None:
        _positive("sample.top", self.top)


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


# What an experiment is made of. To a type checker they are Any: replacing a field of "one of these" has no type.
if typing.TYPE_CHECKING:
    Model: typing.TypeAlias = Any
    Data: typing.TypeAlias = Any
    TaskOf: typing.TypeAlias = Any
else:
    Model = gpt.Config | bert.Config | seq2seq.Config | vit.Config
    Data = (
        corpus.TextCorpus
        | labelled.LabelledText
        | tagged.TaggedWords
        | questions.Questions
        | parallel.ParallelText
        | images.ImageSet
    )
    TaskOf = (
        causal_lm.CausalLM
        | masked_lm.MaskedLM
        | classification.Classification
        | tagging.Tagging
        | span_qa.SpanQA
        | denoising.Denoising
        | translation.Translation
        | image_classification.ImageClassification
    )


Optimizer = (
    optimizers.AdamW
    | optimizers.Adafactor
    | optimizers.Lamb
    | optimizers.Lion
    | optimizers.Muon
    | optimizers.ScheduleFree
    | optimizers.Sgd
)

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

    model: Model
    data: Data
    task: TaskOf = field(default_factory=causal_lm.CausalLM)
    optim: Optimizer = field(default_factory=optimizers.AdamW)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    sample: Sample | Predict = field(default_factory=Sample)
    mesh: Mesh = field(default_factory=Mesh)
    precision: Precision = field(default_factory=Precision)
    ema: Ema = field(default_factory=Ema)
    seed: int = 0
    """Decides the initial parameters, the order of the data, dropout and sampling."""
    init_from: str = ""
    """A workdir, a step or a Hugging Face folder whose parameters the run starts from; empty: from scratch. Its
    architecture and tokenizer come with it, in place of the ones stated here."""
    fresh: tuple[str, ...] = ()
    """Heads, such as "classification", that are initialised anew although `init_from` has them."""

    def __post_init__(self) -> None:
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


def default_sample(task: Any) -> Sample | Predict:
    """What to ask of a model with this task when nothing is said: text of a language model, answers of the others."""
    if isinstance(task, causal_lm.CausalLM):
        return Sample()
    return Predict(top=1) if isinstance(task, translation.Translation) else Predict()


def compute_dtype(precision: Precision, platform: str | None = None) -> str:
    """The dtype that the precision policy gives on this platform ("cpu", "gpu", "tpu"; None: the one here)."""
    if precision.compute != "auto":
        return precision.compute
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


def _get(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} = {value}: must be 1 or more")
