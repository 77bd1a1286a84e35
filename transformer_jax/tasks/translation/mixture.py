"""Several sources of pairs in one model, each with its own prefix, as T5's multi-task training.

Mixture(
    sources=(Cldr("en", "de"), Cldr("en", "fr")),
    names=("de", "fr"),
    prefixes=("translate English to German: ", "translate English to French: "),
)
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from transformer_jax.data import mixtures
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError
from transformer_jax.tasks.translation.bitext import Pair, Pairs, Source


@dataclass(frozen=True)
class Mixture:
    """A source of sources. A row of a batch has pairs of one source; each source has scores of its own as well."""

    sources: tuple[Source, ...]
    """The sources of pairs."""
    names: tuple[str, ...]
    """Their names in the report."""
    prefixes: tuple[str, ...] = ()
    """The text before every source text of each; (): none."""
    rates: tuple[float, ...] = ()
    """The share of the rows that each gives; (): by the number of its pairs, `limit` and `temperature`."""
    limit: int = 0
    """A source with more pairs counts as one of so many (T5's K); 0: no limit."""
    temperature: float = 1.0
    """Shares are proportional to size ** (1 / temperature); 1: to the size, large values: equal."""

    def __post_init__(self) -> None:
        count = len(self.sources)
        if count < 2 or len(self.names) != count or len(set(self.names)) != count:
            raise InputError(
                f"Mixture: {count} sources with the names {self.names}; give two or more, each with a name"
            )
        for field in ("prefixes", "rates"):
            if len(getattr(self, field)) not in (0, count):
                raise InputError(f"Mixture.{field} has {len(getattr(self, field))} entries for {count} sources")
        if any(rate <= 0 for rate in self.rates):
            raise InputError(f"Mixture.rates = {self.rates}: each must be positive")
        if self.limit < 0 or self.temperature <= 0:
            raise InputError(
                f"Mixture.limit = {self.limit} must be 0 or more, temperature = {self.temperature} positive"
            )

    @property
    def has_test(self) -> bool:
        """Whether every source has a test set."""
        return all(source.has_test for source in self.sources)

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side: those of the first source, then those of the next.

        Args:
          side: "train", "validation" or "test".
        """
        found = [source.pairs(side) for source in self.sources]
        skipped: Counter[str] = Counter()
        prefixes = self.prefixes or ("",) * len(found)

        def read() -> Iterator[Pair]:
            for part, (pairs, prefix, name) in enumerate(zip(found, prefixes, self.names, strict=True)):
                for pair in pairs:
                    source = prefix + pair.source if pair.source.strip() else pair.source
                    yield Pair(source, pair.target, f"{name}: {pair.where}", part)
            skipped.clear()  # the parts know their counts when they have been read
            for pairs in found:
                skipped.update(pairs.skipped)

        identities = [f"{prefix!r} {pairs.identity()}" for prefix, pairs in zip(prefixes, found, strict=True)]
        shares = self.rates
        if not shares:
            sizes = [sum(1 for _ in pairs) for pairs in found]
            shares = mixtures.rates(sizes, limit=self.limit, temperature=self.temperature)
        return Pairs(
            origin=" and ".join(pairs.origin for pairs in found),
            read=read,
            identity=lambda: hashlib.sha256(repr(identities).encode()).hexdigest(),
            nbytes=sum(pairs.nbytes for pairs in found),
            skipped=skipped,
            names=self.names,
            rates=shares,
        )
