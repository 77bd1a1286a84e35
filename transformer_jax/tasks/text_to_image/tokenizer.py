"""The tokenizer of rows of text and pictures: the codes of pictures first, then a blank, then the tokens of texts.

[0, K)       codes of patches
K            the blank: it begins every row, fills a caption up, and is the whole caption where there is none
K + 1, ...   the tokens of the text tokenizer
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_jax.contracts import Tokenizer, TokenizerSpec
from transformer_jax.data import tokenizers
from transformer_jax.errors import InputError
from transformer_jax.tasks.text_to_image import codes


@dataclass(frozen=True, eq=False)
class PictureTokenizer(Tokenizer):
    """Texts and pictures to ids and back."""

    not_exported: ClassVar[str] = "codes of pictures"

    text: Any
    """The `Tokenizer` of captions; None: there are none."""
    codebook: codes.Codebook

    @property
    def blank(self) -> int:
        """K, the id of the blank."""
        return self.codebook.num_codes

    @property
    def vocab_size(self) -> int:
        """The codes, the blank and the tokens of text."""
        return self.blank + 1 + (0 if self.text is None else int(self.text.vocab_size))

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """A hash of everything that decides how texts and pictures are encoded."""
        text = "" if self.text is None else self.text.fingerprint
        return hashlib.sha256(f"{text} {self.codebook.fingerprint}".encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [n]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text; none where there are no captions."""
        if self.text is None:
            return [np.zeros(0, np.int32)] * len(texts)
        return [np.asarray(ids, np.int32) + np.int32(self.blank + 1) for ids in self.text.encode_batch(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; codes and blanks add nothing."""
        return (
            ""
            if self.text is None
            else str(self.text.decode([int(one) - self.blank - 1 for one in ids if one > self.blank]))
        )

    def captions(self, texts: Sequence[str], length: int) -> np.ndarray:
        """The ids int32 [N, length] of captions, truncated, or filled up by blanks.

        Args:
          texts: N of them.
          length: tokens of each.
        """
        rows = np.full((len(texts), length), self.blank, np.int32)
        for row, ids in zip(rows, self.encode_batch(texts), strict=True):
            row[: len(ids)] = ids[:length]
        return rows

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the codebook, and in "text" the tokenizer of captions.

        Args:
          folder: is created if it does not exist.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        if self.text is not None:
            (Path(folder) / "text").mkdir(exist_ok=True)
            self.text.save(Path(folder) / "text")
        self.codebook.save(folder)


@dataclass(frozen=True)
class TextAndCodes:
    """The spec of a `PictureTokenizer`: a tokenizer of captions, and k-means of the patches of training pictures."""

    text: TokenizerSpec | None = None
    """The tokenizer of captions; None: pictures without captions."""
    num_codes: int = 256
    """K, the size of the codebook."""
    patch: int = 4
    """Pixels of a patch's side; 1: the codes are colours, as in Image GPT."""
    size: int = 32
    """Pixels of a picture's side."""
    channels: int = 3
    """1: grey; 3: RGB."""
    fit: Literal["shortest", "squash"] = "shortest"
    """shortest: the shorter side is resized, and the centre kept; squash: both sides are resized."""

    def __post_init__(self) -> None:
        if self.patch < 1 or self.size < 1 or self.size % self.patch:
            raise InputError(f"TextAndCodes.size = {self.size} must be a multiple of patch = {self.patch}")
        if not 2 <= self.num_codes <= 1 << 20:
            raise InputError(f"TextAndCodes.num_codes = {self.num_codes} must be between 2 and {1 << 20}")
        if self.channels not in (1, 3):
            raise InputError(f"TextAndCodes.channels = {self.channels} must be 1 (grey) or 3 (RGB)")

    @property
    def length(self) -> int:
        """S, codes of a picture."""
        return (self.size // self.patch) ** 2

    def build(self, documents: Iterable[tuple[str, str]], cache: Path | None = None) -> PictureTokenizer:
        """The tokenizer of documents that also have `pictures`, uint8 [N, size, size, C].

        Args:
          documents: (name, caption) pairs.
          cache: a folder that keeps a trained tokenizer of captions.
        """
        pictures = getattr(documents, "pictures", None)
        if pictures is None:
            raise InputError("TextAndCodes is built of captions with pictures; use it in a text_to_image.Captioned")
        text = None if self.text is None else tokenizers.build(self.text, documents, cache)
        return PictureTokenizer(text, codes.fit(pictures, self.patch, self.num_codes))

    def read(self, folder: Path) -> PictureTokenizer:
        """The tokenizer that `PictureTokenizer.save` wrote.

        Args:
          folder: the folder of the run.
        """
        text = tokenizers.load(folder / "text", self.text) if (folder / "text").is_dir() else None
        return PictureTokenizer(text, codes.load(folder))
