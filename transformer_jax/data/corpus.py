"""A corpus of text as random-access examples for causal language modelling.

An example is a window of the token stream: {"inputs": int32[T], "targets": int32[T], "weights": float32[T]}. The
targets are the inputs shifted by one token. `sampling` chooses the window of row i, as a pure function of (seed, i):

    "epochs"    adjacent windows, each once per epoch, reshuffled every epoch (Grain's seeded shuffle)
    "random"    a uniformly random position for every row (nanoGPT's `get_batch`)

Validation reads the whole stream in order, in adjacent windows: every token but the first is predicted once. The last
window is padded with weight 0.

Letters: B rows, T length.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transformer_jax.contracts import Source
from transformer_jax.data import pipeline, sources, tokenizers, tokens
from transformer_jax.errors import InputError

Sampling = Literal["epochs", "random"]


@dataclass(frozen=True)
class TextCorpus:
    """The data of an experiment on a corpus: its text, its tokenizer, the length of a window."""

    source: Source = field(default_factory=sources.Embedded)
    """Where the text comes from."""
    tokenizer: tokenizers.Spec = field(default_factory=tokenizers.TrainBPE)
    """How it becomes tokens."""
    length: int = 256
    """Tokens in a window."""
    sampling: Sampling = "epochs"
    """epochs: every window once per epoch, shuffled; random: windows at random positions (nanoGPT)."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"data.length = {self.length} must be at least 1")
        if self.sampling not in ("epochs", "random"):
            raise InputError(f"data.sampling = {self.sampling!r} must be 'epochs' or 'random'")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared TextCorpus."""

    tokenizer: tokenizers.Tokenizer
    train: "Windows"
    validation: "Windows"
    train_tokens: tokens.TokenFile
    validation_tokens: tokens.TokenFile


def prepare(
    corpus: TextCorpus, *, seed: int, tokenizer: tokenizers.Tokenizer | None = None, cache: Path | None = None
) -> Corpus:
    """The endless training windows and the finite validation windows of a corpus, tokenised on first use.

    Args:
      corpus: the text, the tokenizer and the length.
      seed: of the order or the positions of training windows.
      tokenizer: the one of the run or checkpoint that is continued; None: `corpus.tokenizer` is built.
      cache: the folder of the token files; None: `tokens.cache_dir()`.

    Raises:
      InputError: a missing, empty or too short corpus.
    """
    cache = cache or tokens.cache_dir()
    train_documents = corpus.source.documents("train")
    validation_documents = corpus.source.documents("validation")
    tokenizer = tokenizers.build(corpus.tokenizer, train_documents, cache, given=tokenizer)
    train = tokens.prepare(train_documents, tokenizer, cache)
    validation = tokens.prepare(validation_documents, tokenizer, cache)
    return Corpus(
        tokenizer=tokenizer,
        train=training_windows(train, corpus.length, corpus.sampling, seed, train_documents.origin),
        validation=validation_windows(validation, corpus.length, validation_documents.origin),
        train_tokens=train,
        validation_tokens=validation,
    )


# ---- Windows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Windows(pipeline.StackedExamples):
    """Random-access windows of a token stream: `windows[i]` is example i."""

    tokens: np.ndarray
    order: Sequence[int]
    """Example -> position of the window's first input in `tokens`."""
    length: int

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch of examples: {"inputs": int32[B, T], "targets": int32[B, T], "weights": float32[B, T]}."""
        start_B1 = np.array([self.order[i] for i in numbers], np.int64)[:, None]
        offset_T = np.arange(self.length + 1)
        at_BT = start_B1 + offset_T  # one wider than T: inputs and targets
        inside_BT = at_BT < len(self.tokens)
        window_BT = np.where(inside_BT, self.tokens[np.minimum(at_BT, len(self.tokens) - 1)], 0).astype(np.int32)
        return {
            "inputs": np.ascontiguousarray(window_BT[:, :-1]),
            "targets": np.ascontiguousarray(window_BT[:, 1:]),
            "weights": inside_BT[:, 1:].astype(np.float32),
        }


def training_windows(
    file: tokens.TokenFile, length: int, sampling: Sampling, seed: int, origin: str = "the training text"
) -> Windows:
    """An endless stream of full windows.

    Args:
      file: the tokenised text.
      length: T, tokens in a window.
      sampling: "epochs" or "random".
      seed: in [0, 2**32).
      origin: names the text in messages.

    Raises:
      InputError: a text shorter than one window, or a seed out of range.
    """
    count = len(file.tokens)
    if count <= length:
        raise InputError(
            f"{origin} has {count:,} tokens, and one window needs data.length + 1 = {length + 1:,}; "
            "give more text or lower data.length"
        )
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed = {seed} must be between 0 and {(1 << 32) - 1}")
    if sampling == "epochs":
        numbers = pipeline.epochs((count - 1) // length, seed)
        return Windows(file.tokens, _SideBySide(numbers, length), length)
    return Windows(file.tokens, _Random(count - length, seed), length)


def validation_windows(file: tokens.TokenFile, length: int, origin: str = "the validation text") -> Windows:
    """Adjacent windows that predict every token but the first once, in order; the last one is padded.

    Args:
      file: the tokenised text.
      length: T, tokens in a window.
      origin: names the text in messages.

    Raises:
      InputError: a text of fewer than two tokens.
    """
    targets = len(file.tokens) - 1
    if targets < 1:
        raise InputError(f"{origin} has {len(file.tokens)} token, and predicting one needs at least 2; give more text")
    windows = -(-targets // length)
    return Windows(file.tokens, range(0, windows * length, length), length)


@dataclass(frozen=True)
class _SideBySide(Sequence[int]):
    """Row -> the position of a window; each window once per epoch."""

    numbers: Sequence[int]
    length: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: Any) -> Any:
        return self.numbers[row] * self.length


@dataclass(frozen=True)
class _Random(Sequence[int]):
    """Row -> a uniform position below `positions`, by the counter-based generator Philox (Salmon et al. 2011)."""

    positions: int
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: Any) -> Any:
        # The bias of the remainder is positions / 2**64, which is negligible.
        return int(np.random.Philox(key=self.seed, counter=row).random_raw()) % self.positions
