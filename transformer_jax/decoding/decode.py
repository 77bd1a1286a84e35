"""Text from a model: one token after the other over a cache, in one compiled loop.

    prompts = decode.left_pad([[5, 1, 4], [2]])
    cache = gpt.init_cache(cfg, batch=2, length=3 + sampling.max_new_tokens - 1)
    generate = jax.jit(decode.generate, static_argnames=("model", "cfg", "sampling"))
    made = generate(gpt, params, cfg, cache, prompts, decode.row_keys(key, 2), sampling)
    made.tokens_BM[b, : made.length_B[b]]                                   # row b's continuation

`model` is whatever has a family's three functions, which is all that this file knows of a model:

    for_decoding(params, cfg)                               -> the parameters as the other two read them fastest
    prefill(params, cfg, tokens_BT, cache, start_B=start_B) -> (logits_BV after each row's last token, cache)
    decode_step(params, cfg, token_B, cache)                -> (logits_BV after that token, cache)

and cache.num_slots is how many tokens it holds.

A step chooses the next token from the logits in Transformers' order: repetition penalty, temperature, top-k, top-p,
min-p, then a draw; each is a function below. Temperature 0 is greedy: the penalty, then the largest logit.

Draws. Row b draws its i-th token with fold_in(keys_B[b], i). What a row says therefore follows from its own key, prompt
and `Sampling`: neither the other rows, nor its place in the batch, nor the padding matter (up to the rounding of matrix
products, which may differ with the batch's size).

Context. A model with max_length positions reads max_length tokens and predicts one more; `fit` is the rule for prompts
and new tokens that are longer than that together.

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

    Errors: `InputError` on construction for a value outside its range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    """Divides the logits; 0: greedy."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that hold this share of the probability (Holtzman et al. 2019, section 3.1)."""
    min_p: float = 0.0
    """Draw from the tokens at least this likely, as a share of the likeliest one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens already in the row, prompt included, are divided by it, negative ones multiplied
    (Keskar et al. 2019, section 4.1); 1: none."""
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
    """Prompts of different lengths as one array: row b's tokens end in the last column and begin in column start_B[b].

    tokens_BT   int32; 0 before a row's start
    start_B     int32
    """

    tokens_BT: Any
    start_B: Any


def left_pad(prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray, *, length: int | None = None) -> Prompts:
    """Prompts as NumPy arrays with `length` columns (None: the longest prompt's).

    A length rounded up by the caller lets prompts of many lengths share one compilation.
    Errors: `InputError` for no prompts, an empty one and one that is longer than `length`.
    """
    longest = max((len(p) for p in prompts), default=0)
    T = longest if length is None else length
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise InputError(f"prompt {number} is empty; there is nothing to continue, so give it at least one token")
    if longest > T or len(prompts) == 0:
        raise InputError(f"{len(prompts)} prompts, the longest of {longest} tokens, for {T} columns; cut or add some")
    tokens_BT = np.zeros((len(prompts), T), np.int32)
    for row, prompt in zip(tokens_BT, prompts, strict=True):
        row[T - len(prompt) :] = prompt
    return Prompts(tokens_BT, np.array([T - len(p) for p in prompts], np.int32))


def fit(prompt_length: int, max_new_tokens: int, max_length: int) -> tuple[int, int]:
    """(how many of a prompt's last tokens to read, how many new tokens to make) in a context of max_length positions.

    What fits stays as it is. A prompt gives way to the new tokens down to half of the context, by losing its beginning;
    then the new tokens end where the context does. The caller says so when either is less than was asked for.
    """
    kept = min(prompt_length, max(max_length + 1 - max_new_tokens, (max_length + 1) // 2))
    return kept, min(max_new_tokens, max_length + 1 - kept)


def row_keys(key: jax.Array, rows: int | Sequence[int]) -> jax.Array:
    """One key per row: fold_in(key, number), for rows 0 to `rows` - 1 or for the numbers given (examples of a set)."""
    numbers = jnp.arange(rows) if isinstance(rows, int) else jnp.asarray(rows)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


# ---------------------------------------------------------------------------------------------- Choosing the next token

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def choose(
    logits_BV: jax.Array, seen_BV: jax.Array | None, keys_B: jax.Array, step: Any, sampling: Sampling
) -> jax.Array:
    """The next token of each row, int32 [B]. seen_BV: the tokens already in each row (None: no repetition penalty)."""
    logits_BV = logits_BV.astype(jnp.float32)
    if seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # Their maximum first: however small the temperature, the largest stays 0 and no two of them become infinite.
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
    """Logits of the seen tokens, divided by the penalty where positive and multiplied where negative."""
    penalty = min(max(penalty, SMALLEST), LARGEST)
    penalized_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, jnp.minimum(penalized_BV, LARGEST), logits_BV)


def keep_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """-inf for all but the k largest logits; those equal to the k-th stay."""
    kth_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)


def keep_top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """-inf for every token that the likelier ones, with p of the probability among them, make superfluous.

    The likeliest token stays, and so do all that are as likely as the least likely one kept.
    """
    # The mass above a threshold falls as the threshold rises, and the bits of floats from 0 to 1 are ordered like the
    # floats: 30 halvings find the least threshold with less than p above it. To sort V numbers takes much longer.
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) // 2
        above_BV = probs_BV > jax.lax.bitcast_convert_type(middle_B1, jnp.float32)
        less_B1 = jnp.sum(jnp.where(above_BV, probs_BV, 0.0), axis=-1, keepdims=True) < p
        return jnp.where(less_B1, low_B1, middle_B1), jnp.where(less_B1, middle_B1, high_B1)

    one = np.float32(1.0).view(np.int32)  # nothing is above probability 1; -1, below all bits, is never tried
    bounds = jnp.full((len(probs_BV), 1), -1, jnp.int32), jnp.full((len(probs_BV), 1), one, jnp.int32)
    threshold_B1 = jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 30, halve, bounds)[1], jnp.float32)
    return jnp.where(probs_BV < threshold_B1, -jnp.inf, logits_BV)


def keep_min_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """-inf for tokens less than p times as likely as the likeliest one."""
    return jnp.where(logits_BV < jnp.max(logits_BV, axis=-1, keepdims=True) + math.log(p), -jnp.inf, logits_BV)


# ------------------------------------------------------------------------------------------------------------- The loop


@flax.struct.dataclass
class DecodeState:
    """Decoding after `step` tokens in each row.

    cache       the model's; it holds all tokens but the last
    tokens_BM   int32, the new tokens; a row's end is followed by the first of stop_ids, repeated
    length_B    int32, new tokens of each row, its stop token included
    stopped_B   which rows have ended
    seen_BV     which tokens each row holds, prompt included; None without a repetition penalty
    keys_B      the rows' keys
    step        int32, columns of tokens_BM made so far
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
    """All rows continued until each has stopped or has max_new_tokens: read tokens_BM and length_B of the result.

    Arguments: model, cfg and sampling are static; an empty cache for the B rows with at least T + M - 1 slots (the last
    token is never read back); one key per row (`row_keys`). Errors: `ValueError` for a cache with fewer.
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
    """`generate`'s tokens as they are made: int32 [B], one step after the other, until every row has stopped.

    Compiled here, once for all calls with the same shapes and static arguments. `chunk` steps run on the device between
    two looks at it.
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
    """The prompts read into the cache and the first token chosen."""
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
        ids_BT = jnp.where(padding_BT, V, tokens_BT)  # V is out of range, and dropped
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
    """The state after `until` tokens (an int, or a traced one), or earlier when every row has stopped."""

    def going(state: DecodeState) -> jax.Array:
        return (state.step < until) & ~state.stopped_B.all()

    def step(state: DecodeState) -> DecodeState:
        last_B = jax.lax.dynamic_index_in_dim(state.tokens_BM, state.step - 1, axis=1, keepdims=False)
        logits_BV, cache = model.decode_step(params, cfg, last_B, state.cache)
        return _append(replace(state, cache=cache), logits_BV, sampling)

    return jax.lax.while_loop(going, step, state)


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
    """What stands after a row's end: a token, so that every column can be read and decoded."""
    return sampling.stop_ids[0] if sampling.stop_ids else 0


_STATIC = ("model", "cfg", "sampling")
_start = partial(jax.jit, static_argnames=_STATIC)(start)
_advance = partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")(advance)
