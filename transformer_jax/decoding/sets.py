"""Continuations of a whole set of prompts, in batches of similar lengths: `decode.generate` for more than one batch.

    made = sets.continuations(gpt, params, cfg, prompts, Sampling(32, temperature=0.0, stop_ids=(eos,)), key=key)
    tokenizer.decode(made[0])                                            # the first prompt's text

B rows of a batch, T prompt columns, M new tokens at most.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax.decoding import decode

COLUMNS = 32  # prompts are padded to a multiple of this, so that few shapes are compiled


def continuations(
    model: Any,
    params: Any,
    cfg: Any,
    prompts: Sequence[np.ndarray],
    sampling: decode.Sampling,
    *,
    key: jax.Array,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """The new tokens of each prompt, int32, without the stop token and all after it, in the order of `prompts`.

    Args:
      model: a family that decodes.
      params: its parameter tree.
      cfg: its Config.
      prompts: token ids; a prompt that leaves too few positions loses its beginning (`decode.fit`).
      sampling: how tokens are chosen, and when a row ends.
      key: the random key for the draws.
      batch_size: B. The last batch is padded with repeated rows.
      progress: called with (done, total) after each batch.
    """
    fitted = [ids[-decode.fit(len(ids), sampling.max_new_tokens, cfg.max_length)[0] :] for ids in prompts]
    order = np.argsort([len(ids) for ids in fitted], kind="stable")
    made: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        padded = np.resize(rows, batch_size)
        longest = max(len(fitted[row]) for row in rows)
        new = min(sampling.max_new_tokens, cfg.max_length + 1 - longest)
        columns = min(-(-longest // COLUMNS) * COLUMNS, cfg.max_length + 1 - new)
        state = _generate(
            model,
            params,
            cfg,
            model.init_cache(cfg, batch_size, columns + new - 1),
            decode.left_pad([fitted[row] for row in padded], length=columns),
            decode.row_keys(key, padded.tolist()),
            decode.replace(sampling, max_new_tokens=new),
        )
        tokens_BM, length_B = np.asarray(state.tokens_BM), np.asarray(state.length_B)
        for row, tokens, length in zip(rows, tokens_BM, length_B, strict=False):
            ended = length and int(tokens[length - 1]) in sampling.stop_ids
            made[row] = tokens[: length - 1] if ended else tokens[:length]
        if progress is not None:
            progress(min(first + batch_size, len(order)), len(order))
    return made


_generate = functools.partial(jax.jit, static_argnames=("model", "cfg", "sampling"))(decode.generate)
