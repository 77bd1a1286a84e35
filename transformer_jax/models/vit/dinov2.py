"""DINOv2 (Oquab et al. 2023; with registers: Darcet et al. 2024) as Hugging Face stores it: `model_type: dinov2` and
`dinov2_with_registers`.

Each sublayer's output is multiplied by a learned LayerScale. The MLP of the largest model is a SwiGLU, with the gate
and what it multiplies as one Linear. Images may have any size that the patches divide: positions are interpolated in
each call, with antialiasing in the model with registers only. A classifier's head reads the class token beside the mean
of the patches. The mask token, which only pre-training reads, is ignored, and written as zeros.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.data.preprocess import sides
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, fused, norm
from transformer_jax.models import vit
from transformer_jax.models.vit import vit as vit_format

STEMS = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
MODEL_TYPES = tuple(STEMS)
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGE_PROCESSORS = {"Bit": {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, **CLIP}}

SHARED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels")
DEFAULTS = {name: vit_format.DEFAULTS[name] for name in SHARED} | {
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
REGISTERS = {"num_register_tokens": 4}
# Of stochastic depth, whose rate is one for all layers there; of backbones; and of the mask token.
UNREAD = (
    *("drop_path_rate", "apply_layernorm", "reshape_hidden_states", "stage_names", "out_features", "out_indices"),
    "use_mask_token",
)


task = vit_format.task


def table(cfg: vit.Config) -> Table:
    """The table of this format."""
    trunk = "dinov2_with_registers" if cfg.num_registers else "dinov2"
    layer = f"{trunk}.encoder.layer.{{}}"
    gated = (
        *fused("blocks/mlp/gate", f"{layer}.mlp.weights_in", 0, 2),
        *fused("blocks/mlp/up", f"{layer}.mlp.weights_in", 1, 2),
        *dense("blocks/mlp/down", f"{layer}.mlp.weights_out"),
    )
    plain = (*dense("blocks/mlp/up", f"{layer}.mlp.fc1"), *dense("blocks/mlp/down", f"{layer}.mlp.fc2"))
    mask_token = "embeddings.mask_token"
    return Table(
        rows=(
            *vit_format.common_rows(cfg, trunk),
            *norm("blocks/attention_norm", f"{layer}.norm1"),
            Row("blocks/attention/layer_scale/scale", f"{layer}.layer_scale1.lambda1"),
            *norm("blocks/mlp_norm", f"{layer}.norm2"),
            Row("blocks/mlp/layer_scale/scale", f"{layer}.layer_scale2.lambda1"),
            *(gated if cfg.gated else plain),
            *dense("head", "classifier"),
        ),
        prefix=f"{trunk}.",
        buffers=rf"({trunk}\.)?{mask_token}",
        tied={},
        zeros={f"{trunk}.{mask_token}": (1, cfg.width)},
    )


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> vit.Config:
    """The config of a config.json's object and the tensors' names.

    Raises:
      InputError: for what `vit` does not compute.
    """
    has_registers = given["model_type"] == "dinov2_with_registers"
    known = {name: value for name, value in given.items() if name not in UNREAD}
    sizes = vit_format.read_sizes(given, where)
    known |= {name: max(sides(value)) for name, value in sizes.items()}
    s = settings.read(known, DEFAULTS | (REGISTERS if has_registers else {}), {}, where)
    if s["layerscale_value"] == 0.0:
        raise InputError(f'{where}: "layerscale_value" is 0.0; it must be above 0')
    classifies, gated = "classifier.weight" in names, s["use_swiglu_ffn"]
    num_classes = len(settings.label_names(given, where)) if classifies else 0
    fields = (
        vit_format.common_fields(s, num_classes, where)
        | sizes
        | {
            "mlp_width": _mlp_width(s["hidden_size"], s["mlp_ratio"], gated),
            "gated": gated,
            "layer_scale": s["layerscale_value"],
            "num_registers": s.get("num_register_tokens", 0),
            "pool": "both" if classifies else "class",
            "interpolate": "antialiased" if has_registers else "bicubic",
        }
    )
    return vit.Config(**fields | ({"activation": "silu"} if gated else {}))


def _mlp_width(width: int, ratio: int, gated: bool) -> int:
    """Of a SwiGLU two thirds, rounded up to a multiple of 8."""
    return (width * ratio * 2 // 3 + 7) // 8 * 8 if gated else width * ratio


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, vit.Config) and vit_format.plain(cfg) and cfg.interpolate != "never"


def write_config(cfg: vit.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that DINOv2 has."""
    model_type = "dinov2_with_registers" if cfg.num_registers else "dinov2"
    architecture = STEMS[model_type] + ("ForImageClassification" if cfg.num_classes else "Model")
    ratios = (n for n in range(1, 65) if _mlp_width(cfg.width, n, cfg.gated) == cfg.mlp_features)
    written = vit_format.write_fields(cfg, model_type, architecture)
    return {name: value for name, value in written.items() if name != "intermediate_size"} | {
        "mlp_ratio": next(ratios, 4),
        "layerscale_value": cfg.layer_scale,
        "use_swiglu_ffn": cfg.gated,
        **({"hidden_act": "gelu"} if cfg.gated and cfg.activation == "silu" else {}),  # not read then
        **({"num_register_tokens": cfg.num_registers} if cfg.num_registers else {"use_mask_token": True}),
    }
