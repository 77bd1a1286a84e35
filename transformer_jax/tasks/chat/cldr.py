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
from dataclasses import dataclass

from transformer_jax import extras
from transformer_jax.data import conversations, sources
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
        extras.need("babel", "the dates of CLDR")
        import babel

        locales = []
        for name in self.languages:
            try:
                locales.append(babel.Locale.parse(name))
            except (babel.UnknownLocaleError, ValueError):
                raise InputError(f"data.source.languages has {name!r}, which is no locale of Babel") from None
        rng = random.Random(f"chats {side}")
        made = []
        for number in range(getattr(self, side)):
            messages = _conversation(rng, locales, self.turns, side)
            made.append(Conversation(messages, f"CLDR dates ({side}):{number + 1}"))
        return made


def _conversation(rng: random.Random, locales: list, turns: int, side: Side) -> list[Message]:
    day, style = _day(rng, side), rng.choice(("long", "full"))
    language, messages = rng.choice(locales), list[Message]()
    for turn in range(turns):
        if turn == 0:
            asked = f"How is {_written(day, style, 'en')} written in {_name(language)}?"
        elif rng.random() < 0.5:
            language = rng.choice([other for other in locales if other != language] or locales)
            asked = f"And in {_name(language)}?"
        else:
            day = _day(rng, side)
            asked = f"And {_written(day, style, 'en')}?"
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": _written(day, style, language)})
    return messages


def _day(rng: random.Random, side: Side) -> datetime.date:
    """A day of this side, by a hash of the day."""
    while True:
        day = FIRST + datetime.timedelta(rng.randrange(DAYS))
        share = sources.position(day.isoformat())
        if side == ("test" if share < HELD_OUT else "validation" if share < 2 * HELD_OUT else "train"):
            return day


def _name(locale: object) -> str:
    return locale.get_display_name("en")  # type: ignore[attr-defined]


def _written(day: datetime.date, style: str, locale: object) -> str:
    extras.need("babel", "the dates of CLDR")
    from babel import dates

    return dates.format_date(day, style, locale=locale)  # type: ignore[arg-type]
