"""What every task of an encoder-decoder does with its model: the shapes of an example, the loss, the FLOPs.

An example is a row of pairs, packed: `source, source_segments [S]`, `inputs, targets, target_segments, weights [T]`.
Pair k of a row is segment k on both sides, segment 0 is padding, and a weight is 1 on every token to predict.

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
    """The shapes and dtypes of one example."""
    sides = {"source": source_length, "source_segments": source_length}
    sides |= {name: target_length for name in ("inputs", "targets", "target_segments")}
    shapes = {name: jax.ShapeDtypeStruct((length,), np.int32) for name, length in sides.items()}
    return shapes | {"weights": jax.ShapeDtypeStruct((target_length,), np.float32)}


def check(model_cfg: Any) -> None:
    """Errors: `InputError` where the model is no encoder-decoder, or does not say how a text begins and ends."""
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
    """(sum, weight, {"loss": (sum, weight)}) in nats over the batch's target tokens; dropout only with a key.

    The first pair is what training minimises, the one in the dict plain cross-entropy without smoothing.
    """
    family = models.family(model_cfg)
    x_BTD = family.hidden(
        params,
        model_cfg,
        batch["source"],
        batch["inputs"],
        source_segments=batch["source_segments"],
        target_segments=batch["target_segments"],
        key=key,
    )
    total, weight, plain = losses.linear_cross_entropy(
        x_BTD,
        family.head(params, model_cfg),
        batch["targets"],
        batch["weights"],
        bias_V=family.head_bias(params, model_cfg),
        label_smoothing=label_smoothing,
    )
    return total, weight, {"loss": (plain, weight)}


def report(sums: Sums) -> dict[str, float]:
    """Nats and perplexity per target token, the end of each text among them; both depend on the tokenizer."""
    nats = sums["loss"][0] / sums["loss"][1]
    return {"loss_nats_per_token": nats, "perplexity_per_token": math.exp(min(nats, 700.0))}


def flops(model_cfg: Any, source_length: int, target_length: int) -> float:
    """FLOPs of one training step on one example of S source and T target slots, forward and backward.

    PaLM's convention (appendix B): 6 for each parameter that multiplies a token and each token that it multiplies, and
    12 N H a layer for each pair of a query and a key, the masked ones included. The encoder's kernels and the decoder's
    cross keys and values multiply source tokens, the decoder's other kernels and the head multiply target tokens.
    """
    S, T = source_length, target_length
    of_source = ("encoder/", "decoder/blocks/cross/key/", "decoder/blocks/cross/value/")

    def tokens(path: str) -> float:
        return 0.0 if "/blocks/" not in path else S if path.startswith(of_source) else T

    pairs = model_cfg.num_layers * S * S + model_cfg.decoder_layers * (T * T + T * S)
    scores = model_cfg.num_heads * model_cfg.head_width * pairs
    head = 6.0 * model_cfg.width * model_cfg.vocab_size * T
    return head + params_lib.flops(models.family(model_cfg).declare(model_cfg), tokens, scores)
