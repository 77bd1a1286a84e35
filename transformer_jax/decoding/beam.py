"""Beam search: the sentences that a model finds likeliest, all rows at once, in one compiled loop.

    prompts = decode.left_pad([[0], [0]])                                 # for a translator: each row's start token
    settings = beam.Beam(width=4, max_new_tokens=64, stop_ids=(2,), nbest=2)
    search = jax.jit(beam.search, static_argnames=("model", "cfg", "settings"))
    found = search(gpt, params, cfg, gpt.init_cache(cfg, batch=2, length=1 + 64 - 1), prompts, settings)
    found.tokens_BKM[b, 0, : found.length_BK[b, 0]]                       # row b's best hypothesis

`model` has the three functions that `decode` asks for, and two more:

    repeat(cache, times)   -> each row `times` times, side by side: after the prompts are read, the rows of their beams
    reorder(cache, rows_R) -> the cache whose row r is row rows_R[r] of the given one, after every token

A row of `reorder` only ever continues one of the same prompt: what the beams of a prompt share, such as the keys and
values of its source sentence, need be there once and does not move.

The search. A prompt has `width` running beams, and apart from them `width` places for hypotheses that have ended. Each
step adds the log-softmax of the logits to the beams' sums and takes the best (1 + number of stop ids) * width
continuations, so that at least `width` of them go on running. One that ends, and is among the first `width`, competes
for a place by its score, the sum over the length penalty. The last step ends them all. These are the rules of
Transformers' `generate`, and so are the results; but where a prompt has fewer continuations than beams, the beams too
many are no beams here.

Rows are independent: neither the other rows nor the padding change what is found, up to the rounding of matrix
products. So a batch is spread over devices by `jax.shard_map` over its rows, and each device stops by itself.

Cost of a step beside the model's: three passes over the logits as the model leaves them, and a copy of the tokens' keys
and values, which `reorder` moves. Width 1 with early_stopping "first" is greedy decoding.

B batch, G groups, W beams of a group, R = B*G*W rows of the cache, C continuations, K hypotheses returned, T prompt
columns, M new tokens at most, H = T + M columns of history, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.decoding.decode import Prompts
from transformer_jax.errors import InputError

VOCABULARY_PART = 64  # tokens; see `largest`

# ------------------------------------------------------------------------------------------------------------- Settings

LengthConvention = Literal["hf", "gnmt"]
EarlyStopping = Literal["first", "bound", "never"]


@dataclass(frozen=True)
class Beam:
    """What is searched for, and when to stop. Frozen and hashable: a static argument of jit.

    Errors: `InputError` on construction for a value outside its range.
    """

    width: int = 4
    """Beams of a prompt, all groups together."""
    max_new_tokens: int = 128
    """M; a hypothesis with as many tokens ends there, with a stop token or without."""
    stop_ids: tuple[int, ...] = ()
    """A hypothesis ends with the first of these, which is its last token and counts in its length and score."""
    length_penalty: float = 1.0
    """alpha, the exponent below; 0: none; the larger, the longer the hypotheses."""
    length_convention: LengthConvention = "hf"
    """What a sum of n log-probabilities is divided by: "hf" n^alpha (Marian and Transformers; n counts new tokens, the
    stop token among them), "gnmt" ((5 + n) / 6)^alpha (Wu et al. 2016, equation 14; T5)."""
    early_stopping: EarlyStopping = "bound"
    """When a prompt is done. All wait for `width` hypotheses, and then
    "first"   stop (Transformers' early_stopping=True);
    "bound"   stop when the best running beam, ended at its present length, would score no better than the worst
              hypothesis (False, the default there): with alpha > 0 one that grows longer might have;
    "never"   stop when no running beam can score better at any length up to M ("never" there)."""
    nbest: int = 1
    """K, how many hypotheses to return; at most `width`."""
    min_new_tokens: int = 0
    """No stop token before this many others."""
    no_repeat_ngram: int = 0
    """No n-gram of this size twice in a row's prompt and continuation (Paulus et al. 2017, section 2.5); 0: off."""
    suppress_ids: tuple[int, ...] = ()
    """Tokens never chosen, such as Marian's padding."""
    forced_first: int | None = None
    """The first new token, at no cost to the score: mBART's language, BART's <s>."""
    forced_last: int | None = None
    """The M-th new token, at no cost to the score: BART's and Marian's </s>."""
    groups: int = 1
    """Diverse beam search (Vijayakumar et al. 2018): groups of width / groups beams, searched one after the other."""
    diversity_penalty: float = 0.0
    """Taken from a token's log-probability for each beam of an earlier group that has chosen it at the same step (their
    lambda, with Hamming diversity). Scores include it."""

    def __post_init__(self) -> None:
        for name in ("stop_ids", "suppress_ids"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))
        tokens = (*self.stop_ids, *self.suppress_ids)
        for name, fine, rule in (
            ("width", self.width >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("stop_ids", all(i >= 0 for i in self.stop_ids), "token ids, 0 or more"),
            ("length_penalty", math.isfinite(self.length_penalty), "a finite number; 0 is off"),
            ("length_convention", self.length_convention in get_args(LengthConvention), "hf or gnmt"),
            ("early_stopping", self.early_stopping in get_args(EarlyStopping), "first, bound or never"),
            ("nbest", 1 <= self.nbest <= self.width, f"between 1 and the width, {self.width}"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "0 (off) or positive"),
            ("suppress_ids", all(i >= 0 for i in tokens), "token ids, 0 or more"),
            ("forced_first", self.forced_first is None or self.forced_first >= 0, "None or a token id, 0 or more"),
            ("forced_last", self.forced_last is None or self.forced_last >= 0, "None or a token id, 0 or more"),
            ("groups", self.groups >= 1 and self.width % self.groups == 0, f"a divisor of the width, {self.width}"),
            ("diversity_penalty", 0.0 <= self.diversity_penalty < math.inf, "0 (off) or positive"),
        ):
            if not fine:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}")


def length_penalties(settings: Beam) -> np.ndarray:
    """What the score of a hypothesis of 1, 2, ..., M new tokens is divided by, float32 [M]."""
    lengths_M = np.arange(1, settings.max_new_tokens + 1)
    base_M = lengths_M if settings.length_convention == "hf" else (5 + lengths_M) / 6
    return (base_M**settings.length_penalty).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- The loop


@flax.struct.dataclass
class Beams:
    """The beams of every prompt; here those of one group, while the loop carries [B, G, ...].

    tokens_BWM         int32, running beams, best first; columns from `step` on hold nothing
    logprob_BW         float32, their sums of log-probabilities; -inf: no beam
    ended_tokens_BWM   int32, hypotheses that have ended, best first
    ended_length_BW    int32, their new tokens, the stop token among them
    ended_score_BW     float32, sum of log-probabilities over length penalty; -inf: no hypothesis yet
    open_B             bool: the search goes on; where not, the hypotheses stay as they are
    """

    tokens_BWM: jax.Array
    logprob_BW: jax.Array
    ended_tokens_BWM: jax.Array
    ended_length_BW: jax.Array
    ended_score_BW: jax.Array
    open_B: jax.Array


@flax.struct.dataclass
class BeamState:
    """The search after `step` tokens.

    cache   the model's, row (b * G + g) * W + w for beam w of group g of prompt b; it holds all tokens but the last
    beams   `Beams` [B, G, ...]
    step    int32
    """

    cache: Any
    beams: Beams
    step: jax.Array


@flax.struct.dataclass
class Hypotheses:
    """The best hypotheses of each prompt, best first.

    tokens_BKM   int32; a hypothesis' end is followed by the first of stop_ids, or 0, repeated
    score_BK     float32, sum of log-probabilities over length penalty; -inf: there was no other hypothesis
    length_BK    int32, new tokens, the stop token among them; 0 where there is no hypothesis
    step         int32, steps made: the model was called once less, after the prompts
    """

    tokens_BKM: jax.Array
    score_BK: jax.Array
    length_BK: jax.Array
    step: jax.Array


def search(
    model: Any, params: Any, cfg: Any, cache: Any, prompts: Prompts, settings: Beam, *, limit_B: jax.Array | None = None
) -> Hypotheses:
    """The nbest best hypotheses that the search finds for each prompt.

    Arguments: model, cfg and settings are static; an empty cache for the B rows with at least T + M - 1 slots (the last
    token is never read back), which becomes one of B * width rows here; limit_B, int32 from 1 to M: what row b has in
    place of max_new_tokens, so that rows with limits of their own share a program. Errors: `ValueError` for a cache
    with fewer slots and for token ids of the settings that are not in the vocabulary.
    """
    params = model.for_decoding(params, cfg)
    if limit_B is None:
        limit_B = jnp.full(len(prompts.start_B), settings.max_new_tokens, jnp.int32)
    state = start(model, params, cfg, cache, prompts, limit_B, settings)

    def going(state: BeamState) -> jax.Array:
        return (state.step < settings.max_new_tokens) & state.beams.open_B.any()

    def step(state: BeamState) -> BeamState:
        last_BGW = jax.lax.dynamic_index_in_dim(state.beams.tokens_BWM, state.step - 1, axis=-1, keepdims=False)
        logits_RV, cache = model.decode_step(params, cfg, last_BGW.reshape(-1), state.cache)
        logits_BGWV = logits_RV.reshape(*last_BGW.shape, -1)
        beams, rows_R = extend(state.beams, logits_BGWV, prompts, state.step, limit_B, settings)
        return BeamState(model.reorder(cache, rows_R), beams, state.step + 1)

    state = jax.lax.while_loop(going, step, state)
    return best(state, settings)


def start(
    model: Any, params: Any, cfg: Any, cache: Any, prompts: Prompts, limit_B: jax.Array, settings: Beam
) -> BeamState:
    """The prompts read into the cache, its rows repeated for the beams, and the first token of each beam chosen."""
    T, M, S = prompts.tokens_BT.shape[1], settings.max_new_tokens, cache.num_slots
    if T + M - 1 > S:
        raise ValueError(f"prompts of {T} and {M} new tokens need {T + M - 1} slots; the cache has {S}")
    tokens_BT, start_B = jnp.asarray(prompts.tokens_BT), jnp.asarray(prompts.start_B)
    logits_BV, cache = model.prefill(params, cfg, tokens_BT, cache, start_B=start_B)
    (B, V), G, W = logits_BV.shape, settings.groups, settings.width // settings.groups
    named = [i for i in (settings.forced_first, settings.forced_last) if i is not None]
    named += [*settings.stop_ids, *settings.suppress_ids]
    if max(named, default=0) >= V:
        raise ValueError(f"the settings name token {max(named)}; the vocabulary has {V} tokens")
    none_BGW, filler = jnp.full((B, G, W), -jnp.inf, jnp.float32), _filler(settings)
    beams = Beams(
        tokens_BWM=jnp.full((B, G, W, M), filler, jnp.int32),
        logprob_BW=none_BGW.at[:, :, 0].set(0.0),  # one beam, so that the first step makes no beam twice
        ended_tokens_BWM=jnp.full((B, G, W, M), filler, jnp.int32),
        ended_length_BW=jnp.zeros((B, G, W), jnp.int32),
        ended_score_BW=none_BGW,
        open_B=jnp.ones((B, G), bool),
    )
    logits_BGWV = jnp.broadcast_to(logits_BV[:, None, None], (B, G, W, V))
    beams, _ = extend(beams, logits_BGWV, prompts, 0, limit_B, settings)
    return BeamState(model.repeat(cache, settings.width), beams, jnp.ones((), jnp.int32))


def extend(
    beams: Beams, logits_BGWV: jax.Array, prompts: Prompts, step: Any, limit_B: jax.Array, settings: Beam
) -> tuple[Beams, jax.Array]:
    """The beams [B, G, ...] with token number `step`, and the cache's row that each running one continues, [R]."""
    B, G, W, V = logits_BGWV.shape
    logits_VBGW = jnp.moveaxis(logits_BGWV.astype(jnp.float32), -1, 0)
    norm_BGW = jax.nn.logsumexp(logits_VBGW, axis=0)  # log-probabilities are logits less this
    chosen_BV = jnp.zeros((B, V), jnp.float32)  # how many beams of the groups so far have chosen each token
    groups, parents = [], []
    for g in range(G):
        group = jax.tree.map(lambda x, g=g: x[:, g], beams)
        logits_VBW, norm_BW = logits_VBGW[:, :, g], norm_BGW[:, g]
        if G > 1:
            logits_VBW = logits_VBW - settings.diversity_penalty * chosen_BV.T[:, :, None]
        logits_VBW = constrain(logits_VBW, norm_BW, group.tokens_BWM, prompts, step, limit_B, settings)
        group, parent_BW = _extend_group(group, logits_VBW, norm_BW, step, limit_B, settings)
        token_BW = jax.lax.dynamic_index_in_dim(group.tokens_BWM, step, axis=-1, keepdims=False)
        chosen_BV = chosen_BV.at[jnp.arange(B)[:, None], token_BW].add(group.logprob_BW > -jnp.inf)
        groups.append(group)
        parents.append(parent_BW)
    beams = jax.tree.map(lambda *xs: jnp.stack(xs, axis=1), *groups)
    first_BG = jnp.arange(B * G).reshape(B, G) * W
    return beams, (first_BG[:, :, None] + jnp.stack(parents, axis=1)).reshape(-1)


def _extend_group(
    beams: Beams, logits_VBW: jax.Array, norm_BW: jax.Array, step: Any, limit_B: jax.Array, settings: Beam
) -> tuple[Beams, jax.Array]:
    """One step of one group: its beams with one more token, and which beam each running one continues."""
    V, B, W = logits_VBW.shape
    C = min((1 + len(settings.stop_ids)) * W, W * V)
    best_BWC, token_BWC = largest(logits_VBW, min(C, V))  # no more than these of one beam are among the C of all
    total_BWC = beams.logprob_BW[:, :, None] + (best_BWC - norm_BW[:, :, None])
    total_BC, index_BC = jax.lax.top_k(total_BWC.reshape(B, -1), C)
    parent_BC, token_BC = index_BC // total_BWC.shape[2], _take(token_BWC.reshape(B, -1), index_BC)
    tokens_BCM = _take(beams.tokens_BWM, parent_BC).at[:, :, step].set(token_BC)
    ended_BC = jnp.isin(token_BC, jnp.array(settings.stop_ids, jnp.int32)) | (step == limit_B - 1)[:, None]

    logprob_BW, kept_BW = jax.lax.top_k(jnp.where(ended_BC, -jnp.inf, total_BC), W)

    # The continuations behind the first W are there to keep W beams running: one that has ended is no hypothesis.
    penalty_M = jnp.asarray(length_penalties(settings))
    penalty = penalty_M[step]
    competes_BC = ended_BC & (jnp.arange(C) < W) & beams.open_B[:, None]
    score_BC = jnp.where(competes_BC, total_BC / penalty, -jnp.inf)
    score_BW, place_BW = jax.lax.top_k(jnp.concatenate([beams.ended_score_BW, score_BC], axis=1), W)
    length_BC = jnp.where(score_BC > -jnp.inf, step + 1, 0)
    length_BW = _take(jnp.concatenate([beams.ended_length_BW, length_BC], axis=1), place_BW)

    worst_B, running_B = score_BW[:, -1], logprob_BW[:, 0]
    if settings.early_stopping == "first":
        better_B = (worst_B == -jnp.inf) & (running_B > -jnp.inf)
    else:
        # Sums only fall. Over a penalty that grows with the length, the best that can come of one is at the limit.
        grows = settings.early_stopping == "never" and settings.length_penalty > 0
        better_B = running_B / (penalty_M[limit_B - 1] if grows else penalty) > worst_B
    return Beams(
        tokens_BWM=_take(tokens_BCM, kept_BW),
        logprob_BW=logprob_BW,
        ended_tokens_BWM=_take(jnp.concatenate([beams.ended_tokens_BWM, tokens_BCM], axis=1), place_BW),
        ended_length_BW=length_BW,
        ended_score_BW=score_BW,
        open_B=beams.open_B & better_B,
    ), _take(parent_BC, kept_BW)


def largest(logits_VBW: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest logits of each beam and their tokens, [B, W, k] float32 and int32, largest first.

    The k parts of the vocabulary with the largest maxima hold them all: one pass over the logits as they lie, the
    vocabulary first or last, where sorting would begin with a transposed copy (tied logits come with it first).
    """
    (V, B, W), P = logits_VBW.shape, VOCABULARY_PART
    if 2 * k * P >= V:
        best_BWk, token_BWk = jax.lax.top_k(jnp.moveaxis(logits_VBW, 0, -1), k)
        return best_BWk, token_BWk.astype(jnp.int32)
    parts = -(-V // P)
    whole = jnp.pad(logits_VBW, ((0, parts * P - V), (0, 0), (0, 0)), constant_values=-jnp.inf)
    most_BWn = jnp.moveaxis(whole.reshape(parts, P, B, W).max(axis=1), 0, -1)
    part_BWk = jax.lax.top_k(most_BWn, k)[1].astype(jnp.int32)
    token_BWc = jnp.minimum(part_BWk[..., None] * P + jnp.arange(P, dtype=jnp.int32), V).reshape(B, W, k * P)
    rows, columns = jnp.arange(B)[:, None, None], jnp.arange(W)[:, None]
    logits_BWc = logits_VBW.at[token_BWc, rows, columns].get(mode="fill", fill_value=-jnp.inf)
    best_BWk, place_BWk = jax.lax.top_k(logits_BWc, k)
    return best_BWk, jnp.minimum(jnp.take_along_axis(token_BWc, place_BWk, axis=-1), V - 1)


def best(state: BeamState, settings: Beam) -> Hypotheses:
    """The nbest best of the hypotheses that have ended, in any group."""
    beams = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), state.beams)  # groups side by side
    score_BK, place_BK = jax.lax.top_k(beams.ended_score_BW, settings.nbest)
    tokens_BKM, length_BK = _take(beams.ended_tokens_BWM, place_BK), _take(beams.ended_length_BW, place_BK)
    said_BKM = jnp.arange(settings.max_new_tokens) < length_BK[:, :, None]
    return Hypotheses(jnp.where(said_BKM, tokens_BKM, _filler(settings)), score_BK, length_BK, state.step)


# ---------------------------------------------------------------------------------------------- What may not be chosen


def constrain(
    logits_VBW: jax.Array,
    norm_BW: jax.Array,
    tokens_BWM: jax.Array,
    prompts: Prompts,
    step: Any,
    limit_B: jax.Array,
    settings: Beam,
) -> jax.Array:
    """The logits with -inf for what the settings forbid as token number `step`; the rest is as it was.

    A forced token has log-probability 0, so the logit `norm`, whatever else is forbidden.
    """
    ids_V11 = jnp.arange(len(logits_VBW))[:, None, None]
    if settings.suppress_ids:
        logits_VBW = jnp.where(jnp.isin(ids_V11, jnp.array(settings.suppress_ids)), -jnp.inf, logits_VBW)
    if settings.min_new_tokens and settings.stop_ids:
        early_V11 = jnp.isin(ids_V11, jnp.array(settings.stop_ids)) & (step < settings.min_new_tokens)
        logits_VBW = jnp.where(early_V11, -jnp.inf, logits_VBW)
    if settings.no_repeat_ngram:
        repeats_BWV = repeats(tokens_BWM, prompts, step, settings.no_repeat_ngram, len(logits_VBW))
        logits_VBW = jnp.where(jnp.moveaxis(repeats_BWV, -1, 0), -jnp.inf, logits_VBW)
    for forced, where_B in ((settings.forced_first, 0 * limit_B), (settings.forced_last, limit_B - 1)):
        if forced is not None:
            only_VBW = jnp.where(ids_V11 == forced, norm_BW, -jnp.inf)
            logits_VBW = jnp.where((step == where_B)[:, None], only_VBW, logits_VBW)
    return logits_VBW


def repeats(tokens_BWM: jax.Array, prompts: Prompts, step: Any, n: int, vocab_size: int) -> jax.Array:
    """Which tokens would make an n-gram of the beam's last n - 1 tokens that it has already, bool [B, W, V]."""
    (B, W, M), T, V = tokens_BWM.shape, prompts.tokens_BT.shape[1], vocab_size
    if n > T + M:
        return jnp.zeros((B, W, V), bool)
    # V, which is no token, stands for padding and for columns to come.
    prompt_BT = jnp.where(jnp.arange(T) < jnp.asarray(prompts.start_B)[:, None], V, jnp.asarray(prompts.tokens_BT))
    said_BWM = jnp.where(jnp.arange(M) < step, tokens_BWM, V)
    history_BWH = jnp.concatenate([jnp.broadcast_to(prompt_BT[:, None], (B, W, T)), said_BWM], axis=-1)
    windows = T + M - n + 1
    last = jax.lax.dynamic_slice_in_dim(history_BWH, jnp.maximum(T + step - (n - 1), 0), n - 1, axis=-1)
    same = jnp.ones((B, W, windows), bool)
    for i in range(n - 1):
        same &= history_BWH[:, :, i : i + windows] == last[:, :, i, None]
    next_ids = jnp.where(same, history_BWH[:, :, n - 1 :], V)
    rows, beams = jnp.arange(B)[:, None, None], jnp.arange(W)[:, None]
    return jnp.zeros((B, W, V), bool).at[rows, beams, next_ids].set(True, mode="drop")


def _take(x: jax.Array, index_BW: jax.Array) -> jax.Array:
    """x[b, index[b, w]] for x [B, N] or [B, N, M]."""
    return jnp.take_along_axis(x, index_BW.reshape(*index_BW.shape, *[1] * (x.ndim - 2)), axis=1)


def _filler(settings: Beam) -> int:
    """What stands after a hypothesis' end: a token, so that every column can be read and decoded."""
    return settings.stop_ids[0] if settings.stop_ids else 0
