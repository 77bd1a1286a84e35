"""A corpus of text as random-access examples for masked language modelling.

`layouts` fills the rows with tokens; here they are masked.

An example:

    {"tokens": int32[T], "positions": int32[P], "labels": int32[P], "weights": float32[P]}
    packed: and "segments": int32[T], 0 in padding
    pairs:  and "types": int32[T], "lengths": int32[], "pair": int32[], "pair_weights": float32[]

Training reshuffles the rows every epoch and redraws their masks and lengths, as a function of (seed, example). The
masks of a validation row depend only on the row, so they are the same at every evaluation in every run.

Letters: B rows, T length, P predictions of a row, V vocabulary, D documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transformer_jax import objectives
from transformer_jax.data import corpus, pipeline, token_store, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.objectives import masking, pairs
from transformer_jax.tasks.masked_lm import layouts
from transformer_jax.tasks.masked_lm.layouts import Vocabulary

Layout = Literal["full", "packed", "next_sentence", "sentence_order"]

TRAIN, VALIDATION = 0, 1  # streams of `objectives.generator`
SENTENCE_ENDS = (".", "!", "?", "\n", "…", "。", "！", "？", "｡", "।", "॥", "؟", "۔", "።", "။", "។", "։")


@dataclass(frozen=True, eq=False)
class Corpus:
    """A TextCorpus prepared for masked language modelling. `train` is endless."""

    tokenizer: tokenizers.Tokenizer
    vocabulary: Vocabulary
    train: "Examples"
    validation: "Examples"
    train_tokens: tokens.TokenFile | token_store.TokenStore
    validation_tokens: tokens.TokenFile | token_store.TokenStore
    validation_origin: str
    """Names the validation text in messages."""


def prepare(
    data: corpus.TextCorpus,
    how: masking.Masking,
    layout: Layout,
    *,
    seed: int,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Corpus:
    """The training and validation examples of a corpus: of its token stores, or tokenised on first use.

    Args:
      data: the corpus; its sampling must be "epochs", and without rates.
      how: what is masked.
      layout: what a row holds.
      seed: the seed of the order and the masks of training examples.
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a missing, empty or too short corpus, or a tokenizer without [CLS], [SEP] or [MASK].
    """
    if data.sampling != "epochs":
        raise InputError(
            f"data.sampling = {data.sampling!r}: masked language modelling goes over epochs; "
            "give --data.sampling epochs"
        )
    if data.length < 8:
        raise InputError(f"data.length = {data.length} must be at least 8; up to 3 of them are special tokens")
    if data.rates:
        raise InputError(
            f"data.rates = {data.rates}: masked language modelling reads stores by their sizes; leave it out"
        )
    found = corpus.encoded(data, tokenizer=tokenizer)
    tokenizer = found.tokenizer
    known = vocabulary(tokenizer)
    files = {side: found.whole(side) for side in token_store.SIDES}

    def rows(side: str) -> layouts.Rows:
        text = _documents(files[side], known, len(tokens.frame(tokenizer)[0]))
        origin = f"{found.origins[side]} has {len(files[side].tokens):,} tokens"
        if layout == "full":
            return layouts.FullSentences.lay_out(text, known, data.length, whole=side == "train", origin=origin)
        if layout == "packed":
            return layouts.Packed.lay_out(text, known, data.length, origin=origin)
        return layouts.Pairs.lay_out(text, known, data.length, layout, origin=origin)

    made = {side: rows(side) for side in files}
    order = pipeline.epochs(len(made["train"]), seed)
    count = how.count(data.length)
    return Corpus(
        tokenizer=tokenizer,
        vocabulary=known,
        train=Examples(made["train"], order, how, known, count, seed, TRAIN),
        validation=Examples(made["validation"], range(len(made["validation"])), how, known, count, 0, VALIDATION),
        train_tokens=files["train"],
        validation_tokens=files["validation"],
        validation_origin=found.origins["validation"],
    )


def vocabulary(tokenizer: tokenizers.Tokenizer) -> Vocabulary:
    """The properties of a tokenizer's ids.

    Args:
      tokenizer: the tokenizer of an encoder.

    Raises:
      InputError: it has no [CLS], [SEP] or [MASK].
    """
    special = tokenizer.special
    if special.cls is None or special.sep is None or special.mask is None:
        names = ", ".join(f"[{name.upper()}]" for name in ("cls", "sep", "mask") if getattr(special, name) is None)
        raise InputError(
            f"the tokenizer has no token for {names}, which masked language modelling needs; use TrainWordPiece, "
            'TrainUnigram, TrainBPE(special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")), or the tokenizer of an '
            "encoder"
        )
    ordinary = np.ones(tokenizer.vocab_size, bool)
    ordinary[[*special.present().values(), *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]] = False
    texts = (tokenizer.decode([token]).rstrip(" \t") for token in range(tokenizer.vocab_size))
    ends_sentence = np.array([text.endswith(SENTENCE_ENDS) for text in texts]) & ordinary
    return Vocabulary(special.cls, special.sep, special.mask, ordinary, tokenizer.continues, ends_sentence)


def _documents(file: tokens.TokenFile | token_store.TokenStore, known: Vocabulary, head: int) -> pairs.Documents:
    """The file's documents without the `head` special tokens before each."""
    lengths = file.lengths()
    stops = np.cumsum(lengths)
    return pairs.Documents(file.tokens, stops - lengths + head, stops, known.ends_sentence, known.continues)


# ---- Examples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Examples(pipeline.Examples):
    """Random-access examples: example i is row order[i], masked."""

    rows: layouts.Rows
    order: Sequence[int]
    masking: masking.Masking
    vocabulary: Vocabulary
    count: int
    """P, predictions in a row."""
    seed: int
    stream: int

    def example(self, i: int) -> dict[str, np.ndarray]:
        """The masked row of example `i`, its labels and weights."""
        rng = objectives.generator(self.seed, i, self.stream)
        row = self.rows.make(self.order[i], rng)
        made = masking.mask(
            row["tokens"],
            row.pop("maskable"),
            self.masking,
            rng,
            mask_id=self.vocabulary.mask,
            random_ids=self.vocabulary.ordinary_ids,
            count=self.count,
            continues=self.vocabulary.continues,
        )
        masked = {"tokens": made.ids_T, "positions": made.positions_P, "labels": made.labels_P}
        return row | masked | {"weights": made.weights_P}
