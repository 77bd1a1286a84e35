"""Sampling: one token after the other over a KV cache, in one compiled loop.

    prompts = decode.left_pad([[5, 1, 4], [2]])
    cache = gpt.init_cache(cfg, batch=2, length=3 + sampling.max_new_tokens - 1)
    generate = jax.jit(decode.generate, static_argnames=("model", "cfg", "sampling"))
    made = generate(gpt, params, cfg, cache, prompts, decode.row_keys(key, 2), sampling)
    made.tokens_BM[b, : made.length_B[b]]                                   # row b's continuation

`model` is any object with these three functions of a family:

    for_decoding(params, cfg)                               -> the parameters in the layout that decoding reads fastest
    prefill(params, cfg, tokens_BT, cache, start_B=start_B) -> (logits_BV after each row's last token, cache)
    decode_step(params, cfg, token_B, cache)                -> (logits_BV after that token, cache)

`cache.num_slots` is the number of tokens that the cache can hold.

A step applies to the logits, in Transformers' order: repetition penalty, temperature, top-k, top-p and min-p, and then
draws a token; each is a function below. Temperature 0 is greedy: the penalty, then the largest logit.

Draws. Row b draws its i-th token with fold_in(keys_B[b], i). Therefore a row depends only on its own key, prompt and
`Sampling`, and not on the other rows, its position in the batch or the padding, up to the rounding of matrix products,
which may differ with the batch size.

Context. A model with max_length positions reads max_length tokens and predicts one more; `fit` shortens a prompt and
the number of new tokens to that.

B batch, T prompt columns, M new tokens at most, S cache slots, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import InputError

# ------------------------------------------------------------------------------------------------------------- Settings


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when a row ends. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: a value is outside its range.
    """

    max_new_tokens: int = 128
    """The most tokens to generate per row."""
    temperature: float = 1.0
    """Divides the logits; 0: greedy."""
    top_k: int = 0
    """Draw from the k most probable tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with at least this probability (Holtzman et al. 2019, section 3.1)."""
    min_p: float = 0.0
    """Draw from the tokens with at least this share of the highest probability (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divides the positive logits and multiplies the negative ones of tokens that the row, its prompt included, has
    already (Keskar et al. 2019, section 4.1); 1: off."""
    stop_ids: tuple[int, ...] = ()
    """A row ends with the first of these, which is its last token."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
        for name, fine, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < math.inf, "0 (greedy) or positive"),
            ("top_k", self.top_k >= 0, "0 (off) or positive"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1 (off)"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "between 0 (off) and 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < math.inf, "positive; 1 is off"),
            ("stop_ids", all(i >= 0 for i in self.stop_ids), "token ids, 0 or more"),
        ):
            if not fine:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}")


# -------------------------------------------------------------------------------------------------------------- Prompts


@flax.struct.dataclass
class Prompts:
    """Prompts of different lengths, padded on the left to one array.

    Attributes:
      tokens_BT: int32; 0 before a row's start.
      start_B: int32, the column of each row's first token.
    """

    tokens_BT: Any
    start_B: Any


def left_pad(prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray, *, length: int | None = None) -> Prompts:
    """Prompts padded on the left, as NumPy arrays.

    Args:
      prompts: the token ids of each prompt, at least one.
      length: T, the number of columns; None: that of the longest prompt. A rounded length lets prompts of many lengths
        share one compilation.

    Raises:
      InputError: no prompts, an empty prompt, or one that is longer than `length`.
    """
    longest = max((len(p) for p in prompts), default=0)
    T = longest if length is None else length
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"prompt {number} is empty; there is nothing to continue, so give it at least one token")
    if longest > T or len(prompts) == 0:
        raise InputError(
            f"{len(prompts)} prompts, the longest of {longest} tokens, for {T} columns; shorten or add some"
        )
    tokens_BT = np.zeros((len(prompts), T), np.int32)
    for row, prompt in zip(tokens_BT, prompts, strict=True):
        row[T - len(prompt) :] = prompt
    return Prompts(tokens_BT, np.array([T - len(p) for p in prompts], np.int32))


def fit(prompt_length: int, max_new_tokens: int, max_length: int) -> tuple[int, int]:
    """(tokens of the prompt to read, tokens to generate), such that both fit into the context.

    If they do not fit, the beginning of the prompt is dropped, down to half of the context; then fewer tokens are
    generated. The caller reports either.

    Args:
      prompt_length: tokens of the prompt.
      max_new_tokens: tokens wanted.
      max_length: positions of the model.
    """
    kept = min(prompt_length, max(max_length + 1 - max_new_tokens, (max_length + 1) // 2))
    return kept, min(max_new_tokens, max_length + 1 - kept)


def row_keys(key: jax.Array, rows: int | Sequence[int]) -> jax.Array:
    """One key per row: fold_in(`key`, number), for numbers 0 to `rows` - 1, or for the numbers in `rows`."""
    numbers = jnp.arange(rows) if isinstance(rows, int) else jnp.asarray(rows)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


# ---------------------------------------------------------------------------------------------- Choosing the next token

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def choose(
    logits_BV: jax.Array, seen_BV: jax.Array | None, keys_B: jax.Array, step: Any, sampling: Sampling
) -> jax.Array:
    """The next token of each row, int32 [B].

    Args:
      logits_BV: float.
      seen_BV: bool, the tokens that each row has already; None: no repetition penalty.
      keys_B: one key per row.
      step: the number of the token, an int or an int32 scalar.
      sampling: the settings.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # Subtracting the maximum first keeps the largest logit at 0, so that a tiny temperature cannot make it infinite.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    logits_BV = logits_BV / min(max(sampling.temperature, SMALLEST), LARGEST)
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1.0:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    if sampling.min_p > 0.0:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def penalize_repetition(logits_BV: jax.Array, seen_BV: jax.Array, penalty: float) -> jax.Array:
    """The logits with those of seen tokens divided by the penalty where positive and multiplied by it where negative.

    Args:
      logits_BV: float32.
      seen_BV: bool.
      penalty: 1: off.
    """
    penalty = min(max(penalty, SMALLEST), LARGEST)
    penalized_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, jnp.minimum(penalized_BV, LARGEST), logits_BV)


def keep_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """`logits_BV` with -inf for all but the `k` largest; logits equal to the k-th are kept."""
    kth_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)


def keep_top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """`logits_BV` with -inf for all but the most probable tokens that have at least probability `p` together.

    The most probable token is always kept, and so are all tokens as probable as the least probable one that is kept.
    """
    # The probability mass above a threshold decreases with the threshold, and the bits of floats in [0, 1] are ordered
    # like the floats. So 30 bisections of the bits find the least threshold with less than p above it, which is much
    # faster than sorting V numbers.
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)

    def bisect(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) // 2
        above_BV = probs_BV > jax.lax.bitcast_convert_type(middle_B1, jnp.float32)
        less_B1 = jnp.sum(jnp.where(above_BV, probs_BV, 0.0), axis=-1, keepdims=True) < p
        return jnp.where(less_B1, low_B1, middle_B1), jnp.where(less_B1, middle_B1, high_B1)

    one = np.float32(1.0).view(
        np.int32
    )  # no probability is above 1.0; -1 is below the bits of every float and not tried
    bounds = jnp.full((len(probs_BV), 1), -1, jnp.int32), jnp.full((len(probs_BV), 1), one, jnp.int32)
    threshold_B1 = jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 30, bisect, bounds)[1], jnp.float32)
    return jnp.where(probs_BV < threshold_B1, -jnp.inf, logits_BV)


def keep_min_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """`logits_BV` with -inf for tokens less than `p` times as probable as the most probable one."""
    return jnp.where(logits_BV < jnp.max(logits_BV, axis=-1, keepdims=True) + math.log(p), -jnp.inf, logits_BV)


# ------------------------------------------------------------------------------------------------------------- The loop


@flax.struct.dataclass
class DecodeState:
    """Decoding after `step` tokens in each row.

    Attributes:
      cache: the model's; it holds all tokens but the last.
      tokens_BM: int32, the new tokens; after a row's end the first of stop_ids is repeated.
      length_B: int32, new tokens of each row, its stop token included.
      stopped_B: bool, whether the row has ended.
      seen_BV: bool, the tokens that the row has, prompt included; None without a repetition penalty.
      keys_B: one key per row.
      step: int32 scalar, columns of tokens_BM that are filled.
    """

    cache: Any
    tokens_BM: jax.Array
    length_B: jax.Array
    stopped_B: jax.Array
    seen_BV: jax.Array | None
    keys_B: jax.Array
    step: jax.Array


def generate(
    model: Any, params: Any, cfg: Any, cache: Any, prompts: Prompts, keys_B: jax.Array, sampling: Sampling
) -> DecodeState:
    """The state after every row has stopped or has max_new_tokens: its tokens_BM and length_B are the result.

    Args:
      model: a family, static.
      params: its parameter tree.
      cfg: its Config, static.
      cache: empty, for B rows, with at least T + M - 1 slots: the last token is never read.
      prompts: from `left_pad`.
      keys_B: one key per row (`row_keys`).
      sampling: the settings, static.

    Raises:
      ValueError: the cache has too few slots.
    """
    params = model.for_decoding(params, cfg)
    state = start(model, params, cfg, cache, prompts, keys_B, sampling)
    return advance(model, params, cfg, state, sampling.max_new_tokens, sampling)


def stream(
    model: Any,
    params: Any,
    cfg: Any,
    cache: Any,
    prompts: Prompts,
    keys_B: jax.Array,
    sampling: Sampling,
    *,
    chunk: int = 8,
) -> Iterator[np.ndarray]:
    """The tokens of `generate` as they are generated: int32 [B] per step, until every row has stopped.

    The steps are compiled once for all calls with the same shapes and static arguments.

    Args:
      model: as for `generate`.
      params: as for `generate`.
      cfg: as for `generate`.
      cache: as for `generate`.
      prompts: as for `generate`.
      keys_B: as for `generate`.
      sampling: as for `generate`.
      chunk: steps that the device runs before the host reads their tokens.
    """
    params = model.for_decoding(params, cfg)
    state = _start(model, params, cfg, cache, prompts, keys_B, sampling)
    shown = 0
    while True:
        made = int(state.step)
        yield from np.array(state.tokens_BM)[:, shown:made].T
        if made == sampling.max_new_tokens or bool(state.stopped_B.all()):
            return
        shown = made
        state = _advance(model, params, cfg, state, min(made + chunk, sampling.max_new_tokens), sampling)


def start(
    model: Any, params: Any, cfg: Any, cache: Any, prompts: Prompts, keys_B: jax.Array, sampling: Sampling
) -> DecodeState:
    """The state after the first token: the cache holds the prompts.

    Args:
      model: as for `generate`.
      params: from `model.for_decoding`.
      cfg: as for `generate`.
      cache: as for `generate`.
      prompts: as for `generate`.
      keys_B: as for `generate`.
      sampling: as for `generate`.

    Raises:
      ValueError: the cache has too few slots.
    """
    T, M, S = prompts.tokens_BT.shape[1], sampling.max_new_tokens, cache.num_slots
    if T + M - 1 > S:
        raise ValueError(
            f"prompts of {T} and {M} new tokens need {T + M - 1} slots; the cache has {S}: see sampling.fit"
        )
    tokens_BT, start_B = jnp.asarray(prompts.tokens_BT), jnp.asarray(prompts.start_B)
    logits_BV, cache = model.prefill(params, cfg, tokens_BT, cache, start_B=start_B)
    B, V = logits_BV.shape
    seen_BV = None
    if sampling.repetition_penalty != 1.0:
        padding_BT = jnp.arange(T) < start_B[:, None]
        ids_BT = jnp.where(padding_BT, V, tokens_BT)  # the scatter below drops V, which is out of range
        seen_BV = jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], ids_BT].set(True, mode="drop")
    state = DecodeState(
        cache=cache,
        tokens_BM=jnp.full((B, M), _filler(sampling), jnp.int32),
        length_B=jnp.zeros(B, jnp.int32),
        stopped_B=jnp.zeros(B, bool),
        seen_BV=seen_BV,
        keys_B=keys_B,
        step=jnp.zeros((), jnp.int32),
    )
    return _append(state, logits_BV, sampling)


def advance(model: Any, params: Any, cfg: Any, state: DecodeState, until: Any, sampling: Sampling) -> DecodeState:
    """The state after more tokens.

    Args:
      model: as for `generate`.
      params: from `model.for_decoding`.
      cfg: as for `generate`.
      state: from `start`.
      until: stop after this many new tokens, or earlier when every row has stopped; an int or an int32 scalar.
      sampling: as for `generate`.
    """

    def is_running(state: DecodeState) -> jax.Array:
        return (state.step < until) & ~state.stopped_B.all()

    def step(state: DecodeState) -> DecodeState:
        last_B = jax.lax.dynamic_index_in_dim(state.tokens_BM, state.step - 1, axis=1, keepdims=False)
        logits_BV, cache = model.decode_step(params, cfg, last_B, state.cache)
        return _append(replace(state, cache=cache), logits_BV, sampling)

    return jax.lax.while_loop(is_running, step, state)


def _append(state: DecodeState, logits_BV: jax.Array, sampling: Sampling) -> DecodeState:
    """The state with one more token chosen in the rows that have not stopped."""
    token_B = choose(logits_BV, state.seen_BV, state.keys_B, state.step, sampling)
    token_B = jnp.where(state.stopped_B, _filler(sampling), token_B)
    seen_BV = state.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
    return replace(
        state,
        tokens_BM=jax.lax.dynamic_update_slice(state.tokens_BM, token_B[:, None], (0, state.step)),
        length_B=state.length_B + ~state.stopped_B,
        stopped_B=state.stopped_B | jnp.isin(token_B, jnp.array(sampling.stop_ids, jnp.int32)),
        seen_BV=seen_BV,
        step=state.step + 1,
    )


def _filler(sampling: Sampling) -> int:
    """The token that fills the columns after a row's end, so that every column can be decoded."""
    return sampling.stop_ids[0] if sampling.stop_ids else 0


_STATIC = ("model", "cfg", "sampling")
_start = partial(jax.jit, static_argnames=_STATIC)(start)
_advance = partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")(advance)
