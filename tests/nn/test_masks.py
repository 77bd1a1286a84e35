"""Masks as literal matrices: rows are queries, columns are keys, x is allowed."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.nn.masks import Mask


def spelled(mask, T, S=None):
    dense = mask.dense(T, T if S is None else S)
    return [["".join("x" if a else "." for a in row) for row in matrix] for matrix in np.asarray(dense).tolist()]


def test_nothing_hidden_is_no_mask():
    assert Mask().dense(2, 3) is None


def test_causal():
    assert spelled(Mask(causal=True), 4) == [["x...", "xx..", "xxx.", "xxxx"]]


def test_prefix_is_visible_to_every_query():
    assert spelled(Mask(causal=True, prefix_B=jnp.array([0, 2, 4])), 4) == [
        ["x...", "xx..", "xxx.", "xxxx"],
        ["xx..", "xx..", "xxx.", "xxxx"],
        ["xxxx", "xxxx", "xxxx", "xxxx"],
    ]


def test_a_window_is_open_on_both_sides():
    assert spelled(Mask(window=1), 4) == [["xx..", "xxx.", ".xxx", "..xx"]]
    assert spelled(Mask(window=jnp.int32(3)), 4) == [["xxxx"] * 4]
    with pytest.raises(ValueError, match="window mask needs as many queries as keys; got 1 and 4"):
        Mask(window=1).dense(1, 4)


def test_segments_do_not_see_each_other():
    segments = jnp.array([[1, 1, 2, 2]])
    assert spelled(Mask(segment_BT=segments), 4) == [["xx..", "xx..", "..xx", "..xx"]]
    assert spelled(Mask(causal=True, segment_BT=segments), 4) == [["x...", "xx..", "..x.", "..xx"]]


def test_a_prefix_ends_with_its_segment():
    mask = Mask(causal=True, prefix_B=jnp.array([3]), segment_BT=jnp.array([[1, 1, 2, 2]]))
    assert spelled(mask, 4) == [["xx..", "xx..", "..x.", "..xx"]]


def test_padding_left_and_right_without_causality():
    """The same row for every query, so there is one."""
    assert spelled(Mask(start_B=jnp.array([0, 2])), 2, 4) == [["xxxx"], ["..xx"]]
    assert spelled(Mask(end_B=jnp.array([4, 1])), 2, 4) == [["xxxx"], ["x..."]]
    assert spelled(Mask(start_B=jnp.array([1]), end_B=jnp.array([3])), 1, 4) == [[".xx."]]


def test_left_padding_leaves_padded_queries_nothing():
    assert spelled(Mask(causal=True, start_B=jnp.array([2])), 4) == [["....", "....", "..x.", "..xx"]]


@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(segment_BT=jnp.ones((1, 3), int))])
def test_causal_and_segment_masks_need_as_many_queries_as_keys(mask):
    with pytest.raises(ValueError, match="as many queries as keys; got 3 and 4"):
        mask.dense(3, 4)
