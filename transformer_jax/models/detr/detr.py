"""DETR (Carion et al. 2020) as Hugging Face stores it: `model_type: detr`.

The backbone's tensors have the names of Transformers' ResNet, or, in the folders that were published first, timm's.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import detr
from transformer_jax.models.detr import resnets
from transformer_jax.models.vit.detection import MLP
from transformer_jax.tasks.detection import Detection

MODEL_TYPES = ("detr",)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
IMAGE_PROCESSORS = {
    "Detr": {
        **{"size": {"shortest_edge": 800, "longest_edge": 1333}, "max_size": 1333},
        **{"resample": 2, "do_center_crop": False, **IMAGENET},
    }
}
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 6), ("ffn_dim", 2048), ("attention_heads", 8))
}
DEFAULTS: dict[str, Any] = SIDES | {
    "num_channels": 3,
    "num_queries": 100,
    "d_model": 256,
    "activation_function": "relu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "init_std": 0.02,
}
NEUTRAL = {
    "position_embedding_type": "sine",
    "dilation": False,
    "is_encoder_decoder": True,
    "activation_dropout": 0.0,
    "scale_embedding": False,
}
# Of training, of a backbone's origin, and of sizes that are stated twice.
UNREAD = (
    *("auxiliary_loss", "class_cost", "bbox_cost", "giou_cost", "mask_loss_coefficient", "dice_loss_coefficient"),
    *("bbox_loss_coefficient", "giou_loss_coefficient", "eos_coefficient", "init_xavier_std", "classifier_dropout"),
    *("encoder_layerdrop", "decoder_layerdrop", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs"),
    *("backbone", "backbone_config", "max_position_embeddings", "num_hidden_layers"),
)
TIMM = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
BACKBONE = "model.backbone.conv_encoder.model"


def table(cfg: detr.Config) -> Table:
    """Where each leaf lives."""
    attention = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj"))
    parts = [("encoder", "attention", "self_attn"), ("decoder", "attention", "self_attn")]
    parts += [("decoder", "cross", "encoder_attn")]
    rows = [*resnets.rows(cfg, BACKBONE), *norm("decoder/final_norm", "model.decoder.layernorm")]
    for side, ours, theirs in parts:
        layer = f"model.{side}.layers.{{}}.{theirs}"
        rows += [row for a, b in attention for row in dense(f"{side}/blocks/{ours}/{a}", f"{layer}.{b}")]
        rows += norm(f"{side}/blocks/{ours}_norm", f"{layer}_layer_norm")
    for side in ("encoder", "decoder"):
        layer = f"model.{side}.layers.{{}}"
        rows += dense(f"{side}/blocks/mlp/up", f"{layer}.fc1") + dense(f"{side}/blocks/mlp/down", f"{layer}.fc2")
        rows += norm(f"{side}/blocks/mlp_norm", f"{layer}.final_layer_norm")
    project = "model.input_projection"
    channels = cfg.stage_widths[-1]
    rows += [
        Row("project/kernel", f"{project}.weight", transpose=True, unfolded=(channels, 1, 1)),
        Row("project/bias", f"{project}.bias"),
        Row("queries/embedding", "model.query_position_embeddings.weight"),
        *dense("class_head", "class_labels_classifier"),
        *(row for i, name in enumerate(MLP) for row in dense(f"box_head/{name}", f"bbox_predictor.layers.{i}")),
    ]
    return Table(rows=tuple(rows), prefix="", buffers=r".*\.num_batches_tracked", tied={}, old_names=_TIMM_NAMES)


def _stage(found: re.Match[str]) -> str:
    """The prefix of a block of Transformers' ResNet, for timm's."""
    return f"{BACKBONE}.encoder.stages.{int(found['stage']) - 1}.layers.{found['block']}"


def _inner(kind: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"{_stage(found)}.layer.{int(found['number']) - 1}.{kind}.{found['leaf']}"


_BEGIN, _LEAF = re.escape(BACKBONE) + r"\.", r"(?P<leaf>weight|bias|running_mean|running_var)"
_BLOCK = _BEGIN + r"layer(?P<stage>[1-9])\.(?P<block>\d+)\."
_TIMM_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    _BEGIN + r"conv1\.weight": f"{BACKBONE}.embedder.embedder.convolution.weight",
    _BEGIN + r"bn1\." + _LEAF: rf"{BACKBONE}.embedder.embedder.normalization.\g<leaf>",
    _BLOCK + r"conv(?P<number>[1-3])\." + _LEAF: _inner("convolution"),
    _BLOCK + r"bn(?P<number>[1-3])\." + _LEAF: _inner("normalization"),
    _BLOCK + r"downsample\.0\." + _LEAF: lambda found: f"{_stage(found)}.shortcut.convolution.{found['leaf']}",
    _BLOCK + r"downsample\.1\." + _LEAF: lambda found: f"{_stage(found)}.shortcut.normalization.{found['leaf']}",
}


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> detr.Config:
    """The config of a config.json's object. Errors: `InputError` for what `detr` does not compute."""
    s = settings.read({k: v for k, v in given.items() if k not in UNREAD}, DEFAULTS, NEUTRAL, where)
    for name in ("ffn_dim", "attention_heads"):
        if s[f"encoder_{name}"] != s[f"decoder_{name}"]:
            raise InputError(
                f'{where}: "encoder_{name}" is {s[f"encoder_{name}"]} and "decoder_{name}" {s[f"decoder_{name}"]}; '
                "only equal sizes are supported"
            )
    if "class_labels_classifier.weight" not in names or any(name.startswith("mask_head.") for name in names):
        raise InputError(
            f"{where}: only DetrForObjectDetection is read, which has class_labels_classifier and no masks"
        )
    return detr.Config(
        **_backbone(given, s["num_channels"], where),
        num_classes=len(settings.label_names(given, where)),
        width=s["d_model"],
        num_layers=s["encoder_layers"],
        num_decoder_layers=s["decoder_layers"],
        num_heads=s["encoder_attention_heads"],
        mlp_width=s["encoder_ffn_dim"],
        activation=settings.activation(s["activation_function"], "activation_function", where),
        num_queries=s["num_queries"],
        dropout=s["dropout"],
        attention_dropout=s["attention_dropout"],
        init_std=s["init_std"],
    )


def _backbone(given: Mapping[str, Any], channels: int, where: str) -> dict[str, Any]:
    """The fields of the backbone, which older files name ("backbone") and others describe ("backbone_config")."""
    found = given.get("backbone_config")
    if isinstance(found, Mapping) and found.get("model_type") == "resnet":
        return resnets.read_sizes(found, f'{where}: "backbone_config"')
    name = (found or {}).get("backbone") if isinstance(found, Mapping) else given.get("backbone")
    if name not in TIMM:
        raise InputError(f"{where}: the backbone is {name!r}; supported are a ResNet, {' and '.join(TIMM)}")
    return {"stage_depths": TIMM[name], "channels": channels}


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, detr.Config) and cfg.num_queries > 0


def write_config(cfg: detr.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`."""
    sizes = {"layers": (cfg.num_layers, cfg.num_decoder_layers), "ffn_dim": (cfg.mlp_features,) * 2}
    sizes["attention_heads"] = (cfg.num_heads,) * 2
    return {
        "model_type": "detr",
        "architectures": ["DetrForObjectDetection"],
        "backbone_config": {**resnets.write_sizes(cfg), "out_features": [f"stage{len(cfg.stage_depths)}"]},
        "use_timm_backbone": False,
        "num_channels": cfg.channels,
        "num_queries": cfg.num_queries,
        "d_model": cfg.width,
        **{f"{side}_{name}": pair[i] for i, side in enumerate(("encoder", "decoder")) for name, pair in sizes.items()},
        "activation_function": settings.THEIR_ACTIVATIONS[cfg.activation],
        "dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
        "init_std": cfg.init_std,
        "is_encoder_decoder": True,
        **settings.write_labels([f"LABEL_{i}" for i in range(cfg.num_classes)]),
    }


def task(folder: Path, cfg: detr.Config) -> Detection | None:
    """Detection with the folder's labels and preprocessing."""
    mean, std = (tuple(IMAGENET[name]) for name in ("image_mean", "image_std"))
    preprocess = hub.preprocessing(folder) or Preprocess(
        size=(800, 1333), resize=(800, 1333), fit="inside", mean=mean, std=std
    )
    return Detection(labels=settings.distinct(hub.labels(folder)), preprocess=preprocess)
