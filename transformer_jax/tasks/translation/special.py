"""The special tokens around the sources and targets of an encoder-decoder."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax.data import tokenizers
from transformer_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Framing:
    """The special tokens around a source and a target."""

    source_around: tuple[list[int], list[int]]
    """Ids before and after a source."""
    target_around: tuple[list[int], list[int]]
    """Ids before and after a target; the last one ends it."""
    start: tuple[int]
    """The id of the decoder's first input."""

    @property
    def forced_first(self) -> int | None:
        """The id of the token that every target begins with; None: targets begin with text."""
        return next(iter(self.target_around[0]), None)

    def source(self, ids: np.ndarray) -> np.ndarray:
        """The encoder's input, int32.

        Args:
          ids: the token ids of a source.
        """
        return _between(self.source_around, ids)

    def target(self, ids: np.ndarray) -> np.ndarray:
        """The decoder's targets, int32; its inputs are `start` and all of these but the last.

        Args:
          ids: the token ids of a target.
        """
        return _between(self.target_around, ids)


def _between(around: tuple[list[int], list[int]], ids: np.ndarray) -> np.ndarray:
    return np.concatenate([around[0], ids, around[1]]).astype(np.int32)


def framing(tokenizer: tokenizers.Tokenizer, model_cfg: Any) -> Framing:
    """The special tokens of a tokenizer and a model, as in Transformers:

        T5, Marian      source </s>             target </s>             behind <pad>
        BART            <s> source </s>         <s> target </s>         behind </s>
        mBART           source </s> en_XX       target </s>             behind de_DE
        mBART-50        en_XX source </s>       de_DE target </s>       behind </s>

    The start token is the model's `decoder_start_id`, else its padding, else its end of text; mBART's is the code.

    Args:
      tokenizer: the tokenizer of both sides.
      model_cfg: an encoder-decoder.

    Raises:
      InputError: a tokenizer without an end of text or with other ids than the model, or mBART's without languages.
    """
    special, codes = tokenizer.special, tokenizer.languages
    eos = special.sep if tokenizer.eos_id is None else tokenizer.eos_id
    if eos is None:
        raise InputError(
            "the tokenizer has no token that ends a text (</s> or [SEP]), which an encoder-decoder needs; use "
            'TrainBPE(special=("<pad>", "</s>", "<unk>")), TrainUnigram, or the tokenizer of a checkpoint'
        )
    for name, id in (("pad_id", special.pad), ("eos_id", eos)):
        if (wanted := getattr(model_cfg, name)) is not None and wanted != id:
            has = f"the tokenizer has {'no such token' if id is None else id}"
            raise InputError(
                f"model.{name} = {wanted}, but {has}; set model.{name} to {id}, or use the tokenizer of the model"
            )
    start = next(id for id in (model_cfg.decoder_start_id, model_cfg.pad_id, special.pad, eos) if id is not None)
    if start >= tokenizer.vocab_size:
        raise InputError(
            f"model.decoder_start_id = {start} is not in the tokenizer's vocabulary of {tokenizer.vocab_size:,} tokens"
        )
    if codes is not None:
        if codes.source is None or codes.target is None:
            raise InputError(
                "the tokenizer is mBART's, but its source and target language are not set; give "
                "--data.tokenizer.source-language and --data.tokenizer.target-language"
            )
        if codes.leading:
            return Framing(([codes.source], [eos]), ([codes.target], [eos]), (start,))
        return Framing(([], [eos, codes.source]), ([], [eos]), (codes.target,))
    begin = [special.cls] if special.cls is not None and tokenizer.decode([special.cls]).strip() == "<s>" else []
    return Framing((begin, [eos]), (begin, [eos]), (start,))
