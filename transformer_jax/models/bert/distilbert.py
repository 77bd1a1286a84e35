"""DistilBERT (Sanh et al. 2019) as Hugging Face stores it: `model_type: distilbert`.

BERT without token types and without a pooler in the trunk. The dense layer with ReLU in the heads for classification
and multiple choice, `pre_classifier`, is our pooler.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders

MODEL_TYPES = ("distilbert",)
SIGNS = ("n_heads", "hidden_dim")

LAYER = "distilbert.transformer.layer.{}"
TRUNK = (
    Row("embed/token/embedding", "distilbert.embeddings.word_embeddings.weight"),
    Row("embed/position/embedding", "distilbert.embeddings.position_embeddings.weight"),
    *norm("embed/norm", "distilbert.embeddings.LayerNorm"),
    *dense("blocks/attention/query", f"{LAYER}.attention.q_lin"),
    *dense("blocks/attention/key", f"{LAYER}.attention.k_lin"),
    *dense("blocks/attention/value", f"{LAYER}.attention.v_lin"),
    *dense("blocks/attention/out", f"{LAYER}.attention.out_lin"),
    *norm("blocks/attention_norm", f"{LAYER}.sa_layer_norm"),
    *dense("blocks/mlp/up", f"{LAYER}.ffn.lin1"),
    *dense("blocks/mlp/down", f"{LAYER}.ffn.lin2"),
    *norm("blocks/mlp_norm", f"{LAYER}.output_layer_norm"),
)
HEADS: encoders.Heads = {
    "mlm": (
        *dense("mlm/transform", "vocab_transform"),
        *norm("mlm/norm", "vocab_layer_norm"),
        Row("mlm/bias", "vocab_projector.bias"),
    ),
    "classification": (*dense("pooler", "pre_classifier"), *dense("classification", "classifier")),
    "tokens": dense("tokens", "classifier"),
    "span": dense("span", "qa_outputs"),
    "choice": (*dense("pooler", "pre_classifier"), *dense("choice", "classifier")),
}
TIED = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}

# Their name of each of BERT's settings.
THEIRS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
SAME = ("vocab_size", "max_position_embeddings", "initializer_range")
DEFAULTS = {THEIRS.get(name, name): encoders.DEFAULTS[name] for name in (*THEIRS, *SAME)}
NEUTRAL = {"tie_word_embeddings": True, "tie_weights_": True}
# Rates of the heads' own dropout; and how the table of positions, which is stored, was drawn.
UNREAD = ("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds")
FIXED = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """The table of this format."""
    return encoders.table(cfg, "distilbert", TRUNK, HEADS, TIED)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names.

    Raises:
      InputError: for what `bert` does not compute.
    """
    known = {name: value for name, value in given.items() if name not in UNREAD}
    s = settings.read(known, DEFAULTS, NEUTRAL, where)
    if s["dropout"] != s["attention_dropout"]:
        raise InputError(
            f'{where}: "dropout" {s["dropout"]} and "attention_dropout" {s["attention_dropout"]} differ; one dropout '
            "rate is supported, so set both to the one to train with (evaluation uses none)"
        )
    settings.activation(s["activation"], "activation", where)  # refused by the name that it has here
    heads = encoders.read_heads(given, names, "distilbert", HEADS, where)
    ours = FIXED | {name: s[THEIRS.get(name, name)] for name in (*THEIRS, *SAME)}
    fields = encoders.read_fields(given, ours, heads, where)
    return bert.Config(**fields | {"num_types": 0, "pooler_activation": "relu"})


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    if not isinstance(cfg, bert.Config) or cfg.position != "learned" or cfg.position_offset or cfg.share_layers:
        return False
    return cfg.num_types == 0 and cfg.embed_features == cfg.width


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that DistilBERT has."""
    written = encoders.write_fields(cfg, "distilbert", "DistilBert", encoders.ENDINGS)
    return {THEIRS.get(name, name): value for name, value in written.items() if name not in FIXED}
