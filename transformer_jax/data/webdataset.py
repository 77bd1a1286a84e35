"""Records of WebDataset's tar files: consecutive members with one name up to its first dot are one record.

    0001.txt  0001.json            {"__key__": "0001", "txt": "the text", "json": {...}}
    cat/7.jpg cat/7.cls            {"__key__": "cat/7", "jpg": b"...", "cls": 3}

.txt and .text are UTF-8 text, .json is JSON, .cls and .index are whole numbers or names, and all others are bytes.
"""

import tarfile
from collections.abc import Iterator
from typing import Any

from transformer_jax import files
from transformer_jax.data import remote, text_files
from transformer_jax.errors import InputError

SUFFIX = ".tar"
MOST_BYTES = 1 << 28  # the largest member of a shard


def rows(file: remote.File) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number of the record, from 1; {ending of the name: content}) for each record, as the file is read.

    Args:
      file: a .tar file, compressed or not.

    Raises:
      InputError: the file is damaged, or a member is not what its ending says.
    """
    number, record = 0, dict[str, Any]()
    with remote.opened(file) as raw:
        stream = _Stream(text_files.unpacked(raw, str(file)))
        try:
            with tarfile.open(None, "r|", stream) as archive:  # type: ignore[call-overload]  # it calls `read` alone
                for member in archive:
                    folder, slash, name = member.name.rpartition("/")
                    key, _, ending = name.partition(".")
                    if not member.isfile() or not key:
                        continue
                    key, where = folder + slash + key, f"{file}: {member.name}"
                    if record and record["__key__"] != key:
                        number += 1
                        yield number, record
                        record = {}
                    if member.size > MOST_BYTES:
                        raise InputError(f"{where} has {member.size:,} bytes; more than {MOST_BYTES:,} are not read")
                    if ending.lower() in record:
                        raise InputError(f"{where} is there twice, one after the other; give each record its own name")
                    data = archive.extractfile(member).read()  # type: ignore[union-attr]  # it is a file
                    record |= {"__key__": key, ending.lower(): _value(ending.lower(), data, where)}
            if not stream.is_whole():  # tarfile ends without an error where a file ends between two members
                raise tarfile.ReadError("it ends before the end mark")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{file}: not a whole tar file ({error}); fetch or write it again") from None
    if record:
        yield number + 1, record


class _Stream:
    """A binary stream for tarfile that knows whether it ended with the mark of a whole archive, a block of zeros."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.last = stream, b""

    def read(self, count: int) -> bytes:
        data = self.stream.read(count)
        self.last = (self.last + data)[-512:]
        return data

    def is_whole(self) -> bool:
        while self.read(1 << 20):
            pass
        return self.last == bytes(512)


def _value(ending: str, data: bytes, where: str) -> Any:
    kind = ending.rpartition(".")[2]
    if kind == "json":
        return files.parse_json(data, where)
    if kind not in ("txt", "text", "cls", "index"):
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    return int(text) if kind in ("cls", "index") and text.strip().isdecimal() else text
