"""Mixtures: how often each of several sources is read, and which row of which source is row n.

rates = mixtures.rates((60_000, 500), limit=10_000, temperature=2.0)
order = mixtures.Order((4000, 120), rates, seed=0)      # endless; order[n] is a row of all sources, one after another
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_jax.data import pipeline
from transformer_jax.errors import InputError
from transformer_jax.objectives import generator

BLOCK = 1000  # rows in which every source has its share exactly, up to rounding


def rates(sizes: Sequence[int], *, limit: int = 0, temperature: float = 1.0) -> tuple[float, ...]:
    """The share of each source (Raffel et al. 2020, section 3.5.2): proportional to min(size, limit) ** (1 / T).

    Args:
      sizes: examples of each source.
      limit: K, the artificial size at which a source counts as no larger; 0: none.
      temperature: T; 1: proportional, large: equal shares.
    """
    counted = np.array([min(size, limit or size) for size in sizes], np.float64) ** (1 / temperature)
    return tuple((counted / counted.sum()).tolist())


@dataclass(frozen=True)
class Order(Sequence[int]):
    """An endless sequence of rows: row n's source, and its row, are a pure function of (seed, n).

    A block of BLOCK rows has a fixed number of each source, in an order that is shuffled by the seed and the block. The
    rows of a source are those of `pipeline.epochs`: each once per epoch of that source, reshuffled every epoch.
    """

    sizes: tuple[int, ...]
    """Rows of each source."""
    rates: tuple[float, ...]
    """The share of each."""
    seed: int

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.rates) or not all(self.sizes) or min(self.rates) <= 0:
            raise InputError(f"a mixture of {self.sizes} rows with rates {self.rates}: each source needs both")

    def __len__(self) -> int:
        return sys.maxsize

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """int64: the rows of each source in a block, at least 1, by the largest remainders."""
        shares = np.array(self.rates) / sum(self.rates) * BLOCK
        counts = np.maximum(np.floor(shares).astype(np.int64), 1)
        for source in np.argsort(counts - shares, kind="stable")[: max(BLOCK - counts.sum(), 0)]:
            counts[source] += 1
        return counts

    @functools.cached_property
    def _rows(self) -> list[Sequence[int]]:
        return [pipeline.epochs(size, self.seed + number) for number, size in enumerate(self.sizes)]

    def source(self, n: int) -> tuple[int, int]:
        """(the source of row n, how many rows of this source come before it).

        Args:
          n: the row, from 0.
        """
        block, at = divmod(n, int(self.counts.sum()))
        sources, before = _shuffled(tuple(self.counts.tolist()), self.seed, block)
        source = int(sources[at])
        return source, block * int(self.counts[source]) + int(before[at])

    def __getitem__(self, n: Any) -> Any:
        source, number = self.source(n)
        return sum(self.sizes[:source]) + self._rows[source][number]


@functools.lru_cache(maxsize=8)
def _shuffled(counts: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each row of a block, and how many rows of this source are before it in the block."""
    sources = generator(seed, block).permutation(np.repeat(np.arange(len(counts)), counts))
    before = np.zeros(len(sources), np.int64)
    for source, count in enumerate(counts):
        before[sources == source] = np.arange(count)
    return sources, before
