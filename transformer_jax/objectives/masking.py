"""Masked language modelling: which tokens of a row are predicted, and what replaces them in the input.

A share of a row's tokens is chosen, with new random numbers each time the row is made (dynamic masking, Liu et al.
2019, section 4.1), in units that the experiment states:

    "token"    single tokens                                          Devlin et al. 2019, section 3.1
    "word"     whole words, with all their tokens                     whole-word masking, google-research/bert
    "span"     runs of 1 to 10 words, lengths geometric (p = 0.2)     SpanBERT: Joshi et al. 2020, section 3.1
    "ngram"    runs of 1 to 3 words, p(n) ~ 1 / n                     ALBERT: Lan et al. 2020, section 4.1

Of the chosen tokens 80 % are replaced by the mask token, 10 % by a random token, and 10 % are kept: drawn per token,
and for "span" once per span. Every row has the same number of predictions P (`Masking.count`), so that the vocabulary
projection runs on [B, P] positions only; slots that a row does not use have weight 0.

T tokens of a row, P predictions, M maskable tokens, W words, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from transformer_jax.errors import InputError

Unit = Literal["token", "word", "span", "ngram"]


@dataclass(frozen=True)
class Masking:
    """Which tokens are chosen, how many, and what replaces them."""

    rate: float = 0.15
    """Share of a row's tokens to predict."""
    unit: Unit = "token"
    """token, word (whole words), span (SpanBERT) or ngram (ALBERT)."""
    mask_share: float = 0.8
    """Share of the chosen tokens that the mask token replaces."""
    random_share: float = 0.1
    """Share of the chosen tokens that a random token replaces; the rest is kept."""

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise InputError(f"masking.rate = {self.rate}: must be above 0 and at most 1")
        if self.unit not in get_args(Unit):
            raise InputError(f"masking.unit = {self.unit!r}: must be one of {', '.join(get_args(Unit))}")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1 + 1e-9:
            raise InputError(
                f"masking.mask_share = {self.mask_share} and masking.random_share = {self.random_share}: "
                "must be 0 or more, and at most 1 together"
            )

    def count(self, length: int) -> int:
        """P, the predictions of a row of `length` tokens: 20 of 128 and 77 of 512 at 15 %, as in BERT."""
        return math.ceil(self.rate * length - 1e-9)


class Masked(NamedTuple):
    """A masked row, and the tokens to predict."""

    ids_T: np.ndarray
    """int32, with masks and random tokens."""
    positions_P: np.ndarray
    """int32, ascending; 0 in unused slots."""
    labels_P: np.ndarray
    """int32, the original tokens at these positions."""
    weights_P: np.ndarray
    """float32, 1, or 0 in unused slots."""


def mask(
    ids_T: np.ndarray,
    maskable_T: np.ndarray,
    masking: Masking,
    rng: np.random.Generator,
    *,
    mask_id: int,
    random_ids: np.ndarray,
    count: int,
    continues: np.ndarray | None = None,
) -> Masked:
    """Masks round(rate * maskable tokens) of a row, at least 1 and at most `count`; fewer where no whole unit fits.

    Args:
      ids_T: int32. It is not changed.
      maskable_T: bool, False at special tokens and padding, which are never chosen.
      masking: the settings.
      rng: the random generator of the example.
      mask_id: the mask token.
      random_ids: the ids that a random token is drawn from, without special tokens.
      count: P, `masking.count(T)`.
      continues: bool [V], True for a token that continues the word before it; every unit but "token" needs it.
    """
    maskable_M = np.flatnonzero(maskable_T)
    budget = min(count, max(1, round(masking.rate * len(maskable_M))), len(maskable_M))
    if masking.unit == "token":
        chosen = np.sort(rng.permutation(maskable_M)[:budget])
        sizes = np.ones(budget, int)
    else:
        if continues is None:
            raise ValueError(f"masking.unit {masking.unit!r} needs to know which tokens continue a word")
        chosen, sizes = _by_words(maskable_M, continues[ids_T[maskable_M]], masking.unit, budget, rng)
    n = len(chosen)
    draw = rng.random(n) if masking.unit != "span" else np.repeat(rng.random(len(sizes)), sizes)
    labels = ids_T[chosen]
    replacement = np.where(draw < masking.mask_share, mask_id, random_ids[rng.integers(len(random_ids), size=n)])
    masked_T = ids_T.astype(np.int32)
    masked_T[chosen] = np.where(draw < masking.mask_share + masking.random_share, replacement, labels)
    positions_P, labels_P, weights_P = np.zeros(count, np.int32), np.zeros(count, np.int32), np.zeros(count, np.float32)
    positions_P[:n], labels_P[:n], weights_P[:n] = chosen, labels, 1.0
    return Masked(masked_T, positions_P, labels_P, weights_P)


def span_lengths(rng: np.random.Generator, size: int) -> np.ndarray:
    """Lengths of `size` spans in words, drawn by `rng`: geometric with p = 0.2, truncated to 1 to 10, mean 3.8.

    Source: SpanBERT, Joshi et al. 2020, section 3.1.
    """
    return np.searchsorted(_SPAN_CDF, rng.random(size), side="right") + 1


def ngram_lengths(rng: np.random.Generator, size: int) -> np.ndarray:
    """Lengths of `size` n-grams in words, drawn by `rng`: 1 to 3 with p(n) = (1/n) / (1 + 1/2 + 1/3).

    Source: ALBERT, Lan et al. 2020, section 4.1.
    """
    return np.searchsorted(_NGRAM_CDF, rng.random(size), side="right") + 1


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """The cumulative distribution without its last value, 1, so that rounding cannot index past the end."""
    return np.cumsum(weights / weights.sum())[:-1]


_SPAN_CDF = _cumulative(0.8 ** np.arange(10))
_NGRAM_CDF = _cumulative(1 / np.arange(1, 4))
_LENGTHS = {"span": span_lengths, "ngram": ngram_lengths}


def _by_words(
    maskable_M: np.ndarray, continues_M: np.ndarray, unit: Unit, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The chosen positions, ascending, and the sizes of the runs that they belong to, in the same order.

    As in the code of BERT and ALBERT, a run that exceeds the budget is shortened by whole words, and skipped if its
    first word exceeds what is left of the budget. In a word longer than the whole budget, such as a text without
    spaces, each token counts as a word.
    """
    apart_M = np.ones(len(maskable_M), bool)  # True after a special token: no word or run extends over it
    apart_M[1:] = maskable_M[1:] - maskable_M[:-1] != 1
    begins_M = apart_M | ~continues_M
    word_M = np.cumsum(begins_M) - 1
    begins_M |= np.bincount(word_M)[word_M] > budget if len(word_M) else False  # a word that is too long: by tokens
    first_W = np.flatnonzero(begins_M)
    size_W = np.append(first_W[1:], len(maskable_M)) - first_W
    order = rng.permutation(len(first_W))
    lengths = [1] * len(order) if unit == "word" else _LENGTHS[unit](rng, len(order)).tolist()
    runs = sorted(_runs(order.tolist(), lengths, size_W.tolist(), apart_M[first_W].tolist(), budget))
    begins = first_W[np.array([first for first, _ in runs], int)].tolist()
    sizes = [size for _, size in runs]
    chosen = [at for begin, size in zip(begins, sizes, strict=True) for at in range(begin, begin + size)]
    return maskable_M[np.array(chosen, int)], np.array(sizes, int)


def _runs(
    order: list[int], lengths: list[int], sizes: list[int], apart: list[bool], budget: int
) -> Iterator[tuple[int, int]]:
    """(first word, tokens) of each run, until the budget is used up."""
    covered = [False] * len(sizes)
    for first, length in zip(order, lengths, strict=True):
        last, tokens = first, 0
        while last < min(first + length, len(sizes)) and not covered[last] and not (last > first and apart[last]):
            if tokens + sizes[last] > budget:
                break
            tokens += sizes[last]
            covered[last] = True
            last += 1
        if tokens:
            yield first, tokens
            budget -= tokens
            if not budget:
                return
