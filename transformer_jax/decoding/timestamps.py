"""Whisper's rules for times among the tokens of a text (Radford et al. 2022, section 4.5), and the segments they mark.

A text begins with a time of at most one second. Times come in pairs, the end of a segment and the beginning of the
next, and never decrease. If times together are more probable than any single other token, the next token is a time.

B batch, W beams, M new tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SECONDS = 0.02  # the step between time tokens
LATEST_FIRST = 50  # the latest first time: one second


class Segment(NamedTuple):
    """A part of a text.

    Attributes:
      start: in seconds from the start of the window.
      end: in seconds from the start of the window.
      tokens: the tokens of the text, without times.
    """

    start: float
    end: float
    tokens: list[int]


def constrain(logits_VBW: jax.Array, tokens_BWM: jax.Array, step: Any, *, first: int, text_end: int) -> jax.Array:
    """The logits with -inf for the tokens that the rules forbid.

    Args:
      logits_VBW: the logits of the next token of each beam.
      tokens_BWM: the tokens of each beam.
      step: how many of them there are.
      first: the id of <|0.00|>. The id before it means that a text has no times, and is forbidden.
      text_end: the id of the end of text; smaller ids are text.
    """
    ids_V11 = jnp.arange(len(logits_VBW))[:, None, None]

    def is_time(back: int) -> jax.Array:
        token_BW = jax.lax.dynamic_index_in_dim(tokens_BWM, jnp.maximum(step - back, 0), axis=-1, keepdims=False)
        return token_BW >= first

    last_BW = is_time(1) & (step >= 1)
    before_BW = is_time(2) | (step < 2)
    times_BWM = jnp.where(jnp.arange(tokens_BWM.shape[-1]) < step, tokens_BWM, -1)
    latest_BW = times_BWM.max(-1)  # times do not decrease
    lowest_BW = jnp.where(latest_BW < first, first, jnp.where(last_BW & ~before_BW, latest_BW, latest_BW + 1))
    times_V11 = ids_V11 >= first
    forbidden = ids_V11 == first - 1
    forbidden |= times_V11 & ((last_BW & before_BW) | (ids_V11 < lowest_BW))
    forbidden |= (ids_V11 < text_end) & last_BW & ~before_BW
    forbidden |= (step == 0) & (~times_V11 | (ids_V11 > first + LATEST_FIRST))
    logits_VBW = jnp.where(forbidden, -jnp.inf, logits_VBW)
    total_BW = jax.nn.logsumexp(jnp.where(times_V11, logits_VBW, -jnp.inf), axis=0)
    other_BW = jnp.max(jnp.where(times_V11, -jnp.inf, logits_VBW), axis=0)
    return jnp.where((total_BW > other_BW) & ~times_V11, -jnp.inf, logits_VBW)


def segments(tokens: Sequence[int], *, first: int, seconds: float) -> tuple[list[Segment], float]:
    """The segments of a window, and the second of the window at which the next one begins.

    What follows the last pair of times is unfinished: the next window begins there. Without a pair the window is done.

    Args:
      tokens: new tokens without the end of text.
      first: the id of <|0.00|>.
      seconds: the length of the sound in the window, in seconds.
    """
    times = [token >= first for token in tokens]
    ends = [i for i in range(1, len(tokens)) if times[i - 1] and times[i]]
    done = times[-2:] == [False, True]  # the sound after the last time holds no speech
    if not ends:
        latest = max((token for token in tokens if token >= first), default=first)
        end = (latest - first) * SECONDS if latest > first else seconds
        return [Segment(0.0, end, [token for token in tokens if token < first])], seconds
    parts = [tokens[start:end] for start, end in zip([0, *ends], [*ends, len(tokens)], strict=True)]
    parts = parts if done else parts[:-1]
    made = [
        Segment((part[0] - first) * SECONDS, (part[-1] - first) * SECONDS, [t for t in part if t < first])
        for part in parts
        if part[0] >= first
    ]
    end = (tokens[ends[-1] - 1] - first) * SECONDS
    return made, seconds if done or end <= 0 else end
