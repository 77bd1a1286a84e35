"""Text: where a corpus comes from, and the tokenizer that its ids are of."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformer_jax.contracts.values import Special
from transformer_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np


class Source(Protocol):
    """A source of text documents: a frozen dataclass.

    Sources of tables, pairs and images have contracts of their own, next to the data that read them (`rows`, `pairs`,
    `images`). A source of any kind that can read files has `of_files(files)`, which returns a source of these files
    alone, the same on every side; `evaluate --data FILE ...` calls it.
    """

    def documents(self, split: Any) -> Any:
        """The `data.sources.Documents` of `split`, "train" or "validation"; they can be read any number of times."""
        ...


class TokenizerSpec(Protocol):
    """Which tokenizer an experiment uses: a frozen dataclass.

    A spec whose tokenizer saves files of its own also has `read(folder)`, which returns the tokenizer saved there; the
    files of `data.tokenizers` are read without it.
    """

    def build(self, documents: Iterable[tuple[str, str]], cache: Path | None = None) -> Any:
        """The `Tokenizer`, trained on the documents where it is one that is trained.

        Args:
          documents: (name, text) pairs.
          cache: a folder where a trained tokenizer may be stored; None: it is not stored.
        """
        ...


class Tokenizer(Protocol):
    """Text to token ids and back. Ids are int32 in [0, vocab_size).

    One that Hugging Face's tokenizer files cannot hold also has `not_exported`, which says what: "codes of pictures".
    """

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text is encoded."""
        ...

    def encode(self, text: str) -> "np.ndarray":
        """The ids of `text`, int32 [n]. Special tokens that are spelled in it are read as plain text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; an id that is not a token adds nothing."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer into `folder`, which is created if it does not exist."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins every text that the model was trained on; None: there is none."""
        return None

    @property
    def eos_id(self) -> int | None:
        """The token that ends generation; None: there is none.

        Where there is no `bos_id`, this token precedes each document.
        """
        return None

    @property
    def special_spellings(self) -> tuple[str, ...]:
        """The special tokens as they are spelled in a text."""
        return ()

    @property
    def special(self) -> Special:
        """The ids of [CLS], [SEP], [PAD], [MASK] and [UNK], however they are spelled."""
        return Special()

    @property
    def languages(self) -> Any:
        """mBART's codes of the source and target languages; None for every other tokenizer."""
        return None

    @property
    def target(self) -> "Tokenizer":
        """The tokenizer of the target side. Only Marian's differs from that of the source side."""
        return self

    @property
    def continues(self) -> "np.ndarray":
        """bool [vocab_size]: whether the token continues the word before it; False for special tokens."""
        raise _lacking(self, "continues")

    def encode_batch(self, texts: Sequence[str]) -> "list[np.ndarray]":
        """The ids of each of the `texts`."""
        return [self.encode(text) for text in texts]

    def encode_prompt(self, text: str) -> "np.ndarray":
        """Encodes `text` with its special tokens read as such: "Paris is the [MASK] of France."."""
        return self.encode(text)

    def encode_with_offsets(self, text: str) -> "tuple[np.ndarray, np.ndarray]":
        """The ids of `text`, int32 [n], and the characters of each: int32 [n, 2], first and one past the last."""
        raise _lacking(self, "encode_with_offsets")

    def encode_words(self, words: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
        """The ids of a sentence given as `words`, int32 [n], and the index of each id's word, int32 [n]."""
        raise _lacking(self, "encode_words")

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """`decode(ids)` as a stream: at most one piece per token, and never half a character."""
        if text := self.decode(ids):
            yield text


def _lacking(tokenizer: Tokenizer, name: str) -> InputError:
    """The error of a tokenizer without an optional method that a task calls."""
    return InputError(
        f"the tokenizer is a {type(tokenizer).__name__}, which does not define {name}, as this task needs; define it "
        "(contracts.Tokenizer states how), or use a tokenizer of data.tokenizers"
    )
