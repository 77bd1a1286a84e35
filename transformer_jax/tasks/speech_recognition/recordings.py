"""Recordings on the disk: files of sound, with their transcripts in tables or in LibriSpeech's folders."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from transformer_jax.data import records, source_files, text_files, waves
from transformer_jax.errors import InputError
from transformer_jax.tasks.speech_recognition.utterances import Side, Source, Utterance, Utterances

OPTIONS = "--data.source.sound and --data.source.text"
TRANSCRIPTS = ".trans.txt"


@dataclass(frozen=True)
class Recordings(Source):
    """Files of records with named columns (.tsv, .csv, .jsonl, ...): the path of a sound file, and its transcript."""

    train: tuple[str, ...]
    """Tables, globs, or folders (all their tables)."""
    validation: tuple[str, ...] = ()
    """Tables that choose the checkpoint; empty: a part of `train`."""
    test: tuple[str, ...] = ()
    """Tables of the test set; empty: none."""
    sound: str = "path"
    """The column of the sound file."""
    text: str = "sentence"
    """The column of the transcript."""
    folder: str = ""
    """The folder that the sound files are relative to; empty: the one of their table."""
    validation_fraction: float = 0.05
    """The share of recordings held out if `validation` is empty."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "train", "validation", "test")

    def of_files(self, files: tuple[str, ...]) -> "Recordings":
        return Recordings(files, files, (), self.sound, self.text, self.folder)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    def utterances(self, side: Side) -> Utterances:
        """The utterances of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: a table without the columns, or without recordings.
        """
        own = {"train": self.train, "validation": self.validation or self.train, "test": self.test}[side]
        shares = side != "test" and not self.validation
        skipped: Counter[str] = Counter()
        held = []
        for _, table in source_files.find_files(own, side, records.SUFFIXES, skipped):
            for line, record in records.read(table, headed=True, skipped=skipped, columns=(self.sound, self.text)):
                where = f"{table}:{line}"
                sound, text = (records.string(record, column, where, OPTIONS) for column in (self.sound, self.text))
                is_validation = source_files.position(sound) < self.validation_fraction
                if not shares or is_validation == (side == "validation"):
                    folder = Path(self.folder) if self.folder else Path(str(table)).parent
                    held.append(Utterance(folder / sound, text, where))
        return Utterances(f"{', '.join(own)} ({side})", held, skipped=skipped)


@dataclass(frozen=True)
class LibriSpeech(Source):
    """LibriSpeech's folders (Panayotov et al. 2015): ROOT/SPLIT/SPEAKER/CHAPTER/*.flac, and *.trans.txt beside them.

    A line of a transcript file is the name of a recording without its ending, a space, and the text.
    """

    root: str = "LibriSpeech"
    """The folder of the splits."""
    train: tuple[str, ...] = ("train-clean-100",)
    """The splits to train on."""
    validation: str = "dev-clean"
    """The split that chooses the checkpoint."""
    test: str = "test-clean"
    """The split that the chosen checkpoint is reported on; empty: none."""

    def __post_init__(self) -> None:
        if isinstance(self.train, str):
            object.__setattr__(self, "train", (self.train,))

    def of_files(self, files: tuple[str, ...]) -> Recordings:
        return Recordings(files, files)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    def utterances(self, side: Side) -> Utterances:
        """The utterances of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: a split that is not there, and recordings without a transcript or transcripts without one.
        """
        splits = {"train": self.train, "validation": (self.validation,), "test": (self.test,)}[side]
        held, silent = [], []
        for split in splits:
            folder = Path(self.root, split)
            if not folder.is_dir():
                raise InputError(
                    f"{folder} is not a folder ({side}; looked in {Path.cwd()}); name the root of LibriSpeech"
                )
            sounds = {path.stem: path for path in waves.below(folder)}
            for path in sorted(folder.rglob(f"*{TRANSCRIPTS}")):
                for number, line in enumerate(text_files.lines(path), 1):
                    name, _, text = line.partition(" ")
                    if not name.strip():
                        continue
                    if name not in sounds:
                        raise InputError(f"{path}:{number}: there is no recording {name}; complete the folder")
                    held.append(Utterance(sounds.pop(name), text, f"{path}:{number}"))
            silent += sorted(sounds.values())
        if silent:
            some = records.places([str(path) for path in silent[: records.FEW]], len(silent))
            raise InputError(f"{len(silent)} recordings have no transcript: {some}; complete the {TRANSCRIPTS} files")
        return Utterances(f"{self.root} {', '.join(splits)}", held)
