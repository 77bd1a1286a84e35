"""Tokenizers: text to token ids and back.

A spec says which tokenizer an experiment wants; `build` makes it from the training text; `save` and `load` keep it.

    Bytes            256 byte values and an end-of-text token
    Characters       every character of the training text is a token; no end-of-text token (nanoGPT's Shakespeare)
    TrainBPE         byte-level BPE learned from the training text (GPT-2's kind: any text is representable)
    TokenizerFile    a tokenizer.json of the `tokenizers` library, or a folder with one or with vocab.json + merges.txt

Text is data: "<|endoftext|>" written in a document is encoded as those thirteen characters, never as the special token.
"""

import codecs
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from transformer_jax.errors import InputError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """What every tokenizer can do. Ids are int32 in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int | None:
        """The token that stands before each document, and ends generation; None: documents simply follow another."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text is encoded."""

    def encode(self, text: str) -> np.ndarray: ...
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...
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
    """Tokens in all: 256 bytes, the end of text, and the merges. A small corpus may have fewer."""
    train_bytes: int = 1 << 30
    """At most about this much text is learned from, taken from the beginning."""

    def __post_init__(self):
        if self.vocab_size < 257:
            raise InputError(f"TrainBPE.vocab_size = {self.vocab_size} must be at least 257: bytes and {END_OF_TEXT}")
        if self.train_bytes < 1:
            raise InputError(f"TrainBPE.train_bytes = {self.train_bytes} must be positive")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that exists."""

    path: str
    """A tokenizer.json, or a folder: a saved tokenizer, or a Hugging Face snapshot."""


Spec = Bytes | Characters | TrainBPE | TokenizerFile


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
                raise InputError(f"no text to learn the characters from in {_origin(documents)}")
            return CharacterTokenizer("".join(sorted(seen)))
        case TrainBPE():
            identity = getattr(documents, "identity", None)
            if cache is None or identity is None:
                return _train_bpe(spec, documents)
            import tokenizers

            key = hashlib.sha256(f"{spec} {tokenizers.__version__} {identity()}".encode()).hexdigest()[:32]
            kept = cache / "tokenizers" / key
            if not (kept / "tokenizer.json").is_file():
                _keep(_train_bpe(spec, documents), kept)
            return load(kept)
        case TokenizerFile(path):
            return load(path)
    raise InputError(f"{spec!r} is not a tokenizer: Bytes, Characters, TrainBPE or TokenizerFile")


def load(path: str | os.PathLike) -> Tokenizer:
    """A tokenizer from its folder (`save`'s, or a Hugging Face snapshot) or from a tokenizer.json."""
    given = Path(path).expanduser()
    if given.is_file():
        return _from_file(given)
    if (given / "bytes.json").is_file():
        return ByteTokenizer()
    if (given / "characters.json").is_file():
        characters = _read_json(given / "characters.json").get("characters")
        if not isinstance(characters, str) or not characters or len(set(characters)) != len(characters):
            raise InputError(f"{given / 'characters.json'}: `characters` must be a string of distinct characters")
        return CharacterTokenizer(characters)
    if (given / "tokenizer.json").is_file():
        return _from_file(given / "tokenizer.json")
    if (given / "vocab.json").is_file() and (given / "merges.txt").is_file():
        return _from_vocab_and_merges(given)
    what = "has neither tokenizer.json nor vocab.json and merges.txt" if given.is_dir() else "does not exist"
    raise InputError(f"no tokenizer at {given}: it {what}")


def stream_decode(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids as they are made: every piece ends between characters, and together they are `decode(ids)`."""
    return tokenizer.pieces(ids)


# ---- Bytes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0-255 are the bytes, 256 is the end of text."""

    vocab_size: int = 257
    eos_id: int = 256
    fingerprint: str = "bytes-1"

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return END_OF_TEXT.encode() if token == self.eos_id else bytes([token])

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        return _whole_characters(map(self.token_bytes, ids))

    def save(self, folder: str | os.PathLike) -> None:
        _write_json(Path(folder) / "bytes.json", {"vocab_size": self.vocab_size, "eos_id": self.eos_id})


# ---- Characters ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CharacterTokenizer:
    """Id i is `characters[i]`."""

    characters: str

    eos_id = None

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"characters-1 " + self.characters.encode("utf-8", "surrogatepass")).hexdigest()

    @functools.cached_property
    def _id_of(self) -> np.ndarray:
        """Code point -> id, -1 where there is none."""
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

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        return (self.characters[token] for token in ids)

    def save(self, folder: str | os.PathLike) -> None:
        _write_json(Path(folder) / "characters.json", {"characters": self.characters})


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


# ---- Subwords: the `tokenizers` library ----------------------------------------------------------------------------


class SubwordTokenizer:
    """A `tokenizers.Tokenizer`: BPE, WordPiece, Unigram, whatever its tokenizer.json says.

    Padding, truncation and the tokens that a post-processor would add ([CLS], <s>) are off: an objective that wants
    them adds them itself.
    """

    def __init__(self, inner: Any, eos: str | None):
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # a special token written in a text is text
        self._inner = inner
        self._eos = eos
        self.eos_id: int | None = None if eos is None else inner.token_to_id(eos)
        if eos is not None and self.eos_id is None:
            raise InputError(f"the tokenizer's end-of-text token {eos!r} is not in its vocabulary")
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        described = inner.to_str()
        self.fingerprint: str = hashlib.sha256(f"{eos} {described}".encode()).hexdigest()
        self._byte_level = '"ByteLevel"' in json.dumps(json.loads(described)["decoder"])

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Parallel over the texts, one thread a core (TOKENIZERS_PARALLELISM=false: one)."""
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode([int(token) for token in ids], skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling ("[MASK]"), None where there is none."""
        return self._inner.token_to_id(token)

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        if self._byte_level:
            return _whole_characters(self._token_bytes(int(token)) for token in ids)
        return self._pieces_by_library(ids)

    def _pieces_by_library(self, ids: Iterable[int]) -> Iterator[str]:
        """For decoders that look at neighbours (WordPiece, Metaspace): the library's own stream."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        for token in ids:
            if piece := stream.step(self._inner, int(token)):
                yield piece

    def _token_bytes(self, token: int) -> bytes:
        spelled = self._inner.id_to_token(token)
        if spelled is None:
            return b""
        table = _byte_of_letter()
        if all(letter in table for letter in spelled):
            return bytes(table[letter] for letter in spelled)
        return spelled.encode()  # a token added by name

    def save(self, folder: str | os.PathLike) -> None:
        """tokenizer.json and tokenizer_config.json, which Transformers' AutoTokenizer reads as well."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._inner.save(str(Path(folder) / "tokenizer.json"))
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self._eos}
        _write_json(Path(folder) / "tokenizer_config.json", settings)


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _whole_characters(parts: Iterable[bytes]) -> Iterator[str]:
    """Decoded UTF-8, bytes of an unfinished character held back; what is invalid becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def _train_bpe(spec: TrainBPE, documents: Iterable[tuple[str, str]]) -> SubwordTokenizer:
    """Byte-level BPE (Sennrich et al. 2016, section 3.2; over bytes: Radford et al. 2019, section 2.2)."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    seen = 0

    def texts() -> Iterator[str]:
        nonlocal seen
        for _, text in documents:
            if seen >= spec.train_bytes:
                return
            seen += len(text.encode("utf-8", "surrogatepass"))
            yield text

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    print(f"learning a byte-level BPE of {spec.vocab_size:,} tokens from {_origin(documents)}", file=sys.stderr)
    inner.train_from_iterator(texts(), trainer)
    if not seen:
        raise InputError(f"no text to learn a BPE from in {_origin(documents)}")
    return SubwordTokenizer(inner, END_OF_TEXT)


def _origin(documents: Iterable[tuple[str, str]]) -> str:
    return getattr(documents, "origin", "the documents given")


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


# Asked in this order where no tokenizer_config.json names the end of text.
_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


def _from_file(path: Path) -> SubwordTokenizer:
    from tokenizers import Tokenizer as Inner

    try:
        inner = Inner.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: not a tokenizer of the tokenizers library ({error})") from None
    return SubwordTokenizer(inner, _end_of_text(path.parent, inner))


def _from_vocab_and_merges(folder: Path) -> SubwordTokenizer:
    """GPT-2's own two files."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    try:
        inner = Inner(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:
        raise InputError(f"{folder}: vocab.json and merges.txt are not a BPE ({error})") from None
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if eos := _end_of_text(folder, inner):
        inner.add_special_tokens([AddedToken(eos, normalized=False, special=True)])
    return SubwordTokenizer(inner, eos)


def _end_of_text(folder: Path, inner: Any) -> str | None:
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "eos_token" in (read := _read_json(settings)):
        eos = read["eos_token"]
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if eos is not None and not isinstance(eos, str):
            raise InputError(f"{settings}: eos_token is {eos!r}, not a token")
        return eos
    return next((token for token in _END_TOKENS if inner.token_to_id(token) is not None), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(read, dict):
        raise InputError(f"{path}: not a JSON object")
    return read


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
