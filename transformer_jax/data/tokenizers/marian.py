"""Marian's tokenizer (opus-mt): SentencePiece pieces of the source and of the target, numbered by one vocab.json.

A folder holds source.spm, which cuts the source's text into pieces, target.spm for the target's, and vocab.json: the id
of every piece of either side, of `</s>`, `<unk>` and `<pad>`, and of codes such as `>>deu<<` where the model translates
into several languages. A piece that vocab.json lacks is <unk>; what SentencePiece does not know is looked up as it is
spelled, since the other side may have it. A source that begins with a code of vocab.json begins with that token; any
other `>>...<<` is text (Transformers makes it <unk>).

Punctuation is not normalised as Moses does it, which opus-mt's own preparation did: Transformers 5 makes such a
normaliser where sacremoses is installed, but encodes without it. „Quotes“ and dashes that the model seldom saw stay.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.tokenizers import special
from transformer_jax.data.tokenizers.plain import join_words
from transformer_jax.data.tokenizers.sentencepiece import CONTROL, UNKNOWN, precompiled, read_pieces, unigram
from transformer_jax.data.tokenizers.special import Special
from transformer_jax.data.tokenizers.subwords import offsets_without_space
from transformer_jax.errors import InputError

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
CODE = re.compile(r">>.+?<<")


@dataclass(frozen=True, eq=False)
class MarianTokenizer:
    """One side of a Marian folder, the source's as it is read; `target` is the other.

    Fields:
      models: the SentencePiece files as they are, {"source.spm": ..., "target.spm": ...}.
      vocabulary: vocab.json. settings: tokenizer_config.json.
      side: which of the models cuts the text. special, eos: the tokens that vocabulary has for these.
    """

    models: dict[str, bytes]
    vocabulary: dict[str, int]
    settings: dict[str, Any]
    special: Special
    eos: str
    side: str = SOURCE

    languages = None

    @functools.cached_property
    def target(self) -> "MarianTokenizer":
        return self if self.side == TARGET else replace(self, side=TARGET)

    @property
    def eos_id(self) -> int:
        return self.vocabulary[self.eos]

    @functools.cached_property
    def vocab_size(self) -> int:
        return max(self.vocabulary.values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        parts = [self.side, json.dumps(sorted(self.vocabulary.items())), self.eos, str(self.special.unk)]
        digest = hashlib.sha256(" ".join(parts).encode("utf-8", "surrogatepass"))
        digest.update(self.models[self.side])
        return digest.hexdigest()

    @functools.cached_property
    def continues(self) -> np.ndarray:
        continues = np.ones(self.vocab_size, bool)
        named = {self.eos_id, *self.special.present().values(), *self._codes.values()}
        continues[[id for piece, id in self.vocabulary.items() if piece.startswith("▁") or id in named]] = False
        return continues

    # ---- Text to ids ----

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Parallel over the texts, one thread a core (TOKENIZERS_PARALLELISM=false: one)."""
        codes = [self._code_of(text) for text in texts]
        rest = [text[len(code) :] for code, text in zip(codes, texts, strict=True)]
        encodings = self._pieces.encode_batch_fast(rest, add_special_tokens=False)
        for i, encoding in enumerate(encodings):
            if self._unknown in encoding.ids:  # the fast ones do not say how it is spelled
                encodings[i] = self._pieces.encode(rest[i], add_special_tokens=False)
        return [self._ids(code, encoding) for code, encoding in zip(codes, encodings, strict=True)]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        code = self._code_of(text)
        encoding = self._pieces.encode(text[len(code) :], add_special_tokens=False)
        offsets = offsets_without_space(encoding, text[len(code) :]) + len(code)
        whole = np.array([[0, len(code)]] if code else [], np.int32).reshape(-1, 2)
        return self._ids(code, encoding), np.concatenate([whole, offsets])

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_words(self.encode_batch(list(words)))

    def encode_prompt(self, text: str) -> np.ndarray:
        parts = re.split(f"({'|'.join(re.escape(token) for token in self._named)})", text)
        ids = [[self.vocabulary[part]] if i % 2 else self.encode(part) for i, part in enumerate(parts)]
        return np.concatenate(ids).astype(np.int32)

    @functools.cached_property
    def _named(self) -> list[str]:
        """The special tokens, spelled."""
        named = {self.eos_id, *self.special.present().values()}
        return [token for token, id in self.vocabulary.items() if id in named]

    @functools.cached_property
    def _codes(self) -> dict[str, int]:
        """{">>deu<<": 7, ...}."""
        return {token: id for token, id in self.vocabulary.items() if CODE.fullmatch(token)}

    def _code_of(self, text: str) -> str:
        """The code of a language with which a source begins, or nothing."""
        found = CODE.match(text) if self.side == SOURCE else None
        return found[0] if found and found[0] in self._codes else ""

    def _ids(self, code: str, encoding: Any) -> np.ndarray:
        ids = self._id_of_piece[np.array(encoding.ids, np.int64)]
        if (spelled := np.flatnonzero(ids < 0)).size:
            tokens = encoding.tokens
            ids[spelled] = [self.vocabulary.get(tokens[i], self.special.unk) for i in spelled]
        return np.concatenate([np.array([self._codes[code]], np.int32), ids]) if code else ids

    @functools.cached_property
    def _id_of_piece(self) -> np.ndarray:
        """SentencePiece's ids -> ids, int32; -1 for its unknown, which is looked up as it is spelled."""
        ids = [-1 if p.kind == UNKNOWN else self.vocabulary.get(p.spelling, self.special.unk) for p in self._model[0]]
        return np.array(ids, np.int32)

    @functools.cached_property
    def _pieces(self) -> Any:
        """Text to SentencePiece's pieces. The special ones are spelled as no text is, so that none is found in one."""
        pieces, charsmap = self._model
        unseen = [p._replace(spelling=f"\0{p.spelling}") if p.kind in (CONTROL, UNKNOWN) else p for p in pieces]
        return unigram(unseen, self._unknown, precompiled(charsmap))

    @functools.cached_property
    def _unknown(self) -> int:
        """SentencePiece's id of what it does not know."""
        return next(id for id, piece in enumerate(self._model[0]) if piece.kind == UNKNOWN)

    @functools.cached_property
    def _model(self) -> Any:
        return read_pieces(self.models[self.side], self.side)

    # ---- Ids to text ----

    @functools.cached_property
    def _spelling(self) -> dict[int, str]:
        return {id: piece.replace("▁", " ") for piece, id in self.vocabulary.items()}

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        begun = False
        for id in ids:
            piece = self._spelling.get(int(id), "")
            if piece := piece if begun else piece.removeprefix(" "):
                yield piece
            begun = True

    # ---- To disk ----

    def save(self, folder: str | os.PathLike) -> None:
        """The folder's four files, both sides, which Transformers' AutoTokenizer reads as well."""
        folder = Path(folder)
        special.write_json(folder / "tokenizer_config.json", self.settings | {"tokenizer_class": "MarianTokenizer"})
        special.write_json(folder / VOCABULARY, self.vocabulary)
        for name, model in self.models.items():
            (folder / name).write_bytes(model)


def read_folder(folder: Path) -> MarianTokenizer:
    """The tokenizer of a Marian folder.

    Errors: `InputError` for a file that is missing, a vocabulary of each side's own, and one without </s> or <unk>.
    """
    settings = special.read_settings(folder)
    if (folder / "target_vocab.json").exists() or settings.get("separate_vocabs"):
        raise InputError(
            f"{folder}: source and target have vocabularies of their own (target_vocab.json); Marian models are read "
            "where both share one vocab.json"
        )
    if missing := [name for name in (TARGET, VOCABULARY) if not (folder / name).is_file()]:
        raise InputError(f"{folder} holds {SOURCE} but not {' and '.join(missing)}, which a Marian tokenizer needs")
    vocabulary = special.read_json(folder / VOCABULARY)
    if not all(type(id) is int and id >= 0 for id in vocabulary.values()) or not vocabulary:
        raise InputError(f"{folder / VOCABULARY} is not an object of pieces and their ids, 0 or more")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise InputError(f"{folder / VOCABULARY} gives one id to two pieces")
    tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    for role, usual in tokens.items():
        tokens[role] = special.content(settings.get(f"{role}_token"), f"{folder}: {role}_token") or usual
        if tokens[role] not in vocabulary and role != "pad":
            raise InputError(f"{folder / VOCABULARY} lacks {tokens[role]}, which every Marian vocabulary has")
    models = {name: (folder / name).read_bytes() for name in (SOURCE, TARGET)}
    for name, model in models.items():
        read_pieces(model, folder / name)
    found = Special(unk=vocabulary[tokens["unk"]], pad=vocabulary.get(tokens["pad"]))
    return MarianTokenizer(models, vocabulary, settings, found, tokens["eos"])
