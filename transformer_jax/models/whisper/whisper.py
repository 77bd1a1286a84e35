"""Whisper as Hugging Face stores it: `model_type: whisper`, with the settings of its feature extractor.

Masking of features and dropout of whole layers or inside the MLP are not read: no evaluation depends on them.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import whisper
from transformer_jax.tasks.transcription import Transcription

MODEL_TYPES = ("whisper",)

DEFAULTS = {
    "vocab_size": settings.REQUIRED,
    "d_model": settings.REQUIRED,
    "encoder_layers": settings.REQUIRED,
    "decoder_layers": settings.REQUIRED,
    "encoder_attention_heads": settings.REQUIRED,
    "decoder_attention_heads": settings.REQUIRED,
    "encoder_ffn_dim": settings.REQUIRED,
    "decoder_ffn_dim": settings.REQUIRED,
    "num_hidden_layers": settings.OPTIONAL,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "activation_function": "gelu",
    "init_std": 0.02,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
NEUTRAL = {"is_encoder_decoder": True, "tie_word_embeddings": True, "scale_embedding": False}
# Of training, of classification, and of the times of single words.
UNREAD = (
    *("activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "apply_spec_augment", "mask_time_prob"),
    *("mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length"),
    *("mask_feature_min_masks", "classifier_proj_size", "use_weighted_layer_sum", "median_filter_width"),
    *("forced_decoder_ids", "alignment_heads"),
)


def table(cfg: whisper.Config) -> Table:
    """Where each leaf lives."""
    frames = {"convolution_1": ("conv1", cfg.num_mels), "convolution_2": ("conv2", cfg.width)}
    rows = [Row("embed/token/embedding", "model.decoder.embed_tokens.weight")]
    for ours, (theirs, width) in frames.items():
        kernel = Row(f"encoder/{ours}/kernel", f"model.encoder.{theirs}.weight", transpose=True)
        rows += [kernel._replace(unfolded=(width, whisper.TAPS))]
        rows += [Row(f"encoder/{ours}/bias", f"model.encoder.{theirs}.bias")]
    for side in ("encoder", "decoder"):
        theirs, blocks = f"model.{side}.layers.{{}}", f"{side}/blocks"
        rows += [
            Row(f"{side}/position/embedding", f"model.{side}.embed_positions.weight"),
            *_attention(f"{blocks}/attention", f"{theirs}.self_attn"),
            *norm(f"{blocks}/attention_norm", f"{theirs}.self_attn_layer_norm"),
            *dense(f"{blocks}/mlp/up", f"{theirs}.fc1"),
            *dense(f"{blocks}/mlp/down", f"{theirs}.fc2"),
            *norm(f"{blocks}/mlp_norm", f"{theirs}.final_layer_norm"),
            *norm(f"{side}/final_norm", f"model.{side}.layer_norm"),
        ]
    rows += _attention("decoder/blocks/cross", "model.decoder.layers.{}.encoder_attn")
    rows += norm("decoder/blocks/cross_norm", "model.decoder.layers.{}.encoder_attn_layer_norm")
    tied = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
    return Table(rows=rows, prefix="model.", buffers=r"(?!)", tied=tied)


def _attention(leaf: str, tensor: str) -> list[Row]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return [row for ours, theirs in names.items() for row in dense(f"{leaf}/{ours}", f"{tensor}.{theirs}")]


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> whisper.Config:
    """The config that config.json describes."""
    s = settings.read({k: v for k, v in given.items() if k not in UNREAD}, DEFAULTS, NEUTRAL, where)
    for one, other in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
        ("encoder_layers", "num_hidden_layers"),
    ):
        if s[other] not in (None, s[one]):
            raise InputError(f'{where}: "{one}" {s[one]} and "{other}" {s[other]} differ; they must be the same')
    return whisper.Config(
        vocab_size=s["vocab_size"],
        width=s["d_model"],
        num_layers=s["encoder_layers"],
        num_decoder_layers=s["decoder_layers"],
        num_heads=s["encoder_attention_heads"],
        mlp_width=s["encoder_ffn_dim"],
        num_mels=s["num_mel_bins"],
        max_frames=s["max_source_positions"],
        max_length=s["max_target_positions"],
        activation=settings.activation(s["activation_function"], "activation_function", where),
        pad_id=settings.token_id(given, "pad_token_id", where, default=50256),
        eos_id=settings.token_id(given, "eos_token_id", where, default=50256),
        decoder_start_id=settings.token_id(given, "decoder_start_token_id", where, default=50257),
        dropout=s["dropout"],
        attention_dropout=s["attention_dropout"],
        init_std=s["init_std"],
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to write a config in."""
    return isinstance(cfg, whisper.Config)


def write_config(cfg: whisper.Config) -> dict[str, Any]:
    """The object of a config.json that describes `cfg`."""
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.width,
        "encoder_layers": cfg.num_layers,
        "decoder_layers": cfg.decoder_layers,
        "num_hidden_layers": cfg.num_layers,
        **{f"{side}_attention_heads": cfg.num_heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": cfg.mlp_features for side in ("encoder", "decoder")},
        "num_mel_bins": cfg.num_mels,
        "max_source_positions": cfg.max_frames,
        "max_target_positions": cfg.max_length,
        "activation_function": settings.THEIR_ACTIVATIONS[cfg.activation],
        "scale_embedding": False,
        "dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "init_std": cfg.init_std,
        "pad_token_id": cfg.pad_id,
        "eos_token_id": cfg.eos_id,
        "decoder_start_token_id": cfg.decoder_start_id,
    }


def write_extractor(cfg: whisper.Config) -> dict[str, Any]:
    """The object of a preprocessor_config.json."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": cfg.num_mels,
        "sampling_rate": whisper.RATE,
        "hop_length": whisper.HOP,
        "n_fft": 400,
        "chunk_length": cfg.window // whisper.RATE,
        "n_samples": cfg.window,
        "nb_max_frames": 2 * cfg.max_frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "dither": 0.0,
    }


def read_extractor(cfg: whisper.Config, given: Mapping[str, Any], where: str) -> whisper.Config:
    """`cfg`, after the check that the features are those that it reads."""
    # Old files hold the filters themselves; "do_normalize" is a choice of the caller there.
    known = {name: value for name, value in given.items() if name not in ("mel_filters", "do_normalize")}
    settings.read(known, {}, write_extractor(cfg), where)
    return cfg


def task(folder: Path, cfg: whisper.Config) -> Transcription:
    """Transcription by the search and the first tokens that the folder states."""
    return Transcription(beam=hub.generation(folder, cfg), language="auto")
