"""A corpus of text as random-access examples for masked language modelling.

Every row begins with [CLS] and ends with [SEP] (whatever the tokenizer calls them). Between them is, by layout,

    "full"        the corpus from end to end in windows side by side, over the borders of documents, marked by [SEP]:
                  the FULL-SENTENCES of RoBERTa (Liu et al. 2019, section 4.2). No padding.
    "packed"      whole documents, as many as fit, each [CLS] ... [SEP] with a segment number of its own, from 1: the
                  model lets no attention cross, so each is as if alone. Documents longer than a row are cut.
    "next_sentence", "sentence_order"
                  [CLS] A [SEP] B [SEP] from one stretch of a document, types 0 and 1, and a label (`objectives.pairs`).
                  One row in ten is shorter, down to two tokens (Devlin et al. 2019, google-research/bert).

An example:

    {"tokens": int32[T], "positions": int32[P], "labels": int32[P], "weights": float32[P]}
    packed: and "segments": int32[T], 0 in padding
    pairs:  and "types": int32[T], "lengths": int32[], "pair": int32[], "pair_weights": float32[]

Training goes over the rows in an order drawn anew each epoch, each time with masks (and cuts) of their own: a function
of (seed, example). In validation masks are a function of the row alone: the same at every evaluation, in every run.

Letters: B rows, T length, P predictions of a row, V vocabulary, D documents.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from transformer_jax import objectives
from transformer_jax.data import corpus, pipeline, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.objectives import masking, packing, pairs

Layout = Literal["full", "packed", "next_sentence", "sentence_order"]

TRAIN, VALIDATION = 0, 1  # streams of `objectives.generator`
SENTENCE_ENDS = (".", "!", "?", "\n", "…", "。", "！", "？", "｡", "।", "॥", "؟", "۔", "።", "။", "។", "։")
SHORTER = 0.1  # share of pairs that are shorter than they could be


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What the objectives need to know of a tokenizer's ids."""

    cls: int
    sep: int
    mask: int
    ordinary: np.ndarray
    """bool [V]: not a special token; these are masked, and random tokens are drawn from them."""
    continues: np.ndarray
    """bool [V]: goes on with the word before it."""
    ends_sentence: np.ndarray
    """bool [V]: the token's text ends in a full stop, a question or exclamation mark, or a line."""

    @functools.cached_property
    def ordinary_ids(self) -> np.ndarray:
        return np.flatnonzero(self.ordinary).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A TextCorpus made ready for masked language modelling."""

    tokenizer: tokenizers.Tokenizer
    vocabulary: Vocabulary
    train: "Examples"
    validation: "Examples"
    train_tokens: tokens.TokenFile
    validation_tokens: tokens.TokenFile


def prepare(
    data: corpus.TextCorpus,
    how: masking.Masking,
    layout: Layout,
    *,
    seed: int,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Corpus:
    """Tokenises the corpus (once: it is cached), lays out its rows, and gives the training and validation examples.

    Arguments:
      tokenizer: given when a run goes on or starts from a checkpoint; else it is built from the training text.
    Errors: `InputError` for a missing, empty or too short corpus, a tokenizer without [CLS], [SEP] or [MASK], and
      settings of `data` that are for causal language models alone.
    """
    if data.sampling != "epochs":
        raise InputError(
            f"data.sampling = {data.sampling!r}: masked language modelling goes over epochs; "
            "give --data.sampling epochs"
        )
    if data.length < 8:
        raise InputError(f"data.length = {data.length} must be at least 8, of which special tokens take up to 3")
    sides = {side: data.source.documents(side) for side in ("train", "validation")}  # type: ignore[arg-type]
    cache = tokens.cache_dir()
    tokenizer = tokenizers.build(data.tokenizer, sides["train"], cache, given=tokenizer)
    known = vocabulary(tokenizer)
    files = {side: tokens.prepare(documents, tokenizer, cache) for side, documents in sides.items()}

    def rows(side: str) -> Rows:
        text = _documents(files[side], known, len(tokens.frame(tokenizer)[0]))
        origin = f"{sides[side].origin} has {len(files[side].tokens):,} tokens"
        if layout == "full":
            return FullSentences.lay_out(text, known, data.length, whole=side == "train", origin=origin)
        if layout == "packed":
            return Packed.lay_out(text, known, data.length, origin=origin)
        return Pairs.lay_out(text, known, data.length, layout, origin=origin)

    made = {side: rows(side) for side in files}
    order = pipeline.epochs(len(made["train"]), seed)
    count = how.count(data.length)
    return Corpus(
        tokenizer=tokenizer,
        vocabulary=known,
        train=Examples(made["train"], order, how, known, count, seed, TRAIN),
        validation=Examples(made["validation"], range(len(made["validation"])), how, known, count, 0, VALIDATION),
        train_tokens=files["train"],
        validation_tokens=files["validation"],
    )


def vocabulary(tokenizer: tokenizers.Tokenizer) -> Vocabulary:
    """Errors: `InputError` for a tokenizer without a token for [CLS], [SEP] or [MASK]."""
    special = tokenizer.special
    if special.cls is None or special.sep is None or special.mask is None:
        names = ", ".join(f"[{name.upper()}]" for name in ("cls", "sep", "mask") if getattr(special, name) is None)
        raise InputError(
            f"the tokenizer has no token for {names}, which masked language modelling needs; use TrainWordPiece, "
            'TrainUnigram, TrainBPE(special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")), or the file of an encoder'
        )
    ordinary = np.ones(tokenizer.vocab_size, bool)
    ordinary[[*special.present().values(), *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]] = False
    texts = (tokenizer.decode([token]).rstrip(" \t") for token in range(tokenizer.vocab_size))
    ends_sentence = np.array([text.endswith(SENTENCE_ENDS) for text in texts]) & ordinary
    return Vocabulary(special.cls, special.sep, special.mask, ordinary, tokenizer.continues, ends_sentence)


def _documents(file: tokens.TokenFile, known: Vocabulary, head: int) -> pairs.Documents:
    """The file's documents without the token, if any, before each."""
    stops = np.append(file.starts[1:], len(file.tokens))
    return pairs.Documents(file.tokens, file.starts + head, stops, known.ends_sentence, known.continues)


# ---- Examples ------------------------------------------------------------------------------------------------------


class Rows(Protocol):
    """A corpus laid out in rows. `make` gives a row without masks, with "maskable": bool[T] beside its arrays."""

    def __len__(self) -> int: ...
    def make(self, row: int, rng: np.random.Generator) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Examples:
    """`examples[i]` is example i: row order[i], masked."""

    rows: Rows
    order: Sequence[int]
    masking: masking.Masking
    vocabulary: Vocabulary
    count: int
    """P."""
    seed: int
    stream: int

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        rng = objectives.generator(self.seed, i, self.stream)
        row = self.rows.make(self.order[i], rng)
        made = masking.mask(
            row["tokens"],
            row.pop("maskable"),
            self.masking,
            rng,
            mask_id=self.vocabulary.mask,
            random_ids=self.vocabulary.ordinary_ids,
            count=self.count,
            continues=self.vocabulary.continues,
        )
        masked = {"tokens": made.ids_T, "positions": made.positions_P, "labels": made.labels_P}
        return row | masked | {"weights": made.weights_P}


# ---- Layouts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FullSentences:
    """Windows of the stream: all documents, one [SEP] between neighbours."""

    text: pairs.Documents
    vocabulary: Vocabulary
    length: int
    separators: np.ndarray
    """int64 [D - 1]: positions of the [SEP]s in the stream."""
    size: int
    """Tokens of the stream."""
    count: int

    @classmethod
    def lay_out(
        cls, text: pairs.Documents, known: Vocabulary, length: int, *, whole: bool, origin: str
    ) -> "FullSentences":
        """whole: leave out what is over at the end; else the last row reaches back, so that it is full as well."""
        room = length - 2
        sizes = text.stops - text.begins
        separators = np.cumsum(sizes + 1)[:-1] - 1
        size = int(sizes.sum()) + len(separators)
        if size < room:
            raise InputError(f"{origin}, and one row needs {room}; give more text or lower data.length = {length}")
        return cls(text, known, length, separators, size, size // room if whole else -(-size // room))

    def __len__(self) -> int:
        return self.count

    def make(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        room = self.length - 2
        start = min(row * room, self.size - room)
        # Of the separators before the window and in it follow the documents that it shows.
        before, after = np.searchsorted(self.separators, (start, start + room))
        inside = self.separators[before:after] - start
        is_text = np.ones(self.length, bool)
        is_text[0] = is_text[-1] = False
        is_text[inside + 1] = False
        tokens_T = np.full(self.length, self.vocabulary.sep, np.int32)
        tokens_T[0] = self.vocabulary.cls
        tokens_T[is_text] = self._text(start - before, int(before), int(after), room - len(inside))
        maskable_T = self.vocabulary.ordinary[tokens_T]
        maskable_T[1 : 1 + row * room - start] = False  # the row before has asked for these
        return {"tokens": tokens_T, "maskable": maskable_T}

    def _text(self, at: int, first: int, last: int, count: int) -> np.ndarray:
        """`count` tokens from the corpus's at-th on (ends of text not counted), of documents `first` to `last`."""
        text = self.text
        gap = int(text.begins[0])  # 1 where an end-of-text token stands before each document, else 0
        begin = at + gap * (first + 1)
        if first == last or not gap:
            return text.tokens[begin : begin + count]
        piece = text.tokens[begin : begin + count + last - first]
        return np.delete(piece, text.begins[first + 1 : last + 1] - 1 - begin)


@dataclass(frozen=True, eq=False)
class Packed:
    """Several short documents a row, each with a segment of its own."""

    text: pairs.Documents
    vocabulary: Vocabulary
    length: int
    packing: packing.Packing

    @classmethod
    def lay_out(cls, text: pairs.Documents, known: Vocabulary, length: int, *, origin: str) -> "Packed":
        packed = packing.pack(text.stops - text.begins, length, overhead=2)
        if not len(packed):
            raise InputError(f"{origin}, and no document with one")
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
    """Two passages a row. A document is cut into the fewest stretches that fit into rows, all equally long."""

    text: pairs.Documents
    vocabulary: Vocabulary
    length: int
    objective: Literal["next_sentence", "sentence_order"]
    documents: np.ndarray
    """int64: the documents that have two tokens at least."""
    rows_until: np.ndarray
    """int64: rows of these documents up to and with each."""

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
        sizes = text.stops - text.begins
        filled = np.flatnonzero(sizes > 0)  # a document of another passage may be one token long, but not empty
        text = pairs.Documents(text.tokens, text.begins[filled], text.stops[filled], text.ends_sentence, text.continues)
        sizes = sizes[filled]
        documents = np.flatnonzero(sizes > 1)
        if not len(documents):
            raise InputError(f"{origin}, and no document with the two that a pair needs")
        if objective == "next_sentence" and len(filled) < 2:
            raise InputError(f"{origin} in one document, and next_sentence needs another; use sentence_order")
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
