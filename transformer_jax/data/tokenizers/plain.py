"""Bytes and characters: tokenizers without subwords.

In both, white space begins a word and everything else continues it, as in " word" of byte-level BPE.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer_jax.data.tokenizers.decoding import whole_characters
from transformer_jax.data.tokenizers.special import Special, write_json
from transformer_jax.errors import InputError

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class ByteTokenizer:
    """The tokenizer of bytes: ids 0-255 are the bytes, 256 is the end of text."""

    vocab_size: int = 257
    eos_id: int = 256
    fingerprint: str = "bytes-1"

    bos_id = None
    special = Special()
    special_spellings = (END_OF_TEXT,)
    languages = None

    @property
    def target(self) -> "ByteTokenizer":
        return self

    @property
    def continues(self) -> np.ndarray:
        return np.array([not bytes([byte]).isspace() for byte in range(256)] + [False])

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        character = np.repeat(np.arange(len(text)), [len(letter.encode()) for letter in text]).astype(np.int32)
        return self.encode(text), np.stack([character, character + 1], axis=1)

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_words([self.encode(word) for word in spaced(words)])

    def encode_prompt(self, text: str) -> np.ndarray:
        parts = [self.encode(part) for part in text.split(END_OF_TEXT)]
        return np.concatenate([parts[0], *(np.insert(part, 0, self.eos_id) for part in parts[1:])]).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for an id beyond 256, which a model with a padded vocabulary may generate.

        Args:
          token: its id.
        """
        if token == self.eos_id:
            return END_OF_TEXT.encode()
        return bytes([token]) if 0 <= token < 256 else b""

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        return whole_characters(map(self.token_bytes, ids))

    def save(self, folder: str | os.PathLike) -> None:
        write_json(Path(folder) / "bytes.json", {"vocab_size": self.vocab_size, "eos_id": self.eos_id})


@dataclass(frozen=True)
class CharacterTokenizer:
    """The tokenizer of characters: id i is `characters[i]`."""

    characters: str

    bos_id = None
    eos_id = None
    special = Special()
    special_spellings = ()
    languages = None

    @property
    def target(self) -> "CharacterTokenizer":
        return self

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"characters-1 " + self.characters.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def continues(self) -> np.ndarray:
        return np.array([not character.isspace() for character in self.characters])

    @functools.cached_property
    def _id_of(self) -> np.ndarray:
        """int32: code point -> id; -1: it has none."""
        points = _code_points(self.characters)
        table = np.full(points.max() + 1, -1, np.int32)
        table[points] = np.arange(len(points))
        return table

    def encode(self, text: str) -> np.ndarray:
        points = _code_points(text)
        ids = self._id_of[np.minimum(points, len(self._id_of) - 1)]
        if (unknown := (ids < 0) | (points >= len(self._id_of))).any():
            at = int(unknown.argmax())
            raise InputError(
                f"character {text[at]!r} (U+{ord(text[at]):04X}, at {at}) is not among the {self.vocab_size} "
                "characters of the training text; remove it, or use Bytes or TrainBPE, which can write any text"
            )
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        start = np.arange(len(text), dtype=np.int32)
        return self.encode(text), np.stack([start, start + 1], axis=1)

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return join_words([self.encode(word) for word in spaced(words)])

    def encode_prompt(self, text: str) -> np.ndarray:
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        return (self.characters[token] for token in ids if 0 <= token < self.vocab_size)  # others have no token

    def save(self, folder: str | os.PathLike) -> None:
        write_json(Path(folder) / "characters.json", {"characters": self.characters})


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def spaced(words: Sequence[str]) -> list[str]:
    """The words, each but the first with a space before it.

    Args:
      words: the words of a sentence.
    """
    return [*words[:1], *(f" {word}" for word in words[1:])]


def join_words(ids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [n] of a sentence, the index int32 [n] of the word that each belongs to).

    Args:
      ids: the token ids of each word.
    """
    word = np.repeat(np.arange(len(ids), dtype=np.int32), [len(one) for one in ids])
    return np.concatenate([np.zeros(0, np.int32), *ids]), word
