"""The rows of a corpus for masked language modelling, before they are masked.

Every row begins with the tokenizer's [CLS] and ends with its [SEP]. The layout decides what is between them:

    "full"        adjacent windows of the whole corpus, with [SEP] between documents: the FULL-SENTENCES of RoBERTa (Liu
                  et al. 2019, section 4.2). There is no padding.
    "packed"      as many documents as fit, each [CLS] ... [SEP] with its own segment number, from 1. Attention does not
                  cross segments. Documents longer than a row are split.
    "next_sentence", "sentence_order"
                  [CLS] A [SEP] B [SEP] from one part of a document, types 0 and 1, and a label (`objectives.pairs`).
                  One row in ten is shorter, down to two tokens (Devlin et al. 2019, google-research/bert).

Letters: T length, V vocabulary, D documents.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from transformer_jax.errors import InputError
from transformer_jax.objectives import packing, pairs

SHORTER = 0.1  # share of pairs that are shortened at random


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The properties of a tokenizer's ids that the objectives need."""

    cls: int
    sep: int
    mask: int
    ordinary: np.ndarray
    """bool [V]: whether a token is not special. Only ordinary tokens are masked, and random tokens are ordinary."""
    continues: np.ndarray
    """bool [V]: whether a token continues the word before it."""
    ends_sentence: np.ndarray
    """bool [V]: whether a token's text ends in a full stop, a question or exclamation mark, or a newline."""

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        """int32: the ids of the ordinary tokens."""
        return np.flatnonzero(self.ordinary).astype(np.int32)


class Rows(Protocol):
    """A corpus in rows. `make` returns the arrays of a row without masks, and "maskable": bool[T]."""

    def __len__(self) -> int: ...
    def make(self, row: int, rng: np.random.Generator) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class FullSentences:
    """Windows of the stream of all documents with one [SEP] between them."""

    text: pairs.Documents
    vocabulary: Vocabulary
    length: int
    separators: np.ndarray
    """int64 [D - 1]: the positions of the [SEP]s in the stream."""
    size: int
    """Tokens of the stream."""
    count: int

    @classmethod
    def lay_out(
        cls, text: pairs.Documents, known: Vocabulary, length: int, *, whole: bool, origin: str
    ) -> "FullSentences":
        """The rows of a corpus.

        Args:
          text: its documents.
          known: the tokenizer's ids.
          length: T, tokens in a row.
          whole: whether the rest at the end is dropped; otherwise the last row begins earlier, so that it is full.
          origin: names the corpus in messages.

        Raises:
          InputError: it is shorter than a row.
        """
        room = length - 2
        sizes = text.stops - text.begins
        separators = np.cumsum(sizes + 1)[:-1] - 1
        size = int(sizes.sum()) + len(separators)
        if size < room:
            raise InputError(f"{origin}, but one row needs {room}; give more text or lower data.length = {length}")
        return cls(text, known, length, separators, size, size // room if whole else -(-size // room))

    def __len__(self) -> int:
        return self.count

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        room = self.length - 2
        start = min(row * room, self.size - room)
        # The separators before and in the window give the documents in it.
        before, after = np.searchsorted(self.separators, (start, start + room))
        inside = self.separators[before:after] - start
        is_text = np.ones(self.length, bool)
        is_text[0] = is_text[-1] = False
        is_text[inside + 1] = False
        tokens_T = np.full(self.length, self.vocabulary.sep, np.int32)
        tokens_T[0] = self.vocabulary.cls
        tokens_T[is_text] = self._text(start - before, int(before), int(after), room - len(inside))
        maskable_T = self.vocabulary.ordinary[tokens_T]
        maskable_T[1 : 1 + row * room - start] = False  # the row before predicts these
        return {"tokens": tokens_T, "maskable": maskable_T}

    def _text(self, at: int, first: int, last: int, count: int) -> np.ndarray:
        """`count` tokens from position `at`, without end-of-text tokens, of documents `first` to `last`."""
        text = self.text
        gap = int(text.begins[0])  # 1 if an end-of-text token precedes each document, else 0
        begin = at + gap * (first + 1)
        if first == last or not gap:
            return text.tokens[begin : begin + count]
        piece = text.tokens[begin : begin + count + last - first]
        return np.delete(piece, text.begins[first + 1 : last + 1] - 1 - begin)


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows of several short documents, each with its own segment."""

    text: pairs.Documents
    vocabulary: Vocabulary
    length: int
    packing: packing.Packing

    @classmethod
    def lay_out(cls, text: pairs.Documents, known: Vocabulary, length: int, *, origin: str) -> "Packed":
        """The rows of a corpus.

        Args:
          text: its documents.
          known: the tokenizer's ids.
          length: T, tokens in a row.
          origin: names the corpus in messages.

        Raises:
          InputError: all documents are empty.
        """
        packed = packing.pack(text.stops - text.begins, length, overhead=2)
        if not len(packed):
            raise InputError(f"{origin}, but all documents are empty; give more text")
        return cls(text, known, length, packed)

    def __len__(self) -> int:
        return len(self.packing)

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        tokens_T, segments_T = np.zeros(self.length, np.int32), np.zeros(self.length, np.int32)
        at = 0
        for segment, (document, offset, size) in enumerate(self.packing[row].tolist(), start=1):
            begin = self.text.begins[document] + offset
            end = at + size + 2
            tokens_T[at], tokens_T[end - 1] = self.vocabulary.cls, self.vocabulary.sep
            tokens_T[at + 1 : end - 1] = self.text.tokens[begin : begin + size]
            segments_T[at:end] = segment
            at = end
        maskable_T = self.vocabulary.ordinary[tokens_T]
        maskable_T[at:] = False
        return {"tokens": tokens_T, "segments": segments_T, "maskable": maskable_T}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of two passages. A document is split into the fewest parts of equal length that fit into rows."""

    text: pairs.Documents
    vocabulary: Vocabulary
    length: int
    objective: Literal["next_sentence", "sentence_order"]
    documents: np.ndarray
    """int64: the documents of at least two tokens."""
    rows_until: np.ndarray
    """int64: the cumulative number of rows of these documents."""

    @classmethod
    def lay_out(
        cls,
        text: pairs.Documents,
        known: Vocabulary,
        length: int,
        objective: Literal["next_sentence", "sentence_order"],
        *,
        origin: str,
    ) -> "Pairs":
        """The rows of a corpus.

        Args:
          text: its documents.
          known: the tokenizer's ids.
          length: T, tokens in a row.
          objective: decides the passages and the label.
          origin: names the corpus in messages.

        Raises:
          InputError: there are too few documents or tokens for a pair.
        """
        sizes = text.stops - text.begins
        filled = np.flatnonzero(sizes > 0)  # the other passage of a pair may have one token, but not none
        text = pairs.Documents(text.tokens, text.begins[filled], text.stops[filled], text.ends_sentence, text.continues)
        sizes = sizes[filled]
        documents = np.flatnonzero(sizes > 1)
        if not len(documents):
            raise InputError(f"{origin}, but no document has the two that a pair needs; give more text")
        if objective == "next_sentence" and len(filled) < 2:
            raise InputError(f"{origin} in one document, but next_sentence needs another; use sentence_order")
        rows_until = np.cumsum(-(-sizes[documents] // (length - 3)))
        return cls(text, known, length, objective, documents, rows_until)

    def __len__(self) -> int:
        return int(self.rows_until[-1])

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        which = int(np.searchsorted(self.rows_until, row, side="right"))
        first = int(self.rows_until[which - 1]) if which else 0
        document, parts = int(self.documents[which]), int(self.rows_until[which]) - first
        begin, end = int(self.text.begins[document]), int(self.text.stops[document])
        start = begin + (end - begin) * (row - first) // parts
        stop = begin + (end - begin) * (row - first + 1) // parts
        if rng.random() < SHORTER:
            size = int(rng.integers(2, stop - start + 1))
            start += int(rng.integers(stop - start - size + 1))
            stop = start + size
        if self.objective == "next_sentence":
            pair = pairs.next_sentence(self.text, document, start, stop, rng)
        else:
            pair = pairs.sentence_order(self.text, start, stop, rng)
        middle = len(pair.a) + 2
        length = middle + len(pair.b) + 1
        tokens_T, types_T = np.zeros(self.length, np.int32), np.zeros(self.length, np.int32)
        tokens_T[0], tokens_T[middle - 1], tokens_T[length - 1] = (self.vocabulary.cls, *[self.vocabulary.sep] * 2)
        tokens_T[1 : middle - 1], tokens_T[middle : length - 1] = pair.a, pair.b
        types_T[middle:length] = 1
        maskable_T = self.vocabulary.ordinary[tokens_T]
        maskable_T[length:] = False
        return {
            "tokens": tokens_T,
            "types": types_T,
            "lengths": np.int32(length),
            "pair": np.int32(pair.label),
            "pair_weights": np.float32(1.0),
            "maskable": maskable_T,
        }
