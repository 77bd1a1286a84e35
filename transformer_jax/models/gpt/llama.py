"""Llama (Touvron et al. 2023, Dubey et al. 2024), Qwen 2 and 3, and Mistral as Hugging Face stores them.

Their kernels are torch's `Linear`, stored [out, in]. The rotary pairing in this format is ours, column i with
i + H/2, so the query and key kernels need no permutation. Qwen 2 has biases on query, key and value; Qwen 3 normalises
each head's queries and keys instead, and its heads have a width of their own. Mistral (Jiang et al. 2023) sees a window
of tokens; where it is null the model is a Llama, and exported as one.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table
from transformer_jax.models import gpt
from transformer_jax.nn.positions import RopeScaling
from transformer_jax.tasks.causal_lm import CausalLM, Sample

ARCHITECTURES = {
    **{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"},
    "mistral": "MistralForCausalLM",
}
MODEL_TYPES = tuple(ARCHITECTURES)

TABLE = Table(
    rows=(
        Row("embed/token/embedding", "model.embed_tokens.weight"),
        Row("blocks/attention_norm/scale", "model.layers.{}.input_layernorm.weight"),
        Row("blocks/attention/query/kernel", "model.layers.{}.self_attn.q_proj.weight", transpose=True),
        Row("blocks/attention/query/bias", "model.layers.{}.self_attn.q_proj.bias"),
        Row("blocks/attention/query_norm/scale", "model.layers.{}.self_attn.q_norm.weight"),
        Row("blocks/attention/key/kernel", "model.layers.{}.self_attn.k_proj.weight", transpose=True),
        Row("blocks/attention/key/bias", "model.layers.{}.self_attn.k_proj.bias"),
        Row("blocks/attention/key_norm/scale", "model.layers.{}.self_attn.k_norm.weight"),
        Row("blocks/attention/value/kernel", "model.layers.{}.self_attn.v_proj.weight", transpose=True),
        Row("blocks/attention/value/bias", "model.layers.{}.self_attn.v_proj.bias"),
        Row("blocks/attention/out/kernel", "model.layers.{}.self_attn.o_proj.weight", transpose=True),
        Row("blocks/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight"),
        Row("blocks/mlp/up/kernel", "model.layers.{}.mlp.up_proj.weight", transpose=True),
        Row("blocks/mlp/gate/kernel", "model.layers.{}.mlp.gate_proj.weight", transpose=True),
        Row("blocks/mlp/down/kernel", "model.layers.{}.mlp.down_proj.weight", transpose=True),
        Row("final_norm/scale", "model.norm.weight"),
        Row("head/kernel", "lm_head.weight", transpose=True),
    ),
    prefix="model.",
    buffers=r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",  # written by old versions
    tied={"lm_head.weight": "model.embed_tokens.weight"},
)

DEFAULTS = {
    "vocab_size": settings.REQUIRED,
    "hidden_size": settings.REQUIRED,
    "intermediate_size": settings.REQUIRED,
    "num_hidden_layers": settings.REQUIRED,
    "num_attention_heads": settings.REQUIRED,
    "num_key_value_heads": settings.OPTIONAL,
    "head_dim": settings.OPTIONAL,
    "hidden_act": "silu",
    "max_position_embeddings": settings.REQUIRED,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "rope_scaling": {},
    "rope_parameters": {},
    "tie_word_embeddings": False,
}
# Sliding windows are off without `use_sliding_window`; the two sizes are then not read.
NEUTRAL = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_sliding_window": False,
}
UNUSED_WINDOW = ("sliding_window", "max_window_layers")
# What config.json may leave out.
HEAD_DIMS = {"qwen3": 128}
MISTRAL_WINDOW = 4096


def table(cfg: gpt.Config) -> Table:
    """Where each leaf lives: `mapping` leaves out the rows of what `cfg` has not."""
    return TABLE


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> gpt.Config:
    """The config of a config.json's object, without a look at the tensors' names. Errors: `InputError` for what `gpt`
    does not compute."""
    model_type, known = given["model_type"], dict(given)
    layer_types = known.pop("layer_types", None) or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise InputError(f'{where}: "layer_types" is {layer_types!r}; only "full_attention" is supported')
    window = 0
    if model_type == "mistral":
        window = known.pop("sliding_window", MISTRAL_WINDOW) or 0
        if type(window) is not int or window < 0:
            raise InputError(f'{where}: "sliding_window" is {window!r}; it must be a positive integer, or null')
    if model_type in ("qwen2", "qwen3"):
        known = {name: value for name, value in known.items() if name not in UNUSED_WINDOW}
    s = settings.read(known, DEFAULTS, NEUTRAL, where)
    of_type = {"qkv_bias": model_type == "qwen2", "qk_norm": model_type == "qwen3", "window": window}
    return gpt.Config(**read_fields(s, where, HEAD_DIMS.get(model_type)) | of_type)


def read_fields(s: Mapping[str, Any], where: str, head_dim: int | None) -> dict[str, Any]:
    """The fields of `gpt.Config` that Gemma has as well.

    Args:
      s: config.json's settings, of `settings.read`.
      where: names the file in messages.
      head_dim: the width of a head where config.json states none; None: by the model's width.
    """
    theta, scaling = _read_rope(s, where)
    return {
        "vocab_size": s["vocab_size"],
        "max_length": s["max_position_embeddings"],
        "width": s["hidden_size"],
        "num_layers": s["num_hidden_layers"],
        "num_heads": s["num_attention_heads"],
        "num_kv_heads": s["num_key_value_heads"],
        "head_dim": s["head_dim"] or head_dim,
        "mlp_width": s["intermediate_size"],
        "activation": settings.activation(s["hidden_act"], "hidden_act", where),
        "gated": True,
        "norm": "rms",
        "norm_eps": s["rms_norm_eps"],
        "norm_order": "pre",
        "bias": False,
        "qkv_bias": False,
        "position": "rotary",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": s["tie_word_embeddings"],
        "dropout": 0.0,
        "init_std": s["initializer_range"],
    }


def _read_rope(s: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from `rope_parameters` (Transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    if s["rope_parameters"] and s["rope_scaling"]:
        raise InputError(f'{where} has both "rope_parameters" and "rope_scaling", which may disagree; remove one')
    setting = "rope_parameters" if s["rope_parameters"] else "rope_scaling"
    rope = {"rope_theta": s["rope_theta"], **s[setting]}
    theta = rope.pop("rope_theta")
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f'{where}: "{setting}" turns only a part of each head; only whole heads are supported')
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if kind not in ("default", "llama3") or set(rope) != set(names if kind == "llama3" else ()):
        raise InputError(
            f'{where}: "{setting}" is {s[setting]!r}; supported are the types "default", without settings, and '
            f'"llama3", with {", ".join(names)}'
        )
    for name, value in {"rope_theta": theta, **rope}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f'{where}: "{name}" is {value!r}; it must be a positive number')
    if kind == "default":
        return float(theta), None
    factor, low, high, length = (rope[name] for name in names)
    return float(theta), RopeScaling(float(factor), float(low), float(high), int(length))


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, gpt.Config) and cfg.position == "rotary" and not cfg.scale_embedding


def write_config(cfg: gpt.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that these models have, in the form that all versions read."""
    model_type = "qwen3" if cfg.qk_norm else "qwen2" if cfg.has_qkv_bias else "mistral" if cfg.window else "llama"
    # Transformers derives a head width that is absent, but not one that is null, except where its default is a number.
    head_dim = cfg.head_width if model_type in HEAD_DIMS else cfg.head_dim
    stated = {"head_dim": head_dim} if head_dim is not None else {}
    stated |= {"sliding_window": cfg.window} if model_type == "mistral" else {}
    activation = settings.THEIR_ACTIVATIONS[cfg.activation]
    return write_fields(cfg, model_type, ARCHITECTURES[model_type]) | {"hidden_act": activation} | stated


def write_fields(cfg: gpt.Config, model_type: str, architecture: str) -> dict[str, Any]:
    """The settings that `read_fields` reads, without the head's width and the activation.

    Args:
      cfg: the model's config.
      model_type: the "model_type" of config.json.
      architecture: the first of its "architectures".
    """
    scaling = cfg.rope_scaling
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_features,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.kv_heads,
        "max_position_embeddings": cfg.max_length,
        "rms_norm_eps": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        },
        "tie_word_embeddings": cfg.tie_embeddings,
    }


def task(folder: Path, cfg: gpt.Config) -> CausalLM:
    """Language modelling, with the tokens that end a text and how the others are chosen as the folder states them."""
    return CausalLM(stop_ids=hub.stop_ids(folder), defaults=Sample(**hub.sampling(folder)))
