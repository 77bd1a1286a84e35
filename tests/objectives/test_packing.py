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


# ---- Pairs ---------------------------------------------------------------------------------------------------------


def pair_sizes(pairs: int = 3000) -> np.ndarray:
    """Lengths as of sentences and their translations: alike, but not equal."""
    rng = np.random.default_rng(0)
    source = np.clip(rng.lognormal(2.6, 0.5, pairs), 2, 60)
    return np.stack([source, np.clip(source * rng.lognormal(0.0, 0.2, pairs) + 1, 2, 64)], axis=1).astype(int)


@pytest.mark.parametrize("room", [(64, 64), (60, 128), (200, 100)])
def test_every_pair_once_whole_and_both_sides_within_their_rooms(room):
    sizes = pair_sizes()
    packed = packing.pack_pairs(sizes, room)
    assert sorted(packed.pieces.tolist()) == list(range(len(sizes)))
    for row in range(len(packed)):
        assert len(packed[row]) and (sizes[packed[row]].sum(axis=0) <= room).all()


def test_rows_of_pairs_are_nearly_full_on_both_sides():
    sizes = pair_sizes()
    filled = sizes.sum(axis=0) / (len(packing.pack_pairs(sizes, (128, 128))) * 128)
    assert filled.min() > 0.9 and filled.mean() > 0.94


def test_a_pair_goes_where_it_leaves_the_fewest_slots():
    """7+2 and 6+6 of ten and ten open two rows; 2+2 fills the second more, whichever side of the first is fuller."""
    for sizes in ([[7, 2], [6, 6], [2, 2]], [[2, 7], [6, 6], [2, 2]]):
        packed = packing.pack_pairs(np.array(sizes), (10, 10))
        assert [packed[row].tolist() for row in range(len(packed))] == [[0], [1, 2]]


def test_rows_of_pairs_hold_neighbours_of_all_lengths():
    """Of shuffled pairs, rows do not hold one length: their means differ little more than those of random groups."""
    sizes = pair_sizes()
    packed = packing.pack_pairs(sizes, (256, 256))
    means = [sizes[packed[row], 0].mean() for row in range(len(packed))]
    groups = [sizes[i : i + 18, 0].mean() for i in range(0, len(sizes), 18)]
    assert np.std(means) < 2 * np.std(groups)


def test_pairs_deterministic_none_and_too_long():
    one, other = (packing.pack_pairs(pair_sizes(), (64, 64)) for _ in range(2))
    assert (one.pieces == other.pieces).all() and (one.starts == other.starts).all()
    assert len(packing.pack_pairs(np.zeros((0, 2), int), (8, 8))) == 0
    for sizes in ([[8, 9]], [[9, 8]], [[0, 3]]):
        with pytest.raises(ValueError, match=r"must be between 1 and \(8, 8\)"):
            packing.pack_pairs(np.array(sizes), (8, 8))
