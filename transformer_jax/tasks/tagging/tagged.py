"""Words with a tag each, as random-access examples for token classification.

    Conll       files with a word and its tags a line and an empty line between sentences (CoNLL-2002, -2003, ...)
    TfdsTags    the same that TensorFlow Datasets has prepared, without TensorFlow

Tags mark entities in the IOB2 scheme: "O", "B-TYPE" for an entity's first word, "I-TYPE" for its others. In BIOES the
last word is "E-TYPE" and an entity of one word "S-TYPE"; BILOU says "L-" and "U-". The older IOB1, in which CoNLL-2003
was distributed, writes "B-" only between two entities of one type that touch. Files may be in any of these: their tags
are converted to the scheme of the task's labels, and the tags that changed are counted.

A word is one or more tokens. Its tag is asked of the first; the others have weight 0 (Devlin et al. 2019, section 5.3).
An example is {"tokens": int32[T], "lengths": int32[], "labels": int32[T], "weights": float32[T]}: the tokens [CLS]
sentence [SEP], then padding. What does not fit is cut off and counted.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from transformer_jax import metrics
from transformer_jax.data import inputs as asked
from transformer_jax.data import pipeline, sources, text_files, tfds_store, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.tasks.classification import labelled

Side = Literal["train", "validation", "test"]


class Sentence(NamedTuple):
    """Words and as many tags, IOB2; `where` it stands, for messages: "train.txt:17"."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


# ---- The sources ---------------------------------------------------------------------------------------------------


class Source(Protocol):
    """Where tagged sentences come from: a frozen dataclass."""

    def sentences(self, side: Side) -> list[Sentence] | None:
        """The sentences of a side; None where there is no test set."""
        ...


@dataclass(frozen=True)
class Conll:
    """Files with columns separated by blanks or tabs. "-DOCSTART-" lines are passed over."""

    train: str
    """The file to train on."""
    validation: str
    """The file to choose the checkpoint on."""
    test: str = ""
    """The file to report the chosen checkpoint on; empty: none."""
    token_column: int = 0
    """Column of the word, from 0; negative numbers count from the last."""
    tag_column: int = -1
    """Column of the tag."""

    def sentences(self, side: Side) -> list[Sentence] | None:
        """None: there is no test set."""
        path = {"train": self.train, "validation": self.validation, "test": self.test}[side]
        if not path and side == "test":
            return None
        return list(_conll(Path(path).expanduser(), self.token_column, self.tag_column))


def inputs(path: str, token_column: int = 0) -> list[asked.Input]:
    """The sentences of a file with a word on each line, tagged or not, as their words."""
    sentences = _conll(Path(path).expanduser(), token_column, token_column)
    return [asked.text(sentence.words, sentence.where) for sentence in sentences]


def _conll(path: Path, token_column: int, tag_column: int) -> Iterator[Sentence]:
    columns: list[str] | None = None  # of the file's first line, which all others must match
    words: list[str] = []
    tags: list[str] = []
    first = 1
    for number, line in enumerate(itertools.chain(text_files.lines(path), [""]), 1):
        cells = [cell for cell in re.split(r"[ \t]+", line) if cell]
        if cells and cells[0] != "-DOCSTART-":
            columns = columns or cells
            if len(cells) != len(columns):
                raise InputError(
                    f"{path}:{number}: {len(cells)} columns where the first line has {len(columns)}: {line!r}"
                )
            for name, column in (("token_column", token_column), ("tag_column", tag_column)):
                if not -len(cells) <= column < len(cells):
                    raise InputError(f"{path}:{number}: no column {column} of {len(cells)}; say which with {name}")
            words.append(cells[token_column])
            tags.append(cells[tag_column])
        else:
            if words:
                yield Sentence(tuple(words), tuple(tags), f"{path}:{first}")
            words, tags, first = [], [], number + 1


@dataclass(frozen=True)
class TfdsTags:
    """A data set that TensorFlow Datasets has prepared in array_record format: "conll2003", your own."""

    name: str = "conll2003"
    """As TFDS writes it."""
    tokens: str = "tokens"
    """The feature that holds the words, a sequence of texts."""
    tags: str = "ner"
    """The feature that holds their tags, a sequence of ClassLabels or of texts."""
    train: str = "train"
    """Slices such as "train[:90%]" work."""
    validation: str = "dev"
    """The split to choose the checkpoint on."""
    test: str = "test"
    """The split to report the chosen checkpoint on; empty: none."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def sentences(self, side: Side) -> list[Sentence] | None:
        """None: there is no test set."""
        split = {"train": self.train, "validation": self.validation, "test": self.test}[side]
        if not split and side == "test":
            return None
        source, full_name, _ = tfds_store.open_split(self.name, split, self.data_dir)
        features = source.dataset_info.features
        for flag, feature in (("tokens", self.tokens), ("tags", self.tags)):
            if feature not in features:
                raise InputError(
                    f"TFDS {full_name}: no feature {feature!r}; it has {', '.join(features)}; "
                    f"say which with --data.source.{flag}"
                )
        names = getattr(getattr(features[self.tags], "feature", None), "names", None)
        made = []
        for number in range(len(source)):
            example, where = source[number], f"TFDS {full_name}:{split}:{number}"
            words = tuple(_text(word, where) for word in example[self.tokens])
            tags = tuple(_name(tag, names, where) if names else _text(tag, where) for tag in example[self.tags])
            if len(words) != len(tags):
                raise InputError(f"{where}: {len(words)} words and {len(tags)} tags")
            if words:  # TFDS ends each split of conll2003 with a sentence of no words
                made.append(Sentence(words, tags, where))
        return made


def _text(value: Any, where: str) -> str:
    if not isinstance(value, bytes):
        raise InputError(f"{where}: a word or tag is {type(value).__name__}, not text")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: a word or tag is not UTF-8 ({error})") from None


def _name(tag: int, names: Sequence[str], where: str) -> str:
    if not 0 <= tag < len(names):
        raise InputError(f"{where}: tag number {tag} is none of the set's {len(names)}; are its tags public?")
    return names[tag]


# ---- Tags ----------------------------------------------------------------------------------------------------------


TAG = re.compile("O|[BIESLU]-.+")


def in_scheme_of(labels: Sequence[str], tags: Sequence[str]) -> tuple[str, ...]:
    """The same entities in the scheme of the labels: IOB2, or BIOES or BILOU where the labels have their marks.

    Tags may be in any of these, or in IOB1, where an "I-" that follows "O", another type or nothing begins an entity.
    """
    marks = {label[0] for label in labels}
    last = next((mark for mark in "EL" if mark in marks), "I")
    only = next((mark for mark in "SU" if mark in marks), "B")
    made = ["O"] * len(tags)
    for kind, first, past in metrics.entity_spans(tags):
        within = "B" + "I" * (past - first - 2) + last if past - first > 1 else only
        made[first:past] = [f"{mark}-{kind}" for mark in within]
    return tuple(made)


def check_labels(labels: Sequence[str]) -> None:
    """Raises `InputError` unless the labels are "O" and different tags of IOB2, BIOES or BILOU.

    A type may lack some of them: published models of IOB1 have no "B-PER", and entities of one word no "I-".
    """
    for label in labels:
        if not TAG.fullmatch(label):
            raise InputError(
                f"task.labels: {label!r} is none of O, B-TYPE and I-TYPE (IOB2), with E-TYPE and S-TYPE (BIOES) or "
                "L-TYPE and U-TYPE (BILOU)"
            )
    if "O" not in labels:
        raise InputError("task.labels: no 'O', the tag of words in no entity")
    if repeated := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise InputError(f"task.labels: {repeated[0]!r} stands there twice")


# ---- Examples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaggedWords:
    """The data of a tagging experiment."""

    source: Source
    """Where the sentences come from."""
    tokenizer: tokenizers.Spec
    """How words become tokens."""
    length: int = 128
    """Tokens in an example, with [CLS] and [SEP]; longer sentences are cut."""

    def __post_init__(self) -> None:
        if self.length < 3:
            raise InputError(f"data.length = {self.length} must be at least 3: [CLS], a word's token and [SEP]")


class Encoded(NamedTuple):
    """int32 ids with [CLS] and [SEP]; of each word the position of its first token, -1 where it has none; and whether
    tokens were cut off."""

    ids: np.ndarray
    first: np.ndarray
    cut: bool


def encode(words: Sequence[str], tokenizer: tokenizers.Tokenizer, length: int) -> Encoded:
    """A sentence as at most `length` tokens. Words that are cut off, or are nothing to the tokenizer, have no token."""
    around = labelled.around(tokenizer)
    ids, word_of_id = tokenizer.encode_words(words)
    kept = length - 2
    first = np.full(len(words), -1, np.int32)
    found, at = np.unique(word_of_id[:kept], return_index=True)
    first[found] = at + 1  # [CLS]
    return Encoded(np.concatenate([around.cls, ids[:kept], around.sep]), first, len(ids) > kept)


@dataclass(frozen=True, eq=False)
class Examples:
    """`examples[i]` is example i."""

    sentences: Sequence[Encoded]
    labels: Sequence[np.ndarray]
    """int32 [words] of each sentence."""
    order: Sequence[int]
    """Example -> sentence."""
    length: int

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        (ids, first, _), labels = self.sentences[self.order[i]], self.labels[self.order[i]]
        tokens_T, labels_T = np.zeros((2, self.length), np.int32)
        weights_T = np.zeros(self.length, np.float32)
        tokens_T[: len(ids)] = ids
        labels_T[first[first >= 0]], weights_T[first[first >= 0]] = labels[first >= 0], 1
        return {"tokens": tokens_T, "lengths": np.array(len(ids), np.int32), "labels": labels_T, "weights": weights_T}


@dataclass(frozen=True, eq=False)
class Tagged:
    """A TaggedWords made ready. `train` is endless; `facts` counts what was cut and converted."""

    tokenizer: tokenizers.Tokenizer
    train: Examples
    validation: Examples
    test: Examples | None
    facts: dict[str, int]


def prepare(
    data: TaggedWords, labels: Sequence[str], *, seed: int, tokenizer: tokenizers.Tokenizer | None = None
) -> Tagged:
    """Reads, checks and tokenises every sentence, once, into memory.

    Arguments:
      labels: the tags, in the order of the model's outputs.
      tokenizer: given when a run goes on or starts from a checkpoint; else it is built from the training sentences.
    Errors: `InputError` for a tag outside the set and for what is wrong with a file.
    """
    read = {side: data.source.sentences(side) for side in ("train", "validation", "test")}
    for side, found in read.items():
        if found == []:
            raise InputError(f"data.source.{side} of {data.source} has no sentences")
    texts = sources.in_memory((s.where, " ".join(s.words)) for s in read["train"] or [])
    tokenizer = tokenizers.build(data.tokenizer, texts, tokens.cache_dir(), given=tokenizer)
    facts: dict[str, int] = {}
    number = {label: i for i, label in enumerate(labels)}
    made: dict[str, Examples] = {}
    for side, found in read.items():
        if found is None:
            continue
        tags = [_checked(sentence, number) for sentence in found]
        encoded = [encode(sentence.words, tokenizer, data.length) for sentence in found]
        as_read = (tag for sentence in found for tag in sentence.tags)
        name = "training" if side == "train" else side
        facts |= {
            f"{name}_sentences": len(found),
            f"{name}_words": sum(map(len, tags)),
            f"{name}_sentences_cut": sum(e.cut for e in encoded),
            f"{name}_words_without_token": sum(int((e.first < 0).sum()) for e in encoded),
            f"{name}_tags_converted": sum(a != b for a, b in zip(as_read, itertools.chain(*tags), strict=True)),
        }
        numbers = [np.array([number[tag] for tag in of_sentence], np.int32) for of_sentence in tags]
        made[side] = Examples(encoded, numbers, range(len(found)), data.length)
    endless = dataclasses.replace(made["train"], order=pipeline.epochs(len(made["train"]), seed))
    return Tagged(tokenizer, endless, made["validation"], made.get("test"), facts)


def _checked(sentence: Sentence, number: dict[str, int]) -> tuple[str, ...]:
    readable = all(map(TAG.fullmatch, sentence.tags))
    tags = in_scheme_of(list(number), sentence.tags) if readable else sentence.tags
    for word, tag in zip(sentence.words, tags, strict=True):
        if tag not in number:
            raise InputError(
                f"{sentence.where}: tag {tag!r} of {word!r} is not in task.labels ({', '.join(number)}); "
                "mend it or add the tag"
            )
    return tags
