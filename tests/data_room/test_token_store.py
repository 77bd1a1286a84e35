"""Token stores: the same bytes whoever writes them, killed or not, and that every host reads only its own."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tools.drills import bucket
from transformer_jax.data import (
    cleaning,
    corpus,
    pipeline,
    remote,
    sources,
    token_shards,
    token_store,
    tokenizers,
    tokens,
)
from transformer_jax.errors import InputError

TEXTS = [f"text {i % 21} of the corpus: " + "Grüße, 世界 " * (i % 7) for i in range(90)]
BYTES = tokenizers.ByteTokenizer()


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Nine files of ten records, of which three files make a shard."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for file in range(9):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[10 * file : 10 * file + 10])
        (folder / f"{file}.jsonl").write_text(lines)
    monkeypatch.setattr(token_shards, "SHARD", 3 * (folder / "0.jsonl").stat().st_size - 200)
    return sources.Records((str(folder),), validation=(str(folder / "3.jsonl"),))


def work(source, out) -> token_shards.Work:
    return token_shards.begin(str(out), BYTES, {side: source.documents(side) for side in token_store.SIDES})


def write(made: token_shards.Work) -> dict:
    for at in token_shards.missing(made)["hashes"]:
        token_shards.write_hashes(made, *at)
    for at in token_shards.missing(made)["shards"]:
        token_shards.write_shard(made, *at)
    return token_shards.finish(made)


def data(path, **settings) -> corpus.TextCorpus:
    return corpus.TextCorpus(sources.Embedded(), tokenizers.Bytes(), length=32, store=(str(path),), **settings)


def test_a_store_of_shards_is_the_one_file_of_the_same_text(texts, tmp_path):
    index = write(work(texts, tmp_path / "store"))
    assert len(index["sides"]["train"]) > 2
    one = tokens.prepare(texts.documents("train"), BYTES, tmp_path / "cache")
    several = token_store.open_store(str(tmp_path / "store"), "train")
    assert several.tokens[:].tolist() == one.tokens.tolist() and len(several.tokens) == len(one.tokens)
    assert several.lengths().tolist() == one.lengths().tolist()
    assert (several.bytes, several.predicted_bytes) == (one.bytes, one.predicted_bytes)
    assert several.tokenizer == one.tokenizer == token_store.tokenizer_of(str(tmp_path / "store")).fingerprint
    starts = np.array([0, 100, len(one.tokens) - 5, len(one.tokens) // 3 - 700])
    expected = np.pad(one.tokens, (0, 2000))[starts[:, None] + np.arange(2000)]
    assert several.tokens.windows(starts, 2000).tolist() == expected.tolist()  # across shards, zeros beyond the end


def test_the_bytes_depend_on_the_text_alone(texts, tmp_path):
    """Not on the order in which shards are written, nor on the writer; a complete shard is not written again."""
    first = write(work(texts, tmp_path / "a"))
    made = work(texts, tmp_path / "b")
    for at in reversed(made.numbers()):
        token_shards.write_shard(made, *at)
    (tmp_path / "b/train/.killed").mkdir()  # what a killed writer leaves
    assert token_shards.missing(made) == {"hashes": [], "shards": []}
    assert token_shards.finish(work(texts, tmp_path / "b")) == first
    shutil.rmtree(tmp_path / "b/train/00001")
    assert token_shards.missing(made)["shards"] == [("train", 1)]


def test_another_corpus_or_folder_is_not_written_into(texts, tmp_path):
    write(work(texts, tmp_path / "store"))
    other = sources.Records(texts.paths, validation=(str(tmp_path / "texts/5.jsonl"),))
    with pytest.raises(InputError, match=r"store holds the store of another documents and shards; name a new folder"):
        work(other, tmp_path / "store")
    with pytest.raises(InputError, match=r"texts holds files that are not of a token store"):
        work(texts, tmp_path / "texts")
    (tmp_path / "store/plan.json").rename(tmp_path / "plan.json")
    for side in token_store.SIDES:
        shutil.rmtree(tmp_path / "store" / side)
    (tmp_path / "store/store.json").unlink()
    work(texts, tmp_path / "store")  # killed before the plan was written
    assert (tmp_path / "store/plan.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_what_is_missing_or_damaged_is_named(texts, tmp_path):
    path = tmp_path / "store"
    made = work(texts, path)
    with pytest.raises(InputError, match=r"store is not a complete token store: there is no store.json in it"):
        corpus.prepare(data(path), seed=0)
    write(made)
    damage = {
        "is missing, a shard of a token store": lambda shard: shutil.rmtree(shard),
        "has .* bytes, its header says .*: it is damaged": lambda shard: (shard / "tokens.bin").write_bytes(b"ab"),
        "is damaged: its bytes are not those that were written": lambda shard: flip(shard / "tokens.bin"),
        "is not the shard that .*store.json lists": lambda shard: swap(shard),
    }
    for message, do in damage.items():
        shutil.copytree(path, tmp_path / "bad", dirs_exist_ok=True)
        do(tmp_path / "bad/train/00001")
        with pytest.raises(InputError, match=message) as error:
            corpus.prepare(data(tmp_path / "bad"), seed=0)
        assert "train/00001" in str(error.value)
        shutil.rmtree(tmp_path / "bad")


def flip(file: Path) -> None:
    held = bytearray(file.read_bytes())
    held[7] ^= 1
    file.write_bytes(bytes(held))


def swap(shard: Path) -> None:
    shutil.rmtree(shard)
    shutil.copytree(shard.with_name("00000"), shard)


@pytest.fixture
def server(monkeypatch):
    with bucket.serve("mine") as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield server
        fsspec.config.conf.clear()
        import gcsfs

        gcsfs.GCSFileSystem.clear_instance_cache()


def test_hosts_read_a_bucket_each_its_own_rows(texts, tmp_path, server, monkeypatch):
    """The batches of one host; each window is requested by one host, once in two epochs; damage is named."""
    write(work(texts, tmp_path / "store"))
    index = write(work(texts, "gs://mine/store"))
    assert index == json.loads((tmp_path / "store/store.json").read_text())
    here = corpus.prepare(data(tmp_path / "store"), seed=3)
    count = (len(here.train_tokens.tokens) - 1) // 32  # windows in an epoch
    ranges: list[Counter] = []
    plain = remote.read_ranges
    monkeypatch.setattr(remote, "read_ranges", lambda keys: (ranges[-1].update(keys), plain(keys))[1])
    for hosts, steps in ((1, 2 * count // 8), (2, count // 8)):
        expected = [batch["inputs"] for batch in take(here.train, steps, range(8))]
        got = []
        for host in range(hosts):
            ranges.append(Counter())
            rows = range(8 * host // hosts, 8 * (host + 1) // hosts)
            there = corpus.prepare(data("gs://mine/store"), seed=3)
            got.append([batch["inputs"] for batch in take(there.train, steps, rows)])
        for step in range(steps):
            assert np.array_equal(np.concatenate([rows[step] for rows in got]), expected[step])
    assert max(ranges[0].values()) == 1  # the second epoch came from the disk
    assert max((ranges[1] + ranges[2]).values()) == 1  # in an epoch each range is read by one host
    resumed = list(pipeline.batches(there.train, 8 * 5, 8, prefetch=0, local_rows=None).__next__().values())
    assert np.array_equal(resumed[0], expected[5])

    name, object = next((n, o) for n, o in server.objects.items() if n.endswith("train/00001/tokens.bin"))
    for damaged, message in ((object.data[:-2], "has .* bytes and should have"), (object.data[::-1], "is damaged")):
        server.put(name, damaged)
        with pytest.raises(InputError, match=rf"gs://mine/store/train/00001/tokens.bin {message}"):
            corpus.prepare(data("gs://mine/store"), seed=3)
    del server.objects[name]
    with pytest.raises(InputError, match=r"train/00001/tokens.bin is missing"):
        corpus.prepare(data("gs://mine/store"), seed=3)


def take(examples, steps, rows) -> list:
    batches = pipeline.batches(examples, 0, 8, local_rows=rows, prefetch=0)
    return [next(batches) for _ in range(steps)]


def test_no_bytes_of_a_shard_without_documents_are_requested(monkeypatch):
    cache, data = token_store._Cache(0), {"a": np.arange(5, dtype="<u2"), "b": np.arange(5, 9, dtype="<u2")}
    pieces = [("a", 5), ("empty", 0), ("b", 4), ("empty", 0)]
    stream = token_store.Stream(tuple(token_store._Remote(url, np.dtype("<u2"), n, cache) for url, n in pieces))
    monkeypatch.setattr(remote, "read_ranges", lambda keys: [data[url].tobytes()[a:b] for url, a, b in keys])
    assert stream.windows(np.array([3, 7]), 4).tolist() == [[3, 4, 5, 6], [7, 8, 0, 0]]


def test_etags_are_compared_only_where_they_are_md5s(monkeypatch):
    """Those of objects that S3 encrypts by a key of KMS have the same length."""
    header = {"count": 2, "itemsize": 2, "documents": 1, "md5": {"tokens": "a" * 32, "documents": "b" * 32}}
    there = {"00000/tokens.bin": {"size": 4, "ETag": "a" * 32}, "00000/documents.bin": {"size": 8, "ETag": "c" * 32}}
    monkeypatch.setattr(remote, "read", lambda path: b"header")
    md5 = hashlib.md5(b"header", usedforsecurity=False).hexdigest()
    for etag, is_md5 in ((f'"{md5}"', True), ("d" * 32, False)):
        assert token_store._etags_are_md5("s3://x", {"00000/header.json": {"ETag": etag}}) is is_md5
    token_store._check_listed("s3://x/00000", "00000", header, there, False)
    with pytest.raises(InputError, match=r"documents.bin is damaged"):
        token_store._check_listed("s3://x/00000", "00000", header, there, True)


def test_a_disk_that_is_full_ends_the_cache_and_not_the_run(monkeypatch):
    cache = token_store._Cache(10)
    cache.put(("a", 0, 4), b"1234")
    monkeypatch.setattr(token_store.os, "pwrite", lambda *_: 1)
    cache.put(("a", 4, 8), b"5678")
    assert cache.get(("a", 0, 4)) == b"1234" and cache.get(("a", 4, 8)) is None and cache.most == 4


def test_the_cache_of_a_bucket_is_bounded(tmp_path):
    cache = token_store._Cache(10)
    for at in range(5):
        cache.put(("a", 4 * at, 4 * at + 4), bytes([at] * 4))
    assert [cache.get(("a", 4 * at, 4 * at + 4)) for at in range(5)] == [b"\0" * 4, b"\1" * 4, None, None, None]


@dataclass(frozen=True)
class Even:
    """A user's filter."""

    def keeps(self, text: str) -> bool:
        return len(text) % 2 == 0


@pytest.mark.parametrize("shards", [1, 9])
def test_filters_and_duplicates_are_dropped_and_counted_alike_in_shards(texts, tmp_path, monkeypatch, shards):
    monkeypatch.setattr(token_shards, "SHARD", token_shards.SHARD if shards == 9 else 1 << 28)
    source = cleaning.Cleaned(texts, filters=(cleaning.Length(30, 10**6), Even()))
    index = write(work(source, tmp_path / "store"))
    dropped = sum((Counter(header["dropped"]) for header in index["sides"]["train"]), Counter())
    all_texts = [text for _, text in texts.documents("train")]
    long = [text for text in all_texts if len(text) >= 30]
    even = [text for text in long if len(text) % 2 == 0]
    expected = list(dict.fromkeys(even))
    counts = {
        "Length": len(all_texts) - len(long),
        "Even": len(long) - len(even),
        "duplicates": len(even) - len(expected),
    }
    assert dict(dropped) == counts and all(counts.values())
    one = tokens.prepare(source.documents("train"), BYTES, tmp_path / "cache")
    assert one.header["dropped"] == counts
    nested = cleaning.Cleaned(cleaning.Cleaned(texts, (source.filters[0],)), (source.filters[1],), deduplicate=False)
    assert tokens.prepare(nested.documents("train"), BYTES, tmp_path / "nested").header["dropped"] == counts
    stream = token_store.open_store(str(tmp_path / "store"), "train").tokens[:]
    assert stream.tolist() == one.tokens.tolist() == [t for text in expected for t in [256, *text.encode()]]
    made = work(source, tmp_path / "store")
    (tmp_path / "store/hashes/train-00000.bin").unlink()
    with pytest.raises(InputError, match=r"hashes/train-00000.bin is missing"):  # not: it had no documents
        token_shards.write_shard(made, "train", 0)
    (tmp_path / "store/train/00000/documents.bin").write_bytes(bytes(8))
    with pytest.raises(InputError, match=r"train/00000/documents.bin is damaged"):
        token_store._lengths([str(tmp_path / "store/train/00000")], index["sides"]["train"])


@pytest.mark.parametrize("documents", ["joined", "packed"])
def test_a_mixture_of_stores_has_its_rates_and_every_row_once_an_epoch(texts, tmp_path, documents):
    names, sizes = ("a", "b", "c"), []
    for number, name in enumerate(names):  # texts whose characters say the store
        (tmp_path / name).mkdir()
        lines = (json.dumps({"text": name * 100 + f"{i:05}"}) for i in range(30 * (number + 1)))
        (tmp_path / f"{name}/t.jsonl").write_text("\n".join(lines))
        write(
            work(
                sources.Records((str(tmp_path / name),), validation=(str(tmp_path / name),)), tmp_path / f"{name}-store"
            )
        )
        sizes.append(len(token_store.open_store(str(tmp_path / f"{name}-store"), "train").tokens))
    stores = tuple(str(tmp_path / f"{name}-store") for name in names)
    mixed = corpus.TextCorpus(store=stores, rates=(6.0, 3.0, 1.0), length=32, documents=documents)
    made = corpus.prepare(mixed, seed=5)
    rows = made.train.stacked(range(1000))["inputs"]
    of = [Counter(chr(token) for token in row.tolist() if chr(token) in "abc") for row in rows]
    assert all(len(kinds) <= 1 for kinds in of)  # no row has two stores
    counts = Counter(kind for kinds in of for kind in kinds)
    assert [counts[name] for name in names] == [600, 300, 100]
    again = corpus.prepare(mixed, seed=5).train.stacked([7, 77, 777])["inputs"]
    assert np.array_equal(again, rows[[7, 77, 777]])
    if documents == "joined":
        starts = [made.train.order[row] for row in range(1000)]
        first = [start for start in starts if start < sizes[0]]
        windows = (sizes[0] - 1) // 32
        assert len(set(first[:windows])) == windows and len(set(first)) == windows  # once per epoch, then again
    with pytest.raises(InputError, match=r"data.rates = \(1.0,\): give a positive share for each of 3 stores"):
        corpus.TextCorpus(store=stores, rates=(1.0,))
