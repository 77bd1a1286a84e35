"""Numbers of a recommender, by the rank of the right item among all items, and baselines that count.

The protocol decides these numbers more than the model: over a hundred sampled items the same model has three times the
hit rate (Krichene and Rendle 2020). Here the ranking is always full, and each name says so.

Letters: C cases, V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from transformer_jax.data.tokenizers.items import FIRST
from transformer_jax.tasks.next_item.histories import Cases, Sides

AT = (1, 5, 10, 20)
SCORES = 1 << 24  # the most scores of a baseline in memory at once
RECENCY = 0.3  # the weight of an item that was chosen right before, beside probabilities
WINDOW, DECAY = 5, 0.8  # steps that item-item counts, and how much less an item before it in the history weighs


def numbers(rank_C: np.ndarray, protocol: str) -> dict[str, float]:
    """Hit rate and NDCG at 1, 5, 10 and 20, and the mean reciprocal rank; each name ends in the protocol.

    With one right item per case NDCG at k is 1 / log2(1 + rank), or 0 beyond k.

    Args:
      rank_C: int, the rank of the right item in each of C cases, from 1.
      protocol: "full", or "full_unseen" where items of the history are no candidates.
    """
    rank_C = np.maximum(rank_C, 1)  # before a run, a trial report has ranks of 0
    scores: dict[str, float] = {}
    for k in AT:
        scores[f"hit_rate_{k}_{protocol}"] = float((rank_C <= k).mean())
        scores[f"ndcg_{k}_{protocol}"] = float(np.where(rank_C <= k, 1 / np.log2(1 + rank_C), 0).mean())
    return scores | {f"mrr_{protocol}": float((1 / rank_C).mean())}


def protocol(unseen: bool) -> str:
    """The end of the metrics' names; `unseen`: whether items of the history are no candidates."""
    return "full_unseen" if unseen else "full"


# ---- Baselines -----------------------------------------------------------------------------------------------------

Score = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Histories (ids, oldest first) -> float64 [histories, V]."""


def baselines(sides: Sides, cases: Cases, *, unseen: bool) -> dict[str, float]:
    """The hit rate and NDCG at 10 of popularity and of Markov chains, which only count.

    popularity         how often an item was chosen
    markov             P(next | the last item)
    markov_2_recency   and P(next | the last two), and how long ago the user chose the item
    item_item          how often an item followed within WINDOW steps, over the latest items of the history

    Args:
      sides: its training events are counted, those that the model is trained on. For the test too: its histories hold
        the item that validates, but neither the model nor a baseline learns from it.
      cases: what is asked.
      unseen: whether items of the history are no candidates.
    """
    counted = _Counted(sides)
    made: dict[str, float] = {}
    for name, score in (
        ("popularity", _popularity(counted)),
        ("markov", _markov(counted, orders=(1,))),
        ("markov_2_recency", _markov(counted, orders=(1, 2))),
        ("item_item", _item_item(counted)),
    ):
        found = numbers(_ranks(score, sides, cases, unseen), protocol(unseen))
        made |= {f"{name}_{key}": found[key] for key in found if key.startswith(("hit_rate_10_", "ndcg_10_"))}
    return made


class _Counted:
    """The training events, which a baseline counts.

    Attributes:
      items_E: the ids of all events.
      V: the size of the vocabulary.
      share_V: float64, how often each item was chosen; sums to 1.
    """

    def __init__(self, sides: Sides) -> None:
        self.items_E, self.V = sides.items.astype(np.int64), sides.tokenizer.vocab_size
        self._user_E = np.repeat(np.arange(sides.made.users), np.diff(sides.made.starts))
        self._inside_E = sides.in_training()
        counts_V = np.bincount(self.items_E[self._inside_E], minlength=self.V)
        self.share_V = counts_V / counts_V.sum()

    def steps(self, apart: int) -> np.ndarray:
        """int64: the events that are followed, `apart` events later, by another of the same user."""
        return np.flatnonzero(self._inside_E[apart:] & (self._user_E[apart:] == self._user_E[:-apart]))


def _ranks(score: Score, sides: Sides, cases: Cases, unseen: bool) -> np.ndarray:
    """int64 [C]: the rank of the right item; another item with an equal score counts as better."""
    V = sides.tokenizer.vocab_size
    rank_C, rows = np.empty(len(cases.at), np.int64), max(1, SCORES // V)
    for start in range(0, len(cases.at), rows):
        part = slice(start, start + rows)
        histories = [sides.items[lo:at] for lo, at in zip(cases.firsts[part], cases.at[part], strict=True)]
        scores = score(histories)
        right = sides.items[cases.at[part]]
        own = scores[np.arange(len(right)), right].copy()
        scores[:, :FIRST] = -np.inf
        for b, history in enumerate(histories if unseen else ()):
            scores[b, history] = -np.inf
            own[b] = scores[b, right[b]]
        rank = (scores >= own[:, None]).sum(1)
        rank_C[part] = np.where(np.isfinite(own), rank, V)
    return rank_C


def _popularity(counted: _Counted) -> Score:
    return lambda histories: np.repeat(counted.share_V[None], len(histories), 0)


def _markov(counted: _Counted, orders: Sequence[int]) -> Score:
    tables = []
    for order in orders:
        at = counted.steps(order)
        context = counted.items_E[at] if order == 1 else counted.items_E[at] * counted.V + counted.items_E[at + 1]
        names, rows = np.unique(context, return_inverse=True)
        shape = (len(names), counted.V)
        counts = scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, counted.items_E[at + order])), shape)
        tables.append((names, counts.multiply(1 / counts.sum(1)).tocsr()))

    def score(histories: Sequence[np.ndarray]) -> np.ndarray:
        scores = np.repeat(1e-3 * counted.share_V[None], len(histories), 0)
        for order, (names, table) in zip(orders, tables, strict=True):
            contexts = np.array([_context(history, order, counted.V) for history in histories])
            at = np.minimum(np.searchsorted(names, contexts), len(names) - 1)
            known = np.flatnonzero(names[at] == contexts)
            scores[known] += table[at[known]].toarray()
        for b, history in enumerate(histories if 2 in orders else ()):
            latest, ago = np.unique(history[::-1], return_index=True)
            scores[b, latest] += RECENCY / (1.0 + ago)
        return scores

    return score


def _context(history: np.ndarray, order: int, V: int) -> int:
    if len(history) < order:
        return -1
    return int(history[-1]) if order == 1 else int(history[-2]) * V + int(history[-1])


def _item_item(counted: _Counted) -> Score:
    found = [(counted.steps(apart), apart) for apart in range(1, WINDOW + 1)]
    values = np.concatenate([np.full(len(at), 1 / apart) for at, apart in found])
    before, after = (np.concatenate([counted.items_E[at + k * apart] for at, apart in found]) for k in (0, 1))
    counts = scipy.sparse.csr_matrix((values, (before, after)), (counted.V, counted.V))
    follows = counts.multiply(1 / np.maximum(counts.sum(1), 1e-9)).tocsr()

    def score(histories: Sequence[np.ndarray]) -> np.ndarray:
        latest = [history[: -WINDOW - 1 : -1] for history in histories]
        rows = np.repeat(np.arange(len(latest)), [len(one) for one in latest])
        weights = np.concatenate([DECAY ** np.arange(len(one)) for one in latest])
        read = scipy.sparse.csr_matrix((weights, (rows, np.concatenate(latest))), (len(latest), counted.V))
        return (read @ follows).toarray() + 1e-6 * counted.share_V

    return score
