"""Beam search: the most probable continuations of each row, all rows at once, in one compiled loop.

    prompts = decode.left_pad([[0], [0]])                                 # a translator's start token, for each row
    settings = beam.Beam(width=4, max_new_tokens=64, stop_ids=(2,), nbest=2)
    search = jax.jit(beam.search, static_argnames=("model", "cfg", "settings"))
    found = search(gpt, params, cfg, gpt.init_cache(cfg, batch=2, length=1 + 64 - 1), prompts, settings)
    found.tokens_BKM[b, 0, : found.length_BK[b, 0]]                       # row b's best hypothesis

`model` has the three functions that `decode` requires, and two more:

    repeat(cache, times)   -> each row repeated `times` times, adjacent: called once, after the prompts are read
    reorder(cache, rows_R) -> the cache whose row r is row rows_R[r] of the given one: called after every token

Row r and row rows_R[r] always belong to the same prompt. Therefore values that the beams of a prompt share, such as the
keys and values of the source sentence, can be stored once and are never moved.

The search. A prompt has `width` running beams, and separately up to `width` hypotheses that have ended. Each step adds
the log-softmax of the logits to the beams' sums and takes the best (1 + number of stop ids) * width continuations, so
that at least `width` of them keep running. A continuation that ends and is among the first `width` replaces the worst
hypothesis if its score, the sum divided by the length penalty, is better. The last step ends all beams. These are the
rules of Transformers' `generate`, and the results are the same, with one exception: where a prompt has fewer
continuations than beams, the surplus beams do not exist here.

Rows are independent: neither the other rows nor the padding change the result, up to the rounding of matrix products.
So `jax.shard_map` can shard a batch over devices by rows, and each device stops when its own rows are done.

Cost of a step besides the model's: three passes over the logits in the layout that the model returns, and a copy of the
cached keys and values by `reorder`. Width 1 with early_stopping "first" is greedy decoding.

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

from transformer_jax.decoding import timestamps
from transformer_jax.decoding.decode import Prompts
from transformer_jax.errors import InputError

VOCABULARY_PART = 64  # tokens per part of the vocabulary in `largest`

# ------------------------------------------------------------------------------------------------------------- Settings

LengthConvention = Literal["hf", "gnmt"]
EarlyStopping = Literal["first", "bound", "never"]


@dataclass(frozen=True)
class Beam:
    """The settings of a search. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: a value is outside its range.
    """

    width: int = 4
    """Beams of a prompt, in all groups."""
    max_new_tokens: int = 128
    """M; a hypothesis of M tokens ends, with or without a stop token."""
    stop_ids: tuple[int, ...] = ()
    """A hypothesis ends with the first of these, which is its last token and counts in its length and score."""
    length_penalty: float = 1.0
    """alpha, the exponent below; 0: off. A larger one favours longer hypotheses."""
    length_convention: LengthConvention = "hf"
    """The divisor of a sum of n log-probabilities: "hf" n^alpha (Marian and Transformers; n counts the new tokens, the
    stop token included), "gnmt" ((5 + n) / 6)^alpha (Wu et al. 2016, equation 14; T5)."""
    early_stopping: EarlyStopping = "bound"
    """When the search of a prompt that has `width` hypotheses stops:
    "first"   at once (Transformers' early_stopping=True);
    "bound"   when the best running beam, if it ended now, would not score better than the worst hypothesis
              (early_stopping=False, the default there). With alpha > 0 a longer one might still score better;
    "never"   when no running beam can score better at any length up to M (early_stopping="never")."""
    nbest: int = 1
    """K, the number of hypotheses to return; at most `width`."""
    min_new_tokens: int = 0
    """Tokens before which no stop token is chosen."""
    no_repeat_ngram: int = 0
    """No n-gram of this size occurs twice in a row's prompt and continuation (Paulus et al. 2017, section 2.5); 0:
    off."""
    suppress_ids: tuple[int, ...] = ()
    """Tokens that are never chosen, such as Marian's padding."""
    begin_suppress_ids: tuple[int, ...] = ()
    """Tokens that are not the first new one, such as Whisper's end of text."""
    first_timestamp: int | None = None
    """The id of <|0.00|>: it and all ids above are times, and follow Whisper's rules (`timestamps`). None: no rules."""
    forced_first: int | None = None
    """The first new token, with log-probability 0: mBART's language, BART's <s>."""
    forced_last: int | None = None
    """The M-th new token, with log-probability 0: BART's and Marian's </s>."""
    groups: int = 1
    """Diverse beam search (Vijayakumar et al. 2018): groups of width / groups beams, extended one after the other."""
    diversity_penalty: float = 0.0
    """Subtracted from a token's log-probability for each beam of an earlier group that chose it in the same step (the
    paper's lambda, with Hamming diversity). Scores include it."""

    def __post_init__(self) -> None:
        for name in ("stop_ids", "suppress_ids", "begin_suppress_ids"):
            object.__setattr__(self, name, tuple(int(i) for i in getattr(self, name)))
        tokens = (*self.stop_ids, *self.suppress_ids, *self.begin_suppress_ids)
        times = self.first_timestamp is None or bool(self.stop_ids and self.first_timestamp > self.stop_ids[0])
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
            ("first_timestamp", times, "None, or an id above the first of stop_ids, which ends the text tokens"),
            ("forced_first", self.forced_first is None or self.forced_first >= 0, "None or a token id, 0 or more"),
            ("forced_last", self.forced_last is None or self.forced_last >= 0, "None or a token id, 0 or more"),
            ("groups", self.groups >= 1 and self.width % self.groups == 0, f"a divisor of the width, {self.width}"),
            ("diversity_penalty", 0.0 <= self.diversity_penalty < math.inf, "0 (off) or positive"),
        ):
            if not fine:
                raise InputError(f"{name} is {getattr(self, name)}; it must be {rule}")


def length_penalties(settings: Beam) -> np.ndarray:
    """The divisor of the score of a hypothesis of 1, 2, ..., M new tokens under `settings`, float32 [M]."""
    lengths_M = np.arange(1, settings.max_new_tokens + 1)
    base_M = lengths_M if settings.length_convention == "hf" else (5 + lengths_M) / 6
    return (base_M**settings.length_penalty).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- The loop


@flax.struct.dataclass
class Beams:
    """The beams of every prompt. The names are those of one group; the loop carries [B, G, ...].

    Attributes:
      tokens_BWM: int32, running beams, best first; columns from `step` on are filler.
      logprob_BW: float32, their sums of log-probabilities; -inf: no beam.
      ended_tokens_BWM: int32, hypotheses that have ended, best first.
      ended_length_BW: int32, their new tokens, the stop token included.
      ended_score_BW: float32, sum of log-probabilities over length penalty; -inf: no hypothesis yet.
      open_B: bool, whether the search continues; where it does not, the hypotheses are final.
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

    Attributes:
      cache: the model's; row (b * G + g) * W + w is beam w of group g of prompt b. It holds all tokens but the last.
      beams: `Beams` [B, G, ...].
      step: int32 scalar.
    """

    cache: Any
    beams: Beams
    step: jax.Array


@flax.struct.dataclass
class Hypotheses:
    """The best hypotheses of each prompt, best first.

    Attributes:
      tokens_BKM: int32; after a hypothesis' end the first of stop_ids, or 0, is repeated.
      score_BK: float32, sum of log-probabilities over length penalty; -inf where there is no hypothesis.
      length_BK: int32, new tokens, the stop token included; 0 where there is no hypothesis.
      step: int32 scalar, tokens generated; after the prompts the model was called step - 1 times.
    """

    tokens_BKM: jax.Array
    score_BK: jax.Array
    length_BK: jax.Array
    step: jax.Array


def search(
    model: Any, params: Any, cfg: Any, cache: Any, prompts: Prompts, settings: Beam, *, limit_B: jax.Array | None = None
) -> Hypotheses:
    """The nbest best hypotheses that the search finds for each prompt.

    Args:
      model: a family, static.
      params: its parameter tree.
      cfg: its Config, static.
      cache: empty, for B rows, with at least T + M - 1 slots: the last token is never read.
      prompts: from `decode.left_pad`.
      settings: static.
      limit_B: int32 from 1 to M, the limit of each row in place of max_new_tokens, so that rows with different limits
        share a compilation; None: M for all.

    Raises:
      ValueError: the cache has too few slots, or the settings name a token that the vocabulary does not have.
    """
    params = model.for_decoding(params, cfg)
    if limit_B is None:
        limit_B = jnp.full(len(prompts.start_B), settings.max_new_tokens, jnp.int32)
    state = start(model, params, cfg, cache, prompts, limit_B, settings)

    def is_running(state: BeamState) -> jax.Array:
        return (state.step < settings.max_new_tokens) & state.beams.open_B.any()

    def step(state: BeamState) -> BeamState:
        last_BGW = jax.lax.dynamic_index_in_dim(state.beams.tokens_BWM, state.step - 1, axis=-1, keepdims=False)
        logits_RV, cache = model.decode_step(params, cfg, last_BGW.reshape(-1), state.cache)
        logits_BGWV = logits_RV.reshape(*last_BGW.shape, -1)
        beams, rows_R = extend(state.beams, logits_BGWV, prompts, state.step, limit_B, settings)
        return BeamState(model.reorder(cache, rows_R), beams, state.step + 1)

    state = jax.lax.while_loop(is_running, step, state)
    return best(state, settings)


def start(
    model: Any, params: Any, cfg: Any, cache: Any, prompts: Prompts, limit_B: jax.Array, settings: Beam
) -> BeamState:
    """The state after the first token: the cache holds the prompts, repeated for the beams.

    Args:
      model: as for `search`.
      params: from `model.for_decoding`.
      cfg: as for `search`.
      cache: as for `search`.
      prompts: as for `search`.
      limit_B: as for `search`, not None.
      settings: as for `search`.

    Raises:
      ValueError: as `search`.
    """
    T, M, S = prompts.tokens_BT.shape[1], settings.max_new_tokens, cache.num_slots
    if T + M - 1 > S:
        raise ValueError(f"prompts of {T} and {M} new tokens need {T + M - 1} slots; the cache has {S}")
    tokens_BT, start_B = jnp.asarray(prompts.tokens_BT), jnp.asarray(prompts.start_B)
    logits_BV, cache = model.prefill(params, cfg, tokens_BT, cache, start_B=start_B)
    (B, V), G, W = logits_BV.shape, settings.groups, settings.width // settings.groups
    named = [i for i in (settings.forced_first, settings.forced_last) if i is not None]
    named += [*settings.stop_ids, *settings.suppress_ids, *settings.begin_suppress_ids, settings.first_timestamp or 0]
    if max(named, default=0) >= V:
        raise ValueError(f"the settings name token {max(named)}; the vocabulary has {V} tokens")
    none_BGW, filler = jnp.full((B, G, W), -jnp.inf, jnp.float32), _filler(settings)
    beams = Beams(
        tokens_BWM=jnp.full((B, G, W, M), filler, jnp.int32),
        logprob_BW=none_BGW.at[:, :, 0].set(0.0),  # one beam per group, so that the first step has no duplicates
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
    """The beams with one more token, and the cache's row that each running beam continues, int32 [R].

    Args:
      beams: [B, G, ...].
      logits_BGWV: the logits of the next token of each beam.
      prompts: as for `search`.
      step: the number of the token.
      limit_B: as for `search`.
      settings: as for `search`.
    """
    B, G, W, V = logits_BGWV.shape
    logits_VBGW = jnp.moveaxis(logits_BGWV.astype(jnp.float32), -1, 0)
    norm_BGW = jax.nn.logsumexp(logits_VBGW, axis=0)  # log-probability = logit - norm
    chosen_BV = jnp.zeros((B, V), jnp.float32)  # how many beams of the earlier groups have chosen each token
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
    """One step of one group: its beams with one more token, and the beam that each running one continues, [B, W]."""
    V, B, W = logits_VBW.shape
    C = min((1 + len(settings.stop_ids)) * W, W * V)
    best_BWC, token_BWC = largest(logits_VBW, min(C, V))  # the C best overall are among the C best of each beam
    total_BWC = beams.logprob_BW[:, :, None] + (best_BWC - norm_BW[:, :, None])
    total_BC, index_BC = jax.lax.top_k(total_BWC.reshape(B, -1), C)
    parent_BC, token_BC = index_BC // total_BWC.shape[2], _take(token_BWC.reshape(B, -1), index_BC)
    tokens_BCM = _take(beams.tokens_BWM, parent_BC).at[:, :, step].set(token_BC)
    ended_BC = jnp.isin(token_BC, jnp.array(settings.stop_ids, jnp.int32)) | (step == limit_B - 1)[:, None]

    logprob_BW, kept_BW = jax.lax.top_k(jnp.where(ended_BC, -jnp.inf, total_BC), W)

    # Only the first W continuations may become hypotheses; the others serve to keep W beams running.
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
        # A sum only decreases with more tokens. If the penalty grows with length, its best score is bounded by that of
        # the present sum at the limit.
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

    The k parts of the vocabulary with the largest maxima contain them all. Finding these parts is one pass over the
    logits in either layout, while sorting would first copy logits whose vocabulary is the leading dimension, as tied
    embeddings return them.

    Args:
      logits_VBW: float32.
      k: at most V.
    """
    (V, B, W), P = logits_VBW.shape, VOCABULARY_PART
    if 2 * k * P >= V:
        best_BWk, token_BWk = jax.lax.top_k(jnp.moveaxis(logits_VBW, 0, -1), k)
        return best_BWk, token_BWk.astype(jnp.int32)
    parts = -(-V // P)
    padded = jnp.pad(logits_VBW, ((0, parts * P - V), (0, 0), (0, 0)), constant_values=-jnp.inf)
    most_BWn = jnp.moveaxis(padded.reshape(parts, P, B, W).max(axis=1), 0, -1)
    part_BWk = jax.lax.top_k(most_BWn, k)[1].astype(jnp.int32)
    token_BWc = jnp.minimum(part_BWk[..., None] * P + jnp.arange(P, dtype=jnp.int32), V).reshape(B, W, k * P)
    rows, columns = jnp.arange(B)[:, None, None], jnp.arange(W)[:, None]
    logits_BWc = logits_VBW.at[token_BWc, rows, columns].get(mode="fill", fill_value=-jnp.inf)
    best_BWk, place_BWk = jax.lax.top_k(logits_BWc, k)
    return best_BWk, jnp.minimum(jnp.take_along_axis(token_BWc, place_BWk, axis=-1), V - 1)


def best(state: BeamState, settings: Beam) -> Hypotheses:
    """The `settings.nbest` best hypotheses of all groups in `state`."""
    beams = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), state.beams)  # [B, G * W, ...]
    score_BK, place_BK = jax.lax.top_k(beams.ended_score_BW, settings.nbest)
    tokens_BKM, length_BK = _take(beams.ended_tokens_BWM, place_BK), _take(beams.ended_length_BW, place_BK)
    filled_BKM = jnp.arange(settings.max_new_tokens) < length_BK[:, :, None]
    return Hypotheses(jnp.where(filled_BKM, tokens_BKM, _filler(settings)), score_BK, length_BK, state.step)


# ------------------------------------------------------------------------------------------------- Forbidden and forced


def constrain(
    logits_VBW: jax.Array,
    norm_BW: jax.Array,
    tokens_BWM: jax.Array,
    prompts: Prompts,
    step: Any,
    limit_B: jax.Array,
    settings: Beam,
) -> jax.Array:
    """The logits with -inf for the tokens that the settings forbid.

    A forced token has log-probability 0, which is the logit `norm_BW`, even if another setting forbids it.

    Args:
      logits_VBW: the logits of the next token of each beam.
      norm_BW: their logsumexp over the vocabulary.
      tokens_BWM: the tokens of each beam.
      prompts: as for `search`.
      step: the number of the token.
      limit_B: as for `search`.
      settings: as for `search`.
    """
    ids_V11 = jnp.arange(len(logits_VBW))[:, None, None]
    if settings.suppress_ids:
        logits_VBW = jnp.where(jnp.isin(ids_V11, jnp.array(settings.suppress_ids)), -jnp.inf, logits_VBW)
    if settings.begin_suppress_ids:
        begins_V11 = jnp.isin(ids_V11, jnp.array(settings.begin_suppress_ids)) & (step == 0)
        logits_VBW = jnp.where(begins_V11, -jnp.inf, logits_VBW)
    if settings.min_new_tokens and settings.stop_ids:
        early_V11 = jnp.isin(ids_V11, jnp.array(settings.stop_ids)) & (step < settings.min_new_tokens)
        logits_VBW = jnp.where(early_V11, -jnp.inf, logits_VBW)
    if settings.no_repeat_ngram:
        repeats_BWV = repeats(tokens_BWM, prompts, step, settings.no_repeat_ngram, len(logits_VBW))
        logits_VBW = jnp.where(jnp.moveaxis(repeats_BWV, -1, 0), -jnp.inf, logits_VBW)
    if settings.first_timestamp is not None:
        first, ends = settings.first_timestamp, settings.stop_ids[0]
        logits_VBW = timestamps.constrain(logits_VBW, tokens_BWM, step, first=first, text_end=ends)
    for forced, where_B in ((settings.forced_first, 0 * limit_B), (settings.forced_last, limit_B - 1)):
        if forced is not None:
            only_VBW = jnp.where(ids_V11 == forced, norm_BW, -jnp.inf)
            logits_VBW = jnp.where((step == where_B)[:, None], only_VBW, logits_VBW)
    return logits_VBW


def repeats(tokens_BWM: jax.Array, prompts: Prompts, step: Any, n: int, vocab_size: int) -> jax.Array:
    """bool [B, W, V]: whether the token would repeat an n-gram of the beam.

    Args:
      tokens_BWM: the tokens of each beam.
      prompts: as for `search`.
      step: the number of the token.
      n: size of the n-grams.
      vocab_size: V.
    """
    (B, W, M), T, V = tokens_BWM.shape, prompts.tokens_BT.shape[1], vocab_size
    if n > T + M:
        return jnp.zeros((B, W, V), bool)
    # V, which no token has, marks padding and columns that are not filled yet.
    prompt_BT = jnp.where(jnp.arange(T) < jnp.asarray(prompts.start_B)[:, None], V, jnp.asarray(prompts.tokens_BT))
    filled_BWM = jnp.where(jnp.arange(M) < step, tokens_BWM, V)
    history_BWH = jnp.concatenate([jnp.broadcast_to(prompt_BT[:, None], (B, W, T)), filled_BWM], axis=-1)
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
    """The token that fills the columns after a hypothesis' end, so that every column can be decoded."""
    return settings.stop_ids[0] if settings.stop_ids else 0
