"""Pairs of texts: what files and TFDS give, and one line for whatever is wrong with them."""

import json
from pathlib import Path

import pytest

from transformer_jax.errors import InputError
from transformer_jax.tasks.translation.bitext import Columns, Lines, TfdsPairs


def lines(tmp_path: Path, source: str | bytes, target: str | bytes) -> Lines:
    for name, content in (("a.en", source), ("a.de", target)):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    files = (str(tmp_path / "a.en"), str(tmp_path / "a.de"))
    return Lines(files, files)


def columns(tmp_path: Path, name: str, content: str, **named) -> Columns:
    (tmp_path / name).write_text(content, "utf-8")
    return Columns((str(tmp_path / name),), (str(tmp_path / name),), **named)


def read(source) -> list[tuple[str, str]]:
    return [pair[:2] for pair in source.pairs("train")]


# ---- What a source says --------------------------------------------------------------------------------------------


def test_line_n_is_translated_by_line_n(tmp_path):
    source = lines(tmp_path, "a cat\na dog\n", "eine Katze\nein Hund")  # the last line end may be missing
    pairs = source.pairs("train")
    assert [pair[:2] for pair in pairs] == [("a cat", "eine Katze"), ("a dog", "ein Hund")] == read(source)
    assert [pair.where for pair in pairs][1] == f"{tmp_path}/a.en:2 and {tmp_path}/a.de:2"
    assert not source.has_test


def test_only_a_newline_ends_a_line(tmp_path):
    """Not U+2028, U+0085, a form feed or a lone carriage return; a byte-order mark and the CR of CRLF are no text."""
    inside = "one\u2028two\u0085three\x0cfour\rfive"
    source = lines(tmp_path, f"\ufeff{inside}\r\nnext\r\n", "eins\nzwei\n")
    assert read(source) == [(inside, "eins"), ("next", "zwei")]


def test_columns_by_name_by_number_and_within_objects(tmp_path):
    wanted = [("a cat", "eine Katze"), ('a "dog"', "ein Hund,\nbraun")]
    quoted = '\ufeffid,en,de\r\n1,a cat,eine Katze\r\n2,"a ""dog""","ein Hund,\nbraun"\r\n'
    assert read(columns(tmp_path, "a.csv", quoted, source="en", target="de")) == wanted
    assert read(columns(tmp_path, "a.tsv", 'x\ty\na "dog"\tz\n', source="0", target="1")) == [
        ("x", "y"),
        ('a "dog"', "z"),
    ]
    records = [{"translation": {"en": en, "de": de}} for en, de in wanted]
    written = "\n".join(map(json.dumps, records))
    named = {"source": "translation.en", "target": "translation.de"}
    assert read(columns(tmp_path, "a.jsonl", written, **named)) == wanted


def test_identity_follows_the_content(tmp_path):
    first = lines(tmp_path, "a\n", "b\n").pairs("train").identity()
    assert first == lines(tmp_path, "a\n", "b\n").pairs("train").identity()
    assert first != lines(tmp_path, "a\n", "c\n").pairs("train").identity()


def test_tfds_languages_nested_languages_and_named_features(write_tfds):
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    both = {"en": "a cat", "de": "eine Katze"}
    store = write_tfds("wmt16_translate/de-en", {"train": [both]}, {"en": text, "de": text})
    assert read(TfdsPairs("wmt16_translate/de-en", data_dir=store)) == [("a cat", "eine Katze")]
    assert read(TfdsPairs("wmt16_translate/de-en", "de", "en", data_dir=store)) == [("eine Katze", "a cat")]
    store = write_tfds("nested_pairs", {"train": [{"translation": both}]}, {"translation": {"en": text, "de": text}})
    named = {"source": "translation.en", "target": "translation.de"}
    assert read(TfdsPairs("nested_pairs", data_dir=store, **named)) == [("a cat", "eine Katze")]
    news = [{"article": "long\n\nstory", "highlights": "short", "id": "1"}]
    store = write_tfds("cnn_dailymail:3.4.0", {"train": news}, {"article": text, "highlights": text, "id": text})
    assert read(TfdsPairs("cnn_dailymail", "article", "highlights", data_dir=store)) == [("long\n\nstory", "short")]
    with pytest.raises(
        InputError, match=r"cnn_dailymail/3.4.0:train:0: no column 'en'; there are .*'article'.*.source"
    ):
        read(TfdsPairs("cnn_dailymail", data_dir=store))


def test_multi30k_is_the_same_from_both(shared_data):
    folder = shared_data / "translation" / "multi30k"
    files = Lines(*((f"{folder}/{name}.en", f"{folder}/{name}.de") for name in ("train", "val", "test_2016_flickr")))
    tfds = TfdsPairs("multi30k/de-en", data_dir=str(shared_data / "tfds"))
    for side, size in (("validation", 1014), ("test", 1000)):
        ours, theirs = ([pair[:2] for pair in source.pairs(side)] for source in (files, tfds))
        assert len(ours) == size and sorted(ours) == sorted(theirs)


# ---- Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\nc\n", "x\ny\n", r"a.en has 3 lines but \S+a.de has 2 \(train\); line n of one must"),
        ("a\nb", "x\ny\nz", r"a.en has 2 lines but \S+a.de has 3"),
        ("", "x\n", r"a.en is empty \(train\)"),
        ("a\n", "", r"a.de is empty \(train\)"),
        ("a\nb\n", b"x\nM\xfcnchen\n", r"a.de:2: not UTF-8 at byte 3 \(invalid start byte\); convert the file"),
        (b"a\nb\n\xc3", "x\ny\nz", r"a.en:3: not UTF-8 at byte 4 \(unexpected end of data\)"),
    ],
)
def test_lines_refused_in_one_line(tmp_path, source, target, message):
    with pytest.raises(InputError, match=message) as error:
        read(lines(tmp_path, source, target))
    assert "\n" not in str(error.value)


def test_files_that_are_not_two_files(tmp_path):
    good = lines(tmp_path, "a\n", "b\n").train
    with pytest.raises(InputError, match=r"a.en is both the source and the target \(train\)"):
        Lines((good[0], good[0]), good).pairs("train")
    with pytest.raises(InputError, match=r"gone.de does not exist \(the test pairs; looked in "):
        Lines(good, good, (good[0], f"{tmp_path}/gone.de")).pairs("test")
    with pytest.raises(InputError, match=r"is a folder \(the validation pairs"):
        Lines(good, (good[0], str(tmp_path))).pairs("validation")
    with pytest.raises(InputError, match=r"Lines.train = 'a.en' must name two files"):
        Lines("a.en", good)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Lines.test = \('a.en',\) must name two files"):
        Lines(good, good, ("a.en",))


@pytest.mark.parametrize(
    ("name", "content", "named", "message"),
    [
        (
            "a.csv",
            "en,fr\na,b\n",
            {},
            r"a.csv:2: no column 'source'; there are 'en', 'fr'; choose with --data.source.source",
        ),
        ("a.tsv", "source\ttarget\na\tb\tc\n", {}, r"a.tsv:2: 3 fields, where the header has 2"),
        ("a.jsonl", '{"source": "a", "target": ["b"]}', {}, r"a.jsonl:1: column 'target' holds list, not text"),
        (
            "a.jsonl",
            '{"source": "a", "target": "\\ud800"}',
            {},
            r"a.jsonl:1: column 'target' holds half of a surrogate",
        ),
        (
            "a.jsonl",
            '{"t": {"en": "a"}}',
            {"source": "t.en", "target": "t.de"},
            r"a.jsonl:1: no column 't.de'; there are 'en'",
        ),
        ("a.txt", "a\tb\n", {}, r"a.txt: the name must end in one of .csv, .tsv, .jsonl"),
    ],
)
def test_columns_refused_in_one_line(tmp_path, name, content, named, message):
    with pytest.raises(InputError, match=message) as error:
        read(columns(tmp_path, name, content, **named))
    assert "\n" not in str(error.value)


def test_contradictions(tmp_path):
    with pytest.raises(InputError, match=r"Columns\(train=\(\)\) names no file"):
        Columns(())
    with pytest.raises(InputError, match=r"Lines.validation_fraction = 1 must be between 0 and 1"):
        Lines(("a", "b"), validation_fraction=1)
    with pytest.raises(InputError, match=r"columns '0' and 'de': give two, both by name, or both by number"):
        Columns(("a.tsv",), ("a.tsv",), source="0", target="de")
    with pytest.raises(InputError, match=r"TfdsPairs: 'en' is both the source and the target"):
        TfdsPairs("x", target="en")


def test_two_files_are_enough(tmp_path):
    """Without validation files a part of the pairs validates: no source is on both sides, whatever its target."""
    texts = [(f"text {i % 150}", f"Text {i}") for i in range(300)]
    pair = lines(tmp_path, "\n".join(a for a, _ in texts), "\n".join(b for _, b in texts)).train
    table = columns(tmp_path, "a.tsv", "source\ttarget\n" + "\n\n".join("\t".join(two) for two in texts)).train
    for source in (Lines(pair, validation_fraction=0.2), Columns(table, validation_fraction=0.2)):
        train, validation = ([p[:2] for p in source.pairs(side)] for side in ("train", "validation"))
        assert sorted([*train, *validation]) == sorted(texts) and 20 <= len(validation) <= 100
        assert not {a for a, _ in train} & {a for a, _ in validation}
        assert source.pairs("train").identity() != source.pairs("validation").identity()


def test_what_is_no_pair_is_counted(tmp_path):
    columns(tmp_path, "a.tsv", "source\ttarget\n\na\tb\n\n")
    (tmp_path / "b.orc").write_bytes(b"")
    pairs = Columns((str(tmp_path),), (str(tmp_path),)).pairs("train")
    for _ in range(2):  # however often it is read
        assert [pair[:2] for pair in pairs] == [("a", "b")]
        assert pairs.skipped == {"blank lines": 2, ".orc files": 1}
