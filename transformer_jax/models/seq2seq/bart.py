"""BART (Lewis et al. 2020) and mBART (Liu et al. 2020) as Hugging Face stores them: `model_type: bart` and `mbart`.

Dropout inside the MLP and of whole layers ("activation_dropout", "encoder_layerdrop") is not read: no evaluation
depends on it, and training here has none.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import seq2seq
from transformer_jax.tasks.translation import Translation

MODEL_TYPES = ("bart", "mbart")

DEFAULTS = {
    "vocab_size": settings.REQUIRED,
    "d_model": settings.REQUIRED,
    "encoder_layers": settings.REQUIRED,
    "decoder_layers": settings.REQUIRED,
    "encoder_attention_heads": settings.REQUIRED,
    "decoder_attention_heads": settings.REQUIRED,
    "encoder_ffn_dim": settings.REQUIRED,
    "decoder_ffn_dim": settings.REQUIRED,
    "max_position_embeddings": settings.REQUIRED,
    "num_hidden_layers": settings.OPTIONAL,
    "activation_function": "gelu",
    "scale_embedding": False,
    "init_std": 0.02,
    "dropout": 0.1,
    "attention_dropout": 0.0,
}
UNREAD = (
    *("activation_dropout", "classif_dropout", "classifier_dropout", "encoder_layerdrop", "decoder_layerdrop"),
    "force_bos_token_to_be_generated",
)
# Settings of old config.json that have one value in their model type.
NEUTRAL = {
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "add_bias_logits": False,
    "static_position_embeddings": False,
    "extra_pos_embeddings": 2,
    "normalize_embedding": True,
}


def table(cfg: seq2seq.Config) -> Table:
    """Where each leaf lives, in BART, mBART and Marian."""
    rows = [
        Row("embed/token/embedding", "model.shared.weight"),
        Row("head/bias", "final_logits_bias", one_row=True),
    ]
    for side in ("encoder", "decoder"):
        theirs, ours = f"model.{side}.layers.{{}}", f"{side}/blocks"
        rows += [
            Row(f"{side}/position/embedding", f"model.{side}.embed_positions.weight"),
            *norm(f"{side}/embed_norm", f"model.{side}.layernorm_embedding"),
            *_attention(f"{ours}/attention", f"{theirs}.self_attn"),
            *norm(f"{ours}/attention_norm", f"{theirs}.self_attn_layer_norm"),
            *dense(f"{ours}/mlp/up", f"{theirs}.fc1"),
            *dense(f"{ours}/mlp/down", f"{theirs}.fc2"),
            *norm(f"{ours}/mlp_norm", f"{theirs}.final_layer_norm"),
            *norm(f"{side}/final_norm", f"model.{side}.layer_norm"),
        ]
    rows += _attention("decoder/blocks/cross", "model.decoder.layers.{}.encoder_attn")
    rows += norm("decoder/blocks/cross_norm", "model.decoder.layers.{}.encoder_attn_layer_norm")
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    return Table(
        rows=rows,
        prefix="model.",
        buffers=r"(model\.)?(encoder|decoder)\.version",
        tied=dict.fromkeys(copies, "model.shared.weight"),
    )


def _attention(leaf: str, tensor: str) -> list[Row]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return [row for ours, theirs in names.items() for row in dense(f"{leaf}/{ours}", f"{tensor}.{theirs}")]


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> seq2seq.Config:
    """The config of a config.json's object and the tensors' names: a trunk saved alone has no bias of the logits.
    Errors: `InputError` for what `seq2seq` does not compute."""
    pre = given.get("model_type") == "mbart"
    old = {"normalize_before": pre, "add_final_layer_norm": pre}
    return seq2seq.Config(
        **read_fields(given, names, NEUTRAL | old, where),
        norm_order="pre" if pre else "post",
        embedding_norm=True,
        position="learned",
        position_offset=2,
    )


def read_fields(
    given: Mapping[str, Any], names: Collection[str], neutral: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The fields that BART, mBART and Marian write in the same way.

    Args:
      given: config.json's object.
      names: the names of the checkpoint's tensors.
      neutral: settings with the one value that is supported.
      where: names the file in messages.

    Raises:
      InputError: settings of encoder and decoder differ.
    """
    known = {name: value for name, value in given.items() if name not in UNREAD}
    s = settings.read(known, DEFAULTS, neutral, where)
    for one, other in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
        ("encoder_layers", "num_hidden_layers"),
    ):
        if s[other] not in (None, s[one]):
            raise InputError(f'{where}: "{one}" {s[one]} and "{other}" {s[other]} differ; they must be the same')
    return {
        "vocab_size": s["vocab_size"],
        "max_length": s["max_position_embeddings"],
        "width": s["d_model"],
        "num_layers": s["encoder_layers"],
        "num_decoder_layers": s["decoder_layers"],
        "num_heads": s["encoder_attention_heads"],
        "mlp_width": s["encoder_ffn_dim"],
        "activation": settings.activation(s["activation_function"], "activation_function", where),
        "scale_embedding": s["scale_embedding"],
        "logits_bias": "final_logits_bias" in names,
        "pad_id": settings.token_id(given, "pad_token_id", where),
        "eos_id": settings.token_id(given, "eos_token_id", where),
        "decoder_start_id": settings.token_id(given, "decoder_start_token_id", where),
        "dropout": s["dropout"],
        "attention_dropout": s["attention_dropout"],
        "initializer": "normal",
        "init_std": s["init_std"],
    }


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, seq2seq.Config) and cfg.position == "learned"


def write_config(cfg: seq2seq.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that BART or mBART has."""
    return write_fields(cfg, "mbart", "MBart") if cfg.norm_order == "pre" else write_fields(cfg, "bart", "Bart")


def write_fields(cfg: seq2seq.Config, model_type: str, stem: str) -> dict[str, Any]:
    """The settings that `read_fields` reads.

    Args:
      cfg: the model's config.
      model_type: the "model_type" of config.json.
      stem: with which the architecture's name begins.
    """
    return {
        "model_type": model_type,
        "architectures": [f"{stem}{'ForConditionalGeneration' if model_type != 'marian' else 'MTModel'}"],
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.width,
        "encoder_layers": cfg.num_layers,
        "decoder_layers": cfg.decoder_layers,
        "encoder_attention_heads": cfg.num_heads,
        "decoder_attention_heads": cfg.num_heads,
        "encoder_ffn_dim": cfg.mlp_features,
        "decoder_ffn_dim": cfg.mlp_features,
        "max_position_embeddings": cfg.max_length,
        "activation_function": settings.THEIR_ACTIVATIONS[cfg.activation],
        "scale_embedding": cfg.scale_embedding,
        "init_std": cfg.init_std,
        "dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "pad_token_id": cfg.pad_id,
        "eos_token_id": cfg.eos_id,
        "decoder_start_token_id": cfg.decoder_start_id,
    }


def task(folder: Path, cfg: seq2seq.Config) -> Translation:
    """Text to text, by the search that the folder states."""
    return Translation(beam=hub.generation(folder, cfg), extra_tokens=cfg.max_length)
