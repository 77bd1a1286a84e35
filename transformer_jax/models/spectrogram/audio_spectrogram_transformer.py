"""The audio spectrogram transformer as Hugging Face stores it, with its feature extractor's settings."""

import contextlib
import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import spectrogram
from transformer_jax.models.vit import vit as vit_format
from transformer_jax.tasks.audio_classification import AudioClassification

MODEL_TYPES = ("audio-spectrogram-transformer",)
RENAMED_MODULES = vit_format.RENAMED_MODULES

DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "patch_size": 16,
    "qkv_bias": True,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
NORMALISED = {"mean": -4.2677393, "std": 4.5689974}  # where the file states none


def table(cfg: spectrogram.Config) -> Table:
    """Where each leaf lives."""
    theirs, side = "audio_spectrogram_transformer", cfg.patch_size
    layer, embeddings = f"{theirs}.encoder.layer.{{}}", f"{theirs}.embeddings"
    projection = f"{embeddings}.patch_embeddings.projection"
    rows = [
        Row("embed/patch/kernel", f"{projection}.weight", transpose=True, unfolded=(1, side, side)),
        Row("embed/patch/bias", f"{projection}.bias"),
        Row("embed/class/embedding", f"{embeddings}.cls_token", one_row=True),
        Row("embed/distillation/embedding", f"{embeddings}.distillation_token", one_row=True),
        Row("embed/position/embedding", f"{embeddings}.position_embeddings", one_row=True),
        *vit_format.attention_rows(layer),
        *vit_format.mlp_rows(layer),
        *norm("final_norm", f"{theirs}.layernorm"),
        *norm("head_norm", "classifier.layernorm"),
        *dense("head", "classifier.dense"),
    ]
    return Table(rows=rows, prefix=f"{theirs}.", buffers=r"(?!)", tied={})


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> spectrogram.Config:
    """The config that config.json describes; the tensors say whether there is a head."""
    s = settings.read({**given, **vit_format.read_sizes(given, where)}, DEFAULTS, {}, where)
    return spectrogram.Config(
        num_classes=len(settings.label_names(given, where)) if "classifier.dense.weight" in names else 0,
        num_mels=s["num_mel_bins"],
        max_frames=s["max_length"],
        patch_size=s["patch_size"],
        mel_stride=s["frequency_stride"],
        frame_stride=s["time_stride"],
        width=s["hidden_size"],
        num_layers=s["num_hidden_layers"],
        num_heads=s["num_attention_heads"],
        mlp_width=s["intermediate_size"],
        activation=settings.activation(s["hidden_act"], "hidden_act", where),
        qkv_bias=s["qkv_bias"],
        norm_eps=s["layer_norm_eps"],
        dropout=s["hidden_dropout_prob"],
        attention_dropout=s["attention_probs_dropout_prob"],
        init_std=s["initializer_range"],
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to write a config in."""
    return isinstance(cfg, spectrogram.Config)


def write_config(cfg: spectrogram.Config) -> dict[str, Any]:
    """The object of a config.json that describes `cfg`."""
    names = [f"LABEL_{i}" for i in range(cfg.num_classes)]
    return {
        "model_type": "audio-spectrogram-transformer",
        "architectures": ["ASTForAudioClassification" if cfg.num_classes else "ASTModel"],
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_features,
        "hidden_act": settings.THEIR_ACTIVATIONS[cfg.activation],
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout,
        "initializer_range": cfg.init_std,
        "layer_norm_eps": cfg.norm_eps,
        "patch_size": cfg.patch_size,
        "qkv_bias": cfg.qkv_bias,
        "frequency_stride": cfg.mel_stride,
        "time_stride": cfg.frame_stride,
        "max_length": cfg.max_frames,
        "num_mel_bins": cfg.num_mels,
        **(settings.write_labels(names) if names else {}),
    }


def write_extractor(cfg: spectrogram.Config) -> dict[str, Any]:
    """The object of a preprocessor_config.json."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": spectrogram.RATE,
        "num_mel_bins": cfg.num_mels,
        "max_length": cfg.max_frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "do_normalize": True,
        "mean": cfg.mean,
        "std": cfg.std,
    }


def read_extractor(cfg: spectrogram.Config, given: Mapping[str, Any], where: str) -> spectrogram.Config:
    """`cfg` with the normalisation that the file states."""
    own = ("do_normalize", *NORMALISED)
    wanted = {name: value for name, value in write_extractor(cfg).items() if name not in own}
    settings.read({name: value for name, value in given.items() if name not in own}, {}, wanted, where)
    if given.get("do_normalize", True) is False:
        return dataclasses.replace(cfg, mean=0.0, std=0.5)  # the identity
    mean, std = (given.get(name, default) for name, default in NORMALISED.items())
    if not all(type(value) in (int, float) and math.isfinite(value) for value in (mean, std)) or std <= 0:
        raise InputError(f'{where}: "mean" is {mean!r} and "std" {std!r}; they must be numbers, the second above 0')
    return dataclasses.replace(cfg, mean=float(mean), std=float(std))


def task(folder: Path, cfg: spectrogram.Config) -> AudioClassification | None:
    """Classification of sounds; None without a head, and for labels of which several may hold."""
    with contextlib.suppress(InputError):
        return AudioClassification(labels=hub.labels(folder)) if cfg.num_classes else None
    return None
