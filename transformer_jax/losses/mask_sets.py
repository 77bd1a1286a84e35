"""The loss of a set of masks with classes against the segments of an image (MaskFormer: Cheng et al. 2021, arXiv
2107.06278, section 3.2; Mask2Former's and EoMT's with its weights).

Each segment is matched with one mask, by the matching of `sets`. The cross-entropy of pixels and Dice compare whole
masks at the model's resolution; published code samples about as many points of them.

B images, M segments of an image, padding included, Q masks, K classes, y and x of the masks, P their pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.losses import sets

IGNORED = 255  # the number of pixels that do not count


class Segments(NamedTuple):
    """The segments of a batch of images.

    Attributes:
      numbers: int32 [B, y, x]; n + 1 is segment n of the image, 0 none of them, and `IGNORED` does not count.
      classes: int32 [B, M], each in [0, K).
      weights: float32 [B, M], 1 for a segment and 0 for padding. A segment without a pixel is padding as well.
    """

    numbers: jax.Array
    classes: jax.Array
    weights: jax.Array


@dataclass(frozen=True)
class Costs:
    """The weights of the matching's costs and of the loss's terms; the defaults are Mask2Former's and EoMT's."""

    classes: float = 2.0
    """Of minus the probability of the segment's class in the matching, and of the cross-entropy in the loss."""
    pixels: float = 5.0
    """Of the mean cross-entropy of the pixels."""
    dice: float = 5.0
    """Of one minus the Dice coefficient (Milletari et al. 2016)."""
    no_object: float = 0.1
    """The weight of a mask without a segment in the mean of the classes' cross-entropy."""


class SetLoss(NamedTuple):
    """What `set_loss` returns for each image, float32 [B].

    Attributes:
      loss: the weighted sum of the three terms.
      nats: the cross-entropy of the classes.
      pixel_nats: the sum over the segments of the pixels' cross-entropy.
      dice: the sum over the segments of one minus the Dice coefficient.
      iou: the sum over the segments of the intersection over union with their masks.
      right: the number of segments whose mask has the highest logit at their class.
      empty: the number of masks that say "no object".
      segments: the number of them.
    """

    loss: jax.Array
    nats: jax.Array
    pixel_nats: jax.Array
    dice: jax.Array
    iou: jax.Array
    right: jax.Array
    empty: jax.Array
    segments: jax.Array


def set_loss(logits_BQK: jax.Array, masks_BQyx: jax.Array, segments: Segments, costs: Costs) -> SetLoss:
    """The set loss of each image; means are an image's own, so that micro-batches and devices add up to the same loss.

    Args:
      logits_BQK: float32, with one more class than the segments have: the last is "no object".
      masks_BQyx: float32, logits.
      segments: of the images.
      costs: the weights of the terms.
    """
    log_p_BQK = jax.nn.log_softmax(logits_BQK.astype(jnp.float32))
    B, Q = masks_BQyx.shape[:2]
    numbers_BP = segments.numbers.reshape(B, -1)
    counted_BP = (numbers_BP != IGNORED).astype(jnp.float32)
    true_BMP = (numbers_BP[:, None] == jnp.arange(segments.classes.shape[1])[:, None] + 1).astype(jnp.float32)
    area_BM, pixels_B11 = jnp.sum(true_BMP, axis=-1), jnp.maximum(jnp.sum(counted_BP, axis=-1), 1.0)[:, None, None]
    weights_BM = segments.weights * (area_BM > 0)

    mask_BQP = masks_BQyx.astype(jnp.float32).reshape(B, Q, -1)
    product = lambda x_BQP: jnp.einsum("BMP,BQP->BMQ", true_BMP, x_BQP, precision="highest")  # noqa: E731
    total = lambda x_BQP: jnp.einsum("BP,BQP->BQ", counted_BP, x_BQP, precision="highest")[:, None]  # noqa: E731
    nats_BMQ = (total(jax.nn.softplus(mask_BQP)) - product(mask_BQP)) / pixels_B11
    p_BQP = jax.nn.sigmoid(mask_BQP)
    dice_BMQ = 1.0 - (2.0 * product(p_BQP) + 1.0) / (total(p_BQP) + area_BM[..., None] + 1.0)
    own_BMQ = jnp.take_along_axis(jnp.exp(log_p_BQK), segments.classes[:, None, :], axis=-1).swapaxes(1, 2)
    matched_BM = sets.match(costs.pixels * nats_BMQ + costs.dice * dice_BMQ - costs.classes * own_BMQ, weights_BM)

    def of_matched(x_BMQ: jax.Array) -> jax.Array:
        """The sum over the segments of their own masks' values, [B]."""
        return jnp.sum(jnp.take_along_axis(x_BMQ, matched_BM[..., None], axis=-1)[..., 0] * weights_BM, axis=-1)

    nats_B, right_B, empty_B = sets.class_terms(log_p_BQK, matched_BM, segments.classes, weights_BM, costs.no_object)
    inside_BQP = (mask_BQP > 0).astype(jnp.float32)
    both_BMQ = product(inside_BQP)
    iou_BMQ = both_BMQ / jnp.maximum(total(inside_BQP) + area_BM[..., None] - both_BMQ, 1.0)
    pixel_B, dice_B, iou_B = (of_matched(x_BMQ) for x_BMQ in (nats_BMQ, dice_BMQ, iou_BMQ))
    count_B = jnp.sum(weights_BM, axis=-1)
    mask_B = (costs.pixels * pixel_B + costs.dice * dice_B) / jnp.maximum(count_B, 1.0)
    sums = (nats_B, pixel_B, dice_B, iou_B, right_B, empty_B, count_B)
    return SetLoss(costs.classes * nats_B + mask_B, *jax.lax.stop_gradient(sums))
