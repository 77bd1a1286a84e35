"""The effect of a variant of a protein, without training on any: masked marginals (Meier et al. 2021).

Letters: R residues, B rows, T length, V vocabulary.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax.errors import InputError
from transformer_jax.tasks.masked_lm import filling, masked

ROWS = 16  # masked copies of the sequence in a batch
VARIANT = re.compile(r"([A-Z])([0-9]+)([A-Z])")


def masked_marginals(params: Any, model_cfg: Any, tokenizer: Any, sequence: str) -> np.ndarray:
    """The log-probability of each token at each residue when that residue alone is hidden, float32 [R, V].

    Args:
      params: the parameters of the encoder.
      model_cfg: the encoder, with the head "mlm".
      tokenizer: with a token for each residue, such as `tokenizers.Residues`.
      sequence: R residues.

    Raises:
      InputError: a residue without a token of its own, or more residues than the model reads.
    """
    known, ids = masked.vocabulary(tokenizer), tokenizer.encode(sequence)
    if len(ids) != len(sequence) or (tokenizer.special.unk is not None and (ids == tokenizer.special.unk).any()):
        raise InputError(f"{sequence[:20]!r}: not a token for each of its {len(sequence)} letters; mend the sequence")
    if not 0 < len(ids) <= model_cfg.max_length - 2:
        raise InputError(f"{len(ids)} residues, where the model reads 1 to {model_cfg.max_length - 2}; give a part")
    found = []
    for first in range(0, len(ids), ROWS):
        at_B = np.minimum(np.arange(first, first + ROWS), len(ids) - 1)
        tokens_BT = np.tile(np.concatenate([[known.cls], ids, [known.sep]]).astype(np.int32), (ROWS, 1))
        tokens_BT[np.arange(ROWS), at_B + 1] = known.mask
        found.append(np.asarray(_marginals(params, model_cfg, tokens_BT, (at_B + 1)[:, None].astype(np.int32))))
    return np.concatenate(found)[: len(ids), 0]


@functools.partial(jax.jit, static_argnames="model_cfg")
def _marginals(params: Any, model_cfg: Any, tokens_BT: jax.Array, positions_B1: jax.Array) -> jax.Array:
    lengths_B = jax.numpy.full(tokens_BT.shape[0], tokens_BT.shape[1])
    return filling.log_probabilities(params, model_cfg, tokens_BT, lengths_B, positions_B1)


def effects(params: Any, model_cfg: Any, tokenizer: Any, sequence: str, variants: Sequence[str]) -> list[float]:
    """For each variant the log-probability of the new residues minus that of the old; below 0: less likely.

    Args:
      params: as for `masked_marginals`.
      model_cfg: as for `masked_marginals`.
      tokenizer: as for `masked_marginals`.
      sequence: as for `masked_marginals`.
      variants: "A24G", the residue A at position 24, from 1, replaced by G; several at once as "A24G:K30R".

    Raises:
      InputError: a variant of another residue than the sequence has there.
    """
    parts = [[_parsed(part, sequence) for part in variant.split(":")] for variant in variants]
    marginals_RV = masked_marginals(params, model_cfg, tokenizer, sequence)

    def one(old: str, at: int, new: str) -> float:
        (old_id,), (new_id,) = tokenizer.encode(old), tokenizer.encode(new)
        return float(marginals_RV[at, new_id] - marginals_RV[at, old_id])

    return [sum(one(*part) for part in variant) for variant in parts]


def _parsed(variant: str, sequence: str) -> tuple[str, int, str]:
    """(old residue, its position from 0, new residue)."""
    found = VARIANT.fullmatch(variant.strip().upper())
    if found is None:
        raise InputError(f"{variant!r} is not a variant; write A24G for G in place of A at position 24")
    old, at, new = found[1], int(found[2]) - 1, found[3]
    if not 0 <= at < len(sequence) or sequence[at].upper() != old:
        there = f"has {sequence[at]!r} there" if 0 <= at < len(sequence) else f"ends at position {len(sequence)}"
        raise InputError(f"variant {variant!r}: the sequence {there}; positions count from 1")
    return old, at, new
