"""Tagged words as random-access examples for token classification.

    Conll       files with a word and its tags per line and an empty line between sentences (CoNLL-2002, -2003, ...)
    TagRecords  files of records with a column of words and one of their tags (`data.records`)
    TfdsTags    a prepared data set of TensorFlow Datasets, read without TensorFlow

Tags mark entities in the IOB2 scheme: "O", "B-TYPE" for an entity's first word, "I-TYPE" for its others. In BIOES the
last word is "E-TYPE" and an entity of one word "S-TYPE"; BILOU says "L-" and "U-". The older IOB1, in which CoNLL-2003
was distributed, writes "B-" only between two entities of one type that touch. Files may be in any of these: their tags
are converted to the scheme of the task's labels, and the tags that changed are counted.

A word has one or more tokens. The first predicts its tag; the others have weight 0 (Devlin et al. 2019, section 5.3).
An example is {"tokens": int32[T], "lengths": int32[], "labels": int32[T], "weights": float32[T]}. The tokens are [CLS]
sentence [SEP], then padding. Longer sentences are truncated and counted.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from transformer_jax import hf, metrics
from transformer_jax.data import inputs as asked
from transformer_jax.data import pipeline, records, source_files, sources, text_files, tfds_store, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.tasks.classification import labelled

Side = Literal["train", "validation", "test"]
RECORD_OPTIONS = "--data.source.tokens and --data.source.tags"


class Sentence(NamedTuple):
    """Words and as many tags; `where` names the sentence in messages: "train.txt:17"."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str


# ---- The sources ---------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A source of tagged sentences: a frozen dataclass."""

    def sentences(self, side: Side) -> list[Sentence] | None:
        """The sentences of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        ...


@dataclass(frozen=True)
class Conll:
    """Files with columns separated by spaces or tabs. "-DOCSTART-" lines are skipped."""

    train: str
    """The training file."""
    validation: str
    """The file that chooses the checkpoint."""
    test: str = ""
    """The file that the chosen checkpoint is reported on; empty: none."""
    token_column: int = 0
    """The column of the word, from 0; negative numbers count from the last."""
    tag_column: int = -1
    """The column of the tag."""

    def of_files(self, files: tuple[str, ...]) -> "Conll":
        file = source_files.one_file(files)
        return dataclasses.replace(self, train=file, validation=file, test="")

    def sentences(self, side: Side) -> list[Sentence] | None:
        """The sentences of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        path = getattr(self, side)
        if not path and side == "test":
            return None
        return list(_conll(hf.here(path), self.token_column, self.tag_column))


def inputs(path: str, token_column: int = 0) -> list[asked.Input]:
    """The words of the sentences in a file with a word on each line, tagged or not.

    Args:
      path: the path of the file.
      token_column: the column of the word.
    """
    sentences = _conll(hf.here(path), token_column, token_column)
    return [asked.text(sentence.words, sentence.where) for sentence in sentences]


def _conll(path: Path, token_column: int, tag_column: int) -> Iterator[Sentence]:
    columns: list[str] | None = None  # the columns of the file's first line, which all others must match
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
class TagRecords:
    """Files of records with lists of words and of tags: .jsonl, .parquet, .arrow (`save_to_disk`), as on the Hub."""

    train: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs."""
    validation: tuple[str, ...]
    """Files that choose the checkpoint."""
    test: tuple[str, ...] = ()
    """Files that the chosen checkpoint is reported on; empty: none."""
    tokens: str = "tokens"
    """The column of the words."""
    tags: str = "ner_tags"
    """The column of their tags: names, or a ClassLabel."""

    def of_files(self, files: tuple[str, ...]) -> "TagRecords":
        return dataclasses.replace(self, train=files, validation=files, test=())

    def sentences(self, side: Side) -> list[Sentence] | None:
        """The sentences of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        if side == "test" and not self.test:
            return None
        columns, made = (self.tokens, self.tags), []
        for _, path in source_files.find_files(getattr(self, side), side, records.SUFFIXES):
            for number, record in records.read(path, headed=True, columns=columns):
                where = f"{path}:{number}"
                words, tags = (records.texts(record, c, where, RECORD_OPTIONS) for c in columns)
                if len(words) != len(tags):
                    raise InputError(f"{where}: {len(words)} words and {len(tags)} tags")
                if words:
                    made.append(Sentence(words, tags, where))
        return made


@dataclass(frozen=True)
class TfdsTags:
    """A prepared TFDS data set in array_record format: "conll2003", your own."""

    name: str = "conll2003"
    """The TFDS name."""
    tokens: str = "tokens"
    """The feature that holds the words, a sequence of texts."""
    tags: str = "ner"
    """The feature that holds their tags, a sequence of ClassLabels or of texts."""
    train: str = "train"
    """The training split. Slices such as "train[:90%]" work."""
    validation: str = "dev"
    """The split that chooses the checkpoint."""
    test: str = "test"
    """The split that the chosen checkpoint is reported on; empty: none."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def of_files(self, files: tuple[str, ...]) -> Conll:
        file = source_files.one_file(files)
        return Conll(file, file)

    def sentences(self, side: Side) -> list[Sentence] | None:
        """The sentences of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        split = getattr(self, side)
        if not split and side == "test":
            return None
        source, full_name, _ = tfds_store.open_split(self.name, split, self.data_dir)
        features = source.dataset_info.features
        tfds_store.need_features(features, full_name, {"tokens": self.tokens, "tags": self.tags})
        names = getattr(getattr(features[self.tags], "feature", None), "names", None)
        made = []
        for where, example in tfds_store.examples(source, f"TFDS {full_name}:{split}"):
            words = tuple(_text(word, where) for word in example[self.tokens])
            tags = tuple(
                tfds_store.class_name(names, tag, where) if names else _text(tag, where) for tag in example[self.tags]
            )
            if len(words) != len(tags):
                raise InputError(f"{where}: {len(words)} words and {len(tags)} tags")
            if words:  # in TFDS, each split of conll2003 ends with an empty sentence
                made.append(Sentence(words, tags, where))
        return made


def _text(value: Any, where: str) -> str:
    if not isinstance(value, bytes):
        raise InputError(f"{where}: a word or tag is {type(value).__name__}, not text")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: a word or tag is not UTF-8 ({error})") from None


# ---- Tags ----------------------------------------------------------------------------------------------------------


TAG = re.compile("O|[BIESLU]-.+")


def in_scheme_of(labels: Sequence[str], tags: Sequence[str]) -> tuple[str, ...]:
    """The tags of the same entities in the scheme of the labels: IOB2, BIOES or BILOU.

    Args:
      labels: the labels of the task; their marks (E and S, L and U) decide the scheme.
      tags: the tags of a sentence, in any of these schemes or in IOB1, where an "I-" that follows "O", another type or
        nothing begins an entity.
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
    """Refuses labels that are not "O" and different tags of IOB2, BIOES or BILOU.

    A type may lack some tags: published models of IOB1 have no "B-PER", and entities of one word have no "I-".

    Args:
      labels: the labels of the task.

    Raises:
      InputError: a label is wrong, repeated or missing.
    """
    for label in labels:
        if not TAG.fullmatch(label):
            raise InputError(
                f"task.labels: {label!r} is not one of O, B-TYPE and I-TYPE (IOB2), with E-TYPE and S-TYPE (BIOES) or "
                "L-TYPE and U-TYPE (BILOU)"
            )
    if "O" not in labels:
        raise InputError("task.labels: no 'O', the tag of words outside of entities; add it")
    if repeated := [label for i, label in enumerate(labels) if label in labels[:i]]:
        raise InputError(f"task.labels: {repeated[0]!r} is there twice; remove one")


# ---- Examples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaggedWords:
    """The data of a tagging experiment."""

    source: Source
    """The tagged sentences."""
    tokenizer: tokenizers.Spec
    """Encodes their words."""
    length: int = 128
    """Tokens in an example, with [CLS] and [SEP]; longer sentences are truncated."""

    def __post_init__(self) -> None:
        if self.length < 3:
            raise InputError(f"data.length = {self.length} must be at least 3: [CLS], a word's token and [SEP]")


class Encoded(NamedTuple):
    """A sentence as tokens.

    Attributes:
      ids: int32, with [CLS] and [SEP].
      first: int32 [words], the position of each word's first token; -1: it has none.
      truncated: whether the sentence was too long.
    """

    ids: np.ndarray
    first: np.ndarray
    truncated: bool


def encode(words: Sequence[str], tokenizer: tokenizers.Tokenizer, length: int) -> Encoded:
    """A sentence as tokens. Words that are truncated, or dropped by the tokenizer, have no token.

    Args:
      words: the words of the sentence.
      tokenizer: encodes them.
      length: the most tokens, with [CLS] and [SEP].
    """
    around = labelled.around(tokenizer)
    ids, word_of_id = tokenizer.encode_words(words)
    kept = length - 2
    first = np.full(len(words), -1, np.int32)
    found, at = np.unique(word_of_id[:kept], return_index=True)
    first[found] = at + 1  # after [CLS]
    return Encoded(np.concatenate([around.cls, ids[:kept], around.sep]), first, len(ids) > kept)


@dataclass(frozen=True, eq=False)
class Examples(pipeline.Examples):
    """Random-access examples: `examples[i]` is example i."""

    sentences: Sequence[Encoded]
    labels: Sequence[np.ndarray]
    """int32 [words] of each sentence."""
    order: Sequence[int]
    """Example -> sentence."""
    length: int

    def example(self, i: int) -> dict[str, np.ndarray]:
        """The sentence of example `i`, with the tags of its words."""
        (ids, first, _), labels = self.sentences[self.order[i]], self.labels[self.order[i]]
        tokens_T, labels_T = np.zeros((2, self.length), np.int32)
        weights_T = np.zeros(self.length, np.float32)
        tokens_T[: len(ids)] = ids
        labels_T[first[first >= 0]], weights_T[first[first >= 0]] = labels[first >= 0], 1
        return {"tokens": tokens_T, "lengths": np.array(len(ids), np.int32), "labels": labels_T, "weights": weights_T}


@dataclass(frozen=True, eq=False)
class Tagged:
    """A prepared TaggedWords. `train` is endless."""

    tokenizer: tokenizers.Tokenizer
    train: Examples
    validation: Examples
    test: Examples | None
    facts: dict[str, int]
    """Counts of sentences and words, and of what was truncated and converted."""


def prepare(
    data: TaggedWords, labels: Sequence[str], *, seed: int, tokenizer: tokenizers.Tokenizer | None = None
) -> Tagged:
    """The tokenised examples of every side, in memory.

    Args:
      data: the sentences, the tokenizer and the length.
      labels: the tags, in the order of the model's outputs.
      seed: the seed of the order of training examples.
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a bad file, or a tag that is not in `labels`.
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
            f"{name}_sentences_truncated": sum(e.truncated for e in encoded),
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
