"""The specs of tokenizers: frozen dataclasses that an experiment holds, and how each is built."""

import abc
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformer_jax.contracts import TokenizerSpec as Spec
from transformer_jax.data.tokenizers import languages, training
from transformer_jax.data.tokenizers.folder import load
from transformer_jax.data.tokenizers.plain import END_OF_TEXT, ByteTokenizer, CharacterTokenizer
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

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


class _Trained(abc.ABC):
    """A spec whose tokenizer is trained on the training text."""

    vocab_size: int
    special_tokens: Written

    def __post_init__(self) -> None:
        if self.vocab_size < 6:
            raise InputError(f"{type(self).__name__}.vocab_size = {self.vocab_size} must be 6 or more: 5 are special")

    @abc.abstractmethod
    def _train(self, documents: Documents) -> SubwordTokenizer: ...

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        """The trained tokenizer.

        Args:
          documents: (name, text) pairs.
          cache: a folder that keeps the tokenizer for the same documents; None: it is always trained.
        """
        import tokenizers

        identity = getattr(documents, "identity", None)
        if cache is None or identity is None:
            return _switched(self._train(documents), self.special_tokens)
        key = hashlib.sha256(f"{self} {tokenizers.__version__} {identity()}".encode()).hexdigest()[:32]
        kept = cache / "tokenizers" / key
        if not (kept / "tokenizer.json").is_file():
            _keep(self._train(documents), kept)
        return _switched(load(kept), self.special_tokens)


@dataclass(frozen=True)
class TrainBPE(_Trained):
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
        super().__post_init__()

    def _train(self, documents: Documents) -> SubwordTokenizer:
        return training.train_bpe(self.vocab_size, self.special, self.split_digits, documents)


@dataclass(frozen=True)
class TrainWordPiece(_Trained):
    """BERT's tokenizer trained on the training text. The same text always gives the same tokenizer."""

    vocab_size: int = 30522
    """Number of tokens: `[PAD] [UNK] [CLS] [SEP] [MASK]`, letters and the merges. A small corpus may give fewer."""
    lowercase: bool = True
    """Text is lower-cased and accents are removed, as in BERT's uncased models."""
    special_tokens: Written = ""
    """How special tokens spelled in a text are encoded: "read": as tokens; "text" or "": as text."""

    def _train(self, documents: Documents) -> SubwordTokenizer:
        return training.train_wordpiece(self.vocab_size, self.lowercase, documents)


@dataclass(frozen=True)
class TrainUnigram(_Trained):
    """ALBERT's tokenizer trained on the training text. Training is slow and not deterministic (see `training`)."""

    vocab_size: int = 30000
    """Number of tokens: `<pad> <unk> [CLS] [SEP] [MASK]` and the pieces. A small corpus may give fewer."""
    lowercase: bool = True
    """Text is lower-cased and accents are removed, as in ALBERT."""
    special_tokens: Written = ""
    """How special tokens spelled in a text are encoded: "read": as tokens; "text" or "": as text."""

    def _train(self, documents: Documents) -> SubwordTokenizer:
        return training.train_unigram(self.vocab_size, self.lowercase, documents)


AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWCXBUZO"  # ordered as in ESM's vocabulary


@dataclass(frozen=True)
class Residues:
    """ESM's vocabulary of 33 ids: a token for each residue of a protein. Nothing is trained."""

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        """The tokenizer; it needs neither documents nor a cache."""
        return _residues(("<cls>", "<pad>", "<eos>", "<unk>", *AMINO_ACIDS, ".", "-", "<null_1>", "<mask>"))


@dataclass(frozen=True)
class Kmers:
    """A token for each word of k letters of DNA, and for the single letters. Nothing is trained."""

    k: int = 6
    """Letters of a word: 4^k words."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 8:
            raise InputError(f"Kmers.k = {self.k} must be 1 to 8")

    def build(self, documents: Documents, cache: Path | None = None) -> SubwordTokenizer:
        """The tokenizer; it needs neither documents nor a cache."""
        made = ("".join(letters) for letters in itertools.product("ATCG", repeat=self.k)) if self.k > 1 else ()
        return _residues(("<unk>", "<pad>", "<mask>", "<cls>", "<eos>", *made, *"ATCGN"))


def _residues(vocabulary: tuple[str, ...]) -> SubwordTokenizer:
    """ESM's kind of tokenizer with this vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join(vocabulary))
        Path(folder, "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}')
        return load(folder)


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer in a file or a folder."""

    path: str
    """A tokenizer.json, or a folder: a saved tokenizer, a Hugging Face snapshot, or its name, hf://org/name."""
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
