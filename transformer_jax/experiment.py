"""An experiment as a value: nested frozen dataclasses, their JSON, their command line, and how two of them differ.

An experiment file (`experiments/<task>/<name>.py`) has a function `experiment() -> Experiment` and states only what
differs from the defaults here. The value is the whole recipe: two equal experiments are the same run.

    to_json / from_json     the round trip that `config.json` stands on. Names of types are resolved through `TYPES`,
                            one closed table of the package's own dataclasses; nothing is ever imported by name.
    override                `--optim.peak-lr 3e-4`, typed from the dataclasses (tyro).
    refuse_other            what may change when a run goes on, and what makes it another experiment.
    compute_dtype           the precision policy, applied at launch and again at load.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jax

from transformer_jax import decode
from transformer_jax import optim as optimizers
from transformer_jax.data import corpus, labelled, questions, sources, stdlib_topics, tables, tagged, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.models import bert, gpt
from transformer_jax.nn import positions
from transformer_jax.objectives import masking
from transformer_jax.tasks import causal_lm, classification, masked_lm, span_qa, tagging


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
    """What an encoder is asked when training ends, and the defaults of `predict`."""

    inputs: tuple[str, ...] = ()
    """Texts, each on one line; the two of a pair are separated by a tab."""
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
    Model = gpt.Config | bert.Config
    Data = corpus.TextCorpus | labelled.LabelledText | tagged.TaggedWords | questions.Questions
    TaskOf = (
        causal_lm.CausalLM | masked_lm.MaskedLM | classification.Classification | tagging.Tagging | span_qa.SpanQA
    )


@dataclass(frozen=True)
class Experiment:
    """All that decides a run. Construction checks what can be checked without data or devices."""

    model: Model
    data: Data
    task: TaskOf = field(default_factory=causal_lm.CausalLM)
    optim: optimizers.Optim = field(default_factory=optimizers.Optim)
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
        train, length = self.train, self.data.length
        _positive("train.steps", train.steps)
        _positive("train.batch_size", train.batch_size)
        _positive("train.accumulate", train.accumulate)
        _positive("train.log_every", train.log_every)
        for name in (
            "evaluate.every",
            "evaluate.batch_size",
            "evaluate.patience",
            "checkpoint.every",
            "checkpoint.keep_best",
            "seed",
        ):
            value = _get(self, name)
            if value < 0:
                raise InputError(f"{name} = {value}: must be 0 or more")
        _positive("checkpoint.keep", self.checkpoint.keep)
        if train.batch_size % train.accumulate:
            raise InputError(
                f"train.batch_size = {train.batch_size} does not divide into train.accumulate = {train.accumulate}"
            )
        if not 0.0 <= self.ema.decay < 1.0:
            raise InputError(f"ema.decay = {self.ema.decay}: must be in [0, 1); 0 is off")
        if length > self.model.max_length:
            raise InputError(
                f"data.length = {length} is longer than model.max_length = {self.model.max_length}; "
                "lower the one or raise the other"
            )


def default_sample(task: Any) -> Sample | Predict:
    """What to ask of a model with this task when nothing is said: text of a language model, answers of an encoder."""
    return Sample() if isinstance(task, causal_lm.CausalLM) else Predict()


def compute_dtype(precision: Precision, platform: str | None = None) -> str:
    """The dtype that the precision policy gives on this platform ("cpu", "gpu", "tpu"; None: the one here)."""
    if precision.compute != "auto":
        return precision.compute
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


# ------------------------------------------------------------------------------------------------------------ JSON

# The only types that a config.json can name.
TYPES: dict[str, type] = {
    f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}": cls
    for cls in (
        *(Experiment, Train, Evaluate, Checkpoint, Sample, Predict, Mesh, Precision, Ema),
        *(gpt.Config, bert.Config, positions.RopeScaling),
        *(causal_lm.CausalLM, masked_lm.MaskedLM, masking.Masking),
        *(classification.Classification, tagging.Tagging, span_qa.SpanQA),
        *(corpus.TextCorpus, labelled.LabelledText),
        *(tables.Table, tables.TfdsTable, stdlib_topics.StdlibTopics),
        *(tagged.TaggedWords, tagged.Conll, tagged.TfdsTags),
        *(questions.Questions, questions.SquadJson, questions.TfdsSquad),
        *(sources.Embedded, sources.TextFiles, sources.Jsonl, sources.Tfds),
        *(tokenizers.Bytes, tokenizers.Characters, tokenizers.TrainBPE, tokenizers.TokenizerFile),
        *(tokenizers.TrainWordPiece, tokenizers.TrainUnigram),
        optimizers.Optim,
    )
}
_NAMES = {cls: name for name, cls in TYPES.items()}


def to_json(value: Any) -> Any:
    """A dataclass as JSON values: an object with "type" and every field; tuples become lists.

    Errors: `InputError` for a type that is not in `TYPES`, which a config.json could not name.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in _NAMES:
            raise InputError(
                f"{type(value).__module__}.{type(value).__name__} is not one of the package's own types "
                f"({', '.join(TYPES)}), so a config.json cannot hold it"
            )
        return {"type": _NAMES[type(value)]} | {
            f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value


def from_json(tree: Any, *, where: str = "config.json") -> Experiment:
    """The experiment that `to_json` wrote. Fields that are absent take their defaults, so old files stay readable.

    Errors: `InputError` naming `where`, the path and the value, for an unknown type or field, a missing field, a value
    of another type, and whatever the dataclasses themselves refuse.
    """
    return _decode(tree, Experiment, where)


def _decode(tree: Any, annotation: Any, where: str) -> Any:
    """`tree` as a value of `annotation`: a dataclass, a union, a tuple, a Literal, a scalar or None."""
    options = get_args(annotation) if get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    if isinstance(tree, dict):
        return _decode_dataclass(tree, [o for o in options if dataclasses.is_dataclass(o)], where)
    for option in options:
        if get_origin(option) is Literal and any(tree == a and type(tree) is type(a) for a in get_args(option)):
            return tree
        if get_origin(option) is tuple and isinstance(tree, list):
            of = get_args(option)
            each = of[:1] * len(tree) if of[1:] == (...,) else of
            if len(each) == len(tree):
                return tuple(_decode(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(tree, each, strict=True)))
        if option is float and type(tree) in (int, float):
            return float(tree)
        if option in (int, str, bool, type(None)) and type(tree) is option:
            return tree
    raise InputError(f"{where}: {json.dumps(tree)[:80]} is not {_describe(annotation)}")


def _decode_dataclass(tree: dict[str, Any], options: list[Any], where: str) -> Any:
    name = tree.get("type")
    names = [_NAMES[o] for o in options]
    if not isinstance(name, str) or name not in names:
        raise InputError(f"{where}: type {name!r} is not one of {', '.join(names) or 'the plain values expected here'}")
    cls = TYPES[name]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in tree.keys() - fields.keys() - {"type"}:
        raise InputError(f"{where}.{key}: {name} has no such field{_nearest(key, fields)}")
    for f in fields.values():
        if f.name not in tree and f.default is f.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: {name} needs the field {f.name!r}")
    values = {k: _decode(v, hints[k], f"{where}.{k}") for k, v in tree.items() if k != "type"}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _describe(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    return (
        _NAMES.get(annotation, getattr(annotation, "__name__", "")) if isinstance(annotation, type) else str(annotation)
    )


def save(experiment: Experiment, path: Path) -> None:
    """Write config.json."""
    path.write_text(json.dumps(to_json(experiment), indent=2) + "\n", encoding="utf-8")


def load(path: Path) -> Experiment:
    """Read config.json. Errors: `InputError` when it is absent, not JSON, or not an experiment."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist, so {path.parent} is not a workdir; give the folder of a run"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    return from_json(tree, where=str(path))


# ---------------------------------------------------------------------------------------------------- command line


def override(default: Any, arguments: list[str], *, description: str, program: str) -> Any:
    """`default`, a dataclass, with the fields that `arguments` name (`--train.steps 20`) replaced.

    `--help` prints every field with its text and default, and exits. Unions take the type of their default.
    Errors: `InputError` in one line, naming the nearest field for an unknown one.
    """
    import tyro

    known = flags(default)
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag != "--help" and flag not in known:
            raise InputError(f"unknown override {flag}{_nearest(flag, known)}; --help lists them all")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            concrete = _concrete(default)
            asked = tyro.conf.AvoidSubcommands[type(concrete)]
            return _original(tyro.cli(asked, default=concrete, args=arguments, prog=program, description=description))
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro frames its message in a box and adds help below a rule: the first paragraph is the message.
        lines = [line.strip(" │╭╮╰╯|") for line in errors.getvalue().splitlines()]
        message = " ".join(lines[1 : next((i for i, line in enumerate(lines) if i > 1 and not line.strip("─-")), None)])
        raise InputError(re.sub(r"\s+", " ", message)) from None


def _concrete(value: Any) -> Any:
    """The same value in subclasses whose annotations name the types that are there in place of unions: tyro would make
    a subcommand of a union, and tells its members apart by name alone, which families share."""
    cls, children = type(value), {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    children = {name: _concrete(child) for name, child in children.items() if dataclasses.is_dataclass(child)}
    if not children:
        return value
    hints = typing.get_type_hints(cls, include_extras=True)
    extras = {name: getattr(hints[name], "__metadata__", ()) for name in children}
    annotations = {
        name: typing.Annotated[(type(child), *extras[name])] if extras[name] else type(child)
        for name, child in children.items()
    }
    body = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__annotations__": annotations,
        "_of": cls,
        **children,
    }
    subclass = dataclass(frozen=True)(type(cls.__name__, (cls,), body))
    plain = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in children}
    return subclass(**plain, **children)


def _original(value: Any) -> Any:
    """The inverse of `_concrete`."""
    values = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    made = {name: _original(child) if dataclasses.is_dataclass(child) else child for name, child in values.items()}
    return getattr(type(value), "_of", type(value))(**made)


def flags(value: Any, prefix: str = "--") -> set[str]:
    """The names on the command line of a dataclass's fields: `--train.steps`; `--x` and `--no-x` for a bool."""
    names: set[str] = set()
    for f in dataclasses.fields(value):
        child, name = getattr(value, f.name), f.name.replace("_", "-")
        if f.metadata.get("flat"):
            names |= flags(child, prefix)
        elif dataclasses.is_dataclass(child):
            names |= flags(child, f"{prefix}{name}.")
        else:
            names |= {f"{prefix}{name}"} | ({f"{prefix}no-{name}"} if isinstance(child, bool) else set())
    return names


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f"; the nearest is {close[0]}" if close else ""


# ------------------------------------------------------------------------------------------------ the same workdir

# What may differ when a workdir is taken up again: nothing here changes what the parameters mean.
_MAY_CHANGE = (
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "evaluate.",
    "checkpoint.",
    "sample.",
    "mesh.",
    "precision.",
    "init_from",
    "fresh",
    "model.scan_layers",
    "model.remat",
    "data.cache",
    "data.workers",
)


def refuse_other(stored: Experiment, asked: Experiment, workdir: Path) -> list[str]:
    """The fields of `asked` that differ from the workdir's stored experiment, as lines "train.steps: 20 -> 40".

    Errors: `InputError` naming the first differing field that makes it another experiment.
    """
    changed = []
    for path, old, new in _differences(to_json(stored), to_json(asked)):
        if not path.startswith(_MAY_CHANGE):
            raise InputError(
                f"{workdir} holds another experiment: {path} is {_brief(old)} there and {_brief(new)} here; "
                f"give another --workdir, or start from its parameters with --init-from {workdir}"
            )
        changed.append(f"{path}: {_brief(old)} -> {_brief(new)}")
    return changed


def _differences(old: Any, new: Any, path: str = "") -> typing.Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict) and old["type"] == new["type"]:
        for key in new:
            yield from _differences(old[key], new[key], f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _brief(tree: Any) -> str:
    return tree["type"] if isinstance(tree, dict) else json.dumps(tree)


def _get(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} = {value}: must be 1 or more")
