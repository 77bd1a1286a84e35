"""SentencePiece's own model file (spiece.model), read without its library: Unigram pieces, scores and normaliser.

The file is one protocol-buffer message, `ModelProto` of sentencepiece_model.proto. Of it matter

    1  pieces, each: 1 the piece, 2 its log probability, 3 its type    2  trainer_spec: 3 the kind of model
    3  normalizer_spec: 2 the compiled map of characters, 3 "▁" is put in front, 4 spaces are collapsed

The encoding is SentencePiece's (Kudo and Richardson 2018) wherever pieces do not reach across spaces.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer_jax.data.tokenizers import special
from transformer_jax.data.tokenizers.files import end_of_text, finish, switch
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

FILES = ("spiece.model", "tokenizer.model")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of pieces; there are also unused ones and bytes
UNIGRAM = 1


def read_model(file: Path) -> SubwordTokenizer:
    """The tokenizer of a SentencePiece file. In an ALBERT folder, with ALBERT's quotes, accents and lower-casing."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    pieces, charsmap = _read(file)
    highest = max((score for _, score, kind in pieces if kind == NORMAL), default=0.0)
    vocabulary = [
        # What the user defined is always taken whole: SentencePiece scores it so.
        (piece, len(piece.encode()) * highest - 0.1 if kind == USER_DEFINED else score)
        for piece, score, kind in pieces
    ]
    unknown = next(id for id, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN)
    inner = Inner(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    settings = special.read_settings(file.parent)
    if (normalizer := _normalizer(settings, file.parent, charsmap)) is not None:
        inner.normalizer = normalizer
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), metaspace])
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    found = special.find(settings, inner, file.parent)
    mask = None if found.mask is None else pieces[found.mask][0]
    named = [
        p for id, (p, _, kind) in enumerate(pieces) if kind in (CONTROL, UNKNOWN) or id in found.present().values()
    ]
    inner.add_special_tokens([AddedToken(piece, normalized=False, lstrip=piece == mask) for piece in named])
    return finish(inner, end_of_text(file.parent, inner), found)


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
        steps.append(normalizers.Precompiled(charsmap))
    return normalizers.Sequence(steps) if steps else None


def _read(file: Path) -> tuple[list[tuple[str, float, int]], bytes]:
    """(piece, score, type) of every id, and the compiled map of characters. Refuses what would be encoded otherwise."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1:
                said = dict(_fields(value))
                score = struct.unpack("<f", said.get(2, bytes(4)))[0]
                pieces.append((said[1].decode(), score, said.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        raise InputError(f"{file}: not a SentencePiece model") from None
    kinds = {kind for _, _, kind in pieces}
    reasons = {
        "it holds no pieces, or none for the unknown": UNKNOWN not in kinds,
        "it is not a Unigram model": trainer.get(3, UNIGRAM) != UNIGRAM,
        "it has byte or unused pieces": not kinds <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED},
        "two of its pieces are spelled alike": len({piece for piece, _, _ in pieces}) < len(pieces),
        "its pieces reach across spaces": any("▁" in piece.lstrip("▁") for piece, _, kind in pieces if kind == NORMAL),
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
