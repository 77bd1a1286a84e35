"""EoMT (Kerssies et al. 2025) as Hugging Face stores it: `model_type: eomt`.

Published models have finished the annealing of masked attention, so that `attn_mask_probs` is zero.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, fused, norm
from transformer_jax.models import eomt
from transformer_jax.tasks.segmentation import Segmentation

MODEL_TYPES = ("eomt",)
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels")
DEFAULTS = dict.fromkeys(REQUIRED, settings.REQUIRED) | {
    "num_queries": settings.REQUIRED,
    "num_blocks": settings.REQUIRED,
    "mlp_ratio": 4,
    "num_register_tokens": 4,
    "num_upscale_blocks": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
# Of stochastic depth, whose rate is one for all layers there, and of the training loss.
UNREAD = (
    *("drop_path_rate", "class_weight", "mask_weight", "dice_weight", "no_object_weight"),
    *("train_num_points", "oversample_ratio", "importance_sample_ratio"),
)


def table(cfg: eomt.Config) -> Table:
    """Where each leaf lives."""
    layer, scale, side = "layers.{}", "upscale_block.block.{}", cfg.patch_size
    projection = "embeddings.patch_embeddings.projection"
    gated = (
        *fused("blocks/mlp/gate", f"{layer}.mlp.weights_in", 0, 2),
        *fused("blocks/mlp/up", f"{layer}.mlp.weights_in", 1, 2),
        *dense("blocks/mlp/down", f"{layer}.mlp.weights_out"),
    )
    plain = (*dense("blocks/mlp/up", f"{layer}.mlp.fc1"), *dense("blocks/mlp/down", f"{layer}.mlp.fc2"))
    names = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj"))
    return Table(
        rows=(
            Row("embed/patch/kernel", f"{projection}.weight", transpose=True, unfolded=(cfg.channels, side, side)),
            Row("embed/patch/bias", f"{projection}.bias"),
            Row("embed/class/embedding", "embeddings.cls_token", one_row=True),
            Row("embed/registers/embedding", "embeddings.register_tokens", one_row=True),
            Row("embed/position/embedding", "embeddings.position_embeddings.weight"),
            Row("queries/embedding", "query.weight"),
            *(
                row
                for ours, theirs in names
                for row in dense(f"blocks/attention/{ours}", f"{layer}.attention.{theirs}")
            ),
            *norm("blocks/attention_norm", f"{layer}.norm1"),
            Row("blocks/attention/layer_scale/scale", f"{layer}.layer_scale1.lambda1"),
            *norm("blocks/mlp_norm", f"{layer}.norm2"),
            Row("blocks/mlp/layer_scale/scale", f"{layer}.layer_scale2.lambda1"),
            *(gated if cfg.gated else plain),
            *norm("final_norm", "layernorm"),
            *(row for i, name in enumerate(eomt.MLP) for row in dense(f"mask_head/{name}", f"mask_head.fc{i + 1}")),
            *dense("class_head", "class_predictor"),
            Row("upscale/up/kernel", f"{scale}.conv1.weight", unfolded=(cfg.width, 2, 2)),
            Row("upscale/up/bias", f"{scale}.conv1.bias"),
            Row("upscale/depthwise/kernel", f"{scale}.conv2.weight", unfolded=(1, 3, 3)),
            *norm("upscale/norm", f"{scale}.layernorm2d"),
        ),
        prefix="",
        buffers=r"attn_mask_probs|criterion\.empty_weight",
        tied={},
        zeros={"attn_mask_probs": (cfg.num_blocks,)},
        only_zeros={"attn_mask_probs": "the attention of its queries is masked, which is not computed"},
    )


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> eomt.Config:
    """The config of a config.json's object. Errors: `InputError` for what `eomt` does not compute."""
    s = settings.read({name: value for name, value in given.items() if name not in UNREAD}, DEFAULTS, {}, where)
    width = s["hidden_size"] * s["mlp_ratio"]
    return eomt.Config(
        image_size=s["image_size"],
        patch_size=s["patch_size"],
        channels=s["num_channels"],
        num_classes=len(settings.label_names(given, where)),
        width=s["hidden_size"],
        num_layers=s["num_hidden_layers"],
        num_heads=s["num_attention_heads"],
        mlp_width=(width * 2 // 3 + 7) // 8 * 8 if s["use_swiglu_ffn"] else width,
        gated=s["use_swiglu_ffn"],
        activation="silu" if s["use_swiglu_ffn"] else settings.activation(s["hidden_act"], "hidden_act", where),
        num_queries=s["num_queries"],
        num_blocks=s["num_blocks"],
        num_registers=s["num_register_tokens"],
        upscale_blocks=s["num_upscale_blocks"],
        layer_scale=s["layerscale_value"],
        norm_eps=s["layer_norm_eps"],
        dropout=s["hidden_dropout_prob"],
        attention_dropout=s["attention_dropout"],
        init_std=s["initializer_range"],
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, eomt.Config)


def write_config(cfg: eomt.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`."""
    return {
        "model_type": "eomt",
        "architectures": ["EomtForUniversalSegmentation"],
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "mlp_ratio": cfg.mlp_features // cfg.width,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": cfg.channels,
        "num_queries": cfg.num_queries,
        "num_blocks": cfg.num_blocks,
        "num_register_tokens": cfg.num_registers,
        "num_upscale_blocks": cfg.upscale_blocks,
        "hidden_act": settings.THEIR_ACTIVATIONS[cfg.activation],
        "hidden_dropout_prob": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "initializer_range": cfg.init_std,
        "layer_norm_eps": cfg.norm_eps,
        "layerscale_value": cfg.layer_scale,
        "use_swiglu_ffn": cfg.gated,
        **settings.write_labels([f"LABEL_{i}" for i in range(cfg.num_classes)]),
    }


def task(folder: Path, cfg: eomt.Config) -> Segmentation:
    """Semantic segmentation with the folder's labels, of images resized to the model's size."""
    size = cfg.image_size
    preprocess = Preprocess(size=size, resize=size, **IMAGENET)
    return Segmentation(labels=hub.labels(folder), background=False, preprocess=preprocess)
