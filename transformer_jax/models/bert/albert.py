"""ALBERT (Lan et al. 2020) as Hugging Face stores it: `model_type: albert`.

One layer, stored once as layer 0 of group 0, is run `num_hidden_layers` times. The embeddings are projected, whatever
the two widths are.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders

MODEL_TYPES = ("albert",)
SIGNS = ("num_hidden_groups", "inner_group_num")

LAYER = "albert.encoder.albert_layer_groups.{}.albert_layers.0"  # the number is the group's
TRUNK = (
    *encoders.embeddings("albert"),
    *dense("embed/project", "albert.encoder.embedding_hidden_mapping_in"),
    *dense("blocks/attention/query", f"{LAYER}.attention.query"),
    *dense("blocks/attention/key", f"{LAYER}.attention.key"),
    *dense("blocks/attention/value", f"{LAYER}.attention.value"),
    *dense("blocks/attention/out", f"{LAYER}.attention.dense"),
    *norm("blocks/attention_norm", f"{LAYER}.attention.LayerNorm"),
    *dense("blocks/mlp/up", f"{LAYER}.ffn"),
    *dense("blocks/mlp/down", f"{LAYER}.ffn_output"),
    *norm("blocks/mlp_norm", f"{LAYER}.full_layer_layer_norm"),
)
HEADS: encoders.Heads = {
    "pooler": dense("pooler", "albert.pooler"),
    "mlm": (
        *dense("mlm/transform", "predictions.dense"),
        *norm("mlm/norm", "predictions.LayerNorm"),
        Row("mlm/bias", "predictions.bias"),
    ),
    "pair": dense("pair", "sop_classifier.classifier"),
    "classification": dense("classification", "classifier"),
    "tokens": dense("tokens", "classifier"),
    "span": dense("span", "qa_outputs"),
    "choice": dense("choice", "classifier"),
}
TIED = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
ENDINGS = encoders.ENDINGS | {("mlm", "pair"): "ForPreTraining"}

DEFAULTS = encoders.DEFAULTS | {
    "embedding_size": settings.REQUIRED,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
}
# The last four stand in the published files; nothing reads them.
NEUTRAL = encoders.NEUTRAL | {
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "down_scale_factor": 1,
    "gap_size": 0,
    "net_structure_type": 0,
    "num_memory_blocks": 0,
}


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """Where each leaf lives."""
    return encoders.table(cfg, "albert", TRUNK, HEADS, TIED)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `bert` does not
    compute."""
    s = settings.read(given, DEFAULTS, NEUTRAL, where)
    heads = encoders.read_heads(given, names, "albert", HEADS, where)
    fields = encoders.read_fields(given, s, heads, where)
    if s["embedding_size"] == s["hidden_size"]:
        raise InputError(
            f'{where}: "embedding_size" and "hidden_size" are both {s["hidden_size"]}; ALBERT projects the embeddings '
            "even then, and only embeddings of another width are projected here"
        )
    if "pair" in heads and fields["num_labels"] != 2:
        raise InputError(f'{where}: the head for sentence order has two outputs, but "id2label" says another number')
    return bert.Config(**fields, embedding_width=s["embedding_size"], share_layers=True)


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, bert.Config) and cfg.position == "learned" and cfg.share_layers


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that ALBERT has."""
    return encoders.write_fields(cfg, "albert", "Albert", ENDINGS) | {
        "embedding_size": cfg.embed_features,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "classifier_dropout_prob": cfg.dropout,
    }
