"""wav2vec 2.0 with a CTC head as Hugging Face stores it: `model_type: wav2vec2`, with its feature extractor's settings.

Masking and further dropout of training, the quantizer of pre-training and the settings of other heads are not read.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import wav2vec2
from transformer_jax.tasks.speech_recognition import SpeechRecognition

MODEL_TYPES = ("wav2vec2",)

DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 32,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "conv_dim": [512] * 7,
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
NEUTRAL = {"feat_extract_activation": "gelu", "add_adapter": False}
UNREAD = (
    *("activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop", "feat_quantizer_dropout"),
    *("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob"),
    *("mask_feature_length", "mask_feature_min_masks", "num_codevectors_per_group", "num_codevector_groups"),
    *("contrastive_logits_temperature", "num_negatives", "codevector_dim", "proj_codevector_dim"),
    *("diversity_loss_weight", "ctc_loss_reduction", "ctc_zero_infinity", "use_weighted_layer_sum"),
    *("classifier_proj_size", "tdnn_dim", "tdnn_kernel", "tdnn_dilation", "xvector_output_dim", "adapter_kernel_size"),
    *("adapter_stride", "num_adapter_layers", "output_hidden_size", "num_feat_extract_layers", "hidden_dropout_prob"),
    *("freeze_feat_extract_train", "no_mask_channel_overlap", "no_mask_time_overlap", "mask_channel_length"),
    *("mask_channel_min_space", "mask_channel_other", "mask_channel_prob", "mask_channel_selection"),
    *("mask_time_min_space", "mask_time_other", "mask_time_selection"),
)


def table(cfg: wav2vec2.Config) -> Table:
    """Where each leaf lives."""
    rows, width_in = [], 1
    for i, (width, taps) in enumerate(zip(cfg.widths, cfg.taps, strict=True)):
        theirs = f"wav2vec2.feature_extractor.conv_layers.{i}"
        kernel = Row(f"frames/{i}/kernel", f"{theirs}.conv.weight", transpose=True, unfolded=(width_in, taps))
        rows += [kernel, Row(f"frames/{i}/bias", f"{theirs}.conv.bias")]
        rows += norm(f"frames/{i}/norm", f"{theirs}.layer_norm")
        width_in = width
    position, blocks = "wav2vec2.encoder.pos_conv_embed.conv", "wav2vec2.encoder.layers.{}"
    unfolded = (cfg.width // cfg.position_groups, cfg.position_taps)
    rows += [
        *norm("project/norm", "wav2vec2.feature_projection.layer_norm"),
        *dense("project", "wav2vec2.feature_projection.projection"),
        Row("position/kernel", f"{position}.parametrizations.weight.original1", transpose=True, unfolded=unfolded),
        Row("position/scale", f"{position}.parametrizations.weight.original0", one_row=True),
        Row("position/bias", f"{position}.bias"),
        *norm("embed_norm", "wav2vec2.encoder.layer_norm"),
        *norm("final_norm", "wav2vec2.encoder.layer_norm"),
        *norm("blocks/attention_norm", f"{blocks}.layer_norm"),
        *norm("blocks/mlp_norm", f"{blocks}.final_layer_norm"),
        *dense("blocks/mlp/up", f"{blocks}.feed_forward.intermediate_dense"),
        *dense("blocks/mlp/down", f"{blocks}.feed_forward.output_dense"),
        *dense("head", "lm_head"),
    ]
    for ours, theirs in {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}.items():
        rows += dense(f"blocks/attention/{ours}", f"{blocks}.attention.{theirs}")
    return Table(
        rows=rows,
        prefix="wav2vec2.",
        buffers=r"(wav2vec2\.)?masked_spec_embed|(quantizer|project_q|project_hid)\..*",
        tied={},
        old_names={
            r"conv\.weight_g": "conv.parametrizations.weight.original0",
            r"conv\.weight_v": "conv.parametrizations.weight.original1",
        },
        zeros={"wav2vec2.masked_spec_embed": (cfg.width,)},
    )


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> wav2vec2.Config:
    """The config that config.json describes."""
    if names and "lm_head.weight" not in names:
        raise InputError(
            f"{where}: the checkpoint has no CTC head, lm_head.weight; use a folder that was fine-tuned for recognition"
        )
    s = settings.read({k: v for k, v in given.items() if k not in UNREAD}, DEFAULTS, NEUTRAL, where)
    return wav2vec2.Config(
        vocab_size=s["vocab_size"],
        blank_id=settings.token_id(given, "pad_token_id", where, default=0) or 0,
        width=s["hidden_size"],
        num_layers=s["num_hidden_layers"],
        num_heads=s["num_attention_heads"],
        mlp_width=s["intermediate_size"],
        activation=settings.activation(s["hidden_act"], "hidden_act", where),
        norm_eps=s["layer_norm_eps"],
        norm_order="pre" if s["do_stable_layer_norm"] else "post",
        widths=tuple(s["conv_dim"]),
        strides=tuple(s["conv_stride"]),
        taps=tuple(s["conv_kernel"]),
        frame_norm=s["feat_extract_norm"],
        frame_bias=s["conv_bias"],
        position_taps=s["num_conv_pos_embeddings"],
        position_groups=s["num_conv_pos_embedding_groups"],
        masks_padding=s["feat_extract_norm"] == "layer",
        dropout=s["hidden_dropout"],
        attention_dropout=s["attention_dropout"],
        init_std=s["initializer_range"],
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to write a config in."""
    return isinstance(cfg, wav2vec2.Config)


def write_config(cfg: wav2vec2.Config) -> dict[str, Any]:
    """The object of a config.json that describes `cfg`."""
    return {
        "model_type": "wav2vec2",
        "architectures": ["Wav2Vec2ForCTC"],
        "vocab_size": cfg.vocab_size,
        "pad_token_id": cfg.blank,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_features,
        "hidden_act": settings.THEIR_ACTIVATIONS[cfg.activation],
        "layer_norm_eps": cfg.norm_eps,
        "do_stable_layer_norm": cfg.norm_order == "pre",
        "conv_dim": list(cfg.widths),
        "conv_stride": list(cfg.strides),
        "conv_kernel": list(cfg.taps),
        "num_feat_extract_layers": len(cfg.widths),
        "feat_extract_norm": cfg.frame_norm,
        "conv_bias": cfg.frame_bias,
        "num_conv_pos_embeddings": cfg.position_taps,
        "num_conv_pos_embedding_groups": cfg.position_groups,
        "hidden_dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "initializer_range": cfg.init_std,
    }


def write_extractor(cfg: wav2vec2.Config) -> dict[str, Any]:
    """The object of a preprocessor_config.json."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "processor_class": "Wav2Vec2Processor",
        "feature_size": 1,
        "sampling_rate": 16_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": cfg.normalize,
        "return_attention_mask": cfg.masks_padding,
    }


def read_extractor(cfg: wav2vec2.Config, given: Mapping[str, Any], where: str) -> wav2vec2.Config:
    """`cfg` with the normalisation and the mask that the file states."""
    known = {name: value for name, value in given.items() if name not in ("processor_class", "tokenizer_class")}
    s = settings.read(
        known,
        {"do_normalize": True, "return_attention_mask": False},
        {name: value for name, value in write_extractor(cfg).items() if name != "processor_class"},
        where,
    )
    return dataclasses.replace(cfg, normalize=s["do_normalize"], masks_padding=s["return_attention_mask"])


def task(folder: Path, cfg: wav2vec2.Config) -> SpeechRecognition:
    """Recognition by CTC."""
    return SpeechRecognition()
