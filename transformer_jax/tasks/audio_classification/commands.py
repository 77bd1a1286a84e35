"""A data set that every machine can make: twenty words, spoken by espeak-ng in many voices.

    source = SpokenCommands()
    for one in source.utterances("test").held: ...     # one.text, one.sound int16 [W] at 16 kHz

The voices of the validation set, and those of the test set, are in no other set. The test set has a second part, new
recordings in the voices of training, to compare with.
"""

import random
from dataclasses import dataclass

from transformer_jax.errors import InputError
from transformer_jax.tasks.speech_recognition import espeak, recordings, spoken
from transformer_jax.tasks.speech_recognition.utterances import Side, Source, Utterance, Utterances

# The core words of Speech Commands (Warden 2018), which its models of keywords tell apart.
WORDS = (
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
)
VALIDATION_VOICES = ("en-gb-x-gbclan+m5", "en-us-nyc+m6")
TEST_VOICES = (*spoken.NEW_VOICES, "en-gb-scotland+m8", "en+f5")


@dataclass(frozen=True)
class SpokenCommands(Source):
    """Twenty words in twenty-two voices, with random rate and pitch."""

    takes: int = 6
    """Recordings of each word in each voice."""

    def __post_init__(self) -> None:
        if self.takes < 1:
            raise InputError(f"data.source.takes = {self.takes}: must be 1 or more")

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return True

    def of_files(self, files: tuple[str, ...]) -> "recordings.Recordings":
        return recordings.Recordings(files, files, text="label")

    def classes(self) -> tuple[str, ...]:
        """The words."""
        return WORDS

    def utterances(self, side: Side) -> Utterances:
        """The recordings of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: espeakng_loader is not installed.
        """
        lines = self.lines()
        spoken = espeak.speak([line for _, _, line in lines])
        own = [(part, line, sound) for (of, part, line), sound in zip(lines, spoken, strict=True) if of == side]
        origin = f"spoken commands ({side})"
        held = [Utterance(sound, line.text, f"{origin}:{n}", part) for n, (part, line, sound) in enumerate(own, 1)]
        return Utterances(origin, held, ("new_voices", "known_voices") if side == "test" else ())

    def lines(self) -> list[tuple[Side, int, espeak.Line]]:
        """(side, part, line) of every recording, in the order in which they are spoken."""
        rng = random.Random(0)
        sets: list[tuple[Side, int, tuple[str, ...], int]] = [
            ("train", 0, spoken.VOICES, self.takes),
            ("validation", 0, VALIDATION_VOICES, self.takes),
            ("test", 0, TEST_VOICES, self.takes),
            ("test", 1, spoken.VOICES, 1),
        ]
        return [
            (side, part, espeak.Line(voice, rng.randint(*spoken.RATES), rng.randint(*spoken.PITCHES), word))
            for side, part, voices, takes in sets
            for voice in voices
            for word in WORDS
            for _ in range(takes)
        ]
