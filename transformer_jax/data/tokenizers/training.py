"""Training of tokenizers: byte-level BPE, WordPiece, Unigram.

BPE and WordPiece are deterministic functions of the text. Unigram is not: the library's trainer sums floating-point
numbers in the order of a hash table with a random seed, and the rounding errors decide which of two similar pieces is
pruned. Scores are rounded and sorted, so that a small text usually gives the same file. A run keeps its tokenizer, and
the cache returns the same one. Unigram training is also slow: 10 MB of Python took two minutes on two cores, WordPiece
five seconds (measured, vocabularies of 8,192).
"""

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from transformer_jax.data.tokenizers import special as special_tokens
from transformer_jax.data.tokenizers.classes import cls_sep, roberta_frame
from transformer_jax.data.tokenizers.folder import END_TOKENS
from transformer_jax.data.tokenizers.plain import END_OF_TEXT
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

# The special tokens of the published vocabularies.
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALBERT_SPECIAL = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
# The most frequent characters, each a WordPiece. A word with any other character becomes [UNK].
ALPHABET = 1000
# A tokenizer is trained on about the first TRAIN_BYTES of a corpus; WordPiece holds them in memory.
TRAIN_BYTES = 1 << 30

Documents = Iterable[tuple[str, str]]


def train_bpe(vocab_size: int, special: Sequence[str], split_digits: bool, documents: Documents) -> SubwordTokenizer:
    """A byte-level BPE (Sennrich et al. 2016, section 3.2; over bytes: Radford et al. 2019, section 2.2).

    Args:
      vocab_size: tokens, the special ones included.
      special: special tokens, numbered from 0; empty: <|endoftext|>.
      split_digits: whether every digit is a token of its own.
      documents: (name, text) pairs.

    Raises:
      InputError: there is no text.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    inner = Inner(models.BPE())
    inner.pre_tokenizer = byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split_digits:
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    inner.decoder = decoders.ByteLevel()
    takes_space = (*special_tokens.SPELLINGS["mask"], *(t for t in special if t.startswith("<extra_id_")))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, normalized=False, lstrip=t in takes_space) for t in special or (END_OF_TEXT,)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(_texts("byte-level BPE", vocab_size, documents), trainer)
    eos = next((token for token in END_TOKENS if inner.token_to_id(token) is not None), None)
    return _finish(inner, eos)


def train_wordpiece(vocab_size: int, lowercase: bool, documents: Documents) -> SubwordTokenizer:
    """A WordPiece tokenizer with BERT's normaliser (Devlin et al. 2019; Wu et al. 2016, section 4.1), by BPE merges.

    The library numbers characters inside words ("##a") in the order of a hash table, and breaks ties between merges by
    number. So the alphabet is counted first and its numbers are fixed.

    Args:
      vocab_size: tokens, the special ones included.
      lowercase: whether text is lower-cased and accents are removed.
      documents: (name, text) pairs.

    Raises:
      InputError: there is no text, or `vocab_size` is less than the alphabet.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    texts = list(_texts("WordPiece", vocab_size, documents))
    first, inside = _alphabet(normalizer.normalize_str(text) for text in texts)
    fixed = [*BERT_SPECIAL, *first, *(f"##{letter}" for letter in inside)]
    if vocab_size < len(fixed):
        raise InputError(
            f"TrainWordPiece.vocab_size = {vocab_size:,} is less than the {len(fixed):,} special tokens and letters of "
            "the text (each at the beginning and inside of words); raise it"
        )
    inner = Inner(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=fixed,
        initial_alphabet=first,
        limit_alphabet=len(first),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    vocabulary = inner.get_vocab(with_added_tokens=False)

    inner = Inner(models.WordPiece(vocabulary, unk_token="[UNK]"))  # the letters are no longer special tokens
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    return _finish(inner, None)


def train_unigram(vocab_size: int, lowercase: bool, documents: Documents) -> SubwordTokenizer:
    """A Unigram tokenizer (Kudo 2018, section 3.2) with ALBERT's normaliser.

    Args:
      vocab_size: tokens, the special ones included.
      lowercase: whether text is lower-cased and accents are removed.
      documents: (name, text) pairs.

    Raises:
      InputError: there is no text, or the library refuses the size.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, trainers

    inner = dress_unigram(Inner(models.Unigram()), lowercase)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(ALBERT_SPECIAL), unk_token="<unk>", show_progress=False
    )
    try:
        inner.train_from_iterator(_texts("Unigram", vocab_size, documents), trainer)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"TrainUnigram.vocab_size = {vocab_size:,} for {_origin(documents)}: {error}") from None
    learned = json.loads(inner.to_str())["model"]["vocab"][len(ALBERT_SPECIAL) :]
    pieces = sorted(((piece, round(score, 6)) for piece, score in learned), key=lambda pair: (-pair[1], pair[0]))
    vocabulary = [(token, 0.0) for token in ALBERT_SPECIAL] + pieces
    inner = dress_unigram(Inner(models.Unigram(vocabulary, unk_id=1, byte_fallback=False)), lowercase)
    return _finish(inner, None)


def _finish(inner: Any, eos: str | None) -> SubwordTokenizer:
    """The tokenizer with its special tokens registered and the post-processor that Transformers needs.

    If spaces are part of tokens, the mask includes the space before it, as in RoBERTa and ALBERT.
    """
    from tokenizers import AddedToken, models

    roles = special_tokens.usual(inner, {})
    added = {token.content for token in inner.get_added_tokens_decoder().values()}
    lstrip = not isinstance(inner.model, models.WordPiece)
    for role, token in roles.items():
        if token not in added:
            inner.add_special_tokens([AddedToken(token, normalized=False, lstrip=lstrip and role == "mask")])
            added.add(token)
    found = special_tokens.Special(**{role: inner.token_to_id(roles[role]) for role in roles})
    if "cls" in roles and "sep" in roles:
        byte_level = isinstance(inner.model, models.BPE)
        inner.post_processor = (roberta_frame if byte_level else cls_sep)(inner, {}, roles)
    return SubwordTokenizer(inner, eos, found, literal=True)


def dress_unigram(inner: Any, lowercase: bool) -> Any:
    """The tokenizer with ALBERT's normaliser (NFKC if cased) and words at spaces, each with a leading "▁".

    Args:
      inner: the library's tokenizer, which is changed.
      lowercase: whether text is lower-cased and accents are removed.
    """
    from tokenizers import decoders, normalizers, pre_tokenizers

    quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    plain = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    inner.normalizer = normalizers.Sequence([*quotes, *(plain if lowercase else [normalizers.NFKC()])])
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    inner.pre_tokenizer = pre_tokenizers.Sequence(words)
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return inner


def _texts(kind: str, vocab_size: int, documents: Documents) -> Iterator[str]:
    """The texts to train on, up to about `TRAIN_BYTES`. Refuses documents without text."""
    print(f"training a {kind} tokenizer of {vocab_size:,} tokens on {_origin(documents)}", file=sys.stderr)
    seen = 0
    for _, text in documents:
        if seen >= TRAIN_BYTES:
            return
        seen += len(text.encode("utf-8", "surrogatepass"))
        yield text
    if not seen:
        raise InputError(f"{_origin(documents)}: no text to train a {kind} tokenizer on")


def _alphabet(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the most frequent letters of normalised texts, those of them that occur inside words), in code-point order.

    Words are BERT's: they end at spaces and at punctuation.
    """
    joins = np.zeros(sys.maxunicode + 1, bool)  # letters that may be inside a word
    known = np.zeros(sys.maxunicode + 1, bool)
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    inside = np.zeros(sys.maxunicode + 1, bool)
    for text in texts:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        letters, seen = np.unique(points, return_counts=True)
        counts[letters] += seen
        for letter in letters[~known[letters]]:
            known[letter], joins[letter] = True, _joins(chr(letter))
        inside[points[1:][joins[points[:-1]] & joins[points[1:]]]] = True
    counts[[letter for letter in np.flatnonzero(counts) if chr(letter).isspace()]] = 0
    kept = np.lexsort((np.arange(len(counts)), -counts))[:ALPHABET]
    first = np.sort(kept[counts[kept] > 0])
    return [chr(letter) for letter in first], [chr(letter) for letter in first[inside[first]]]


def _joins(letter: str) -> bool:
    ascii_punctuation = letter.isascii() and not letter.isalnum()
    return not (letter.isspace() or ascii_punctuation or unicodedata.category(letter).startswith("P"))


def _origin(documents: Documents) -> str:
    return getattr(documents, "origin", "the documents given")
