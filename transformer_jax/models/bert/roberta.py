"""RoBERTa (Liu et al. 2019), XLM-R (Conneau et al. 2020), CamemBERT (Martin et al. 2020) as Hugging Face stores them.

The three model types have the same tensors and settings, and tokenizers of their own, by which an export names them.

Positions count from the padding token's id plus one, so the position table has that many rows more than the longest
text. Transformers numbers only the tokens that are not padding; here padding, which is at the end, has positions too:
hidden states agree at the tokens, and those of the padding mean nothing in either.

The classification head has a dense layer of its own, which is our pooler. The pooler of the trunk, which published
checkpoints hold too, is then read by nothing.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders

STEMS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
MODEL_TYPES = tuple(STEMS)
SIGNS = ("hidden_act", ("type_vocab_size", 1))
BY_TOKENIZER = {"XLMRobertaTokenizer": "xlm-roberta", "CamembertTokenizer": "camembert"}

TRUNK = (*encoders.embeddings("roberta"), *encoders.blocks("roberta"))
HEADS: encoders.Heads = {
    "pooler": dense("pooler", "roberta.pooler.dense"),
    "mlm": (
        *dense("mlm/transform", "lm_head.dense"),
        *norm("mlm/norm", "lm_head.layer_norm"),
        Row("mlm/bias", "lm_head.bias"),
    ),
    "classification": (*dense("pooler", "classifier.dense"), *dense("classification", "classifier.out_proj")),
    "tokens": dense("tokens", "classifier"),
    "span": dense("span", "qa_outputs"),
    "choice": dense("choice", "classifier"),
}
TIED = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
DEFAULTS = encoders.DEFAULTS | {"pad_token_id": 1}


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """Where each leaf lives."""
    return encoders.table(cfg, "roberta", TRUNK, HEADS, TIED)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `bert` does not
    compute."""
    s = settings.read(given, DEFAULTS, encoders.NEUTRAL, where)
    heads = encoders.read_heads(given, names, "roberta", HEADS, where)
    offset = s["pad_token_id"] + 1
    fields = encoders.read_fields(given, s, heads, where)
    config = bert.Config(**fields | {"max_length": fields["max_length"] - offset, "position_offset": offset})
    encoders.refuse_unless_gelu(config, where)
    return config


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, bert.Config) and cfg.position == "learned" and cfg.position_offset > 0


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that RoBERTa has."""
    return encoders.write_fields(cfg, "roberta", "Roberta", encoders.ENDINGS) | {
        "max_position_embeddings": cfg.max_length + cfg.position_offset,
        "pad_token_id": cfg.position_offset - 1,
    }


def for_tokenizer(written: Mapping[str, Any], tokenizer_class: str) -> dict[str, Any]:
    """The settings under the model type that this class of tokenizer belongs to."""
    model_type = BY_TOKENIZER.get(tokenizer_class, "roberta")
    names = [name.replace("Roberta", STEMS[model_type], 1) for name in written["architectures"]]
    return {**written, "model_type": model_type, "architectures": names}
