"""A run in an object store, `--workdir gs://BUCKET/RUN`: what is relied on there, and the few operations it takes.

A store has no rename, no fsync, no append and no kernel that locks a file. It has these, which Google Cloud Storage
documents, and nothing else is relied on:

 - An object is written whole or not at all, and is there for every reader once the write is answered; so are listings.
 - Each write gives the object a new generation. A write or a deletion may state the generation that it expects, 0 for
   "not there"; of two that expect the same one fails.
 - The answers carry the store's clock.

So the folder of a run becomes a prefix of names, and

 - checkpoints/STEP/ is a step exactly if checkpoints/STEP/manifest.json is there. That object is written last,
   expecting none, after all it lists was written and read back; and deleted first, so that no half of a step is one.
   (Uploads that outlive their process cannot be distinguished from those of the next one; they are seen as damage.)
 - `store_lock` keeps the lock: an object that its owner writes again and again, each time expecting its own generation.
 - What grows or is replaced, such as metrics.jsonl, is written on this machine (`mirror.py`) and uploaded as whole
   objects: before a step becomes one, and in the end.

Orbax and TensorStore read and write gs:// by themselves, several hosts at once; these names are read through etils'
`Path`, and what needs a condition, the store's clock or an exact error goes through gcsfs, here. What may pass (429,
500 to 504, a connection that breaks) gcsfs tries again, six times over half a minute, and a request that is not
answered is made three times; what is left is `Failed`, or `InputError` before anything was written. TensorStore, which
writes the arrays, retries for a quarter of an hour.
"""

import base64
import contextlib
import email.utils
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_jax import extras
from transformer_jax.errors import InputError, RunError

SCHEME = "gs://"
TIMEOUT = 60.0  # seconds for one request
PART = 2**24  # bytes of an object that are in memory at once while it is digested
TRIES = 3  # attempts at a request that gets no answer
THREADS = 16  # requests at once
CRASHING = ((3, 12, 0), (3, 12, 1))  # its garbage collector, where io.BytesIO.getbuffer is part of a cycle


class Failed(RunError):
    """The store did not do what was asked of it, after all tries; the message says what and why."""


class Changed(Exception):
    """The object is not of the generation that the write expected."""


@dataclass(frozen=True)
class Seen:
    """An object at one moment: the generation, and its age by the store's clock, in seconds."""

    generation: int
    age: float


# ---------------------------------------------------------------------------------------------------------------- paths


def remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is in a store."""
    return os.fspath(path).startswith(SCHEME)


def absolute(path: Path) -> Path:
    """`path` from the root on; one in a store already is, and pathlib would put the current folder before it."""
    return path if remote(path) else path.absolute()


def path(text: str | os.PathLike[str]) -> Path:
    """The path that `text` names: a local one, or one in a store, which behaves as a `Path` for reading.

    Raises:
      InputError: a store of another kind; gcsfs is not installed; or the bucket is not there, may not be read, or
        cannot be reached.
    """
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme + separator != SCHEME:
        raise InputError(f"{text}: {scheme}:// is not supported; give a local folder or {SCHEME}BUCKET/FOLDER")
    bucket, _, key = rest.rstrip("/").partition("/")
    if not bucket or not key or "" in key.split("/") or {".", ".."} & set(key.split("/")):
        raise InputError(f"{text} does not name a folder in a bucket; give {SCHEME}BUCKET/FOLDER")
    try:
        _call("GET", "b/{}/o", bucket, prefix=key + "/", maxResults=1)
    except FileNotFoundError:
        raise InputError(f"{text}: {_no_bucket(bucket)}") from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{text} cannot be read: {_why(error)}") from None
    import fsspec
    from etils import epath

    # A listing that is remembered would hide what another host, or TensorStore, has written since.
    for protocol in ("gs", "gcs"):
        settings = fsspec.config.conf.setdefault(protocol, {})
        settings.setdefault("use_listings_cache", False)
        settings.setdefault("requests_timeout", TIMEOUT)
    # A connection of TensorStore's over which nothing comes is given up too, and made again.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(int(TIMEOUT)))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    return epath.Path(f"{SCHEME}{bucket}/{key}")


def _gcsfs() -> Any:
    # Without this gcsfs asks a second service, over gRPC, what kind of bucket it is, and waits a minute where that does
    # not answer. Names with slashes are all we need of any bucket.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if sys.version_info[:3] in CRASHING:
        version = ".".join(map(str, sys.version_info[:3]))
        raise InputError(
            f"{SCHEME} needs another Python than {version}, which crashes after an upload that failed (CPython issue "
            "111211): 3.11, or 3.12.2 and later"
        )
    extras.need("gcsfs", f"a workdir at {SCHEME}")
    import gcsfs

    for name in ("gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is raised
    return gcsfs.GCSFileSystem(use_listings_cache=False, requests_timeout=TIMEOUT)


def _call(*words: Any, **options: Any) -> tuple[Any, bytes]:
    """A request, the words and options being gcsfs's: headers and content of the answer.

    gcsfs itself tries again all that may pass, but not what was never answered.
    """
    for left in reversed(range(TRIES)):
        try:
            return _gcsfs().call(*words, **options)
        except TimeoutError:
            if not left:
                raise TimeoutError(f"{TRIES} times no answer in {TIMEOUT:.0f} s") from None
    raise AssertionError("unreachable")


def _split(path: Path) -> tuple[str, str]:
    bucket, _, key = os.fspath(path).removeprefix(SCHEME).partition("/")
    return bucket, key


# -------------------------------------------------------------------------------------------------------------- objects


def sizes(folder: Path) -> dict[str, int]:
    """{name: bytes} of all objects below `folder`; names are relative to it, with slashes."""
    bucket, key = _split(folder)
    return {x["name"].removeprefix(key + "/"): int(x["size"]) for x in _pages(folder, bucket, key, "items")}


def folders(folder: Path) -> list[str]:
    """The names right below `folder` that have objects below them."""
    bucket, key = _split(folder)
    found = _pages(folder, bucket, key, "prefixes", delimiter="/")
    return sorted(prefix.removeprefix(key + "/").rstrip("/") for prefix in found)


def names(folder: Path) -> list[str]:
    """The names of the objects right in `folder`."""
    bucket, key = _split(folder)
    return sorted(x["name"].removeprefix(key + "/") for x in _pages(folder, bucket, key, "items", delimiter="/"))


def _pages(folder: Path, bucket: str, key: str, what: str, **options: str) -> list[Any]:
    found: list[Any] = []
    with _explained(folder, "list"):
        while True:
            try:
                _, contents = _call("GET", "b/{}/o", bucket, prefix=key + "/", **options)
            except FileNotFoundError:
                raise Failed(f"cannot list {folder}: {_no_bucket(bucket)}") from None
            page = json.loads(contents)
            found += page.get(what, [])
            if "nextPageToken" not in page:
                return found
            options["pageToken"] = page["nextPageToken"]


def put(path: Path, data: bytes, *, generation: int | None = None) -> int:
    """Writes an object, whole; returns its generation.

    Args:
      path: the path of the object.
      data: its content.
      generation: the expected one; 0: the object is not there; None: any.

    Raises:
      Changed: it has another generation. Where an answer was lost, our own write is not treated as another's.
    """
    bucket, key = _split(path)
    expected = {} if generation is None else {"ifGenerationMatch": str(generation)}
    headers = {"Content-Type": "application/octet-stream"}
    with _explained(path, "write"):
        where = f"{_gcsfs()._location}/upload/storage/v1/b/{bucket}/o"
        try:
            _, answer = _call("POST", where, uploadType="media", name=key, data=data, headers=headers, **expected)
        except FileNotFoundError:
            raise Failed(f"cannot write {path}: {_no_bucket(bucket)}") from None
        except FileExistsError:  # gcsfs's word for a condition that is not met
            with contextlib.suppress(FileNotFoundError):
                there, seen = get(path)
                if there == data:
                    return seen.generation
            raise Changed(os.fspath(path)) from None
        made = json.loads(answer)
        if made["md5Hash"] != base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode():
            raise Failed(f"{path}: what the store has is not what was sent; give the command again")
    return int(made["generation"])


def get(path: Path) -> tuple[bytes, Seen]:
    """The content of the small object `path`, and what it was at that moment. Raises `FileNotFoundError`."""
    bucket, key = _split(path)
    with _explained(path, "read"):
        headers, data = _call("GET", "b/{}/o/{}", bucket, key, alt="media")
    changed, now = (headers.get(name) for name in ("Last-Modified", "Date"))
    age = _seconds(now) - _seconds(changed) if now and changed else 0.0
    return data, Seen(int(headers["x-goog-generation"]), max(0.0, age))


def there(path: Path) -> bool:
    """Whether the object `path` is there."""
    return size(path) is not None


def size(path: Path) -> int | None:
    """The bytes of the object `path`; None where it is not there."""
    bucket, key = _split(path)
    with _explained(path, "read"), contextlib.suppress(FileNotFoundError):
        _, facts = _call("GET", "b/{}/o/{}", bucket, key)
        return int(json.loads(facts)["size"])
    return None


def digest(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of the object `path`, as the store has it. Raises `FileNotFoundError`."""
    bucket, key = _split(path)
    whole, first, total = hashlib.sha256(), 0, 1
    with _explained(path, "read"):
        while first < total:
            span = {"Range": f"bytes={first}-{first + PART - 1}"}
            try:
                headers, data = _call("GET", "b/{}/o/{}", bucket, key, alt="media", headers=span)
            except Exception as error:
                if getattr(error, "code", None) == 416 and first == 0:  # an empty object has no byte to request
                    return 0, whole.hexdigest()
                raise
            whole.update(data)
            first += len(data)
            total = int(headers["Content-Range"].rpartition("/")[2]) if "Content-Range" in headers else first
    return first, whole.hexdigest()


def delete(path: Path, *, generation: int | None = None) -> None:
    """Deletes the object `path`; one that is not there is no error.

    Raises:
      Changed: it has another generation than `generation`, which was given.
    """
    bucket, key = _split(path)
    expected = {} if generation is None else {"ifGenerationMatch": str(generation)}
    with _explained(path, "delete"), contextlib.suppress(FileNotFoundError):
        try:
            _call("DELETE", "b/{}/o/{}", bucket, key, **expected)
        except FileExistsError:
            raise Changed(os.fspath(path)) from None


def delete_folder(folder: Path, first: str) -> None:
    """Deletes all objects below `folder`; `first`, the one that makes it a step, before all others."""
    delete(folder / first)
    _each(lambda name: delete(folder / name), sizes(folder))


def copy_folder(source: Path, target: Path) -> None:
    """Copies all objects below the folder `source` to `target`, within the store."""
    bucket, key = _split(source)

    def copy(name: str) -> None:
        options: dict[str, str] = {}
        with _explained(source / name, "copy"):
            while True:  # a large object takes several calls
                words = ("POST", "b/{}/o/{}/rewriteTo/b/{}/o/{}", bucket, f"{key}/{name}", *_split(target / name))
                _, answer = _call(*words, **options)
                token = json.loads(answer).get("rewriteToken")
                if token is None:
                    return
                options["rewriteToken"] = token

    _each(copy, sizes(source))


def _each(do: Callable[[str], None], names: Collection[str]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(do, names))


def _seconds(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp()


# --------------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """Converts what gcsfs raises into `Failed`, except for what callers decide by."""
    try:
        yield
    except (FileNotFoundError, Changed, InputError, RunError):
        raise
    except Exception as error:
        raise Failed(f"cannot {what} {path}: {_why(error)}") from error


def _no_bucket(bucket: str) -> str:
    return f"there is no bucket {bucket!r}; make it, or give another one"


def _why(error: BaseException) -> str:
    """One line for any error of gcsfs, aiohttp or google-auth, with the fix where there is one."""
    code, lines = getattr(error, "code", None), str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    if first.startswith("Forbidden") or code == 403:
        answer = lines[-1] if len(lines) > 1 else "status 403"
        return f"the store refuses it ({answer}); give this account the role Storage Object User on the bucket"
    if code == 401 or type(error).__name__ in ("DefaultCredentialsError", "RefreshError"):
        return f"no valid credentials ({first}); log in: gcloud auth application-default login"
    if isinstance(error, TimeoutError) or type(error).__module__.partition(".")[0] in ("aiohttp", "requests"):
        return f"the store does not answer ({first}); see the network, and give the command again"
    return f"{first}; see the store, and give the command again"


def explain(error: BaseException) -> str | None:
    """One line for an `error` that a store raised through etils; None for any other."""
    rooms = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    theirs = rooms & {"gcsfs", "aiohttp", "google", "requests"} or isinstance(error, TimeoutError)
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden")
    return _why(error) if theirs or forbidden else None
