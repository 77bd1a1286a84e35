"""Small files, read with limits and replaced atomically. A run or a snapshot may be untrusted, or truncated.

    files.read(path, 2**22, inside=folder)       # a regular file, not too long, that no link leads out of `folder`
    files.read_json(path, inside=folder)         # and it is JSON, not nested too deep, of not too many values
    files.write(path, "text")                    # the old file or the new one, even if the process is killed

No file is changed in place: `write` and `replacing` write a temporary file, sync it to the disk, and rename it.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from transformer_jax.errors import InputError

JSON_BYTES = 2**22  # the default limit, for files of settings
JSON_VALUES = 2**23  # the most values of any JSON: one of 2 bytes in the file takes up to 70 bytes of memory in Python
# Errors of a disk or folder that cannot be written; commands report them in one line.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)


# ------------------------------------------------------------------------------------------------------------- reading


def opened(path: Path, *, limit: int | None = None, inside: Path | None = None) -> BufferedReader:
    """A local file opened for reading.

    Args:
      path: the file.
      limit: the most bytes that it may have; a sparse file counts in full. None: no limit.
      inside: the folder of a run or a snapshot; links must not lead out of it, except within the Hub's own cache, whose
        snapshots are links to blobs. None: links are followed.

    Raises:
      FileNotFoundError: it does not exist.
      InputError: it is not a regular file (reading a pipe or a device may never end), is too long, is a link out of
        `inside`, or cannot be read.
    """
    if inside is not None and not _is_inside(path, inside):
        raise InputError(
            f"{path} is a link to {os.path.realpath(path)}, outside of {inside}; put the file itself there"
        )
    try:
        refuse_other(path, path.stat(), limit)  # before opening, which may have effects on a device
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        refuse_other(path, os.fstat(descriptor), limit)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_other(path: Path, found: os.stat_result, limit: int | None = None) -> None:
    """Raises `InputError` if the path is not a regular file of at most `limit` bytes.

    Args:
      path: for the message.
      found: its status.
      limit: in bytes; None: no limit.
    """
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
        raise InputError(f"{path} is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}; it has to be a file")
    if limit is not None and found.st_size > limit:
        raise InputError(f"{path} has {found.st_size:,} bytes; more than {limit:,} are not read")


def read(path: Path, limit: int, *, inside: Path | None = None) -> bytes:
    """The bytes of a file, local or in an object store.

    Args:
      path: the file.
      limit: the most bytes that it may have.
      inside: as for `opened`.

    Raises:
      FileNotFoundError: it does not exist.
      InputError: as `opened`.
    """
    if "://" in os.fspath(path):
        with path.open("rb") as remote:
            data = remote.read(limit + 1)
    else:
        with opened(path, limit=limit, inside=inside) as file:
            size = os.fstat(file.fileno()).st_size or 2**16  # files in /proc report size 0
            data = file.read(min(limit, size) + 1)  # `read` allocates its argument, even for a smaller file
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit:,} bytes, which are not read")
    return data


def read_json(
    path: Path, limit: int = JSON_BYTES, *, inside: Path | None = None, most_values: int = JSON_VALUES
) -> Any:
    """The value of a JSON file.

    Args:
      path: the file.
      limit: the most bytes that it may have.
      inside: as for `opened`.
      most_values: as for `parse_json`.

    Raises:
      FileNotFoundError: it does not exist.
      InputError: as `opened` and `parse_json`.
    """
    return parse_json(read(path, limit, inside=inside), str(path), most_values)


def parse_json(data: bytes, where: str, most_values: int = JSON_VALUES) -> Any:
    """The value of a JSON text.

    Args:
      data: in UTF-8.
      where: its origin, for messages.
      most_values: the most values that it may have.

    Raises:
      InputError: it is not JSON, is nested too deep, or has so many values that they would need much more memory than
        the text.
    """
    if sum(map(data.count, b",[{")) > most_values:
        raise InputError(f"{where} has more than {most_values:,} values, which are not read")
    try:
        return json.loads(data)
    except RecursionError:
        raise InputError(f"{where} is nested too deep to be read") from None
    except ValueError as error:  # includes UnicodeDecodeError
        raise InputError(f"{where} cannot be read as JSON: {error}") from None


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether the path leads, through all its links, to something in `folder`."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(root):
        return True
    snapshots = next((parent for parent in root.parents if parent.name == "snapshots"), None)
    return snapshots is not None and real.is_relative_to(snapshots.parent / "blobs")


# ------------------------------------------------------------------------------------------------------------- writing


def write(path: Path, content: str | bytes, *, inside: Path | None = None) -> bool:
    """Writes a file atomically; returns False, without writing, if it has the content already.

    Args:
      path: the file.
      content: a text, written in UTF-8, or bytes.
      inside: the run's folder, from which no link may lead the file's own folder away; None: links are followed.

    Raises:
      InputError: as `replacing`, and for such a link.
    """
    if inside is not None and not _is_inside(path.parent, inside):
        raise InputError(
            f"{path.parent} is a link to {os.path.realpath(path.parent)}, outside of {inside}; move it away"
        )
    data = content.encode() if isinstance(content, str) else content
    with contextlib.suppress(FileNotFoundError, InputError):
        if not path.is_symlink() and read(path, len(data)) == data:
            return False
    with replacing(path) as part:
        part.write_bytes(data)
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a temporary file to write, NAME.part beside `path`.

    When the block ends, the temporary file is synced and renamed to `path`, so that a reader finds the old file or the
    new one, also after a power failure. When the block raises, `path` is unchanged.

    Raises:
      InputError: `path` is a link, or not a file.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is {'a link' if path.is_symlink() else 'no file'}; move it away: a file is written")
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # left by a killed process, or a link
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield part
        sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def appending(path: Path) -> TextIO:
    """A text file opened for appending, which is made if it is not there.

    Args:
      path: the file.

    Raises:
      InputError: `path` is a link, or not a file: nothing is written through a link.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is {'a link' if path.is_symlink() else 'no file'}; move it away: a file is written")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o666), "a", encoding="utf-8")


def copy(source: Path, target: Path, limit: int, *, inside: Path) -> None:
    """Copies a regular file, so that `target` is whole or as it was, and lets no link lead out of the folder.

    Args:
      source: the file.
      target: where its copy goes.
      limit: the most bytes that it may have.
      inside: the folder that no link may leave.

    Raises: as `opened` and `replacing`.
    """
    with opened(source, limit=limit, inside=inside) as file, replacing(target) as part, part.open("wb") as out:
        shutil.copyfileobj(file, out)


def sync_tree(folder: Path) -> None:
    """Waits until every file below a folder, and every folder's list of names, is on the disk.

    Args:
      folder: links in it are not followed.
    """
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        list(pool.map(sync, (path for path in paths if path.is_file())))
    for path in [*(path for path in paths if path.is_dir()), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Waits until the content of `path`, a file or the names in a folder, is on the disk, safe from a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the file system does not support it
            raise
    finally:
        os.close(descriptor)
