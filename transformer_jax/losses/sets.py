"""The loss of a set of predictions against a set of objects (DETR: Carion et al. 2020, arXiv 2005.12872, section 3.1).

Each object is matched with one prediction so that the total cost is the least possible. The matching is computed on the
device, inside the jitted loss, and has no gradient. A prediction without an object is to say "no object".

Boxes are (centre x, centre y, width, height) as shares of the image's width and height. Objects are padded to a fixed
number; a padded one has weight 0 and takes no part.

B images, M objects of an image, padding included, Q predictions, M <= Q, K classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from transformer_jax.errors import InputError


class Objects(NamedTuple):
    """The objects of a batch of images.

    Attributes:
      boxes: float32 [B, M, 4].
      classes: int32 [B, M], each in [0, K).
      weights: float32 [B, M], 1 for an object and 0 for padding.
    """

    boxes: jax.Array
    classes: jax.Array
    weights: jax.Array


@dataclass(frozen=True)
class Costs:
    """The weights of the matching's costs and of the loss's terms; the defaults are DETR's and YOLOS's."""

    classes: float = 1.0
    """Of minus the probability of the object's class in the matching, and of the cross-entropy in the loss."""
    l1: float = 5.0
    """Of the sum of the four absolute differences of the boxes."""
    giou: float = 2.0
    """Of one minus the generalised intersection over union."""
    no_object: float = 0.1
    """The weight of a prediction without an object in the mean of the cross-entropy."""


class SetLoss(NamedTuple):
    """What `set_loss` returns for each image, float32 [B].

    Attributes:
      loss: the weighted sum of the three terms.
      nats: the cross-entropy of the classes.
      l1: the sum over the objects of the boxes' absolute differences.
      iou: the sum over the objects of the intersection over union with their predictions.
      right: the number of objects whose prediction has the highest logit at their class.
      empty: the number of predictions that say "no object".
    """

    loss: jax.Array
    nats: jax.Array
    l1: jax.Array
    iou: jax.Array
    right: jax.Array
    empty: jax.Array


def corners(boxes: jax.Array) -> jax.Array:
    """(left, top, right, bottom) of `boxes` given by centre and size, [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def overlap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(intersection over union, generalised intersection over union) of boxes, [...] each (Rezatofighi et al. 2019).

    Args:
      a: boxes [..., 4], by centre and size.
      b: boxes [..., 4], by centre and size; the leading dimensions broadcast.
    """
    a_corners, b_corners = corners(a), corners(b)
    size = jnp.minimum(a_corners[..., 2:], b_corners[..., 2:]) - jnp.maximum(a_corners[..., :2], b_corners[..., :2])
    both = jnp.prod(jnp.maximum(size, 0.0), axis=-1)
    around = jnp.maximum(a_corners[..., 2:], b_corners[..., 2:]) - jnp.minimum(a_corners[..., :2], b_corners[..., :2])
    hull = jnp.maximum(jnp.prod(around, axis=-1), 1e-9)
    either = jnp.maximum(jnp.prod(a[..., 2:], axis=-1) + jnp.prod(b[..., 2:], axis=-1) - both, 1e-9)
    return both / either, both / either - (hull - either) / hull


def match(costs_BMQ: jax.Array, weights_BM: jax.Array) -> jax.Array:
    """The prediction of each object, int32 [B, M], such that the total cost is the least possible.

    No prediction is matched twice; padded objects get what is left. Rows are objects, because those are few: the
    algorithm takes time in proportion to M^2 Q.

    Args:
      costs_BMQ: float. Values that are not finite count as very high costs.
      weights_BM: 0 for padded objects.

    Raises:
      InputError: more objects than predictions.
    """
    B, M, Q = costs_BMQ.shape
    if M > Q:
        raise InputError(f"there are {M} objects for {Q} predictions; give the model as many queries, or fewer objects")
    if not M:
        return jnp.zeros((B, 0), jnp.int32)
    # The search would not end if a cost were NaN.
    costs_BMQ = jnp.nan_to_num(costs_BMQ.astype(jnp.float32), nan=1e6, posinf=1e6, neginf=-1e6)
    costs_BMQ = jax.lax.stop_gradient(jnp.where(weights_BM[..., None] > 0, costs_BMQ, 0.0))

    def one(costs_MQ: jax.Array) -> jax.Array:
        rows, columns = optax.assignment.hungarian_algorithm(costs_MQ)
        return jnp.zeros(M, jnp.int32).at[rows].set(columns.astype(jnp.int32))

    return jax.vmap(one)(costs_BMQ)


def set_loss(logits_BQK: jax.Array, boxes_BQ4: jax.Array, objects: Objects, costs: Costs) -> SetLoss:
    """The set loss of each image.

    The class term is the mean cross-entropy over the predictions, in which those without an object weigh
    `costs.no_object`; the box terms are means over the image's objects. Both means are an image's own, so that
    micro-batches and devices add up to the same loss.

    Args:
      logits_BQK: float32, with one more class than the objects have: the last is "no object".
      boxes_BQ4: float32.
      objects: the objects of the images.
      costs: the weights of the terms.
    """
    logits_BQK, boxes_BQ4 = logits_BQK.astype(jnp.float32), boxes_BQ4.astype(jnp.float32)
    log_p_BQK = jax.nn.log_softmax(logits_BQK)
    own_BMQ = jnp.take_along_axis(jnp.exp(log_p_BQK), objects.classes[:, None, :], axis=-1).swapaxes(1, 2)
    pairs_BMQ = objects.boxes[:, :, None], boxes_BQ4[:, None]
    distance_BMQ = jnp.sum(jnp.abs(pairs_BMQ[0] - pairs_BMQ[1]), axis=-1)
    costs_BMQ = costs.l1 * distance_BMQ - costs.giou * overlap(*pairs_BMQ)[1] - costs.classes * own_BMQ
    matched_BM = match(costs_BMQ, objects.weights)

    nats_B, right_B, empty_B = class_terms(log_p_BQK, matched_BM, objects.classes, objects.weights, costs.no_object)
    found_BM4 = jnp.take_along_axis(boxes_BQ4, matched_BM[..., None], axis=1)
    l1_BM = jnp.sum(jnp.abs(found_BM4 - objects.boxes), axis=-1) * objects.weights
    iou_BM, giou_BM = (x * objects.weights for x in overlap(found_BM4, objects.boxes))
    count_B = jnp.sum(objects.weights, axis=-1)
    box_B = costs.l1 * jnp.sum(l1_BM, axis=-1) + costs.giou * (count_B - jnp.sum(giou_BM, axis=-1))
    loss_B = costs.classes * nats_B + box_B / jnp.maximum(count_B, 1.0)

    sums = (nats_B, jnp.sum(l1_BM, axis=-1), jnp.sum(iou_BM, axis=-1), right_B, empty_B)
    return SetLoss(loss_B, *jax.lax.stop_gradient(sums))


def class_terms(
    log_p_BQK: jax.Array, matched_BM: jax.Array, classes_BM: jax.Array, weights_BM: jax.Array, no_object: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(cross-entropy, objects whose prediction names their class, predictions that say "no object"), [B] each.

    Args:
      log_p_BQK: logarithms of the classes' probabilities; the last is "no object".
      matched_BM: the prediction of each object, of `match`.
      classes_BM: of the objects.
      weights_BM: 0 for padded objects.
      no_object: the weight of a prediction without an object in the mean of the cross-entropy.
    """
    nothing, Q = log_p_BQK.shape[-1] - 1, log_p_BQK.shape[1]
    chosen_BMQ = jax.nn.one_hot(matched_BM, Q) * weights_BM[..., None]
    some_BQ = jnp.sum(chosen_BMQ, axis=1)
    wanted_BQ = jnp.einsum("BMQ,BM->BQ", chosen_BMQ, classes_BM.astype(jnp.float32), precision="highest")
    wanted_BQ = jnp.where(some_BQ > 0, wanted_BQ, nothing).astype(jnp.int32)
    weight_BQ = jnp.where(some_BQ > 0, 1.0, no_object)
    nats_BQ = -jnp.take_along_axis(log_p_BQK, wanted_BQ[..., None], axis=-1)[..., 0]
    says_BQ = jnp.argmax(log_p_BQK, axis=-1)
    right_BM = (jnp.take_along_axis(says_BQ, matched_BM, axis=1) == classes_BM) * weights_BM
    nats_B = jnp.sum(weight_BQ * nats_BQ, axis=-1) / jnp.sum(weight_BQ, axis=-1)
    return nats_B, jnp.sum(right_BM, axis=-1), jnp.sum(says_BQ == nothing, axis=-1)
