"""ESM-2 (Lin et al. 2023), ESM-1b (Rives et al. 2021) and the Nucleotide Transformer (Dalla-Torre et al. 2023) as
Hugging Face stores them: `model_type: esm`.

A pre-norm encoder of protein or DNA with rotary positions, or in the older ones learned positions that count from the
padding's id plus one. ESM's masked tokens have no embedding, and the others are scaled for it (`Config.zeroed_token`).
The classification head has a dense layer of its own, which is our pooler. The head that predicts contacts reads the
attention of all layers (`bert.contacts`); a model without it is written with zeros.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders, roberta

MODEL_TYPES = ("esm",)

LAYER = "esm.encoder.layer.{}"
TRUNK = (
    Row("embed/token/embedding", "esm.embeddings.word_embeddings.weight"),
    Row("embed/position/embedding", "esm.embeddings.position_embeddings.weight"),
    *norm("embed/norm", "esm.embeddings.layer_norm"),
    *norm("blocks/attention_norm", f"{LAYER}.attention.LayerNorm"),
    *dense("blocks/attention/query", f"{LAYER}.attention.self.query"),
    *dense("blocks/attention/key", f"{LAYER}.attention.self.key"),
    *dense("blocks/attention/value", f"{LAYER}.attention.self.value"),
    *dense("blocks/attention/out", f"{LAYER}.attention.output.dense"),
    *norm("blocks/mlp_norm", f"{LAYER}.LayerNorm"),
    *dense("blocks/mlp/up", f"{LAYER}.intermediate.dense"),
    *dense("blocks/mlp/down", f"{LAYER}.output.dense"),
    *norm("final_norm", "esm.encoder.emb_layer_norm_after"),
)
KINDS: tuple[bert.Head, ...] = ("mlm", "classification", "tokens")
HEADS: encoders.Heads = {
    "pooler": dense("pooler", "esm.pooler.dense"),
    **{head: roberta.HEADS[head] for head in KINDS},
    "contacts": dense("contacts", "esm.contact_head.regression"),
}
ENDINGS = {heads: ending for heads, ending in encoders.ENDINGS.items() if set(heads) <= set(KINDS)}
TIED = {"lm_head.decoder.weight": "esm.embeddings.word_embeddings.weight"}
# The frequencies of rotary positions, under which name each version stored them.
UNREAD_TENSORS = r"(esm\.)?(encoder\..*)?rotary_embeddings\.inv_freq"

POSITIONS = {"rotary": "rotary", "absolute": "learned"}
DEFAULTS = {name: default for name, default in encoders.DEFAULTS.items() if name != "type_vocab_size"} | {
    "pad_token_id": settings.REQUIRED,
    "position_embedding_type": "absolute",
    "emb_layer_norm_before": False,
    "token_dropout": False,
    "rope_theta": 10_000.0,
}
NEUTRAL = {"tie_word_embeddings": True, "is_folding_model": False}
UNREAD = ("vocab_list", "esmfold_config", "mask_token_id")


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """The table of this format."""
    made = encoders.table(cfg, "esm", TRUNK, HEADS, TIED)
    unread = UNREAD_TENSORS
    if cfg.position == "rotary":  # published files have the other table too
        unread += r"|(esm\.)?embeddings\.position_embeddings\.weight"
    if "contacts" in cfg.heads:
        return made._replace(buffers=f"{made.buffers}|{unread}")
    contacts = {"weight": (1, cfg.num_layers * cfg.num_heads), "bias": (1,)}
    zeros = {f"esm.contact_head.regression.{name}": shape for name, shape in contacts.items()}
    unread += r"|(esm\.)?contact_head\.regression\.(weight|bias)"
    return made._replace(buffers=f"{made.buffers}|{unread}", zeros=zeros)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names.

    Raises:
      InputError: for what `bert` does not compute.
    """
    known = {name: value for name, value in given.items() if name not in UNREAD}
    s = settings.read(known, DEFAULTS, NEUTRAL, where)
    if s["position_embedding_type"] not in POSITIONS:
        kind = s["position_embedding_type"]
        raise InputError(f'{where}: "position_embedding_type" is {kind!r}; supported are {", ".join(POSITIONS)}')
    mask = settings.token_id(given, "mask_token_id", where)
    if s["token_dropout"] and mask is None:
        raise InputError(f'{where} lacks "mask_token_id", which "token_dropout" needs')
    heads = encoders.read_heads(given, names, "esm", HEADS, where)
    rates = {
        name: s["attention_probs_dropout_prob"] for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")
    }
    fields = encoders.read_fields(given, s | rates | {"type_vocab_size": 0}, heads, where)
    learned = s["position_embedding_type"] == "absolute"
    offset = s["pad_token_id"] + 1 if learned else 0
    ours = {
        "num_types": 0,
        "norm_order": "pre",
        "position": POSITIONS[s["position_embedding_type"]],
        "position_offset": offset,
        "max_length": fields["max_length"] - offset,
        "rope_theta": s["rope_theta"],
        "embedding_norm": s["emb_layer_norm_before"],
        "zeroed_token": mask if s["token_dropout"] else None,
    }
    return bert.Config(**fields | ours)


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, bert.Config) and cfg.norm_order == "pre" and not cfg.gated and cfg.num_types == 0


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that ESM has."""
    beside = dataclasses.replace(cfg, heads=tuple(head for head in cfg.heads if head != "contacts"))
    written = encoders.write_fields(beside, "esm", "Esm", ENDINGS)
    learned = cfg.position == "learned"
    return {name: value for name, value in written.items() if name not in ("type_vocab_size", "hidden_act")} | {
        "position_embedding_type": "absolute" if learned else "rotary",
        "max_position_embeddings": cfg.max_length + cfg.position_offset,
        "pad_token_id": cfg.position_offset - 1 if learned else 1,
        "emb_layer_norm_before": cfg.embedding_norm,
        "token_dropout": cfg.zeroed_token is not None,
        "mask_token_id": cfg.zeroed_token,
        "rope_theta": cfg.rope_theta,
    }
