"""Token stores: a tokenised corpus in shards, on this machine or in a bucket, that every host reads its own rows of.

    STORE/
      plan.json                 which documents each shard holds, decided before the first is written
      tokenizer/
      train/00000/              a shard is a token file (`tokens`): tokens.bin, documents.bin and, last, header.json
      validation/00000/
      store.json                written last: the headers of all shards

A shard depends on its documents and the tokenizer alone. So any number of processes write the shards of a plan, in any
order, and the bytes are the same; a shard that is complete is not written again, and a process that is killed leaves no
shard. A store without store.json is refused, and so is one with a shard that is missing or has changed.

The tokens of all shards, one after another, are a row of tokens. Any window of it is read alone: from a memory map, or
from a bucket by one request for exactly these bytes, many at a time. What was read stays in a file of this machine, up
to a bound, for the next epoch.
"""

import base64
import functools
import hashlib
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import files
from transformer_jax.data import remote, tokens
from transformer_jax.data.tokenizers import Tokenizer, load
from transformer_jax.errors import InputError

FORMAT = 1
SIDES = ("train", "validation")
REQUESTS = 32  # the most simultaneous requests for small files of a bucket
AGAIN = "delete what is damaged and give `transformer-jax prepare` again, which writes what is missing"


# ---- Reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TokenStore:
    """One side of a token store: its tokens, readable at random, and what its header states."""

    tokens: "Stream"
    """All tokens, in order."""
    lengths: Callable[[], np.ndarray]
    """Reads int64 [documents], the tokens of each document."""
    bytes: int
    """UTF-8 bytes of the text."""
    predicted_bytes: int
    """The bytes that a model predicts, see `tokens.TokenFile`."""
    vocab_size: int
    tokenizer: str
    """The tokenizer's fingerprint."""
    content: str
    """SHA-256 over the contents of the shards."""


def open_store(path: str, side: str, cache_bytes: int = 0) -> TokenStore:
    """One side of the store at a path.

    Args:
      path: a folder or a URL, as `prepare --out` was given it.
      side: "train" or "validation".
      cache_bytes: the most bytes of a bucket's tokens that stay in a file of this machine.

    Raises:
      InputError: it is not complete, or a shard is missing or damaged.
    """
    index, headers = _index(path, side)
    there = remote.listed(f"{path.rstrip('/')}/{side}") if remote.is_url(path) else {}
    pieces: list[np.ndarray | _Remote] = []
    folders = [remote.join(path, side, f"{number:05}") for number in range(len(headers))]
    cache = _Cache(cache_bytes if remote.is_url(path) else 0)
    with_etags = _etags_are_md5(remote.join(path, side), there)
    for number, (folder, header) in enumerate(zip(folders, headers, strict=True)):
        if remote.is_url(path):
            _check_listed(folder, f"{number:05}", header, there, with_etags)
            pieces.append(_Remote(remote.join(folder, "tokens.bin"), _dtype(header), header["count"], cache))
            continue
        if not Path(folder, "header.json").is_file():
            raise InputError(f"{folder} is missing, a shard of a token store; {AGAIN}")
        file = tokens.open_file(Path(folder), may_be_empty=True)
        if file.header != header:
            raise InputError(f"{folder} is not the shard that {remote.join(path, 'store.json')} lists; {AGAIN}")
        pieces.append(file.tokens)
    contents = "".join(header["content"] for header in headers)
    return TokenStore(
        tokens=Stream(tuple(pieces)),
        lengths=functools.partial(_lengths, folders, headers),
        bytes=sum(header["bytes"] for header in headers),
        predicted_bytes=sum(h["bytes"] for h in headers[1:]) + headers[0]["predicted_bytes"],
        vocab_size=headers[0]["vocab_size"],
        tokenizer=index["tokenizer"],
        content=hashlib.sha256(contents.encode()).hexdigest(),
    )


def joined(stores: Sequence[TokenStore]) -> TokenStore:
    """Several `stores` of one tokenizer as one: their tokens, one after another."""
    contents = "".join(store.content for store in stores)
    return TokenStore(
        tokens=Stream(tuple(piece for store in stores for piece in store.tokens.pieces)),
        lengths=lambda: np.concatenate([store.lengths() for store in stores]),
        bytes=sum(store.bytes for store in stores),
        predicted_bytes=sum(store.bytes for store in stores[1:]) + stores[0].predicted_bytes,
        vocab_size=stores[0].vocab_size,
        tokenizer=stores[0].tokenizer,
        content=hashlib.sha256(contents.encode()).hexdigest(),
    )


def tokenizer_of(path: str) -> Tokenizer:
    """The tokenizer in the store at `path`.

    Raises:
      InputError: there is none.
    """
    if not remote.is_url(path):
        return load(Path(path) / "tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        for name in remote.listed(remote.join(path, "tokenizer")):
            if "/" not in name:
                Path(folder, name).write_bytes(remote.read(remote.join(path, "tokenizer", name)) or b"")
        if not os.listdir(folder):
            raise InputError(f"{path}: no tokenizer, so it is not a token store; {AGAIN}")
        return load(Path(folder))


class Stream:
    """The tokens of several shards as one row."""

    def __init__(self, pieces: "tuple[np.ndarray | _Remote, ...]") -> None:
        self.pieces = pieces
        self.firsts = np.cumsum([0, *map(len, pieces)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        first, past, _ = part.indices(len(self))
        return self.windows(np.array([first]), past - first)[0]

    def windows(self, start_B: np.ndarray, width: int) -> np.ndarray:
        """The tokens from each position on, int32 [B, width]; zeros beyond the end."""
        made = np.zeros((len(start_B), width), np.int32)
        waiting: list[tuple[_Remote, int, int, np.ndarray]] = []
        for row, start in enumerate(start_B.tolist()):
            past = min(start + width, len(self))
            shard = int(np.searchsorted(self.firsts, start, side="right")) - 1
            while start < past:
                first, end = int(self.firsts[shard]), min(past, int(self.firsts[shard + 1]))
                at, piece = start - int(start_B[row]), self.pieces[shard]
                into = made[row, at : at + end - start]
                if start == end:  # a shard without documents, of which no bytes are requested
                    pass
                elif isinstance(piece, _Remote):
                    waiting.append((piece, start - first, end - first, into))
                else:
                    into[:] = piece[start - first : end - first]
                start, shard = end, shard + 1
        _read_remote(waiting)
        return made


def windows(row: np.ndarray | Stream, start_B: np.ndarray, width: int) -> np.ndarray:
    """The tokens of a row from each position on, int32 [B, width]; zeros beyond the end.

    Args:
      row: the tokens.
      start_B: int64 [B], positions.
      width: how many tokens.
    """
    return (row if isinstance(row, Stream) else Stream((row,))).windows(start_B, width)


class _Cache:
    """Bytes that were read, in a nameless file: once it is full, what is in it stays, and nothing else is added.

    In shuffled epochs every window is read once before any is read again, so dropping the oldest would keep nothing.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used, self.held = most, 0, dict[tuple[str, int, int], int]()
        self.guard, self.file = threading.Lock(), -1
        if most:
            self.file, path = tempfile.mkstemp()
            os.unlink(path)
            weakref.finalize(self, os.close, self.file)

    def get(self, key: tuple[str, int, int]) -> bytes | None:
        at = self.held.get(key)
        return None if at is None else os.pread(self.file, key[2] - key[1], at)

    def put(self, key: tuple[str, int, int], data: bytes) -> None:
        with self.guard:
            if self.used + len(data) > self.most or key in self.held:
                return
            try:
                written = os.pwrite(self.file, data, self.used)
            except OSError:
                written = 0
            if written < len(data):  # the disk is full
                self.most = self.used
                return
            self.held[key] = self.used
            self.used += len(data)


@dataclass(frozen=True, eq=False)
class _Remote:
    """The tokens of a shard at a URL."""

    url: str
    dtype: np.dtype
    count: int
    cache: _Cache

    def __len__(self) -> int:
        return self.count


def _read_remote(wanted: Sequence[tuple[_Remote, int, int, np.ndarray]]) -> None:
    """Reads tokens of shards at URLs: (shard, first token, one past the last, where to put them) of each."""
    keys = [(of.url, first * of.dtype.itemsize, past * of.dtype.itemsize) for of, first, past, _ in wanted]
    held = [of.cache.get(key) for (of, *_), key in zip(wanted, keys, strict=True)]
    stores: dict[str, list[int]] = {}
    for i, (key, data) in enumerate(zip(keys, held, strict=True)):
        if data is None:
            stores.setdefault(key[0].partition("://")[0], []).append(i)
    for absent in stores.values():
        for i, data in zip(absent, remote.read_ranges([keys[i] for i in absent]), strict=True):
            held[i] = data
            wanted[i][0].cache.put(keys[i], data)
    for (of, *_, into), data in zip(wanted, held, strict=True):
        into[:] = np.frombuffer(data or b"", of.dtype)


def _index(path: str, side: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the object in store.json, the headers of a side's shards)."""
    where = remote.join(path, "store.json")
    data = remote.read(where)
    if data is None:
        raise InputError(f"{path} is not a complete token store: there is no store.json in it; {AGAIN}")
    index = files.parse_json(data, where)
    try:
        if index["format"] != FORMAT:
            raise InputError(f"{where} has format {index['format']}, this version reads {FORMAT}; update it")
        if index["sha256"] != tokens.digest(index):
            raise InputError(f"{where} is damaged: its values do not match its sha256; {AGAIN}")
        return index, list(index["sides"][side])
    except (KeyError, TypeError):
        raise InputError(f"{where} is not the index of a token store; {AGAIN}") from None


def _etags_are_md5(folder: str, there: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a bucket of S3 reports MD5s: the ETags of objects that it encrypts by a key of its own are no MD5s.

    Args:
      folder: the folder of a side.
      there: what the bucket reports of its objects.
    """
    name = "00000/header.json"
    if "ETag" not in there.get(name, {}):
        return False
    data = remote.read(remote.join(folder, name)) or b""
    return str(there[name]["ETag"]).strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _check_listed(
    folder: str, name: str, header: Mapping[str, Any], there: Mapping[str, Mapping[str, Any]], with_etags: bool
) -> None:
    """Compares the size of a shard's objects, and their MD5 where the bucket reports it, with the header."""
    for part, size in _sizes(header).items():
        info = there.get(f"{name}/{part}.bin")
        if info is None:
            raise InputError(f"{remote.join(folder, part)}.bin is missing, of a token store; {AGAIN}")
        if info.get("size") != size:
            raise InputError(
                f"{remote.join(folder, part)}.bin has {info.get('size'):,} bytes and should have {size:,}: it is "
                f"damaged; {AGAIN}"
            )
        reported = str(info.get("md5Hash") or (with_etags and info.get("ETag")) or "").strip('"')
        md5 = header["md5"][part]
        if len(reported) in (24, 32) and reported not in (md5, base64.b64encode(bytes.fromhex(md5)).decode()):
            raise InputError(f"{remote.join(folder, part)}.bin is damaged: not the bytes that were written; {AGAIN}")


def _sizes(header: Mapping[str, Any]) -> dict[str, int]:
    return {"tokens": header["count"] * header["itemsize"], "documents": header["documents"] * 8}


def _lengths(folders: Sequence[str], headers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    def one(folder: str, header: Mapping[str, Any]) -> np.ndarray:
        where = remote.join(folder, "documents.bin")
        data = remote.read(where) or b""
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != header["md5"]["documents"]:
            raise InputError(f"{where} is damaged: not the bytes that were written; {AGAIN}")
        return np.diff(np.frombuffer(data, "<i8"), append=header["count"])

    with ThreadPoolExecutor(REQUESTS) as pool:
        return np.concatenate(list(pool.map(one, folders, headers)))


def _dtype(header: Mapping[str, Any]) -> np.dtype:
    return np.dtype(f"<u{header['itemsize']}")
