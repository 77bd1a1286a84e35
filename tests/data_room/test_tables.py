"""Rows of labelled text: what files and TFDS give, which side a row is on, and one line for whatever is wrong."""

import json
from collections import Counter
from pathlib import Path

import pytest

from transformer_jax.data.tables import Table, TfdsTable
from transformer_jax.errors import InputError
from transformer_jax.tasks.classification.stdlib_topics import TOPICS, StdlibTopics

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SST2 = SHARED / "classification" / "sst2"
COLUMNS = {"text": "said", "label": "mood"}


def table(tmp_path, name: str, content: str | bytes, **columns) -> Table:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Table((str(path),), (str(path),), **(COLUMNS | columns))


def rows(tmp_path, name, content, **columns):
    return [row[:3] for row in table(tmp_path, name, content, **columns).rows("train")]


# ---- What a file says ----------------------------------------------------------------------------------------------


def test_csv_with_quotes_commas_and_newlines_inside(tmp_path):
    source = table(tmp_path, "a.csv", '\ufeffid,said,mood\r\n1,"a ""fine"", long\nday",good\r\n2,é,bad\r\n\r\n')
    held = list(source.rows("train"))
    assert [row[:3] for row in held] == [('a "fine", long\nday', None, "good"), ("é", None, "bad")]
    assert [row.where.rpartition(":")[2] for row in held] == ["2", "4"]  # lines of the file, not rows


def test_tsv_takes_quotes_for_what_they_are(tmp_path):
    assert rows(tmp_path, "a.tsv", 'mood\tsaid\ngood\t"Hello, he said\nbad\tno"\n') == [
        ('"Hello, he said', None, "good"),
        ('no"', None, "bad"),
    ]


def test_columns_by_number_where_there_is_no_header(tmp_path):
    assert rows(tmp_path, "a.tsv", "fine\t1\npoor\t0\n", text="0", label="1") == [
        ("fine", None, "1"),
        ("poor", None, "0"),
    ]


def test_jsonl_keeps_numbers(tmp_path):
    lines = [{"said": "a", "mood": 1.5, "then": "b"}, {"then": "d", "mood": 2, "said": "c\u2028c"}]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    assert rows(tmp_path, "a.jsonl", content, text_b="then") == [("a", "b", 1.5), ("c\u2028c", "d", 2)]


def test_without_a_validation_file_no_text_is_on_both_sides(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"number {i % 300},x\n" for i in range(600)))
    source = Table((str(path),), validation_fraction=0.2)
    train, validation = ({row.text for row in source.rows(side)} for side in ("train", "validation"))
    assert not train & validation and len(train | validation) == 300
    assert 0.1 < len(validation) / 300 < 0.3
    assert len(source.rows("train")) + len(source.rows("validation")) == 600 and not source.has_test


def test_identity_changes_with_a_label(tmp_path):
    first, again = (table(tmp_path, "a.tsv", "said\tmood\na\tx\n").rows("train").identity() for _ in range(2))
    assert first == again != table(tmp_path, "a.tsv", "said\tmood\na\ty\n").rows("train").identity()


# ---- Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "said,feeling\na,b\n", {}, r"a.csv:2: no column 'mood'; there are 'said', 'feeling'; choose with"),
        ("a.csv", "said,mood\na,b\nc\n", {}, r"a.csv:3: 1 fields, where the header has 2; a text with commas"),
        ("a.csv", 'said,mood\n"a,b\n', {}, r"a.csv:2: not CSV \(unexpected end of data\)"),
        ("a.csv", "said,mood,mood\na,b,c\n", {}, r"a.csv:1: two columns are named 'mood'; rename one"),
        (
            "a.tsv",
            "a\tb\nc\td\te\n",
            {"text": "0", "label": "1"},
            r"a.tsv:2: 3 fields, where the first row has 2; a text in .tsv",
        ),
        ("a.tsv", b"said\tmood\nfine\tx\nf\xfcr\ty\n", {}, r"a.tsv:3: not UTF-8 at byte 18 \(invalid start byte\)"),
        ("a.tsv", "said\tmood\n", {}, r"a.tsv \(train\): no rows"),
        ("a.tsv", "", {}, r"a.tsv \(train\): no rows"),
        ("a.txt", "said\tmood\n", {}, r"a.txt: the name must end in one of .csv, .tsv, .jsonl"),
        ("a.jsonl", '{"said": "a", "mood": 1}\n{"said"\n', {}, r"a.jsonl:2: not a JSON object \(Expecting ':'"),
        ("a.jsonl", "[1]\n", {}, r"a.jsonl:1: list, not a JSON object"),
        ("a.jsonl", '{"said": 3, "mood": 1}\n', {}, r"a.jsonl:1: column 'said' holds int, not text"),
        (
            "a.jsonl",
            '{"said": "a", "mood": true}\n',
            {},
            r"a.jsonl:1: column 'mood' holds true, not a name or a number",
        ),
    ],
)
def test_refused_in_one_line(tmp_path, name, content, columns, message):
    source = table(tmp_path, name, content, **columns)
    with pytest.raises(InputError, match=message) as error:
        source.rows("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": ""}, r"Table\(train=\(\)\) names no file"),  # one path may be written as a string
        ({"train": ()}, r"Table\(train=\(\)\) names no file"),
        ({"train": "a", "validation_fraction": 1.0}, r"validation_fraction = 1.0 must be between 0 and 1"),
        ({"train": "a", "text": "0", "label": "label"}, r"columns '0', 'label': give all of them by name, or all by"),
    ],
)
def test_contradictions(fields, message):
    with pytest.raises(InputError, match=message):
        Table(**fields)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no such file or folder: .*b.csv \(the test data"):
        Table((str(tmp_path / "a.csv"),), test=(str(tmp_path / "b.csv"),)).rows("test")


# ---- SST-2, as files and as TFDS -----------------------------------------------------------------------------------


@pytest.mark.skipif(not (SST2.exists() and (SHARED / "tfds").exists()), reason="SST-2 is not in ../shared/data")
def test_sst2_is_the_same_from_both():
    files = Table(*((str(SST2 / f"{name}.tsv"),) for name in ("train", "dev", "test")), text="0", label="1")
    tfds = TfdsTable("sst2_sentences", test="test", data_dir=str(SHARED / "tfds"))
    sizes = {"train": 6920, "validation": 872, "test": 1821}
    for side, size in sizes.items():
        ours, theirs = files.rows(side), tfds.rows(side)
        assert len(ours) == len(theirs) == size
        named = Counter((row.text, ("negative", "positive")[int(row.label)]) for row in ours)
        assert named == Counter((row.text, row.label) for row in theirs)
    with pytest.raises(InputError, match=r"sst2_sentences/1.0.0: no feature 'stars'; it has label, sentence"):
        TfdsTable("sst2_sentences", label="stars", data_dir=str(SHARED / "tfds")).rows("train")
    with pytest.raises(InputError, match=r"no feature 'text'; it has"):
        TfdsTable("sst2_sentences", text="text", data_dir=str(SHARED / "tfds")).rows("validation")


# ---- Topics of the standard library --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def topics():
    return {side: StdlibTopics().rows(side) for side in ("train", "validation", "test")}


def test_no_file_is_on_two_sides_and_every_topic_on_each(topics):
    files = {side: {row.where.rpartition(":")[0] for row in rows} for side, rows in topics.items()}
    assert not files["train"] & files["validation"] and not (files["train"] | files["validation"]) & files["test"]
    assert len(TOPICS) == 20
    for rows in topics.values():
        counts = Counter(row.label for row in rows)
        assert list(counts) == list(TOPICS) and min(counts.values()) >= 10
    assert len(topics["train"]) > 4000 and min(len(topics["validation"]), len(topics["test"])) > 900
    assert max(Counter(row.label for row in topics["train"]).values()) == 300


def test_no_passage_that_trains_is_asked_for(topics):
    """Tables and licences stand in several files, word for word."""
    trained = {row.text for row in topics["train"]}
    assert not trained & {row.text for side in ("validation", "test") for row in topics[side]}


def test_a_passage_does_not_name_its_topic(topics):
    for row in topics["test"]:
        lines = row.text.split("\n")
        assert len(lines) == 10 and all(line.strip() for line in lines)
    for label, named in {
        "asyncio": "asyncio",
        "json": "json",
        "archives": "tarfile",
        "re": " re.",
        "xml": "XML",
    }.items():
        texts = [row.text for row in topics["train"] if row.label == label]
        assert texts and not any(named in text for text in texts)
    assert any(" re." in row.text for row in topics["train"])  # in other topics it is said


def test_the_passage_is_where_it_says(topics):
    import sysconfig

    row = topics["test"][0]
    name, _, line = row.where.rpartition(":")
    text = Path(sysconfig.get_path("stdlib"), name).read_text("utf-8").splitlines()
    assert text[int(line) - 1] == row.text.split("\n")[0]


def test_a_python_without_its_source(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"has 0 files with passages of 10 lines under tarfile.*with the source files"):
        StdlibTopics().rows("train")
