"""Questions and windows: where answers stand in tokens, how long contexts are strided, what is refused."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from transformer_jax.data.tokenizers import Bytes, TokenizerFile
from transformer_jax.errors import InputError
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.span_qa.questions import Questions, SquadJson, TfdsSquad

PIECES = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "who",
    "won",
    "?",
    "the",
    "den",
    "##ver",
    "bron",
    "##cos",
    "did",
)


def squad_file(path, *asked) -> str:
    """A file of SQuAD's format with (id, question, context, [(answer, start), ...]), a paragraph each."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"id": id, "question": question, "answers": [{"text": t, "answer_start": s} for t, s in answers]},
            ],
        }
        for id, question, context, answers in asked
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return str(path)


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return TokenizerFile(str(tmp_path))


def data(tmp_path, tokenizer, *asked, length=16, stride=3) -> Questions:
    path = squad_file(tmp_path / "a.json", *asked)
    return Questions(SquadJson(path, path), tokenizer, length, stride)


def pieces(example) -> list[str]:
    return [PIECES[i] for i in example["tokens"][: example["lengths"]]]


SHORT = ("q1", "Who won?", "The  Denver Broncos won.", [("Denver Broncos", 5), ("Broncos", 12)])
# 12 context tokens; the answer is tokens 6 to 9: den ##ver bron ##cos
LONG = ("q2", "Who won?", "the the the the the the Denver Broncos did did", [("Denver Broncos", 24)])


def test_an_answer_in_tokens(tmp_path, tokenizer):
    made = questions.prepare(data(tmp_path, tokenizer, SHORT), seed=0)
    example = made.validation[0]
    question, context = ["[CLS]", "who", "won", "?", "[SEP]"], ["the", "den", "##ver", "bron", "##cos", "won", "[UNK]"]
    assert pieces(example) == [*question, *context, "[SEP]"]
    assert pieces(example)[example["starts"] : example["ends"] + 1] == ["den", "##ver", "bron", "##cos"]
    np.testing.assert_array_equal(example["types"], [0] * 5 + [1] * 8 + [0] * 3)
    assert example["weights"] == 1 and made.facts["validation_windows_without_answer"] == 0
    assert made.questions["validation"][0].answers == ("Denver Broncos", "Broncos")


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [(0, 6, (0, 1)), (1, 2, (0, 0)), (3, 10, (1, 2)), (7, 10, (2, 2)), (10, 11, (3, 3)), (6, 7, None)],
)
def test_tokens_that_share_a_character(start, end, found):
    """Of "Denver won?": Den ver won ?, and a space that is in none."""
    offsets = np.array([(0, 3), (3, 6), (7, 10), (10, 11)], np.int32)
    assert questions.tokens_of(offsets, start, end) == found


def test_a_long_context_is_strided(tmp_path, tokenizer):
    """Room for 5 of 12 tokens, 3 apart: 0-4, 3-7, 6-10, 9-11 (as run_squad.py); the answer, 6-9, is in the third."""
    made = questions.prepare(data(tmp_path, tokenizer, LONG, length=11), seed=0)
    windows = made.validation.windows
    assert [(w.first, w.size) for w in windows] == [(0, 5), (3, 5), (6, 5), (9, 3)]
    examples = [made.validation[i] for i in range(4)]
    assert [(int(e["starts"]), int(e["ends"])) for e in examples] == [(0, 0), (0, 0), (5, 8), (0, 0)]
    assert pieces(examples[2])[5:9] == ["den", "##ver", "bron", "##cos"]
    covered = {w.first + i for w in windows for i in range(w.size)}
    assert covered == set(range(12))
    assert made.facts["validation_contexts_in_several_windows"] == 1
    assert made.facts["validation_windows"] == 4 and made.facts["validation_windows_without_answer"] == 3
    assert made.facts["validation_answers_in_no_window"] == 0
    narrow = questions.prepare(data(tmp_path, tokenizer, LONG, length=8, stride=2), seed=0)  # room for 3 of the 4
    assert narrow.facts["validation_answers_in_no_window"] == 1
    assert narrow.facts["validation_windows_without_answer"] == narrow.facts["validation_windows"] == 6


@pytest.mark.parametrize(("tokens", "room", "stride"), [(7, 7, 3), (8, 7, 3), (1, 7, 3), (100, 7, 7), (101, 11, 4)])
def test_windows_as_run_squad_makes_them(tokens, room, stride):
    wanted, at = [], 0
    while True:
        wanted.append((at, min(room, tokens - at)))
        if at + room >= tokens:
            break
        at += stride
    around = questions.labelled.Around(*(np.zeros(1, np.int32),) * 3)
    made = questions.windows(0, np.zeros(2, np.int32), np.zeros(tokens, np.int32), around, room + 5, stride)
    assert [(w.first, w.size) for w in made] == wanted
    assert {w.begin for w in made} == {4}


def test_long_questions_lose_their_end(tmp_path, tokenizer):
    long = ("q3", "who " * 30, "Denver won", [("Denver", 0)])
    made = questions.prepare(data(tmp_path, tokenizer, SHORT, long, length=20), seed=0)
    assert made.facts["validation_questions_truncated"] == 1
    example = made.validation[1]
    assert pieces(example)[:10] == ["[CLS]", *["who"] * 8, "[SEP]"]
    assert pieces(example)[example["starts"] : example["ends"] + 1] == ["den", "##ver"]
    assert questions.question_tokens(384) == 64


def test_training_is_each_window_once_an_epoch(tmp_path, tokenizer):
    made = questions.prepare(data(tmp_path, tokenizer, SHORT, LONG, length=11), seed=1)
    rows = [made.train[i] for i in range(3 * len(made.validation))]
    epoch = sorted(made.validation[i]["tokens"].tolist() for i in range(len(made.validation)))
    for at in range(0, len(rows), len(epoch)):
        assert sorted(row["tokens"].tolist() for row in rows[at : at + len(epoch)]) == epoch


def test_tfds(tmp_path, tokenizer, write_tfds):
    from tensorflow_datasets import features as tfds

    features = {
        **{"id": tfds.Text(), "title": tfds.Text(), "context": tfds.Text(), "question": tfds.Text()},
        "answers": tfds.Sequence({"text": tfds.Text(), "answer_start": np.int32}),
    }
    id, question, context, answers = SHORT
    texts, starts = zip(*answers, strict=True)
    row = {"id": id, "title": "t", "question": question, "context": context}
    row["answers"] = {"text": list(texts), "answer_start": list(starts)}
    store = write_tfds("squad/v1.1:3.0.0", {"train": [row], "validation": [row, row]}, features)
    source, path = TfdsSquad(data_dir=store), squad_file(tmp_path / "a.json", SHORT)
    assert source.questions("train") == SquadJson(path, path).questions("train")
    assert len(source.questions("validation")) == 2 and source.questions("test") is None
    assert "tensorflow" not in sys.modules
    wrong = write_tfds("other", {"train": [{"id": "a"}]}, {"id": tfds.Text()})
    with pytest.raises(InputError, match=r"other/1.0.0: no feature 'question', which SQuAD has; it has id"):
        TfdsSquad("other", data_dir=wrong).questions("train")


# ---- What is refused


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("q9", "who?", "Denver won", [("Broncos", 0)]), r"question 'q9': the answer 'Broncos' is not at character 0"),
        (("q9", "who?", " Denver won", [("Denver", 0)]), r"of the context, which has ' Denve' there"),
        (("q9", "who?", "Denver won", [("won", -3)]), r"the answer 'won' is not at character -3"),
        (("q9", "who?", "Denver won", []), r"question 'q9': no answer; remove questions without one \(SQuAD 2.0\)"),
        (("q9", " ", "Denver won", [("won", 7)]), r"question 'q9': the question is empty"),
        (("q9", "who?", "", []), r"question 'q9': no answer"),
    ],
)
def test_bad_questions(tmp_path, tokenizer, asked, message):
    with pytest.raises(InputError, match=message):
        questions.prepare(data(tmp_path, tokenizer, SHORT, asked), seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"a\.json cannot be read as JSON"),
        ("[]", r"a\.json: no 'data' \(it is not an object\)"),
        ('{"data": {}}', r"a\.json: 'data' holds dict, not list"),
        ('{"data": []}', r"data.source.train of .* has no questions"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\]: no 'context' \(it has 'qas'\)"),
        (
            '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "x", "question": "b"}]}]}]}',
            r"a\.json: question 'x': no 'answers' \(it has 'id', 'question'\)",
        ),
    ],
)
def test_bad_files(tmp_path, tokenizer, text, message):
    good = data(tmp_path, tokenizer, SHORT)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message):
        questions.prepare(good, seed=0)


def test_bad_settings(tmp_path, tokenizer):
    good = data(tmp_path, tokenizer, SHORT)
    with pytest.raises(InputError, match=r"data.stride = 317 must be between 1 and 316"):
        Questions(good.source, tokenizer, length=384, stride=317)
    with pytest.raises(InputError, match=r"data.length = 4 leaves no room"):
        Questions(good.source, tokenizer, length=4, stride=1)
    with pytest.raises(InputError, match="no tokens for the beginning and the end"):
        questions.prepare(dataclasses.replace(good, tokenizer=Bytes()), seed=0)
    with pytest.raises(InputError, match=r"nowhere cannot be read"):
        SquadJson(f"{tmp_path}/nowhere", "").questions("train")
