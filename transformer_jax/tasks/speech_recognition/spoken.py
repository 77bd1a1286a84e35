"""A data set that every machine can make: numbers and dates, spoken by espeak-ng.

    source = SpokenNumbers()
    for one in source.utterances("test").held: ...     # one.text, one.sound int16 [W] at 16 kHz

Sixteen voices, of eight accents of English and eight timbres, with random rate and pitch. No text of the validation or
test set is in training. The test set has two parts: new texts in the voices of training, "new_texts", and in two voices
that training does not have, "new_voices".
"""

import random
from dataclasses import dataclass

from transformer_jax.data import source_files
from transformer_jax.errors import InputError
from transformer_jax.tasks.speech_recognition import espeak, recordings
from transformer_jax.tasks.speech_recognition.utterances import Side, Source, Utterance, Utterances

ACCENTS = ("en", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
VOICES = tuple(
    f"{accent}+{timbre}"
    for i, accent in enumerate(ACCENTS)
    for timbre in (("m1", "m2", "m3", "m4")[i % 4], ("f1", "f2", "f3", "f4")[(i + i // 4) % 4])
)
NEW_VOICES = ("en-us+m7", "en-gb-x-rp+f5")
RATES, PITCHES = (130, 220), (20, 80)

TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
ONES = ("", *f"one two three four five six seven eight nine {TEENS}".split())
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
IRREGULAR |= {"twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"}


@dataclass(frozen=True)
class SpokenNumbers(Source):
    """Numbers from 0 to 9,999 and dates in words, spoken by espeak-ng.

    With one voice, for synthesis, every utterance has that voice, its usual pitch and one rate.
    """

    train: int = 4000
    """Training utterances."""
    validation: int = 200
    """Utterances of new texts that choose the checkpoint."""
    test: int = 200
    """Utterances of each part of the test set."""
    voice: str = ""
    """The only voice; empty: all."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 1:
                raise InputError(f"data.source.{name} = {getattr(self, name)}: must be 1 or more")

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return True

    def of_files(self, files: tuple[str, ...]) -> "recordings.Recordings":
        return recordings.Recordings(files, files)

    def utterances(self, side: Side) -> Utterances:
        """The utterances of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: espeakng_loader is not installed.
        """
        lines = self.lines()
        spoken = espeak.speak([line for _, _, line in lines])
        own = [(part, line, sound) for (of, part, line), sound in zip(lines, spoken, strict=True) if of == side]
        origin = f"spoken numbers ({side})"
        held = [
            Utterance(sound, line.text, f"{origin}:{number}", part) for number, (part, line, sound) in enumerate(own, 1)
        ]
        parts = ("new_texts", "new_voices") if side == "test" and not self.voice else ()
        return Utterances(origin, held, parts)

    def lines(self) -> list[tuple[Side, int, espeak.Line]]:
        """(side, part, line) of every utterance, in the order in which they are spoken."""
        rng = random.Random(0)
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        texts: dict[str, list[str]] = {side: [] for side in counts}
        seen: set[str] = set()
        while any(len(texts[side]) < count for side, count in counts.items()):
            text = number(rng.randrange(10_000)) if rng.random() < 0.5 else date(rng)
            share = source_files.position(text)  # a text is on one side only
            side = "test" if share < 0.08 else "validation" if share < 0.16 else "train"
            if len(texts[side]) < counts[side] and (side == "train" or text not in seen):
                texts[side].append(text)
                seen.add(text)
        found = [(side, 0, self._line(rng, VOICES, text)) for side in texts for text in texts[side]]
        if not self.voice:
            found += [("test", 1, self._line(rng, NEW_VOICES, text)) for text in texts["test"]]
        return found  # type: ignore[return-value]

    def _line(self, rng: random.Random, voices: tuple[str, ...], text: str) -> espeak.Line:
        voice, rate, pitch = rng.choice(voices), rng.randint(*RATES), rng.randint(*PITCHES)
        return espeak.Line(self.voice, 150, 50, text) if self.voice else espeak.Line(voice, rate, pitch, text)


def number(n: int) -> str:
    """A whole number from 0 to 9,999 in words: "seven thousand three hundred and five".

    Args:
      n: the number.
    """
    if n == 0:
        return "zero"
    thousands, hundreds, rest = n // 1000, n // 100 % 10, n % 100
    words = [f"{ONES[thousands]} thousand"] if thousands else []
    words += [f"{ONES[hundreds]} hundred"] if hundreds else []
    words += ["and"] if words and rest else []
    return " ".join([*words, _below_hundred(rest)]).strip()


def _below_hundred(n: int) -> str:
    return ONES[n] if n < 20 else f"{TENS[n // 10]} {ONES[n % 10]}".strip()


def date(rng: random.Random) -> str:
    """A date in words: "thursday the seventh of may nineteen eighty four".

    Args:
      rng: draws it.
    """
    *tens, last = _below_hundred(rng.randint(1, 31)).split()
    day = " ".join([*tens, IRREGULAR.get(last, f"{last}th")])
    year = f"{_below_hundred(rng.choice((18, 19, 20)))} {_below_hundred(rng.randint(11, 99))}"
    return f"{rng.choice(DAYS)} the {day} of {rng.choice(MONTHS)} {year}"
