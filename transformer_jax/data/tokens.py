"""Token files: a corpus is tokenised once and memory-mapped afterwards.

    CACHE/tokens/KEY/
      tokens.bin      every token of the corpus in one row, uint16 or uint32, little-endian
      documents.bin   int64: the position of each document's first token
      header.json     counts, sizes, hashes

KEY is a hash of the corpus and the tokenizer. A file is written under a temporary name, synced and renamed, so it is
complete or absent. Opening a file compares its bytes with the digests in the header, and the header with its own hash.
Memory is bounded, whatever the size of the corpus.

A beginning-of-text token precedes each document, or an end-of-text token if the tokenizer has no other (`frame`). So a
model predicts every token of the text, and one or two special tokens between documents. `predicted_bytes` counts the
UTF-8 bytes of the predicted text:

    bits per byte = (sum of the losses of all tokens but the first, in nats) / ln 2 / predicted_bytes

It includes the cost of the special tokens, so it is an upper bound for the text. Without a special token the first
token of the stream is not predicted, and its bytes do not count.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transformer_jax import files
from transformer_jax.data import sources
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.errors import InputError

FORMAT = 3
BLOCK = 1 << 26  # bytes that a thread hashes at a time
BATCH = 4 << 20  # characters that are encoded together; only their tokens are in memory
CHUNK = 1 << 20  # characters of a document that the tokenizer gets at a time, at most
CHUNKS = 2  # the rule of `_chunks`; files in the cache that follow another one are not used
ABANDONED = 3600  # seconds without a write after which a temporary folder is deleted


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A tokenised corpus, memory-mapped."""

    tokens: np.ndarray
    """uint16 or uint32 [count]."""
    starts: np.ndarray
    """int64 [documents]: the position of each document's first token, which is a special one if `frame` adds one."""
    bytes: int
    """UTF-8 bytes of the text."""
    predicted_bytes: int
    """The bytes that a model predicts: all, or all but the first token's if no special token precedes it."""
    vocab_size: int
    tokenizer: str
    """The tokenizer's fingerprint."""
    content: str
    """SHA-256 of the text: a byte 0xFF before the UTF-8 of each document."""
    folder: Path
    """The folder of the file."""
    header: dict[str, Any]
    """The object in its header.json."""

    def lengths(self) -> np.ndarray:
        """int64 [documents]: the tokens of each document."""
        return np.diff(self.starts, append=len(self.tokens))


def cache_dir() -> Path:
    """The cache folder: $TRANSFORMER_JAX_CACHE, else transformer_jax in $XDG_CACHE_HOME or ~/.cache.

    It is made with mode 0700 if it does not exist.

    Raises:
      InputError: it cannot be made.
    """
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("TRANSFORMER_JAX_CACHE") or f"{user}/transformer_jax").expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the cache folder {folder} ({error}); set TRANSFORMER_JAX_CACHE to one that can be written"
        ) from None
    return folder


def prepare(documents: sources.Documents, tokenizer: Tokenizer, cache: Path | None = None) -> TokenFile:
    """The token file of these documents, from the cache if it is there.

    Args:
      documents: the corpus.
      tokenizer: encodes it.
      cache: its folder; None: `cache_dir()`.

    Raises:
      InputError: there is no text, or the cache cannot be written.
    """
    key = hashlib.sha256(f"{FORMAT} {CHUNKS} {documents.identity()} {tokenizer.fingerprint}".encode()).hexdigest()[:32]
    parent = (cache or cache_dir()) / "tokens"
    folder = parent / key
    if folder.exists():
        try:
            return open_file(folder)
        except InputError as error:
            print(f"{error}; it is made again", file=sys.stderr)
            shutil.rmtree(folder)
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(parent)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        try:
            write(documents, tokenizer, temporary)
            rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write the token file {folder} ({error}); make room, or set TRANSFORMER_JAX_CACHE to another folder"
        ) from error
    return open_file(folder)


def open_file(folder: Path, *, may_be_empty: bool = False) -> TokenFile:
    """The token file in a folder, checked against its digests.

    Args:
      folder: CACHE/tokens/KEY, or a shard of a store.
      may_be_empty: whether it may have no token, as a shard may.

    Raises:
      InputError: the file is damaged, or of another version.
    """
    try:
        try:
            header = files.read_json(folder / "header.json", inside=folder)
        except InputError as error:
            raise InputError(f"token file {folder} is damaged: {error}") from None
        if header["format"] != FORMAT:
            raise InputError(f"token file {folder} has format {header['format']}, this version reads {FORMAT}")
        if header["sha256"] != digest(header):
            raise InputError(f"token file {folder}: header.json is damaged, its values do not match its sha256")
        arrays = {}
        for name, dtype, count in (
            ("tokens", np.dtype(f"<u{header['itemsize']}"), header["count"]),
            ("documents", np.dtype("<i8"), header["documents"]),
        ):
            path = folder / f"{name}.bin"
            files.opened(path, inside=folder).close()
            size, expected = path.stat().st_size, count * dtype.itemsize
            if size != expected or (count < 1 and not may_be_empty):
                raise InputError(f"token file {path} has {size:,} bytes, its header says {expected:,}: it is damaged")
            arrays[name] = _mapped(path, dtype, count)
            if _digest_array(arrays[name]) != header["digests"][name]:
                raise InputError(f"token file {path} is damaged: its bytes are not those that were written")
        _refuse_unknown(arrays["tokens"], header["vocab_size"], f"token file {folder}")
        return TokenFile(
            tokens=arrays["tokens"],
            starts=arrays["documents"],
            bytes=header["bytes"],
            predicted_bytes=header["predicted_bytes"],
            vocab_size=header["vocab_size"],
            tokenizer=header["tokenizer"],
            content=header["content"],
            folder=folder,
            header=header,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"token file {folder} is damaged ({type(error).__name__}: {error})") from None


def _mapped(path: Path, dtype: Any, count: int) -> np.ndarray:
    """A memory map as a plain ndarray, because indexing np.memmap itself is several times slower."""
    if not count:  # nothing can be mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(count,)))


def _refuse_unknown(ids: np.ndarray, vocab_size: int, where: str) -> None:
    """Refuses ids outside [0, vocab_size): JAX would clip them, and the model would read another token."""
    low, high = (ids.min(), ids.max()) if ids.size else (0, -1)
    if low < 0 or high >= vocab_size:
        raise InputError(f"{where}: id {low if low < 0 else high} is not among the tokenizer's {vocab_size:,} ids")


def _digest_array(array: np.ndarray) -> str:
    """SHA-256 over the SHA-256 of each block. Threads hash the blocks in parallel, since hashlib releases the GIL."""
    data = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        blocks = pool.map(lambda at: hashlib.sha256(data[at : at + BLOCK]).digest(), range(0, len(data), BLOCK))
        return hashlib.sha256(b"".join(blocks)).hexdigest()


def digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of all values of `header` but its "sha256"."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# ---- Writing -------------------------------------------------------------------------------------------------------


def write(
    documents: sources.Documents,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    repeated: frozenset[int] | None = None,
    may_be_empty: bool = False,
) -> None:
    """Writes the files of a token file into a temporary folder, header.json last.

    Args:
      documents: the corpus, or the part of it that is a shard of a store.
      tokenizer: encodes it.
      folder: exists and is empty.
      repeated: the numbers of documents to drop as duplicates; None: found here, if the source drops them.
      may_be_empty: whether there may be no text at all.

    Raises:
      InputError: bad text, or none.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    head, tail = ([np.array(ids, np.int32)] if ids else [] for ids in frame(tokenizer))
    content = hashlib.sha256()
    count = text_bytes = document_count = first_bytes = 0
    last_name: str | None = None
    spelled, dropped = collections.Counter[str](), collections.Counter[str]()
    kept = _without_repeated(documents, repeated, dropped) if repeated or documents.deduplicate else documents
    progress = _progress(documents.nbytes, documents.origin)
    with progress as advance, (folder / "tokens.bin").open("wb") as out, (folder / "documents.bin").open("wb") as index:
        for batch in _batches(_chunks(kept)):
            row: list[np.ndarray] = []
            starts: list[int] = []
            batch_bytes = 0
            for (name, text), ids in zip(batch, _encode(tokenizer, batch), strict=True):
                if not count and not head:
                    first_bytes = len(tokenizer.decode(ids[:1]).encode())
                if name != last_name:
                    if last_name is not None:
                        row += tail
                        count += len(tail)
                    starts.append(count)
                    row += head
                    count += len(head)
                    content.update(b"\xff")
                    last_name = name
                data = text.encode()
                content.update(data)
                batch_bytes += len(data)
                row.append(ids)
                count += len(ids)
            ids_of_batch = np.concatenate(row)
            _refuse_unknown(ids_of_batch, tokenizer.vocab_size, documents.origin)
            out.write(ids_of_batch.astype(dtype).tobytes())
            index.write(np.array(starts, "<i8").tobytes())
            document_count += len(starts)
            text_bytes += batch_bytes
            advance(batch_bytes, count, document_count)
            spelled.update(_spelled(tokenizer, batch))
        if document_count:
            out.write(np.array([id for ids in tail for id in ids]).astype(dtype).tobytes())
            count += len(tail)
        _sync(out)
        _sync(index)
    if not text_bytes and not may_be_empty:
        raise InputError(f"{documents.origin}: the corpus is empty; it has no character")
    _report_spelled(spelled, documents.origin)
    header: dict[str, Any] = {
        "format": FORMAT,
        "count": count,
        "itemsize": dtype.itemsize,
        "documents": document_count,
        "bytes": text_bytes,
        "predicted_bytes": text_bytes - first_bytes,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "content": content.hexdigest(),
        "origin": documents.origin,
        "dropped": dict(sorted((dropped + documents.dropped).items())),
    }
    _seal(folder, header)


def _seal(folder: Path, header: dict[str, Any]) -> None:
    """Adds the digests of the files in a folder to their header, and writes it."""
    paths = {name: folder / f"{name}.bin" for name in ("tokens", "documents")}
    written = {name: _mapped(path, np.uint8, path.stat().st_size) for name, path in paths.items()}
    header["digests"] = {name: _digest_array(data) for name, data in written.items()}
    # What buckets report of their objects.
    header["md5"] = {name: hashlib.md5(data.data, usedforsecurity=False).hexdigest() for name, data in written.items()}
    header["sha256"] = digest(header)
    with (folder / "header.json").open("wb") as file:
        file.write(json.dumps(header, indent=1).encode())
        _sync(file)
    files.sync(folder)


def _report_spelled(spelled: Mapping[str, int], origin: str) -> None:
    """Prints the special tokens that a text spells, if there are any."""
    if spelled:
        most = sorted(spelled.items(), key=lambda one: -one[1])[:5]
        times = ", ".join(f"{token} {count:,} times" for token, count in most)
        print(
            f"{origin}: the text spells special tokens ({times}); this tokenizer encodes them as text. "
            "--data.tokenizer.special-tokens read encodes them as tokens",
            file=sys.stderr,
        )


def _without_repeated(
    documents: sources.Documents, repeated: frozenset[int] | None, dropped: collections.Counter[str]
) -> Iterator[tuple[str, str]]:
    """The documents whose text was not seen before. Those without text have no number."""
    seen: set[bytes] = set()
    number = -1
    for name, text in sources.whole(documents):
        if not text:
            continue
        number += 1
        if repeated is None:
            one = hashlib.sha256(text.encode()).digest()[:16]
            again = one in seen
            seen.add(one)
        else:
            again = number in repeated
        if again:
            dropped["duplicates"] += 1
        else:
            yield name, text


def _chunks(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The documents in chunks of at most CHUNK characters, which end at line ends. Where a chunk ends depends on the
    document alone, not on the pieces in which a format reads it, and with it the tokens."""
    for name, pieces in itertools.groupby(documents, key=lambda pair: pair[0]):
        held = ""
        for _, piece in pieces:
            held, at = held + piece, 0
            while len(held) - at > CHUNK:
                end = held.rfind("\n", at, at + CHUNK) + 1 or at + CHUNK
                yield name, held[at:end]
                at = end
            held = held[at:]
        yield name, held


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Lists of texts of about BATCH characters together. Empty texts are skipped."""
    batch: list[tuple[str, str]] = []
    held = 0
    for name, text in documents:
        if text:
            batch.append((name, text))
            held += len(text)
        if held >= BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids (before, after) each document.

    With a beginning-of-text token of its own (`bos_id`), that token comes before a document and the end of text, where
    generation stops, after it. Without one, the end of text comes before the document and does both.

    Args:
      tokenizer: encodes the documents.
    """
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if bos is None or bos == eos:
        return ([] if eos is None else [eos]), []
    return [bos], [] if eos is None else [eos]


def _spelled(tokenizer: Tokenizer, batch: list[tuple[str, str]]) -> dict[str, int]:
    """{spelling: count} of special tokens in the texts, if the tokenizer encodes them as text."""
    if not getattr(tokenizer, "literal", True) or not tokenizer.special_spellings:
        return {}
    pattern = re.compile("|".join(map(re.escape, tokenizer.special_spellings)))
    return collections.Counter(found for _, text in batch for found in pattern.findall(text))


def _encode(tokenizer: Tokenizer, batch: list[tuple[str, str]]) -> list[np.ndarray]:
    for name, text in batch:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            where = f"{name}: character {error.start}"
            raise InputError(f"{where} is half of a surrogate pair, which is not text") from None
    try:
        return tokenizer.encode_batch([text for _, text in batch])
    except InputError:
        for name, text in batch:  # find the text that failed
            try:
                tokenizer.encode(text)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        raise


def rename(temporary: Path, folder: Path) -> None:
    """Renames the finished folder `temporary` to `folder`, unless another process has made it meanwhile."""
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / "header.json").exists():  # if it exists, another process has made the same file
            raise
    files.sync(folder.parent)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sweep(parent: Path) -> None:
    """Deletes the temporary folders of killed writers in the folder `parent`."""
    for folder in parent.glob(".*"):
        with contextlib.suppress(OSError):  # another process may be sweeping too
            if time.time() - max(p.stat().st_mtime for p in (folder, *folder.iterdir())) > ABANDONED:
                shutil.rmtree(folder)


# ---- Progress ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(total: int, origin: str) -> Iterator[Callable[[int, int, int], None]]:
    """Yields advance(more bytes, tokens so far, documents so far): a bar on a terminal, else a line every 15 s."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    started = printed = time.monotonic()
    done = tokens = documents = 0

    def line(verb: str) -> str:
        rate = done / 1e6 / max(time.monotonic() - started, 1e-9)
        return f"{verb} {origin}: {done / 1e6:.1f} MB, {tokens:,} tokens, {documents:,} documents, {rate:.1f} MB/s"

    columns = (TextColumn("tokenising"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(more: int, tokens_now: int, documents_now: int) -> None:
            nonlocal done, tokens, documents, printed
            done, tokens, documents = done + more, tokens_now, documents_now
            bar.update(task, completed=done, total=max(total, done))
            if not console.is_terminal and time.monotonic() - printed > 15:
                printed = time.monotonic()
                print(line("tokenising"), file=sys.stderr, flush=True)

        yield advance
    print(line("tokenised"), file=sys.stderr, flush=True)
