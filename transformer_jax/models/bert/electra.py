"""ELECTRA (Clark et al. 2020) as Hugging Face stores it: `model_type: electra`, the discriminator and the generator.

The trunk has no pooler. The dense layer with GELU in the classification head, and the summary in the multiple-choice
head, whose activation is a setting, are our pooler.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders

MODEL_TYPES = ("electra",)

TRUNK = (
    *encoders.embeddings("electra"),
    *dense("embed/project", "electra.embeddings_project"),
    *encoders.blocks("electra"),
)
HEADS: encoders.Heads = {
    "mlm": (
        *dense("mlm/transform", "generator_predictions.dense"),
        *norm("mlm/norm", "generator_predictions.LayerNorm"),
        Row("mlm/bias", "generator_lm_head.bias"),
    ),
    "classification": (*dense("pooler", "classifier.dense"), *dense("classification", "classifier.out_proj")),
    "tokens": dense("tokens", "classifier"),
    "span": dense("span", "qa_outputs"),
    "choice": (*dense("pooler", "sequence_summary.summary"), *dense("choice", "classifier")),
    "discriminator": (
        *dense("discriminator/transform", "discriminator_predictions.dense"),
        *dense("discriminator/out", "discriminator_predictions.dense_prediction"),
    ),
}
TIED = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"}
ENDINGS = encoders.ENDINGS | {("discriminator",): "ForPreTraining"}

SUMMARY = {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}
DEFAULTS = encoders.DEFAULTS | SUMMARY | {"embedding_size": settings.REQUIRED, "summary_last_dropout": 0.1}


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """Where each leaf lives."""
    return encoders.table(cfg, "electra", TRUNK, HEADS, TIED)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `bert` does not
    compute."""
    s = settings.read(given, DEFAULTS, encoders.NEUTRAL, where)
    heads = encoders.read_heads(given, names, "electra", HEADS, where)
    # Transformers takes a summary that is null for none.
    summary = {name: given.get(name, default) for name, default in SUMMARY.items()}
    activation = summary["summary_activation"]
    is_ours = summary | {"summary_activation": "gelu"} == SUMMARY and activation in ("gelu", "tanh")
    if "choice" in heads and not is_ours:
        raise InputError(
            f"{where}: the summary of the multiple-choice head is {summary}; supported is the first token's, "
            'projected, with the activation "gelu" or "tanh"'
        )
    config = bert.Config(
        **encoders.read_fields(given, s, heads, where),
        embedding_width=s["embedding_size"],
        pooler_activation="tanh" if activation == "tanh" and "classification" not in heads else "gelu",
    )
    encoders.refuse_unless_gelu(config, where)
    return config


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    if not isinstance(cfg, bert.Config) or cfg.position != "learned" or cfg.share_layers or cfg.position_offset:
        return False
    return cfg.embed_features != cfg.width or cfg.pooler_activation == "gelu" or "discriminator" in cfg.heads


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that ELECTRA has."""
    return (
        encoders.write_fields(cfg, "electra", "Electra", ENDINGS)
        | SUMMARY
        | {"embedding_size": cfg.embed_features, "summary_activation": cfg.pooler_activation}
    )
