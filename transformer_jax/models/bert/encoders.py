"""The common part of the Hugging Face formats of BERT, RoBERTa, ALBERT and ELECTRA.

A checkpoint's heads are read from its tensors, not from config.json (the published BERT names the masked-LM
architecture and also holds the pooler and the next-sentence head). Only where one tensor, `classifier`, may belong to
several kinds of head does "architectures" decide. A format gives its rows as the trunk's and those of each head.

One dropout rate is supported for the whole trunk. A rate of the head's own ("classifier_dropout") is not read: no
evaluation depends on it, and a fine-tuning recipe states its own.
"""

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.contracts import Task
from transformer_jax.data.tokenizers import items
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.tasks.classification import Classification
from transformer_jax.tasks.masked_lm import MaskedLM
from transformer_jax.tasks.next_item import NextItem
from transformer_jax.tasks.span_qa import SpanQA
from transformer_jax.tasks.tagging import Tagging

Heads = Mapping[bert.Head, tuple[Row, ...]]

# ------------------------------------------------------------------------------------------------------------- tensors


def embeddings(trunk: str) -> tuple[Row, ...]:
    """The three tables and their norm; tensors' names begin with `trunk`."""
    return (
        Row("embed/token/embedding", f"{trunk}.embeddings.word_embeddings.weight"),
        Row("embed/position/embedding", f"{trunk}.embeddings.position_embeddings.weight"),
        Row("embed/type/embedding", f"{trunk}.embeddings.token_type_embeddings.weight"),
        *norm("embed/norm", f"{trunk}.embeddings.LayerNorm"),
    )


def blocks(trunk: str) -> tuple[Row, ...]:
    """The layers of BERT, RoBERTa and ELECTRA, whose names are the same and begin with `trunk`."""
    layer = f"{trunk}.encoder.layer.{{}}"
    return (
        *dense("blocks/attention/query", f"{layer}.attention.self.query"),
        *dense("blocks/attention/key", f"{layer}.attention.self.key"),
        *dense("blocks/attention/value", f"{layer}.attention.self.value"),
        *dense("blocks/attention/out", f"{layer}.attention.output.dense"),
        *norm("blocks/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *dense("blocks/mlp/up", f"{layer}.intermediate.dense"),
        *dense("blocks/mlp/down", f"{layer}.output.dense"),
        *norm("blocks/mlp_norm", f"{layer}.output.LayerNorm"),
    )


def table(cfg: bert.Config, trunk_name: str, trunk: Sequence[Row], heads: Heads, tied: Mapping[str, str]) -> Table:
    """The rows for `cfg`: the trunk's, and those of its heads.

    A head's rows may hold a pooler of its own. A pooler of the trunk beside it, which old versions saved though nothing
    reads it, then counts among the buffers.
    """
    rows: dict[str, Row] = {}
    unread = []
    for head in sorted(cfg.heads, key=lambda head: head == "pooler"):  # last, because a head's own pooler has priority
        for row in heads.get(head, ()):
            if rows.setdefault(row.leaf, row) is not row:
                unread.append(re.escape(row.tensor))
    return Table(
        rows=(*trunk, *rows.values()),
        prefix=f"{trunk_name}.",
        buffers="|".join([rf"({trunk_name}\.)?embeddings\.(position_ids|token_type_ids)", *unread]),
        tied=tied,
        old_names={r"LayerNorm\.gamma": "LayerNorm.weight", r"LayerNorm\.beta": "LayerNorm.bias"},
    )


# ---------------------------------------------------------------------------------------------------------- config.json

# The heads of an architecture, the pooler aside, and what its name ends with.
ENDINGS: dict[tuple[bert.Head, ...], str] = {
    (): "Model",
    ("mlm",): "ForMaskedLM",
    ("classification",): "ForSequenceClassification",
    ("tokens",): "ForTokenClassification",
    ("span",): "ForQuestionAnswering",
    ("choice",): "ForMultipleChoice",
}
DEFAULTS = {
    "vocab_size": settings.REQUIRED,
    "hidden_size": settings.REQUIRED,
    "num_hidden_layers": settings.REQUIRED,
    "num_attention_heads": settings.REQUIRED,
    "intermediate_size": settings.REQUIRED,
    "max_position_embeddings": settings.REQUIRED,
    "type_vocab_size": settings.OPTIONAL,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
# Transformers gives an untied output matrix a bias of its own: it then reads `decoder.bias` and ignores `bias`.
NEUTRAL = {"position_embedding_type": "absolute", "tie_word_embeddings": True}


def read_heads(
    given: Mapping[str, Any], names: Collection[str], trunk_name: str, heads: Heads, where: str
) -> tuple[bert.Head, ...]:
    """The heads with at least one tensor; `mapping` checks that all do.

    Args:
      given: config.json's object.
      names: the names of the checkpoint's tensors.
      trunk_name: with which the trunk's tensors begin.
      heads: the rows of each head.
      where: names the file in messages.

    Raises:
      InputError: `classifier` may be of several kinds and "architectures" does not decide.
    """
    found = []
    for head, rows in heads.items():
        if any(row.tensor in names or row.tensor.removeprefix(f"{trunk_name}.") in names for row in rows):
            found.append(head)
    of_classifier = [head for head, rows in heads.items() if any(row.tensor.startswith("classifier.") for row in rows)]
    shared = {ENDINGS[head,]: head for head in of_classifier}
    several = [head for head in found if head in shared.values()]
    if len(several) > 1:
        architectures = given.get("architectures")
        stated = {head for end, head in shared.items() if any(str(a).endswith(end) for a in architectures or ())}
        if len(stated) != 1:
            raise InputError(
                f'{where}: "architectures" is {architectures!r}, so what kind of head "classifier" is cannot be told; '
                f"it must be one whose name ends with {', '.join(shared)}"
            )
        found = [head for head in found if head in stated or head not in several]
    return tuple(found)


def read_fields(
    given: Mapping[str, Any], s: Mapping[str, Any], heads: tuple[bert.Head, ...], where: str
) -> dict[str, Any]:
    """The fields of `bert.Config` that all formats write in the same way.

    Args:
      given: config.json's object.
      s: the same, of `settings.read`.
      heads: the heads of the checkpoint.
      where: names the file in messages.

    Raises:
      InputError: dropout rates differ, or labels do not fit the heads.
    """
    if s["hidden_dropout_prob"] != s["attention_probs_dropout_prob"]:
        raise InputError(
            f'{where}: "hidden_dropout_prob" {s["hidden_dropout_prob"]} and "attention_probs_dropout_prob" '
            f"{s['attention_probs_dropout_prob']} differ; one dropout rate is supported, so set both to the one to "
            "train with (evaluation uses none)"
        )
    num_labels = len(settings.label_names(given, where))
    if "span" in heads and num_labels != 2:
        raise InputError(f'{where}: a head for answer spans has two outputs, but "id2label" says {num_labels}')
    return {
        "vocab_size": s["vocab_size"],
        "max_length": s["max_position_embeddings"],
        "width": s["hidden_size"],
        "num_layers": s["num_hidden_layers"],
        "num_heads": s["num_attention_heads"],
        "mlp_width": s["intermediate_size"],
        "num_types": s["type_vocab_size"] or 2,
        "position": "learned",
        "activation": settings.activation(s["hidden_act"], "hidden_act", where),
        "norm_eps": s["layer_norm_eps"],
        "heads": heads,
        "num_labels": num_labels,
        "dropout": s["hidden_dropout_prob"],
        "init_std": s["initializer_range"],
    }


def refuse_unless_gelu(config: bert.Config, where: str) -> None:
    """Raises `InputError`, naming `where`, for a masked-LM head in a `config` whose activation is not GELU.

    In this model type the head has GELU, independent of "hidden_act".
    """
    if "mlm" in config.heads and config.activation != "gelu":
        raise InputError(
            f'{where}: "hidden_act" is {config.activation!r}, but the masked-LM head of this model type has "gelu"; '
            "one activation for both is supported"
        )


def write_fields(
    cfg: bert.Config, model_type: str, stem: str, endings: Mapping[tuple[bert.Head, ...], str]
) -> dict[str, Any]:
    """The settings that `read_fields` reads, and the architecture.

    Args:
      cfg: the model's config.
      model_type: the "model_type" of config.json.
      stem: with which the architecture's name begins.
      endings: the rest of its name, by the heads.

    Raises:
      InputError: no architecture of the model type has these heads.
    """
    architecture = endings.get(tuple(head for head in cfg.heads if head != "pooler"))
    if architecture is None:
        raise InputError(
            f"no Hugging Face architecture of the model type {model_type} has the heads {', '.join(cfg.heads)}; those "
            f"it has are {'; '.join(' and '.join(heads) for heads in endings if heads)}"
        )
    labels = {"classification", "tokens"} & set(cfg.heads) or cfg.num_labels != 2
    return {
        "model_type": model_type,
        "architectures": [f"{stem}{architecture}"],
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_features,
        "max_position_embeddings": cfg.max_length,
        "type_vocab_size": cfg.num_types,
        "hidden_act": settings.THEIR_ACTIVATIONS[cfg.activation],
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.dropout,
        "initializer_range": cfg.init_std,
        "layer_norm_eps": cfg.norm_eps,
        **(settings.write_labels([f"LABEL_{i}" for i in range(cfg.num_labels)]) if labels else {}),
        **({"problem_type": "regression"} if "classification" in cfg.heads and cfg.num_labels == 1 else {}),
    }


def task(folder: Path, cfg: bert.Config) -> Task | None:
    """What the model of a folder is for: the head that was fine-tuned, or masked-language modelling.

    None where there is no task here: other heads, labels of which several may hold, tags that are not IOB2. Where the
    vocabulary is of items, the next item of a history.
    """
    if (folder / items.FILE).is_file() and "mlm" in cfg.heads:
        return NextItem(objective="masked")
    with contextlib.suppress(InputError):
        if "classification" in cfg.heads:
            return Classification(labels=hub.labels(folder))
        if "tokens" in cfg.heads:
            return Tagging(labels=hub.labels(folder))
    if {"classification", "tokens"} & set(cfg.heads):
        return None
    return SpanQA() if "span" in cfg.heads else MaskedLM() if "mlm" in cfg.heads else None
