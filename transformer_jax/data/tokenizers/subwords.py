"""Subword tokenizers: BPE, WordPiece and Unigram of the `tokenizers` library behind one interface."""

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
SWITCH = "split_special_tokens"  # Transformers' name: True reads special tokens written in a text as text
OWN_SWITCH = "documents_spell_special_tokens"  # the same for the texts of our data alone; an export does not have it


@dataclass(frozen=True, eq=False)
class SubwordTokenizer:
    """A `tokenizers.Tokenizer`, whatever its tokenizer.json says.

    Padding, truncation and the tokens that a post-processor would add ([CLS], <s>) are off: an objective that wants
    them adds them itself.

    Fields:
      _inner: the library's.
      eos: the end of a text, spelled; None: there is none.
      bos: the token that the folder names as a text's beginning, which it need not put there (`bos_id`).
      special: ids of the tokens that encoders know. languages: mBART's.
      literal: special tokens written in a text are text; in a prompt they never are.
      pieces: SentencePiece's own encoding, in place of the library's, where the folder holds SentencePiece's file.
      clean_up: the decoded text loses the spaces before punctuation, as BERT's first decoder had it.
      files: the files of the folder that it was read from, {name: bytes}, which `save` writes again as they are.
      settings: what tokenizer_config.json must say besides.
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
        """The tokenizer of the target side: both share this one."""
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
        """The token that the post-processor puts before a text, other than an encoder's [CLS]."""
        if self.languages is not None:
            return None
        framed = self._inner.encode("a", add_special_tokens=True)
        mask = framed.special_tokens_mask
        before = mask.index(0) if 0 in mask else len(mask)
        of_encoder = self.special.cls in framed.ids[:1] and mask[-1:] == [1] and before < len(mask)
        return framed.ids[0] if before and not of_encoder else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what decides how text is encoded; what the special tokens are *for* does not."""
        described = self._inner.to_str()
        settings = json.loads(described)
        if settings["model"].get("type") == "Unigram":  # the library's JSON does not keep a score's last digit
            settings["model"]["vocab"] = [[piece, f"{score:.7g}"] for piece, score in settings["model"]["vocab"]]
            described = json.dumps(settings)
        digest = hashlib.sha256(f"{self.eos} {self.bos_id} {self.literal} {described}".encode("utf-8", "surrogatepass"))
        if self.pieces_of is not None:
            digest.update(repr((self.pieces_of.model, str(self.pieces_of.before))).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling ("[MASK]"), None where there is none."""
        return self._inner.token_to_id(token)

    def replace(self, **changes: Any) -> "SubwordTokenizer":
        """This tokenizer with other fields."""
        return dataclasses.replace(self, **changes)

    # ---- Text to ids ----

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Parallel over the texts, one thread a core (TOKENIZERS_PARALLELISM=false: one)."""
        return self._encode(texts, self.literal)

    def encode_prompt(self, text: str) -> np.ndarray:
        """Ids of a text in which special tokens are meant: "Paris is the [MASK] of France."."""
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
        """Ids int32 [n] and offsets int32 [n, 2]: token i came from text[start:end], the space before a word left out.

        The tokens of a character cut into bytes have that character's span, each of them.
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
        """Ids int32 [n] of a sentence given as words, and the index of the word that each came from, int32 [n].

        Where a space is part of the token ("Ġword"), words after the first are encoded with it. A word of which the
        normaliser leaves nothing has no ids.
        """
        return join_words(self.encode_batch(spaced(words) if self._spaces_count else list(words)))

    # ---- SentencePiece's own encoding ----

    def _by_pieces(
        self, texts: Sequence[str], literal: bool, spans: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, offsets or none) of texts: what is between added tokens is encoded by itself."""
        assert self.pieces_of is not None
        cut = [list(self._segments(text, literal)) for text in texts]
        plain = [(text, start) for parts in cut for text, start, id in parts if id is None]
        if spans:
            encoded = iter([self.pieces_of.encode_with_offsets(text) for text, _ in plain])
        else:
            encoded = iter([(ids, ids) for ids in self.pieces_of.encode_batch([text for text, _ in plain])])
        made = []
        for parts in cut:
            ids, offsets = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
            for text, start, id in parts:
                some, where = next(encoded) if id is None else (np.array([id], np.int32), np.array([[0, len(text)]]))
                ids.append(some.astype(np.int32))
                offsets += [where + start] if spans else []
            made.append((np.concatenate(ids), np.concatenate(offsets).astype(np.int32)))
        return made

    def _segments(self, text: str, literal: bool) -> Iterator[tuple[str, int, int | None]]:
        """(text, where it begins, id or None) of the added tokens in a text and of what is between them."""
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
        """Patterns of the added tokens that are not special, and of all; a mask takes the space before it along."""
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
        """The special tokens as they are spelled."""
        return tuple(token for id in self._special_ids if (token := self._inner.id_to_token(int(id))))

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
    def _reading(self) -> Any:
        """The library's tokenizer in which every special token is found, those too that no file lists as added."""
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
        """The library's tokenizer in which no special token is found, but for what the model finds."""
        inner = self._copy()
        inner.encode_special_tokens = True
        return inner

    @functools.cached_property
    def _literal(self) -> Any:
        """The same, but a special token's spelling is split before its last character, so that it is not found."""
        from tokenizers import Regex, pre_tokenizers

        cut = "|".join(f"{re.escape(s[:-1])}(?={re.escape(s[-1])})" for s in self.special_spellings if len(s) > 1)
        inner = self._copy()
        parts = [inner.pre_tokenizer] if inner.pre_tokenizer is not None else []
        if cut:
            parts.append(pre_tokenizers.Split(Regex(cut), "merged_with_previous"))
        inner.pre_tokenizer = pre_tokenizers.Sequence(parts)
        inner.encode_special_tokens = True
        return inner

    def _copy(self) -> Any:
        from tokenizers import Tokenizer as Inner

        return Inner.from_str(self._inner.to_str())

    # ---- Words ----

    @functools.cached_property
    def _described(self) -> dict[str, Any]:
        """tokenizer.json without its vocabulary."""
        described = json.loads(self._inner.to_str())
        return described | {"model": {k: v for k, v in described["model"].items() if k not in ("vocab", "merges")}}

    @functools.cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self._described["decoder"])

    @functools.cached_property
    def _spaces_count(self) -> bool:
        """Whether "word" and " word" are other tokens."""
        return self._byte_level or '"prepend_scheme": "never"' in json.dumps(self._described["pre_tokenizer"])

    @functools.cached_property
    def continues(self) -> np.ndarray:
        """bool [vocab_size]: the token goes on with the word before it (`decoding.continues`)."""
        prefix = self._described["model"].get("continuing_subword_prefix")
        kind = str(self._described["model"].get("type"))
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        continues = np.zeros(self.vocab_size, bool)
        for id, goes_on in decoding.continues(vocabulary, kind, prefix, self._byte_level):
            continues[id] = goes_on
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
        """The files it was read from, or tokenizer.json; and tokenizer_config.json. Transformers' AutoTokenizer reads
        them as well."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        if not self.files:
            self._inner.save(str(folder / "tokenizer.json"))
        said = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        wanted = said | self._settings(said)
        if wanted != said:
            write_json(folder / SETTINGS, wanted)

    def _settings(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What tokenizer_config.json must say, beside `said`, which it holds already."""
        settings = dict(self.settings)
        if not self.files:
            roles = {f"{role}_token": self._inner.id_to_token(id) for role, id in self.special.present().items()}
            settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos} | roles
        if self.languages is not None:
            sides = {"src_lang": self.languages.source, "tgt_lang": self.languages.target}
            settings |= {side: None if id is None else self._inner.id_to_token(id) for side, id in sides.items()}
            settings["tokenizer_class"] = f"MBart{'50' * self.languages.leading}Tokenizer"
        if self.literal != reads_literally(said):
            settings[OWN_SWITCH] = self.literal
        return settings


def reads_literally(settings: Mapping[str, Any]) -> bool:
    """Whether a tokenizer_config.json says that special tokens written in a text are text."""
    return bool(settings.get(OWN_SWITCH, settings.get(SWITCH, False)))


def without_space(offsets: np.ndarray, text: str) -> np.ndarray:
    """Offsets int32 [n, 2] without the space before a word."""
    for span in offsets:
        if word := text[span[0] : span[1]].strip():  # what is nothing but space keeps it
            span[0] += text[span[0] : span[1]].index(word)
    return offsets
