"""Records of tables: the same rows whatever wrote the file, and one line for what is no table."""

import csv
import gzip
import json
from collections import Counter

import pytest

from transformer_jax.data import records
from transformer_jax.data.tables import Table, refuse_empty
from transformer_jax.errors import InputError
from transformer_jax.tasks.span_qa.questions import SquadJson
from transformer_jax.tasks.tagging.tagged import Conll
from transformer_jax.tasks.translation.bitext import Columns, Lines

ROWS = [("plain", "x"), ('a "b", c', "y"), ("two\nlines", "x"), ("Grüße 世界", "y")]


def read(path, **how):
    return [record for _, record in records.read(path, headed=True, **how)]


def test_a_text_of_any_length(tmp_path):
    """csv's own limit is 131,072 characters a field."""
    long = "word " * 40_000
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), (long, "x")])
    assert read(tmp_path / "a.csv") == [{"text": long, "label": "x"}]


@pytest.mark.parametrize(
    ("end", "quoting"),
    [("\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\r", csv.QUOTE_ALL)],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheets_write_csv_in_many_ways(tmp_path, encoding, end, quoting):
    for name, pack in {"a.csv": bytes, "b.CSV.gz": gzip.compress}.items():
        with (tmp_path / "plain").open("w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, quoting=quoting, lineterminator=end)
            writer.writerow(("text", " label "))
            file.write(end)
            writer.writerows(ROWS)
        (tmp_path / name).write_bytes(pack((tmp_path / "plain").read_bytes()))
        skipped: Counter[str] = Counter()
        found = read(tmp_path / name, skipped=skipped)
        assert [(record["text"], record["label"]) for record in found] == ROWS
        assert skipped == {"blank lines": 1}


def test_columns_without_a_name_are_numbered(tmp_path):
    (tmp_path / "a.csv").write_text(",text,label,,\n0,a,b,,\n")  # a data frame's index, and what a spreadsheet adds
    assert read(tmp_path / "a.csv") == [{"0": "0", "text": "a", "label": "b", "3": "", "4": ""}]


def test_an_empty_text_in_quotes_is_a_record(tmp_path):
    (tmp_path / "a.csv").write_text('text\na\n""\n\nb\n')
    assert [record["text"] for record in read(tmp_path / "a.csv")] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("name", "content", "mark"), [("a.csv", "text;label\na;x\n", ";"), ("a.csv", "text\tlabel\na\tx\n", r"\\t"),
                                  ("a.tsv", "text,label\na,x\n", ",")]
)  # fmt: skip
def test_another_separator_is_named(tmp_path, name, content, mark):
    (tmp_path / name).write_text(content)
    for named in ({}, {"text": "0", "label": "1"}):
        with pytest.raises(InputError, match=rf"no column '\w+'; the whole line is one field with '{mark}' in"):
            Table(str(tmp_path / name), str(tmp_path / name), **named).rows("train")


def test_all_empty_texts_are_named_at_once(tmp_path):
    (tmp_path / "a.csv").write_text("text,then,label\n" + "a,b,x\n ,b,x\na,,x\n" * 4)
    (tmp_path / "b.jsonl").write_text('{"text": null, "then": "b", "label": "x"}\n')
    source = Table(str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl"), text_b="then")
    with pytest.raises(InputError, match=r"9 rows have an empty text: \S+a.csv:3, \S+a.csv:4, .* and 4 more; fill"):
        refuse_empty([source.rows("train"), source.rows("validation")])
    (tmp_path / "a.csv").write_text("text,then,label\na,b,x\n")
    with pytest.raises(InputError, match=r"a row has an empty text: \S+b.jsonl:1; fill"):
        refuse_empty([source.rows("train"), source.rows("validation")])


def test_files_in_a_folder_that_are_no_tables_are_counted(tmp_path):
    for name in ("a.csv", "B.CSV", "c.orc", "d.orc", "README", ".hidden"):
        (tmp_path / name).write_text("text,label\na,x\n")
    rows = Table(str(tmp_path), str(tmp_path / "a.csv")).rows("train")
    assert len(rows) == 2 and rows.skipped == {".orc files": 2, "other files": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_format_is_read_alike(tmp_path, encoding, end):
    """Byte-order marks, line ends, encodings and packing are no part of a word, a pair or a question."""

    def file(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(gzip.compress(text.replace("\n", end).encode(encoding)))
        return str(tmp_path / name)

    conll = file("ner.txt", "-DOCSTART- -X- O\n\nParis NNP B-LOC\nis V O\n\n\nnice J O\n")
    assert [s.words for s in Conll(conll, conll).sentences("train") or []] == [("Paris", "is"), ("nice",)]
    two = (file("a.en", "a\n\nb\n"), file("a.de", "c\nd\ne"))
    assert [pair[:2] for pair in Lines(two, two).pairs("train")] == [("a", "c"), ("", "d"), ("b", "e")]
    table = file("p.jsonl", '\n{"source": "a", "target": "b"}\n')
    assert [pair[:2] for pair in Columns(table, table).pairs("train")] == [("a", "b")]  # type: ignore[arg-type]
    asked = {"id": "1", "question": "who", "answers": [{"text": "me", "answer_start": 3}]}
    squad = file("q.json", json.dumps({"data": [{"paragraphs": [{"context": "is me", "qas": [asked]}]}]}, indent=1))
    assert [q.answers for q in SquadJson(squad, squad).questions("train") or []] == [("me",)]
