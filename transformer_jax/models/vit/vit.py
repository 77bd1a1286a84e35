"""ViT (Dosovitskiy et al. 2021) as Hugging Face stores it: `model_type: vit`; and what DeiT has in common with it.

A checkpoint's head is read from its tensors: `classifier`, or the pooler of a ViTModel, which is the paper's tanh
layer from pre-training, or none. A pooler beside a classifier is read by nothing.
"""

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import vit
from transformer_jax.tasks.image_classification import ImageClassification

MODEL_TYPES = ("vit",)
IMAGE_PROCESSORS = {"ViT": {"size": 224, "resample": 2, "do_center_crop": False}}

DEFAULTS = {
    "hidden_size": settings.REQUIRED,
    "num_hidden_layers": settings.REQUIRED,
    "num_attention_heads": settings.REQUIRED,
    "intermediate_size": settings.REQUIRED,
    "image_size": settings.REQUIRED,
    "patch_size": settings.REQUIRED,
    "num_channels": settings.REQUIRED,
    "pooler_output_size": settings.OPTIONAL,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
}
NEUTRAL = {"pooler_act": "tanh"}
UNREAD = ("encoder_stride",)  # only the decoder of masked image modelling reads it


def table(cfg: vit.Config) -> Table:
    """Where each leaf lives."""
    return make_table(cfg, "vit", dense("head", "classifier"))


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> vit.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `vit` does not
    compute."""
    return vit.Config(**read_fields(given, names, where, classifies="classifier.weight" in names))


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, vit.Config) and plain(cfg) and cfg.interpolate == "never"


def write_config(cfg: vit.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that ViT has."""
    return write_fields(cfg, "vit", "ViTForImageClassification" if cfg.num_classes else "ViTModel")


def plain(cfg: vit.Config) -> bool:
    """Whether `cfg` has neither distillation nor a detector."""
    return cfg.distillation == "none" and cfg.detector == "none"


# ---------------------------------------------------------------------------------------------------- with DeiT's

# Names of modules in Transformers 5, which adapters of PEFT use; its checkpoints keep the old ones.
RENAMED_MODULES = (
    (r"\.encoder\.layer\.", ".layers."),
    (r"\.attention\.attention\.(query|key|value)$", lambda found: f".attention.{found[1][0]}_proj"),
    (r"\.attention\.output\.dense$", ".attention.o_proj"),
    (r"\.intermediate\.dense$", ".mlp.fc1"),
    (r"\.output\.dense$", ".mlp.fc2"),
)


def make_table(cfg: vit.Config, trunk: str, heads: tuple[Row, ...]) -> Table:
    """The rows of the trunk, of its pooler and of the heads.

    Args:
      cfg: the model's config.
      trunk: with which the trunk's tensors begin.
      heads: their rows.
    """
    return Table(
        rows=(
            *common_rows(cfg, trunk),
            *mlp_rows(f"{trunk}.encoder.layer.{{}}"),
            *dense("pre_logits", f"{trunk}.pooler.dense"),
            *heads,
        ),
        prefix=f"{trunk}.",
        buffers=rf"({trunk}\.)?"
        + ("embeddings.mask_token" if cfg.pre_logits else r"(embeddings\.mask_token|pooler\..*)"),
        tied={},
    )


def common_rows(cfg: vit.Config, trunk: str) -> tuple[Row, ...]:
    """The rows of the embeddings, the attention and the final norm, which DINOv2 has as well.

    Args:
      cfg: the model's config.
      trunk: with which the trunk's tensors begin.
    """
    side = cfg.patch_size
    projection, conv = f"{trunk}.embeddings.patch_embeddings.projection", (cfg.channels, side, side)
    return (
        Row("embed/patch/kernel", f"{projection}.weight", transpose=True, unfolded=conv),
        Row("embed/patch/bias", f"{projection}.bias"),
        Row("embed/class/embedding", f"{trunk}.embeddings.cls_token", one_row=True),
        Row("embed/distillation/embedding", f"{trunk}.embeddings.distillation_token", one_row=True),
        Row("embed/registers/embedding", f"{trunk}.embeddings.register_tokens", one_row=True),
        Row("embed/position/embedding", f"{trunk}.embeddings.position_embeddings", one_row=True),
        *attention_rows(f"{trunk}.encoder.layer.{{}}"),
        *norm("final_norm", f"{trunk}.layernorm"),
    )


def attention_rows(layer: str) -> tuple[Row, ...]:
    """The rows of a block's attention, which is below the tensor `layer`."""
    return (
        *dense("blocks/attention/query", f"{layer}.attention.attention.query"),
        *dense("blocks/attention/key", f"{layer}.attention.attention.key"),
        *dense("blocks/attention/value", f"{layer}.attention.attention.value"),
        *dense("blocks/attention/out", f"{layer}.attention.output.dense"),
    )


def mlp_rows(layer: str) -> tuple[Row, ...]:
    """The rows of a block's MLP and norms, which are below the tensor `layer`."""
    return (
        *norm("blocks/attention_norm", f"{layer}.layernorm_before"),
        *norm("blocks/mlp_norm", f"{layer}.layernorm_after"),
        *dense("blocks/mlp/up", f"{layer}.intermediate.dense"),
        *dense("blocks/mlp/down", f"{layer}.output.dense"),
    )


def read_fields(given: Mapping[str, Any], names: Collection[str], where: str, *, classifies: bool) -> dict[str, Any]:
    """The fields of `vit.Config` that both formats write in the same way.

    Args:
      given: config.json's object.
      names: the names of the checkpoint's tensors.
      where: names the file in messages.
      classifies: whether the architecture has a head.
    """
    known = {name: value for name, value in given.items() if name not in UNREAD}
    sizes = read_sizes(given, where)
    known |= {name: max(sides(value)) for name, value in sizes.items()}
    s = settings.read(known, DEFAULTS, NEUTRAL, where)
    pools = not classifies and any(name.endswith("pooler.dense.weight") for name in names)
    num_classes = len(settings.label_names(given, where)) if classifies else 0
    return (
        common_fields(s, num_classes, where)
        | sizes
        | {
            "mlp_width": s["intermediate_size"],
            "pre_logits": (s["pooler_output_size"] or s["hidden_size"]) if pools else 0,
        }
    )


def common_fields(s: Mapping[str, Any], num_classes: int, where: str) -> dict[str, Any]:
    """The fields that DINOv2 has as well.

    Args:
      s: config.json's settings, of `settings.read`.
      num_classes: the number of classes of the head; 0: none.
      where: names the file in messages.
    """
    return {
        "image_size": s["image_size"],
        "patch_size": s["patch_size"],
        "channels": s["num_channels"],
        "num_classes": num_classes,
        "width": s["hidden_size"],
        "num_layers": s["num_hidden_layers"],
        "num_heads": s["num_attention_heads"],
        "activation": settings.activation(s["hidden_act"], "hidden_act", where),
        "qkv_bias": s["qkv_bias"],
        "norm_eps": s["layer_norm_eps"],
        "dropout": s["hidden_dropout_prob"],
        "attention_dropout": s["attention_probs_dropout_prob"],
        "initializer": "normal",
        "init_std": s["initializer_range"],
    }


def read_sizes(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The image_size and patch_size of config.json: one number for a square; of an image otherwise rows and columns.

    Args:
      given: config.json's object.
      where: names the file in messages.

    Raises:
      InputError: a list that is not of two integers above 0, or patches that are no squares.
    """
    read = {}
    for name in ("image_size", "patch_size"):
        value = given.get(name)
        if isinstance(value, list):
            if len(value) != 2 or any(type(side) is not int or side < 1 for side in value):
                raise InputError(f'{where}: "{name}" is {value!r}; it must be a number, or rows and columns')
            if name == "patch_size" and value[0] != value[1]:
                raise InputError(f'{where}: "patch_size" is {value!r}; only square patches are supported')
            value = value[0] if value[0] == value[1] else tuple(value)
        if value is not None:
            read[name] = value
    return read


def write_fields(cfg: vit.Config, model_type: str, architecture: str) -> dict[str, Any]:
    """The settings that `read_fields` reads.

    Args:
      cfg: the model's config.
      model_type: the "model_type" of config.json.
      architecture: the first of its "architectures".
    """
    names = [f"LABEL_{i}" for i in range(cfg.num_classes)]
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_features,
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": cfg.channels,
        "qkv_bias": cfg.qkv_bias,
        "hidden_act": settings.THEIR_ACTIVATIONS[cfg.activation],
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout,
        "initializer_range": cfg.init_std,
        "layer_norm_eps": cfg.norm_eps,
        **({"pooler_output_size": cfg.pre_logits, "pooler_act": "tanh"} if cfg.pre_logits else {}),
        **(settings.write_labels(names) if names else {}),
    }


def task(folder: Path, cfg: vit.Config) -> ImageClassification | None:
    """Image classification with the folder's preprocessing; None for a multi-label model, which has no such task."""
    size = cfg.image_size
    preprocess = hub.preprocessing(folder) or Preprocess(size=size, resize=size)
    # Only the labels may be unsuitable: an unreadable preprocessing is an error.
    with contextlib.suppress(InputError):
        return ImageClassification(labels=hub.labels(folder), preprocess=preprocess)
    return None
