"""SentencePiece's own model file (spiece.model, source.spm), read without its library: Unigram pieces, scores and
normaliser.

The file is one protocol-buffer message, `ModelProto` of sentencepiece_model.proto. Of it matter

    1  pieces, each: 1 the piece, 2 its log probability, 3 its type    2  trainer_spec: 3 the kind of model
    3  normalizer_spec: 2 the compiled map of characters, 3 "▁" is put in front, 4 spaces are collapsed

The encoding is SentencePiece's (Kudo and Richardson 2018) wherever pieces do not reach across spaces.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.data.tokenizers import special
from transformer_jax.data.tokenizers.files import end_of_text, finish, switch
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

FILES = ("spiece.model", "tokenizer.model")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of pieces; there are also unused ones and bytes
UNIGRAM = 1


class Piece(NamedTuple):
    """One entry of a model; its place is its id there."""

    spelling: str
    score: float
    kind: int


def read_model(file: Path) -> SubwordTokenizer:
    """The tokenizer of a SentencePiece file. In an ALBERT folder, with ALBERT's quotes, accents and lower-casing."""
    from tokenizers import AddedToken

    pieces, charsmap = read_pieces(file.read_bytes(), file)
    unknown = next(id for id, piece in enumerate(pieces) if piece.kind == UNKNOWN)
    settings = special.read_settings(file.parent)
    inner = unigram(pieces, unknown, _normalizer(settings, file.parent, charsmap))
    found = special.find(settings, inner, file.parent)
    mask = None if found.mask is None else pieces[found.mask].spelling
    named = [
        piece.spelling
        for id, piece in enumerate(pieces)
        if piece.kind in (CONTROL, UNKNOWN) or id in found.present().values()
    ]
    inner.add_special_tokens([AddedToken(piece, normalized=False, lstrip=piece == mask) for piece in named])
    return finish(inner, end_of_text(file.parent, inner), found)


def unigram(pieces: Sequence[Piece], unknown: int, normalizer: Any) -> Any:
    """A `tokenizers.Tokenizer` over words between spaces, each with "▁" at its head. `unknown`: id of the unknown."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    highest = max((piece.score for piece in pieces if piece.kind == NORMAL), default=0.0)
    vocabulary = [
        # What the user defined is always taken whole: SentencePiece scores it so.
        (spelling, len(spelling.encode()) * highest - 0.1 if kind == USER_DEFINED else score)
        for spelling, score, kind in pieces
    ]
    inner = Inner(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    if normalizer is not None:
        inner.normalizer = normalizer
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), metaspace])
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return inner


def precompiled(charsmap: bytes) -> Any:
    """SentencePiece's own normaliser: its compiled map of characters; None where it has none."""
    from tokenizers import normalizers

    return normalizers.Precompiled(charsmap) if charsmap else None


def _normalizer(settings: dict[str, Any], folder: Path, charsmap: bytes) -> Any:
    from tokenizers import normalizers

    config = special.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    albert = str(settings.get("tokenizer_class", config.get("model_type", ""))).lower().startswith("albert")
    steps: list[Any] = []
    if albert:
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not switch(settings, "keep_accents", not albert, folder):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if switch(settings, "do_lower_case", albert, folder):
        steps.append(normalizers.Lowercase())
    if charsmap:
        steps.append(precompiled(charsmap))
    return normalizers.Sequence(steps) if steps else None


def read_pieces(model: bytes, file: Path | str) -> tuple[list[Piece], bytes]:
    """The pieces by id, and the compiled map of characters, of the bytes of `file`. Refuses what would be encoded
    otherwise."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(model):
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
        "it is not a Unigram model": trainer.get(3, UNIGRAM) != UNIGRAM,
        "it has byte or unused pieces": not kinds <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED},
        "two of its pieces are spelled alike": len({piece.spelling for piece in pieces}) < len(pieces),
        "its pieces reach across spaces": any("▁" in p.spelling.lstrip("▁") for p in pieces if p.kind == NORMAL),
        "it puts no space in front, or keeps several": not (normalizer.get(3, 1) and normalizer.get(4, 1)),
    }
    if reason := next((reason for reason, true in reasons.items() if true), None):
        raise InputError(
            f"{file} is not read: {reason}; save the tokenizer as tokenizer.json with Transformers' AutoTokenizer"
        )
    return pieces, normalizer.get(2, b"")


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
