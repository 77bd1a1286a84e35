"""Tokenizers: text to token ids and back.

A spec describes the tokenizer of an experiment. `build` makes it, from the training text if it is trained; its `save`
writes it into a folder, and `load` reads that folder.

    Bytes            256 byte values and an end-of-text token
    Characters       every character of the training text is a token; no end-of-text token (nanoGPT's Shakespeare)
    TrainBPE         byte-level BPE trained on the training text, as GPT-2's and RoBERTa's
    TrainWordPiece   WordPiece trained on the training text, as BERT's
    TrainUnigram     Unigram trained on the training text, as SentencePiece's and ALBERT's
    Residues         a token for each residue of a protein: ESM's vocabulary
    Kmers            a token for each word of k letters of DNA
    TokenizerFile    a Hugging Face folder or a tokenizer.json, encoded as Transformers does; its files are kept

A user's own spec is a frozen dataclass with `build(documents, cache) -> contracts.Tokenizer`. If its tokenizer saves
files of its own, it also has `read(folder)`.

Special tokens that are spelled in a text: the tokenizer of a folder encodes them as tokens, as in Transformers, unless
the folder says "split_special_tokens". A tokenizer that was trained here encodes them as text: "<|endoftext|>" in a
document is thirteen characters. `special_tokens` of the spec changes this. In a prompt they are always tokens:
`encode_prompt`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from transformer_jax.contracts import Tokenizer
from transformer_jax.contracts import TokenizerSpec as Spec
from transformer_jax.data.tokenizers.batch import batch
from transformer_jax.data.tokenizers.folder import load
from transformer_jax.data.tokenizers.languages import Languages
from transformer_jax.data.tokenizers.plain import END_OF_TEXT, ByteTokenizer, CharacterTokenizer
from transformer_jax.data.tokenizers.special import Special
from transformer_jax.data.tokenizers.specs import (
    Bytes,
    Characters,
    Kmers,
    Residues,
    TokenizerFile,
    TrainBPE,
    TrainUnigram,
    TrainWordPiece,
    build,
)
from transformer_jax.data.tokenizers.specs import chosen as chosen
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

__all__ = [
    "END_OF_TEXT",
    "ByteTokenizer",
    "Bytes",
    "CharacterTokenizer",
    "Characters",
    "Kmers",
    "Languages",
    "Residues",
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
