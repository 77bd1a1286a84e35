"""Interactions: which user chose which item, and when. The data of recommenders.

    Table          .csv, .tsv, .jsonl, .parquet, .arrow with named columns, and RecBole's .inter

A user's own source implements `Source`. `read` orders the events of each user by time and keeps the k-core: users and
items with enough events, counted until nothing changes.

Letters: E events, U users, I items.
"""

import datetime
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from transformer_jax.data import records, remote, source_files
from transformer_jax.errors import InputError

SUFFIXES = records.SUFFIXES
OPTIONS = "--data.source.user, --data.source.item and --data.source.time"


class Event(NamedTuple):
    """A user chose an item. `time` is any number that increases; events of equal time are in the order they are read.

    Attributes:
      user: a key.
      item: a key.
      time: in any unit.
    """

    user: str
    item: str
    time: float


class Source(Protocol):
    """A source of events: a frozen dataclass.

    A source may also have `titles()`, {item: its name for people}; an item without one is named by its key.
    """

    def events(self, skipped: Counter[str]) -> Iterable[Event]:
        """The events, in any order of users.

        Args:
          skipped: counts what was skipped, by reason.
        """
        ...


@dataclass(frozen=True)
class Table(Source):
    """Files of events with named columns. RecBole's columns, "user_id:token", are named without their type."""

    files: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs."""
    user: str = "user_id"
    """The column of the user."""
    item: str = "item_id"
    """The column of the item."""
    time: str = "timestamp"
    """The column of the time: a number, or a date as ISO 8601 writes it; empty: the order of the rows."""
    names: str = ""
    """A file with a row for each item, which names it; empty: an item is named by its key."""
    name: str = "title"
    """The column of the name in that file, whose column of the item is called as above."""

    def __post_init__(self) -> None:
        if isinstance(self.files, str):
            object.__setattr__(self, "files", (self.files,) if self.files else ())
        if not self.files:
            raise InputError("Table(files=()) names no file; give files, folders or globs with --data.source.files")

    def of_files(self, files: tuple[str, ...]) -> "Table":
        return Table(files, self.user, self.item, self.time, self.names, self.name)

    def events(self, skipped: Counter[str]) -> Iterator[Event]:
        """The events of the files, in their order.

        Args:
          skipped: counts blank lines.
        """
        columns = [column for column in (self.user, self.item, self.time) if column]
        for _, path in source_files.find_files(self.files, "train", SUFFIXES, skipped):
            for row, (line, record) in enumerate(records.read(path, headed=True, skipped=skipped, columns=columns)):
                where = f"{path}:{line}"
                user, item = key(record, self.user, where), key(record, self.item, where)
                yield Event(user, item, _time(record, self.time, where) if self.time else float(row))

    def titles(self) -> Mapping[str, str]:
        """The names of the items, from the file `names`."""
        if not self.names:
            return {}
        file, found = remote.one(self.names), {}
        for line, record in records.read(file, headed=True, columns=(self.item, self.name)):
            where = f"{file}:{line}"
            found[key(record, self.item, where)] = key(record, self.name, where, "--data.source.name")
        return found


def key(record: dict[str, Any], column: str, where: str, options: str = OPTIONS) -> str:
    """The name of a user or item in a column of a record, as text.

    Args:
      record: one of `records.read`.
      column: its name.
      where: names the record in messages.
      options: the flags that choose the columns.

    Raises:
      InputError: no such column, or neither text nor a whole number.
    """
    inner, name = records.within(record, column, where, options)
    value = inner[name]
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text:
        shown = "nothing" if value is None or value == "" else repr(value)
        raise InputError(f"{where}: column {column!r} holds {shown}, not a name or a whole number; mend the row")
    return text


def _time(record: dict[str, Any], column: str, where: str) -> float:
    inner, name = records.within(record, column, where, OPTIONS)
    value = inner[name]
    try:
        if isinstance(value, str) and not _is_number(value):
            value = datetime.datetime.fromisoformat(value.strip())
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day)
        if isinstance(value, datetime.datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
        seconds = float(value)
    except (ValueError, TypeError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(
            f"{where}: column {column!r} holds {value!r}, neither a number nor a date such as 2026-11-29 or "
            '2026-11-29T12:30:00; mend it, or give --data.source.time "" for the order of the rows'
        )
    return seconds


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- All events of a source ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Interactions:
    """The events of a source, by user, those of a user by time."""

    origin: str
    """Names the events in messages."""
    keys: tuple[str, ...]
    """The items, sorted."""
    titles: tuple[str, ...]
    """Their names for people."""
    items: np.ndarray
    """int32 [E], numbers in `keys`."""
    times: np.ndarray
    """float64 [E]."""
    starts: np.ndarray
    """int64 [U + 1]: the first event of each user."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Counts to print."""

    @property
    def users(self) -> int:
        """U, the number of users."""
        return len(self.starts) - 1


def read(source: Source, *, min_user: int = 1, min_item: int = 1) -> Interactions:
    """The events of a source, without the users and items that have too few.

    Args:
      source: where the events are read.
      min_user: a user with fewer events is dropped.
      min_item: an item with fewer events is dropped. Both are counted again until nothing changes (the k-core).

    Raises:
      InputError: the source has no events, or none remain.
    """
    users_of: dict[str, int] = {}
    items_of: dict[str, int] = {}
    users, items, times = array("i"), array("i"), array("d")
    skipped: Counter[str] = Counter()
    for user, item, time in source.events(skipped):
        users.append(users_of.setdefault(user, len(users_of)))
        items.append(items_of.setdefault(item, len(items_of)))
        times.append(time)
    origin = f"the events of {type(source).__name__}({', '.join(getattr(source, 'files', ()))})"
    if not users:
        raise InputError(f"{origin}: there are none; name another file")
    user_E, item_E, time_E = np.array(users), np.array(items), np.array(times)
    kept_E = core(user_E, item_E, min_user, min_item)
    if not kept_E.any():
        most = np.bincount(user_E).max()
        raise InputError(
            f"{origin}: no user with {min_user} events of items with {min_item} is left, of {len(users):,} events; the "
            f"longest history has {most:,}; lower --data.min-user and --data.min-item"
        )
    order = np.lexsort((time_E[kept_E], user_E[kept_E]))  # stable: events of equal time stay in their order
    user_E, item_E, time_E = (x[kept_E][order] for x in (user_E, item_E, time_E))
    ties = int(((user_E[1:] == user_E[:-1]) & (time_E[1:] == time_E[:-1])).sum())
    names = list(items_of)
    present = sorted(np.unique(item_E).tolist(), key=lambda item: names[item])
    number_of = np.zeros(len(names), np.int32)
    number_of[present] = np.arange(len(present))
    named = getattr(source, "titles", None)
    titles: Mapping[str, str] = named() if named else {}
    keys = tuple(names[item] for item in present)
    starts = np.append(np.flatnonzero(np.append(True, user_E[1:] != user_E[:-1])), len(user_E))
    facts: dict[str, Any] = {"users": len(starts) - 1, "items": len(keys), "events": len(item_E)}
    facts |= {"events_dropped_as_rare": len(users) - len(item_E)} if len(users) > len(item_E) else {}
    facts |= {"events_at_the_time_of_the_one_before": ties} if ties else {}
    facts |= {"skipped": records.counted(skipped)} if skipped else {}
    return Interactions(
        origin, keys, tuple(titles.get(one, one) for one in keys), number_of[item_E], time_E, starts, facts
    )


def core(user_E: np.ndarray, item_E: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """bool [E]: the events of the largest set in which every user and every item has enough events.

    Args:
      user_E: numbers of users.
      item_E: numbers of items.
      min_user: events that a user has at least.
      min_item: events that an item has at least.
    """
    kept_E = np.ones(len(user_E), bool)
    while True:
        of_user = np.bincount(user_E[kept_E], minlength=user_E.max() + 1)
        of_item = np.bincount(item_E[kept_E], minlength=item_E.max() + 1)
        fewer_E = kept_E & (of_user[user_E] >= min_user) & (of_item[item_E] >= min_item)
        if (fewer_E == kept_E).all():
            return kept_E
        kept_E = fewer_E
