"""Tokenizers: text to token ids and back.

A spec describes the tokenizer of an experiment. `build` makes it, from the training text if it is trained; its `save`
writes it into a folder, and `load` reads that folder.

    Bytes            256 byte values and an end-of-text token
    Characters       every character of the training text is a token; no end-of-text token (nanoGPT's Shakespeare)
    TrainBPE         byte-level BPE trained on the training text, as GPT-2's and RoBERTa's
    TrainWordPiece   WordPiece trained on the training text, as BERT's
    TrainUnigram     Unigram trained on the training text, as SentencePiece's and ALBERT's
    TokenizerFile    a Hugging Face folder or a tokenizer.json, encoded as Transformers does; its files are kept

A user's own spec is a frozen dataclass with `build(documents, cache) -> contracts.Tokenizer`. If its tokenizer saves
files of its own, it also has `read(folder)`.

Special tokens that are spelled in a text: the tokenizer of a folder encodes them as tokens, as in Transformers, unless
the folder says "split_special_tokens". A tokenizer that was trained here encodes them as text: "<|endoftext|>" in a
document is thirteen characters. `special_tokens` of the spec changes this. In a prompt they are always tokens:
`encode_prompt`.
"""

import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transformer_jax.contracts import Tokenizer
from transformer_jax.contracts import TokenizerSpec as Spec
from transformer_jax.data.tokenizers import languages, training
from transformer_jax.data.tokenizers.batch import batch
from transformer_jax.data.tokenizers.folder import load
from transformer_jax.data.tokenizers.languages import Languages
from transformer_jax.data.tokenizers.plain import END_OF_TEXT, ByteTokenizer, CharacterTokenizer
from transformer_jax.data.tokenizers.special import Special
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

__all__ = [
    "END_OF_TEXT",
    "ByteTokenizer",
    "Bytes",
    "CharacterTokenizer",
    "Characters",
    "Languages",
    "Spec",
    "Special",
    "SubwordTokenizer",
    "Tokenizer",
    "TokenizerFile",
    "TrainBPE",
    "TrainUnigram",
    "TrainWordPiece",
    "batch",
    "build",
    "load",
    "prompt_ids",
    "sentinels",
    "stream_decode",
    "t5_special",
]


Documents = Iterable[tuple[str, str]]
Written = Literal["", "read", "text"]


@dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes and an end-of-text token: 257 ids."""

    def build(self, documents: Documents, cache: Path | None = None) -> ByteTokenizer:
        """The tokenizer; it needs neither documents nor a cache."""
        return ByteTokenizer()


@dataclass(frozen=True)
class Characters:
    """One id for each character of the training text, in code-point order. Other characters are refused."""

    def build(self, documents: Documents, cache: Path | None = None) -> CharacterTokenizer:
        """The tokenizer of the characters in the documents.

        Args:
          documents: (name, text) pairs.
          cache: not used.

        Raises:
          InputError: there is no text.
        """
        seen: set[str] = set()
        for _, text in documents:
            seen.update(text)
        if not seen:
            origin = getattr(documents, "origin", "the documents given")
            raise InputError(f"{origin}: no text to take the characters from")
        return CharacterTokenizer("".join(sorted(seen)))


@dataclass(frozen=True)
class TrainBPE:
    """Byte-level BPE trained on the training text. The same text always gives the same tokenizer."""

    vocab_size: int = 4096
    """Number of tokens: 256 bytes, the special tokens and the merges. A small corpus may give fewer."""
    special: tuple[str, ...] = ()
    """Special tokens, numbered from 0; (): <|endoftext|>. RoBERTa and BART have <s> <pad> </s> <unk> <mask>; T5 has
    `t5_special()`."""
    split_digits: bool = False
    """Every digit is a token of its own, as in Llama, so that numbers are copied digit by digit."""
    special_tokens: Written = ""
    """How special tokens spelled in a text are encoded: "read": as tokens; "text" or "": as text."""

    def __post_init__(self) -> None:
        special = self.special or (END_OF_TEXT,)
        if not all(special) or len(set(special)) != len(special):
            raise InputError(f"TrainBPE.special = {self.special!r} must be distinct tokens, none of them empty")
        if self.vocab_size < 256 + len(special):
            more = f" and {len(special) - 5} more" if len(special) > 5 else ""
            raise InputError(
                f"TrainBPE.vocab_size = {self.vocab_size} must be at least {256 + len(special)}: bytes and "
                f"{' '.join(special[:5])}{more}"
            )
        _check(self)

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        """The trained tokenizer.

        Args:
          documents: (name, text) pairs.
          cache: a folder that keeps the tokenizer for the same documents; None: it is always trained.
        """

        def train() -> SubwordTokenizer:
            return training.train_bpe(self.vocab_size, self.special, self.split_digits, documents)

        return _cached(self, train, documents, cache)


@dataclass(frozen=True)
class TrainWordPiece:
    """BERT's tokenizer trained on the training text. The same text always gives the same tokenizer."""

    vocab_size: int = 30522
    """Number of tokens: `[PAD] [UNK] [CLS] [SEP] [MASK]`, letters and the merges. A small corpus may give fewer."""
    lowercase: bool = True
    """Text is lower-cased and accents are removed, as in BERT's uncased models."""
    special_tokens: Written = ""
    """How special tokens spelled in a text are encoded: "read": as tokens; "text" or "": as text."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        """The trained tokenizer.

        Args:
          documents: (name, text) pairs.
          cache: a folder that keeps the tokenizer for the same documents; None: it is always trained.
        """

        def train() -> SubwordTokenizer:
            return training.train_wordpiece(self.vocab_size, self.lowercase, documents)

        return _cached(self, train, documents, cache)


@dataclass(frozen=True)
class TrainUnigram:
    """ALBERT's tokenizer trained on the training text. Training is slow and not deterministic (see `training`)."""

    vocab_size: int = 30000
    """Number of tokens: `<pad> <unk> [CLS] [SEP] [MASK]` and the pieces. A small corpus may give fewer."""
    lowercase: bool = True
    """Text is lower-cased and accents are removed, as in ALBERT."""
    special_tokens: Written = ""
    """How special tokens spelled in a text are encoded: "read": as tokens; "text" or "": as text."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        """The trained tokenizer.

        Args:
          documents: (name, text) pairs.
          cache: a folder that keeps the tokenizer for the same documents; None: it is always trained.
        """

        def train() -> SubwordTokenizer:
            return training.train_unigram(self.vocab_size, self.lowercase, documents)

        return _cached(self, train, documents, cache)


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer in a file or a folder."""

    path: str
    """A tokenizer.json, or a folder: a saved tokenizer, or a Hugging Face snapshot."""
    source_language: str = ""
    """For mBART: the code of the source language, such as en_XX; "": as the folder says."""
    target_language: str = ""
    """For mBART: the code of the target language; "": as the folder says."""
    special_tokens: Written = ""
    """How special tokens spelled in a text are encoded: "read": as tokens; "text": as text; "": as the folder says,
    by default as tokens."""

    def build(self, documents: Documents, cache: Path | None = None) -> Any:
        """The tokenizer; it needs neither documents nor a cache."""
        return chosen(self, load(self.path))


def build(spec: Spec, documents: Documents, cache: Path | None = None, *, given: Any = None) -> Any:
    """The tokenizer of a spec, or the given one with the `special_tokens` of the spec.

    Args:
      spec: which tokenizer.
      documents: (name, text) pairs to train it on.
      cache: a folder that keeps trained tokenizers; None: none is kept.
      given: the tokenizer that the parameters were trained with; None: it is built.

    Raises:
      InputError: what is not a spec, and what its `build` refuses.
    """
    if given is not None:
        return _switched(given, getattr(spec, "special_tokens", ""))
    if not callable(getattr(spec, "build", None)):
        raise InputError(f"{spec!r} is not a tokenizer: it has no build(documents, cache)")
    return spec.build(documents, cache)


def chosen(spec: TokenizerFile, tokenizer: Any) -> Any:
    """The tokenizer with the languages and the `special_tokens` of a spec.

    Args:
      spec: chooses them.
      tokenizer: as it was read.

    Raises:
      InputError: a language that the tokenizer does not have.
    """
    tokenizer = languages.between(tokenizer, spec.source_language, spec.target_language)
    return _switched(tokenizer, spec.special_tokens)


def _switched(tokenizer: Any, written: str) -> Any:
    """The tokenizer that encodes special tokens spelled in a text as `written` says."""
    if written not in ("", "read", "text"):
        raise InputError(f'special_tokens = {written!r} must be "read", "text" or ""')
    if not written or getattr(tokenizer, "literal", None) in (None, written == "text"):
        return tokenizer
    return tokenizer.replace(literal=written == "text")


def _check(spec: TrainBPE | TrainWordPiece | TrainUnigram) -> None:
    if spec.vocab_size < 6:
        raise InputError(f"{type(spec).__name__}.vocab_size = {spec.vocab_size} must be 6 or more: 5 are special")


def _cached(
    spec: TrainBPE | TrainWordPiece | TrainUnigram,
    train: Callable[[], SubwordTokenizer],
    documents: Documents,
    cache: Path | None,
) -> SubwordTokenizer:
    """The trained tokenizer, from the cache if the same documents were used before."""
    import tokenizers

    identity = getattr(documents, "identity", None)
    if cache is None or identity is None:
        return _switched(train(), spec.special_tokens)
    key = hashlib.sha256(f"{spec} {tokenizers.__version__} {identity()}".encode()).hexdigest()[:32]
    kept = cache / "tokenizers" / key
    if not (kept / "tokenizer.json").is_file():
        _keep(train(), kept)
    return _switched(load(kept), spec.special_tokens)


def _keep(tokenizer: SubwordTokenizer, kept: Path) -> None:
    """Saves a tokenizer completely or not at all; another process may save the same one."""
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
        tokenizer.save(temporary)
        try:
            temporary.rename(kept)
        except OSError:
            shutil.rmtree(temporary)
            if not (kept / "tokenizer.json").is_file():
                raise
    except OSError as error:
        raise InputError(f"cannot keep the tokenizer in {kept} ({error}); set TRANSFORMER_JAX_CACHE") from None


def t5_special(count: int = 100) -> tuple[str, ...]:
    """T5's special tokens for `TrainBPE.special`: <pad> </s> <unk>, and the sentinels.

    Args:
      count: how many sentinels <extra_id_0>, ...
    """
    return ("<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(count)))


def sentinels(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of the sentinels <extra_id_0>, <extra_id_1>, ..., int32; none if there are none. T5's descend.

    Args:
      tokenizer: any.
    """
    if not isinstance(tokenizer, SubwordTokenizer):
        return np.zeros(0, np.int32)
    found = (tokenizer.id_of(f"<extra_id_{i}>") for i in itertools.count())
    return np.array(list(itertools.takewhile(lambda id: id is not None, found)), np.int32)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt for a language model: the beginning-of-text token, if there is one, and the prompt's tokens.

    An empty prompt without a beginning-of-text token is the end of text; without that, a newline or token 0.

    Args:
      tokenizer: encodes the prompt; special tokens in it are tokens.
      prompt: the text.
    """
    ids = [int(id) for id in tokenizer.encode_prompt(prompt)]
    if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]
    return ids or [_first(tokenizer) if tokenizer.eos_id is None else tokenizer.eos_id]


def _first(tokenizer: Tokenizer) -> int:
    """The id of a newline, or 0 if the vocabulary has none."""
    try:
        return int(tokenizer.encode("\n")[0])
    except InputError:
        return 0


def stream_decode(tokenizer: Tokenizer, ids: Iterable[int], after: Sequence[int] = ()) -> Iterator[str]:
    """The text of ids as they arrive. A piece never ends inside a character, and the joined pieces are `decode(ids)`.

    Args:
      tokenizer: decodes the ids.
      ids: as they are generated.
      after: ids before these, such as the prompt's. Their text is not repeated, but it affects the first piece, such as
        the space between the two.
    """
    pieces = tokenizer.pieces(itertools.chain(after, ids))
    skip = len(tokenizer.decode(after)) if after else 0
    for piece in pieces:
        if len(piece) > skip:
            yield piece[skip:]
        skip = max(0, skip - len(piece))
