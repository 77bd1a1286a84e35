"""From a CTC model's distributions to labels: the best path, the most probable labels, and when each was spoken.

    greedy        the labels of the most probable path; what a run's probe uses
    prefix_beam   the most probable labels, summed over their paths, with a language model where there is one
    align         the frames of given labels: the best path that spells them (Viterbi)

NumPy, a row at a time: an utterance has a few hundred frames. Letters: T frames, V symbols, S labels.
"""

import heapq
import math
from collections.abc import Callable
from typing import NamedTuple

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
      weight: of its log probabilities.
      bonus: added for each label, because a language model prefers short texts.
      nbest: how many are returned.

    Raises:
      InputError: `width`, `symbols` or `nbest` below 1, or `nbest` above `width`.
    """
    if min(width, symbols, nbest) < 1 or nbest > width:
        raise InputError(f"width {width}, symbols {symbols}, nbest {nbest}: each at least 1, and nbest at most width")
    none = (-math.inf, -math.inf)  # log p of the paths that end in a blank, and in the last label
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    added: dict[tuple[int, ...], float] = {(): 0.0}  # what the language model adds
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


def align(log_p_TV: np.ndarray, labels: np.ndarray, *, blank: int = 0) -> np.ndarray:
    """For each frame the index of the label that the best path says there, int [T]; -1 for a blank.

    Args:
      log_p_TV: log probabilities or logits of each frame.
      labels: int [S], without blanks.
      blank: the symbol of the blank.

    Raises:
      InputError: the frames are too few for the labels.
    """
    log_p_TV, labels = np.asarray(log_p_TV, np.float64), np.asarray(labels)
    T, S = len(log_p_TV), len(labels)
    states = np.full(2 * S + 1, blank)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)  # from the label before, over the blank between the two
    skips[3::2] = labels[1:] != labels[:-1]
    best = np.full(len(states), -np.inf)
    best[:2] = log_p_TV[0, states[:2]] if T else -np.inf
    came = np.zeros((T, len(states)), np.int8)  # how many states back the best path was
    for t in range(1, T):
        back_1, back_2 = np.append(-np.inf, best[:-1]), np.append([-np.inf, -np.inf], best[:-2])[: len(best)]
        options = np.stack([best, back_1, np.where(skips, back_2, -np.inf)])
        came[t] = options.argmax(0)
        best = options.max(0) + log_p_TV[t, states]
    ends = len(states) - 1 - int(len(states) > 1 and best[-2] > best[-1])
    if T == 0 or best[ends] == -np.inf:
        raise InputError(f"{T} frames cannot say {S} labels; give shorter labels or more frames")
    at, path_T = ends, np.empty(T, int)
    for t in range(T - 1, -1, -1):
        path_T[t] = at
        at -= int(came[t, at])
    return np.where(path_T % 2 == 1, path_T // 2, -1)
