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

from transformer_jax.data.tokenizers import sentencepiece, special
from transformer_jax.data.tokenizers.plain import join_words
from transformer_jax.data.tokenizers.special import Special
from transformer_jax.data.tokenizers.subwords import OWN_SWITCH, reads_literally, without_space
from transformer_jax.errors import InputError

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
CODE = re.compile(r">>.+?<<")


@dataclass(frozen=True, eq=False)
class MarianTokenizer:
    """One side of a Marian folder, the source's as it is read; `target` is the other.

    Fields:
      models: the SentencePiece files as they are, {"source.spm": ..., "target.spm": ...}.
      vocabulary: vocab.json. settings: tokenizer_config.json.
      special, eos: the tokens that vocabulary has for these. side: which of the models encodes the text.
      literal: special tokens written in a text are text; in a prompt they never are.
    """

    models: dict[str, bytes]
    vocabulary: dict[str, int]
    settings: dict[str, Any]
    special: Special
    eos: str
    side: str = SOURCE
    literal: bool = False

    bos_id = None
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
        parts = [
            self.side,
            str(self.literal),
            json.dumps(sorted(self.vocabulary.items())),
            self.eos,
            str(self.special.unk),
        ]
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
        """The ids of each text; special tokens written in it are text where `literal` says so."""
        return [self._plain(text) if self.literal else self.encode_prompt(text) for text in texts]

    def _plain(self, text: str) -> np.ndarray:
        code = self._code_of(text)
        parts = self._pieces.spell_batch([text[len(code) :]])[0]
        return self._ids(code, parts)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        code = self._code_of(text)
        rest = text[len(code) :]
        _, offsets = self._pieces.encode_with_offsets(rest)
        whole = np.array([[0, len(code)]] if code else [], np.int32).reshape(-1, 2)
        return self._plain(text), np.concatenate([whole, without_space(offsets, rest) + len(code)])

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_words(self.encode_batch(list(words)))

    def encode_prompt(self, text: str) -> np.ndarray:
        parts = re.split(f"({'|'.join(re.escape(token) for token in self._named)})", text)
        ids = [[self.vocabulary[part]] if i % 2 else self._plain(part) for i, part in enumerate(parts)]
        return np.concatenate(ids).astype(np.int32)

    @property
    def special_spellings(self) -> tuple[str, ...]:
        return tuple(self._named)

    def replace(self, **changes: Any) -> "MarianTokenizer":
        """This tokenizer with other fields."""
        return replace(self, **changes)

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

    def _ids(self, code: str, parts: Sequence[tuple[int, str]]) -> np.ndarray:
        ids = [self._codes[code]] if code else []
        unknown = self.special.unk
        assert unknown is not None  # `read_folder` refuses a vocabulary without it
        for id, spelled in parts:  # what SentencePiece does not know is looked up as it is spelled
            token = spelled if id == self._pieces.model.unknown else self._pieces.model.pieces[id].spelling
            ids.append(self.vocabulary.get(token, unknown))
        return np.array(ids, np.int32)

    @functools.cached_property
    def _pieces(self) -> sentencepiece.Pieces:
        """Text to SentencePiece's pieces."""
        model = sentencepiece.read(self.models[self.side], self.side)
        return sentencepiece.Pieces(model, np.arange(len(model.pieces)))

    # ---- Ids to text ----

    @functools.cached_property
    def _spelling(self) -> dict[int, str]:
        return {id: piece for piece, id in self.vocabulary.items()}

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """As Transformers: a space after each special token, none at either end."""
        begun, held = False, ""
        for part in self._parts(ids):
            text = held + (part if begun else part.lstrip())
            shown = text.rstrip()
            held, begun = text[len(shown) :], begun or bool(shown)
            if shown:
                yield shown

    def _parts(self, ids: Iterable[int]) -> Iterator[str]:
        """The text between special tokens begins without the space that stands before a word."""
        empty = True
        for id in ids:
            token = self._spelling.get(int(id), "")
            if token in self._named:
                yield f"{token} "
                empty = True
                continue
            piece = token.replace("▁", " ")
            piece = piece.removeprefix(" ") if empty else piece
            empty = empty and not piece
            yield piece

    # ---- To disk ----

    def save(self, folder: str | os.PathLike) -> None:
        """The folder's four files, both sides, which Transformers' AutoTokenizer reads as well."""
        folder = Path(folder)
        settings = self.settings | {"tokenizer_class": "MarianTokenizer"}
        if self.literal != reads_literally(settings):
            settings |= {OWN_SWITCH: self.literal}
        special.write_json(folder / "tokenizer_config.json", settings)
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
    models = {name: special.read_bytes(folder / name) for name in (SOURCE, TARGET)}
    for name, model in models.items():
        if sentencepiece.read(model, folder / name).kind != sentencepiece.UNIGRAM:
            raise InputError(f"{folder / name} is not read: it is not a Unigram model, which Marian's are")
    found = Special(unk=vocabulary[tokens["unk"]], pad=vocabulary.get(tokens["pad"]))
    return MarianTokenizer(models, vocabulary, settings, found, tokens["eos"], literal=reads_literally(settings))
