"""Connectionist temporal classification (Graves et al. 2006): the likelihood of labels whose times are not known.

The model gives a distribution over the labels and a blank for each frame. A path is one symbol per frame; it spells the
labels that are left when repeated symbols are merged and blanks removed. The loss is minus the log of the sum of the
probabilities of all paths that spell the labels.

B rows, T frames, S labels, V symbols.
"""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.losses import CrossEntropy


def ctc(
    logits_BTV: jax.Array,
    frames_B: jax.Array,
    labels_BS: jax.Array,
    sizes_B: jax.Array,
    weights_B: jax.Array | None = None,
    *,
    blank: int = 0,
) -> CrossEntropy:
    """The sum over the rows of weight times the loss in nats, the sum of the weights, and the same sum to report.

    `optax.ctc_loss` in float32. A row whose frames cannot spell its labels (`frames_needed`) has a loss of about 1e5
    there, from which nothing is learnt: find such rows before training. Where the labels are almost certain its sum
    rounds below zero, by about 1e-6 a frame; the returned loss is at least 0, with the gradient unchanged.

    Args:
      logits_BTV: logits of any float dtype.
      frames_B: int, frames of each row before its padding.
      labels_BS: int, without blanks; what follows a row's `sizes_B` labels is ignored.
      sizes_B: int, labels of each row.
      weights_B: None: all 1.
      blank: the symbol of the blank.
    """
    import optax

    B, T, _ = logits_BTV.shape
    weights_B = jnp.ones(B, jnp.float32) if weights_B is None else weights_B.astype(jnp.float32)
    padding_BT = (jnp.arange(T) >= frames_B[:, None]).astype(jnp.float32)
    padding_BS = (jnp.arange(labels_BS.shape[1]) >= sizes_B[:, None]).astype(jnp.float32)
    nats_B = optax.ctc_loss(logits_BTV.astype(jnp.float32), padding_BT, labels_BS, padding_BS, blank_id=blank)
    nats_B = nats_B + jax.lax.stop_gradient(jnp.maximum(nats_B, 0.0) - nats_B)
    nats_B = jnp.where(weights_B > 0, nats_B, 0.0)
    total = jnp.sum(nats_B * weights_B)
    return CrossEntropy(total, jnp.sum(weights_B), jax.lax.stop_gradient(total))


def frames_needed(labels: np.ndarray) -> int:
    """The fewest frames that can spell these labels: one for each, and a blank between two equal neighbours.

    Args:
      labels: int [S].
    """
    labels = np.asarray(labels)
    return len(labels) + int((labels[1:] == labels[:-1]).sum())
