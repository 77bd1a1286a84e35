"""Text as a pair: a source with gaps, and a target that fills them.

    SpanCorruption    the source has a sentinel for each hidden span, the target the sentinels and what they hide
                      T5: Raffel et al. 2020, section 3.1.4, and their code (t5.data.preprocessors)
    TextInfilling     the source has one mask token for each hidden span, some of them empty, and its sentences are
                      shuffled; the target is the whole text
                      BART: Lewis et al. 2020, section 2.2, and their code (fairseq, DenoisingDataset)
    PrefixLM          the source is the beginning, the target the rest
                      Raffel et al. 2020, section 3.3.1, after Liu et al. 2018

Each is a value with three functions: `sizes(length)`, how long a text makes rows of which lengths; `make(ids, rng,
marks)`, the pair, a function of its arguments and the generator's state; and `restore(source, target, marks)`, the text
that a pair tells, or a source and what a model makes of it. Both sides come with the tokens that begin and end them.

R tokens of the text, N of them hidden, K kept, M spans.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from transformer_jax.errors import InputError


class Sizes(NamedTuple):
    """raw: R, tokens of a text; source and target: the longest sides that its pair can have."""

    raw: int
    source: int
    target: int


class Pair(NamedTuple):
    """Both int32 and without padding."""

    source: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Marks:
    """The tokens of a vocabulary that mean something to an objective."""

    end: int
    """Ends both sides."""
    begin: tuple[int, ...] = ()
    """Stands before both sides: BART's <s>; T5 has none."""
    mask: int | None = None
    """Stands for a hidden span."""
    sentinels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32: stand for the first hidden span, the second, ..."""
    ends_sentence: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """bool [V]: a sentence may end after this token."""

    def frame(self, ids: np.ndarray) -> np.ndarray:
        """A side with what begins and ends it."""
        return np.concatenate([np.array(self.begin, np.int32), ids, np.array([self.end])]).astype(np.int32)

    def unframe(self, ids: np.ndarray) -> np.ndarray:
        """What is between the two, of a side that a model has made, too: it may lack the one or the other."""
        begun = len(self.begin) if tuple(ids[: len(self.begin)]) == self.begin else 0
        return ids[begun : len(ids) - (len(ids) > begun and ids[-1] == self.end)]


# ---- T5 ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpanCorruption:
    """Spans of tokens behind sentinels: round(rate * R) tokens in round(that / mean_span) spans, none empty, no two
    adjacent, the first behind a kept token and the last at the end; all such divisions are as likely as each other.

    Source: the kept tokens, a sentinel in place of each span. Target: each sentinel and its span's tokens. So is T5's
    code; the paper's figure 2 shows one more sentinel at the target's end, which the code does not write.
    """

    rate: float = 0.15
    """Share of the tokens that is hidden."""
    mean_span: float = 3.0
    """Hidden tokens over spans."""

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < 1.0:
            raise InputError(f"objective.rate = {self.rate}: must be above 0 and below 1")
        if self.mean_span < 1.0:
            raise InputError(f"objective.mean_span = {self.mean_span}: must be 1 or more")

    def hidden(self, raw: int) -> tuple[int, int]:
        """Of a text of `raw` tokens: how many are hidden, in how many spans."""
        tokens = min(max(round(raw * self.rate), 1), raw - 1)
        return tokens, min(max(round(tokens / self.mean_span), 1), raw - tokens)

    def sizes(self, length: int) -> Sizes:
        """The longest text of which the source fits into `length` tokens; all texts of one length fill their rows.

        As T5's: sources of 512 are of texts of 568 tokens and have targets of 114. The one token of a frame is counted:
        T5 marks the end alone.
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
        """The pair of a text of two tokens or more; marks: `sentinels`, as many as there are spans."""
        N, M = self.hidden(len(ids_R))
        kept_M, hidden_M = _divided(len(ids_R) - N, M, rng), _divided(N, M, rng)
        is_hidden_R = np.repeat(np.tile([False, True], M), np.stack([kept_M, hidden_M], axis=1).reshape(-1))
        ends_M = np.cumsum(kept_M)
        source = np.insert(ids_R[~is_hidden_R], ends_M, marks.sentinels[:M])
        target = np.insert(ids_R[is_hidden_R], np.cumsum(hidden_M) - hidden_M, marks.sentinels[:M])
        return Pair(marks.frame(source), marks.frame(target))

    def restore(self, source: np.ndarray, target: np.ndarray, marks: Marks) -> np.ndarray:
        """The source's text with what follows each sentinel in the target; sentinels that are not in it stay."""
        given, made = marks.unframe(source), marks.unframe(target)
        at = np.flatnonzero(np.isin(made, marks.sentinels))
        fills = {int(part[0]): part[1:] for part in np.split(made, at)[1:]}
        parts = [fills.get(token, np.array([token])) for token in given.tolist()]
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)


def _divided(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Sizes of `parts` parts of `items` items, int64, each 1 or more; every such division is as likely."""
    cuts = np.sort(rng.permutation(items - 1)[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=items)


# ---- BART ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextInfilling:
    """Spans behind one mask token each, lengths by Poisson, in a text whose sentences are in random order.

    round(rate * R) tokens are hidden; the last span drawn is shortened so that it is exactly they. A span of length 0
    hides nothing and puts a mask between two tokens. Spans lie in gaps of their own between kept tokens, all choices of
    gaps as likely as each other: no two touch, whereas fairseq draws their first tokens and lets them run together. The
    shuffled sentences end where `Marks.ends_sentence` says, and before a token that does not (so "..." ends one); what
    is left after the last end is one too, and all of them move (fairseq's permute-sentences 1.0).
    """

    rate: float = 0.3
    """Share of the tokens that is hidden."""
    mean_span: float = 3.0
    """Lambda of the Poisson distribution; fairseq's released settings have 3.5."""
    permute_sentences: bool = True
    """Shuffle the source's sentences."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise InputError(f"objective.rate = {self.rate}: must be 0 or more and below 1")
        if self.mean_span <= 0.0:
            raise InputError(f"objective.mean_span = {self.mean_span}: must be above 0")

    def sizes(self, length: int) -> Sizes:
        """Both sides have room for the whole text between its first and its last token."""
        if length < 4:
            raise InputError(f"data.length = {length} has no room for text infilling; give 4 or more")
        return Sizes(length - 2, length, length)

    def make(self, ids_R: np.ndarray, rng: np.random.Generator, marks: Marks) -> Pair:
        """The pair of a text; marks: `begin`, `mask` and `ends_sentence`."""
        if marks.mask is None:
            raise ValueError("text infilling needs a mask token")
        seen = ids_R
        if self.permute_sentences:
            sentences = split_sentences(ids_R, marks.ends_sentence)
            seen = np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])
        N = round(self.rate * len(ids_R))
        sizes_M = self._spans(N, len(ids_R) - N + 1, rng)
        return Pair(marks.frame(_infilled(seen, sizes_M, rng, marks.mask)), marks.frame(ids_R))

    def restore(self, source: np.ndarray, target: np.ndarray, marks: Marks) -> np.ndarray:
        """The target's text."""
        return marks.unframe(target)

    def _spans(self, hidden: int, gaps: int, rng: np.random.Generator) -> np.ndarray:
        """Lengths of spans that hide `hidden` tokens together, int64: at most so many of them, and one a gap."""
        if hidden == 0:
            return np.zeros(0, np.int64)
        sizes = rng.poisson(self.mean_span, min(hidden, gaps))
        until = np.minimum(np.cumsum(sizes), hidden)
        until[-1] = hidden
        enough = int(np.argmax(until == hidden)) + 1
        return np.diff(until[:enough], prepend=0)


def _infilled(ids_R: np.ndarray, sizes_M: np.ndarray, rng: np.random.Generator, mask: int) -> np.ndarray:
    """The text with the spans of these sizes put into random gaps of what they leave, one mask each."""
    K = len(ids_R) - int(sizes_M.sum())
    gaps_M = rng.permutation(K + 1)[: len(sizes_M)]  # before kept token 0, 1, ..., K; sizes come in random order
    order = np.argsort(gaps_M)
    gaps_M, sizes_M = gaps_M[order], sizes_M[order]
    starts_M = gaps_M + np.cumsum(sizes_M) - sizes_M
    hidden = np.repeat(starts_M - np.cumsum(sizes_M) + sizes_M, sizes_M) + np.arange(sizes_M.sum())
    return np.insert(np.delete(ids_R, hidden), gaps_M, mask)


def split_sentences(ids_R: np.ndarray, ends_sentence_V: np.ndarray) -> list[np.ndarray]:
    """The text cut after each token that ends a sentence and before one that does not."""
    ends_R = ends_sentence_V[ids_R]
    cuts = np.flatnonzero(ends_R[:-1] & ~ends_R[1:]) + 1
    return np.split(ids_R, cuts)


# ---- Prefix language modelling ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrefixLM:
    """The text cut in two at a random place, all as likely: each side has a token at least.

    Together the two fill one row of the two that they are given: half of a batch is padding.
    """

    def sizes(self, length: int) -> Sizes:
        """Either side may be nearly the whole text."""
        if length < 3:
            raise InputError(f"data.length = {length} has no room for a prefix and its continuation; give 3 or more")
        return Sizes(length - 1, length, length)

    def make(self, ids_R: np.ndarray, rng: np.random.Generator, marks: Marks) -> Pair:
        """The pair of a text of two tokens or more."""
        at = int(rng.integers(1, len(ids_R)))
        return Pair(marks.frame(ids_R[:at]), marks.frame(ids_R[at:]))

    def restore(self, source: np.ndarray, target: np.ndarray, marks: Marks) -> np.ndarray:
        """The one after the other."""
        return np.concatenate([marks.unframe(source), marks.unframe(target)])


Objective = SpanCorruption | TextInfilling | PrefixLM
