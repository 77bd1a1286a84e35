"""Sources: what they read, how they split it, and what they say of bad input."""

import gzip
import json
import shutil
import sys

import pytest

from transformer_jax.data import source_files, sources, text_files
from transformer_jax.data.sources import Embedded, Records, TextFiles, Tfds
from transformer_jax.errors import InputError


def names(documents) -> set[str]:
    return {name for name, _ in documents}


def text(documents) -> str:
    return "".join(text for _, text in documents)


# ---- The embedded corpus -------------------------------------------------------------------------------------------


def test_embedded_has_the_library_and_not_its_tests():
    train, validation = Embedded().documents("train"), Embedded().documents("validation")
    everything = names(train) | names(validation)
    assert {"argparse.py", "json/decoder.py", "asyncio/base_events.py"} <= everything
    folders = {part for name in everything for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__", "pydoc_data"}
    assert not any(name.startswith(("config-", "_sysconfigdata")) for name in everything)
    assert text(train).count("def ") > 10_000


def test_embedded_split_is_by_file_and_five_to_eight_percent():
    train, validation = Embedded().documents("train"), Embedded().documents("validation")
    assert not names(train) & names(validation)
    assert 0.05 < validation.nbytes / (train.nbytes + validation.nbytes) < 0.08
    # By the path alone: these fell where they did on every machine and in every Python version tested.
    assert {"traceback.py", "importlib/_bootstrap_external.py"} <= names(validation)
    assert {"argparse.py", "typing.py"} <= names(train)


def test_embedded_reads_the_same_twice_in_sorted_order():
    documents = Embedded().documents("validation")
    first = list(documents)
    assert first == list(documents) == list(Embedded().documents("validation"))
    assert [name for name, _ in first] == sorted(name for name, _ in first)
    assert documents.identity() == Embedded().documents("validation").identity()


# ---- Text files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_one_file_is_cut_as_nanogpt_cuts_it(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(text_files, "PIECE", piece)  # bytes, so that characters of 2, 3 and 4 bytes are cut as well
    written = "Grüße, 世界 🙂\n" * 23 + "no newline at the end"
    (tmp_path / "a.txt").write_bytes(written.encode())
    source = TextFiles((str(tmp_path / "a.txt"),))
    cut = int(len(written) * 0.9)
    assert text(source.documents("train")) == written[:cut]
    assert text(source.documents("validation")) == written[cut:]
    assert names(source.documents("train")) == {"a.txt"}


def test_pieces_end_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE", 64)
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(200)))
    pieces = [piece for _, piece in TextFiles(str(tmp_path), validation=str(tmp_path)).documents("train")]
    assert len(pieces) > 10
    assert all(piece.endswith("\n") for piece in pieces)


def test_many_files_split_by_path_not_by_company(tmp_path):
    for i in range(60):
        folder = tmp_path / f"d{i % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.txt").write_text(f"text {i}\n")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    source = TextFiles(str(tmp_path), validation_fraction=0.2)
    train, validation = names(source.documents("train")), names(source.documents("validation"))
    assert len(train) + len(validation) == 60
    assert not train & validation
    assert 3 <= len(validation) <= 25
    shutil.copytree(tmp_path / "d0", tmp_path / "elsewhere" / "d0")
    moved = TextFiles(str(tmp_path / "elsewhere"), validation_fraction=0.2).documents("validation")
    assert names(moved) == {name for name in validation if name.startswith("d0/")}


def test_two_files_give_both_sides_a_file(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    for fraction in (0.01, 0.1):
        source = TextFiles(str(tmp_path), validation_fraction=fraction)
        assert {*text(source.documents("train")), *text(source.documents("validation"))} == {"a", "b"}


def test_globs_folders_and_own_validation(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    for path, content in {"x/1.txt": "one", "x/y/2.txt": "two", "x/3.md": "three"}.items():
        (tmp_path / path).write_text(content)
    source = TextFiles((f"{tmp_path}/x/**/*.txt",), validation=(f"{tmp_path}/x/3.md",))
    assert list(source.documents("train")) == [("1.txt", "one"), ("y/2.txt", "two")]
    assert list(source.documents("validation")) == [("3.md", "three")]
    twice = TextFiles((f"{tmp_path}/x", f"{tmp_path}/x/1.txt"), validation=(f"{tmp_path}/x/3.md",))
    assert len(list(twice.documents("train"))) == 3  # a file named twice is read once


def test_files_of_one_name_in_two_folders_are_two_documents(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(folder)
    source = TextFiles((f"{tmp_path}/a", f"{tmp_path}/b"), validation=str(tmp_path))
    assert len(names(source.documents("train"))) == 2


def test_identity_follows_the_content(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    source = TextFiles(str(path))
    before = source.documents("train").identity()
    assert before == source.documents("train").identity() != source.documents("validation").identity()
    path.write_text("two\n")
    changed = source.documents("train").identity()
    assert changed != before
    monkeypatch.setattr(source_files, "READ_TO_IDENTIFY", 1)  # too large to read: size and time stand for the content
    large = source.documents("train").identity()
    path.write_text("three\n")
    assert source.documents("train").identity() != large


# ---- JSONL ---------------------------------------------------------------------------------------------------------


def test_jsonl_reads_plain_and_gzipped_and_splits_by_text(tmp_path):
    lines = [json.dumps({"body": f"text {i % 150} ü"}, ensure_ascii=False) for i in range(300)]  # each text twice
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:150]) + "\n\n")
    with gzip.open(tmp_path / "b.json.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(reversed(lines[150:])))
    source = Records(str(tmp_path), field="body", validation_fraction=0.2)
    train, validation = list(source.documents("train")), list(source.documents("validation"))
    assert len(train) + len(validation) == 300
    assert len(names(train)) + len(names(validation)) == 300
    assert not {text for _, text in train} & {text for _, text in validation}
    assert 20 <= len(validation) <= 100
    assert ("a.jsonl:1" in names(train)) != ("a.jsonl:1" in names(validation))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a"}', r"a\.jsonl:2: no column 'text'; there are 'txt'; choose with"),
        ('{"text": 3}', r"a\.jsonl:2: column 'text' holds int"),
        ('"text"', r"a\.jsonl:2: str, not a JSON object"),
        ('{"text": ', r"a\.jsonl:2: not a JSON object"),
        ("[" * 100_000, r"a\.jsonl:2: not a JSON object"),
        (b'{"text": "\xff"}', r"a\.jsonl:2: not UTF-8"),
    ],
)
def test_jsonl_names_the_bad_line(tmp_path, line, message):
    data = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + data + b"\n")
    with pytest.raises(InputError, match=message):
        list(Records(str(tmp_path / "a.jsonl")).documents("train"))


def test_half_a_gzip_file_is_named(tmp_path):
    whole = gzip.compress(b'{"text": "abc"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: not a whole compressed file"):
        list(Records(str(tmp_path)).documents("train"))


# ---- Bad input -----------------------------------------------------------------------------------------------------


def test_missing_empty_and_broken_paths_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no such file or folder: .*/nowhere"):
        TextFiles(f"{tmp_path}/nowhere").documents("train")
    with pytest.raises(InputError, match=r"no files in "):
        TextFiles(str(tmp_path)).documents("train")
    with pytest.raises(InputError, match=r"no files in .*\*\.txt"):
        TextFiles(f"{tmp_path}/*.txt").documents("train")
    with pytest.raises(InputError, match=r"no files ending in \.csv, \.tsv, \.jsonl"):
        Records(str(tmp_path)).documents("train")
    with pytest.raises(InputError, match="names no file"):
        TextFiles(())
    with pytest.raises(InputError, match=r"validation_fraction = 1\.5"):
        TextFiles("a", validation_fraction=1.5)


@pytest.mark.parametrize(("end", "at"), [(b"caf\xe9 bad\n", 103), (b"\xe2\x82", 100)])
@pytest.mark.parametrize("piece", [8, 1 << 20])
def test_invalid_utf8_is_named_with_its_position(tmp_path, monkeypatch, end, at, piece):
    monkeypatch.setattr(text_files, "PIECE", piece)
    (tmp_path / "a.txt").write_bytes(b"good\n" * 20 + end)
    with pytest.raises(InputError, match=rf"a\.txt:21: not UTF-8 at byte {at} "):
        list(TextFiles(str(tmp_path / "a.txt")).documents("train"))


# ---- TFDS ----------------------------------------------------------------------------------------------------------


def test_tfds_shakespeare_is_the_plain_file(shared_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared_data / "tfds"))
    plain = TextFiles(str(shared_data / "text" / "tiny_shakespeare.txt"))
    tfds = Tfds("tiny_shakespeare", validation="validation+test")  # TFDS halves nanoGPT's last tenth
    assert text(tfds.documents("train")) == text(plain.documents("train"))
    assert text(tfds.documents("validation")) == text(plain.documents("validation"))
    assert "tensorflow" not in sys.modules


def test_tfds_says_what_is_missing(shared_data, tmp_path):
    store = str(shared_data / "tfds")
    with pytest.raises(InputError, match=r"'c4/en' is not in .*tiny_shakespeare.*tfds build c4/en"):
        Tfds("c4/en", data_dir=store).documents("train")
    with pytest.raises(InputError, match=r"is not in .* \(empty or absent\)"):
        Tfds("c4/en", data_dir=str(tmp_path)).documents("train")
    with pytest.raises(InputError, match=r"multi30k/de-en/1\.0\.0"):
        Tfds("multi30k", data_dir=store).documents("train")
    with pytest.raises(InputError, match=r"split 'dev'; it has train \(1\), validation \(1\), test \(1\)"):
        Tfds("tiny_shakespeare", data_dir=store, validation="dev").documents("validation")
    with pytest.raises(InputError, match="no feature 'txt'; it has text"):
        list(Tfds("tiny_shakespeare", data_dir=store, field="txt").documents("train"))
    with pytest.raises(InputError, match="feature 'label' holds int"):
        list(Tfds("sst2_sentences", data_dir=store, field="label").documents("train"))


def test_tfds_store_in_tfrecord_format_is_answered_with_the_conversion(shared_data, tmp_path):
    original = shared_data / "tfds" / "tiny_shakespeare"
    folder = shutil.copytree(original, tmp_path / "tiny_shakespeare", copy_function=shutil.copy) / "1.0.0"
    folder.chmod(0o755)
    for path in list(folder.iterdir()):
        path.chmod(0o644)
        path.rename(folder / path.name.replace("array_record", "tfrecord"))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    command = rf"convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    with pytest.raises(InputError, match=command):
        Tfds("tiny_shakespeare", data_dir=str(tmp_path)).documents("train")


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_no_code_of_a_store_is_run(tmp_path, write_tfds, monkeypatch, key):
    """TFDS imports the module of a feature's class, which a store from a stranger may name at will."""
    import tensorflow_datasets as tfds

    store = write_tfds("notes", {"train": [{"text": "a"}]}, {"text": tfds.features.Text()})
    assert text(Tfds("notes", data_dir=store).documents("train")) == "a"
    (tmp_path / "strange_module.py").write_text("raise SystemExit('its code was run')")
    monkeypatch.syspath_prepend(tmp_path)
    (path,) = (tmp_path / "tfds").rglob("features.json")
    tree = json.loads(path.read_text())
    tree["featuresDict"]["features"]["text"][key] = tree["featuresDict"]["features"]["text"].pop("pythonClassName")
    tree["featuresDict"]["features"]["text"][key] = "strange_module.Feature"
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"features.json names the class .strange_module.Feature"):
        Tfds("notes", data_dir=store).documents("train")
    assert "strange_module" not in sys.modules


def test_records_under_a_source_of_plain_text_name_the_source_that_reads_them(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.txt").write_text("b\n")
    assert len(list(sources.TextFiles((str(tmp_path),), (str(tmp_path / "b.txt"),)).documents("train"))) == 2
    said = capsys.readouterr().err
    assert "1 files of records are read as plain text" in said and "a.jsonl; the source Records reads" in said
    list(sources.TextFiles((str(tmp_path / "b.txt"),) * 2, (str(tmp_path / "b.txt"),)).documents("train"))
    assert capsys.readouterr().err == ""
