"""What a model is asked, from files of any kind: the rows that training reads, and one answer for each."""

import csv
import io
import json
import sys
import types
from dataclasses import dataclass

import pytest

from tools.drills import odd_files
from transformer_jax import contracts
from transformer_jax.data import inputs
from transformer_jax.errors import InputError
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.tagging import tagged


def asks(found):
    return [one.query for one in found]


@dataclass(frozen=True)
class Length(contracts.Task):
    """A task that answers with the length of each text, and cannot answer "bad"."""

    def predict(self, params, model_cfg, tokenizer, inputs, *, top):
        return ({"error": "no answer to this"} if one == "bad" else {"length": len(one), "tags": [1]} for one in inputs)

    def describe(self, prediction):
        return f"{prediction['length']} letters"


def answered(asked):
    return Length().answered(LOADED, asked, contracts.Answers())


LOADED = types.SimpleNamespace(params=None, config=None, tokenizer=None)


def test_odd_files_are_read_as_training_reads_them(tmp_path):
    """`tools/drills/odd_files.py` does so with thousands."""
    for number in range(100):
        odd = odd_files.draw(tmp_path, 1, number)
        assert odd_files.verdict(odd) in ("same", "refused"), odd.recipe


def test_every_line_is_an_input(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\n two\r\n")
    found = inputs.lines(str(tmp_path / "a.txt"))
    assert asks(found) == ["one", "", " two"] and [one.where.rpartition(":")[2] for one in found] == ["1", "2", "3"]
    assert [one.error for one in found] == ["", "the input is empty", ""]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"\xef\xbb\xbfone\n\n"))))  # type: ignore[arg-type]
    assert asks(inputs.lines("-")) == ["one", ""]
    assert asks(inputs.arguments(["", "x"])) == ["", "x"]
    with pytest.raises(InputError, match=r"input 'caf'... is not UTF-8 at byte 3"):
        inputs.arguments(["caf\udce9"])


def test_a_table_is_read_by_column(tmp_path):
    (tmp_path / "a.csv").write_text('id,review,other\n1,"good, or\nnot",x\n2,,y\n')
    found = inputs.table(str(tmp_path / "a.csv"), ("review",))
    assert asks(found) == ["good, or\nnot", ""] and found[1].error == "the input is empty"
    assert found[0].columns == {"id": "1", "review": "good, or\nnot", "other": "x"}
    assert asks(inputs.table(str(tmp_path / "a.csv"), ("review", "other")))[0] == ("good, or\nnot", "x")
    assert asks(inputs.table(str(tmp_path / "a.csv"), ("review",), pairs=True))[0] == ("good, or\nnot",)
    with pytest.raises(InputError, match=r"a.csv:2: no column 'text'; there are .* with --text and --text-b"):
        inputs.table(str(tmp_path / "a.csv"), ("text",))
    with pytest.raises(
        InputError, match=r"a.csv is a table; choose the column of the input with --text: 'id', 'review', 'other'"
    ):
        inputs.lines(str(tmp_path / "a.csv"))


def test_words_and_questions_without_answers(tmp_path):
    (tmp_path / "a.conll").write_text("Jim\nHenson\n\nwas\n")
    assert asks(tagged.inputs(str(tmp_path / "a.conll"))) == [("Jim", "Henson"), ("was",)]
    tree = {"data": [{"paragraphs": [{"context": "Denver won", "qas": [{"id": "q1", "question": "Who won?"}]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    (found,) = questions.inputs(str(tmp_path / "a.json"))
    assert found.query == ("Who won?", "Denver won") and found.columns == {"id": "q1"}


def test_images_of_folders_and_files(tmp_path, capsys):
    for name in ("b.JPG", "a.png", "c.gif", ".hidden.png", "sub/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = inputs.images([str(tmp_path), "e.bmp", ""])
    assert asks(found) == [f"{tmp_path}/{name}" for name in ("a.png", "b.JPG", "sub/d.webp")] + ["e.bmp", ""]
    assert "skipped, because they are not images: 1 .gif files" in capsys.readouterr().err and found[-1].error


def test_one_answer_for_each_input(capsys):
    asked = inputs.arguments(["one", "", "bad", "three"])
    found = list(answered(asked))
    assert [one.query for one, _ in found] == ["one", "", "bad", "three"]
    assert [answer.get("length") for _, answer in found] == [3, None, None, 5]
    assert [answer.get("error") for _, answer in found] == [None, "the input is empty", "no answer to this", None]
    assert "2 of 4 inputs have no answer; the first: input 2: the input is empty" in capsys.readouterr().err
    shown = "".join(Length().respond(LOADED, asked, contracts.Answers())).splitlines()
    assert shown == ["3 letters", "(no answer: the input is empty)", "(no answer: no answer to this)", "5 letters"]
    as_json = "".join(Length().respond(LOADED, asked, contracts.Answers(json=True))).splitlines()
    assert json.loads(as_json[1]) == {"input": "", "error": "the input is empty"} and len(as_json) == 4
    with pytest.raises(InputError, match=r"none of 2 inputs has an answer; the first: input 1: the input is empty"):
        list(answered(inputs.arguments(["", "bad"])))


def test_answers_are_written_beside_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("id,text,length\n1,one,x\n2,,y\n3,bad,z\n")
    rows = list(answered(inputs.table(str(tmp_path / "a.csv"), ("text",))))
    inputs.write(tmp_path / "b.csv", rows)
    with (tmp_path / "b.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["id"] for row in written] == ["1", "2", "3"] and [row["length"] for row in written] == ["x", "y", "z"]
    assert [row["predicted_length"] for row in written] == ["3", "", ""] and written[0]["tags"] == "[1]"
    assert [row["error"] for row in written] == ["", "the input is empty", "no answer to this"]
    inputs.write(tmp_path / "b.jsonl", rows)
    assert json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0]) == {
        **{"id": "1", "text": "one", "length": "x", "predicted_length": 3, "tags": [1]},
    }
    inputs.write(tmp_path / "c.csv", answered(inputs.arguments(["one"])))
    assert (tmp_path / "c.csv").read_text() == "text,length,tags\none,3,[1]\n"
    with pytest.raises(InputError, match=r"--out .*a.txt: the name must end in .csv or .jsonl"):
        inputs.check_out(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"there is no folder .*gone; make it"):
        inputs.check_out(tmp_path / "gone" / "a.csv")
