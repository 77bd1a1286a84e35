"""Tokenizers: text to token ids and back.

A spec says which tokenizer an experiment wants; `build` makes it from the training text; `save` and `load` keep it.

    Bytes            256 byte values and an end-of-text token
    Characters       every character of the training text is a token; no end-of-text token (nanoGPT's Shakespeare)
    TrainBPE         byte-level BPE learned from the training text (GPT-2's and RoBERTa's kind: it can write any text)
    TrainWordPiece   WordPiece learned from the training text (BERT's kind)
    TrainUnigram     Unigram pieces learned from the training text (SentencePiece's and ALBERT's kind)
    TokenizerFile    a folder of Hugging Face's, or a tokenizer.json; the tokenizer is what Transformers makes of it
                     (`folder`), and is saved as the files that it was read from

A spec of the user's own is any frozen dataclass with `build(documents, cache) -> contracts.Tokenizer`, and with
`read(folder)` where its tokenizer saves files of its own.

Special tokens written in a text. `encode` reads them as tokens or as text, by one switch of the tokenizer: those of a
folder are tokens, as in Transformers, unless the folder says "split_special_tokens"; for a tokenizer learned here text
is data, and "<|endoftext|>" in a document is thirteen characters. `special_tokens` of the spec says otherwise. A prompt
is where they are always meant: `encode_prompt`.
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
    """UTF-8 bytes, and an end-of-text token: 257 ids."""

    def build(self, documents: Documents, cache: Path | None = None) -> ByteTokenizer:
        return ByteTokenizer()


@dataclass(frozen=True)
class Characters:
    """One id for each character of the training text, in code-point order. Others are refused, not replaced."""

    def build(self, documents: Documents, cache: Path | None = None) -> CharacterTokenizer:
        seen: set[str] = set()
        for _, text in documents:
            seen.update(text)
        if not seen:
            origin = getattr(documents, "origin", "the documents given")
            raise InputError(f"no text to learn the characters from in {origin}")
        return CharacterTokenizer("".join(sorted(seen)))


@dataclass(frozen=True)
class TrainBPE:
    """Byte-level BPE learned from the training text. The same text gives the same tokenizer, to the byte."""

    vocab_size: int = 4096
    """Tokens in all: 256 bytes, the special ones, and the merges. A small corpus may have fewer."""
    special: tuple[str, ...] = ()
    """Special tokens, numbered from 0, in place of <|endoftext|> alone; RoBERTa's and BART's: <s> <pad> </s> <unk>
    <mask>; T5's: `t5_special()`."""
    split_digits: bool = False
    """Every digit is a token of its own, as in Llama: numbers are copied digit by digit."""
    special_tokens: Written = ""
    """Special tokens written in a text: "read" as tokens, or "text", which they are by default."""

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
        def train() -> SubwordTokenizer:
            return training.train_bpe(self.vocab_size, self.special, self.split_digits, documents)

        return _cached(self, train, documents, cache)


@dataclass(frozen=True)
class TrainWordPiece:
    """BERT's kind of tokenizer learned from the training text. The same text gives the same tokenizer, to the byte."""

    vocab_size: int = 30522
    """Tokens in all: [PAD] [UNK] [CLS] [SEP] [MASK], letters, and the merges. A small corpus may have fewer."""
    lowercase: bool = True
    """Letters are lowered and accents taken off, as in BERT's uncased models."""
    special_tokens: Written = ""
    """Special tokens written in a text: "read" as tokens, or "text", which they are by default."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        def train() -> SubwordTokenizer:
            return training.train_wordpiece(self.vocab_size, self.lowercase, documents)

        return _cached(self, train, documents, cache)


@dataclass(frozen=True)
class TrainUnigram:
    """ALBERT's kind of tokenizer learned from the training text; slowly, and not always the same one from the same text
    (training.py says why): a run keeps its own.
    """

    vocab_size: int = 30000
    """Tokens in all: <pad> <unk> [CLS] [SEP] [MASK], and the pieces. A small corpus may have fewer."""
    lowercase: bool = True
    """Letters are lowered and accents taken off, as in ALBERT."""
    special_tokens: Written = ""
    """Special tokens written in a text: "read" as tokens, or "text", which they are by default."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        def train() -> SubwordTokenizer:
            return training.train_unigram(self.vocab_size, self.lowercase, documents)

        return _cached(self, train, documents, cache)


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that exists."""

    path: str
    """A tokenizer.json, or a folder: a saved tokenizer, or a Hugging Face snapshot."""
    source_language: str = ""
    """mBART's: the code of the language to translate from, such as en_XX; "": as the folder says."""
    target_language: str = ""
    """mBART's: the code of the language to translate into."""
    special_tokens: Written = ""
    """Special tokens written in a text: "read" as tokens, or "text"; "": as the folder says, which is "read" where it
    says nothing."""

    def build(self, documents: Documents, cache: Path | None = None) -> Any:
        """`documents` are not read."""
        return chosen(self, load(self.path))


def build(spec: Spec, documents: Documents, cache: Path | None = None, *, given: Any = None) -> Any:
    """The tokenizer of a spec; `documents` are the (name, text) pairs to learn from.

    Args:
      cache: a folder in which a trained tokenizer is kept and found again for the same `Documents` and spec.
      given: the tokenizer that the parameters were trained with, which then counts, with the spec's `special_tokens`.
    """
    if given is not None:
        return _switched(given, getattr(spec, "special_tokens", ""))
    if not callable(getattr(spec, "build", None)):
        raise InputError(f"{spec!r} is not a tokenizer: it has no build(documents, cache)")
    return spec.build(documents, cache)


def chosen(spec: TokenizerFile, tokenizer: Any) -> Any:
    """A tokenizer with the languages and the reading of special tokens that a spec chooses."""
    tokenizer = languages.between(tokenizer, spec.source_language, spec.target_language)
    return _switched(tokenizer, spec.special_tokens)


def _switched(tokenizer: Any, written: str) -> Any:
    """A tokenizer that reads special tokens written in a text as the spec says."""
    if written not in ("", "read", "text"):
        raise InputError(f'special_tokens = {written!r} must be "read", "text" or ""')
    if not written or getattr(tokenizer, "literal", None) in (None, written == "text"):
        return tokenizer
    return tokenizer.replace(literal=written == "text")


def _check(spec: TrainBPE | TrainWordPiece | TrainUnigram) -> None:
    if spec.vocab_size < 6:
        raise InputError(f"{type(spec).__name__}.vocab_size = {spec.vocab_size} must be more than the special tokens")


def _cached(
    spec: TrainBPE | TrainWordPiece | TrainUnigram,
    train: Callable[[], SubwordTokenizer],
    documents: Documents,
    cache: Path | None,
) -> SubwordTokenizer:
    """What `train` gives, or the same kept in `cache` from an earlier run on the same documents."""
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
    """Save whole or not at all; another process may be doing the same."""
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
    """T5's special tokens for `TrainBPE.special`: <pad> </s> <unk>, and `count` sentinels, which stand for spans."""
    return ("<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(count)))


def sentinels(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as there are any, int32. T5's own descend."""
    if not isinstance(tokenizer, SubwordTokenizer):
        return np.zeros(0, np.int32)
    found = (tokenizer.id_of(f"<extra_id_{i}>") for i in itertools.count())
    return np.array(list(itertools.takewhile(lambda id: id is not None, found)), np.int32)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What a language model reads of a prompt: its special tokens as such, after the token that a text begins with.

    An empty prompt is that token, or the end of text before it, or where there is neither a line's end or the first
    token.
    """
    ids = [int(id) for id in tokenizer.encode_prompt(prompt)]
    if tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]
    return ids or [_first(tokenizer) if tokenizer.eos_id is None else tokenizer.eos_id]


def _first(tokenizer: Tokenizer) -> int:
    """A line's end, or the first token of a vocabulary of characters that has none."""
    try:
        return int(tokenizer.encode("\n")[0])
    except InputError:
        return 0


def stream_decode(tokenizer: Tokenizer, ids: Iterable[int], after: Sequence[int] = ()) -> Iterator[str]:
    """The text of ids as they are made: every piece ends between characters, and together they are `decode(ids)`.

    Args:
      after: ids that stand before these, such as the prompt's; their text is not given again, but decides about the
        first piece, such as the space between the two.
    """
    pieces = tokenizer.pieces(itertools.chain(after, ids))
    skip = len(tokenizer.decode(after)) if after else 0
    for piece in pieces:
        if len(piece) > skip:
            yield piece[skip:]
        skip = max(0, skip - len(piece))
