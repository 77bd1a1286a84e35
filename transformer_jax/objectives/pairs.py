"""Pairs of passages, for the objectives that teach a model how passages follow each other.

    next_sentence     B follows A in half of the pairs, else is from another document   Devlin et al. 2019, appendix A.2
    sentence_order    B follows A in half of the pairs, else the two are swapped        ALBERT: Lan et al. 2020, 3.1

Both take a stretch of one document and cut it where a sentence ends. As in the papers, a "sentence" is a passage: A and
B are any number of sentences each. The label is 0 where B follows A, else 1.

N tokens of the corpus, D documents, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Documents:
    """A tokenised corpus as the pairs need it."""

    tokens: np.ndarray
    """int [N]."""
    begins: np.ndarray
    """int64 [D]: document d is tokens[begins[d] : stops[d]]; each has a token at least."""
    stops: np.ndarray
    """int64 [D]."""
    ends_sentence: np.ndarray
    """bool [V]: a sentence may end after this token."""
    continues: np.ndarray
    """bool [V]: this token goes on with the word before it."""


class Pair(NamedTuple):
    """The two passages' tokens, and 0 where the second follows the first, else 1."""

    a: np.ndarray
    b: np.ndarray
    label: int


def next_sentence(documents: Documents, document: int, start: int, stop: int, rng: np.random.Generator) -> Pair:
    """A and B from tokens[start:stop], two or more of document `document`; or, in half of the draws, B from elsewhere.

    That B begins with a sentence of another document, all as likely as each other, and is as long as the B that it
    replaces, unless its document is shorter. What it replaces is not used.
    Errors: `InputError` where there is one document alone.
    """
    D = len(documents.begins)
    if D < 2:
        raise InputError("next-sentence pairs need two documents at least, and the corpus has one; use sentence_order")
    ids = documents.tokens[start:stop]
    at = cut(documents, ids, rng)
    if rng.random() < 0.5:
        return Pair(ids[:at], ids[at:], 0)
    other = int(rng.integers(D - 1))
    other += other >= document
    begin, end = int(documents.begins[other]), int(documents.stops[other])
    size = len(ids) - at
    start_b = begin + int(rng.integers(max(end - begin - size, 0) + 1))
    near = max(begin, start_b - len(ids))  # back to where the sentence starts, if that is not further than a row
    ended = np.flatnonzero(documents.ends_sentence[documents.tokens[near:start_b]])
    if len(ended):
        start_b = near + int(ended[-1]) + 1
    elif near == begin:
        start_b = begin
    return Pair(ids[:at], documents.tokens[start_b : min(start_b + size, end)], 1)


def sentence_order(documents: Documents, start: int, stop: int, rng: np.random.Generator) -> Pair:
    """A and B from tokens[start:stop], two or more tokens of one document; in half of the draws, swapped."""
    ids = documents.tokens[start:stop]
    at = cut(documents, ids, rng)
    first, second = ids[:at], ids[at:]
    return Pair(first, second, 0) if rng.random() < 0.5 else Pair(second, first, 1)


def cut(documents: Documents, ids: np.ndarray, rng: np.random.Generator) -> int:
    """Where to cut these tokens in two: after a sentence, all as likely; without one, before a word; else anywhere."""
    places = np.flatnonzero(documents.ends_sentence[ids[:-1]])
    if not len(places):
        places = np.flatnonzero(~documents.continues[ids[1:]])
    if not len(places):
        places = np.arange(len(ids) - 1)
    return int(places[rng.integers(len(places))]) + 1
