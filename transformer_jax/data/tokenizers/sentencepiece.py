"""SentencePiece's model file (spiece.model, tokenizer.model, source.spm), read without its library.

The file is one protocol-buffer message, `ModelProto` of sentencepiece_model.proto. These fields are read:

    1  pieces, each: 1 the piece, 2 its log-probability, 3 its type    2  trainer_spec: 3 the kind of model
    3  normalizer_spec: 2 the compiled character map, 3 add a leading "▁", 4 collapse spaces

`Pieces` encodes text with a Unigram model exactly as SentencePiece (Kudo and Richardson 2018), including its normaliser
(`spm_text`). The normaliser of the `tokenizers` library works by grapheme, so it misses map entries that span several.
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

FILES = ("spiece.model", "spm.model", "tokenizer.model", "sentencepiece.bpe.model")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models


class Piece(NamedTuple):
    """One entry of a model; its position is its id."""

    spelling: str
    score: float
    kind: int


Spelled = tuple[int, str, tuple[int, int]]  # (id, its spelling in the normalised text, its span there)


@dataclass(frozen=True)
class Model:
    """A SentencePiece file.

    Attributes:
      pieces: by id.
      kind: `UNIGRAM` or `BPE`.
      charsmap: the compiled character map; empty: none.
      dummy_prefix: whether a space is added before a text.
      one_space: whether a text is stripped and runs of spaces are collapsed.
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
    """Encodes text by a Unigram model exactly as SentencePiece.

    Attributes:
      model: the file.
      ids: int32 [pieces], the id of each piece.
      before: a normaliser of the `tokenizers` library that runs before SentencePiece's; None: there is none.
    """

    model: Model
    ids: np.ndarray
    before: Any = None

    @functools.cached_property
    def normalizer(self) -> Normalizer:
        """SentencePiece's normaliser."""
        user = tuple(p.spelling for p in self.model.pieces if p.kind == USER_DEFINED)
        return Normalizer(self.model.charsmap, user, self.model.dummy_prefix, self.model.one_space)

    @functools.cached_property
    def _inner(self) -> Any:
        """Splits normalised text into pieces. Control and unused pieces get a spelling that no text has."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        pieces = self.model.pieces
        highest = max((piece.score for piece in pieces if piece.kind == NORMAL), default=0.0)
        vocabulary = [
            # SentencePiece scores a user-defined piece so high that it is never split.
            (p.spelling, len(p.spelling.encode()) * highest - 0.1)
            if p.kind == USER_DEFINED
            else (p.spelling if p.kind == NORMAL else f"\0{p.spelling}", p.score)
            for p in pieces
        ]
        inner = Tokenizer(models.Unigram(vocabulary, unk_id=self.model.unknown, byte_fallback=False))
        if not any("▁" in p.spelling.lstrip("▁") for p in pieces if p.kind in (NORMAL, USER_DEFINED)):
            # No piece spans two words, so words are encoded one by one, which uses the library's cache.
            inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        return inner

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids int32 of each text; special tokens spelled in it are text.

        Args:
          texts: to encode.
        """
        ready = [self.normalizer(self.before.normalize_str(text) if self.before else text) for text in texts]
        encodings = self._inner.encode_batch_fast(ready, add_special_tokens=False)
        return [self._ids(self._spelled(text, encoding)) for text, encoding in zip(ready, encodings, strict=True)]

    def spell_batch(self, texts: Sequence[str]) -> list[list[tuple[int, str]]]:
        """(SentencePiece's id, spelling in the text) of each piece of each text.

        Args:
          texts: to encode.
        """
        ready = [self.normalizer(text) for text in texts]
        return [
            [(id, token) for id, token, _ in self._spelled(text, self._inner.encode(text, add_special_tokens=False))]
            for text in ready
        ]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n], character spans int32 [n, 2]) of a text.

        Args:
          text: to encode.
        """
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
        """Maps each character after `before` to the characters that it came from."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        inner = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        inner.normalizer = self.before
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        return inner

    def _spelled(self, text: str, encoding: Any) -> list[Spelled]:
        """(id, spelling, span in `text`) of each piece. Adjacent unknown pieces are merged, as in SentencePiece."""
        if self.model.unknown in encoding.ids:  # the fast encodings have no offsets
            encoding = self._inner.encode(text, add_special_tokens=False)
        made: list[Spelled] = []
        for id, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            if made and id == made[-1][0] == self.model.unknown and made[-1][2][1] == first:
                first = made.pop()[2][0]
            made.append((id, text[first:last], (first, last)))
        return made

    def _expanded(self, parts: Sequence[Spelled]) -> Iterator[Spelled]:
        """The pieces, with an unknown one replaced by its bytes if the model has byte pieces."""
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
        """{byte: id of its piece <0x41>}; empty if the model has no byte pieces."""
        return {int(p.spelling[3:5], 16): id for id, p in enumerate(self.model.pieces) if p.kind == BYTE}


def read(data: bytes, file: Path | str) -> Model:
    """The model in the bytes of a file.

    Args:
      data: the bytes.
      file: names the file in messages.

    Raises:
      InputError: not a SentencePiece model, or one with settings that are not supported.
    """
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                entry = dict(_fields(value))
                score = struct.unpack("<f", entry.get(2, bytes(4)))[0]
                pieces.append(Piece(entry[1].decode(), score, entry.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        raise InputError(f"{file}: not a SentencePiece model") from None
    kinds = {piece.kind for piece in pieces}
    reasons = {
        "it has no pieces, or no unknown piece": UNKNOWN not in kinds,
        "it is neither a Unigram model nor a BPE": trainer.get(3, UNIGRAM) not in (UNIGRAM, BPE),
        f"it has pieces of the types {sorted(kinds - set(range(1, 7)))}": not kinds <= set(range(1, 7)),
        "two of its pieces have the same spelling": len({piece.spelling for piece in pieces}) < len(pieces),
        'its pieces end in "▁" instead of beginning with it (treat_whitespace_as_suffix)': bool(trainer.get(24, 0)),
        'it does not write spaces as "▁" (escape_whitespaces)': not normalizer.get(5, 1),
    }
    if reason := next((reason for reason, true in reasons.items() if true), None):
        raise InputError(
            f"{file} is not supported: {reason}; save the tokenizer as tokenizer.json with Transformers' AutoTokenizer"
        )
    flags = bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1))
    return Model(tuple(pieces), trainer.get(3, UNIGRAM), normalizer.get(2, b""), *flags)


def read_model(file: Path) -> Any:
    """The tokenizer of the folder of a SentencePiece file; the name from version 0.1.

    Args:
      file: in the folder.
    """
    from transformer_jax.data.tokenizers import folder

    return folder.read_folder(file.parent)


def read_pieces(data: bytes, file: Path | str) -> tuple[list[Piece], bytes]:
    """(pieces by id, character map) of a file; the name from version 0.1.

    Args:
      data: the bytes.
      file: names the file in messages.
    """
    model = read(data, file)
    return list(model.pieces), model.charsmap


def merges(model: Model) -> list[tuple[str, str]]:
    """The merges of a BPE, in the order of the pieces that they form, as Transformers derives them from the ids.

    Args:
      model: a BPE.
    """
    id_of = {piece.spelling: id for id, piece in enumerate(model.pieces)}
    made = [
        (id, len(token[:i]), len(token[i:]), id_of[token[:i]], id_of[token[i:]], token[:i], token[i:])
        for token, id in id_of.items()
        for i in range(1, len(token))
        if token[:i] in id_of and token[i:] in id_of
    ]
    return [(left, right) for *_, left, right in sorted(made)]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protocol-buffer message: integers as int, everything else as bytes."""
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
