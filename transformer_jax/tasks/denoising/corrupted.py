"""A corpus of text as random-access examples for denoising: a source with gaps and the target that fills them.

The stream of tokens, with an end-of-text token before each document, is split into adjacent segments of equal length,
which may span documents; the rest at the end is dropped. Each segment gives a pair (`objectives.spans`), and a pair is
an example:

    {"source": int32[S], "source_segments": int32[S], "inputs": int32[T], "targets": int32[T],
     "target_segments": int32[T], "weights": float32[T]}

The inputs are the decoder's start token and the targets, shifted by one. Segments and weights are 1, and 0 in padding.
Training reshuffles the segments every epoch and redraws their gaps, as a function of (seed, example). The gaps of a
validation row depend only on the row, so they are the same at every evaluation in every run.

S source length, T target length, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax import objectives
from transformer_jax.data import corpus, pipeline, token_store, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.objectives import spans
from transformer_jax.tasks.masked_lm import masked
from transformer_jax.tasks.translation import parallel

TRAIN, VALIDATION = 0, 1  # streams of `objectives.generator`


@dataclass(frozen=True, eq=False)
class Examples(pipeline.Examples):
    """Random-access examples: example i is segment order[i] of the tokens, with gaps."""

    tokens: np.ndarray | token_store.Stream
    order: Sequence[int]
    objective: spans.Objective
    sizes: spans.Sizes
    marks: spans.Marks
    start_id: int
    seed: int
    stream: int

    def example(self, i: int) -> dict[str, np.ndarray]:
        """Source, inputs and targets of example `i`."""
        begin = self.order[i] * self.sizes.raw
        ids = self.tokens[begin : begin + self.sizes.raw].astype(np.int32)
        return example(self.objective.make(ids, objectives.generator(self.seed, i, self.stream), self.marks), self)


def example(pair: spans.Pair, of: Examples) -> dict[str, np.ndarray]:
    """The example of a pair, padded to S and T tokens.

    Args:
      pair: source and target, int32.
      of: the examples that it belongs to, for the sizes and the start token.
    """
    (S, T), (s, t) = of.sizes[1:], map(len, pair)
    source_S, inputs_T, targets_T = (np.zeros(size, np.int32) for size in (S, T, T))
    source_S[:s], targets_T[:t] = pair
    inputs_T[0], inputs_T[1:t] = of.start_id, pair.target[:-1]
    target_segments_T = (np.arange(T) < t).astype(np.int32)
    return {
        "source": source_S,
        "source_segments": (np.arange(S) < s).astype(np.int32),
        "inputs": inputs_T,
        "targets": targets_T,
        "target_segments": target_segments_T,
        "weights": target_segments_T.astype(np.float32),
    }


@dataclass(frozen=True, eq=False)
class Corpus:
    """A TextCorpus prepared for denoising. `train` is endless."""

    tokenizer: tokenizers.Tokenizer
    train: Examples
    validation: Examples
    train_tokens: tokens.TokenFile | token_store.TokenStore
    validation_tokens: tokens.TokenFile | token_store.TokenStore


def prepare(
    data: corpus.TextCorpus,
    objective: spans.Objective,
    model_cfg: Any,
    *,
    seed: int,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Corpus:
    """The training and validation examples of a corpus: of its token stores, or tokenised on first use.

    Args:
      data: the corpus; its sampling must be "epochs", and without rates.
      objective: chooses the gaps and the target.
      model_cfg: an encoder-decoder, for its special ids.
      seed: the seed of the order and the gaps of training examples.
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a missing, empty or too short corpus, or a tokenizer whose special tokens do not suit the objective or
        the model.
    """
    if data.sampling != "epochs":
        raise InputError(f"data.sampling = {data.sampling!r}: denoising goes over epochs; give --data.sampling epochs")
    sizes = objective.sizes(data.length)
    if data.rates:
        raise InputError(f"data.rates = {data.rates}: denoising reads stores by their sizes; leave it out")
    found = corpus.encoded(data, tokenizer=tokenizer)
    tokenizer = found.tokenizer
    known = marks(tokenizer, objective, model_cfg, sizes.raw)
    (start_id,) = parallel.framing(tokenizer, model_cfg).start
    files = {side: found.whole(side) for side in token_store.SIDES}
    rows = {side: len(file.tokens) // sizes.raw for side, file in files.items()}
    for side, count in rows.items():
        if not count:
            raise InputError(
                f"{found.origins[side]} has {len(files[side].tokens):,} tokens, but one row needs {sizes.raw}; "
                f"give more text or lower data.length = {data.length}"
            )

    def examples(side: str, order: Sequence[int], seed: int, stream: int) -> Examples:
        return Examples(files[side].tokens, order, objective, sizes, known, start_id, seed, stream)

    return Corpus(
        tokenizer,
        train=examples("train", pipeline.epochs(rows["train"], seed), seed, TRAIN),
        validation=examples("validation", range(rows["validation"]), 0, VALIDATION),
        train_tokens=files["train"],
        validation_tokens=files["validation"],
    )


def marks(tokenizer: tokenizers.Tokenizer, objective: spans.Objective, model_cfg: Any, raw: int) -> spans.Marks:
    """The special tokens of an objective.

    Args:
      tokenizer: has them.
      objective: uses them.
      model_cfg: an encoder-decoder, whose special ids must be the tokenizer's.
      raw: tokens of a text before its gaps.

    Raises:
      InputError: a tokenizer without them, with other ids than the model, or mBART's.
    """
    if tokenizer.languages is not None:
        raise InputError("denoising does not support mBART's language codes; use the tokenizer of a BART or a T5")
    begin, (end_id,) = parallel.framing(tokenizer, model_cfg).target_around
    match objective:
        case spans.SpanCorruption():
            found, needed = tokenizers.sentinels(tokenizer), objective.hidden(raw)[1]
            if len(found) < needed:
                raise InputError(
                    f"the tokenizer has {len(found)} sentinels <extra_id_n>, but span corruption needs {needed} for a "
                    f"text of {raw} tokens; use TrainBPE(special=t5_special({needed})) or T5's tokenizer.json"
                )
            return spans.Marks(end_id, sentinels=found)
        case spans.TextInfilling():
            if tokenizer.special.mask is None or not begin:
                raise InputError(
                    "the tokenizer has no token for <s>, </s> or <mask>, which text infilling needs; use "
                    'TrainBPE(special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")) or the tokenizer of a BART'
                )
            ends = masked.vocabulary(tokenizer).ends_sentence
            ends[end_id] = True
            return spans.Marks(end_id, tuple(begin), tokenizer.special.mask, ends_sentence=ends)
    return spans.Marks(end_id, tuple(begin))
