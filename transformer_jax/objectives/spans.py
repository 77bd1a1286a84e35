"""Denoising objectives: a text becomes a pair of a corrupted source and a target that restores it.

    SpanCorruption    the source has a sentinel for each hidden span, the target the sentinels and their spans
                      T5: Raffel et al. 2020, section 3.1.4, and their code (t5.data.preprocessors)
    TextInfilling     the source has one mask token for each hidden span, some of them empty, and its sentences are
                      shuffled; the target is the whole text
                      BART: Lewis et al. 2020, section 2.2, and their code (fairseq, DenoisingDataset)
    PrefixLM          the source is the beginning, the target the rest
                      Raffel et al. 2020, section 3.3.1, after Liu et al. 2018

Each is a value with three functions: `sizes(length)`, the lengths of texts, sources and targets for rows of a length;
`make(ids, rng, marks)`, the pair of a text; and `restore(source, target, marks)`, the text of a source and a target,
which may be a model's output. Both sides include the tokens that begin and end them.

R tokens of the text, N of them hidden, K kept, M spans.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import InputError


class Sizes(NamedTuple):
    """Lengths in tokens: `raw`, R, of a text; `source` and `target`, of the longest sides that its pair can have."""

    raw: int
    source: int
    target: int


class Pair(NamedTuple):
    """The ids of both sides, int32, without padding."""

    source: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Marks:
    """The tokens of a vocabulary that an objective uses."""

    end: int
    """The last token of both sides."""
    begin: tuple[int, ...] = ()
    """The first tokens of both sides: BART's <s>; T5 has none."""
    mask: int | None = None
    """Replaces a hidden span."""
    sentinels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32: the first replaces the first hidden span, and so on."""
    ends_sentence: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """bool [V]: a sentence may end after this token."""

    def frame(self, ids: np.ndarray) -> np.ndarray:
        """`ids` with the tokens that begin and end a side."""
        return np.concatenate([np.array(self.begin, np.int32), ids, np.array([self.end])]).astype(np.int32)

    def unframe(self, ids: np.ndarray) -> np.ndarray:
        """`ids` without the tokens that begin and end a side; a side that a model generated may lack either."""
        begun = len(self.begin) if tuple(ids[: len(self.begin)]) == self.begin else 0
        return ids[begun : len(ids) - (len(ids) > begun and ids[-1] == self.end)]


# ---- T5 ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpanCorruption:
    """T5's span corruption: sentinels replace spans of tokens.

    N = round(rate * R) tokens are hidden, in round(N / mean_span) spans. No span is empty, no two are adjacent, the
    first follows a kept token and the last ends the text; all such divisions have the same probability. The source is
    the kept tokens with a sentinel in place of each span; the target is each sentinel followed by its span. This is
    T5's code; figure 2 of the paper shows one more sentinel at the end of the target, which the code does not write.
    """

    rate: float = 0.15
    """Share of the tokens to hide."""
    mean_span: float = 3.0
    """Mean length of a span."""

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < 1.0:
            raise InputError(f"objective.rate = {self.rate}: must be above 0 and below 1")
        if self.mean_span < 1.0:
            raise InputError(f"objective.mean_span = {self.mean_span}: must be 1 or more")

    def hidden(self, raw: int) -> tuple[int, int]:
        """(hidden tokens, spans) of a text of `raw` tokens."""
        tokens = min(max(round(raw * self.rate), 1), raw - 1)
        return tokens, min(max(round(tokens / self.mean_span), 1), raw - tokens)

    def sizes(self, length: int) -> Sizes:
        """The sizes of the longest text whose source fits into `length` tokens, its end token included.

        As in T5, sources of 512 tokens come from texts of 568 tokens and have targets of 114. Texts of one length fill
        their rows exactly.
        """
        fitting = None
        for raw in range(2, 2 + int(length / (1.0 - self.rate)) + 1):
            tokens, spans = self.hidden(raw)
            if raw - tokens + spans + 1 <= length:
                fitting = Sizes(raw, raw - tokens + spans + 1, tokens + spans + 1)
        if fitting is None:
            raise InputError(f"data.length = {length} has no room for span corruption; give 3 or more")
        return fitting

    def make(self, ids_R: np.ndarray, rng: np.random.Generator, marks: Marks) -> Pair:
        """The pair of a text.

        Args:
          ids_R: the text, R >= 2.
          rng: the random generator of the example.
          marks: with at least as many `sentinels` as spans.
        """
        N, M = self.hidden(len(ids_R))
        kept_M, hidden_M = _divided(len(ids_R) - N, M, rng), _divided(N, M, rng)
        is_hidden_R = np.repeat(np.tile([False, True], M), np.stack([kept_M, hidden_M], axis=1).reshape(-1))
        ends_M = np.cumsum(kept_M)
        source = np.insert(ids_R[~is_hidden_R], ends_M, marks.sentinels[:M])
        target = np.insert(ids_R[is_hidden_R], np.cumsum(hidden_M) - hidden_M, marks.sentinels[:M])
        return Pair(marks.frame(source), marks.frame(target))

    def restore(self, source: np.ndarray, target: np.ndarray, marks: Marks) -> np.ndarray:
        """The source with each sentinel replaced by the tokens that follow it in the target.

        Args:
          source: from `make`.
          target: from `make`, or generated by a model; a sentinel that it lacks is kept.
          marks: as for `make`.
        """
        given, made = marks.unframe(source), marks.unframe(target)
        at = np.flatnonzero(np.isin(made, marks.sentinels))
        fills = {int(part[0]): part[1:] for part in np.split(made, at)[1:]}
        parts = [fills.get(token, np.array([token])) for token in given.tolist()]
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def _divided(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """The sizes of `parts` parts of `items` items, int64, each at least 1, drawn uniformly."""
    borders = np.sort(rng.permutation(items - 1)[: parts - 1]) + 1
    return np.diff(borders, prepend=0, append=items)


# ---- BART ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextInfilling:
    """BART's text infilling: one mask token replaces each span, and the sentences of the source are shuffled.

    round(rate * R) tokens are hidden. The lengths of spans are drawn from a Poisson distribution, and the last one is
    shortened so that the number is exact. A span of length 0 hides no token and inserts a mask. Each span is in a gap
    of its own between kept tokens, drawn uniformly, so that no two are adjacent; fairseq draws their first tokens, so
    that spans may merge. A sentence ends after tokens of `Marks.ends_sentence`, several in a row counting as one end
    ("..."); the tokens after the last end are a sentence too. All sentences are permuted (fairseq's permute-sentences
    1.0).
    """

    rate: float = 0.3
    """Share of the tokens to hide."""
    mean_span: float = 3.0
    """lambda of the Poisson distribution; 3.5 in fairseq's released settings."""
    permute_sentences: bool = True
    """Shuffle the sentences of the source."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise InputError(f"objective.rate = {self.rate}: must be 0 or more and below 1")
        if self.mean_span <= 0.0:
            raise InputError(f"objective.mean_span = {self.mean_span}: must be above 0")

    def sizes(self, length: int) -> Sizes:
        """The sizes for rows of `length` tokens: either side can hold the whole text and its two special tokens."""
        if length < 4:
            raise InputError(f"data.length = {length} has no room for text infilling; give 4 or more")
        return Sizes(length - 2, length, length)

    def make(self, ids_R: np.ndarray, rng: np.random.Generator, marks: Marks) -> Pair:
        """The pair of a text.

        Args:
          ids_R: the text.
          rng: the random generator of the example.
          marks: with `begin`, `mask` and `ends_sentence`.
        """
        if marks.mask is None:
            raise ValueError("text infilling needs a mask token")
        permuted = ids_R
        if self.permute_sentences:
            sentences = split_sentences(ids_R, marks.ends_sentence)
            permuted = np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])
        N = round(self.rate * len(ids_R))
        sizes_M = self._spans(N, len(ids_R) - N + 1, rng)
        return Pair(marks.frame(_infilled(permuted, sizes_M, rng, marks.mask)), marks.frame(ids_R))

    def restore(self, source: np.ndarray, target: np.ndarray, marks: Marks) -> np.ndarray:
        """The text of the target; the source is not needed.

        Args:
          source: from `make`.
          target: from `make`, or generated by a model.
          marks: as for `make`.
        """
        return marks.unframe(target)

    def _spans(self, hidden: int, gaps: int, rng: np.random.Generator) -> np.ndarray:
        """The lengths of spans that hide `hidden` tokens, int64: at most `hidden` spans, and at most one per gap."""
        if hidden == 0:
            return np.zeros(0, np.int64)
        sizes = rng.poisson(self.mean_span, min(hidden, gaps))
        until = np.minimum(np.cumsum(sizes), hidden)
        until[-1] = hidden
        enough = int(np.argmax(until == hidden)) + 1
        return np.diff(until[:enough], prepend=0)


def _infilled(ids_R: np.ndarray, sizes_M: np.ndarray, rng: np.random.Generator, mask: int) -> np.ndarray:
    """The text with spans of these sizes replaced by masks, each in a gap between the K kept tokens."""
    K = len(ids_R) - int(sizes_M.sum())
    gaps_M = rng.permutation(K + 1)[: len(sizes_M)]  # gap k is before kept token k, gap K after the last
    order = np.argsort(gaps_M)
    gaps_M, sizes_M = gaps_M[order], sizes_M[order]
    starts_M = gaps_M + np.cumsum(sizes_M) - sizes_M
    hidden = np.repeat(starts_M - np.cumsum(sizes_M) + sizes_M, sizes_M) + np.arange(sizes_M.sum())
    return np.insert(np.delete(ids_R, hidden), gaps_M, mask)


def split_sentences(ids_R: np.ndarray, ends_sentence_V: np.ndarray) -> list[np.ndarray]:
    """The sentences of `ids_R`: split between a token that is in `ends_sentence_V` and one that is not."""
    ends_R = ends_sentence_V[ids_R]
    borders = np.flatnonzero(ends_R[:-1] & ~ends_R[1:]) + 1
    return np.split(ids_R, borders)


# ---- Prefix language modelling ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrefixLM:
    """Prefix language modelling: the text is split at a position drawn uniformly, and each side has at least one token.

    The two sides fill one of the two rows that they have: half of a batch is padding.
    """

    def sizes(self, length: int) -> Sizes:
        """The sizes for rows of `length` tokens: either side can hold the whole text but one token."""
        if length < 3:
            raise InputError(f"data.length = {length} has no room for a prefix and its continuation; give 3 or more")
        return Sizes(length - 1, length, length)

    def make(self, ids_R: np.ndarray, rng: np.random.Generator, marks: Marks) -> Pair:
        """The pair of a text.

        Args:
          ids_R: the text, R >= 2.
          rng: the random generator of the example.
          marks: the vocabulary's sentinel tokens and word starts.
        """
        at = int(rng.integers(1, len(ids_R)))
        return Pair(marks.frame(ids_R[:at]), marks.frame(ids_R[at:]))

    def restore(self, source: np.ndarray, target: np.ndarray, marks: Marks) -> np.ndarray:
        """The source followed by the target.

        Args:
          source: from `make`.
          target: from `make`, or generated by a model.
          marks: as for `make`.
        """
        return np.concatenate([marks.unframe(source), marks.unframe(target)])


Objective = SpanCorruption | TextInfilling | PrefixLM
