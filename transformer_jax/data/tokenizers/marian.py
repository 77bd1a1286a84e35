"""Marian's tokenizer (opus-mt): SentencePiece pieces of the source and of the target with ids from one vocab.json.

A folder holds source.spm and target.spm, which split the text of each side into pieces, and vocab.json with the ids of
all pieces, of `</s>`, `<unk>` and `<pad>`, and of language codes such as `>>deu<<` for models with several target
languages. A piece that is not in vocab.json is <unk>. A piece that SentencePiece does not know is looked up by its
spelling, because the other side may know it. A code of vocab.json at the beginning of a source is a token; any other
`>>...<<` is text (Transformers makes it <unk>).

Punctuation is not normalised as by Moses, although opus-mt's training data was: Transformers 5 does not do so either.
So rare quotes and dashes stay.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.tokenizers import sentencepiece, special
from transformer_jax.data.tokenizers.plain import join_words
from transformer_jax.data.tokenizers.special import Special
from transformer_jax.data.tokenizers.subwords import OWN_SWITCH, reads_literally, without_space
from transformer_jax.errors import InputError

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
KEPT = ("generation_config.json",)
CODE = re.compile(r">>.+?<<")


@dataclass(frozen=True, eq=False)
class MarianTokenizer:
    """The tokenizer of one side of a Marian folder, first the source's; `target` is the other.

    Attributes:
      models: the bytes of the SentencePiece files, {"source.spm": ..., "target.spm": ...}.
      vocabulary: vocab.json.
      settings: tokenizer_config.json.
      special: the ids of <unk> and <pad>.
      eos: the spelling of the end of text.
      side: the file whose model encodes the text.
      literal: special tokens spelled in a text are text; in a prompt they are tokens.
      kept: {name: bytes} of other files of the folder, which `save` writes unchanged.
    """

    models: dict[str, bytes]
    vocabulary: dict[str, int]
    settings: dict[str, Any]
    special: Special
    eos: str
    side: str = SOURCE
    literal: bool = False
    kept: Mapping[str, bytes] = field(default_factory=dict)

    bos_id = None
    languages = None

    @functools.cached_property
    def target(self) -> "MarianTokenizer":
        return self if self.side == TARGET else replace(self, side=TARGET)

    @property
    def eos_id(self) -> int:
        return self.vocabulary[self.eos]

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids before and after a text."""
        return [], [self.eos_id]

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
        """The ids of each text; with `literal`, special tokens spelled in it are text.

        Args:
          texts: to encode.
        """
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
        """This tokenizer with other fields.

        Args:
          **changes: the fields.
        """
        return replace(self, **changes)

    @functools.cached_property
    def _named(self) -> list[str]:
        """The spellings of the special tokens."""
        named = {self.eos_id, *self.special.present().values()}
        return [token for token, id in self.vocabulary.items() if id in named]

    @functools.cached_property
    def _codes(self) -> dict[str, int]:
        """{">>deu<<": 7, ...}."""
        return {token: id for token, id in self.vocabulary.items() if CODE.fullmatch(token)}

    def _code_of(self, text: str) -> str:
        """The language code that a source begins with, or ""."""
        found = CODE.match(text) if self.side == SOURCE else None
        return found[0] if found and found[0] in self._codes else ""

    def _ids(self, code: str, parts: Sequence[tuple[int, str]]) -> np.ndarray:
        ids = [self._codes[code]] if code else []
        unknown = self.special.unk
        assert unknown is not None  # `read_folder` refuses a vocabulary without it
        for id, spelled in parts:  # a piece that SentencePiece does not know is looked up by its spelling
            token = spelled if id == self._pieces.model.unknown else self._pieces.model.pieces[id].spelling
            ids.append(self.vocabulary.get(token, unknown))
        return np.array(ids, np.int32)

    @functools.cached_property
    def _pieces(self) -> sentencepiece.Pieces:
        """Splits text into SentencePiece's pieces."""
        model = sentencepiece.read(self.models[self.side], self.side)
        return sentencepiece.Pieces(model, np.arange(len(model.pieces)))

    # ---- Ids to text ----

    @functools.cached_property
    def _spelling(self) -> dict[int, str]:
        return {id: piece for piece, id in self.vocabulary.items()}

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids in pieces, as Transformers decodes: a space after each special token, none at either end.

        Args:
          ids: as they are generated.
        """
        begun, held = False, ""
        for part in self._parts(ids):
            text = held + (part if begun else part.lstrip())
            shown = text.rstrip()
            held, begun = text[len(shown) :], begun or bool(shown)
            if shown:
                yield shown

    def _parts(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of each token. The first word after a special token has no space before it."""
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
        """Writes the four files of both sides, which Transformers' AutoTokenizer reads as well.

        Args:
          folder: an existing or a new folder.
        """
        folder = Path(folder)
        settings = self.settings | {"tokenizer_class": "MarianTokenizer"}
        if self.literal != reads_literally(settings):
            settings |= {OWN_SWITCH: self.literal}
        special.write_json(folder / "tokenizer_config.json", settings)
        special.write_json(folder / VOCABULARY, self.vocabulary)
        for name, data in {**self.models, **self.kept}.items():
            (folder / name).write_bytes(data)


def read_folder(folder: Path) -> MarianTokenizer:
    """The tokenizer of a Marian folder.

    Args:
      folder: with source.spm, target.spm and vocab.json.

    Raises:
      InputError: a file is missing, the sides have separate vocabularies, or </s> or <unk> is missing.
    """
    settings = special.read_settings(folder)
    if (folder / "target_vocab.json").exists() or settings.get("separate_vocabs"):
        raise InputError(
            f"{folder}: source and target have separate vocabularies (target_vocab.json); only Marian models with one "
            "shared vocab.json are supported"
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
            raise InputError(f"{folder / name} is not a Unigram model, as Marian's are; use another folder")
    found = Special(unk=vocabulary[tokens["unk"]], pad=vocabulary.get(tokens["pad"]))
    kept = {name: special.read_bytes(folder / name) for name in KEPT if (folder / name).is_file()}
    literal = reads_literally(settings)
    return MarianTokenizer(models, vocabulary, settings, found, tokens["eos"], literal=literal, kept=kept)
