"""Utterances: sound with what was spoken, packed into rows of one length, as random-access examples.

An example is a row of `data.pack` times `data.seconds`. Several utterances share it, so that little of a batch is
silence, and one shape serves all:

    {"waves": int16 [W], "starts": int32 [U], "lengths": int32 [U],      the first sample of each, and its samples
     "labels": int32 [U, S], "sizes": int32 [U],                         its tokens, and how many
     "weights": float32 [U]}                                             0: there is none

A user's own source implements `Source`.

Letters: W samples of a row, U utterances of a row, S tokens, P utterances of a set.
"""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from transformer_jax import models, objectives
from transformer_jax.contracts import Evaluation, Prepared
from transformer_jax.data import pipeline, records, sources, tokenizers, tokens, waves
from transformer_jax.errors import InputError
from transformer_jax.losses import ctc
from transformer_jax.objectives import packing

Side = Literal["train", "validation", "test"]
READERS = 8  # threads that decode files


class Utterance(NamedTuple):
    """Sound with what was spoken.

    Attributes:
      sound: a file, or int16 samples at `waves.RATE`.
      text: the transcript.
      where: names the utterance in messages: "a.tsv:17".
      part: the number of the part of the set that it belongs to (`Utterances.parts`).
    """

    sound: Path | np.ndarray
    text: str
    where: str
    part: int = 0


@dataclass(frozen=True)
class Utterances:
    """The utterances of one side of a source."""

    origin: str
    """Names them in messages."""
    held: Sequence[Utterance]
    parts: tuple[str, ...] = ()
    """Names of parts that are scored apart, such as known voices and others."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Counts of what was skipped: {"blank lines": 2}."""

    def __post_init__(self) -> None:
        if not self.held:
            raise InputError(f"{self.origin}: no utterances")


class Source(Protocol):
    """A source of utterances: a frozen dataclass. A class that inherits from this has its defaults."""

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return False

    def utterances(self, side: Side) -> Utterances:
        """The utterances of a side.

        Args:
          side: "train", "validation" or, with `has_test`, "test".
        """
        ...


@dataclass(frozen=True)
class Speech:
    """The data of an experiment on speech: the utterances, the tokenizer, the rows."""

    source: Source
    """The utterances."""
    tokenizer: tokenizers.Spec
    """Encodes the transcripts."""
    seconds: float = 16.0
    """The longest utterance."""
    labels: int = 256
    """S, the most tokens of a transcript."""
    pack: int = 1
    """A row is this many times as long as `seconds`, and holds up to twice as many utterances; 1: one utterance."""
    room: float = 1.0
    """How many times its own length each utterance has room for in a row; 1.1 for the augmentation `Speed(0.9)`."""
    case: Literal["keep", "lower", "upper"] = "keep"
    """The case that transcripts are converted to."""
    unfit: Literal["refuse", "drop"] = "refuse"
    """Training utterances that are too long, or too short for their transcript: an error, or dropped and counted."""
    memory: int = 4_000_000_000
    """Bytes of samples that each host may hold; the files of a larger set are decoded when they are read."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= waves.LONGEST or self.labels < 1 or self.pack < 1 or not 1 <= self.room <= 2:
            raise InputError(
                f"data.seconds = {self.seconds}, labels = {self.labels}, pack = {self.pack}, room = {self.room}: give "
                f"seconds above 0 up to {waves.LONGEST}, labels and pack from 1 on, and room from 1 to 2"
            )
        if self.case not in ("keep", "lower", "upper") or self.unfit not in ("refuse", "drop"):
            raise InputError(
                f"data.case = {self.case!r}, unfit = {self.unfit!r}: give keep, lower or upper; refuse or drop"
            )

    @property
    def samples(self) -> int:
        """W, the samples of a row."""
        return round(self.seconds * waves.RATE) * self.pack

    @property
    def per_row(self) -> int:
        """U, the most utterances of a row."""
        return 1 if self.pack == 1 else 2 * self.pack

    @property
    def length(self) -> int:
        """The samples of a row, its longest vector."""
        return self.samples


@dataclass(frozen=True, eq=False)
class Rows(pipeline.Examples):
    """Rows of utterances."""

    held: Sequence[Utterance]
    samples: Sequence[np.ndarray] | None
    """The decoded samples of each utterance; None: files are decoded when they are read."""
    lengths_P: np.ndarray
    labels: Sequence[np.ndarray]
    packed: packing.Packing
    slots_P: np.ndarray
    """Steps that each utterance takes in a row, with its room and the gap."""
    step: int
    """Samples of a step."""
    data: Speech
    order: Sequence[int]

    def example(self, i: int) -> dict[str, np.ndarray]:
        U, S = self.data.per_row, self.data.labels
        row: dict[str, np.ndarray] = {"waves": np.zeros(self.data.samples, np.int16)}
        row["labels"] = np.zeros((U, S), np.int32)
        row |= {name: np.zeros(U, np.int32) for name in ("starts", "lengths", "sizes")}
        row["weights"] = np.zeros(U, np.float32)
        start = 0
        for u, p in enumerate(self.packed[self.order[i]]):
            values, labels = self.samples_of(int(p)), self.labels[p]
            row["waves"][start : start + len(values)] = values
            row["labels"][u, : len(labels)] = labels
            row["starts"][u], row["lengths"][u], row["sizes"][u], row["weights"][u] = start, len(values), len(labels), 1
            start += int(self.slots_P[p]) * self.step
        return row

    def samples_of(self, p: int) -> np.ndarray:
        """The samples of utterance p."""
        if self.samples is not None:
            return self.samples[p]
        found = decoded(self.held[p])
        if len(found) != self.lengths_P[p]:
            raise InputError(f"{self.held[p].where}: {len(found)} samples, where its header states {self.lengths_P[p]}")
        return found


class Reference(NamedTuple):
    """What the report of a set needs.

    Attributes:
      texts: the transcripts, by utterance.
      tokenizer: decodes what the model wrote.
      rows: the set's `Rows`.
      parts: names of its parts.
      part_P: the part of each utterance.
      blank: the model's symbol of the blank.
    """

    texts: Sequence[str]
    tokenizer: Any
    rows: Rows
    parts: tuple[str, ...]
    part_P: np.ndarray
    blank: int


def example(data: Speech) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of one example.

    Args:
      data: the experiment's.
    """
    U = data.per_row
    shapes = {"waves": (data.samples,), "labels": (U, data.labels), "starts": (U,), "lengths": (U,), "sizes": (U,)}
    dtypes = {"waves": np.int16}
    made = {name: jax.ShapeDtypeStruct(shape, dtypes.get(name, np.int32)) for name, shape in shapes.items()}
    return made | {"weights": jax.ShapeDtypeStruct((U,), np.float32)}


def prepare(data: Speech, recogniser: Any, *, seed: int, tokenizer: Any) -> Prepared:
    """The decoded utterances of every side, packed into rows; each set has a `Reference`.

    Args:
      data: the experiment's.
      recogniser: the Config of the model that writes the transcripts.
      seed: orders the training data.
      tokenizer: the one that the parameters were trained with; None: the data decide.

    Raises:
      InputError: as `rows`, and a tokenizer whose ids do not fit beside the recogniser's blank.
    """
    sides: tuple[Side, ...] = ("train", "validation", "test")
    found = {side: data.source.utterances(side) for side in sides[: 3 if data.source.has_test else 2]}
    tokenizer = build_tokenizer(data, found["train"], tokenizer)
    check_labels(recogniser, tokenizer)
    facts: dict[str, Any] = {"vocabulary": tokenizer.vocab_size}
    sets = {}
    for side, one in found.items():
        made, dropped = rows(
            one,
            data,
            tokenizer,
            step=recogniser.step_samples,
            gap=getattr(recogniser, "gap", 0),
            steps=functools.partial(models.family(recogniser).steps, recogniser),
            needed=ctc.frames_needed,
            seed=seed if side == "train" else None,
        )
        packed = made.lengths_P[made.packed.pieces]
        facts[f"{side}_utterances"] = len(packed)
        facts[f"{side}_hours"] = round(float(packed.sum()) / waves.RATE / 3600, 2)
        facts[f"{side}_silence"] = round(1.0 - float(packed.sum()) / (len(made.packed) * data.samples), 3)
        facts |= {f"{side}_{name}": count for name, count in {**dropped, **one.skipped}.items()}
        part_P = np.array([each.part for each in one.held])
        known = Reference(texts(one, data.case), tokenizer, made, one.parts, part_P, recogniser.blank)
        sets[side] = Evaluation(made, known)
    return Prepared(sets["train"].examples, sets["validation"], facts, tokenizer, sets.get("test"))


def check_labels(recogniser: Any, tokenizer: Any) -> None:
    """Refuses a tokenizer whose ids do not fit beside the blank.

    Args:
      recogniser: the Config of a model with `vocab_size` and `blank`.
      tokenizer: the tokenizer of the data.

    Raises:
      InputError: the blank is the id of a token that is not padding, or there are too few outputs.
    """
    blank, own = recogniser.blank, tokenizer.vocab_size
    is_padding = blank == tokenizer.special.pad
    if own > recogniser.vocab_size - (blank >= own) or (blank < own and not is_padding):
        raise InputError(
            f"the tokenizer has {own} tokens, and the blank is {blank} of model.vocab_size {recogniser.vocab_size}; "
            f"give --model.vocab-size {own + 1}"
        )


def decoded(utterance: Utterance) -> np.ndarray:
    """The samples of an utterance, int16 [W].

    Args:
      utterance: with samples, or a file.

    Raises:
      InputError: the file has no sound to read.
    """
    if isinstance(utterance.sound, np.ndarray):
        return utterance.sound
    try:
        return waves.read(utterance.sound)
    except waves.Broken as error:
        raise InputError(f"{utterance.where}: {utterance.sound}: {error}") from None


def texts(utterances: Utterances, case: str) -> list[str]:
    """The transcripts, with single spaces and in the wanted case.

    Args:
      utterances: the utterances of a side.
      case: `Speech.case`.

    Raises:
      InputError: empty ones, by name and count.
    """
    found = [" ".join(one.text.split()) for one in utterances.held]
    empty = [one.where for one, text in zip(utterances.held, found, strict=True) if not text]
    if empty:
        places = records.places(empty[: records.FEW], len(empty))
        raise InputError(f"{utterances.origin}: {len(empty)} without a transcript: {places}; complete or remove them")
    return [text.lower() if case == "lower" else text.upper() if case == "upper" else text for text in found]


def build_tokenizer(data: Speech, train: Utterances, given: Any) -> Any:
    """The tokenizer of the data.

    Args:
      data: the experiment's.
      train: the utterances on whose transcripts it is trained, where it is one that is trained.
      given: the one that the parameters were trained with; None: the data decide.
    """
    pairs = list(zip((one.where for one in train.held), texts(train, data.case), strict=True))
    return tokenizers.build(data.tokenizer, sources.in_memory(pairs, train.origin), tokens.cache_dir(), given=given)


def rows(
    utterances: Utterances,
    data: Speech,
    tokenizer: Any,
    *,
    step: int,
    gap: int,
    steps: Any,
    needed: Any,
    seed: int | None,
) -> tuple[Rows, dict[str, int]]:
    """(the rows of a side, counts of what was dropped).

    Args:
      utterances: the utterances of the side.
      data: the experiment's.
      tokenizer: encodes the transcripts.
      step: samples of a step of the model, at whose multiples utterances begin.
      gap: silent samples between two of them.
      steps: from samples to steps.
      needed: from labels to the fewest steps that can say them.
      seed: the seed of the endless order of training rows; None: each row once, in order.

    Raises:
      InputError: files that cannot be read, transcripts that are empty, and with `data.unfit` "refuse" utterances that
        are too long or too short, all by name and count.
    """
    held, written = utterances.held, texts(utterances, data.case)
    labels = tokenizer.encode_batch(written)
    samples, lengths_P = recorded(utterances, data.memory)
    most = round(data.seconds * waves.RATE)
    slots_P = np.array([-(-int(n * data.room) // step) for n in lengths_P])
    needed_P = np.array([needed(one) for one in labels])
    reasons = {
        f"longer than data.seconds {data.seconds:g}": lengths_P * data.room > most,
        f"more than data.labels {data.labels} tokens": np.array([len(one) for one in labels]) > data.labels,
        "fewer steps than its transcript needs": needed_P > steps(lengths_P),
    }
    kept_P, counts = np.ones(len(held), bool), {}
    for reason, unfit_P in reasons.items():
        where = [held[p].where for p in np.flatnonzero(unfit_P & kept_P).tolist()]
        if where and (data.unfit == "refuse" or seed is None):
            raise InputError(
                f"{utterances.origin}: {len(where)} with {reason}: {records.places(where[: records.FEW], len(where))}; "
                "change the setting, remove them, or drop such training utterances with --data.unfit drop"
            )
        counts[f"dropped_{reason}"] = len(where)
        kept_P &= ~unfit_P
    if not kept_P.any():
        raise InputError(f"{utterances.origin}: every utterance is dropped; raise data.seconds or data.labels")
    chosen = np.flatnonzero(kept_P)
    if seed is not None:
        chosen = objectives.generator(seed, 0).permutation(chosen)
    if data.pack > 1:
        slots_P += -(-gap // step)
    room_2 = (data.samples // step, data.per_row)
    sizes_P2 = np.stack([np.minimum(slots_P, room_2[0]), np.ones_like(slots_P)], axis=1)
    packed = packing.pack_pairs(sizes_P2[chosen], room_2)
    packed = packing.Packing(chosen[packed.pieces], packed.starts)
    order = range(len(packed)) if seed is None else pipeline.epochs(len(packed), seed)
    made = Rows(held, samples, lengths_P, labels, packed, slots_P, step, data, order)
    return made, {name: count for name, count in counts.items() if count}


def recorded(utterances: Utterances, memory: int) -> tuple[Sequence[np.ndarray] | None, np.ndarray]:
    """(the decoded samples where they fit into memory, the number of samples of each).

    Args:
      utterances: of a side.
      memory: bytes that the samples may take.

    Raises:
      InputError: files that cannot be read, by name and count.
    """
    held, broken = utterances.held, []

    def length(one: Utterance) -> int | str:
        if isinstance(one.sound, np.ndarray):
            return len(one.sound)
        try:
            return waves.header(one.sound).samples
        except waves.Broken as error:
            return f"{one.where}: {one.sound}: {error}"

    def samples(one: Utterance) -> np.ndarray | str:
        try:
            return decoded(one)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(READERS) as pool:
        found: list[Any] = list(pool.map(length, held))
        broken = [one for one in found if isinstance(one, str)]
        if not broken and 2 * sum(found) <= memory:
            read: list[Any] = list(pool.map(samples, held))
            broken = [one for one in read if isinstance(one, str)]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise InputError(f"{broken[0]}{more}; repair or remove the file")
    if 2 * sum(found) > memory:
        return None, np.array(found)
    return read, np.array([len(one) for one in read])
