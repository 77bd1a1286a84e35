"""The same records from every format and from a bucket, how little is read of a large file, and bad input."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tools.drills import bucket
from transformer_jax.data import columnar, image_records, records, remote, sources, tables, webdataset
from transformer_jax.errors import InputError
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.tagging import tagged

TEXTS = [f"text {i}: Grüße, 世界\n" * (1 + i % 5) for i in range(40)]
LABELS = [i % 2 for i in range(40)]
FEATURES = {"label": {"_type": "ClassLabel", "names": ["neg", "pos"]}, "text": {"_type": "Value", "dtype": "string"}}


def table(labels=LABELS) -> pa.Table:
    made = pa.table({"other": pa.array([b"\0" * 50] * len(labels)), "text": TEXTS[: len(labels)], "label": labels})
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def write_formats(folder) -> dict[str, str]:
    """{format: path} of the same 40 records."""
    folder.mkdir(exist_ok=True)
    names = {kind: str(folder / name) for kind, name in (("parquet", "a.parquet"), ("arrow", "file.arrow"))}
    parquet.write_table(table(), names["parquet"], row_group_size=7)
    with pa.ipc.new_file(names["arrow"], table().schema) as writer:
        writer.write_table(table(), max_chunksize=9)
    saved = folder / "saved"
    saved.mkdir()
    with pa.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table().schema) as stream:
        stream.write_table(table())
    (saved / "cache-1.arrow").write_bytes(b"what datasets leaves beside the data")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    lines = "".join(
        json.dumps({"text": t, "label": ["neg", "pos"][n]}) + "\n" for t, n in zip(TEXTS, LABELS, strict=True)
    )
    (folder / "a.jsonl.zst").write_bytes(bytes(pa.Codec("zstd").compress(lines.encode())))
    with tarfile.open(folder / "a.tar", "w") as archive:
        for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
            for ending, data in (("text", text), ("label.txt", ["neg", "pos"][label])):
                member = tarfile.TarInfo(f"shard/{i:05}.{ending}")
                member.size = len(data.encode())
                archive.addfile(member, io.BytesIO(data.encode()))
    names |= {"save_to_disk": str(saved), "jsonl": str(folder / "a.jsonl.zst"), "webdataset": str(folder / "a.tar")}
    return names


def test_every_format_holds_the_same_documents_and_the_same_rows(tmp_path):
    for kind, path in write_formats(tmp_path).items():
        documents = sources.Records(path, validation=path).documents("train")
        assert [text for _, text in documents] == TEXTS, kind
        assert [pair for part in documents.parts() for pair in part.read()] == list(documents), kind
        label = "label.txt" if kind == "webdataset" else "label"
        rows = tables.Table((path,), (path,), label=label).rows("train")
        assert [(row.text, row.label) for row in rows] == list(zip(TEXTS, ["neg", "pos"] * 20, strict=True)), kind


def test_a_bucket_is_read_as_a_folder_is(tmp_path, monkeypatch):
    names = write_formats(tmp_path)
    with bucket.serve("mine") as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        fsspec.config.set_conf_env(fsspec.config.conf)
        for path in tmp_path.rglob("*"):
            if path.is_file():
                server.put(f"data/{path.relative_to(tmp_path)}", path.read_bytes())
        try:
            for kind, path in names.items():
                url = path.replace(str(tmp_path), "gs://mine/data")
                there, here = (sources.Records(p, validation=p).documents("train") for p in (url, path))
                assert list(there) == list(here), kind
                assert there.identity() == sources.Records(url, validation=url).documents("train").identity()
            server.put("data/a.parquet", b"changed")
            assert sources.Records("gs://mine/data/*.parquet").documents("train").identity() != there.identity()
            with pytest.raises(InputError, match=r"gs://mine/none: there is no such file, folder or bucket"):
                sources.Records("gs://mine/none").documents("train")
            server.faults.append(bucket.Fault("GET", "a.tar", status=403, times=99))
            with pytest.raises(InputError, match=r"gs://mine/data/a.tar: access is refused .*gcloud auth"):
                list(sources.Records("gs://mine/data/a.tar", validation="gs://mine/data/a.tar").documents("train"))
        finally:
            fsspec.config.conf.clear()
            import gcsfs

            gcsfs.GCSFileSystem.clear_instance_cache()


def test_little_of_a_large_parquet_file_is_read_before_the_first_row(monkeypatch):
    """The footer and one row group of the wanted column, of 20 groups and three columns."""
    rng, read = np.random.default_rng(0), Counter[str]()
    big = pa.table({"text": ["".join(map(chr, rng.integers(32, 127, 4000))) for _ in range(500)]})
    big = big.append_column("unwanted", big.column("text"))
    fs = fsspec.filesystem("memory")
    bare = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with fs.open("/big.parquet", "wb") as file:
        parquet.write_table(big, file, row_group_size=25, **bare)
    plain = remote._Explained.read

    def counted(self, count=-1):
        data = plain(self, count)
        read["bytes"] += len(data)
        return data

    monkeypatch.setattr(remote._Explained, "read", counted)
    (url,), _ = remote.found("memory://big.parquet")
    next(columnar.rows(url, ("text",)))
    assert url.size > 4_000_000
    assert 25 * 4000 < read["bytes"] < 25 * 4000 + 80_000
    fs.rm("/big.parquet")


def test_row_groups_are_parts_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART", 500)
    path = write_formats(tmp_path)["parquet"]
    documents = sources.Records(path, validation=path).documents("train")
    parts = documents.parts()
    assert [part.name for part in parts][:2] == ["a.parquet:0-0", "a.parquet:1-1"]
    assert [pair for part in parts for pair in part.read()] == list(documents)


def texts(path) -> list[str]:
    return [text for _, text in sources.Records((str(path),), validation=(str(path),)).documents("train")]


def test_empty_row_groups_and_nulls(tmp_path):
    one = pa.table({"text": ["one", None], "label": [1, 2]})
    none = one.slice(0, 0)
    with parquet.ParquetWriter(tmp_path / "a.parquet", one.schema) as writer:
        for part in (none, one, none, one):
            writer.write_table(part)
    assert texts(tmp_path / "a.parquet") == ["one", "", "one", ""]  # empty texts are skipped when they are tokenised
    with pytest.raises(InputError, match=r"2 rows have an empty text: \S*a.parquet:2, \S*a.parquet:4"):
        tables.refuse_empty([tables.Table((str(tmp_path),), (str(tmp_path),)).rows("train")])


def test_bad_files_are_named_in_one_line(tmp_path):
    names = write_formats(tmp_path / "good")
    good = (tmp_path / "good/a.parquet").read_bytes()
    bad = {
        "truncated.parquet": (good[:-40], "not a whole Parquet file"),
        "page.parquet": (good[:60] + b"\xff" * 400 + good[460:], "not a whole Parquet file"),
        "no.parquet": (b"text", "not a whole Parquet file"),
        "cut.arrow": ((tmp_path / "good/file.arrow").read_bytes()[:-9], "not a whole Arrow file"),
        "cut.tar": ((tmp_path / "good/a.tar").read_bytes()[:5300], "not a whole tar file"),
    }
    for name, (data, message) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}: {message}") as error:
            texts(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"a.parquet:1: no column 'body'; there are 'other', 'text', 'label'; choose"):
        list(sources.Records(names["parquet"], "body").documents("train"))
    parquet.write_table(pa.table({"text": [{"inner": "x"}], "body": ["y"]}), tmp_path / "nested.parquet")
    with pytest.raises(InputError, match=r"nested.parquet:1: column 'text' holds dict, not text"):
        texts(tmp_path / "nested.parquet")
    assert next(iter(sources.Records(str(tmp_path / "nested.parquet"), "text.inner").documents("train")))[1] == "x"
    (tmp_path / "good/saved/dataset_dict.json").write_text("{}")
    with pytest.raises(InputError, match="a data set of several splits; name the folder of one"):
        texts(tmp_path / "good")


def test_members_of_a_tar_file_by_their_endings(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (
            ("a/1.jpg", b"\xff\xd8"),
            ("a/1.cls", b"3\n"),
            ("a/1.json", b'{"x": [1]}'),
            ("b/1.cls", b"cat"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert [record for _, record in webdataset.rows(tmp_path / "a.tar")] == [
        {"__key__": "a/1", "jpg": b"\xff\xd8", "cls": 3, "json": {"x": [1]}},
        {"__key__": "b/1", "cls": "cat"},
    ]
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("1.txt"))
    with pytest.raises(InputError, match=r"twice.tar: 1.txt is there twice"):
        list(webdataset.rows(tmp_path / "twice.tar"))


def test_a_web_server_that_states_only_a_time_states_a_version():
    assert remote.version_of({"size": 3, "Last-Modified": "Sun, 29 Nov 2026 00:00:00 GMT"}).startswith("Sun")
    assert remote.version_of({"ETag": "a", "Last-Modified": "Sun"}) == "a" and remote.version_of({"size": 3}) == ""


def test_another_scheme_and_a_package_that_is_missing(monkeypatch):
    with pytest.raises(InputError, match=r"nope://x: the scheme nope:// is not known"):
        remote.found("nope://x")
    with pytest.raises(InputError, match=r"gone.parquet cannot be read \(No such file or directory\); looked in"):
        list(columnar.rows(Path("gone.parquet")))
    with pytest.raises(InputError, match=r"s3://: s3fs is not installed; pip install 'transformer-jax\[s3\]'"):
        remote.found("s3://bucket/x")
    assert records.SUFFIXES[-1] == ".tar"


def labelled_tables(folder) -> None:
    words = pa.table({"tokens": [["Ann", "left"], [], ["Rome"]], "ner_tags": [[1, 0], [], [2]]})
    names = {"ner_tags": [{"_type": "ClassLabel", "names": ["O", "B-PER", "B-LOC"]}]}
    parquet.write_table(
        words.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})}),
        folder / "words.parquet",
    )
    answers = [{"text": ["a pen"], "answer_start": [4]}]
    asked = {"id": ["q1"], "question": ["What?"], "context": ["It, a pen."], "answers": answers}
    parquet.write_table(pa.table(asked), folder / "questions.parquet")


def test_tags_and_questions_have_columns(tmp_path):
    labelled_tables(tmp_path)
    path = (str(tmp_path / "words.parquet"),)
    sentences = tagged.TagRecords(path, path).sentences("train") or []
    assert [sentence[:2] for sentence in sentences] == [(("Ann", "left"), ("B-PER", "O")), (("Rome",), ("B-LOC",))]
    with pytest.raises(InputError, match=r"words.parquet:1: no column 'ner'; there are 'tokens', 'ner_tags'"):
        tagged.TagRecords(path, path, tags="ner").sentences("train")
    source = questions.SquadRecords((str(tmp_path / "questions.parquet"),), (str(tmp_path / "questions.parquet"),))
    assert source.questions("validation") == [questions.Question("q1", "What?", "It, a pen.", ("a pen",), (4,))]
    with pytest.raises(InputError, match=r"words.parquet:1: no column 'id'"):
        questions.SquadRecords(path, path).questions("train")


def test_images_of_records_are_copied_once_and_read_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))
    images = [bytes([i]) * (i + 1) for i in range(30)]
    column = pa.array([{"bytes": image, "path": None} for image in images])
    made = pa.table({"image": column, "label": [i % 3 for i in range(30)]})
    parquet.write_table(made, tmp_path / "a.parquet", row_group_size=4)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, image in enumerate(images):
            for ending, data in (("jpg", image), ("cls", b"%d" % (i % 3))):
                member = tarfile.TarInfo(f"{i:03}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    for name, columns in (("a.parquet", ("image", "label")), ("a.tar", ("jpg", "cls"))):
        source = image_records.ImageRecords((str(tmp_path / name),), image=columns[0], label=columns[1])
        assert source.classes() == ("0", "1", "2")
        sides = [source.images(side) for side in ("train", "validation")]
        items = [item for side in sides if side for item in reversed(side.read(range(side.count)))]
        assert sorted(item.data for item in items) == sorted(images)
        assert all(item.label == images.index(item.data) % 3 for item in items)
        assert {item.where for item in items} == {f"{name}:{i}" for i in range(1, 31)}
    assert source.images("test") is None
    with pytest.raises(InputError, match=r"a.parquet:1: column 'label' holds int, not the bytes of an image"):
        image_records.ImageRecords((str(tmp_path / "a.parquet"),), image="label").classes()
    parquet.write_table(made.slice(0, 20), tmp_path / "a.parquet", row_group_size=4)  # another file of the same name
    source = image_records.ImageRecords((str(tmp_path / "a.parquet"),))
    assert sum(side.count for side in map(source.images, ("train", "validation")) if side) == 20
    for file in (tmp_path / "cache/images").glob("*/images.bin"):
        file.write_bytes(b"short")
    image_records._copied.cache_clear()
    with pytest.raises(InputError, match="is damaged: its files have"):
        source.classes()
