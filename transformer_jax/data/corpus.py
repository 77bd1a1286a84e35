"""A corpus of text as random-access examples for causal language modelling.

An example is a window of the token stream: {"inputs": int32[T], "targets": int32[T], "weights": float32[T]}. The
targets are the inputs shifted by one token. `sampling` chooses the window of row i, as a pure function of (seed, i):

    "epochs"    adjacent windows, each once per epoch, reshuffled every epoch (Grain's seeded shuffle)
    "random"    a uniformly random position for every row (nanoGPT's `get_batch`)

Validation reads the whole stream in order, in adjacent windows: every token but the first is predicted once. The last
window is padded with weight 0.

With `documents="packed"` a row holds whole documents instead, as many as fit (`packed`).

The tokens are tokenised here, into the cache, or are those of a token store that `transformer-jax prepare` has written.

Letters: B rows, T length.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transformer_jax.contracts import LAUNCH, Source
from transformer_jax.data import mixtures, packed, pipeline, sources, token_store, tokenizers, tokens
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
    documents: Literal["joined", "packed"] = "joined"
    """joined: windows of one stream of tokens, across documents; packed: rows of whole documents that do not see each
    other."""
    store: tuple[str, ...] = ()
    """The folder or URL of a token store (`transformer-jax prepare`), or several, read in place of `source`; empty:
    `source` is tokenised into this machine's cache."""
    rates: tuple[float, ...] = ()
    """The share of the examples that each of several stores gives; empty: in proportion to their sizes."""
    store_cache: int = field(default=1 << 30, metadata=LAUNCH)
    """Bytes of a bucket's tokens that each host keeps on its disk for the next epoch."""

    def __post_init__(self) -> None:
        if isinstance(self.store, str):  # one, written without the comma of a tuple
            object.__setattr__(self, "store", (self.store,) if self.store else ())
        if len(self.rates) not in (0, len(self.store)) or any(rate <= 0 for rate in self.rates):
            raise InputError(f"data.rates = {self.rates}: give a positive share for each of {len(self.store)} stores")
        if len(self.store) > 1 and self.sampling != "epochs":
            raise InputError("data.sampling random reads one store; give --data.sampling epochs, or one store")
        if self.length < 1:
            raise InputError(f"data.length = {self.length} must be at least 1")
        if self.sampling not in ("epochs", "random"):
            raise InputError(f"data.sampling = {self.sampling!r} must be 'epochs' or 'random'")
        if self.documents not in ("joined", "packed"):
            raise InputError(f"data.documents = {self.documents!r} must be 'joined' or 'packed'")
        if self.documents == "packed" and self.sampling != "epochs":
            raise InputError("data.documents packed has no random positions; give --data.sampling epochs")
        if self.store_cache < 0:
            raise InputError(f"data.store_cache = {self.store_cache}: must be 0 or more")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared TextCorpus."""

    tokenizer: tokenizers.Tokenizer
    train: "Windows | packed.Packed"
    validation: "Windows | packed.Packed"
    train_tokens: tokens.TokenFile | token_store.TokenStore
    validation_tokens: tokens.TokenFile | token_store.TokenStore
    validation_documents: sources.Documents | None
    """The text, where it was tokenised here."""


def prepare(
    corpus: TextCorpus, *, seed: int, tokenizer: tokenizers.Tokenizer | None = None, cache: Path | None = None
) -> Corpus:
    """The endless training windows and the finite validation windows of a corpus, tokenised on first use.

    Args:
      corpus: the text, the tokenizer and the length.
      seed: the seed of the order or the positions of training windows.
      tokenizer: the one of the run or checkpoint that is continued; None: `corpus.tokenizer` is built.
      cache: the folder of the token files; None: `tokens.cache_dir()`.

    Raises:
      InputError: a missing, empty or too short corpus.
    """
    return _examples(corpus, seed, encoded(corpus, tokenizer=tokenizer, cache=cache))


@dataclass(frozen=True, eq=False)
class Encoded:
    """A TextCorpus as tokens. The sides are "train" and "validation"."""

    tokenizer: tokenizers.Tokenizer
    files: Mapping[str, list[Any]]
    """Of each side the token file, or the token stores."""
    origins: Mapping[str, str]
    """Names each side in messages."""
    documents: sources.Documents | None
    """The validation text, where it was tokenised here."""

    def whole(self, side: str) -> Any:
        """The token file of a side, or its stores as one.

        Args:
          side: "train" or "validation".
        """
        files = self.files[side]
        return files[0] if len(files) == 1 else token_store.joined(files)


def encoded(corpus: TextCorpus, *, tokenizer: tokenizers.Tokenizer | None = None, cache: Path | None = None) -> Encoded:
    """The tokens of a corpus: those of its stores, or of its text, which is tokenised on first use.

    Args:
      corpus: the stores, or the text and the tokenizer.
      tokenizer: the one of the run or checkpoint that is continued; None: that of the stores, or `corpus.tokenizer`.
      cache: the folder of the token files; None: `tokens.cache_dir()`.

    Raises:
      InputError: a missing or empty corpus, or a store that is damaged or of another tokenizer.
    """
    if corpus.store:
        return _of_stores(corpus, tokenizer)
    cache = cache or tokens.cache_dir()
    documents = {side: corpus.source.documents(side) for side in token_store.SIDES}
    tokenizer = tokenizers.build(corpus.tokenizer, documents["train"], cache, given=tokenizer)
    files = {side: [tokens.prepare(documents[side], tokenizer, cache)] for side in token_store.SIDES}
    origins = {side: documents[side].origin for side in token_store.SIDES}
    return Encoded(tokenizer, files, origins, documents["validation"])


def _of_stores(corpus: TextCorpus, tokenizer: tokenizers.Tokenizer | None) -> Encoded:
    """The stores that `corpus` names, which must be of the `tokenizer` of the run that is continued."""
    tokenizer = token_store.tokenizer_of(corpus.store[0]) if tokenizer is None else tokenizer
    made: dict[str, list[Any]] = {
        side: [token_store.open_store(path, side, corpus.store_cache // len(corpus.store)) for path in corpus.store]
        for side in token_store.SIDES
    }
    for path, store in zip(corpus.store, made["train"], strict=True):
        if store.tokenizer != tokenizer.fingerprint:
            raise InputError(
                f"data.store {path} was written with another tokenizer than this run's; prepare it with the run's: "
                "--data.tokenizer.path WORKDIR/tokenizer"
            )
    origins = {side: f"{', '.join(corpus.store)} ({side})" for side in token_store.SIDES}
    return Encoded(tokenizer, made, origins, None)


def _examples(corpus: TextCorpus, seed: int, found: Encoded) -> Corpus:
    """The examples of token files or stores, those of each side one after another."""
    tokenizer, made, origins = found.tokenizer, found.files, found.origins
    whole = {side: found.whole(side) for side in token_store.SIDES}
    if corpus.documents == "packed":
        rows = [packed.rows(file, tokenizer, corpus.length, origins["train"]) for file in made["train"]]
        order = _order([len(one.rows) for one in rows], corpus.rates, seed)
        train: Windows | packed.Packed = dataclasses.replace(packed.joined(rows, whole["train"]), order=order)
        validation: Windows | packed.Packed = packed.rows(
            whole["validation"], tokenizer, corpus.length, origins["validation"]
        )
    elif len(made["train"]) == 1:
        train = training_windows(whole["train"], corpus.length, corpus.sampling, seed, origins["train"])
        validation = validation_windows(whole["validation"], corpus.length, origins["validation"])
    else:
        parts = [training_windows(file, corpus.length, "epochs", seed, origins["train"]) for file in made["train"]]
        counts = [(len(part.tokens) - 1) // corpus.length for part in parts]
        firsts = np.cumsum([0, *(len(part.tokens) for part in parts)])
        starts = [first + corpus.length * np.arange(count) for first, count in zip(firsts, counts, strict=False)]
        positions = _Chosen(_order(counts, corpus.rates, seed), np.concatenate(starts))
        train = Windows(whole["train"].tokens, positions, corpus.length)
        validation = validation_windows(whole["validation"], corpus.length, origins["validation"])
    return Corpus(tokenizer, train, validation, whole["train"], whole["validation"], found.documents)


def _order(counts: Sequence[int], rates: tuple[float, ...], seed: int) -> Sequence[int]:
    """An endless order of rows, of one set or of several by their rates."""
    if len(counts) == 1:
        return pipeline.epochs(counts[0], seed)
    return mixtures.Order(tuple(counts), rates or mixtures.rates(counts), seed)


@dataclass(frozen=True)
class _Chosen(Sequence[int]):
    """Row -> the position of the window that `order` gives it."""

    order: Sequence[int]
    positions: np.ndarray
    """int64 [windows]."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: Any) -> Any:
        return int(self.positions[self.order[row]])


# ---- Windows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Windows(pipeline.StackedExamples):
    """Random-access windows of a token stream: `windows[i]` is example i."""

    tokens: "np.ndarray | token_store.Stream"
    order: Sequence[int]
    """Example -> position of the window's first input in `tokens`."""
    length: int

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch of examples: {"inputs": int32[B, T], "targets": int32[B, T], "weights": float32[B, T]}."""
        start_B = np.array([self.order[i] for i in numbers], np.int64)
        window_BT = token_store.windows(self.tokens, start_B, self.length + 1)  # one wider: inputs and targets
        inside_BT = start_B[:, None] + np.arange(1, self.length + 1) < len(self.tokens)
        return {
            "inputs": np.ascontiguousarray(window_BT[:, :-1]),
            "targets": np.ascontiguousarray(window_BT[:, 1:]),
            "weights": inside_BT.astype(np.float32),
        }


def training_windows(
    file: tokens.TokenFile | token_store.TokenStore,
    length: int,
    sampling: Sampling,
    seed: int,
    origin: str = "the training text",
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


def validation_windows(
    file: tokens.TokenFile | token_store.TokenStore, length: int, origin: str = "the validation text"
) -> Windows:
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
