"""Shared by the tasks of encoder-decoders: the shapes of an example, the loss, the FLOPs.

An example is a row of packed pairs: `source, source_segments [S]`, `inputs, targets, target_segments, weights [T]`.
Pair k of a row is segment k on both sides, segment 0 is padding, and the weight of each target token is 1.

Letters: B rows, S source length, T target length, D width, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transformer_jax import losses, models
from transformer_jax.contracts import Sums
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib


def example(source_length: int, target_length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of one example.

    Args:
      source_length: S, source tokens in a row.
      target_length: T, target tokens in a row.
    """
    sides = {"source": source_length, "source_segments": source_length}
    sides |= {name: target_length for name in ("inputs", "targets", "target_segments")}
    shapes = {name: jax.ShapeDtypeStruct((length,), np.int32) for name, length in sides.items()}
    return shapes | {"weights": jax.ShapeDtypeStruct((target_length,), np.float32)}


def check(model_cfg: Any) -> None:
    """Refuses a model that is not an encoder-decoder with the ids of the first and the last token.

    Args:
      model_cfg: the model.

    Raises:
      InputError: it is not an encoder-decoder, or an id is missing.
    """
    family = models.family(model_cfg)
    if not hasattr(family, "encode"):
        name = family.__name__.rpartition(".")[2]
        raise InputError(f"the model is of the family {name}, and this task needs an encoder-decoder: seq2seq.Config")
    for name, what in {"eos_id": "ends a text", "decoder_start_id": "the decoder reads first"}.items():
        if getattr(model_cfg, name) is None:
            raise InputError(f"model.{name} is None; give the id of the token that {what}")


def loss(
    params: Any,
    model_cfg: Any,
    batch: Mapping[str, jax.Array],
    *,
    label_smoothing: float = 0.0,
    key: jax.Array | None = None,
) -> Any:
    """(sum, weight, {"loss": (sum, weight)}) in nats over the target tokens of a batch.

    Training minimises the first pair. The pair in the dict is the cross-entropy without smoothing.

    Args:
      params: the parameters of the encoder-decoder.
      model_cfg: the encoder-decoder.
      batch: see `example`.
      label_smoothing: the share of each target that is spread over the vocabulary.
      key: switches dropout on; None: no dropout.
    """
    family = models.family(model_cfg)
    x_BTD = _states(params, model_cfg, batch, key)
    total, weight, plain = losses.linear_cross_entropy(
        x_BTD,
        family.head(params, model_cfg),
        batch["targets"],
        batch["weights"],
        bias_V=family.head_bias(params, model_cfg),
        label_smoothing=label_smoothing,
    )
    return total, weight, {"loss": (plain, weight)}


def logits_and_states(
    params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
) -> tuple[Any, Any, Any]:
    """(logits [B, T, V] of the target tokens, the decoder's states [B, T, D], the weights [B, T]).

    Args:
      params: the parameters of the encoder-decoder.
      model_cfg: the encoder-decoder.
      batch: see `example`.
      key: switches dropout on; None: no dropout.
    """
    family = models.family(model_cfg)
    x_BTD = _states(params, model_cfg, batch, key)
    made = losses.logits(x_BTD, family.head(params, model_cfg), family.head_bias(params, model_cfg))
    return made, x_BTD, batch["weights"]


def _states(params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    return models.family(model_cfg).hidden(
        params,
        model_cfg,
        batch["source"],
        batch["inputs"],
        source_segments=batch["source_segments"],
        target_segments=batch["target_segments"],
        key=key,
    )


def report(sums: Sums) -> dict[str, float]:
    """Nats and perplexity per target token, end-of-text tokens included; both depend on the tokenizer.

    Args:
      sums: the sums of `loss`, over a whole set.
    """
    nats = sums["loss"][0] / sums["loss"][1]
    return {"loss_nats_per_token": nats, "perplexity_per_token": math.exp(min(nats, 700.0))}


def flops(model_cfg: Any, source_length: int, target_length: int) -> float:
    """The FLOPs of a training step on one example, forward and backward, by PaLM's convention (appendix B).

    6 per token and parameter that multiplies it, and 12 N H per layer and pair of a query and a key, masked pairs
    included. The encoder's kernels and the decoder's cross keys and values multiply source tokens; the decoder's other
    kernels and the head multiply target tokens.

    Args:
      model_cfg: the encoder-decoder.
      source_length: S, source tokens in a row.
      target_length: T, target tokens in a row.
    """
    S, T = source_length, target_length
    of_source = ("encoder/", "decoder/blocks/cross/key/", "decoder/blocks/cross/value/")

    def tokens(path: str) -> float:
        return 0.0 if "/blocks/" not in path else S if path.startswith(of_source) else T

    pairs = model_cfg.num_layers * S * S + model_cfg.decoder_layers * (T * T + T * S)
    scores = model_cfg.num_heads * model_cfg.head_width * pairs
    head = 6.0 * model_cfg.width * model_cfg.vocab_size * T
    return head + params_lib.flops(models.family(model_cfg).declare(model_cfg), tokens, scores)
