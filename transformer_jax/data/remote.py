"""Files to read wherever they are: on this machine, or at a URL that fsspec opens. The only place that knows.

    /data/a.jsonl                       a `Path`
    gs://BUCKET/a.parquet               a `Url`; so are s3://, https:// and fsspec's others

Files of the Hub, hf://datasets/OWNER/NAME/, are downloaded instead (`transformer_jax.hf`). A file is read in blocks,
and any part of it alone, so its size does not matter. Accounts and endpoints are those of the store's own tools, or
fsspec's settings (FSSPEC_S3_ENDPOINT_URL, FSSPEC_GS_TOKEN=anon). What fails is an `InputError` of one line, after the
store's library has tried again.
"""

import contextlib
import glob
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from transformer_jax import extras, files, hf
from transformer_jax.errors import InputError

BLOCK = 1 << 22  # bytes of one request where a file is read from front to back
# scheme -> (the package that reads it, how to log in)
SCHEMES = {
    "gs": ("gcsfs", "gcloud auth application-default login"),
    "gcs": ("gcsfs", "gcloud auth application-default login"),
    "s3": ("s3fs", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
    "http": ("aiohttp", "only public files are read"),
    "https": ("aiohttp", "only public files are read"),
}
# What a store reports of an object that changes when it is written again, the surest first.
VERSIONS = (
    *("md5Hash", "etag", "ETag", "sha256", "oid", "blob_id", "Content-MD5", "Digest", "generation"),
    *("mtime", "LastModified", "Last-Modified", "created"),
)


@dataclass(frozen=True)
class Url:
    """A file at a URL, as it was listed."""

    url: str
    size: int
    """In bytes."""
    version: str
    """Changes when the file is written again; "": the store does not report one."""

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url


File = Path | Url


def one(path: str) -> File:
    """The file at `path`: local, a URL or a name on the Hub. Raises `InputError` for a URL of several files."""
    if hf.named(path) or not is_url(path):
        return hf.here(path)
    files_there, _ = found(path)
    if len(files_there) != 1:
        raise InputError(f"{path} is of {len(files_there)} files, where one is read; give one")
    return files_there[0]


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a URL."""
    return "://" in os.fspath(path)


def size(file: File) -> int:
    """The bytes of `file`."""
    return file.size if isinstance(file, Url) else file.stat().st_size


def version(file: File) -> str:
    """A text that changes when `file` is written again."""
    return file.version if isinstance(file, Url) else str(file.stat().st_mtime_ns)


def opened(file: File, *, block: int = BLOCK) -> BinaryIO:
    """A file opened for reading.

    Args:
      file: the file.
      block: the bytes of each request at least, of a `Url`; 0: exactly the bytes that are read.

    Raises:
      InputError: a file that does not exist, or cannot be read.
    """
    if not isinstance(file, Url):
        try:
            return files.opened(file)
        except FileNotFoundError:
            raise InputError(f"{file} cannot be read (No such file or directory); looked in {Path.cwd()}") from None
    with explained(file.url):
        fs, path = filesystem(file.url)
        raw = fs.open(path, "rb", cache_type="readahead" if block else "none", block_size=block or BLOCK)
        return _Explained(raw, file.url)  # type: ignore[return-value]


class _Explained(io.RawIOBase):
    """A file of fsspec whose errors are explained."""

    def __init__(self, raw: Any, url: str) -> None:
        self.raw, self.url = raw, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.raw.seek(offset, whence)

    def tell(self) -> int:
        return self.raw.tell()

    def read(self, count: int | None = -1) -> bytes:
        with explained(self.url):
            return self.raw.read(-1 if count is None else count)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.raw.close()
        super().close()


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Some bytes of files at URLs, by a request for each range, many at the same time.

    Args:
      ranges: (URL, the first byte, one past the last byte) of each; the URLs are of one store.

    Raises:
      InputError: some cannot be read, or a file is shorter.
    """
    if not ranges:
        return []
    urls, firsts, pasts = (list(part) for part in zip(*ranges, strict=True))
    fs, _ = filesystem(urls[0])
    with explained(urls[0]):
        paths = [fs._strip_protocol(url) for url in urls]
        read = fs.cat_ranges(paths, firsts, pasts, on_error="return")
    for (url, first, past), data in zip(ranges, read, strict=True):
        with explained(url):
            if isinstance(data, Exception):
                raise data
        if len(data) != past - first:
            raise InputError(f"{url} has no bytes {first:,}-{past:,}: it is truncated; write it again")
    return read


def read(path: str) -> bytes | None:
    """The bytes of the small file at `path`, local or a URL; None: there is no such file."""
    try:
        if not is_url(path):
            return Path(path).read_bytes()
        with explained(path):
            fs, inside = filesystem(path)
            try:
                return fs.cat_file(inside)
            except FileNotFoundError:
                return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def write(path: str, data: bytes) -> None:
    """Writes the `data` of a small file to `path`, local or a URL, whole or not at all."""
    if is_url(path):
        with explained(path):
            fs, inside = filesystem(path)
            fs.pipe_file(inside, data)
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write(Path(path), data)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from None


def join(path: str, *names: str) -> str:
    """The file or folder of the `*names` below `path`."""
    return "/".join([path.rstrip("/"), *names])


def names(folder: str) -> set[str]:
    """The names of all files below `folder`, local or a URL, relative to it."""
    if is_url(folder):
        return set(listed(folder))
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def upload(source: Path, url: str) -> None:
    """Copies the local file `source` to `url`, where it appears when all of it has arrived."""
    with explained(url):
        fs, path = filesystem(url)
        fs.put_file(str(source), path)


def found(given: str) -> tuple[list[Url], str]:
    """The files that a URL names, and the URL of the folder that their names are relative to.

    Args:
      given: a file, a folder, or (except for http) a glob.

    Raises:
      InputError: there is nothing, or it cannot be listed.
    """
    with explained(given):
        fs, path = filesystem(given)
        fs.invalidate_cache()  # an earlier listing in this process may be old
        web = given.startswith("http")
        if glob.has_magic(path) and not web:
            listed = fs.glob(path, detail=True)
            root = PurePosixPath(path).parent
            while glob.has_magic(str(root)):
                root = root.parent
        else:
            info = fs.info(path)
            if info["type"] == "directory":
                listed, root = fs.find(path, detail=True), PurePosixPath(path)
            else:
                listed, root = {path: info}, PurePosixPath(path).parent
        infos = [(name, info) for name, info in sorted(listed.items()) if info["type"] == "file"]
        urls = [
            Url(name if web else fs.unstrip_protocol(name), int(info.get("size") or 0), version_of(info))
            for name, info in infos
        ]
        return urls, given.rpartition("/")[0] if web else fs.unstrip_protocol(str(root))


def listed(folder: str) -> dict[str, dict[str, Any]]:
    """{name relative to the folder: what the store reports of it} of all files below `folder`; {}: there is none."""
    with explained(folder):
        fs, path = filesystem(folder)
        fs.invalidate_cache()
        try:
            return {name[len(path.rstrip("/")) + 1 :]: info for name, info in fs.find(path, detail=True).items()}
        except FileNotFoundError:
            return {}


def version_of(info: dict[str, Any]) -> str:
    """What the `info` of an object holds that changes when it is written again; "" for none."""
    return next((str(info[key]) for key in VERSIONS if info.get(key) is not None), "")


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of `url`, and the path in it.

    Raises:
      InputError: an unknown scheme, or the package for it is not installed.
    """
    import fsspec

    scheme = url.partition("://")[0]
    package, _ = SCHEMES.get(scheme, ("", ""))
    if package:
        extras.need(package, f"{scheme}://")
    if scheme in ("gs", "gcs"):  # otherwise gcsfs asks a second service what kind of bucket it is, and may wait for it
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what went wrong is raised
    return fsspec.core.url_to_fs(url)


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Raises an `InputError` of one line about `url` in place of whatever the store's library raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(_why(url, error)) from None


def _why(url: str, error: Exception) -> str:
    scheme = url.partition("://")[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, kind = (lines[0] if lines else type(error).__name__)[:300], type(error).__name__
    code = getattr(error, "code", None) or getattr(error, "status", None)
    log_in = SCHEMES.get(scheme, ("", "see its documentation"))[1]
    if isinstance(error, FileNotFoundError) and scheme.startswith("http"):  # fsspec raises it for all that fails
        return f"{url}: there is no such file, or the server cannot be reached; see the URL, which must be public"
    if isinstance(error, FileNotFoundError) or kind == "NoSuchBucket":
        return f"{url}: there is no such file, folder or bucket, or this account may not see it; {log_in}"
    refused = isinstance(error, PermissionError) or first.startswith("Forbidden") or code in (401, 403)
    if refused or kind in ("NoCredentialsError", "DefaultCredentialsError", "RefreshError", "GatedRepoError"):
        return f"{url}: access is refused ({first}); {log_in}"
    if isinstance(error, ValueError) and "rotocol" in first:
        return f"{url}: the scheme {scheme}:// is not known ({first}); known are {', '.join(SCHEMES)}"
    if isinstance(error, ImportError):
        return f"{url}: the package that reads {scheme}:// is not installed ({first})"
    return f"{url} cannot be read ({kind}: {first}); see the network and the store, and give the command again"
