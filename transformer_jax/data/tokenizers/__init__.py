"""Tokenizers: text to token ids and back.

A spec says which tokenizer an experiment wants; `build` makes it from the training text; `save` and `load` keep it.

    Bytes            256 byte values and an end-of-text token
    Characters       every character of the training text is a token; no end-of-text token (nanoGPT's Shakespeare)
    TrainBPE         byte-level BPE learned from the training text (GPT-2's and RoBERTa's kind: it can write any text)
    TrainWordPiece   WordPiece learned from the training text (BERT's kind)
    TrainUnigram     Unigram pieces learned from the training text (SentencePiece's and ALBERT's kind)
    TokenizerFile    a tokenizer.json of the `tokenizers` library, or a folder with one, with vocab.txt (BERT's), with
                     vocab.json + merges.txt (GPT-2's, RoBERTa's), with spiece.model (ALBERT's), with source.spm +
                     target.spm + vocab.json (Marian's) or with sentencepiece.bpe.model (mBART's)

Text is data: "<|endoftext|>" written in a document is encoded as those thirteen characters, never as the special token,
and "[MASK]" as six. A prompt is where they are meant: `encode_prompt`.
"""

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from transformer_jax.data.tokenizers import files, languages, marian, mbart, sentencepiece, training
from transformer_jax.data.tokenizers.languages import Languages
from transformer_jax.data.tokenizers.plain import END_OF_TEXT, ByteTokenizer, CharacterTokenizer
from transformer_jax.data.tokenizers.special import Special, read_json
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

__all__ = [
    *("END_OF_TEXT", "Special", "Languages", "Tokenizer", "ByteTokenizer", "CharacterTokenizer", "SubwordTokenizer"),
    *("Spec", "Bytes", "Characters", "TrainBPE", "TrainWordPiece", "TrainUnigram", "TokenizerFile"),
    *("build", "load", "stream_decode", "t5_special", "sentinels"),
]


class Tokenizer(Protocol):
    """What every tokenizer can do. Ids are int32 in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int | None:
        """The token that stands before each document, and ends generation; None: documents simply follow another."""

    @property
    def special(self) -> Special:
        """Ids of [CLS], [SEP], [PAD], [MASK] and [UNK], by whatever name; None where there is none."""

    @property
    def languages(self) -> Languages | None:
        """mBART's codes of the source's and the target's language; None for every other."""

    @property
    def target(self) -> "Tokenizer":
        """The tokenizer of the target side: itself where both sides share one, which all do but Marian's."""

    @property
    def continues(self) -> np.ndarray:
        """bool [vocab_size]: this token goes on with the word before it. Special tokens do not."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text is encoded."""

    def encode(self, text: str) -> np.ndarray: ...
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n], and the characters of the text that each came from: int32 [n, 2], start and end."""

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n] of a sentence given as words, and the index of the word that each came from: int32 [n]."""

    def encode_prompt(self, text: str) -> np.ndarray:
        """As `encode`, but special tokens written in the text are meant: "Paris is the [MASK] of France."."""

    def decode(self, ids: Iterable[int]) -> str: ...
    def save(self, folder: str | os.PathLike) -> None: ...
    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text as it comes, one piece a token at most, never half a character; together `decode(ids)`."""


# ---- Specs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes, and an end-of-text token: 257 ids."""


@dataclass(frozen=True)
class Characters:
    """One id for each character of the training text, in code-point order. Others are refused, not replaced."""


@dataclass(frozen=True)
class TrainBPE:
    """Byte-level BPE learned from the training text. The same text gives the same tokenizer, to the byte."""

    vocab_size: int = 4096
    """Tokens in all: 256 bytes, the special ones, and the merges. A small corpus may have fewer."""
    train_bytes: int = 1 << 30
    """At most about this much text is learned from, taken from the beginning."""
    special: tuple[str, ...] = ()
    """Special tokens, numbered from 0, in place of <|endoftext|> alone; RoBERTa's and BART's: <s> <pad> </s> <unk>
    <mask>; T5's: `t5_special()`."""
    split_digits: bool = False
    """Every digit is a token of its own, as in Llama: numbers are copied digit by digit."""

    def __post_init__(self):
        special = self.special or (END_OF_TEXT,)
        if not all(special) or len(set(special)) != len(special):
            raise InputError(f"TrainBPE.special = {self.special!r} must be distinct tokens, none of them empty")
        if self.vocab_size < 256 + len(special):
            more = f" and {len(special) - 5} more" if len(special) > 5 else ""
            raise InputError(
                f"TrainBPE.vocab_size = {self.vocab_size} must be at least {256 + len(special)}: bytes and "
                f"{' '.join(special[:5])}{more}"
            )
        _check_train_bytes(self)


@dataclass(frozen=True)
class TrainWordPiece:
    """BERT's kind of tokenizer learned from the training text. The same text gives the same tokenizer, to the byte."""

    vocab_size: int = 30522
    """Tokens in all: [PAD] [UNK] [CLS] [SEP] [MASK], letters, and the merges. A small corpus may have fewer."""
    lowercase: bool = True
    """Letters are lowered and accents taken off, as in BERT's uncased models."""
    train_bytes: int = 1 << 30
    """At most about this much text is learned from, taken from the beginning; it is held in memory."""

    def __post_init__(self):
        _check_train_bytes(self)


@dataclass(frozen=True)
class TrainUnigram:
    """ALBERT's kind of tokenizer learned from the training text; slowly, and not always the same one from the same text
    (training.py says why): a run keeps its own.
    """

    vocab_size: int = 30000
    """Tokens in all: <pad> <unk> [CLS] [SEP] [MASK], and the pieces. A small corpus may have fewer."""
    lowercase: bool = True
    """Letters are lowered and accents taken off, as in ALBERT."""
    train_bytes: int = 1 << 30
    """At most about this much text is learned from, taken from the beginning."""

    def __post_init__(self):
        _check_train_bytes(self)


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that exists."""

    path: str
    """A tokenizer.json, or a folder: a saved tokenizer, or a Hugging Face snapshot."""
    source_language: str = ""
    """mBART's: the code of the language to translate from, such as en_XX; "": as the folder says."""
    target_language: str = ""
    """mBART's: the code of the language to translate into."""


Spec = Bytes | Characters | TrainBPE | TrainWordPiece | TrainUnigram | TokenizerFile


def _check_train_bytes(spec: TrainBPE | TrainWordPiece | TrainUnigram) -> None:
    if spec.vocab_size < 6:
        raise InputError(f"{type(spec).__name__}.vocab_size = {spec.vocab_size} must be more than the special tokens")
    if spec.train_bytes < 1:
        raise InputError(f"{type(spec).__name__}.train_bytes = {spec.train_bytes} must be positive")


def build(spec: Spec, documents: Iterable[tuple[str, str]], cache: Path | None = None) -> Tokenizer:
    """The tokenizer of a spec; `documents` are the (name, text) pairs to learn from.

    With `cache`, a folder, a trained tokenizer is kept there and found again for the same `Documents` and spec.
    """
    match spec:
        case Bytes():
            return ByteTokenizer()
        case Characters():
            seen: set[str] = set()
            for _, text in documents:
                seen.update(text)
            if not seen:
                origin = getattr(documents, "origin", "the documents given")
                raise InputError(f"no text to learn the characters from in {origin}")
            return CharacterTokenizer("".join(sorted(seen)))
        case TrainBPE() | TrainWordPiece() | TrainUnigram():
            identity = getattr(documents, "identity", None)
            if cache is None or identity is None:
                return _train(spec, documents)
            import tokenizers

            key = hashlib.sha256(f"{spec} {tokenizers.__version__} {identity()}".encode()).hexdigest()[:32]
            kept = cache / "tokenizers" / key
            if not (kept / "tokenizer.json").is_file():
                _keep(_train(spec, documents), kept)
            return load(kept)
        case TokenizerFile(path, source, target):
            return languages.between(load(path), source, target)
    names = "Bytes, Characters, TrainBPE, TrainWordPiece, TrainUnigram or TokenizerFile"
    raise InputError(f"{spec!r} is not a tokenizer: {names}")


def _train(spec: TrainBPE | TrainWordPiece | TrainUnigram, documents: Iterable[tuple[str, str]]) -> SubwordTokenizer:
    match spec:
        case TrainBPE(vocab_size, train_bytes, special, split_digits):
            return training.train_bpe(vocab_size, special, split_digits, documents, train_bytes)
        case TrainWordPiece(vocab_size, lowercase, train_bytes):
            return training.train_wordpiece(vocab_size, lowercase, documents, train_bytes)
        case TrainUnigram(vocab_size, lowercase, train_bytes):
            return training.train_unigram(vocab_size, lowercase, documents, train_bytes)


def load(path: str | os.PathLike) -> Tokenizer:
    """A tokenizer from its folder (`save`'s, or a Hugging Face snapshot) or from a tokenizer.json."""
    given = Path(path).expanduser()
    if given.is_file():
        return files.read_tokenizer_json(given)
    if (given / "bytes.json").is_file():
        return ByteTokenizer()
    if (given / "characters.json").is_file():
        characters = read_json(given / "characters.json").get("characters")
        if not isinstance(characters, str) or not characters or len(set(characters)) != len(characters):
            raise InputError(f"{given / 'characters.json'}: `characters` must be a string of distinct characters")
        return CharacterTokenizer(characters)
    if (given / "tokenizer.json").is_file():
        return files.read_tokenizer_json(given / "tokenizer.json")
    if (given / marian.SOURCE).is_file():
        return marian.read_folder(given)
    if (given / "vocab.json").is_file() and (given / "merges.txt").is_file():
        return files.read_vocab_and_merges(given)
    if (given / "vocab.txt").is_file():
        return files.read_vocab_txt(given)
    if model := next((given / name for name in sentencepiece.FILES if (given / name).is_file()), None):
        return sentencepiece.read_model(model)
    if (given / mbart.FILE).is_file():
        return mbart.read_model(given)
    held = "has neither tokenizer.json nor vocab.txt, vocab.json and merges.txt, or a SentencePiece model"
    raise InputError(f"no tokenizer at {given}: it {held if given.is_dir() else 'does not exist'}")


def t5_special(count: int = 100) -> tuple[str, ...]:
    """T5's special tokens for `TrainBPE.special`: <pad> </s> <unk>, and `count` sentinels, which stand for spans."""
    return ("<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(count)))


def sentinels(tokenizer: Tokenizer) -> np.ndarray:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as there are any, int32. T5's own descend."""
    if not isinstance(tokenizer, SubwordTokenizer):
        return np.zeros(0, np.int32)
    found = (tokenizer.id_of(f"<extra_id_{i}>") for i in itertools.count())
    return np.array(list(itertools.takewhile(lambda id: id is not None, found)), np.int32)


def stream_decode(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids as they are made: every piece ends between characters, and together they are `decode(ids)`."""
    return tokenizer.pieces(ids)


def _keep(tokenizer: SubwordTokenizer, folder: Path) -> None:
    """Save whole or not at all; another process may be doing the same."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        tokenizer.save(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            shutil.rmtree(temporary)
            if not (folder / "tokenizer.json").is_file():
                raise
    except OSError as error:
        raise InputError(f"cannot keep the tokenizer in {folder} ({error}); set TRANSFORMER_JAX_CACHE") from None
