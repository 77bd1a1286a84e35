"""MPNet (Song et al. 2020) as Hugging Face stores it: `model_type: mpnet`.

RoBERTa's embeddings without token types, RoBERTa's heads, and a learned bias on the scores of all layers by the
distance of two tokens, in T5's 32 buckets. Padding has the id 1, whatever config.json says, and positions count from 2.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders, roberta

MODEL_TYPES = ("mpnet",)

LAYER = "mpnet.encoder.layer.{}"
TRUNK = (
    Row("embed/token/embedding", "mpnet.embeddings.word_embeddings.weight"),
    Row("embed/position/embedding", "mpnet.embeddings.position_embeddings.weight"),
    *norm("embed/norm", "mpnet.embeddings.LayerNorm"),
    Row("relative_bias/embedding", "mpnet.encoder.relative_attention_bias.weight"),
    *dense("blocks/attention/query", f"{LAYER}.attention.attn.q"),
    *dense("blocks/attention/key", f"{LAYER}.attention.attn.k"),
    *dense("blocks/attention/value", f"{LAYER}.attention.attn.v"),
    *dense("blocks/attention/out", f"{LAYER}.attention.attn.o"),
    *norm("blocks/attention_norm", f"{LAYER}.attention.LayerNorm"),
    *dense("blocks/mlp/up", f"{LAYER}.intermediate.dense"),
    *dense("blocks/mlp/down", f"{LAYER}.output.dense"),
    *norm("blocks/mlp_norm", f"{LAYER}.output.LayerNorm"),
)
HEADS: encoders.Heads = {**roberta.HEADS, "pooler": dense("pooler", "mpnet.pooler.dense")}
TIED = {
    "lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
OFFSET = 2  # the row of the first position
DEFAULTS = {name: default for name, default in encoders.DEFAULTS.items() if name != "type_vocab_size"}
NEUTRAL = encoders.NEUTRAL | {"relative_attention_num_buckets": bert.RELATIVE_BUCKETS}


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """The table of this format."""
    return encoders.table(cfg, "mpnet", TRUNK, HEADS, TIED)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names.

    Raises:
      InputError: for what `bert` does not compute.
    """
    s = settings.read(given, DEFAULTS, NEUTRAL, where)
    heads = encoders.read_heads(given, names, "mpnet", HEADS, where)
    fields = encoders.read_fields(given, s | {"type_vocab_size": 0}, heads, where)
    length = fields["max_length"] - OFFSET
    of_mpnet = {"max_length": length, "position_offset": OFFSET, "num_types": 0, "relative_bias": True}
    config = bert.Config(**fields | of_mpnet)
    encoders.refuse_unless_gelu(config, where)
    return config


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, bert.Config) and cfg.relative_bias


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """The settings that say `cfg`, as far as MPNet has them."""
    written = encoders.write_fields(cfg, "mpnet", "MPNet", encoders.ENDINGS)
    return {name: value for name, value in written.items() if name != "type_vocab_size"} | {
        "max_position_embeddings": cfg.max_length + OFFSET,
        "relative_attention_num_buckets": bert.RELATIVE_BUCKETS,
        "pad_token_id": OFFSET - 1,
    }
