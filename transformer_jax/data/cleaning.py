"""A source of text without the documents that are not wanted: those that a filter refuses, and exact duplicates.

    Cleaned(Records(("c4/",)), filters=(Length(200, 100_000), Mine()), deduplicate=True)

A filter is a frozen dataclass of yours with `keeps(text) -> bool`. What each dropped is counted, by its type's name, in
the header of each token file and printed by `transformer-jax prepare`. Of equal texts of one side the first is kept.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from transformer_jax.contracts import Source
from transformer_jax.data import sources
from transformer_jax.errors import InputError


class Filter(Protocol):
    """Decides which documents are used: a frozen dataclass."""

    def keeps(self, text: str) -> bool:
        """Whether a document is used.

        Args:
          text: the whole document.
        """
        ...


@dataclass(frozen=True)
class Length:
    """Keeps documents of some lengths."""

    least: int = 1
    """The fewest characters."""
    most: int = 10_000_000
    """The most characters."""

    def keeps(self, text: str) -> bool:
        """Whether `text` has from `least` to `most` characters."""
        return self.least <= len(text) <= self.most


@dataclass(frozen=True)
class Cleaned:
    """Another source without some of its documents."""

    source: Source
    """The documents."""
    filters: tuple[Filter, ...] = ()
    """All of them must keep a document."""
    deduplicate: bool = True
    """Drop a document whose text is that of an earlier one."""

    def __post_init__(self) -> None:
        for one in self.filters:
            if not callable(getattr(one, "keeps", None)):
                raise InputError(f"Cleaned.filters has a {type(one).__name__}, which has no keeps(text); define it")

    def of_files(self, files: tuple[str, ...]) -> Any:
        return sources.of_files(files)

    def documents(self, split: sources.Split) -> sources.Documents:
        """The documents of a side that all filters keep.

        Args:
          split: "train" or "validation".
        """
        made = self.source.documents(split)
        parts, dropped = made.parts, Counter[str]()
        return dataclasses.replace(
            made,
            read=functools.partial(_kept, made.read, self.filters, dropped, made.dropped),
            identity=lambda: f"{made.identity()} {self.filters!r} {self.deduplicate}",
            parts=None if parts is None else lambda: [self._part(part) for part in parts()],
            deduplicate=self.deduplicate or made.deduplicate,
            dropped=dropped,
        )

    def _part(self, part: sources.Part) -> sources.Part:
        dropped = Counter[str]()
        read = functools.partial(_kept, part.read, self.filters, dropped, part.dropped)
        return dataclasses.replace(part, read=read, dropped=dropped)


def _kept(
    read: Callable[[], Iterable[tuple[str, str]]],
    filters: tuple[Filter, ...],
    dropped: Counter[str],
    dropped_before: Counter[str],
) -> Iterator[tuple[str, str]]:
    """The documents that all filters keep. `dropped` counts the others, and what the source itself has dropped."""
    dropped.clear()
    for name, text in sources.whole(read()):
        refused = next((one for one in filters if not one.keeps(text)), None)
        if refused is None:
            yield name, text
        else:
            dropped[type(refused).__name__] += 1
    dropped.update(dropped_before)
