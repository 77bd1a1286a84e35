"""Packing: nothing is lost, nothing is twice, short texts stay whole, and rows are nearly full."""

import numpy as np
import pytest

from transformer_jax.objectives import packing


def lengths(seed: int = 0, documents: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).geometric(1 / 60, documents) - 1  # some are empty


@pytest.mark.parametrize(("length", "overhead"), [(128, 0), (128, 2), (32, 2), (3, 2)])
def test_every_token_once(length, overhead):
    sizes = lengths()
    packed = packing.pack(sizes, length, overhead=overhead)
    seen = [np.zeros(n, int) for n in sizes]
    for row in range(len(packed)):
        pieces = packed[row]
        assert len(pieces) and (pieces[:, 2] > 0).all()
        assert (pieces[:, 2] + overhead).sum() <= length
        for document, offset, size in pieces:
            seen[document][offset : offset + size] += 1
    assert all((times == 1).all() for times in seen)


def test_only_what_is_longer_than_a_row_is_cut():
    sizes = lengths()
    pieces = packing.pack(sizes, 128, overhead=2).pieces
    count = np.bincount(pieces[:, 0], minlength=len(sizes))
    assert (count == np.ceil(sizes / 126)).all()


def test_rows_are_nearly_full():
    sizes = lengths()
    rows = len(packing.pack(sizes, 128))
    assert sizes.sum() / (128 * rows) > 0.99


def test_the_fullest_row_is_taken():
    """7 and 6 open two rows of ten; 3 goes to the seven, 4 to the six, and both are full."""
    packed = packing.pack(np.array([6, 3, 4, 7]), 10)
    assert [packed[row].tolist() for row in range(len(packed))] == [
        [[3, 0, 7], [1, 0, 3]],
        [[0, 0, 6], [2, 0, 4]],
    ]


def test_deterministic():
    one, other = packing.pack(lengths(), 64), packing.pack(lengths(), 64)
    assert (one.pieces == other.pieces).all() and (one.starts == other.starts).all()


def test_no_room():
    with pytest.raises(ValueError, match="no room"):
        packing.pack(lengths(), 2, overhead=2)
