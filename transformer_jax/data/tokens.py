"""Token files: a corpus tokenised once, memory-mapped ever after.

    CACHE/tokens/KEY/
      tokens.bin      every token of the corpus in one row, uint16 or uint32, little-endian
      documents.bin   int64: where each document starts in it
      header.json     counts, hashes, sizes

KEY is a hash of the corpus and the tokenizer: either changes, another file is made. A file is written under a
temporary name, synced and renamed, so it is there whole or not at all; its bytes are compared with the digests in the
header, and the header with its own hash, whenever it is opened. Memory stays bounded however large the corpus is.

Before each document stands the token by which a text begins for the model, or else the end of text (`frame`): a model
is asked to predict every token of the text, and one or two between neighbours. `predicted_bytes` are the UTF-8 bytes of
the text so predicted, so

    bits per byte = (sum of the losses of all tokens but the first, in nats) / ln 2 / predicted_bytes

counts the cost of the ends of text and is an upper bound on the text's own. Without such a token the first token of the
stream is given, not predicted, and its bytes are left out.
"""

import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
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
BLOCK = 1 << 26  # bytes that are digested at a time, several in parallel
BATCH = 4 << 20  # characters encoded together; their tokens are all that is in memory
ABANDONED = 3600  # seconds without a write after which a temporary folder's writer is taken for dead


@dataclass(frozen=True, eq=False)
class TokenFile:
    """A tokenised corpus, mapped, not read."""

    tokens: np.ndarray
    """uint16 or uint32 [count]."""
    starts: np.ndarray
    """int64 [documents]: the position of each document's first token (what `frame` puts there, if anything)."""
    bytes: int
    """UTF-8 bytes of the text."""
    predicted_bytes: int
    """The bytes that a model predicts: all, or all but the first token's where nothing stands before it."""
    vocab_size: int
    tokenizer: str
    """The tokenizer's fingerprint."""
    content: str
    """sha256 of the text: each document's UTF-8 after a byte 0xFF."""
    folder: Path


def cache_dir() -> Path:
    """$TRANSFORMER_JAX_CACHE, else transformer_jax in $XDG_CACHE_HOME or ~/.cache; made if absent, mode 0700."""
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
    """The token file of these documents: found in the cache, or made there.

    Raises InputError where there is no text, or the cache cannot be written.
    """
    key = hashlib.sha256(f"{FORMAT} {documents.identity()} {tokenizer.fingerprint}".encode()).hexdigest()[:32]
    parent = (cache or cache_dir()) / "tokens"
    folder = parent / key
    if folder.exists():
        try:
            return open_file(folder)
        except InputError as error:
            print(f"{error}; making it again", file=sys.stderr)
            shutil.rmtree(folder)
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(parent)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        try:
            _write(documents, tokenizer, temporary)
            _rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write the token file {folder} ({error}); make room, or set TRANSFORMER_JAX_CACHE to another folder"
        ) from error
    return open_file(folder)


def open_file(folder: Path) -> TokenFile:
    """A token file by its folder. One that is not whole raises InputError."""
    try:
        try:
            header = files.read_json(folder / "header.json", inside=folder)
        except InputError as error:
            raise InputError(f"token file {folder} is damaged: {error}") from None
        if header["format"] != FORMAT:
            raise InputError(f"token file {folder} has format {header['format']}, this version reads {FORMAT}")
        if header["sha256"] != _digest(header):
            raise InputError(f"token file {folder}: header.json is damaged, its values do not match its sha256")
        arrays = {}
        for name, dtype, count in (
            ("tokens", np.dtype(f"<u{header['itemsize']}"), header["count"]),
            ("documents", np.dtype("<i8"), header["documents"]),
        ):
            path = folder / f"{name}.bin"
            files.opened(path, inside=folder).close()
            size, expected = path.stat().st_size, count * dtype.itemsize
            if size != expected or count < 1:
                raise InputError(f"token file {path} has {size:,} bytes, its header says {expected:,}: it is damaged")
            # A plain ndarray over the map: indexing np.memmap itself is several times slower.
            arrays[name] = np.asarray(np.memmap(path, dtype, mode="r", shape=(count,)))
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
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"token file {folder} is damaged ({type(error).__name__}: {error})") from None


def _refuse_unknown(ids: np.ndarray, vocab_size: int, where: str) -> None:
    """Raises `InputError` for ids that are not below `vocab_size`: a model would take another token's embedding."""
    low, high = (ids.min(), ids.max()) if ids.size else (0, -1)
    if low < 0 or high >= vocab_size:
        raise InputError(f"{where}: id {low if low < 0 else high} is none of the tokenizer's {vocab_size:,} ids")


def _digest_array(array: np.ndarray) -> str:
    """SHA-256 of the SHA-256 of each `BLOCK` bytes, which threads share: hashlib lets go of the interpreter's lock."""
    data = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        blocks = pool.map(lambda at: hashlib.sha256(data[at : at + BLOCK]).digest(), range(0, len(data), BLOCK))
        return hashlib.sha256(b"".join(blocks)).hexdigest()


def _digest(header: dict[str, Any]) -> str:
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# ---- Writing -------------------------------------------------------------------------------------------------------


def _write(documents: sources.Documents, tokenizer: Tokenizer, folder: Path) -> None:
    """Everything but the rename."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    head, tail = ([np.array(ids, np.int32)] if ids else [] for ids in frame(tokenizer))
    content = hashlib.sha256()
    count = text_bytes = document_count = first_bytes = 0
    last_name: str | None = None
    spelled: collections.Counter[str] = collections.Counter()
    progress = _progress(documents.nbytes, documents.origin)
    with progress as advance, (folder / "tokens.bin").open("wb") as out, (folder / "documents.bin").open("wb") as index:
        for batch in _batches(documents):
            row: list[np.ndarray] = []
            starts: list[int] = []
            batch_bytes = 0
            encoded = _encode(tokenizer, batch)
            for (name, text), ids in zip(batch, encoded, strict=True):
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
    if not text_bytes:
        raise InputError(f"{documents.origin}: the corpus is empty; it holds not one character")
    if spelled:
        times = ", ".join(f"{token} {count:,} times" for token, count in spelled.most_common(5))
        print(
            f"{documents.origin}: the text spells special tokens ({times}), which are text to this tokenizer; "
            "--data.tokenizer.special-tokens read reads them as tokens",
            file=sys.stderr,
        )
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
    }
    header["digests"] = {
        name: _digest_array(np.asarray(np.memmap(folder / f"{name}.bin", np.uint8, mode="r")))
        for name in ("tokens", "documents")
    }
    header["sha256"] = _digest(header)
    with (folder / "header.json").open("wb") as file:
        file.write(json.dumps(header, indent=1).encode())
        _sync(file)
    _sync_folder(folder)


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Texts by the BATCH characters; empty ones hold nothing to predict and are left out."""
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
    """The tokens before and after each document.

    Before it the one that the model was trained to find at the head of a text (`bos_id`), and then after it the end of
    text, by which generation stops; without such a token the end of text stands before it and does both.
    """
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if bos is None or bos == eos:
        return ([] if eos is None else [eos]), []
    return [bos], [] if eos is None else [eos]


def _spelled(tokenizer: Tokenizer, batch: list[tuple[str, str]]) -> dict[str, int]:
    """How often special tokens are written in texts of which the tokenizer reads them as text."""
    if not getattr(tokenizer, "literal", True) or not tokenizer.special_spellings:
        return {}
    pattern = re.compile("|".join(map(re.escape, tokenizer.special_spellings)))
    return collections.Counter(found for _, text in batch for found in pattern.findall(text))


def _encode(tokenizer: Tokenizer, batch: list[tuple[str, str]]) -> list[np.ndarray]:
    for name, text in batch:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise InputError(f"{name}: character {error.start} is half of a surrogate pair, which is no text") from None
    try:
        return tokenizer.encode_batch([text for _, text in batch])
    except InputError:
        for name, text in batch:  # say which text it was
            try:
                tokenizer.encode(text)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        raise


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / "header.json").exists():  # else another process was faster, with the same content
            raise
    _sync_folder(folder.parent)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove what killed writers left behind."""
    for folder in parent.glob(".*"):
        with contextlib.suppress(OSError):  # another process may be sweeping too
            if time.time() - max(p.stat().st_mtime for p in (folder, *folder.iterdir())) > ABANDONED:
                shutil.rmtree(folder)


# ---- Progress ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(total: int, origin: str) -> Iterator[Callable[[int, int, int], None]]:
    """advance(bytes more, tokens so far, documents so far): a bar on a terminal, else a line a few times a minute."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    started = said = time.monotonic()
    done = tokens = documents = 0

    def line(verb: str) -> str:
        rate = done / 1e6 / max(time.monotonic() - started, 1e-9)
        return f"{verb} {origin}: {done / 1e6:.1f} MB, {tokens:,} tokens, {documents:,} documents, {rate:.1f} MB/s"

    columns = (TextColumn("tokenising"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def advance(more: int, tokens_now: int, documents_now: int) -> None:
            nonlocal done, tokens, documents, said
            done, tokens, documents = done + more, tokens_now, documents_now
            bar.update(task, completed=done, total=max(total, done))
            if not console.is_terminal and time.monotonic() - said > 15:
                said = time.monotonic()
                print(line("tokenising"), file=sys.stderr, flush=True)

        yield advance
    print(line("tokenised"), file=sys.stderr, flush=True)
