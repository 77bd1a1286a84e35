"""SigLIP (Zhai et al. 2023) as Hugging Face stores it: `model_type: siglip`.

The vision tower ends with attention pooling, whose query, key and value kernels are one tensor. The text tower is an
encoder without a norm after the embeddings. It reads texts that are padded to their full length, padding included, and
its last column is the text.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import bert, dual, vit
from transformer_jax.models.dual import clip
from transformer_jax.tasks.contrastive import Contrastive

MODEL_TYPES = ("siglip",)
IMAGE_PROCESSORS = {"Siglip": {"size": 224, "resample": 3, "do_center_crop": False}}

OWN = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TEXT = clip.TEXT | SIZES | OWN | {"vocab_size": 32000, "max_position_embeddings": 64}
VISION = clip.VISION | SIZES | OWN | {"patch_size": 16}
NEUTRAL = {"vision_use_head": True, "dropout": 0.0}


def table(cfg: dual.Config) -> Table:
    """Where each leaf is stored."""
    head = "vision_model.head"
    fused = [
        row
        for part, name in enumerate(("query", "key", "value"))
        for row in (
            Row(f"left/pool/attention/{name}/kernel", f"{head}.attention.in_proj_weight", True, part, 3),
            Row(f"left/pool/attention/{name}/bias", f"{head}.attention.in_proj_bias", False, part, 3),
        )
    ]
    return Table(
        rows=(
            *clip.vision_rows(cfg),
            Row("left/pool/probe/embedding", f"{head}.probe", one_row=True),
            *fused,
            *dense("left/pool/attention/out", f"{head}.attention.out_proj"),
            *norm("left/pool/norm", f"{head}.layernorm"),
            *dense("left/pool/mlp/up", f"{head}.mlp.fc1"),
            *dense("left/pool/mlp/down", f"{head}.mlp.fc2"),
            *clip.text_rows(),
            *dense("right_projection", "text_model.head"),
            Row("logit_scale/scale", "logit_scale"),
            Row("logit_bias/bias", "logit_bias"),
        ),
        prefix="",
        buffers=r".*\.position_ids",
        tied={},
    )


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> dual.Config:
    """The config that config.json describes."""
    text, vision = (clip.tower(given, kind, where) for kind in ("text", "vision"))
    projected = text.pop("projection_size", None)
    settings.read(
        {name: value for name, value in given.items() if name not in clip.PARTS},
        {"initializer_factor": 1.0},
        NEUTRAL,
        where,
    )
    t = settings.read(text, TEXT, NEUTRAL, f"{where}: text_config")
    v = settings.read(vision, VISION, NEUTRAL, f"{where}: vision_config")
    return dual.Config(
        left=vit.Config(**clip.vision_fields(v, f"{where}: vision_config"), pool="map"),
        right=bert.Config(
            **clip.text_fields(t, f"{where}: text_config"),
            norm_eps=t["layer_norm_eps"],
            norm_order="pre",
            embedding_norm=False,
            num_types=0,
            pooling="padded",
            heads=(),
            dropout=0.0,
        ),
        width=settings.read({"size": projected}, {"size": t["hidden_size"]}, {}, where)["size"],
        projected=("right",),
        projection_bias=True,
        logit_bias=True,
        scale=10.0,
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to write a config in."""
    return isinstance(cfg, dual.Config) and isinstance(cfg.right, bert.Config) and cfg.right.pooling == "padded"


def write_config(cfg: dual.Config) -> dict[str, Any]:
    """The object of a config.json that describes `cfg`."""
    text = clip.write_text_config(cfg.right) | {"projection_size": cfg.width, "attention_dropout": 0.0}
    return {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": text | {"model_type": "siglip_text_model"},
        "vision_config": clip.write_vision_config(cfg.left) | {"model_type": "siglip_vision_model"},
    }


def task(folder: Path, cfg: dual.Config) -> Contrastive:
    """Contrastive learning by the sigmoid loss, with the folder's preprocessing of pictures."""
    size = cfg.left.image_size
    standard = dataclasses.replace(Preprocess(resample="bicubic"), size=size, resize=size)
    return Contrastive(objective="sigmoid", max_scale=0.0, preprocess=hub.preprocessing(folder) or standard)
