"""The tokenizer of letters with ids of their own: Transformers' `Wav2Vec2CTCTokenizer`, a vocab.json without merges."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.tokenizers.special import Special, content, read_bytes, read_json
from transformer_jax.errors import InputError

CLASS = "Wav2Vec2CTCTokenizer"
SETTINGS = "tokenizer_config.json"
FILES = ("vocab.json", SETTINGS, "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, eq=False)
class LetterTokenizer:
    """Letters and their ids. A letter that has none is the unknown token.

    Attributes:
      ids: {spelling: id}.
      space: the spelling of the space between words.
      special: the ids of padding, which is the blank of CTC, and of the unknown token.
      files: {name: bytes} of the folder, which `save` writes unchanged.
    """

    ids: Mapping[str, int]
    space: str
    special: Special
    files: Mapping[str, bytes] = field(default_factory=dict)

    bos_id = None
    eos_id = None
    languages = None

    @property
    def target(self) -> "LetterTokenizer":
        return self

    @property
    def tokenizer_class(self) -> str:
        """The name of Transformers' class."""
        return CLASS

    @property
    def vocab_size(self) -> int:
        return max(self.ids.values()) + 1

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([sorted(self.ids.items()), self.space]).encode()).hexdigest()

    @functools.cached_property
    def special_spellings(self) -> tuple[str, ...]:
        return tuple(spelling for spelling in self.ids if len(spelling) > 1)

    @functools.cached_property
    def _spelled(self) -> dict[int, str]:
        hidden = {*self.special.present().values()}
        letters = {id: spelling for spelling, id in self.ids.items() if len(spelling) == 1 and id not in hidden}
        return letters | {self.ids[self.space]: " "}

    def encode(self, text: str) -> np.ndarray:
        spelled = [self.space if letter == " " else letter for letter in text]
        ids = [self.ids.get(letter, self.special.unk) for letter in spelled]
        if None in ids:
            raise InputError(
                f"{text[ids.index(None)]!r} is not a letter of this tokenizer, and it has no unknown token"
            )
        return np.array(ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_prompt(self, text: str) -> np.ndarray:
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        return (self._spelled.get(int(id), "") for id in ids)

    def save(self, folder: str | os.PathLike[str]) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (Path(folder) / name).write_bytes(data)


def is_folder(folder: Path) -> bool:
    """Whether the files of `folder` are those of this class."""
    if not (folder / "vocab.json").is_file() or any((folder / n).is_file() for n in ("tokenizer.json", "merges.txt")):
        return False
    named = {name: read_json(folder / name) for name in (SETTINGS, "config.json") if (folder / name).is_file()}
    stated: Any = named.get(SETTINGS, {}).get("tokenizer_class")
    return stated == CLASS or (stated is None and named.get("config.json", {}).get("model_type") == "wav2vec2")


def read_folder(folder: Path) -> LetterTokenizer:
    """The tokenizer of a folder.

    Args:
      folder: with vocab.json.

    Raises:
      InputError: ids that are no numbers or not distinct, or a vocabulary without the space between words.
    """
    where, ids = folder / "vocab.json", read_json(folder / "vocab.json")
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if (folder / "added_tokens.json").is_file():
        ids = ids | read_json(folder / "added_tokens.json")
    if not ids or not all(type(id) is int and id >= 0 for id in ids.values()) or len({*ids.values()}) < len(ids):
        raise InputError(f"{where}: it must give each letter an id of its own, from 0; several languages are not read")
    space = settings.get("word_delimiter_token", "|")
    if space not in ids:
        raise InputError(f"{where} lacks the token between words, {space!r}, that {SETTINGS} names")
    roles = {"pad": "<pad>", "unk": "<unk>"}
    spelled = {role: content(settings.get(f"{role}_token", usual), f"{where}: {role}") for role, usual in roles.items()}
    special = Special(**{role: ids[token] for role, token in spelled.items() if token in ids})
    files = {name: read_bytes(folder / name) for name in FILES if (folder / name).is_file()}
    if "tokenizer_class" not in settings:
        files[SETTINGS] = json.dumps(settings | {"tokenizer_class": CLASS}, indent=1).encode()
    return LetterTokenizer(ids, space, special, files)
