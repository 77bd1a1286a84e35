"""What every task of an encoder does with its model: fit data to it, run its trunk, count its FLOPs."""

from collections.abc import Mapping
from typing import Any

import jax

from transformer_jax import models
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.nn import params as params_lib


def check_head(model_cfg: Any, head: str, *, labels: int | None = None) -> None:
    """Errors: `InputError` where the model is no encoder, lacks `head`, or has another number of labels."""
    heads = getattr(model_cfg, "heads", None)
    if heads is None:
        family = type(model_cfg).__module__.rpartition(".")[2]
        raise InputError(f"the model is of the family {family}, and this task needs an encoder: bert.Config")
    if head not in heads:
        raise InputError(f"the model's heads are {', '.join(heads) or 'none'}; this task needs --model.heads {head}")
    if labels is not None and model_cfg.num_labels != labels:
        raise InputError(
            f"model.num_labels is {model_cfg.num_labels}, but the task's labels ask for {labels}; "
            f"give --model.num-labels {labels}"
        )


def check_ids(model_cfg: Any, tokenizer: Any) -> None:
    """Errors: `InputError` where the tokenizer has ids that the model has not."""
    if tokenizer.vocab_size > model_cfg.vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, but model.vocab_size is "
            f"{model_cfg.vocab_size}; give --model.vocab-size {tokenizer.vocab_size} or more"
        )


def hidden(params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> jax.Array:
    """Hidden states [B, T, D] of a batch. Types are for models that tell two apart; RoBERTa has one for all tokens."""
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


def flops(model_cfg: Any, length: int) -> float:
    """FLOPs of one training step on a row of T tokens in the trunk, forward and backward (PaLM, appendix B).

    For each token 6 for each parameter that multiplies it, as often as layers share it, and 12 L N H T for attention,
    as if every layer were global. Heads over few positions or few labels are not counted.
    """
    times = model_cfg.num_layers if model_cfg.share_layers else 1

    def tokens(path: str) -> float:
        return times * length if path.startswith("blocks/") else length * (path == "embed/project/kernel")

    scores = config.attention_width(model_cfg) * length**2
    return params_lib.flops(models.family(model_cfg).declare(model_cfg), tokens, scores)
