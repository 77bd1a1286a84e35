"""Small files, read and written with care: what a run or a snapshot holds may come from strangers, or be cut off.

    files.read(path, 2**22, inside=folder)       # a regular file, not too long, that no link leads out of `folder`
    files.read_json(path, inside=folder)         # and it is JSON, not nested too deep, of not too many values
    files.write(path, "text")                    # whole or as it was, whenever the process is killed

Nothing is rewritten in place: `write` and `replacing` write beside the file, wait until that is on the disk, and then
rename it.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from transformer_jax.errors import InputError

JSON_BYTES = 2**22  # of a file of settings
JSON_VALUES = 2**23  # of any JSON: Python takes up to 70 bytes for a value that has two in the file


# ------------------------------------------------------------------------------------------------------------- reading


def opened(path: Path, *, limit: int | None = None, inside: Path | None = None) -> BufferedReader:
    """A local file opened for reading.

    Args:
      limit: the most bytes that it may have; a sparse file counts in full.
      inside: the folder of a run or a snapshot that it belongs to, out of which no link may lead. The Hub's own cache,
        whose snapshots are links to the blobs beside them, is as good as a folder. None: links are followed.

    Raises:
      FileNotFoundError: there is none.
      InputError: it is no regular file (a pipe would wait for ever, a device has no end), is too long, is led to from
        outside, or cannot be read.
    """
    if inside is not None and not _is_inside(path, inside):
        raise InputError(
            f"{path} is a link to {os.path.realpath(path)}, outside of {inside}; put the file itself there"
        )
    try:
        refuse_other(path, path.stat(), limit)  # a device may do something when it is opened
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
    """Raises `InputError` where these are the facts of something other than a regular file of at most `limit` bytes."""
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
        raise InputError(f"{path} is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}; it has to be a file")
    if limit is not None and found.st_size > limit:
        raise InputError(f"{path} has {found.st_size:,} bytes; more than {limit:,} are not read")


def read(path: Path, limit: int, *, inside: Path | None = None) -> bytes:
    """The bytes of a file, local or in a store. The arguments and errors are those of `opened`."""
    if "://" in os.fspath(path):
        with path.open("rb") as remote:
            data = remote.read(limit + 1)
    else:
        with opened(path, limit=limit, inside=inside) as file:
            size = os.fstat(file.fileno()).st_size or 2**16  # a file of /proc says that it has none
            data = file.read(min(limit, size) + 1)  # so much memory is taken, be there so much to read or not
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit:,} bytes, which are not read")
    return data


def read_json(path: Path, limit: int = JSON_BYTES, *, inside: Path | None = None) -> Any:
    """The value of a JSON file. Arguments as of `read`.

    Raises:
      FileNotFoundError: there is none.
      InputError: as `opened` and `parse_json`.
    """
    return parse_json(read(path, limit, inside=inside), str(path))


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON text in UTF-8. Raises `InputError` naming `where` for what is none, and for what would take
    much more memory than its bytes: nested too deep, or of too many values."""
    if sum(map(data.count, b",[{")) > JSON_VALUES:
        raise InputError(f"{where} has more than {JSON_VALUES:,} values, which are not read")
    try:
        return json.loads(data)
    except RecursionError:
        raise InputError(f"{where} is nested too deep to be read") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(f"{where} cannot be read as JSON: {error}") from None


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether the path leads, through all its links, to something in `folder`."""
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(root):
        return True
    return root.parent.name == "snapshots" and real.is_relative_to(root.parent.parent / "blobs")


# ------------------------------------------------------------------------------------------------------------- writing


def write(path: Path, content: str | bytes) -> bool:
    """Makes `content` that of the file; returns False, and touches nothing, where it is already.

    Raises: as `replacing`.
    """
    data = content.encode() if isinstance(content, str) else content
    with contextlib.suppress(FileNotFoundError, InputError):
        if not path.is_symlink() and read(path, len(data)) == data:
            return False
    with replacing(path) as part:
        part.write_bytes(data)
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to, NAME.part beside `path`. When the block ends, that is synced and renamed to `path`, so
    that whoever looks finds the old file or the new one, after a power cut too; when it raises, `path` stays as it is.

    Raises: `InputError` where `path` or its folder is a link to elsewhere, or `path` is no file: nothing is written
    through a link.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is {'a link' if path.is_symlink() else 'no file'}; move it away: a file is written")
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # of a process that was killed, or a link
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield part
        sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk: they survive a power cut then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to sync
            raise
    finally:
        os.close(descriptor)
