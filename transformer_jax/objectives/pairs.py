"""Pairs of passages, for the objectives that teach a model how passages follow each other.

    next_sentence     half of the pairs: B follows A; half: B is from another document   Devlin et al. 2019, app. A.2
    sentence_order    half of the pairs: B follows A; half: A and B are swapped          ALBERT: Lan et al. 2020, 3.1

Both split consecutive tokens of one document where a sentence ends. As in the papers, a "sentence" is a passage: A and
B are one or more sentences each. The label is 0 where B follows A, otherwise 1.

N tokens of the corpus, D documents, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Documents:
    """A tokenised corpus, with what the pairs need."""

    tokens: Any
    """int [N]: an array, or what gives one for a slice, as a token store does."""
    begins: np.ndarray
    """int64 [D]: document d is tokens[begins[d] : stops[d]], at least one token."""
    stops: np.ndarray
    """int64 [D]."""
    ends_sentence: np.ndarray
    """bool [V]: a sentence may end after this token."""
    continues: np.ndarray
    """bool [V]: this token continues the word before it."""


class Pair(NamedTuple):
    """The tokens of two passages, and the label: 0 where the second follows the first, otherwise 1."""

    a: np.ndarray
    b: np.ndarray
    label: int


def next_sentence(documents: Documents, document: int, start: int, stop: int, rng: np.random.Generator) -> Pair:
    """A and B from tokens[start:stop]; with probability 1/2, B is replaced by a passage of another document.

    That passage begins where a sentence does, in a document drawn uniformly. It is as long as the B that it replaces,
    unless its document is shorter.

    Args:
      documents: the corpus.
      document: the number of the document that the tokens are from.
      start: index of the first token.
      stop: one past the last token, at least start + 2.
      rng: the random generator of the example.

    Raises:
      InputError: the corpus has only one document.
    """
    D = len(documents.begins)
    if D < 2:
        raise InputError("next-sentence pairs need two documents at least, and the corpus has one; use sentence_order")
    ids = documents.tokens[start:stop]
    at = split_point(documents, ids, rng)
    if rng.random() < 0.5:
        return Pair(ids[:at], ids[at:], 0)
    other = int(rng.integers(D - 1))
    other += other >= document
    begin, end = int(documents.begins[other]), int(documents.stops[other])
    size = len(ids) - at
    start_b = begin + int(rng.integers(max(end - begin - size, 0) + 1))
    earliest = max(begin, start_b - len(ids))  # a sentence start is searched from here on
    ended = np.flatnonzero(documents.ends_sentence[documents.tokens[earliest:start_b]])
    if len(ended):
        start_b = earliest + int(ended[-1]) + 1
    elif earliest == begin:
        start_b = begin
    return Pair(ids[:at], documents.tokens[start_b : min(start_b + size, end)], 1)


def sentence_order(documents: Documents, start: int, stop: int, rng: np.random.Generator) -> Pair:
    """A and B from tokens[start:stop] of one document; with probability 1/2, they are swapped.

    Args:
      documents: the corpus.
      start: index of the first token.
      stop: one past the last token, at least start + 2.
      rng: the random generator of the example.
    """
    ids = documents.tokens[start:stop]
    at = split_point(documents, ids, rng)
    first, second = ids[:at], ids[at:]
    return Pair(first, second, 0) if rng.random() < 0.5 else Pair(second, first, 1)


def split_point(documents: Documents, ids: np.ndarray, rng: np.random.Generator) -> int:
    """The length of the first of two passages, drawn uniformly from the ends of sentences.

    Where no sentence ends, it is drawn from the beginnings of words, and without these from all tokens.

    Args:
      documents: the corpus.
      ids: int [n], the tokens of both passages, n >= 2.
      rng: the random generator of the example.
    """
    last = np.flatnonzero(documents.ends_sentence[ids[:-1]])
    if not len(last):
        last = np.flatnonzero(~documents.continues[ids[1:]])
    if not len(last):
        last = np.arange(len(ids) - 1)
    return int(last[rng.integers(len(last))]) + 1
