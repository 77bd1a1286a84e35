"""Subword tokenizers: BPE, WordPiece and Unigram of the `tokenizers` library behind one interface."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.tokenizers.languages import Languages
from transformer_jax.data.tokenizers.plain import join_words, spaced, whole_characters
from transformer_jax.data.tokenizers.special import Special, write_json
from transformer_jax.errors import InputError


class SubwordTokenizer:
    """A `tokenizers.Tokenizer`: BPE, WordPiece, Unigram, whatever its tokenizer.json says.

    Padding, truncation and the tokens that a post-processor would add ([CLS], <s>) are off: an objective that wants
    them adds them itself.
    """

    def __init__(self, inner: Any, eos: str | None, special: Special | None = None, languages: Languages | None = None):
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # a special token written in a text is text
        self._inner = inner
        self._eos = eos
        self.eos_id: int | None = None if eos is None else inner.token_to_id(eos)
        if eos is not None and self.eos_id is None:
            raise InputError(f"the tokenizer's end-of-text token {eos!r} is not in its vocabulary")
        self.special = special or Special()
        self.languages = languages
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        described = inner.to_str()
        settings = json.loads(described)
        if settings["model"].get("type") == "Unigram":  # the library's JSON does not keep a score's last digit
            settings["model"]["vocab"] = [[piece, f"{score:.7g}"] for piece, score in settings["model"]["vocab"]]
            described = json.dumps(settings)
        # What the special tokens are *for* does not decide how text is encoded.
        self.fingerprint: str = hashlib.sha256(f"{eos} {described}".encode()).hexdigest()
        self._byte_level = '"ByteLevel"' in json.dumps(settings["decoder"])

    @property
    def target(self) -> "SubwordTokenizer":
        """The tokenizer of the target side: both share this one."""
        return self

    # ---- Text to ids ----

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Parallel over the texts, one thread a core (TOKENIZERS_PARALLELISM=false: one)."""
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        for i, text in enumerate(texts):
            if self._spells_special(text, ids[i]):
                ids[i] = np.array(self._literal.encode(text, add_special_tokens=False).ids, np.int32)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n] and offsets int32 [n, 2]: token i came from text[start:end], the space before a word left out.

        The tokens of a character cut into bytes have that character's span, each of them.
        """
        encoding = self._inner.encode(text, add_special_tokens=False)
        if self._spells_special(text, np.array(encoding.ids, np.int32)):
            encoding = self._literal.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), offsets_without_space(encoding, text)

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n] of a sentence given as words, and the index of the word that each came from, int32 [n].

        Where a space is part of the token ("Ġword"), words after the first are encoded with it. A word of which the
        normaliser leaves nothing has no ids.
        """
        return join_words(self.encode_batch(spaced(words) if self._spaces_count else list(words)))

    def encode_prompt(self, text: str) -> np.ndarray:
        """Ids of a text in which special tokens are meant: "Paris is the [MASK] of France."."""
        return np.array(self._prompting.encode(text, add_special_tokens=False).ids, np.int32)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling ("[MASK]"), None where there is none."""
        return self._inner.token_to_id(token)

    # ---- Special tokens ----

    @functools.cached_property
    def _special_ids(self) -> np.ndarray:
        added = {id for id, token in self._inner.get_added_tokens_decoder().items() if token.special}
        return np.array(sorted(added | set(self.special.present().values())), np.int32)

    def _spells_special(self, text: str, ids: np.ndarray) -> bool:
        """Whether a special token's spelling was taken for the token.

        A Unigram model finds "<pad>" among its pieces like any other. Bytes and their merges never spell one.
        """
        if self._byte_level:
            return False
        found = set(ids[np.isin(ids, self._special_ids)].tolist())
        if self.special.unk in found and self._inner.id_to_token(self.special.unk).lower() not in text.lower():
            found.remove(self.special.unk)  # what the vocabulary lacks is unknown
        return bool(found)

    @functools.cached_property
    def _literal(self) -> Any:
        """The same, but a special token's spelling is cut before its last character, so that it is not found whole."""
        from tokenizers import Regex, pre_tokenizers

        spellings = [self._inner.id_to_token(int(id)) for id in self._special_ids]
        cut = "|".join(f"{re.escape(s[:-1])}(?={re.escape(s[-1])})" for s in spellings if len(s) > 1)
        inner = self._copy()
        parts = [inner.pre_tokenizer] if inner.pre_tokenizer is not None else []
        if cut:
            parts.append(pre_tokenizers.Split(Regex(cut), "merged_with_previous"))
        inner.pre_tokenizer = pre_tokenizers.Sequence(parts)
        inner.encode_special_tokens = True
        return inner

    @functools.cached_property
    def _prompting(self) -> Any:
        from tokenizers import AddedToken

        inner = self._copy()
        inner.encode_special_tokens = False
        known = {token.content for token in inner.get_added_tokens_decoder().values()}
        named = [self._inner.id_to_token(id) for id in self.special.present().values()]
        inner.add_special_tokens([AddedToken(token, normalized=False) for token in named if token not in known])
        return inner

    def _copy(self) -> Any:
        from tokenizers import Tokenizer as Inner

        return Inner.from_str(self._inner.to_str())

    # ---- Words ----

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        """tokenizer.json without its vocabulary."""
        described = json.loads(self._inner.to_str())
        return described | {"model": {k: v for k, v in described["model"].items() if k not in ("vocab", "merges")}}

    @functools.cached_property
    def _spaces_count(self) -> bool:
        """Whether "word" and " word" are other tokens."""
        return self._byte_level or '"prepend_scheme": "never"' in json.dumps(self._settings["pre_tokenizer"])

    @functools.cached_property
    def continues(self) -> np.ndarray:
        """bool [vocab_size]: the token goes on with the word before it.

        "##ing" of WordPiece; of byte-level BPE what does not begin with "Ġ" or another whitespace byte, of Metaspace
        (Unigram, Llama) with "▁". Special tokens do not. By token alone: the first of a text counts as going on.
        """
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        if prefix := self._settings["model"].get("continuing_subword_prefix"):
            goes_on = [(id, token.startswith(prefix)) for token, id in vocabulary.items()]
        elif self._byte_level:
            goes_on = [(id, not self._token_bytes(id)[:1].isspace()) for id in vocabulary.values()]
        elif any(token.startswith("▁") for token in vocabulary):
            goes_on = [(id, not token.startswith("▁")) for token, id in vocabulary.items()]
        else:
            raise InputError(
                f"this {self._settings['model'].get('type')} tokenizer marks neither how a word begins nor how it goes "
                "on, so whole words cannot be told; mask tokens instead, or use WordPiece, byte-level BPE or Unigram"
            )
        continues = np.zeros(self.vocab_size, bool)
        ids, flags = zip(*goes_on, strict=True)
        continues[list(ids)] = flags
        continues[self._special_ids] = False
        return continues

    # ---- Ids to text ----

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode([int(token) for token in ids], skip_special_tokens=False)

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        if self._byte_level:
            return whole_characters(self._token_bytes(int(token)) for token in ids)
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

    # ---- To disk ----

    def save(self, folder: str | os.PathLike) -> None:
        """tokenizer.json and tokenizer_config.json, which Transformers' AutoTokenizer reads as well."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._inner.save(str(Path(folder) / "tokenizer.json"))
        roles = {f"{role}_token": self._inner.id_to_token(id) for role, id in self.special.present().items()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self._eos} | roles
        if self.languages is not None:
            sides = {"src_lang": self.languages.source, "tgt_lang": self.languages.target}
            codes = {side: None if id is None else self._inner.id_to_token(id) for side, id in sides.items()}
            settings |= codes | {"tokenizer_class": f"MBart{'50' * self.languages.leading}Tokenizer"}
        write_json(Path(folder) / "tokenizer_config.json", settings)


def offsets_without_space(encoding: Any, text: str) -> np.ndarray:
    """int32 [n, 2] of a `tokenizers.Encoding`, the space before a word left out."""
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    for span in offsets:
        if word := text[span[0] : span[1]].strip():  # what is nothing but space keeps it
            span[0] += text[span[0] : span[1]].index(word)
    return offsets


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
