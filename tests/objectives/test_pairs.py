"""Pairs: half of them follow, the cut is after a sentence, the other document is really another."""

import math

import numpy as np
import pytest

from transformer_jax import objectives
from transformer_jax.errors import InputError
from transformer_jax.objectives import pairs

STOP = 7


def documents(count: int = 5, size: int = 400, ends: bool = True) -> pairs.Documents:
    """Tokens 1000 * document + position, so that a token says where it is from; every 11th ends a sentence."""
    tokens = (np.arange(count)[:, None] * 1000 + np.arange(size)).reshape(-1)
    ends_sentence = np.zeros(count * 1000, bool)
    ends_sentence[tokens] = ends & (tokens % 11 == STOP)
    begins = np.arange(count) * size
    return pairs.Documents(tokens, begins, begins + size, ends_sentence, np.arange(count * 1000) % 2 == 1)


def near_half(count: int, n: int) -> bool:
    return abs(count - n / 2) < 3 * math.sqrt(n / 4)


def test_next_sentence():
    """Of 10^4 draws half follow (within 3 sigma); the others are from each other document alike, none from the same."""
    text, n = documents(), 10_000
    others = np.zeros(5, int)
    for i in range(n):
        pair = pairs.next_sentence(text, 1, 450, 525, objectives.generator(0, i))
        assert (pair.a == text.tokens[450 : 450 + len(pair.a)]).all() and text.ends_sentence[pair.a[-1]]
        assert len(pair.b) > 0 and len(pair.a) + len(pair.b) == 75
        if pair.label == 0:
            assert pair.b[0] == pair.a[-1] + 1
        else:
            others[pair.b[0] // 1000] += 1
            assert (np.diff(pair.b) == 1).all(), "B is one piece of one document"
            assert text.ends_sentence[pair.b[0] - 1] or pair.b[0] % 1000 == 0, "B begins a sentence"
    assert near_half(others.sum(), n) and others[1] == 0
    rest = others[[0, 2, 3, 4]]
    assert (abs(rest - rest.sum() / 4) < 3 * math.sqrt(rest.sum() * 3 / 16)).all()


def test_sentence_order():
    text, n = documents(), 10_000
    swapped = 0
    for i in range(n):
        pair = pairs.sentence_order(text, 450, 525, objectives.generator(0, i))
        first, second = (pair.a, pair.b) if pair.label == 0 else (pair.b, pair.a)
        assert (np.concatenate([first, second]) == text.tokens[450:525]).all() and text.ends_sentence[first[-1]]
        swapped += pair.label
    assert near_half(swapped, n)


def test_every_sentence_end_is_as_likely():
    text = documents()
    cuts = [pairs.split_point(text, text.tokens[450:525], objectives.generator(0, i)) for i in range(7000)]
    places, times = np.unique(cuts, return_counts=True)
    assert (places == np.flatnonzero(text.ends_sentence[text.tokens[450:524]]) + 1).all()
    share = 1 / len(places)
    assert (abs(times - 7000 * share) < 3.5 * math.sqrt(7000 * share * (1 - share))).all()


def test_without_a_sentence_end():
    """Before a word; within one where there is no other."""
    text = documents(ends=False)
    for i in range(50):
        assert text.tokens[450 + pairs.split_point(text, text.tokens[450:525], objectives.generator(0, i))] % 2 == 0
    one_word = pairs.Documents(text.tokens, text.begins, text.stops, text.ends_sentence, np.ones(5000, bool))
    assert {pairs.split_point(one_word, text.tokens[:4], objectives.generator(0, i)) for i in range(50)} == {1, 2, 3}


def test_short_documents():
    """Documents of two tokens: A and B have one each."""
    text = documents(size=2)
    for i in range(50):
        pair = pairs.next_sentence(text, 0, 0, 2, objectives.generator(0, i))
        assert len(pair.a) == len(pair.b) == 1 and (pair.b[0] // 1000 == 0) == (pair.label == 0)


def test_one_document_has_no_other():
    with pytest.raises(InputError, match="two documents"):
        pairs.next_sentence(documents(count=1), 0, 0, 50, objectives.generator(0, 0))
