"""T5 (Raffel et al. 2020) as Hugging Face stores it: `model_type: t5`, for v1.1 and FLAN as well, and `mt5`.

The relative biases are in the first layer of each side. The tensors decide whether the head is the table's transpose
(versions of Transformers interpret "tie_word_embeddings" differently). "scale_decoder_outputs", or else
"tie_word_embeddings" as in Transformers, decides whether the states are scaled before it; mT5's never are.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table
from transformer_jax.models import seq2seq
from transformer_jax.tasks.translation import Translation

MODEL_TYPES = ("t5", "mt5")
SIGNS = ("d_kv", "d_ff")

DEFAULTS = {
    "vocab_size": settings.REQUIRED,
    "d_model": settings.REQUIRED,
    "d_kv": settings.REQUIRED,
    "d_ff": settings.REQUIRED,
    "num_layers": settings.REQUIRED,
    "num_decoder_layers": settings.OPTIONAL,
    "num_heads": settings.REQUIRED,
    "n_positions": settings.OPTIONAL,
    "relative_attention_num_buckets": settings.OPTIONAL,
    "relative_attention_max_distance": settings.OPTIONAL,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
    "tie_word_embeddings": True,
}
NEUTRAL = {"is_encoder_decoder": True}
# Repetitions of "feed_forward_proj", the distribution of initial weights, and the dropout of heads that we do not have.
UNREAD = ("classifier_dropout", "dense_act_fn", "initializer_factor", "is_gated_act", "scale_decoder_outputs")


def table(cfg: seq2seq.Config) -> Table:
    """Where each leaf lives."""
    rows = [Row("embed/token/embedding", "shared.weight"), Row("head/kernel", "lm_head.weight", transpose=True)]
    for side, mlp in (("encoder", 1), ("decoder", 2)):
        block, first = f"{side}.block.{{}}.layer", f"{side}.block.0.layer.0.SelfAttention"
        ours = f"{side}/blocks"
        rows += _attention(f"{ours}/attention", f"{block}.0.SelfAttention")
        rows += [
            Row(f"{side}/relative_bias/embedding", f"{first}.relative_attention_bias.weight"),
            Row(f"{ours}/attention_norm/scale", f"{block}.0.layer_norm.weight"),
            Row(f"{ours}/mlp/gate/kernel", f"{block}.{mlp}.DenseReluDense.wi_0.weight", transpose=True),
            Row(f"{ours}/mlp/up/kernel", f"{block}.{mlp}.DenseReluDense.wi{'_1' * cfg.gated}.weight", transpose=True),
            Row(f"{ours}/mlp/down/kernel", f"{block}.{mlp}.DenseReluDense.wo.weight", transpose=True),
            Row(f"{ours}/mlp_norm/scale", f"{block}.{mlp}.layer_norm.weight"),
            Row(f"{side}/final_norm/scale", f"{side}.final_layer_norm.weight"),
        ]
    cross = "decoder.block.{}.layer.1"
    rows += _attention("decoder/blocks/cross", f"{cross}.EncDecAttention")
    rows += [Row("decoder/blocks/cross_norm/scale", f"{cross}.layer_norm.weight")]
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return Table(
        rows=rows,
        prefix="",
        # A bias that the original code made for cross-attention and never read.
        buffers=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        tied=dict.fromkeys(copies, "shared.weight"),
    )


def _attention(leaf: str, tensor: str) -> list[Row]:
    names = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return [Row(f"{leaf}/{ours}/kernel", f"{tensor}.{theirs}.weight", transpose=True) for ours, theirs in names.items()]


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> seq2seq.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `seq2seq` does not
    compute."""
    known = {name: value for name, value in given.items() if name not in UNREAD}
    s = settings.read(known, DEFAULTS, NEUTRAL, where)
    scaled = given.get("scale_decoder_outputs", s["tie_word_embeddings"])
    if not isinstance(scaled, bool):
        raise InputError(f'{where}: "scale_decoder_outputs" is {scaled!r}; it must be true or false')
    scaled = scaled and given.get("model_type") == "t5"
    gated, activation = s["feed_forward_proj"].startswith("gated-"), s["feed_forward_proj"].removeprefix("gated-")
    if s["feed_forward_proj"] == "gated-gelu":  # T5's "gelu" here is the tanh approximation
        activation = "gelu_new"
    pad_id = settings.token_id(given, "pad_token_id", where, default=0)
    return seq2seq.Config(
        vocab_size=s["vocab_size"],
        max_length=s["n_positions"] or 512,
        width=s["d_model"],
        num_layers=s["num_layers"],
        num_decoder_layers=s["num_decoder_layers"],
        num_heads=s["num_heads"],
        head_dim=s["d_kv"],
        mlp_width=s["d_ff"],
        activation=settings.activation(activation, "feed_forward_proj", where),
        gated=gated,
        norm="rms",
        norm_eps=s["layer_norm_epsilon"],
        norm_order="pre",
        bias=False,
        position="relative",
        relative_buckets=s["relative_attention_num_buckets"] or 32,
        relative_max_distance=s["relative_attention_max_distance"] or 128,
        scale_embedding=False,
        scale_scores=False,
        scale_head=scaled,
        tie_embeddings=scaled or "lm_head.weight" not in names,
        pad_id=pad_id,
        eos_id=settings.token_id(given, "eos_token_id", where, default=1),
        decoder_start_id=settings.token_id(given, "decoder_start_token_id", where, default=pad_id),
        dropout=s["dropout_rate"],
        attention_dropout=s["dropout_rate"],
        initializer="t5",
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, seq2seq.Config) and cfg.position == "relative"


def write_config(cfg: seq2seq.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that T5 has."""
    name = settings.THEIR_ACTIVATIONS[cfg.activation]
    gate = "gelu" if cfg.activation == "gelu_tanh" else "none" if cfg.activation == "gelu" else name
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.width,
        "d_kv": cfg.head_width,
        "d_ff": cfg.mlp_features,
        "num_layers": cfg.num_layers,
        "num_decoder_layers": cfg.decoder_layers,
        "num_heads": cfg.num_heads,
        "n_positions": cfg.max_length,
        "relative_attention_num_buckets": cfg.relative_buckets,
        "relative_attention_max_distance": cfg.relative_max_distance,
        "feed_forward_proj": f"gated-{gate}" if cfg.gated else name,
        "layer_norm_epsilon": cfg.norm_eps,
        "dropout_rate": cfg.dropout,
        "tie_word_embeddings": cfg.scale_head,
        "pad_token_id": cfg.pad_id,
        "eos_token_id": cfg.eos_id,
        "decoder_start_token_id": cfg.decoder_start_id,
    }


def task(folder: Path, cfg: seq2seq.Config) -> Translation:
    """Text to text, by the search that the folder states."""
    return Translation(beam=hub.generation(folder, cfg), extra_tokens=cfg.max_length)
