"""ModernBERT (Warner et al. 2024) as Hugging Face stores it: `model_type: modernbert`.

Query, key and value are one Linear, and so are the gate and what it multiplies. Layer 0 has no attention norm. Every
third layer is global, with a rotary base of its own; "local_attention" counts the tokens of both sides of the others.
All heads read the states through one dense layer, activation and norm.

Transformers 5 writes the kind of each layer and both bases as "layer_types" and "rope_parameters", earlier versions as
"global_attn_every_n_layers", "global_rope_theta" and "local_rope_theta"; both are read, and the first are written.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, fused, norm
from transformer_jax.models import bert
from transformer_jax.models.bert import encoders

MODEL_TYPES = ("modernbert",)

LAYER = "model.layers.{}"


TRUNK = (
    Row("embed/token/embedding", "model.embeddings.tok_embeddings.weight"),
    *norm("embed/norm", "model.embeddings.norm"),
    Row("blocks/attention_norm/scale", f"{LAYER}.attn_norm.weight", begins=1),
    Row("blocks/attention_norm/bias", f"{LAYER}.attn_norm.bias", begins=1),
    *fused("blocks/attention/query", f"{LAYER}.attn.Wqkv", 0, 3),
    *fused("blocks/attention/key", f"{LAYER}.attn.Wqkv", 1, 3),
    *fused("blocks/attention/value", f"{LAYER}.attn.Wqkv", 2, 3),
    *dense("blocks/attention/out", f"{LAYER}.attn.Wo"),
    *norm("blocks/mlp_norm", f"{LAYER}.mlp_norm"),
    *fused("blocks/mlp/gate", f"{LAYER}.mlp.Wi", 0, 2),
    *fused("blocks/mlp/up", f"{LAYER}.mlp.Wi", 1, 2),
    *dense("blocks/mlp/down", f"{LAYER}.mlp.Wo"),
    *norm("final_norm", "model.final_norm"),
    *dense("transform/dense", "head.dense"),
    *norm("transform/norm", "head.norm"),
)
HEADS: encoders.Heads = {
    "mlm": (Row("mlm/bias", "decoder.bias"),),
    "classification": dense("classification", "classifier"),
    "tokens": dense("tokens", "classifier"),
    "span": dense("span", "classifier"),
    "choice": dense("choice", "classifier"),
}
TIED = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

# BERT's settings that have another name here.
THEIRS = {"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"}
BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
ACTIVATIONS = ("hidden_activation", "classifier_activation")
POOLINGS = {"cls": "first", "mean": "mean"}
RATES = ("attention_dropout", "embedding_dropout", "mlp_dropout")
DEFAULTS = {
    **{name: encoders.DEFAULTS[name] for name in ("vocab_size", "hidden_size", "intermediate_size")},
    **{name: encoders.DEFAULTS[name] for name in ("num_hidden_layers", "num_attention_heads")},
    "max_position_embeddings": settings.REQUIRED,
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "classifier_pooling": "cls",
    "norm_eps": 1e-5,
    "initializer_range": 0.02,
    "local_attention": 128,
    "layer_types": [],
    "rope_parameters": {},
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    **dict.fromkeys(BIASES, False),
    **dict.fromkeys(RATES, 0.0),
}
NEUTRAL = {"decoder_bias": True, "tie_word_embeddings": True}
# How it is trained and computed there, and what the first files had from BERT's.
UNREAD = (
    *("classifier_dropout", "deterministic_flash_attn", "initializer_cutoff_factor", "reference_compile"),
    *("sparse_prediction", "sparse_pred_ignore_index", "repad_logits_with_grad", "cls_token_id"),
    *("layer_norm_eps", "position_embedding_type"),
)
GLOBAL, LOCAL = "full_attention", "sliding_attention"


task = encoders.task


def table(cfg: bert.Config) -> Table:
    """The table of this format."""
    return encoders.table(cfg, "model", TRUNK, HEADS, TIED)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> bert.Config:
    """The config of a config.json's object and the tensors' names.

    Raises:
      InputError: for what `bert` does not compute.
    """
    known = {name: value for name, value in given.items() if name not in UNREAD}
    s = settings.read(known, DEFAULTS, NEUTRAL, where)
    for kind, members in (("biases", BIASES), ("dropout rates", RATES), ("activations", ACTIVATIONS)):
        if len({s[name] for name in members}) > 1:
            found = ", ".join(f'"{name}" {s[name]!r}' for name in members)
            raise InputError(f"{where}: {kind} differ, {found}; only one value for all of them is supported")
    if s["classifier_pooling"] not in POOLINGS:
        raise InputError(f'{where}: "classifier_pooling" is {s["classifier_pooling"]!r}; it is one of cls, mean')
    settings.activation(s["hidden_activation"], "hidden_activation", where)  # refused by the name that it has here
    heads = encoders.read_heads(given, names, "model", HEADS, where)
    rates = {"hidden_dropout_prob": s["attention_dropout"], "attention_probs_dropout_prob": s["attention_dropout"]}
    ours = s | rates | {"type_vocab_size": 0} | {name: s[theirs] for name, theirs in THEIRS.items()}
    global_theta, local_theta = _bases(s, where)
    global_every = _global_every(s, where)
    fields = encoders.read_fields(given, ours, heads, where) | {
        "num_types": 0,
        "position": "rotary",
        "rope_theta": global_theta,
        "local_rope_theta": local_theta,
        "local_window": s["local_attention"] // 2 if global_every > 1 else 0,
        "global_every": global_every,
        "norm_order": "pre",
        "first_attention_norm": False,
        "gated": True,
        "bias": s["attention_bias"],
        "pooling": POOLINGS[s["classifier_pooling"]],
        "head_transform": True,
    }
    return bert.Config(**fields)


def _global_every(s: Mapping[str, Any], where: str) -> int:
    """n, where layers 0, n, 2n, ... are global."""
    kinds, count, every = s["layer_types"], s["num_hidden_layers"], s["global_attn_every_n_layers"]
    if every < 1:
        raise InputError(f'{where}: "global_attn_every_n_layers" is {every}; it must be at least 1')
    if kinds and kinds != _kinds(count, every):
        found = [i for i, kind in enumerate(kinds) if kind == GLOBAL]
        every = found[1] if len(found) > 1 else count
    if kinds and kinds != _kinds(count, every):
        raise InputError(
            f'{where}: "layer_types" is {kinds!r}; supported is "{GLOBAL}" in layers 0, n, 2n, ... and "{LOCAL}" in '
            f"all others, for {count} layers"
        )
    if LOCAL in _kinds(count, every) and s["local_attention"] < 2:
        raise InputError(f'{where}: "local_attention" is {s["local_attention"]}; local layers need at least 2')
    return every


def _kinds(count: int, every: int) -> list[str]:
    return [LOCAL if i % every else GLOBAL for i in range(count)]


def _bases(s: Mapping[str, Any], where: str) -> tuple[float, float]:
    """The rotary bases of global and of local layers."""
    given, found = s["rope_parameters"], []
    if unknown := sorted(given.keys() - {GLOBAL, LOCAL}):
        raise InputError(f'{where}: "rope_parameters" has {unknown[0]!r}; it has {GLOBAL} and {LOCAL}')
    for kind, name in ((GLOBAL, "global_rope_theta"), (LOCAL, "local_rope_theta")):
        rope = given.get(kind) or {}
        theta = rope.get("rope_theta", s[name]) if isinstance(rope, dict) else None
        if theta is None or rope.keys() - {"rope_theta", "rope_type"} or rope.get("rope_type", "default") != "default":
            raise InputError(f'{where}: "rope_parameters" of {kind} is {rope!r}; supported is one "rope_theta"')
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
            raise InputError(f'{where}: "rope_theta" of {kind} is {theta!r}; it must be a positive number')
        found.append(float(theta))
    return found[0], found[1]


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, bert.Config) and cfg.position == "rotary"


def write_config(cfg: bert.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that ModernBERT has."""
    written = encoders.write_fields(cfg, "modernbert", "ModernBert", encoders.ENDINGS)
    dropped = ("type_vocab_size", "hidden_dropout_prob", "attention_probs_dropout_prob")
    activation = written["hidden_act"]
    poolings = {ours: theirs for theirs, ours in POOLINGS.items()}
    bases = {GLOBAL: cfg.rope_theta, LOCAL: cfg.local_rope_theta}
    return {THEIRS.get(name, name): value for name, value in written.items() if name not in dropped} | {
        **dict.fromkeys(BIASES, cfg.bias),
        **dict.fromkeys(RATES, cfg.dropout),
        "classifier_activation": activation,
        "classifier_pooling": poolings[cfg.pooling],
        "local_attention": 2 * cfg.local_window,
        "global_attn_every_n_layers": cfg.global_every,
        "layer_types": _kinds(cfg.num_layers, cfg.global_every),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in bases.items()},
        "pad_token_id": None,  # its default is beyond a small vocabulary
        **dict.fromkeys(("cls_token_id", "sep_token_id")),
    }
