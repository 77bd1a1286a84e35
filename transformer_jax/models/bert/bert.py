"""BERT (Devlin et al. 2019) as Hugging Face stores it: `model_type: bert`.

Published checkpoints hold both pre-training heads, LayerNorms named gamma and beta, and copies of what is tied.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders

MODEL_TYPES = ("bert",)
SIGNS = ("type_vocab_size", "hidden_act")

TRUNK = (*encoders.embeddings("bert"), *encoders.blocks("bert"))
HEADS: encoders.Heads = {
    "pooler": dense("pooler", "bert.pooler.dense"),
    "mlm": (
        *dense("mlm/transform", "cls.predictions.transform.dense"),
        *norm("mlm/norm", "cls.predictions.transform.LayerNorm"),
        Row("mlm/bias", "cls.predictions.bias"),
    ),
    "pair": dense("pair", "cls.seq_relationship"),
    "classification": dense("classification", "classifier"),
    "tokens": dense("tokens", "classifier"),
    "span": dense("span", "qa_outputs"),
    "choice": dense("choice", "classifier"),
}
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
ENDINGS = encoders.ENDINGS | {("mlm", "pair"): "ForPreTraining", ("pair",): "ForNextSentencePrediction"}

# What Google's converter copied into the files of some languages; nothing reads it.
UNREAD = ("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head")
NEUTRAL = encoders.NEUTRAL | {"directionality": "bidi", "pooler_type": "first_token_transform"}


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """Where each leaf lives."""
    return encoders.table(cfg, "bert", TRUNK, HEADS, TIED)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `bert` does not
    compute."""
    known = {name: value for name, value in given.items() if name not in UNREAD}
    s = settings.read(known, encoders.DEFAULTS, NEUTRAL, where)
    heads = encoders.read_heads(given, names, "bert", HEADS, where)
    return bert.Config(**encoders.read_fields(given, s, heads, where))


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config: what is none of the others."""
    return isinstance(cfg, bert.Config) and cfg.position == "learned"


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that BERT has."""
    return encoders.write_fields(cfg, "bert", "Bert", ENDINGS)
