"""Captions and pictures as random-access examples, and what simple predictors of their codes reach.

An example has fixed shapes:

    {"caption": int32 [T], "other": int32 [T], "codes": int32 [S], "weights": float32 []}

"other" is the caption of another pair of the set: what it costs to predict the codes with it instead tells whether the
model reads captions. The source is one of pairs of a picture and a text (`contrastive.paired.Source`).

Letters: N pictures, T tokens of a caption, S codes of a picture, K codes in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax.data import pipeline, sources, tokens
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.tasks.contrastive import paired
from transformer_jax.tasks.text_to_image import codes
from transformer_jax.tasks.text_to_image.tokenizer import PictureTokenizer, TextAndCodes

FITTED = 16_384  # pictures that a codebook is made of
ROWS = 1024  # pictures decoded at a time


@dataclass(frozen=True)
class Captioned:
    """The data of a text-to-image experiment: pairs of a picture and a caption, and how both become tokens."""

    source: paired.Source
    """The pairs, whose left sides are pictures."""
    tokenizer: TextAndCodes
    """Encodes captions and pictures."""
    caption_length: int = 32
    """T, tokens of a caption; longer ones are truncated. 0: pictures without captions."""

    def __post_init__(self) -> None:
        if self.caption_length < 0 or (self.caption_length and self.tokenizer.text is None):
            reads = "" if self.caption_length < 0 else " without a data.tokenizer.text"
            raise InputError(
                f"data.caption_length = {self.caption_length}{reads}: must be 0 or more, and 0 without text"
            )

    @property
    def length(self) -> int:
        """Tokens of a row: a caption and the codes of a picture."""
        return self.caption_length + self.tokenizer.length


@dataclass(frozen=True)
class Documents(sources.Documents):
    """Captions, and some of their pictures."""

    pictures: Any = None
    """uint8 [n, size, size, C]."""


@dataclass(frozen=True, eq=False)
class Examples(pipeline.StackedExamples):
    """Random-access examples of one side."""

    captions_NT: np.ndarray
    others_N: np.ndarray
    """Of each pair another one of another caption, where there is one."""
    codes_NS: np.ndarray
    order: Sequence[int]

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""
        rows_B = np.array([self.order[i] for i in numbers], np.int64)
        return {
            "caption": self.captions_NT[rows_B],
            "other": self.captions_NT[self.others_N[rows_B]],
            "codes": self.codes_NS[rows_B].astype(np.int32),
            "weights": np.ones(len(rows_B), np.float32),
        }


def preprocess(spec: TextAndCodes) -> Preprocess:
    """How pictures of any size become those that are encoded.

    Args:
      spec: the spec of the tokenizer.
    """
    plain = (0.0,) * spec.channels, (1.0,) * spec.channels
    return Preprocess(size=spec.size, resize=spec.size, fit=spec.fit, mean=plain[0], std=plain[1])


def build_tokenizer(data: Captioned, train: paired.Pairs, given: Any) -> PictureTokenizer:
    """The tokenizer of the data.

    Args:
      data: the experiment's.
      train: the pairs that it is made of.
      given: the one that the parameters were trained with; None: it is made.

    Raises:
      InputError: the given one has other codes than the data state.
    """
    spec = data.tokenizer
    if given is None:
        held = train.held
        some = np.sort(np.random.default_rng(0).permutation(len(held))[:FITTED]).tolist()
        pictures = paired.stacked([held[i].left for i in some], preprocess(spec))
        captions = train.documents()
        return spec.build(Documents(**vars(captions), pictures=pictures), tokens.cache_dir())
    book = getattr(given, "codebook", None)
    if book is None:
        raise InputError("the model's tokenizer has no codes of pictures, so it was not trained to draw; name another")
    found, asked = (book.num_codes, book.patch, book.size, book.channels), (spec.num_codes, spec.patch, spec.size)
    if found != (*asked, spec.channels):
        raise InputError(
            f"the model's codes are {found[0]} patches of {found[1]} pixels in pictures of {found[2]} with {found[3]} "
            f"channels; set data.tokenizer to that"
        )
    return given


def examples(pairs: paired.Pairs, data: Captioned, tokenizer: PictureTokenizer, *, seed: int | None) -> Examples:
    """The examples of one side. All pictures are encoded here; only their codes stay in memory.

    Args:
      pairs: the pairs of the side.
      data: the experiment's.
      tokenizer: encodes them.
      seed: the seed of the endless order of training examples; None: each pair once, in order.
    """
    held, spec, book = pairs.held, preprocess(data.tokenizer), tokenizer.codebook
    kind = np.uint16 if book.num_codes <= 1 << 16 else np.int32
    found = np.empty((len(held), book.length), kind)
    for first in range(0, len(held), ROWS):
        pictures = paired.stacked([pair.left for pair in held[first : first + ROWS]], spec)
        found[first : first + ROWS] = codes.encode(pictures, book)
    captions = tokenizer.captions([pair.right for pair in held], data.caption_length)
    order = range(len(held)) if seed is None else pipeline.epochs(len(held), seed)
    return Examples(captions, others(captions), found, order)


def others(captions_NT: np.ndarray) -> np.ndarray:
    """For each pair the number of another one, int64 [N]: half a set further, or the next one of another caption.

    Args:
      captions_NT: the captions of all pairs.
    """
    N = len(captions_NT)
    found = (np.arange(N) + N // 2) % N
    for _ in range(N):
        if not (same := (captions_NT[found] == captions_NT).all(1)).any():
            break
        found[same] = (found[same] + 1) % N
    return found


def baselines(train_NS: np.ndarray, held_NS: np.ndarray, num_codes: int) -> dict[str, float]:
    """Nats per code of three predictors on held-out pictures: by the code alone, by the one to its left, and by the
    ones to its left and above it. Counts of training pictures, each mixed with the predictor that knows less.

    Args:
      train_NS: codes of training pictures, which are square.
      held_NS: codes of held-out pictures.
      num_codes: K.
    """
    K = num_codes

    def around(codes_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The codes, those to the left, and those above; K at a border."""
        side = round(codes_NS.shape[1] ** 0.5)
        grid = codes_NS.reshape(-1, side, side).astype(np.int64)
        padded = np.pad(grid, ((0, 0), (1, 0), (1, 0)), constant_values=K)
        return grid.ravel(), padded[:, 1:, :-1].ravel(), padded[:, :-1, 1:].ravel()

    def mixed(context: np.ndarray, held: np.ndarray, below: np.ndarray, mass: float) -> np.ndarray:
        """P(asked | held context), where `mass` counts are added as `below` distributes them."""
        pairs, counts = np.unique(context * K + code, return_counts=True)
        contexts, totals = np.unique(context, return_counts=True)
        seen, total = _looked_up(pairs, counts, held * K + asked), _looked_up(contexts, totals, held)
        return (seen + mass * below) / (total + mass)

    (code, left, above), (asked, its_left, its_above) = around(train_NS), around(held_NS)
    alone = (np.bincount(code, minlength=K) + 1.0)[asked] / (len(code) + K)
    by_left = mixed(left, its_left, alone, 10.0)
    by_both = mixed(left * (K + 1) + above, its_left * (K + 1) + its_above, by_left, 3.0)
    found = {"code_alone": alone, "left": by_left, "left_and_above": by_both}
    return {f"baseline_nats_by_{name}": float(-np.log(p).mean()) for name, p in found.items()}


def _looked_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The values of sorted keys; 0 for a key that is not there."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)
