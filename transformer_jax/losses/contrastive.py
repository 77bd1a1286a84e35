"""Contrastive losses: the right side of each pair is nearer to its left side than those of the other pairs are.

    loss = contrastive.info_nce(left_BE, right_BE, scale)            # CLIP, sentence embeddings
    loss = contrastive.sigmoid(left_BE, right_BE, scale, bias)       # SigLIP

A row's loss depends on all rows, so a batch cannot be split into micro-batches whose losses are added. `in_parts`
computes the embeddings in micro-batches and the loss of the whole batch. Over a sharded batch the result is that of
one device: the right side is gathered, and each device has the rows of the logits that belong to its left side.

Each other pair of the batch is a negative, also one with the same text, as in the published losses. With
`shared_tokens` texts that are equal, or share rare words, are right sides of each other as well, in part.

B pairs, C right sides (B, and after them the hard negatives), E embedding width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.nn import layers

HIDDEN = -1e30  # the logit of a right side that does not count


class Contrast(NamedTuple):
    """What a contrastive loss returns, float32 scalars.

    Attributes:
      sum: the weighted sum of the pairs' losses in nats, which training minimises.
      weight: the sum of the weights.
      found: the weighted number of pairs whose right side is the nearest of the batch to the left one; no gradient.
    """

    sum: jax.Array
    weight: jax.Array
    found: jax.Array


def info_nce(
    left_BE: jax.Array,
    right_BE: jax.Array,
    scale: jax.Array | float,
    weights_B: jax.Array | None = None,
    *,
    negatives_BHE: jax.Array | None = None,
    shared_BB: jax.Array | None = None,
    sizes: Sequence[int] = (),
) -> Contrast:
    """The cross-entropy of the right side given the left one, and of the left given the right, the mean of both.

    This is the loss of CLIP (Radford et al. 2021, figure 3), and with `negatives_BHE`, which are further right sides,
    that of sentence embeddings (Reimers and Gurevych's MultipleNegativesRankingLoss, both ways).

    Args:
      left_BE: any length; they are normalised.
      right_BE: the same shape; normalised too.
      scale: the inverse temperature, which multiplies the cosines.
      weights_B: 0 for rows that are padding, which are no negatives of other rows either; None: all 1.
      negatives_BHE: H hard negatives of each row; None: none.
      shared_BB: symmetric, in [0, 1], 1 on the diagonal: how much the right side of row j is right for row i too. The
        targets are its rows, and its columns, divided by their sums (Yang et al. 2022, "UniCL", where it is 0 or 1);
        None: a row's own right side alone.
      sizes: widths m; the loss is the mean over them of the loss of the first m features (matryoshka, Kusupati et al.
        2022); (): all features.
    """
    logits, weights_B = _logits(left_BE, right_BE, negatives_BHE, weights_B, sizes), _weights(left_BE, weights_B)

    def one(cosines_BC: jax.Array) -> jax.Array:
        logits_BC = cosines_BC * scale
        counts_C = _counts(weights_B, logits_BC.shape[1])
        own_B = jnp.sum(jnp.where(_own(logits_BC), logits_BC, 0.0), axis=1)
        to_right_B = jax.nn.logsumexp(jnp.where(counts_C, logits_BC, HIDDEN), axis=1)
        rows_B1 = (weights_B > 0)[:, None]
        to_left_B = jax.nn.logsumexp(jnp.where(rows_B1, logits_BC[:, : len(own_B)], HIDDEN), axis=0)
        if shared_BB is not None:
            own_B = _shared(logits_BC[:, : len(own_B)], jnp.where(counts_C[: len(own_B)] & rows_B1, shared_BB, 0.0))
        nats_B = (to_right_B + sharding.constrain(to_left_B, ("batch",))) / 2 - own_B
        return jnp.sum(weights_B * nats_B)

    return _over_sizes(one, logits, weights_B)


def sigmoid(
    left_BE: jax.Array,
    right_BE: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
    weights_B: jax.Array | None = None,
    *,
    negatives_BHE: jax.Array | None = None,
    sizes: Sequence[int] = (),
) -> Contrast:
    """The binary cross-entropy of every left and right side being a pair, summed over the right sides.

    This is the loss of SigLIP (Zhai et al. 2023, section 3.2).

    Args:
      left_BE: as for `info_nce`.
      right_BE: as for `info_nce`.
      scale: as for `info_nce`.
      bias: added to the logits.
      weights_B: as for `info_nce`.
      negatives_BHE: as for `info_nce`.
      sizes: as for `info_nce`.
    """
    logits, weights_B = _logits(left_BE, right_BE, negatives_BHE, weights_B, sizes), _weights(left_BE, weights_B)

    def one(cosines_BC: jax.Array) -> jax.Array:
        logits_BC = cosines_BC * scale + bias
        nats_BC = -jax.nn.log_sigmoid(jnp.where(_own(logits_BC), logits_BC, -logits_BC))
        counts_C = _counts(weights_B, logits_BC.shape[1])
        return jnp.sum(weights_B * jnp.sum(jnp.where(counts_C, nats_BC, 0.0), axis=1))

    return _over_sizes(one, logits, weights_B)


def _over_sizes(one: Callable[[jax.Array], jax.Array], cosines: list[jax.Array], weights_B: jax.Array) -> Contrast:
    """The mean over the sizes of the sum that `one` gives; `found` is of the last size."""
    full_BC = jnp.where(_counts(weights_B, cosines[-1].shape[1]), cosines[-1], HIDDEN)
    is_found_B = jnp.argmax(full_BC, axis=1) == jnp.arange(len(full_BC))
    found = jax.lax.stop_gradient(jnp.sum(weights_B * is_found_B))
    total = jnp.sum(jnp.stack([one(cosines_BC) for cosines_BC in cosines]))
    return Contrast(total / len(cosines), jnp.sum(weights_B), found)


def _logits(
    left_BE: jax.Array,
    right_BE: jax.Array,
    negatives_BHE: jax.Array | None,
    weights_B: jax.Array | None,
    sizes: Sequence[int],
) -> list[jax.Array]:
    """The cosines [B, C] float32 of the left sides and all right sides, for each size."""
    right_CE = sharding.constrain(right_BE, (None, None))
    if negatives_BHE is not None:
        negatives_BHE = sharding.constrain(negatives_BHE, (None, None, None))
        right_CE = jnp.concatenate([right_CE, negatives_BHE.reshape(-1, negatives_BHE.shape[-1])])
    left_BE = sharding.constrain(left_BE, ("batch", None))

    def cosines(width: int) -> jax.Array:
        left, right = (layers.unit_length(x[:, :width]) for x in (left_BE, right_CE))
        return sharding.einsum("BE,CE->BC", left, right, out=("batch", None), dtype=jnp.float32)

    return [cosines(width) for width in sizes or (left_BE.shape[1],)]


def _shared(logits_BB: jax.Array, shared_BB: jax.Array) -> jax.Array:
    """The mean logit of each row's targets in both directions, [B]; rows without a weight have 0."""

    def mean(axis: int) -> jax.Array:
        total_B = jnp.sum(shared_BB * logits_BB, axis=axis) / jnp.maximum(jnp.sum(shared_BB, axis=axis), 1e-30)
        return sharding.constrain(total_B, ("batch",))

    return (mean(0) + mean(1)) / 2


def shared_tokens(
    tokens_BT: jax.Array, lengths_B: jax.Array, weights_B: jax.Array, *, vocab_size: int, share: float
) -> jax.Array:
    """How much each text of a batch is also right for the others, float32 [B, B], for `info_nce`.

    1 for texts of the same tokens in any order; otherwise `share` times the square of the cosine of their bags of
    tokens. A token counts by the logarithm of the batch's texts over those that have it, special tokens therefore by 0.

    Args:
      tokens_BT: the texts.
      lengths_B: their tokens before the padding.
      weights_B: 0 for rows that are padding.
      vocab_size: the number of token ids.
      share: from 0, so that only equal texts count, to 1.
    """
    B, T = tokens_BT.shape
    inside_BT = (jnp.arange(T) < lengths_B[:, None]) & (weights_B > 0)[:, None]
    bag_BV = jnp.zeros((B, vocab_size)).at[jnp.arange(B)[:, None], tokens_BT].max(inside_BT.astype(jnp.float32))
    bag_BV = sharding.constrain(bag_BV, (None, None))
    texts_V = jnp.maximum(jnp.sum(bag_BV, axis=0), 1.0)
    bag_BV = layers.unit_length(bag_BV * jnp.log(jnp.maximum(jnp.sum(weights_B > 0), 1) / texts_V))
    cosines_BB = sharding.einsum("BV,CV->BC", sharding.constrain(bag_BV, ("batch", None)), bag_BV, out=("batch", None))
    is_same_BB = (cosines_BB > 1 - 1e-5) | _own(cosines_BB)
    return jnp.where(is_same_BB, 1.0, share * jnp.square(cosines_BB))


def _weights(left_BE: jax.Array, weights_B: jax.Array | None) -> jax.Array:
    weights_B = jnp.ones(len(left_BE), jnp.float32) if weights_B is None else jnp.asarray(weights_B, jnp.float32)
    return sharding.constrain(weights_B, ("batch",))


def _own(logits_BC: jax.Array) -> jax.Array:
    """Where the column is the row's own right side, booleans [B, C]."""
    B, C = logits_BC.shape
    return jnp.arange(B)[:, None] == jnp.arange(C)[None]


def _counts(weights_B: jax.Array, columns: int) -> jax.Array:
    """Which right sides count: those of rows with a weight, and these rows' hard negatives; booleans [C]."""
    rows_B = sharding.constrain(weights_B > 0, (None,))
    return jnp.concatenate([rows_B, jnp.repeat(rows_B, columns // len(rows_B) - 1)])


# ------------------------------------------------------------------------------------------------------- temperature


def clipped_scale(log_scale: jax.Array, most: float) -> jax.Array:
    """exp(log_scale), at most `most`. At the bound the gradient that would raise it further is 0.

    CLIP clips the parameter after each update (Radford et al. 2021, section 2.5, at 100), to the same effect: unlike
    with a plain minimum, a scale above the bound can come back.

    Args:
      log_scale: the parameter, a scalar.
      most: the largest scale; 0: no bound.
    """
    return jnp.exp(_clipped(log_scale, math.log(most)) if most else log_scale)


@jax.custom_vjp
def _clipped(x: jax.Array, most: float) -> jax.Array:
    return jnp.minimum(x, most)


def _clipped_forward(x: jax.Array, most: float) -> tuple[jax.Array, jax.Array]:
    return jnp.minimum(x, most), x >= most


def _clipped_backward(above: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(above & (g < 0), 0.0, g), None


_clipped.defvjp(_clipped_forward, _clipped_backward)


# ------------------------------------------------------------------------------------------------------ micro-batches


def in_parts(f: Callable[[Any, jax.Array | None], Any], batch: Any, count: int, key: jax.Array | None) -> Any:
    """`f(batch, key)`, computed in micro-batches: the forward pass keeps its results alone.

    The backward pass recomputes one micro-batch after the other with the gradients of its results, which is GradCache
    (Gao et al. 2021): the memory is that of a micro-batch, the gradients are those of the whole batch.

    Args:
      f: (rows, key) -> a tree of [rows, ...]; each row's result depends on this row alone.
      batch: a tree of [B, ...].
      count: micro-batches; it must divide B. Each has its own key.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    if count == 1:
        return f(batch, key)

    def one(numbered: tuple[jax.Array, Any]) -> Any:
        i, rows = numbered
        return f(rows, None if key is None else jax.random.fold_in(key, i))

    made = jax.lax.map(jax.checkpoint(one), (jnp.arange(count), sharding.micro_batches(batch, count)))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), made)
