"""The work of `transformer-jax prepare`: a corpus as the shards of a token store (`token_store`).

work = token_shards.begin(out, tokenizer, {"train": ..., "validation": ...})    # the plan, written once
token_shards.write_shard(work, side, number)                                    # in any order, by any process
token_shards.finish(work)                                                       # store.json, when all are there
"""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import files
from transformer_jax.data import remote, sources, token_store, tokens
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.errors import InputError

SHARD = 1 << 26  # bytes of the input in a shard, at least
PARTS = ("tokens.bin", "documents.bin", "header.json")  # a shard's files, in the order in which they are written
HASH = 16  # bytes of a document's hash


@dataclass(frozen=True)
class Work:
    """What `prepare` does: the shards of each side, each a list of parts of the documents."""

    out: str
    tokenizer: Tokenizer
    documents: Mapping[str, sources.Documents]
    shards: Mapping[str, list[list[sources.Part]]]

    def numbers(self) -> list[tuple[str, int]]:
        """(side, number) of all shards."""
        return [(side, number) for side in token_store.SIDES for number in range(len(self.shards[side]))]


def begin(out: str, tokenizer: Tokenizer, documents: Mapping[str, sources.Documents]) -> Work:
    """The work of a store. Its plan and tokenizer are written, if they are not there.

    Args:
      out: the folder or URL of the store.
      tokenizer: encodes the documents.
      documents: the documents of each side.

    Raises:
      InputError: `out` holds the store of other documents, or something else.
    """
    shards = {side: _grouped(_parts(documents[side])) for side in token_store.SIDES}
    plan = {
        "format": token_store.FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "documents": {side: documents[side].identity() for side in token_store.SIDES},
        "deduplicated": {side: documents[side].deduplicate for side in token_store.SIDES},
        "shards": {side: [[part.name for part in parts] for parts in shards[side]] for side in token_store.SIDES},
    }
    where, written = remote.join(out, "plan.json"), json.dumps(plan, indent=1).encode()
    found = remote.read(where)
    if found is None:
        # A process that was killed before it wrote the plan, or one that is writing it now, has left tokenizer/ alone.
        if any(not name.startswith("tokenizer/") for name in remote.names(out)):
            raise InputError(f"--out {out} holds files that are not of a token store; name a new folder")
        _read_the_first(shards)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            for file in Path(folder).iterdir():
                remote.write(remote.join(out, "tokenizer", file.name), file.read_bytes())
        remote.write(where, written)
    elif found != written:
        old = files.parse_json(found, where)
        changed = [key for key in plan if not isinstance(old, dict) or old.get(key) != plan[key]]
        raise InputError(f"--out {out} holds the store of another {' and '.join(changed)}; name a new folder")
    return Work(out, tokenizer, documents, shards)


def _read_the_first(shards: Mapping[str, list[list[sources.Part]]]) -> None:
    """Reads a document of each file, so that a missing column or a damaged file is found before anything is written."""
    parts = [part for of_side in shards.values() for of_shard in of_side for part in of_shard]
    files = {part.name.rpartition(":")[0] or part.name: part for part in reversed(parts)}
    with ThreadPoolExecutor(token_store.REQUESTS) as pool:
        list(pool.map(lambda part: next(part.read(), None), files.values()))


def _parts(documents: sources.Documents) -> list[sources.Part]:
    if documents.parts is not None:
        return documents.parts()
    return [sources.Part(documents.origin, documents.nbytes, documents.read)]


def _grouped(parts: list[sources.Part]) -> list[list[sources.Part]]:
    """Consecutive parts together until they have SHARD bytes: the shards depend on the input alone."""
    shards: list[list[sources.Part]] = [[]]
    held = 0
    for part in parts:
        if held >= SHARD:
            shards.append([])
            held = 0
        shards[-1].append(part)
        held += part.nbytes
    return shards


def missing(work: Work) -> dict[str, list[tuple[str, int]]]:
    """{"hashes": shards whose documents have no hashes yet, "shards": shards that are not complete} of `work`.

    Hashes are only needed where duplicates are dropped.
    """
    there = remote.names(work.out)
    hashed = [at for at in work.numbers() if work.documents[at[0]].deduplicate]
    return {
        "hashes": [at for at in hashed if _hashes_name(*at) not in there],
        "shards": [at for at in work.numbers() if f"{_shard_name(*at)}/header.json" not in there],
    }


def _shard_name(side: str, number: int) -> str:
    return f"{side}/{number:05}"


def _hashes_name(side: str, number: int) -> str:
    return f"hashes/{side}-{number:05}.bin"


def write_hashes(work: Work, side: str, number: int) -> None:
    """Writes the hashes of a shard's documents, by which all shards find duplicates.

    Args:
      work: the work that `begin` returned.
      side: "train" or "validation".
      number: the number of the shard.
    """
    documents = _of_shard(work, side, number, Counter())
    hashes = b"".join(hashlib.sha256(text.encode()).digest()[:HASH] for _, text in sources.whole(documents) if text)
    remote.write(remote.join(work.out, _hashes_name(side, number)), hashes)


def _repeated(work: Work, side: str, number: int) -> frozenset[int]:
    """The documents of a shard, by number, whose text is in an earlier shard, or earlier in it."""
    read = []
    for name in (_hashes_name(side, i) for i in range(number + 1)):
        data = remote.read(remote.join(work.out, name))
        if data is None:
            raise InputError(f"{remote.join(work.out, name)} is missing; {token_store.AGAIN}")
        read.append(data)
    hashes = np.frombuffer(b"".join(read), np.dtype((np.void, HASH)))
    _, first = np.unique(hashes, return_index=True)
    is_first = np.zeros(len(hashes), bool)
    is_first[first] = True
    own = len(read[-1]) // HASH
    return frozenset(np.flatnonzero(~is_first[len(hashes) - own :]).tolist())


def _of_shard(work: Work, side: str, number: int, dropped: Counter[str]) -> sources.Documents:
    parts = work.shards[side][number]
    documents = work.documents[side]

    def read() -> Any:
        for part in parts:
            yield from part.read()
            dropped.update(part.dropped)

    origin = f"{documents.origin}, shard {number + 1} of {len(work.shards[side])}"
    return sources.Documents(origin, read, documents.identity, sum(part.nbytes for part in parts), dropped=dropped)


def write_shard(work: Work, side: str, number: int) -> None:
    """Writes a shard, which is complete or absent.

    Args:
      work: the work that `begin` returned.
      side: "train" or "validation".
      number: the number of the shard.

    Raises:
      InputError: bad documents, or `out` cannot be written.
    """
    repeated = _repeated(work, side, number) if work.documents[side].deduplicate else frozenset()
    documents = _of_shard(work, side, number, Counter())
    url, name = remote.is_url(work.out), _shard_name(side, number)
    try:
        if not url:
            Path(work.out, side).mkdir(parents=True, exist_ok=True)
            tokens.sweep(Path(work.out, side))
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=None if url else Path(work.out, side)))
        try:
            tokens.write(documents, work.tokenizer, temporary, repeated=repeated, may_be_empty=True)
            if url:
                for part in PARTS:
                    remote.upload(temporary / part, remote.join(work.out, name, part))
            else:
                tokens.rename(temporary, Path(work.out, name))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write the shard {remote.join(work.out, name)} ({error}); make room") from error


def finish(work: Work) -> dict[str, Any]:
    """Writes the index of a store whose shards are all complete.

    Args:
      work: the work that `begin` returned.

    Returns:
      The object in store.json.

    Raises:
      InputError: a shard is missing or damaged.
    """

    def header(at: tuple[str, int]) -> dict[str, Any]:
        where = remote.join(work.out, _shard_name(*at), "header.json")
        found = files.parse_json(remote.read(where) or b"null", where)
        if not isinstance(found, dict) or found.get("sha256") != tokens.digest(found):
            raise InputError(f"{where} is missing or damaged; {token_store.AGAIN}")
        return found

    with ThreadPoolExecutor(token_store.REQUESTS) as pool:
        headers = dict(zip(work.numbers(), pool.map(header, work.numbers()), strict=True))
    sides = {side: [h for (of, _), h in headers.items() if of == side] for side in token_store.SIDES}
    for side, found in sides.items():
        if not sum(one["count"] for one in found):
            raise InputError(f"{work.documents[side].origin}: the corpus is empty; it has no character")
    index: dict[str, Any] = {"format": token_store.FORMAT, "tokenizer": work.tokenizer.fingerprint, "sides": sides}
    index["sha256"] = tokens.digest(index)
    remote.write(remote.join(work.out, "store.json"), json.dumps(index, indent=1).encode())
    return index
