"""Token files: what is in them, the accounting of bytes, and that none is ever read half."""

import dataclasses
import hashlib
import json
import math
import os
import time

import numpy as np
import pytest

from transformer_jax.data import sources, tokenizers, tokens
from transformer_jax.errors import InputError

PAIRS = [("a", "first Grüße\n"), ("b", "世界\n"), ("empty", ""), ("c", "piece one, "), ("c", "piece two")]
DOCUMENTS = sources.in_memory(PAIRS)
BYTES = tokenizers.ByteTokenizer()
TEXT_BYTES = sum(len(text.encode()) for _, text in PAIRS)


def test_the_stream_is_every_document_after_an_end_of_text(tmp_path):
    file = tokens.prepare(DOCUMENTS, BYTES, tmp_path)
    expected = [[256, *"first Grüße\n".encode()], [256, *"世界\n".encode()], [256, *b"piece one, piece two"]]
    assert file.tokens.tolist() == [token for row in expected for token in row]
    assert file.starts.tolist() == [0, len(expected[0]), len(expected[0]) + len(expected[1])]
    assert file.tokens.dtype == np.uint16
    assert not file.tokens.flags.writeable
    assert (file.bytes, file.predicted_bytes, file.vocab_size) == (TEXT_BYTES, TEXT_BYTES, 257)
    texts = [b"first Gr\xc3\xbc\xc3\x9fe\n", "世界\n".encode(), b"piece one, piece two"]
    assert file.content == hashlib.sha256(b"".join(b"\xff" + text for text in texts)).hexdigest()


def test_a_uniform_model_costs_eight_bits_a_byte_and_the_ends_of_text(tmp_path):
    """Bits per byte as the module says to compute it: 256 equally likely bytes are 8 bits a byte, plus the ends."""
    file = tokens.prepare(DOCUMENTS, BYTES, tmp_path)
    predicted = len(file.tokens) - 1
    assert predicted == TEXT_BYTES + 2  # three documents, the first end of text is given
    bits_per_byte = predicted * math.log(256) / math.log(2) / file.predicted_bytes
    assert bits_per_byte == pytest.approx(8 * (1 + 2 / TEXT_BYTES))


def test_without_an_end_of_text_the_first_tokens_bytes_are_given(tmp_path):
    documents = sources.in_memory([("a", "éa"), ("b", "é")])
    file = tokens.prepare(documents, tokenizers.build(tokenizers.Characters(), documents), tmp_path)
    assert file.tokens.tolist() == [1, 0, 1]
    assert (file.bytes, file.predicted_bytes) == (5, 3)  # é is two bytes and was not predicted
    assert file.starts.tolist() == [0, 2]


def test_uint32_where_uint16_is_too_small(tmp_path):
    characters = "".join(map(chr, range(0x100, 0xD000))) + "".join(map(chr, range(0x10000, 0x18000)))
    tokenizer = tokenizers.CharacterTokenizer(characters)
    assert tokenizer.vocab_size > 1 << 16
    file = tokens.prepare(sources.in_memory([("a", characters[::-7])]), tokenizer, tmp_path)
    assert file.tokens.dtype == np.uint32
    assert tokenizer.decode(file.tokens) == characters[::-7]


def test_batches_do_not_show(tmp_path, monkeypatch):
    tokenizer = tokenizers.build(tokenizers.TrainBPE(vocab_size=300), PAIRS)
    documents = sources.in_memory([(f"{i}", f"text {i} of many\n" * (i % 5)) for i in range(200)])
    whole = tokens.prepare(documents, tokenizer, tmp_path / "whole")
    monkeypatch.setattr(tokens, "BATCH", 50)
    small = tokens.prepare(documents, tokenizer, tmp_path / "small")
    np.testing.assert_array_equal(whole.tokens, small.tokens)
    np.testing.assert_array_equal(whole.starts, small.starts)
    assert (whole.content, whole.bytes) == (small.content, small.bytes)


def test_the_pieces_in_which_a_document_is_read_do_not_show(tmp_path, monkeypatch):
    """A last line without an end is a piece of its own in a text file, and spaces after a line end are one token."""
    tokenizer = tokenizers.build(tokenizers.TrainBPE(vocab_size=300), PAIRS)
    monkeypatch.setattr(tokens, "CHUNK", 40)
    text = "def f():\n        return 1\n" * 3 + "x" * 100 + "\n\n    last"
    found = []
    for size in (1, 7, 26, len(text)):
        read = [("a", text[at : at + size]) for at in range(0, len(text), size)]
        file = tokens.prepare(sources.in_memory([*read, ("b", "")]), tokenizer, tmp_path)
        found.append(file.tokens.tolist())
    assert found == found[:1] * 4 and tokenizer.decode(found[0][1:]) == text
    assert len(list(tokens._chunks([("a", text)]))) == 6


def test_made_once_for_the_same_text_and_tokenizer(tmp_path, capfd):
    first = tokens.prepare(DOCUMENTS, BYTES, tmp_path)
    assert "tokenised the documents given" in capfd.readouterr().err
    assert tokens.prepare(DOCUMENTS, BYTES, tmp_path).folder == first.folder
    assert capfd.readouterr().err == ""
    assert tokens.prepare(sources.in_memory([("a", "x")]), BYTES, tmp_path).folder != first.folder
    bpe = tokenizers.build(tokenizers.TrainBPE(vocab_size=300), PAIRS)
    assert tokens.prepare(DOCUMENTS, bpe, tmp_path).folder != first.folder


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "header.json"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing"])
def test_a_damaged_file_is_refused_and_made_again(tmp_path, capfd, name, damage):
    file = tokens.prepare(DOCUMENTS, BYTES, tmp_path)
    path, whole = file.folder / name, (file.folder / name).read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if damage == "truncated" else whole + b"\0")
    with pytest.raises(InputError, match="damaged"):
        tokens.open_file(file.folder)
    capfd.readouterr()
    assert tokens.prepare(DOCUMENTS, BYTES, tmp_path).content == file.content
    assert "it is made again" in capfd.readouterr().err
    assert path.read_bytes() == whole


def test_a_header_that_lies_is_refused(tmp_path):
    folder = tokens.prepare(DOCUMENTS, BYTES, tmp_path).folder
    header = json.loads((folder / "header.json").read_text())
    for key in header:
        for lie in (-1, "x", None, 7, [], {}):
            if header[key] == lie:
                continue
            (folder / "header.json").write_text(json.dumps(header | {key: lie}))
            with pytest.raises(InputError, match="token file"):
                tokens.open_file(folder)
            changed = header | {key: lie}  # with a digest that fits: a file from a stranger
            (folder / "header.json").write_text(json.dumps(changed | {"sha256": tokens.digest(changed)}))
            if key in ("format", "count", "documents", "itemsize"):
                with pytest.raises(InputError, match="token file"):
                    tokens.open_file(folder)
    for content in ("", "[]", "3", "{}", "[" * 100_000):
        (folder / "header.json").write_text(content)
        with pytest.raises(InputError, match="token file"):
            tokens.open_file(folder)


def test_bytes_that_were_not_written_are_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK", 5)
    made = tokens.prepare(DOCUMENTS, BYTES, tmp_path)
    whole = made.tokens.tolist()
    for name in ("tokens", "documents"):
        path = made.folder / f"{name}.bin"
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"token file .*{name}\.bin is damaged: its bytes are not those"):
            tokens.open_file(made.folder)
        assert tokens.prepare(DOCUMENTS, BYTES, tmp_path).tokens.tolist() == whole
        assert "it is made again" in capsys.readouterr().err


def test_ids_beyond_the_vocabulary_are_refused(tmp_path):
    tokenizer = dataclasses.replace(BYTES, vocab_size=100)
    with pytest.raises(InputError, match="id [12][0-9][0-9] is not among the tokenizer's 100 ids"):
        tokens.prepare(sources.in_memory([("a", "xyz")]), tokenizer, tmp_path)


def test_a_failure_leaves_nothing(tmp_path):
    def breaks():
        yield "a", "good text\n"
        raise OSError("the disk is gone")

    broken = sources.Documents("a broken disk", breaks, lambda: "id", 100)
    with pytest.raises(InputError, match="the disk is gone"):
        tokens.prepare(broken, BYTES, tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_what_a_killed_writer_left_is_swept(tmp_path):
    (old := tmp_path / "tokens" / ".old").mkdir(parents=True)
    (new := tmp_path / "tokens" / ".new").mkdir()
    (old / "tokens.bin").write_bytes(b"half")
    long_ago = time.time() - 2 * tokens.ABANDONED
    os.utime(old / "tokens.bin", (long_ago, long_ago))
    os.utime(old, (long_ago, long_ago))
    tokens.prepare(DOCUMENTS, BYTES, tmp_path)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it now


def test_bad_text_is_named(tmp_path):
    with pytest.raises(InputError, match="the documents given: the corpus is empty"):
        tokens.prepare(sources.in_memory([("a", "")]), BYTES, tmp_path)
    with pytest.raises(InputError, match="b: character 2 is half of a surrogate pair"):
        tokens.prepare(sources.in_memory([("a", "x"), ("b", "xx\ud800")]), BYTES, tmp_path)
    characters = tokenizers.CharacterTokenizer("x")
    with pytest.raises(InputError, match="^b: character 'y'"):
        tokens.prepare(sources.in_memory([("a", "x"), ("b", "y")]), characters, tmp_path)


def test_the_cache_folder_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "mine"))
    assert tokens.cache_dir() == tmp_path / "mine"
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", "/dev/null/x")
    with pytest.raises(InputError, match="TRANSFORMER_JAX_CACHE"):
        tokens.cache_dir()
