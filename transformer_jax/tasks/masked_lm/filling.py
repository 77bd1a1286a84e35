"""Filling in the masks of a text, and scoring a text by its pseudo-log-likelihood.

Letters: B rows, T length, P predictions of a row, K answers, V vocabulary.
"""

import functools
import itertools
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import models, sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.tasks.masked_lm import masked

ANY_MASK = re.compile(r"<mask>|\[MASK\]", re.IGNORECASE)  # the usual spellings of the mask token
PREDICT_ROWS = 32  # rows in a batch of `pseudo_log_likelihood`


def fill(params: Any, model_cfg: Any, tokenizer: Any, known: masked.Vocabulary, text: str, top: int) -> dict[str, Any]:
    """The tokens for each mask of a text, or its score, as `MaskedLM.predict` returns them.

    Args:
      params: the parameters of the encoder.
      model_cfg: the encoder.
      tokenizer: the tokenizer of the encoder.
      known: `masked.vocabulary(tokenizer)`.
      text: with or without masks.
      top: tokens for each mask.

    Raises:
      InputError: no token, masks too far apart, or the mask of another tokenizer.
    """
    ids = _around_masks(tokenizer.encode_prompt(text), known.mask, model_cfg.max_length - 2)
    if not len(ids):
        raise InputError("it has no token; give some text")
    at = np.flatnonzero(ids == known.mask) + 1
    if not len(at):
        if other := ANY_MASK.search(text):
            spelled = tokenizer.decode([known.mask]).strip()
            raise InputError(f"{other[0]} is not this tokenizer's mask token; write {spelled}")
        (log_probs,) = pseudo_log_likelihood(params, model_cfg, tokenizer, [text])
        return {"text": text, "masks": [], "pseudo_perplexity_per_token": math.exp(-float(log_probs.mean()))}
    tokens_BT, lengths_B = _rows([ids], 1, known, model_cfg.max_length)
    positions_BP = np.zeros((1, -(-len(at) // 8) * 8), np.int32)  # padded, so that few shapes are compiled
    positions_BP[0, : len(at)] = at
    log_probs_BPK, ids_BPK = jax.device_get(_likeliest(params, model_cfg, tokens_BT, lengths_B, positions_BP, top))
    masks = [
        [{"token": tokenizer.decode([i]), "probability": math.exp(p)} for i, p in zip(*answers, strict=True)]
        for answers in zip(ids_BPK[0, : len(at)].tolist(), log_probs_BPK[0, : len(at)].tolist(), strict=True)
    ]
    return {"text": text, "masks": masks, "pseudo_perplexity_per_token": None}


def pseudo_log_likelihood(params: Any, model_cfg: Any, tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """The log-probability float32 [n] of each token of each text, given all its other tokens (Salazar et al. 2020).

    Only that token is masked, so a text of n tokens takes n forward passes (sections 2.1 and 2.2). The sum is the
    text's pseudo-log-likelihood; exp of minus the mean is its pseudo-perplexity. Texts longer than the model's
    positions are truncated; stderr reports how many.

    Args:
      params: the parameters of the encoder.
      model_cfg: the encoder.
      tokenizer: the tokenizer of the encoder.
      texts: to score.

    Raises:
      InputError: a text without a token.
    """
    known = masked.vocabulary(tokenizer)
    encoded = _truncated(tokenizer.encode_batch(list(texts)), model_cfg.max_length - 2)
    for text, ids in zip(texts, encoded, strict=True):
        if not len(ids):
            raise InputError(f"text {text!r} has no token to score; give some text")

    asked = ((ids, at) for ids in encoded for at in range(len(ids)))
    scores: list[float] = []
    while group := list(itertools.islice(asked, PREDICT_ROWS)):
        tokens_BT, lengths_B = _rows([ids for ids, _ in group], PREDICT_ROWS, known, model_cfg.max_length)
        at_B, labels_B = np.zeros(PREDICT_ROWS, np.int32), np.zeros(PREDICT_ROWS, np.int32)
        for b, (ids, at) in enumerate(group):
            at_B[b], labels_B[b], tokens_BT[b, at + 1] = at + 1, ids[at], known.mask
        found_B = _scores(params, model_cfg, tokens_BT, lengths_B, at_B, labels_B)
        scores += np.asarray(found_B)[: len(group)].tolist()
    return np.split(np.array(scores, np.float32), np.cumsum([len(ids) for ids in encoded])[:-1])


# These are functions of the module, so that each shape is compiled once for all texts.
@functools.partial(jax.jit, static_argnames="model_cfg")
def _scores(
    params: Any, model_cfg: Any, tokens_BT: jax.Array, lengths_B: jax.Array, positions_B: jax.Array, labels_B: jax.Array
) -> jax.Array:
    """The log-probability of one token of each row, float32 [B]."""
    log_probs_B1V = log_probabilities(params, model_cfg, tokens_BT, lengths_B, positions_B[:, None])
    return jnp.take_along_axis(log_probs_B1V[:, 0], labels_B[:, None], axis=-1)[:, 0]


@functools.partial(jax.jit, static_argnames=("model_cfg", "top"))
def _likeliest(
    params: Any, model_cfg: Any, tokens_BT: jax.Array, lengths_B: jax.Array, positions_BP: jax.Array, top: int
) -> tuple[jax.Array, jax.Array]:
    """The K = `top` highest log-probabilities at each position, float32 [B, P, K], and their tokens."""
    return jax.lax.top_k(log_probabilities(params, model_cfg, tokens_BT, lengths_B, positions_BP), top)


def log_probabilities(
    params: Any, model_cfg: Any, tokens_BT: jax.Array, lengths_B: jax.Array, positions_BP: jax.Array
) -> jax.Array:
    """The log-probability of each token at some positions, float32 [B, P, V].

    Args:
      params: the parameters of the encoder.
      model_cfg: the encoder.
      tokens_BT: with masks.
      lengths_B: tokens of each row before its padding.
      positions_BP: the positions that are asked.
    """
    family = models.family(model_cfg)
    x_BTD = family.apply(params, model_cfg, tokens_BT, lengths=lengths_B)
    x_BPD = layers.gather(x_BTD, positions_BP, out=("batch", None, None))
    with sharding.replicated_length():
        return jax.nn.log_softmax(family.mlm(params, model_cfg, x_BPD))


def _truncated(encoded: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """The first `room` tokens of each text."""
    if over := sum(len(ids) > room for ids in encoded):
        print(f"{over} of {len(encoded)} texts truncated to the model's {room} tokens", file=sys.stderr)
    return [ids[:room] for ids in encoded]


def _around_masks(ids: np.ndarray, mask: int, room: int) -> np.ndarray:
    """At most `room` tokens: the first ones, or those around the masks."""
    at = np.flatnonzero(ids == mask)
    if not len(at) or len(ids) <= room:
        return _truncated([ids], room)[0]
    apart = int(at[-1] - at[0]) + 1
    if apart > room:
        raise InputError(f"its masks span {apart} tokens, but the model reads {room}; give a shorter text")
    (first,) = _truncated([ids], room)
    middle = int(np.clip(at[0] - (room - apart) // 2, 0, len(ids) - room))
    return first if at[-1] < room else ids[middle : middle + room]


def _rows(
    texts: Sequence[np.ndarray], rows: int, known: masked.Vocabulary, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [CLS] text [SEP] of a multiple of 32 tokens, their lengths); an unused row has length 1."""
    T = min(-(-(max(len(ids) for ids in texts) + 2) // 32) * 32, max_length)
    tokens_BT, lengths_B = np.zeros((rows, T), np.int32), np.ones(rows, np.int32)
    for b, ids in enumerate(texts):
        tokens_BT[b, 0], tokens_BT[b, 1 : len(ids) + 1], tokens_BT[b, len(ids) + 1] = known.cls, ids, known.sep
        lengths_B[b] = len(ids) + 2
    return tokens_BT, lengths_B
