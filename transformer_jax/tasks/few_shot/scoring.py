"""Log-likelihoods of continuations, in batches of similar lengths.

    (score,) = scoring.continuations(gpt, params, cfg, [(context_ids, continuation_ids)])
    score.log_likelihood, score.is_greedy

B rows of a batch, T tokens of a row.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import losses

COLUMNS = 32  # rows are padded to a multiple of this, so that few shapes are compiled


class Score(NamedTuple):
    """A continuation in a model.

    Attributes:
      log_likelihood: the log likelihood of all its tokens after the context, in nats.
      is_greedy: whether each of them is the likeliest.
    """

    log_likelihood: float
    is_greedy: bool


def continuations(
    family: Any,
    params: Any,
    cfg: Any,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """The score of each continuation after its context, in the order given.

    A context that is too long for the model's positions loses its beginning, as in EleutherAI's harness.

    Args:
      family: the family of a language model.
      params: its parameter tree.
      cfg: its Config.
      asked: (ids of the context, at least one; ids of the continuation, at least one).
      batch_size: B; the last batch is padded.
      progress: called with (done, total).
    """
    rows = [np.concatenate([context, continuation])[-cfg.max_length - 1 :] for context, continuation in asked]
    order = np.argsort([len(row) for row in rows], kind="stable")
    found: list[Score] = [Score(0.0, False)] * len(asked)
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        length = min(-(-(len(rows[numbers[-1]]) - 1) // COLUMNS) * COLUMNS, cfg.max_length)
        inputs_BT, targets_BT = np.zeros((2, batch_size, length), np.int32)
        counts_BT = np.zeros((batch_size, length), bool)
        for at, number in enumerate(numbers):
            row, size = rows[number], min(len(asked[number][1]), len(rows[number]) - 1)
            inputs_BT[at, : len(row) - 1], targets_BT[at, : len(row) - 1] = row[:-1], row[1:]
            counts_BT[at, len(row) - 1 - size : len(row) - 1] = True
        sums_B, greedy_B = jax.device_get(_scored(family, params, cfg, inputs_BT, targets_BT, counts_BT))
        for at, number in enumerate(numbers):
            found[number] = Score(float(sums_B[at]), bool(greedy_B[at]))
        if progress is not None:
            progress(first + len(numbers), len(order))
    return found


@functools.partial(jax.jit, static_argnames=("family", "cfg"))
def _scored(
    family: Any, params: Any, cfg: Any, inputs_BT: jax.Array, targets_BT: jax.Array, counts_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BTD = family.hidden(params, cfg, inputs_BT)
    logits_BTV = losses.logits(x_BTD, family.head(params, cfg), cap=getattr(cfg, "logit_cap", 0.0))
    log_likelihoods_BTV = jax.nn.log_softmax(logits_BTV)
    picked_BT = jnp.take_along_axis(log_likelihoods_BTV, targets_BT[..., None], axis=-1)[..., 0]
    is_best_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
    return jnp.sum(jnp.where(counts_BT, picked_BT, 0.0), axis=-1), jnp.all(is_best_BT | ~counts_BT, axis=-1)


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """(ids of the context, ids of the continuation), as EleutherAI's harness splits them.

    Spaces at the end of the context belong to the continuation, and both are encoded together, so that a token may
    begin with the space. An empty context is the beginning or the end of text.

    Args:
      tokenizer: encodes both.
      context: the prompt.
      continuation: after it.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if not context:
        return prefix(tokenizer), [int(id) for id in tokenizer.encode_prompt(continuation)]
    whole, begin = tokenizer.encode_prompt(context + continuation), tokenizer.encode_prompt(context)
    return [int(id) for id in begin], [int(id) for id in whole[len(begin) :]]


def prefix(tokenizer: Any) -> list[int]:
    """The token that stands for an empty context: the beginning of text, or the end of text, or 0.

    Args:
      tokenizer: has it.
    """
    named = (tokenizer.bos_id, getattr(tokenizer, "named_bos_id", None), tokenizer.eos_id, 0)
    return [next(id for id in named if id is not None)]
