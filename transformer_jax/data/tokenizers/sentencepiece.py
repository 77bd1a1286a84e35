"""SentencePiece's own model file (spiece.model, tokenizer.model, source.spm), read without its library.

The file is one protocol-buffer message, `ModelProto` of sentencepiece_model.proto. Of it matter

    1  pieces, each: 1 the piece, 2 its log probability, 3 its type    2  trainer_spec: 3 the kind of model
    3  normalizer_spec: 2 the compiled map of characters, 3 "▁" is put in front, 4 spaces are collapsed

`Pieces` encodes text with a Unigram model as SentencePiece does (Kudo and Richardson 2018), its normaliser included
(`spm_text`): the `tokenizers` library's own form of it looks at one grapheme at a time and so misses characters that
are written in several code points.
"""

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.data.tokenizers.spm_text import Normalizer
from transformer_jax.errors import InputError

FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models


class Piece(NamedTuple):
    """One entry of a model; its position is its id there."""

    spelling: str
    score: float
    kind: int


Spelled = tuple[int, str, tuple[int, int]]  # (id, how it is spelled in the normalised text, where)


@dataclass(frozen=True)
class Model:
    """A SentencePiece file.

    Fields:
      pieces: by id.
      kind: `UNIGRAM` or `BPE`.
      charsmap: the compiled map of characters; empty: none.
      dummy_prefix: a space is put in front of a text. one_space: spaces around a text and all but one of several go.
    """

    pieces: tuple[Piece, ...]
    kind: int
    charsmap: bytes
    dummy_prefix: bool
    one_space: bool

    @functools.cached_property
    def unknown(self) -> int:
        """The id of the unknown piece."""
        return next(id for id, piece in enumerate(self.pieces) if piece.kind == UNKNOWN)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Text to ids by a Unigram model, as SentencePiece itself.

    Fields:
      model: the file.
      ids: int32 [pieces], the id to give for each piece.
      before: a normaliser of the `tokenizers` library for a text before SentencePiece sees it; None: nothing.
    """

    model: Model
    ids: np.ndarray
    before: Any = None

    @functools.cached_property
    def normalizer(self) -> Normalizer:
        """From a text to what the pieces spell."""
        user = tuple(p.spelling for p in self.model.pieces if p.kind == USER_DEFINED)
        return Normalizer(self.model.charsmap, user, self.model.dummy_prefix, self.model.one_space)

    @functools.cached_property
    def _inner(self) -> Any:
        """Normalised text to pieces. Those that no text may spell are spelled as none is."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        pieces = self.model.pieces
        highest = max((piece.score for piece in pieces if piece.kind == NORMAL), default=0.0)
        vocabulary = [
            # What the user defined is always taken whole: SentencePiece scores it so.
            (p.spelling, len(p.spelling.encode()) * highest - 0.1)
            if p.kind == USER_DEFINED
            else (p.spelling if p.kind == NORMAL else f"\0{p.spelling}", p.score)
            for p in pieces
        ]
        inner = Tokenizer(models.Unigram(vocabulary, unk_id=self.model.unknown, byte_fallback=False))
        if not any("▁" in p.spelling.lstrip("▁") for p in pieces if p.kind in (NORMAL, USER_DEFINED)):
            inner.pre_tokenizer = pre_tokenizers.Split(
                "▁", "merged_with_next"
            )  # words by themselves: the library's cache
        return inner

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids int32 of each text, special tokens read as text."""
        ready = [self.normalizer(self.before.normalize_str(text) if self.before else text) for text in texts]
        encodings = self._inner.encode_batch_fast(ready, add_special_tokens=False)
        return [self._ids(self._spelled(text, encoding)) for text, encoding in zip(ready, encodings, strict=True)]

    def spell_batch(self, texts: Sequence[str]) -> list[list[tuple[int, str]]]:
        """(SentencePiece's id, its spelling in the text) of each piece of each text."""
        ready = [self.normalizer(text) for text in texts]
        return [
            [(id, token) for id, token, _ in self._spelled(text, self._inner.encode(text, add_special_tokens=False))]
            for text in ready
        ]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n] of one text and the characters that each came from, int32 [n, 2]."""
        origin = [(i, i + 1) for i in range(len(text))]
        if self.before is not None:
            origin = [tuple(span) for span in self._letters.encode(text, add_special_tokens=False).offsets]
            text = self.before.normalize_str(text)
        ready, spans = self.normalizer.aligned(text)
        parts = list(self._expanded(self._spelled(ready, self._inner.encode(ready, add_special_tokens=False))))
        offsets = np.zeros((len(parts), 2), np.int32)
        for row, (_, _, (first, last)) in zip(offsets, parts, strict=True):
            start, end = spans[first][0], spans[last - 1][1]
            row[:] = origin[start][0] if start < len(origin) else 0, origin[end - 1][1] if end else 0
        return self.ids[np.array([id for id, _, _ in parts], np.int64)], offsets

    @functools.cached_property
    def _letters(self) -> Any:
        """Each character that `before` makes, with the characters that it came from."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        inner = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        inner.normalizer = self.before
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        return inner

    def _spelled(self, text: str, encoding: Any) -> list[Spelled]:
        """(id, spelling, span in `text`) of the pieces; neighbouring unknown ones are one, as in SentencePiece."""
        if self.model.unknown in encoding.ids:  # the fast encodings carry no offsets
            encoding = self._inner.encode(text, add_special_tokens=False)
        made: list[Spelled] = []
        for id, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            if made and id == made[-1][0] == self.model.unknown and made[-1][2][1] == first:
                first = made.pop()[2][0]
            made.append((id, text[first:last], (first, last)))
        return made

    def _expanded(self, parts: Sequence[Spelled]) -> Iterator[Spelled]:
        """The same with the bytes of an unknown in its place, where the model has pieces for bytes."""
        for part in parts:
            if part[0] == self.model.unknown and self._bytes:
                for byte in part[1].encode("utf-8", "surrogatepass"):
                    yield self._bytes[byte], part[1], part[2]
            else:
                yield part

    def _ids(self, parts: Sequence[Spelled]) -> np.ndarray:
        return self.ids[np.array([id for id, _, _ in self._expanded(parts)], np.int64)]

    @functools.cached_property
    def _bytes(self) -> Mapping[int, int]:
        """Byte -> id of its piece <0x41>; empty where there is none."""
        return {int(p.spelling[3:5], 16): id for id, p in enumerate(self.model.pieces) if p.kind == BYTE}


def read(data: bytes, file: Path | str) -> Model:
    """The model in the bytes of `file`.

    Raises: `InputError` for what is no SentencePiece model, and for what would be encoded otherwise here.
    """
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                said = dict(_fields(value))
                score = struct.unpack("<f", said.get(2, bytes(4)))[0]
                pieces.append(Piece(said[1].decode(), score, said.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        raise InputError(f"{file}: not a SentencePiece model") from None
    kinds = {piece.kind for piece in pieces}
    reasons = {
        "it holds no pieces, or none for the unknown": UNKNOWN not in kinds,
        "it is neither a Unigram model nor a BPE": trainer.get(3, UNIGRAM) not in (UNIGRAM, BPE),
        f"it has pieces of the types {sorted(kinds - set(range(1, 7)))}": not kinds <= set(range(1, 7)),
        "two of its pieces are spelled alike": len({piece.spelling for piece in pieces}) < len(pieces),
        "spaces end its pieces in place of beginning them": bool(trainer.get(24, 0)),
        "spaces are no letters in it (escape_whitespaces)": not normalizer.get(5, 1),
    }
    if reason := next((reason for reason, true in reasons.items() if true), None):
        raise InputError(
            f"{file} is not read: {reason}; save the tokenizer as tokenizer.json with Transformers' AutoTokenizer"
        )
    flags = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    return Model(tuple(pieces), trainer.get(3, UNIGRAM), normalizer.get(2, b""), *flags)


def read_model(file: Path) -> Any:
    """The tokenizer of the folder of a SentencePiece file: the name that `load` had for it in version 0.1."""
    from transformer_jax.data.tokenizers import folder

    return folder.read_folder(file.parent)


def read_pieces(data: bytes, file: Path | str) -> tuple[list[Piece], bytes]:
    """The pieces by id, and the map of characters: the name that `read` had in version 0.1."""
    model = read(data, file)
    return list(model.pieces), model.charsmap


def merges(model: Model) -> list[tuple[str, str]]:
    """A BPE's merges in the order of the pieces that they make, as Transformers makes them of the ids."""
    id_of = {piece.spelling: id for id, piece in enumerate(model.pieces)}
    made = [
        (id, len(token[:i]), len(token[i:]), id_of[token[:i]], id_of[token[i:]], token[:i], token[i:])
        for token, id in id_of.items()
        for i in range(1, len(token))
        if token[:i] in id_of and token[i:] in id_of
    ]
    return [(left, right) for *_, left, right in sorted(made)]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protocol-buffer message: whole numbers as int, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
        if at + size > len(message):
            raise ValueError("the message ends within a field")
        yield number, message[at : at + size]
        at += size
