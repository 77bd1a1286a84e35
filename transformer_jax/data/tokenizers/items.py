"""Items of a recommender as a vocabulary: an id for each, beside those of padding and of the mask.

"Toy Story, Heat, 50" are three items, each by its name or its key. A name with a comma is written in quotes, as in CSV.
"""

import csv
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer_jax.data.tokenizers.special import Special, write_json
from transformer_jax.errors import InputError, nearest

FILE = "items.json"
FIRST = 2  # the id of the first item; padding is 0, the mask 1


@dataclass(frozen=True)
class ItemTokenizer:
    """The vocabulary of items: item i has the id i + 2."""

    keys: tuple[str, ...]
    """As the data name the items; distinct."""
    titles: tuple[str, ...]
    """As people name them."""

    bos_id = None
    eos_id = None
    special = Special(pad=0, mask=1)
    special_spellings = ()
    languages = None

    @property
    def target(self) -> "ItemTokenizer":
        return self

    @property
    def vocab_size(self) -> int:
        return FIRST + len(self.keys)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"items-1 " + json.dumps([self.keys, self.titles]).encode()).hexdigest()

    @property
    def continues(self) -> np.ndarray:
        return np.zeros(self.vocab_size, bool)

    @functools.cached_property
    def _id_of(self) -> dict[str, int]:
        """The ids of keys, and of titles that one item has and no other has as its key."""
        times = Counter(self.titles)
        ids = {title: i for i, title in enumerate(self.titles, FIRST) if times[title] == 1}
        return ids | {key: i for i, key in enumerate(self.keys, FIRST)}

    def known_key(self, key: str) -> int:
        """The id of the item that the data call `key`; 0 where it is not in the vocabulary."""
        id = self._id_of.get(key, 0)
        return id if id and self.keys[id - FIRST] == key else 0

    def known(self, text: str) -> tuple[list[int], list[str]]:
        """(ids of the items of a text that are in the vocabulary, those that are not).

        Args:
          text: keys or titles, with commas between them.
        """
        try:
            names = [name.strip() for row in csv.reader([text], skipinitialspace=True) for name in row if name.strip()]
        except csv.Error as error:
            raise InputError(f"{text!r} is no list of items ({error}); write a name with a comma in quotes") from None
        ids = [self._id_of[name] for name in names if name in self._id_of]
        return ids, [name for name in names if name not in self._id_of]

    def encode(self, text: str) -> np.ndarray:
        ids, unknown = self.known(text)
        if unknown:
            raise InputError(
                f"{unknown[0]!r} is none of the {len(self.keys):,} items{nearest(unknown[0], list(self._id_of))}"
            )
        return np.array(ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_prompt(self, text: str) -> np.ndarray:
        return np.array(self.known(text)[0], np.int32)  # an unknown item does not end a run at its end

    def decode(self, ids: Iterable[int]) -> str:
        return ", ".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        return (self.titles[i - FIRST] for i in map(int, ids) if FIRST <= i < self.vocab_size)

    def save(self, folder: str | os.PathLike[str]) -> None:
        write_json(Path(folder) / FILE, {"keys": list(self.keys), "titles": list(self.titles)})


def read(path: Path, given: object) -> ItemTokenizer:
    """The vocabulary in the object of an items.json.

    Args:
      path: names the file in messages.
      given: the object.

    Raises:
      InputError: it is not such a file.
    """
    lists = [given.get(name) for name in ("keys", "titles")] if isinstance(given, dict) else []
    if len(lists) != 2 or not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists):
        raise InputError(f"{path}: needs the lists of texts `keys` and `titles`; write it again with `save`")
    keys, titles = (tuple(x) for x in lists if x is not None)
    if not keys or len(keys) != len(titles) or len(set(keys)) < len(keys):
        raise InputError(f"{path}: `keys` must be distinct, and as many as `titles`; write it again with `save`")
    return ItemTokenizer(keys, titles)
