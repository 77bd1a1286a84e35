"""Shared by the tasks of encoders: checks of the model, the forward pass of its trunk, its FLOPs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax import models
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.nn import params as params_lib


def check_head(model_cfg: Any, head: str, *, labels: int | None = None) -> None:
    """Refuses a model that is not an encoder with this head.

    Args:
      model_cfg: the model.
      head: a name in `model_cfg.heads`.
      labels: the number of labels that the task needs; None: any.

    Raises:
      InputError: not an encoder, no such head, or another number of labels.
    """
    heads = getattr(model_cfg, "heads", None)
    if heads is None:
        family = type(model_cfg).__module__.rpartition(".")[2]
        raise InputError(f"the model is of the family {family}, and this task needs an encoder: bert.Config")
    if head not in heads:
        raise InputError(f"the model's heads are {', '.join(heads) or 'none'}; this task needs --model.heads {head}")
    if labels is not None and model_cfg.num_labels != labels:
        raise InputError(
            f"model.num_labels is {model_cfg.num_labels}, but the task has {labels} labels; "
            f"give --model.num-labels {labels}"
        )


def check_ids(model_cfg: Any, tokenizer: Any) -> None:
    """Refuses a tokenizer with more ids than the model.

    Args:
      model_cfg: the model.
      tokenizer: the tokenizer of the data.

    Raises:
      InputError: `tokenizer.vocab_size` is larger than `model_cfg.vocab_size`.
    """
    if tokenizer.vocab_size > model_cfg.vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, but model.vocab_size is "
            f"{model_cfg.vocab_size}; give --model.vocab-size {tokenizer.vocab_size} or more"
        )


def hidden(params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> jax.Array:
    """The hidden states [B, T, D] of a batch.

    Args:
      params: the parameters of the encoder.
      model_cfg: the encoder.
      batch: "tokens" and any of "types", "lengths" and "segments". "types" is ignored by models with one type, such as
        RoBERTa.
      key: switches dropout on; None: no dropout.
    """
    types_BT = batch.get("types") if model_cfg.num_types > 1 else None
    return models.family(model_cfg).apply(
        params,
        model_cfg,
        batch["tokens"],
        types=types_BT,
        lengths=batch.get("lengths"),
        segments=batch.get("segments"),
        key=key,
    )


def mask(batch: Mapping[str, jax.Array]) -> jax.Array:
    """float32 [B, T]: 1 for a token, 0 for padding.

    Args:
      batch: as for `hidden`.
    """
    tokens_BT = batch["tokens"]
    if "segments" in batch:
        return (batch["segments"] > 0).astype(jnp.float32)
    if "lengths" in batch:
        return (jnp.arange(tokens_BT.shape[1]) < batch["lengths"][:, None]).astype(jnp.float32)
    return jnp.ones(tokens_BT.shape, jnp.float32)


def flops(model_cfg: Any, length: int) -> float:
    """The FLOPs of the trunk in a training step on one row, forward and backward (PaLM, appendix B).

    Per token: 6 per parameter that multiplies it (once per layer for shared parameters), and 12 L N H T for attention,
    as if every layer were global. Heads over few positions or few labels are not counted.

    Args:
      model_cfg: the encoder.
      length: T, tokens of the row.
    """
    times = model_cfg.num_layers if getattr(model_cfg, "share_layers", False) else 1

    def tokens(path: str) -> float:
        return times * length if path.startswith("blocks/") else length * (path == "embed/project/kernel")

    scores = config.attention_width(model_cfg) * length**2
    return params_lib.flops(models.family(model_cfg).declare(model_cfg), tokens, scores)


def image_flops(model_cfg: Any) -> float:
    """The FLOPs of a Vision Transformer's trunk in a training step on one image, forward and backward.

    Per token: 6 per parameter of the blocks' kernels, and 12 L N H T for attention. Per patch: 6 per parameter of the
    patch kernel (PaLM, appendix B). By this convention, the tokens that the last layer skips (`vit.apply`) are counted.

    Args:
      model_cfg: the model.
    """
    T, patches = model_cfg.max_length, model_cfg.num_patches

    def tokens(path: str) -> float:
        return T if path.startswith("blocks/") else patches * (path == "embed/patch/kernel")

    scores = config.attention_width(model_cfg) * T * T
    return params_lib.flops(models.family(model_cfg).declare(model_cfg), tokens, scores)
