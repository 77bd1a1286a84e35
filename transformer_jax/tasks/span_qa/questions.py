"""Questions whose answer is a span of a context, as random-access examples for extractive question answering.

    SquadJson   files in the format of SQuAD v1.1
    SquadRecords  files of records with SQuAD's columns (`data.records`), as on the Hugging Face Hub
    TfdsSquad   a prepared data set of TensorFlow Datasets with SQuAD's features, read without TensorFlow

An example is a window: {"tokens": int32[T], "types": int32[T], "lengths", "starts", "ends": int32[], "weights":
float32[]}. The tokens are [CLS] question [SEP] context [SEP], with types 1 from the context on, then padding. A context
longer than a window has several windows, `stride` tokens apart. starts and ends are the positions of the answer's first
and last token, or both 0, [CLS], if the answer is not complete in the window (Devlin et al. 2019, section 4.2). Windows
and the limit of 64 tokens for a question follow BERT's run_squad.py.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from transformer_jax import hf
from transformer_jax.data import inputs as asked
from transformer_jax.data import pipeline, records, source_files, sources, text_files, tfds_store, tokenizers, tokens
from transformer_jax.errors import InputError
from transformer_jax.tasks.classification import labelled

Side = Literal["train", "validation", "test"]

QUESTION_TOKENS = 64  # a longer question is truncated
SPECIAL_TOKENS = 4  # the most in a window: RoBERTa has two between question and context


class Question(NamedTuple):
    """A question about a context, its right answers (at least one), and the character where each begins."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


# ---- The sources ---------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A source of questions with answers: a frozen dataclass."""

    def questions(self, side: Side) -> list[Question] | None:
        """The questions of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        ...


@dataclass(frozen=True)
class SquadJson:
    """Files in the format of SQuAD v1.1: data > paragraphs > context and qas > question and answers."""

    train: str
    """The training file: "train-v1.1.json"."""
    validation: str
    """The file that chooses the checkpoint: "dev-v1.1.json"."""
    test: str = ""
    """The file that the chosen checkpoint is reported on; empty: none."""

    def of_files(self, files: tuple[str, ...]) -> "SquadJson":
        file = source_files.one_file(files)
        return SquadJson(file, file)

    def questions(self, side: Side) -> list[Question] | None:
        """The questions of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        path = getattr(self, side)
        if not path and side == "test":
            return None
        return list(_answered(hf.here(path)))


def inputs(path: str) -> list[asked.Input]:
    """The questions of a file in SQuAD's format, in order, as (question, context); they need no answers.

    Args:
      path: the path of the file.

    Raises:
      InputError: another format.
    """
    return [
        asked.text((_get(one, "question", str, of), context), of, {"id": id})
        for id, one, context, of in _squad_json(hf.here(path))
    ]


def _answered(path: Path) -> Iterator[Question]:
    for id, one, context, of in _squad_json(path):
        answers = _get(one, "answers", list, of)
        texts = tuple(_get(answer, "text", str, of) for answer in answers)
        starts = tuple(_get(answer, "answer_start", int, of) for answer in answers)
        yield _checked(Question(id, _get(one, "question", str, of), context, texts, starts), of)


def _squad_json(path: Path) -> Iterator[tuple[str, Any, str, str]]:
    """Yields (id, the object of a question, its context, its name for messages)."""
    text = text_files.whole(path)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    for i, article in enumerate(_get(tree, "data", list, str(path))):
        for j, paragraph in enumerate(_get(article, "paragraphs", list, f"{path}: data[{i}]")):
            where = f"{path}: data[{i}].paragraphs[{j}]"
            context = _get(paragraph, "context", str, where)
            for k, one in enumerate(_get(paragraph, "qas", list, where)):
                id = _get(one, "id", str, f"{where}.qas[{k}]")
                yield id, one, context, f"{path}: question {id!r}"


def _get(tree: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(tree, dict) or key not in tree:
        has = f"it has {', '.join(map(repr, tree))}" if isinstance(tree, dict) else "it is not an object"
        raise InputError(f"{where}: no {key!r} ({has}); the file must have the format of SQuAD v1.1")
    if not isinstance(tree[key], kind):
        raise InputError(f"{where}: {key!r} holds {type(tree[key]).__name__}, not {kind.__name__}")
    return tree[key]


@dataclass(frozen=True)
class SquadRecords:
    """Files of records with the columns id, question, context and answers {text, answer_start}: .parquet, ..."""

    train: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs."""
    validation: tuple[str, ...]
    """Files that choose the checkpoint."""
    test: tuple[str, ...] = ()
    """Files that the chosen checkpoint is reported on; empty: none."""

    def of_files(self, files: tuple[str, ...]) -> "SquadRecords":
        return SquadRecords(files, files)

    def questions(self, side: Side) -> list[Question] | None:
        """The questions of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        if side == "test" and not self.test:
            return None
        made, has = [], "SQuAD's columns id, question, context and answers, which it must have"
        for _, path in source_files.find_files(getattr(self, side), side, records.SUFFIXES):
            for number, record in records.read(path, headed=True, columns=("id", "question", "context", "answers")):
                where = f"{path}:{number}"
                id, question, context = (records.string(record, c, where, has) for c in ("id", "question", "context"))
                texts = records.texts(record, "answers.text", where, has)
                holder, name = records.within(record, "answers.answer_start", where, has)
                starts = holder[name]
                if not isinstance(starts, list) or [type(s) for s in starts] != [int] * len(texts):
                    raise InputError(f"{where}: answers.answer_start is not a list of {len(texts)} whole numbers")
                made.append(
                    _checked(Question(id, question, context, texts, tuple(starts)), f"{where}: question {id!r}")
                )
        return made


@dataclass(frozen=True)
class TfdsSquad:
    """A prepared TFDS data set in array_record format with SQuAD's features."""

    name: str = "squad"
    """The TFDS name; "squad" is version 1.1."""
    train: str = "train"
    """The training split. Slices such as "train[:90%]" work."""
    validation: str = "validation"
    """The split that chooses the checkpoint."""
    test: str = ""
    """The split that the chosen checkpoint is reported on; empty: none (SQuAD's test set is not public)."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def of_files(self, files: tuple[str, ...]) -> SquadJson:
        file = source_files.one_file(files)
        return SquadJson(file, file)

    def questions(self, side: Side) -> list[Question] | None:
        """The questions of a side; None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        split = getattr(self, side)
        if not split and side == "test":
            return None
        source, full_name, _ = tfds_store.open_split(self.name, split, self.data_dir)
        features = source.dataset_info.features
        for feature in ("id", "question", "context", "answers"):
            if feature not in features:
                raise InputError(
                    f"TFDS {full_name}: no feature {feature!r}, which SQuAD has; it has {', '.join(features)}"
                )
        made = []
        for where, example in tfds_store.examples(source, f"TFDS {full_name}:{split}"):
            id, question, context = (tfds_store.text_of(example, name, where) for name in ("id", "question", "context"))
            answers = tuple(text.decode() for text in example["answers"]["text"])
            starts = tuple(int(start) for start in example["answers"]["answer_start"])
            made.append(_checked(Question(id, question, context, answers, starts), f"{where}: question {id!r}"))
        return made


def _checked(question: Question, where: str) -> Question:
    if not question.answers:
        raise InputError(f"{where}: no answer; remove questions without one (SQuAD 2.0)")
    for name, text in (("question", question.question), ("context", question.context)):
        if not text.strip():
            raise InputError(f"{where}: the {name} is empty")
    for answer, start in zip(question.answers, question.starts, strict=True):
        found = question.context[max(start, 0) : max(start, 0) + len(answer)]
        if not answer.strip() or start < 0 or found != answer:
            raise InputError(
                f"{where}: the answer {answer!r} is not at character {start} of the context, which has "
                f"{found!r} there; correct answer_start or the answer"
            )
    return question


# ---- Windows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """The data of a question-answering experiment."""

    source: Source
    """The questions."""
    tokenizer: tokenizers.Spec
    """Encodes their texts."""
    length: int = 384
    """Tokens in a window, special ones and the question included."""
    stride: int = 128
    """Tokens between the beginnings of two windows of a context."""

    def __post_init__(self) -> None:
        room = self.length - SPECIAL_TOKENS - question_tokens(self.length)
        if room < 1:
            raise InputError(f"data.length = {self.length} leaves no room for a context; it must be at least 8")
        if not 1 <= self.stride <= room:
            raise InputError(
                f"data.stride = {self.stride} must be between 1 and {room}, the tokens of context that every window of "
                f"data.length = {self.length} can hold"
            )


def question_tokens(length: int) -> int:
    """The most tokens of a question in a window.

    Args:
      length: tokens in a window.
    """
    return min(QUESTION_TOKENS, (length - SPECIAL_TOKENS) // 2)


class Window(NamedTuple):
    """A part of a context, with the answer if it is complete in it.

    Attributes:
      question: the number of the question.
      first: the first token of the context in the window.
      size: the number of tokens of the context in the window.
      begin: the position of the first of them in the window.
      start: the position of the answer's first token in the window; 0: the answer is not complete.
      end: the position of the answer's last token in the window; 0: the answer is not complete.
    """

    question: int
    first: int
    size: int
    begin: int
    start: int = 0
    end: int = 0


def windows(
    question: int, asked: np.ndarray, context: np.ndarray, around: labelled.Around, length: int, stride: int
) -> list[Window]:
    """The windows over the context of a question, without answers.

    Args:
      question: its number.
      asked: ids of the question.
      context: ids of the context.
      around: the special tokens.
      length: tokens in a window.
      stride: tokens between the beginnings of two windows.
    """
    begin = len(around.cls) + len(asked) + len(around.between)
    room = length - begin - len(around.sep)
    count = 1 + max(-(-(len(context) - room) // stride), 0)
    return [Window(question, at, min(room, len(context) - at), begin) for at in range(0, count * stride, stride)]


def tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """(first, last) token that overlaps context[start:end]; None if the tokenizer dropped all its characters.

    Args:
      offsets: int32 [n, 2], the character spans of the context's tokens.
      start: the start of the answer, in characters.
      end: the end of the answer, in characters.
    """
    inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


class Encoded(NamedTuple):
    """The ids of a question and its context, and the character spans of the context's tokens, int32 [n, 2]."""

    asked: np.ndarray
    context: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True, eq=False)
class Examples(pipeline.Examples):
    """Random-access examples: `examples[i]` is example i."""

    encoded: Sequence[Encoded]
    windows: Sequence[Window]
    order: Sequence[int]
    """Example -> window."""
    around: labelled.Around
    length: int

    def example(self, i: int) -> dict[str, np.ndarray]:
        """The window of example `i`, with the positions of its answer."""
        window = self.windows[self.order[i]]
        asked, context, _ = self.encoded[window.question]
        shown = context[window.first : window.first + window.size]
        ids = np.concatenate([self.around.cls, asked, self.around.between, shown, self.around.sep])
        tokens_T, types_T = np.zeros((2, self.length), np.int32)
        tokens_T[: len(ids)] = ids
        types_T[window.begin : len(ids)] = 1
        numbers = {"lengths": len(ids), "starts": window.start, "ends": window.end}
        return {
            "tokens": tokens_T,
            "types": types_T,
            **{name: np.array(number, np.int32) for name, number in numbers.items()},
            "weights": np.array(1, np.float32),
        }


@dataclass(frozen=True, eq=False)
class Asked:
    """A prepared Questions. `train` is endless."""

    tokenizer: tokenizers.Tokenizer
    train: Examples
    validation: Examples
    test: Examples | None
    questions: dict[str, list[Question]]
    """The questions of each side."""
    facts: dict[str, int]
    """Counts of questions, windows, and what was truncated."""


def prepare(data: Questions, *, seed: int, tokenizer: tokenizers.Tokenizer | None = None) -> Asked:
    """The tokenised examples of every side, in memory.

    Args:
      data: the questions, the tokenizer and the windows.
      seed: the seed of the order of training examples.
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a bad file or question, or a tokenizer without [CLS] and [SEP].
    """
    read: dict[str, list[Question]] = {}
    for side in ("train", "validation", "test"):
        if (found := data.source.questions(side)) is not None:
            if not found:
                raise InputError(f"data.source.{side} of {data.source} has no questions")
            read[side] = found
    texts = dict.fromkeys(text for q in read["train"] for text in (q.context, q.question))
    documents = sources.in_memory((str(i), text) for i, text in enumerate(texts))
    tokenizer = tokenizers.build(data.tokenizer, documents, tokens.cache_dir(), given=tokenizer)
    made: dict[str, Examples] = {}
    facts: dict[str, int] = {}
    for side, found in read.items():
        made[side], counts = _examples(found, tokenizer, data)
        facts |= {f"{'training' if side == 'train' else side}_{what}": count for what, count in counts.items()}
    endless = dataclasses.replace(made["train"], order=pipeline.epochs(len(made["train"]), seed))
    return Asked(tokenizer, endless, made["validation"], made.get("test"), read, facts)


def _examples(
    found: Sequence[Question], tokenizer: tokenizers.Tokenizer, data: Questions
) -> tuple[Examples, dict[str, int]]:
    around, kept = labelled.around(tokenizer), question_tokens(data.length)
    contexts = {q.context: tokenizer.encode_with_offsets(q.context) for q in found}
    asked = tokenizer.encode_batch([q.question for q in found])
    encoded = [Encoded(ids[:kept], *contexts[q.context]) for ids, q in zip(asked, found, strict=True)]
    made: list[Window] = []
    strided = lost = 0
    for number, (question, ids) in enumerate(zip(found, encoded, strict=True)):
        plain = windows(number, ids.asked, ids.context, around, data.length, data.stride)
        first, last = question.starts[0], question.starts[0] + len(question.answers[0])
        marked = [_marked(window, tokens_of(ids.offsets, first, last)) for window in plain]
        strided += len(marked) > 1
        lost += not any(window.end for window in marked)
        made += marked
    counts = {
        "questions": len(found),
        "questions_truncated": sum(len(ids) > kept for ids in asked),
        "contexts_in_several_windows": strided,
        "windows": len(made),
        "windows_without_answer": sum(not window.end for window in made),
        "answers_in_no_window": lost,
    }
    return Examples(encoded, made, range(len(made)), around, data.length), counts


def _marked(window: Window, answer: tuple[int, int] | None) -> Window:
    """The window with the answer's tokens, if it holds all of them."""
    if answer is None or answer[0] < window.first or answer[1] >= window.first + window.size:
        return window
    shift = window.begin - window.first
    return window._replace(start=answer[0] + shift, end=answer[1] + shift)
