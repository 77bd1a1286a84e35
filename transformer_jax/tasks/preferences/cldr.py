"""Pairs of replies that every machine can generate: a date in a language, written right and wrong.

The wrong reply is another day, another language, or both.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError
from transformer_jax.tasks.chat import cldr
from transformer_jax.tasks.preferences.pairs import Pair, Ranked


@dataclass(frozen=True)
class CldrReplies:
    """Pairs of a right and a wrong date in the languages of Babel's CLDR; a date is on one side only."""

    languages: tuple[str, ...] = cldr.LANGUAGES
    """Locales of Babel."""
    train: int = 5000
    """Training pairs."""
    validation: int = 500
    """Pairs that choose the checkpoint."""

    has_test = False

    def __post_init__(self) -> None:
        if self.train < 1 or self.validation < 1:
            raise InputError(f"data.source.train = {self.train}, validation = {self.validation}: must be 1 or more")

    def of_files(self, files: tuple[str, ...]) -> Ranked:
        return Ranked(files, validation=files)

    def pairs(self, side: Side) -> Sequence[Pair]:
        """The pairs of a side.

        Args:
          side: "train" or "validation".
        """
        count = self.train if side == "train" else self.validation
        rng = random.Random(f"replies {side}")
        known, made = cldr.locales(self.languages), []
        for number in range(1, count + 1):
            day, style, language = cldr.day_of(rng, side), rng.choice(("long", "full")), rng.choice(known)
            right = wrong = cldr.written(day, style, language)
            while wrong == right:
                other = rng.choice((day, cldr.day_of(rng, side)))
                wrong = cldr.written(other, style, rng.choice((language, rng.choice(known), "en")))
            asked = [{"role": "user", "content": cldr.question(day, style, language)}]
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in (right, wrong))
            made.append(Pair(asked, chosen, rejected, f"CLDR replies ({side}):{number}"))
        return made
