"""Labelled sounds, one in each row, as random-access examples: files with a class in a table or by their folder.

    {"waves": int16 [W], "lengths": int32 [], "labels": int32 [], "weights": float32 []}

A source is one of utterances (`speech_recognition.utterances.Source`) whose texts are classes, so tables are read by
`speech_recognition.recordings.Recordings`. It may define `classes()`, where these are known without reading the sounds.

Letters: W samples of a row, M mel bins, E sounds of a set, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax import objectives, sound
from transformer_jax.contracts import Evaluation, Prepared
from transformer_jax.data import pipeline, records, source_files, text_files, waves
from transformer_jax.errors import InputError
from transformer_jax.tasks.speech_recognition import recordings, utterances
from transformer_jax.tasks.speech_recognition.utterances import Side, Source, Utterance, Utterances

COUNTED = 4000  # training sounds of the baseline, at most
MELS = 40  # bins of the baseline


@dataclass(frozen=True)
class Sounds:
    """The data of an experiment that classifies sounds."""

    source: Source
    """The sounds; the text of each is its class."""
    seconds: float = 10.24
    """Of a row: what is longer is truncated, and counted."""
    memory: int = 4_000_000_000
    """Bytes of samples that each host may hold; the files of a larger set are decoded when they are read."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= waves.LONGEST:
            raise InputError(f"data.seconds = {self.seconds}: give more than 0 and at most {waves.LONGEST}")

    @property
    def samples(self) -> int:
        """W, the samples of a row."""
        return round(self.seconds * waves.RATE)

    @property
    def length(self) -> int:
        """The samples of a row, its longest vector."""
        return self.samples

    def classes(self) -> tuple[str, ...]:
        """The classes: those that the source names, or those of its training set, sorted."""
        if hasattr(self.source, "classes"):
            return tuple(self.source.classes())
        return tuple(sorted(set(utterances.texts(self.source.utterances("train"), "keep"))))


@dataclass(frozen=True)
class Folders(Source):
    """A folder of sound files for each class, as Speech Commands has them (Warden 2018); `_` and `.` begin no class.

    Files that list others below the root, a path on each line, decide what is held out.
    """

    root: str
    """The folder of the classes."""
    validation: str = ""
    """A file below the root that lists the validation set; empty: `validation_fraction`."""
    test: str = ""
    """The same of the test set; empty: there is none."""
    validation_fraction: float = 0.05
    """The share of sounds held out if `validation` is empty."""

    def __post_init__(self) -> None:
        source_files.check_fraction(self)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.test)

    def of_files(self, files: tuple[str, ...]) -> "recordings.Recordings":
        return recordings.Recordings(files, files, text="label")

    def classes(self) -> tuple[str, ...]:
        """The names of the folders, sorted."""
        root = Path(self.root)
        if not root.is_dir():
            raise InputError(f"{root} is not a folder (looked in {Path.cwd()}); name the folder of the classes")
        found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")
        if len(found) < 2:
            raise InputError(f"{root} has {len(found)} folders; give one with a folder for each of two classes or more")
        return tuple(found)

    def utterances(self, side: Side) -> Utterances:
        """The sounds of a side.

        Args:
          side: "train", "validation" or "test".

        Raises:
          InputError: there are no classes, or a list names a file that is not there.
        """
        root = Path(self.root)
        found = {f"{name}/{path.name}": path for name in self.classes() for path in waves.below(root / name)}
        listed = {of: self._listed(name, found) for of, name in (("validation", self.validation), ("test", self.test))}
        if not self.validation:
            others = found.keys() - listed["test"]
            listed["validation"] = {one for one in others if source_files.position(one) < self.validation_fraction}
        listed["train"] = found.keys() - listed["validation"] - listed["test"]
        held = [Utterance(found[one], one.partition("/")[0], one) for one in found if one in listed[side]]
        return Utterances(f"{root} ({side})", held)

    def _listed(self, name: str, found: dict[str, Path]) -> set[str]:
        if not name:
            return set()
        listed = {line.strip() for line in text_files.lines(Path(self.root, name)) if line.strip()}
        if absent := sorted(listed - found.keys()):
            where = records.places(absent[: records.FEW], len(absent))
            raise InputError(f"{Path(self.root, name)} lists {len(absent)} that are not in {self.root}: {where}")
        return listed


@dataclass(frozen=True, eq=False)
class Rows(pipeline.Examples):
    """Rows of one sound."""

    held: Sequence[Utterance]
    samples: Sequence[np.ndarray] | None
    """The decoded samples of each sound; None: files are decoded when they are read."""
    labels_E: np.ndarray
    size: int
    """W."""
    order: Sequence[int]

    def example(self, i: int) -> dict[str, np.ndarray]:
        e = self.order[i]
        samples_W = self.samples_of(e)[: self.size]
        row_W = np.zeros(self.size, np.int16)
        row_W[: len(samples_W)] = samples_W
        lengths = np.array(len(samples_W), np.int32)
        return {"waves": row_W, "lengths": lengths, "labels": self.labels_E[e], "weights": np.array(1.0, np.float32)}

    def samples_of(self, e: int) -> np.ndarray:
        """The samples of sound e."""
        return utterances.decoded(self.held[e]) if self.samples is None else self.samples[e]


class Reference(NamedTuple):
    """What the report of a set needs.

    Attributes:
      labels_E: the class of each sound.
      parts: names of the set's parts.
      part_E: the part of each sound.
      baseline_E: bool, the sounds that `baseline` classifies rightly.
    """

    labels_E: np.ndarray
    parts: tuple[str, ...]
    part_E: np.ndarray
    baseline_E: np.ndarray


def prepare(data: Sounds, labels: Sequence[str], *, seed: int) -> Prepared:
    """The decoded sounds of every side; each set that is evaluated has a `Reference`.

    Args:
      data: the experiment's.
      labels: the classes, in the order of the model's outputs.
      seed: orders the training data.

    Raises:
      InputError: files that cannot be read, and classes that are none of the labels, by name and count.
    """
    sides: tuple[Side, ...] = ("train", "validation", "test")
    found = {side: data.source.utterances(side) for side in sides[: 3 if data.source.has_test else 2]}
    facts: dict[str, Any] = {}
    sets: dict[Side, Rows] = {}
    for side, one in found.items():
        samples, lengths_E = utterances.recorded(one, data.memory)
        order = pipeline.epochs(len(one.held), seed) if side == "train" else range(len(one.held))
        sets[side] = Rows(one.held, samples, _numbers(one, labels), data.samples, order)
        facts[f"{side}_sounds"] = len(one.held)
        facts[f"{side}_truncated"] = int((lengths_E > data.samples).sum())
        facts |= {f"{side}_{name}": count for name, count in one.skipped.items()}
    known = baseline(sets, len(labels), seed=seed)
    evaluations = {
        side: Evaluation(
            rows,
            Reference(rows.labels_E, found[side].parts, np.array([one.part for one in rows.held]), known[side]),
        )
        for side, rows in sets.items()
        if side != "train"
    }
    return Prepared(sets["train"], evaluations["validation"], facts, test=evaluations.get("test"))


def _numbers(sounds: Utterances, labels: Sequence[str]) -> np.ndarray:
    """The number of each sound's class, int32 [E]."""
    number = {label: k for k, label in enumerate(labels)}
    classes = utterances.texts(sounds, "keep")
    if other := [f"{one.where} ({name})" for one, name in zip(sounds.held, classes, strict=True) if name not in number]:
        where = records.places(other[: records.FEW], len(other))
        raise InputError(
            f"{sounds.origin}: {len(other)} of classes that are none of the {len(labels)} labels: {where}; remove "
            "them, or give --task.labels"
        )
    return np.array([number[name] for name in classes], np.int32)


# ---- The baseline --------------------------------------------------------------------------------------------------


def baseline(sets: dict[Side, Rows], classes: int, *, seed: int) -> dict[Side, np.ndarray]:
    """For each set but "train", bool [E]: which sounds a linear classifier of the mean spectrum classifies rightly.

    It reads the mean and the deviation of each mel bin over time, and is fitted to the classes of up to `COUNTED`
    training sounds by least squares with a penalty.

    Args:
      sets: the rows of each side.
      classes: K.
      seed: chooses the training sounds.
    """
    train = sets["train"]
    chosen = objectives.generator(seed, 0).permutation(len(train.held))[:COUNTED].tolist()
    x_EF = _summaries(train, chosen)
    mean_F, std_F = x_EF.mean(0), x_EF.std(0) + 1e-6
    x_EF = (x_EF - mean_F) / std_F
    wanted_EK = np.eye(classes)[train.labels_E[chosen]]
    share_K = wanted_EK.mean(0)
    penalty_FF = len(chosen) * 1e-2 * np.eye(x_EF.shape[1])
    kernel_FK = np.linalg.solve(x_EF.T @ x_EF + penalty_FF, x_EF.T @ (wanted_EK - share_K))

    def right(rows: Rows) -> np.ndarray:
        scores_EK = (_summaries(rows, range(len(rows.held))) - mean_F) / std_F @ kernel_FK + share_K
        return scores_EK.argmax(-1) == rows.labels_E

    return {side: right(rows) for side, rows in sets.items() if side != "train"}


def _summaries(rows: Rows, chosen: Sequence[int]) -> np.ndarray:
    """Mean and deviation of each mel bin over the frames of the chosen sounds, float64 [E, 2 M]."""
    found = []
    for e in chosen:
        wave_1W = sound.as_float(rows.samples_of(e)[: rows.size])[None]
        x_FM = sound.fbank(sound.fitted(wave_1W, max(wave_1W.shape[1], 400)), num_mels=MELS)[0]
        found.append(np.concatenate([x_FM.mean(0), x_FM.std(0)]))
    return np.array(found, np.float64)
