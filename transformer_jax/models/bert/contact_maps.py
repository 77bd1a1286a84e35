"""Contacts of a protein from attention: which residues are near each other in space (Rao et al. 2021).

L layers, B batch, N heads, T tokens, R = T - 2 residues.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.nn import layers


def logits(p: Any, w_LBNTT: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """Logits [B, R, R] float32 of a contact: a logistic regression on the maps of all layers and heads.

    Each map is made symmetric, and its average product correction is subtracted: the product of the sums of row and
    column over the sum of all.

    Args:
      p: the regression, a dense layer of L N inputs.
      w_LBNTT: attention probabilities of tokens that begin and end with a special one.
      lengths_B: tokens of each row before its padding; None: no padding.
    """
    L, B, N, T, _ = w_LBNTT.shape
    ends_B = jnp.full(B, T) if lengths_B is None else lengths_B
    is_residue_BT = (jnp.arange(T) < ends_B[:, None] - 1).astype(jnp.float32)
    kept_BTT = is_residue_BT[:, :, None] * is_residue_BT[:, None, :]
    maps_BfRR = jnp.moveaxis(w_LBNTT, 0, 1).reshape(B, L * N, T, T) * kept_BTT[:, None]
    maps_BfRR = maps_BfRR[:, :, 1:-1, 1:-1]
    maps_BfRR = maps_BfRR + jnp.swapaxes(maps_BfRR, -1, -2)
    rows, columns = (jnp.sum(maps_BfRR, axis=axis, keepdims=True) for axis in (-1, -2))
    product = rows * columns / jnp.sum(maps_BfRR, axis=(-1, -2), keepdims=True)
    kernel_f = layers.matrix(p)[:, 0]
    return jnp.einsum("BfRS,f->BRS", maps_BfRR - product, kernel_f, precision="highest") + p["bias"]


def precision(logits_RR: np.ndarray, touches_RR: np.ndarray, *, apart: int = 6, fraction: float = 0.2) -> float:
    """The share of contacts among the pairs of the highest logits: precision at L/5 (CASP).

    Args:
      logits_RR: higher for more probable contacts.
      touches_RR: bool, the contacts of the structure.
      apart: positions between two residues at least; 24 for long-range contacts.
      fraction: how many pairs are taken, as a share of the residues; at least one.
    """
    first, second = np.triu_indices(len(logits_RR), apart)
    best = np.argsort(-logits_RR[first, second], kind="stable")[: max(1, int(len(logits_RR) * fraction))]
    return float(touches_RR[first[best], second[best]].mean())
