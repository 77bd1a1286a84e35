"""Conversations that every machine can generate: how dates are written in many languages, asked in turns.

    user       How is Thursday, May 7, 2026 written in French?
    assistant  jeudi 7 mai 2026
    user       And in Polish?
    assistant  czwartek, 7 maja 2026
    user       And Sunday, June 2, 1985?
    assistant  niedziela, 2 czerwca 1985

The formats are those of the Unicode CLDR, which Babel packages. A date is on one side only, so no reply of a test
conversation occurs in training. A follow-up leaves out the language or the date, which is a turn or two before it.
"""

import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformer_jax import extras
from transformer_jax.data import conversations, source_files
from transformer_jax.data.conversations import Conversation, Message
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError

LANGUAGES = (
    *("bg", "cs", "da", "de", "el", "es", "et", "fi", "fr", "hr", "hu", "id", "it", "lt", "lv", "nb", "nl", "pl"),
    *("pt", "ro", "ru", "sk", "sl", "sv", "tr", "uk"),
)
FIRST, DAYS = datetime.date(1900, 1, 1), 73_000  # 200 years
HELD_OUT = 0.1  # the share of the days of each of validation and test


@dataclass(frozen=True)
class CldrDates:
    """Conversations about dates in the languages of Babel's CLDR."""

    languages: tuple[str, ...] = LANGUAGES
    """Locales of Babel, such as "de", "pt_BR" and "zh_Hant"."""
    turns: int = 3
    """Questions of a conversation."""
    train: int = 20_000
    """Training conversations."""
    validation: int = 300
    """Conversations that choose the checkpoint."""
    test: int = 500
    """Conversations that the chosen checkpoint is reported on."""

    has_test = True

    def __post_init__(self) -> None:
        for name in ("turns", "train", "validation", "test"):
            if getattr(self, name) < 1:
                raise InputError(f"data.source.{name} = {getattr(self, name)}: must be 1 or more")
        if not self.languages:
            raise InputError("data.source.languages is empty; give locales such as de fr pl")

    def of_files(self, files: tuple[str, ...]) -> conversations.Messages:
        return conversations.Messages(files, validation=files)

    def conversations(self, side: Side) -> list[Conversation]:
        """The conversations of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: Babel is not installed, or lacks a language.
        """
        known = locales(self.languages)
        rng = random.Random(f"chats {side}")
        made = []
        for number in range(getattr(self, side)):
            messages = _conversation(rng, known, self.turns, side)
            made.append(Conversation(messages, f"CLDR dates ({side}):{number + 1}"))
        return made


def _conversation(rng: random.Random, known: list, turns: int, side: Side) -> list[Message]:
    day, style = day_of(rng, side), rng.choice(("long", "full"))
    language, messages = rng.choice(known), list[Message]()
    for turn in range(turns):
        if turn == 0:
            asked = question(day, style, language)
        elif rng.random() < 0.5:
            language = rng.choice([other for other in known if other != language] or known)
            asked = f"And in {name(language)}?"
        else:
            day = day_of(rng, side)
            asked = f"And {written(day, style, 'en')}?"
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": written(day, style, language)})
    return messages


def question(day: datetime.date, style: str, language: Any) -> str:
    """The first question of a conversation.

    Args:
      day: the date.
      style: "long" or "full".
      language: a locale of Babel.
    """
    return f"How is {written(day, style, 'en')} written in {name(language)}?"


def locales(languages: Sequence[str]) -> list[Any]:
    """Babel's locales.

    Args:
      languages: their names.

    Raises:
      InputError: Babel is not installed, or lacks a language.
    """
    extras.need("babel", "the dates of CLDR")
    import babel

    found = []
    for language in languages:
        try:
            found.append(babel.Locale.parse(language))
        except (babel.UnknownLocaleError, ValueError):
            raise InputError(f"data.source.languages has {language!r}, which is no locale of Babel") from None
    return found


def day_of(rng: random.Random, side: Side) -> datetime.date:
    """A random day of a side, by a hash of the day.

    Args:
      rng: draws it.
      side: "train", "validation" or "test".
    """
    while True:
        day = FIRST + datetime.timedelta(rng.randrange(DAYS))
        share = source_files.position(day.isoformat())
        if side == ("test" if share < HELD_OUT else "validation" if share < 2 * HELD_OUT else "train"):
            return day


def name(language: Any) -> str:
    """The English name of a locale.

    Args:
      language: a locale of Babel.
    """
    return language.get_display_name("en")


def written(day: datetime.date, style: str, language: Any) -> str:
    """A date as a language writes it.

    Args:
      day: the date.
      style: "long" or "full".
      language: a locale of Babel, or its name.
    """
    extras.need("babel", "the dates of CLDR")
    from babel import dates

    return dates.format_date(day, style, locale=language)
