"""From a CTC model's distributions to labels: the best path, the most probable labels, and when each was spoken.

    greedy        the labels of the most probable path; what a run's probe uses
    prefix_beam   the most probable labels, summed over their paths, with a language model where there is one
    align         the steps of given labels: the best path that spells them (Viterbi)
    durations     how long each label lasts on it

The first two are NumPy, a row at a time; the others are compiled. Letters: B rows, T frames, V symbols, S labels.
"""

import heapq
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.errors import InputError

LanguageModel = Callable[[tuple[int, ...]], np.ndarray]
"""From the labels so far to log probabilities of the next one, float [V]; the blank's entry is that of the end."""


class Found(NamedTuple):
    """Labels and their score.

    Attributes:
      labels: without blanks.
      score: the log probability of the labels, plus what the language model adds.
    """

    labels: tuple[int, ...]
    score: float


def greedy(log_p_TV: np.ndarray, *, blank: int = 0) -> list[int]:
    """The labels of the most probable path: repeated symbols are merged, blanks removed.

    Args:
      log_p_TV: log probabilities or logits of each frame.
      blank: the symbol of the blank.
    """
    path_T = np.asarray(log_p_TV).argmax(-1)
    return collapsed(path_T, blank=blank)


def collapsed(path_T: np.ndarray, *, blank: int = 0) -> list[int]:
    """The labels that a path spells.

    Args:
      path_T: int, a symbol for each frame.
      blank: the symbol of the blank.
    """
    path_T = np.asarray(path_T)
    begins_T = np.append(True, path_T[1:] != path_T[:-1])[: len(path_T)]
    return [int(symbol) for symbol in path_T[begins_T & (path_T != blank)]]


def prefix_beam(
    log_p_TV: np.ndarray,
    *,
    blank: int = 0,
    width: int = 16,
    symbols: int = 16,
    language_model: LanguageModel | None = None,
    weight: float = 0.5,
    bonus: float = 0.0,
    nbest: int = 1,
) -> list[Found]:
    """The most probable labels, best first (Hannun et al. 2014, arXiv 1408.2873, algorithm 1).

    Of each prefix the beam holds the probability of the paths that end in its last label, and of those that end in a
    blank: only the latter may repeat that label. With a language model, a prefix's score is log p of its paths +
    weight * log p of its labels + bonus * their number.

    Args:
      log_p_TV: normalised log probabilities of each frame.
      blank: the symbol of the blank.
      width: prefixes that are kept after each frame.
      symbols: the most probable symbols of each frame that may extend a prefix.
      language_model: see `LanguageModel`; None: none.
      weight: the factor of the model's log probabilities.
      bonus: added for each label, because a language model prefers short texts.
      nbest: how many are returned.

    Raises:
      InputError: `width`, `symbols` or `nbest` below 1, or `nbest` above `width`.
    """
    if min(width, symbols, nbest) < 1 or nbest > width:
        raise InputError(f"width {width}, symbols {symbols}, nbest {nbest}: each at least 1, and nbest at most width")
    none = (-math.inf, -math.inf)  # log p of a prefix's paths that end in a blank, and of those that end in a label
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    added: dict[tuple[int, ...], float] = {(): 0.0}  # prefix -> what the language model adds to its score
    following: dict[tuple[int, ...], np.ndarray] = {}

    def adds(prefix: tuple[int, ...], label: int) -> float:
        if language_model is None:
            return bonus
        if prefix not in following:
            following[prefix] = np.asarray(language_model(prefix))
        return weight * float(following[prefix][label]) + bonus

    def score(prefix: tuple[int, ...], both: tuple[float, float]) -> float:
        return float(np.logaddexp(*both)) + added[prefix]

    for log_p_V in np.asarray(log_p_TV, np.float64):
        chosen = np.argsort(-log_p_V, kind="stable")[:symbols]
        found: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (ends_blank, ends_label) in beam.items():
            either = float(np.logaddexp(ends_blank, ends_label))
            of_blank, of_label = found.get(prefix, none)
            of_blank = float(np.logaddexp(of_blank, either + log_p_V[blank]))
            if prefix:
                of_label = float(np.logaddexp(of_label, ends_label + log_p_V[prefix[-1]]))
            found[prefix] = (of_blank, of_label)
            for symbol in chosen:
                if symbol == blank:
                    continue
                longer = (*prefix, int(symbol))
                from_before = ends_blank if prefix and prefix[-1] == symbol else either
                if from_before == -math.inf:
                    continue
                if longer not in added:
                    added[longer] = added[prefix] + adds(prefix, int(symbol))
                of_blank, of_label = found.get(longer, none)
                found[longer] = (of_blank, float(np.logaddexp(of_label, from_before + log_p_V[symbol])))
        beam = dict(heapq.nlargest(width, found.items(), key=lambda one: score(*one)))
    ended = {prefix: score(prefix, both) for prefix, both in beam.items()}
    if language_model is not None:
        ended = {prefix: value + adds(prefix, blank) - bonus for prefix, value in ended.items()}
    return [Found(prefix, value) for prefix, value in heapq.nlargest(nbest, ended.items(), key=lambda one: one[1])]


def align(
    log_p_BTV: jax.Array, steps_B: jax.Array, labels_BS: jax.Array, sizes_B: jax.Array, *, blank: int = 0
) -> jax.Array:
    """The index of each step's label on the best path that spells the labels, int32 [B, T]; -1 for a blank (Viterbi).

    A row whose steps are too few for its labels (`losses.ctc.frames_needed`) has no such path, and its result no
    meaning. The steps after a row's end are as its last one.

    Args:
      log_p_BTV: log probabilities.
      steps_B: steps of each row before its padding.
      labels_BS: int, without blanks.
      sizes_B: labels of each row.
      blank: the symbol of the blank.
    """
    B, T, V = log_p_BTV.shape
    count = 2 * labels_BS.shape[1] + 1  # a blank before, between and after the labels
    of_labels_BTS = jnp.einsum("BTV,BSV->BTS", log_p_BTV, jax.nn.one_hot(labels_BS, V))
    of_blank_BTs = jnp.repeat(log_p_BTV[..., blank, None], labels_BS.shape[1] + 1, axis=-1)
    emitted_BTs = jnp.zeros((B, T, count)).at[..., 1::2].set(of_labels_BTS).at[..., ::2].set(of_blank_BTs)
    skips_Bs = jnp.zeros((B, count), bool).at[:, 3::2].set(labels_BS[:, 1:] != labels_BS[:, :-1])

    def forward(best_Bs: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        emitted_Bs, inside_B = xs
        padded = jnp.pad(best_Bs, ((0, 0), (2, 0)), constant_values=-jnp.inf)
        ways = jnp.stack([best_Bs, padded[:, 1:-1], jnp.where(skips_Bs, padded[:, :-2], -jnp.inf)])
        back_Bs = jnp.where(inside_B[:, None], jnp.argmax(ways, axis=0), 0).astype(jnp.int8)
        return jnp.where(inside_B[:, None], ways.max(0) + emitted_Bs, best_Bs), back_Bs

    first_Bs = jnp.where(jnp.arange(count) < 2, emitted_BTs[:, 0], -jnp.inf)
    inside_TB = jnp.arange(1, T)[:, None] < steps_B
    best_Bs, back_TBs = jax.lax.scan(forward, first_Bs, (jnp.swapaxes(emitted_BTs, 0, 1)[1:], inside_TB))
    last_B2 = 2 * sizes_B[:, None] - jnp.array([0, 1])
    ends_B2 = jnp.where(last_B2 >= 0, jnp.take_along_axis(best_Bs, jnp.maximum(last_B2, 0), axis=1), -jnp.inf)
    at_B = 2 * sizes_B - jnp.argmax(ends_B2, axis=1)

    def backward(at_B: jax.Array, back_Bs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return at_B - jnp.take_along_axis(back_Bs, at_B[:, None], axis=1)[:, 0], at_B

    begin_B, path_TB = jax.lax.scan(backward, at_B, back_TBs, reverse=True)
    path_BT = jnp.concatenate([begin_B[:, None], path_TB.T], axis=1)
    return jnp.where(path_BT % 2 == 1, path_BT // 2, -1).astype(jnp.int32)


def durations(
    log_p_BTV: jax.Array, steps_B: jax.Array, labels_BS: jax.Array, sizes_B: jax.Array, *, blank: int = 0
) -> jax.Array:
    """How many steps each label lasts on the best path, int32 [B, S], which sum to `steps_B`; 0 for padding.

    The blanks between two labels are divided between them.

    Args:
      log_p_BTV: as for `align`.
      steps_B: as for `align`.
      labels_BS: as for `align`.
      sizes_B: as for `align`.
      blank: as for `align`.
    """
    T, S = log_p_BTV.shape[1], labels_BS.shape[1]
    path_BT = align(log_p_BTV, steps_B, labels_BS, sizes_B, blank=blank)
    own_BST = (path_BT[:, None] == jnp.arange(S)[:, None]) & (jnp.arange(T) < steps_B[:, None])[:, None]
    begin_BS = jnp.where(own_BST, jnp.arange(T), T).min(-1)
    end_BS = jnp.where(own_BST, jnp.arange(1, T + 1), 0).max(-1)
    next_BS = jnp.concatenate([begin_BS[:, 1:], jnp.full_like(begin_BS[:, :1], T)], axis=1)
    number_S = jnp.arange(S)
    until_BS = jnp.where(number_S < sizes_B[:, None] - 1, (end_BS + next_BS) // 2, steps_B[:, None])
    lasts_BS = jnp.diff(until_BS, axis=1, prepend=0)
    return jnp.where(number_S < sizes_B[:, None], lasts_BS, 0).astype(jnp.int32)
