"""`SubwordTokenizer`: BPE, WordPiece and Unigram of the `tokenizers` library behind one interface."""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.tokenizers import decoding, limits
from transformer_jax.data.tokenizers.languages import Languages
from transformer_jax.data.tokenizers.plain import join_words, spaced
from transformer_jax.data.tokenizers.sentencepiece import USER_DEFINED, Pieces
from transformer_jax.data.tokenizers.special import Special, read_json, write_json

SETTINGS = "tokenizer_config.json"
SWITCH = "split_special_tokens"  # Transformers' name; if True, special tokens in a text are encoded as ordinary text
OWN_SWITCH = "documents_spell_special_tokens"  # the same for documents only; an export does not have it


@dataclass(frozen=True, eq=False)
class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library.

    Padding, truncation and the tokens of the post-processor ([CLS], <s>) are off. An objective adds the special tokens
    that it needs.

    Attributes:
      _inner: the library's tokenizer.
      eos: the spelling of the end of text; None: there is none.
      special: the ids of [CLS], [SEP], [PAD], [MASK] and [UNK].
      languages: mBART's source and target language; None for other tokenizers.
      literal: special tokens spelled in a text are text; in a prompt they are tokens.
      pieces_of: SentencePiece's own encoding, which replaces the library's; None: the library encodes.
      clean_up: decoded text has no space before punctuation, as BERT's first decoder.
      files: {name: bytes} of the folder that it was read from, which `save` writes unchanged.
      settings: further entries for tokenizer_config.json.
      bos: the beginning of text that the folder names; a text has it only if `bos_id` is not None.
    """

    _inner: Any
    eos: str | None
    special: Special = field(default_factory=Special)
    languages: Languages | None = None
    literal: bool = False
    pieces_of: Pieces | None = None
    clean_up: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    bos: str | None = None

    def __post_init__(self) -> None:
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = False

    # ---- Facts ----

    @property
    def target(self) -> "SubwordTokenizer":
        """The tokenizer of the target side: this one."""
        return self

    @functools.cached_property
    def vocab_size(self) -> int:
        return max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @functools.cached_property
    def eos_id(self) -> int | None:
        return None if self.eos is None else self._inner.token_to_id(self.eos)

    @property
    def named_bos_id(self) -> int | None:
        """The id of `bos`."""
        return None if self.bos is None else self._inner.token_to_id(self.bos)

    @functools.cached_property
    def bos_id(self) -> int | None:
        """The id of the token that the post-processor adds before a text; None: there is none, or it is a [CLS]."""
        if self.languages is not None:
            return None
        before, after = self.frame
        return before[0] if before and not (before[0] == self.special.cls and after) else None

    @functools.cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor adds before and after a text."""
        framed = self._inner.encode("a", add_special_tokens=True)
        mask = framed.special_tokens_mask
        first = mask.index(0) if 0 in mask else len(mask)
        last = len(mask) - (mask[::-1].index(0) if 0 in mask else 0)
        return framed.ids[:first], framed.ids[last:]

    @property
    def tokenizer_class(self) -> str:
        """The name of Transformers' class of this tokenizer, from its folder; "" if the folder names none."""
        stored = json.loads(self.files.get(SETTINGS, b"{}"))
        return str(self.settings.get("tokenizer_class") or stored.get("tokenizer_class") or "").removesuffix("Fast")

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text is encoded; the roles of special tokens do not."""
        described = self._inner.to_str()
        settings = json.loads(described)
        if settings["model"].get("type") == "Unigram":  # the library's JSON may lose the last digit of a score
            settings["model"]["vocab"] = [[piece, f"{score:.7g}"] for piece, score in settings["model"]["vocab"]]
            described = json.dumps(settings)
        digest = hashlib.sha256(f"{self.eos} {self.bos_id} {self.literal} {described}".encode("utf-8", "surrogatepass"))
        if self.pieces_of is not None:
            digest.update(repr((self.pieces_of.model, str(self.pieces_of.before))).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def id_of(self, token: str) -> int | None:
        """The id of a token; None: there is no such token.

        Args:
          token: its spelling, such as "[MASK]".
        """
        return self._inner.token_to_id(token)

    def replace(self, **changes: Any) -> "SubwordTokenizer":
        """This tokenizer with other fields.

        Args:
          **changes: the fields.
        """
        return dataclasses.replace(self, **changes)

    # ---- Text to ids ----

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text; one thread per core encodes them (TOKENIZERS_PARALLELISM=false: one thread).

        Args:
          texts: to encode.
        """
        return self._encode(texts, self.literal)

    def encode_prompt(self, text: str) -> np.ndarray:
        """The ids of a text whose special tokens are tokens: "Paris is the [MASK] of France.".

        Args:
          text: to encode.
        """
        return self._encode([text], literal=False)[0]

    @limits.outlasting()
    def _encode(self, texts: Sequence[str], literal: bool) -> list[np.ndarray]:
        if self.pieces_of is not None:
            return [ids for ids, _ in self._by_pieces(texts, literal)]
        if not literal:
            encodings = self._reading.encode_batch_fast(list(texts), add_special_tokens=False)
            return [np.array(encoding.ids, np.int32) for encoding in encodings]
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        for i, text in enumerate(texts):
            if self._spells_special(text, ids[i]):
                ids[i] = np.array(self._literal.encode(text, add_special_tokens=False).ids, np.int32)
        return ids

    @limits.outlasting()
    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n], character spans int32 [n, 2]) of a text; a span excludes the space before a word.

        Each token of a character that is split into bytes has the span of that character.

        Args:
          text: to encode.
        """
        if self.pieces_of is not None:
            ids, offsets = self._by_pieces([text], self.literal, spans=True)[0]
            return ids, without_space(offsets, text)
        inner = self._plain if self.literal else self._reading
        encoding = inner.encode(text, add_special_tokens=False)
        if self.literal and self._spells_special(text, np.array(encoding.ids, np.int32)):
            encoding = self._literal.encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), without_space(offsets, text)

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n] of a sentence, the index int32 [n] of the word that each belongs to).

        If a space is part of a token ("Ġword"), words after the first are encoded with a space. A word that the
        normaliser removes has no ids.

        Args:
          words: the words of the sentence.
        """
        return join_words(self.encode_batch(spaced(words) if self._spaces_count else list(words)))

    # ---- SentencePiece's own encoding ----

    def _by_pieces(
        self, texts: Sequence[str], literal: bool, spans: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, spans or none) of each text. The segments between added tokens are encoded separately."""
        assert self.pieces_of is not None
        segments = [list(self._segments(text, literal)) for text in texts]
        plain = [(text, start) for parts in segments for text, start, id in parts if id is None]
        if spans:
            encoded = iter([self.pieces_of.encode_with_offsets(text) for text, _ in plain])
        else:
            encoded = iter([(ids, ids) for ids in self.pieces_of.encode_batch([text for text, _ in plain])])
        made = []
        for parts in segments:
            ids, offsets = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
            for text, start, id in parts:
                some, where = next(encoded) if id is None else (np.array([id], np.int32), np.array([[0, len(text)]]))
                ids.append(some.astype(np.int32))
                offsets += [where + start] if spans else []
            made.append((np.concatenate(ids), np.concatenate(offsets).astype(np.int32)))
        return made

    def _segments(self, text: str, literal: bool) -> Iterator[tuple[str, int, int | None]]:
        """(text, its position, id) of each added token in a text, and (text, its position, None) of the rest."""
        at, pattern = 0, self._added[not literal]
        for found in pattern.finditer(text) if pattern is not None else ():
            if found.start() > at:
                yield text[at : found.start()], at, None
            yield found[0], found.start(), self._inner.token_to_id(found[found.lastindex or 0])
            at = found.end()
        if at < len(text):
            yield text[at:], at, None

    @functools.cached_property
    def _added(self) -> tuple[re.Pattern | None, re.Pattern | None]:
        """(pattern of the added tokens that are not special, pattern of all); a mask includes the space before it."""
        assert self.pieces_of is not None
        own = {piece.spelling for piece in self.pieces_of.model.pieces if piece.kind == USER_DEFINED}
        tokens = [t for t in self._inner.get_added_tokens_decoder().values() if t.content and t.content not in own]
        tokens.sort(key=lambda token: -len(token.content))

        def pattern(chosen: Sequence[Any]) -> re.Pattern | None:
            parts = [
                ("\\s*" if t.lstrip else "") + f"({re.escape(t.content)})" + ("\\s*" if t.rstrip else "")
                for t in chosen
            ]
            return re.compile("|".join(parts)) if parts else None

        return pattern([token for token in tokens if not token.special]), pattern(tokens)

    # ---- Special tokens ----

    @functools.cached_property
    def special_spellings(self) -> tuple[str, ...]:
        """The spellings of the special tokens."""
        return tuple(token for id in self._special_ids if (token := self._inner.id_to_token(int(id))))

    @functools.cached_property
    def _special_ids(self) -> np.ndarray:
        added = {id for id, token in self._inner.get_added_tokens_decoder().items() if token.special}
        return np.array(sorted(added | set(self.special.present().values())), np.int32)

    def _spells_special(self, text: str, ids: np.ndarray) -> bool:
        """Whether the model encoded the spelling of a special token as that token.

        A Unigram model finds "<pad>" among its pieces, like any other. Byte-level BPE never does.
        """
        if self._byte_level:
            return False
        found = set(ids[np.isin(ids, self._special_ids)].tolist())
        if self.special.unk in found and self._inner.id_to_token(self.special.unk).lower() not in text.lower():
            found.remove(self.special.unk)  # the text holds a character that the vocabulary lacks
        return bool(found)

    @functools.cached_property
    def _reading(self) -> Any:
        """The library's tokenizer with all special tokens added, even those that no file lists as added."""
        from tokenizers import AddedToken

        known = {token.content for token in self._inner.get_added_tokens_decoder().values()}
        named = [self._inner.id_to_token(id) for id in self.special.present().values()]
        if not (missing := [token for token in named if token not in known]):
            return self._inner
        inner = self._copy()
        inner.add_special_tokens([AddedToken(token, normalized=False) for token in missing])
        return inner

    @functools.cached_property
    def _plain(self) -> Any:
        """The library's tokenizer without added special tokens; the model may still find one among its pieces."""
        inner = self._copy()
        inner.encode_special_tokens = True
        return inner

    @functools.cached_property
    def _literal(self) -> Any:
        """`_plain` that splits the spelling of a special token before its last character, so that none is found."""
        from tokenizers import Regex, pre_tokenizers

        heads = "|".join(f"{re.escape(s[:-1])}(?={re.escape(s[-1])})" for s in self.special_spellings if len(s) > 1)
        inner = self._copy()
        parts = [inner.pre_tokenizer] if inner.pre_tokenizer is not None else []
        if heads:
            parts.append(pre_tokenizers.Split(Regex(heads), "merged_with_previous"))
        inner.pre_tokenizer = pre_tokenizers.Sequence(parts)
        inner.encode_special_tokens = True
        return inner

    def _copy(self) -> Any:
        from tokenizers import Tokenizer as Inner

        return Inner.from_str(self._inner.to_str())

    # ---- Words ----

    @functools.cached_property
    def _described(self) -> dict[str, Any]:
        """The object of tokenizer.json without its vocabulary."""
        described = json.loads(self._inner.to_str())
        return described | {"model": {k: v for k, v in described["model"].items() if k not in ("vocab", "merges")}}

    @functools.cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self._described["decoder"])

    @functools.cached_property
    def _spaces_count(self) -> bool:
        """Whether "word" and " word" are different tokens."""
        return self._byte_level or '"prepend_scheme": "never"' in json.dumps(self._described["pre_tokenizer"])

    @functools.cached_property
    def continues(self) -> np.ndarray:
        """bool [vocab_size]: whether each token continues a word (`decoding.continues`)."""
        prefix = self._described["model"].get("continuing_subword_prefix")
        kind = str(self._described["model"].get("type"))
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        continues = np.zeros(self.vocab_size, bool)
        for id, inside in decoding.continues(vocabulary, kind, prefix, self._byte_level):
            continues[id] = inside
        continues[self._special_ids] = False
        return continues

    # ---- Ids to text ----

    def decode(self, ids: Iterable[int]) -> str:
        known = [id for token in ids if 0 <= (id := int(token)) < self.vocab_size]
        text = self._inner.decode(known, skip_special_tokens=False)
        return decoding.clean_up(text) if self.clean_up else text

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        known = (id for token in ids if 0 <= (id := int(token)) < self.vocab_size)
        made = decoding.stream(self._inner, self._described["decoder"], known)
        return decoding.clean_up_stream(made) if self.clean_up else made

    # ---- To disk ----

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files that it was read from, or tokenizer.json, and tokenizer_config.json.

        Transformers' AutoTokenizer reads them as well.

        Args:
          folder: an existing or a new folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        if not self.files:
            self._inner.save(str(folder / "tokenizer.json"))
        stored = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        wanted = stored | self._settings(stored)
        if wanted != stored:
            write_json(folder / SETTINGS, wanted)

    def _settings(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of tokenizer_config.json to add to the stored ones."""
        settings = dict(self.settings)
        if not self.files:
            roles = {f"{role}_token": self._inner.id_to_token(id) for role, id in self.special.present().items()}
            settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos} | roles
        if self.languages is not None:
            sides = {"src_lang": self.languages.source, "tgt_lang": self.languages.target}
            settings |= {side: None if id is None else self._inner.id_to_token(id) for side, id in sides.items()}
            settings["tokenizer_class"] = f"MBart{'50' * self.languages.leading}Tokenizer"
        if self.literal != reads_literally(stored):
            settings[OWN_SWITCH] = self.literal
        return settings


def reads_literally(settings: Mapping[str, Any]) -> bool:
    """Whether special tokens spelled in a text are text, by a tokenizer_config.json.

    Args:
      settings: its object.
    """
    return bool(settings.get(OWN_SWITCH, settings.get(SWITCH, False)))


def without_space(offsets: np.ndarray, text: str) -> np.ndarray:
    """Character spans without the space before a word.

    Args:
      offsets: int32 [n, 2], start and end of each token; they are changed.
      text: that the tokens are of.
    """
    for span in offsets:
        if word := text[span[0] : span[1]].strip():  # a token of white space keeps its span
            span[0] += text[span[0] : span[1]].index(word)
    return offsets
