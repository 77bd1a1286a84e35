"""Rows of whole documents for causal language modelling, as many as fit (`objectives.packing`).

A row is {"inputs": int32[T], "targets": int32[T], "segments": int32[T], "weights": float32[T]}. "segments" has the
number of each token's document in the row, from 1; 0 is padding. Attention does not cross documents and positions
restart. A document longer than a row is split. Each token that follows another of its document is predicted once, and
so is the end of text, where one token both begins and ends documents.

Letters: B rows, T length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax.data import pipeline, token_store, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.objectives import packing


@dataclass(frozen=True, eq=False)
class Packed(pipeline.StackedExamples):
    """Random-access rows of whole documents: `packed[i]` is example i."""

    tokens: "np.ndarray | token_store.Stream"
    starts: np.ndarray
    """int64 [documents]: the position of each one's first token."""
    rows: packing.Packing
    """The pieces of each row, as inputs: an input's target is the token after it."""
    order: Sequence[int]
    """Example -> row."""
    length: int

    @property
    def padding(self) -> float:
        """The share of padding in all rows."""
        return 1 - int(self.rows.pieces[:, 2].sum()) / max(1, len(self.rows) * self.length)

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch: "inputs", "targets" and "segments" int32[B, T], "weights" float32[B, T]."""
        pieces_B = [self.rows[self.order[i]] for i in numbers]
        pieces = np.concatenate(pieces_B)
        width = int(pieces[:, 2].max()) + 1  # the longest piece, and the target of its last token
        read = token_store.windows(self.tokens, self.starts[pieces[:, 0]] + pieces[:, 1], width)
        shape = (len(numbers), self.length)
        inputs_BT, targets_BT, segments_BT = (np.zeros(shape, np.int32) for _ in range(3))
        piece = 0
        for b, of_row in enumerate(pieces_B):
            at = 0
            for segment, size in enumerate(of_row[:, 2].tolist(), 1):
                inputs_BT[b, at : at + size] = read[piece, :size]
                targets_BT[b, at : at + size] = read[piece, 1 : size + 1]
                segments_BT[b, at : at + size] = segment
                at, piece = at + size, piece + 1
        weights_BT = (segments_BT > 0).astype(np.float32)
        return {"inputs": inputs_BT, "targets": targets_BT, "segments": segments_BT, "weights": weights_BT}


def rows(file: Any, tokenizer: tokenizers.Tokenizer, length: int, origin: str) -> Packed:
    """The packed rows of a token file or store, each once, in order.

    Args:
      file: a `tokens.TokenFile` or a `token_store.TokenStore`.
      tokenizer: the one that encoded it.
      length: T, tokens in a row.
      origin: names the text in messages.

    Raises:
      InputError: a tokenizer without a token before each document, or no document of two tokens.
    """
    if not tokens.frame(tokenizer)[0]:
        raise InputError(
            "data.documents packed needs a tokenizer with a beginning-of-text or end-of-text token, from which the "
            "first token of each document is predicted; choose another tokenizer, or --data.documents joined"
        )
    lengths = file.lengths()
    starts = np.cumsum(lengths) - lengths
    # Where a document begins with the token that also ends it, the first token of the next is its last target.
    joined = tokens.frame(tokenizer) == ([tokenizer.eos_id], [])
    inputs = lengths - 1
    if joined:
        inputs[:-1] += 1
    made = packing.pack(np.maximum(inputs, 0), length)
    if not len(made):
        raise InputError(f"{origin}: no document has two tokens, and predicting one needs at least 2; give more text")
    return Packed(file.tokens, starts, made, range(len(made)), length)


def joined(parts: Sequence[Packed], whole: Any) -> Packed:
    """The rows of several stores as those of one.

    Args:
      parts: the rows of each store.
      whole: `token_store.joined` of the stores.
    """
    documents, ends, pieces, starts, position = 0, [np.zeros(1, np.int64)], [], [], 0
    for part in parts:
        pieces.append(part.rows.pieces + np.array([documents, 0, 0]))
        ends.append(part.rows.starts[1:] + ends[-1][-1])
        starts.append(part.starts + position)
        documents, position = documents + len(part.starts), position + len(part.tokens)
    whole_rows = packing.Packing(np.concatenate(pieces), np.concatenate(ends))
    return Packed(whole.tokens, np.concatenate(starts), whole_rows, range(len(whole_rows)), parts[0].length)
