"""A stranger's tokenizer is read within limits: expressions end, texts stay of their size, files are files."""

import base64
import json
import os
import shutil

import pytest

from transformer_jax.data import text_files, tokenizers
from transformer_jax.data.tokenizers import limits
from transformer_jax.errors import InputError

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}


def split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def written(folder, **parts):
    """A tokenizer.json of three tokens."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}
    empty = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    empty |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(empty | parts))
    return folder


def refused(folder) -> str:
    with pytest.raises(InputError) as error:
        tokenizers.load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_expressions_that_explode(tmp_path, capfd):
    nested = {"type": "Sequence", "pretokenizers": [split(r"\s+"), split(r"(a+)+$")]}
    assert "'(a+)+$' repeats what repeats" in refused(written(tmp_path, pre_tokenizer=nested))
    tokenizer = tokenizers.load(written(tmp_path, pre_tokenizer=split(r"(a|aa)+$")))
    assert tokenizer.encode("aaa").tolist() == [0, 0, 0]
    for encode in (tokenizer.encode, tokenizer.encode_with_offsets, tokenizer.encode_prompt):
        with pytest.raises(InputError, match=r"gave up \(Onig: Regex search error: retry-limit-in-match over\)"):
            encode("a" * 60 + "b")
    capfd.readouterr()


def test_replacements_that_fill_the_memory(tmp_path):
    growing = {"type": "Sequence", "normalizers": [REPLACE, REPLACE, REPLACE]}
    assert "1,000,000 characters from one" in refused(written(tmp_path, normalizer=growing))
    assert tokenizers.load(written(tmp_path, normalizer=REPLACE)).encode("a").size == 100
    charsmap = (8).to_bytes(4, "little") + bytes(8) + b"ab\0" + b"x" * 5000 + b"\0"
    assert limits.longest(charsmap) == 5000 and limits.longest(b"") == 1
    mapped = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    assert "5,000 characters from one" in refused(written(tmp_path, normalizer=mapped))


def test_files_that_are_none(tmp_path):
    secret = written(tmp_path) / "tokenizer.json"
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "tokenizer.json").symlink_to(secret)
    assert "is a link to" in refused(folder)
    (folder / "tokenizer.json").unlink()
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**31)
    assert "2,147,483,648 bytes" in refused(folder)
    shutil.copy(secret, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text("[" * 100_000)
    assert "nested too deep" in refused(folder)


def test_text_is_read_from_files_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"is {what}"):
            text_files.whole(path)
    (tmp_path / "zeros").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is a device"):
        text_files.whole(tmp_path / "zeros")
