"""config.json: an experiment written down, read back, and compared with the one that a run is to go on with.

Names of types are resolved through `TYPES`, one closed table of the package's own dataclasses; nothing is ever imported
by name.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from transformer_jax import augment
from transformer_jax import optim as optimizers
from transformer_jax.data import corpus, image_sources, images, preprocess, sources, tables, tokenizers
from transformer_jax.decoding import beam
from transformer_jax.errors import InputError, nearest
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Mesh, Precision, Predict, Sample, Train
from transformer_jax.models import bert, gpt, seq2seq, vit
from transformer_jax.nn import positions
from transformer_jax.objectives import masking, spans
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
from transformer_jax.tasks.classification import labelled, stdlib_topics
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.translation import bitext, cldr, parallel

# The only types that a config.json can name.
TYPES: dict[str, type] = {
    f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}": cls
    for cls in (
        *(Experiment, Train, Evaluate, Checkpoint, Sample, Predict, Mesh, Precision, Ema),
        *(gpt.Config, bert.Config, seq2seq.Config, vit.Config, positions.RopeScaling),
        *(causal_lm.CausalLM, masked_lm.MaskedLM, masking.Masking),
        *(translation.Translation, beam.Beam),
        *(denoising.Denoising, spans.SpanCorruption, spans.TextInfilling, spans.PrefixLM),
        *(classification.Classification, tagging.Tagging, span_qa.SpanQA),
        *(corpus.TextCorpus, labelled.LabelledText),
        *(image_classification.ImageClassification, preprocess.Preprocess, images.ImageSet),
        *get_args(augment.Augmentation),
        *(image_sources.Digits, image_sources.Folder, image_sources.TfdsImages),
        *(tables.Table, tables.TfdsTable, stdlib_topics.StdlibTopics),
        *(tagged.TaggedWords, tagged.Conll, tagged.TfdsTags),
        *(questions.Questions, questions.SquadJson, questions.TfdsSquad),
        *(parallel.ParallelText, bitext.Lines, bitext.Columns, bitext.TfdsPairs, cldr.Cldr),
        *(sources.Embedded, sources.TextFiles, sources.Jsonl, sources.Tfds),
        *(tokenizers.Bytes, tokenizers.Characters, tokenizers.TrainBPE, tokenizers.TokenizerFile),
        *(tokenizers.TrainWordPiece, tokenizers.TrainUnigram),
        *(optimizers.AdamW, optimizers.Adafactor, optimizers.Lamb, optimizers.Lion, optimizers.Muon),
        *(optimizers.ScheduleFree, optimizers.Sgd),
    )
}
_NAMES = {cls: name for name, cls in TYPES.items()}

# Types and fields that had another name once: {old type: (type, {old field: field})}.
_RENAMED = {"optim.Optim": ("adamw.AdamW", {"schedule": "lr_schedule"})}


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
    if tree.get("type") in _RENAMED:
        renamed, old_fields = _RENAMED[tree["type"]]
        tree = {old_fields.get(key, key): value for key, value in tree.items()} | {"type": renamed}
    name = tree.get("type")
    names = [_NAMES[o] for o in options]
    if not isinstance(name, str) or name not in names:
        raise InputError(f"{where}: type {name!r} is not one of {', '.join(names) or 'the plain values expected here'}")
    cls = TYPES[name]
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in tree.keys() - fields.keys() - {"type"}:
        raise InputError(f"{where}.{key}: {name} has no such field{nearest(key, fields)}")
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


# ------------------------------------------------------------------------------------------------ the same workdir

# What may differ when a workdir is taken up again: nothing here changes what the parameters mean.
_MAY_CHANGE = (
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "train.max_skips",
    "evaluate.",
    "checkpoint.",
    "sample.",
    "task.metrics",
    "task.beam.",
    "task.extra_tokens",
    "mesh.",
    "precision.",
    "init_from",
    "fresh",
    "model.scan_layers",
    "model.remat",
    "data.cache",
    "data.workers",
    "data.memory",
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
