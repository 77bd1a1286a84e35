"""DeBERTa v3 (He et al. 2023), and v2 without its convolution, as Hugging Face stores them: `model_type: deberta-v2`.

Scores are sums of three products: of queries and keys, and of each with vectors of the distance between them, which the
layer projects as it does the states. A normed table of these vectors is shared by all layers.

The masked-LM head has two names: Transformers writes `cls.predictions`, the published files hold `lm_predictions`. The
function is the same, both are read, and the first is written.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import bert as bert_format
from transformer_jax.models.bert import encoders

MODEL_TYPES = ("deberta-v2",)

LAYER = "deberta.encoder.layer.{}"
TRUNK = (
    Row("embed/token/embedding", "deberta.embeddings.word_embeddings.weight"),
    Row("embed/position/embedding", "deberta.embeddings.position_embeddings.weight"),
    *norm("embed/norm", "deberta.embeddings.LayerNorm"),
    Row("distances/embedding", "deberta.encoder.rel_embeddings.weight"),
    *norm("distances/norm", "deberta.encoder.LayerNorm"),
    *dense("blocks/attention/query", f"{LAYER}.attention.self.query_proj"),
    *dense("blocks/attention/key", f"{LAYER}.attention.self.key_proj"),
    *dense("blocks/attention/value", f"{LAYER}.attention.self.value_proj"),
    *dense("blocks/attention/out", f"{LAYER}.attention.output.dense"),
    *norm("blocks/attention_norm", f"{LAYER}.attention.output.LayerNorm"),
    *dense("blocks/mlp/up", f"{LAYER}.intermediate.dense"),
    *dense("blocks/mlp/down", f"{LAYER}.output.dense"),
    *norm("blocks/mlp_norm", f"{LAYER}.output.LayerNorm"),
)
POOLER = dense("pooler", "pooler.dense")
HEADS: encoders.Heads = {
    "mlm": bert_format.HEADS["mlm"],
    "classification": (*POOLER, *dense("classification", "classifier")),
    "tokens": dense("tokens", "classifier"),
    "span": dense("span", "qa_outputs"),
    "choice": (*POOLER, *dense("choice", "classifier")),
}
TIED = {
    "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
PUBLISHED_NAMES = {
    r"lm_predictions\.lm_head\.(dense|LayerNorm)\.(weight|bias)": r"cls.predictions.transform.\1.\2",
    r"lm_predictions\.lm_head\.bias": "cls.predictions.bias",
}
# A second head of pre-training, and a table of positions in files whose "position_biased_input" is false.
UNREAD_TENSORS = r"mask_predictions\..*|(deberta\.)?embeddings\.position_embeddings\.weight"

UNREAD = ("pooler_dropout", "cls_dropout", "legacy", "pooler_hidden_size", "conv_act")
# What each setting must be, and Transformers' default where the file does not say.
NEEDED: dict[str, tuple[Any, Any]] = {
    "relative_attention": (True, False),
    "share_att_key": (True, False),
    "pos_att_type": (["c2p", "p2c"], []),
    "norm_rel_ebd": ("layer_norm", "none"),
    "conv_kernel_size": (0, 0),
    "pooler_hidden_act": ("gelu", "gelu"),
    "type_vocab_size": (0, 0),
    "tie_word_embeddings": (True, True),
}
DEFAULTS = {name: default for name, default in encoders.DEFAULTS.items() if name != "type_vocab_size"} | {
    "layer_norm_eps": 1e-7,
    "position_buckets": settings.REQUIRED,
    "max_relative_positions": -1,
    "position_biased_input": True,
    **{name: default for name, (_, default) in NEEDED.items()},
}


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """The table of this format."""
    made = encoders.table(cfg, "deberta", TRUNK, HEADS, TIED)
    return made._replace(buffers=f"{made.buffers}|{UNREAD_TENSORS}", old_names=dict(made.old_names) | PUBLISHED_NAMES)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names.

    Raises:
      InputError: for what `bert` does not compute.
    """
    known = {name: value for name, value in given.items() if name not in UNREAD}
    kinds = known.get("pos_att_type") or []
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    known["pos_att_type"] = sorted(kind.strip() for kind in kinds if isinstance(kind, str))
    s = settings.read(known, DEFAULTS, {}, where)
    for name, (needed, _) in NEEDED.items():
        if s[name] != needed:
            raise InputError(f'{where}: "{name}" is {s[name]!r}; only {needed!r} is supported')
    length = s["max_position_embeddings"]
    if s["max_relative_positions"] >= 1 and s["max_relative_positions"] != length:
        raise InputError(
            f'{where}: "max_relative_positions" is {s["max_relative_positions"]}; it must be -1 or '
            f'"max_position_embeddings", {length}'
        )
    for old, new in PUBLISHED_NAMES.items():
        names = {re.sub(f"^{old}$", new, name) for name in names}
    heads = encoders.read_heads(given, names, "deberta", HEADS, where)
    fields = encoders.read_fields(given, s, heads, where) | {
        "num_types": 0,
        "position": "learned" if s["position_biased_input"] else "none",
        "distance_buckets": s["position_buckets"],
        "pooler_activation": "gelu",
    }
    return bert.Config(**fields)


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, bert.Config) and cfg.distance_buckets > 0


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that DeBERTa has."""
    return encoders.write_fields(cfg, "deberta-v2", "DebertaV2", encoders.ENDINGS) | {
        **{name: needed for name, (needed, _) in NEEDED.items()},
        "position_buckets": cfg.distance_buckets,
        "max_relative_positions": -1,
        "position_biased_input": cfg.position == "learned",
        "legacy": True,
    }
