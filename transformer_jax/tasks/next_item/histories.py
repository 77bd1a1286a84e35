"""Histories of users as random-access examples: which item comes next?

An example has fixed shapes:

    {"tokens": int32[T], "targets": int32[T], "weights": float32[T], "popularity": float32[T],
     "seen": int32[S]}                                                          where seen items are left out

"tokens" are the ids of a history, padded on the right with 0; "targets" the item after each of them, or with masks the
item under each mask; "popularity" the log-probability of each target by its share of the training events. In a set
that is evaluated only the last position has a weight.

Letters: B rows, T length, S seen items, U users, E events, N rows of a set, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from transformer_jax import objectives
from transformer_jax.data import interactions, pipeline
from transformer_jax.data.interactions import Interactions
from transformer_jax.data.tokenizers.items import FIRST, ItemTokenizer
from transformer_jax.errors import InputError
from transformer_jax.objectives import masking

SplitBy = Literal["leave_one_out", "by_time"]
LAST_ONLY = 0.1  # the share of masked training rows that hide only the last item, as prediction does (Sun et al. 2019)


@dataclass(frozen=True)
class Histories:
    """The data of a recommender: the events, how they are split, the length of a history."""

    source: interactions.Source
    """The events."""
    length: int = 50
    """T, the latest items of a history that the model reads; of longer ones every part is trained on."""
    split: SplitBy = "leave_one_out"
    """leave_one_out: each user's last item is the test, the one before it validates. by_time: two borders in time, and
    after each the first item of every user who was there before."""
    held_out: float = 0.1
    """The share of events after each of the two borders of by_time."""
    min_user: int = 5
    """Users with fewer events are dropped."""
    min_item: int = 5
    """Items with fewer events are dropped."""
    longest: int = 1000
    """S, events of a user at most where seen items are left out."""

    def __post_init__(self) -> None:
        if self.split not in get_args(SplitBy):
            raise InputError(f"data.split = {self.split!r}: must be one of {', '.join(get_args(SplitBy))}")
        if not 0.0 < self.held_out < 0.5:
            raise InputError(f"data.held_out = {self.held_out}: must be above 0 and below 0.5")
        for name in ("length", "min_user", "min_item", "longest"):
            if getattr(self, name) < (2 if name == "length" else 1):
                raise InputError(f"data.{name} = {getattr(self, name)} is too small")


@dataclass(frozen=True, eq=False)
class Cases:
    """What is asked: the item of each of these events, from the user's events before it."""

    firsts: np.ndarray
    """int64 [N]: the user's first event."""
    at: np.ndarray
    """int64 [N]: the event."""


@dataclass(frozen=True, eq=False)
class Sides:
    """The events of a source, divided."""

    made: Interactions
    items: np.ndarray
    """int32 [E]: the ids of the events' items."""
    train_ends: np.ndarray
    """int64 [U]: one past the last training event of each user."""
    validation: Cases
    test: Cases
    tokenizer: ItemTokenizer
    facts: dict[str, Any]

    def popularity(self, vocab_size: int) -> np.ndarray:
        """float32 [V]: the log-probability of each id by its share of the training events, each plus one."""
        counts_V = np.bincount(self.items[self.in_training()], minlength=vocab_size).astype(np.float64)
        counts_V[FIRST : self.tokenizer.vocab_size] += 1
        with np.errstate(divide="ignore"):
            return np.log(counts_V / counts_V.sum()).astype(np.float32)

    def in_training(self) -> np.ndarray:
        """bool [E]."""
        user_E = np.repeat(np.arange(self.made.users), np.diff(self.made.starts))
        return np.arange(len(self.items)) < self.train_ends[user_E]


def divide(data: Histories, tokenizer: ItemTokenizer | None = None) -> Sides:
    """The events of `data` and which of them are trained on and asked for.

    Args:
      data: the source, the split, and how many events a user and an item need.
      tokenizer: the vocabulary that a model was trained with, whose items alone are kept; None: all items.

    Raises:
      InputError: no events, or none that can be asked for.
    """
    made = interactions.read(data.source, min_user=data.min_user, min_item=data.min_item)
    tokenizer, facts = tokenizer or ItemTokenizer(made.keys, made.titles), dict(made.facts)
    ids = np.array([tokenizer.known_key(key) for key in made.keys], np.int32)[made.items]
    if not (ids > 0).all():
        facts["events_of_unknown_items"] = int((ids == 0).sum())
        kept = np.append(0, np.cumsum(ids > 0))
        starts = np.unique(kept[made.starts])  # without users that have no known item
        if len(starts) < 2:
            raise InputError(f"{made.origin}: none of its items is known to the model; name the files it was made for")
        made = Interactions(made.origin, made.keys, made.titles, made.items[ids > 0], made.times[ids > 0], starts)
        ids = ids[ids > 0]
    leave = _leave_one_out if data.split == "leave_one_out" else _by_time
    train_ends, validation, test, more = leave(made, data)
    return Sides(made, ids, train_ends, validation, test, tokenizer, facts | more)


def _leave_one_out(made: Interactions, data: Histories) -> tuple[np.ndarray, Cases, Cases, dict[str, Any]]:
    firsts, ends = made.starts[:-1], made.starts[1:]
    asked = ends - firsts >= 3
    if not asked.any():
        longest = (ends - firsts).max()
        events = "1 event" if longest == 1 else f"{longest} events"
        raise InputError(
            f"{made.origin}: the longest history has {events}, but leave-one-out needs 3: to "
            " train, to validate and to test; check the column of the user, or give --data.split by_time"
        )
    facts = {"users_too_short_to_be_asked": int((~asked).sum())} if not asked.all() else {}
    train_ends = np.where(asked, ends - 2, ends)
    return train_ends, Cases(firsts[asked], ends[asked] - 2), Cases(firsts[asked], ends[asked] - 1), facts


def _by_time(made: Interactions, data: Histories) -> tuple[np.ndarray, Cases, Cases, dict[str, Any]]:
    borders = np.quantile(made.times, [1 - 2 * data.held_out, 1 - data.held_out])
    firsts, ends = made.starts[:-1], made.starts[1:]
    user_E = np.repeat(np.arange(made.users), ends - firsts)
    before = [firsts + np.bincount(user_E[made.times < border], minlength=made.users) for border in borders]
    facts: dict[str, Any] = {}
    cases = []
    for name, start, end in (("validation", before[0], before[1]), ("test", before[1], ends)):
        present, known = end > start, start > firsts
        cases.append(Cases(firsts[present & known], start[present & known]))
        if cold := int((present & ~known).sum()):
            facts[f"cold_users_of_{name}_not_asked"] = cold
        if not len(cases[-1].at):
            raise InputError(
                f"{made.origin}: by time, no user of the {name} events was there before; the times are "
                f"{made.times.min():g} to {made.times.max():g}: check the column of the time, raise --data.held-out, "
                "or give --data.split leave_one_out"
            )
    return before[0], cases[0], cases[1], facts


# ---- Examples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Examples(pipeline.StackedExamples):
    """Random-access examples of one side."""

    items: np.ndarray
    """int32 [E]: ids."""
    los: np.ndarray
    """int64 [N]: the first event of each row."""
    his: np.ndarray
    """int64 [N]: one past its last event."""
    order: Sequence[int]
    length: int
    popularity: np.ndarray
    """float32 [V]."""
    masks: masking.Masking | None
    """What is hidden; None: each item is asked from those before it."""
    asked: Cases | None = None
    """Of a set that is evaluated."""
    longest: int = 0
    """S; 0: there is no "seen"."""
    seed: int = 0

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""
        rows_B = np.array([self.order[i] for i in numbers], np.int64)
        lo_B, hi_B = self.los[rows_B], self.his[rows_B]
        ahead = 0 if self.masks else 1
        length_B = hi_B - lo_B - ahead
        column_T = np.arange(self.length)
        inside_BT = column_T < length_B[:, None]
        at_BT = np.where(inside_BT, lo_B[:, None] + column_T, 0)
        tokens_BT = np.where(inside_BT, self.items[at_BT], 0).astype(np.int32)
        targets_BT = np.where(inside_BT, self.items[at_BT + ahead], 0).astype(np.int32)
        is_last_BT = column_T == length_B[:, None] - 1
        weights_BT = inside_BT if self.asked is None else is_last_BT
        if self.masks and self.asked is None:
            hidden_BT = np.stack([self._hidden(i, int(n)) for i, n in zip(numbers, length_B, strict=True)])
            tokens_BT, weights_BT = np.where(hidden_BT, 1, tokens_BT), hidden_BT
        elif self.masks:
            tokens_BT = np.where(is_last_BT, 1, tokens_BT)
        made = {
            "tokens": tokens_BT,
            "targets": targets_BT,
            "weights": weights_BT.astype(np.float32),
            "popularity": np.where(weights_BT, self.popularity[targets_BT], 0).astype(np.float32),
        }
        if self.longest:
            made["seen"] = np.zeros((len(rows_B), self.longest), np.int32)
            for b, row in enumerate(rows_B if self.asked is not None else ()):
                before = np.unique(self.items[self.asked.firsts[row] : self.asked.at[row]])  # type: ignore[union-attr]
                made["seen"][b, : len(before)] = before
        return made

    def _hidden(self, number: int, length: int) -> np.ndarray:
        """bool [T]: which items of a training row are under a mask, by (seed, example) alone."""
        assert self.masks is not None
        rng = objectives.generator(self.seed, number, 0)
        hidden_T = np.zeros(self.length, bool)
        if rng.random() < LAST_ONLY:
            hidden_T[length - 1] = True
        else:
            hidden_T[rng.permutation(length)[: max(1, round(self.masks.rate * length))]] = True
        return hidden_T


def windows(firsts: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(first event, one past the last) int64 [N] of training rows: a history from its end, `length` targets each.

    Args:
      firsts: int64 [U], the first event of each user.
      ends: int64 [U], one past the last that is trained on.
      length: the length of a row.
    """
    counts = np.where(ends - firsts >= 2, -(-(ends - firsts - 1) // length), 0)
    user_N = np.repeat(np.arange(len(firsts)), counts)
    back_N = np.arange(len(user_N)) - np.repeat(np.cumsum(counts) - counts, counts)
    his = ends[user_N] - back_N * length
    return np.maximum(his - length - 1, firsts[user_N]), his


def training(
    sides: Sides, data: Histories, masks: masking.Masking | None, popularity: np.ndarray, *, seed: int, longest: int
) -> Examples:
    """The endless training rows.

    Args:
      sides: the result of `divide`.
      data: the length.
      masks: what is hidden; None: each item is asked from those before it.
      popularity: the number of training events of each item, as `Sides.popularity` returns it.
      seed: the seed of their order and masks.
      longest: S; 0: there is no "seen".

    Raises:
      InputError: no user has two training events.
    """
    los, his = windows(sides.made.starts[:-1], sides.train_ends, data.length - 1 if masks else data.length)
    if not len(los):
        raise InputError(f"{sides.made.origin}: no user has two events to train on; check the columns and the split")
    order = pipeline.epochs(len(los), seed)
    return Examples(sides.items, los, his, order, data.length, popularity, masks, None, longest, seed)


def evaluation(
    sides: Sides, cases: Cases, data: Histories, masks: masking.Masking | None, popularity: np.ndarray, longest: int
) -> Examples:
    """The rows of a set that is evaluated; the arguments are those of `training`, and its `cases`."""
    los = np.maximum(cases.firsts, cases.at - (data.length - 1 if masks else data.length))
    if longest and (most := int((cases.at - cases.firsts).max())) > longest:
        raise InputError(
            f"{sides.made.origin}: a user has {most:,} events, more than data.longest = {longest:,}, so seen items "
            f"would not all be left out; give --data.longest {most}"
        )
    return Examples(sides.items, los, cases.at + 1, range(len(los)), data.length, popularity, masks, cases, longest)
