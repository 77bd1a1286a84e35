"""CLIP (Radford et al. 2021) as Hugging Face stores it: `model_type: clip`; and what SigLIP has in common with it.

The text tower is a GPT read at its last token, which is the end of the text: our `lengths` name it. Transformers finds
it by `eos_token_id`, or, where an old config.json has the wrong id 2, as the highest id of the text.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense, norm
from transformer_jax.models import dual, gpt, vit
from transformer_jax.tasks.contrastive import Contrastive

MODEL_TYPES = ("clip",)
SIGNS = ("text_config", "vision_config", "projection_dim")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGE_PROCESSORS = {
    "CLIP": {
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
}
PARTS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")

# Of both towers; `initializer_factor` and `attention_dropout` are read and change nothing.
BOTH = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
INITIAL = {"initializer_range": 0.02, "initializer_factor": 1.0, "projection_dim": 512}
TEXT = {
    **{"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12},
    **{"num_attention_heads": 8, "max_position_embeddings": 77},
    **BOTH,
}
VISION = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    **{"num_channels": 3, "image_size": 224, "patch_size": 32},
    **BOTH,
}
WHOLE = {"projection_dim": 512, "logit_scale_init_value": 2.6592, "initializer_factor": 1.0}
NEUTRAL = {"dropout": 0.0}


def table(cfg: dual.Config) -> Table:
    """Where each leaf is stored."""
    return Table(
        rows=(
            *vision_rows(cfg),
            Row("left/embed/class/embedding", "vision_model.embeddings.class_embedding", squeezed=True),
            *norm("left/embed/norm", "vision_model.pre_layrnorm"),
            *text_rows(),
            *dense("left_projection", "visual_projection"),
            *dense("right_projection", "text_projection"),
            Row("logit_scale/scale", "logit_scale", squeezed=True),
        ),
        prefix="",
        buffers=r".*\.position_ids",
        tied={},
    )


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> dual.Config:
    """The config that config.json describes."""
    text, vision = (tower(given, kind, where) for kind in ("text", "vision"))
    whole = {name: value for name, value in given.items() if name not in PARTS}
    s = settings.read(whole, WHOLE, NEUTRAL, where)
    t = settings.read(text, TEXT | INITIAL, NEUTRAL, f"{where}: text_config")
    v = settings.read(vision, VISION | INITIAL, NEUTRAL, f"{where}: vision_config")
    return dual.Config(
        left=vit.Config(
            **vision_fields(v, f"{where}: vision_config"),
            pool="class",
            patch_bias=False,
            embedding_norm=True,
            init_std=v["initializer_range"],
        ),
        right=gpt.Config(
            **text_fields(t, f"{where}: text_config"), norm_eps=t["layer_norm_eps"], init_std=t["initializer_range"]
        ),
        width=s["projection_dim"],
        scale=math.exp(s["logit_scale_init_value"]),
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to write a config in."""
    return isinstance(cfg, dual.Config) and isinstance(cfg.right, gpt.Config)


def write_config(cfg: dual.Config) -> dict[str, Any]:
    """The object of a config.json that describes `cfg`."""
    text = write_text_config(cfg.right) | {"initializer_range": cfg.right.init_std, "projection_dim": cfg.width}
    vision = write_vision_config(cfg.left) | {"initializer_range": cfg.left.init_std, "projection_dim": cfg.width}
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": cfg.width,
        "logit_scale_init_value": math.log(cfg.scale),
        "text_config": text | {"model_type": "clip_text_model"},
        "vision_config": vision | {"model_type": "clip_vision_model"},
    }


def task(folder: Path, cfg: dual.Config) -> Contrastive:
    """Contrastive learning with the folder's preprocessing of pictures."""
    size = cfg.left.image_size
    standard = Preprocess(size=size, resize=size, fit="shortest", resample="bicubic", mean=tuple(MEAN), std=tuple(STD))
    return Contrastive(preprocess=hub.preprocessing(folder) or standard)


# ---------------------------------------------------------------------------------------------------- with SigLIP's


def tower(given: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """The settings of a tower; those of the older "text_config_dict" replace those of "text_config".

    Args:
      given: the object in config.json.
      kind: "text" or "vision".
      where: names the file in messages.
    """
    parts = [given.get(name) or {} for name in (f"{kind}_config", f"{kind}_config_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(f'{where}: "{kind}_config" is no object')
    return parts[0] | parts[1]


def vision_fields(s: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `vit.Config` that both formats read in the same way.

    Args:
      s: the settings of the vision tower.
      where: names the file in messages.
    """
    return {
        "image_size": s["image_size"],
        "patch_size": s["patch_size"],
        "channels": s["num_channels"],
        "num_classes": 0,
        "width": s["hidden_size"],
        "num_layers": s["num_hidden_layers"],
        "num_heads": s["num_attention_heads"],
        "mlp_width": s["intermediate_size"],
        "activation": settings.activation(s["hidden_act"], "hidden_act", where),
        "norm_eps": s["layer_norm_eps"],
        "attention_dropout": s["attention_dropout"],
        "initializer": "normal",
    }


def text_fields(s: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a text tower's Config that both formats read in the same way.

    Args:
      s: the settings of the text tower.
      where: names the file in messages.
    """
    return {
        "vocab_size": s["vocab_size"],
        "max_length": s["max_position_embeddings"],
        "width": s["hidden_size"],
        "num_layers": s["num_hidden_layers"],
        "num_heads": s["num_attention_heads"],
        "mlp_width": s["intermediate_size"],
        "activation": settings.activation(s["hidden_act"], "hidden_act", where),
    }


def write_vision_config(cfg: vit.Config) -> dict[str, Any]:
    """The settings that `vision_fields` reads of `cfg`."""
    return {
        "image_size": cfg.image_size,
        "patch_size": cfg.patch_size,
        "num_channels": cfg.channels,
        **_write_blocks(cfg),
    }


def write_text_config(cfg: Any) -> dict[str, Any]:
    """The settings that `text_fields` reads of `cfg`, and the id of the end of a text that a tokenizer replaces."""
    return {
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_length,
        "eos_token_id": cfg.vocab_size - 1,
        **_write_blocks(cfg),
    }


def _write_blocks(cfg: Any) -> dict[str, Any]:
    return {
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_features,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "hidden_act": settings.THEIR_ACTIVATIONS[cfg.activation],
        "layer_norm_eps": cfg.norm_eps,
        "attention_dropout": cfg.attention_dropout,
    }


def vision_rows(cfg: dual.Config) -> tuple[Row, ...]:
    """The rows of the vision tower that both formats have.

    Args:
      cfg: the model's config.
    """
    at, side = "vision_model.embeddings", cfg.left.patch_size
    conv = (cfg.left.channels, side, side)
    return (
        Row("left/embed/patch/kernel", f"{at}.patch_embedding.weight", transpose=True, unfolded=conv),
        Row("left/embed/patch/bias", f"{at}.patch_embedding.bias"),
        Row("left/embed/position/embedding", f"{at}.position_embedding.weight"),
        *_block_rows("left", "vision_model"),
        *norm("left/final_norm", "vision_model.post_layernorm"),
    )


def text_rows() -> tuple[Row, ...]:
    """The rows of the text tower that both formats have."""
    return (
        Row("right/embed/token/embedding", "text_model.embeddings.token_embedding.weight"),
        Row("right/embed/position/embedding", "text_model.embeddings.position_embedding.weight"),
        *_block_rows("right", "text_model"),
        *norm("right/final_norm", "text_model.final_layer_norm"),
    )


def _block_rows(side: str, model: str) -> tuple[Row, ...]:
    layer, blocks = f"{model}.encoder.layers.{{}}", f"{side}/blocks"
    return (
        *norm(f"{blocks}/attention_norm", f"{layer}.layer_norm1"),
        *dense(f"{blocks}/attention/query", f"{layer}.self_attn.q_proj"),
        *dense(f"{blocks}/attention/key", f"{layer}.self_attn.k_proj"),
        *dense(f"{blocks}/attention/value", f"{layer}.self_attn.v_proj"),
        *dense(f"{blocks}/attention/out", f"{layer}.self_attn.out_proj"),
        *norm(f"{blocks}/mlp_norm", f"{layer}.layer_norm2"),
        *dense(f"{blocks}/mlp/up", f"{layer}.mlp.fc1"),
        *dense(f"{blocks}/mlp/down", f"{layer}.mlp.fc2"),
    )
