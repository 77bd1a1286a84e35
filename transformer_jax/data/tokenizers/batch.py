"""From texts to the arrays that a model's `apply` takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_jax.contracts import Tokenizer
from transformer_jax.errors import InputError


def batch(tokenizer: Tokenizer, texts: Sequence[str], *, length: int = 0, literal: bool = False) -> dict[str, Any]:
    """{"tokens": int32 [B, T], "lengths": int32 [B]} of texts, padded on the right, as Transformers encodes them.

    Around each text stand the special tokens that the model was trained with: [CLS] and [SEP], a beginning or an end of
    text, or none.

        batch = tokenizers.batch(loaded.tokenizer, ["a text", "another"])
        x_BTD = loaded.family.apply(loaded.params, loaded.config, batch["tokens"], lengths=batch["lengths"])

    A decoder's `apply` takes the tokens alone: it is causal, so padding changes nothing before it. An encoder-decoder
    takes them as its source.

    Args:
      tokenizer: the tokenizer of the model.
      texts: B of them.
      length: T; 0: that of the longest text.
      literal: special tokens that are written in a text are text, for texts that are not trusted; otherwise tokens.

    Raises:
      InputError: no texts, or a text that is longer than `length`.
    """
    if isinstance(texts, str) or not texts:
        raise InputError("batch needs a list of one or more texts")
    before, after = around(tokenizer)
    reads = tokenizer.replace(literal=True) if literal and hasattr(tokenizer, "replace") else tokenizer
    encode = reads.encode if literal else reads.encode_prompt
    ids = [np.concatenate([before, encode(text), after]).astype(np.int32) for text in texts]
    lengths_B = np.array([len(one) for one in ids], np.int32)
    T = length or int(np.max(lengths_B))
    if (longest := int(np.max(lengths_B))) > T:
        where = int(np.argmax(lengths_B))
        raise InputError(
            f"text {where} has {longest} tokens, and length is {T}; give a larger one, or shorten the text"
        )
    pad = tokenizer.special.pad or 0
    tokens_BT = np.stack([np.pad(one, (0, T - len(one)), constant_values=pad) for one in ids])
    return {"tokens": tokens_BT, "lengths": lengths_B}


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of the special tokens before and after a text.

    Args:
      tokenizer: any; one without `frame` has its [CLS] and [SEP], or its beginning of text.
    """
    if hasattr(tokenizer, "frame"):
        return tokenizer.frame
    special = tokenizer.special
    if special.cls is not None and special.sep is not None:
        return [special.cls], [special.sep]
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id], []
