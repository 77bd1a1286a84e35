"""Text files as characters, whatever their compression, encoding and line ends.

    compression   gzip, bzip2, xz and Zstandard, recognised by the first bytes, not by the name
    encoding      UTF-8, or UTF-16 and UTF-32 with a byte-order mark; leading marks are removed
    line ends     "\\n" and "\\r\\n" become "\\n", as does "\\r" in a file without "\\n"; nothing else ends a line

Training and prediction both read text through `pieces`, `lines` or `whole`. Files are streamed, so little of a large
file is in memory. What cannot be read is an `InputError` that names the file, the line and the byte.
"""

import bz2
import codecs
import gzip
import io
import itertools
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from transformer_jax import extras
from transformer_jax.data import remote
from transformer_jax.errors import InputError

PIECE = 1 << 20  # bytes that are read at a time
HEAD = 1 << 20  # first bytes of a file, from which its encoding and line ends are detected
LONGEST_TEXT = 1 << 28  # characters that `whole` reads at most
LONGEST_LINE = 1 << 26  # characters; a longer line would fill the memory

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MARKS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
BY_COLUMNS = "which Records, Table and Columns read by its columns"
NO_TEXT = {
    b"PAR1": f"a Parquet file, {BY_COLUMNS}, if its name ends in .parquet",
    b"ARROW1": f"an Arrow file, {BY_COLUMNS}, if its name ends in .arrow",
    b"PK\x03\x04": "a ZIP archive, as .xlsx and .docx files are; unpack it, or export it as CSV or plain text",
    b"%PDF": "a PDF; extract its text",
}


def suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a name in lower case, without that of a compression: ".csv" for "A.CSV.gz".

    Args:
      path: a path or a name.
    """
    name = Path(path)
    return Path(name.stem if name.suffix.lower() in COMPRESSED else name.name).suffix.lower()


def pieces(path: remote.File) -> Iterator[str]:
    """The text of a file in pieces of about PIECE bytes. A piece ends at a line end if it holds one.

    Args:
      path: the file.

    Raises:
      InputError: the file cannot be read, or is not text.
    """
    try:
        with remote.opened(path) as file:
            yield from decoded(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); looked in {Path.cwd()}") from None


def lines(path: remote.File) -> Iterator[str]:
    """The lines of a file without their line ends. A line end at the end of the file adds no empty line.

    Args:
      path: the file.

    Raises:
      InputError: as `pieces`, and a line of more than LONGEST_LINE characters.
    """
    return split(pieces(path), str(path))


def whole(path: remote.File) -> str:
    """The text of a file as one string.

    Args:
      path: the file.

    Raises:
      InputError: as `pieces`, and more than LONGEST_TEXT characters.
    """
    held, size = [], 0
    for piece in pieces(path):
        held.append(piece)
        size += len(piece)
        if size > LONGEST_TEXT:
            raise InputError(f"{path} has more than {LONGEST_TEXT:,} characters, too many to hold in memory; divide it")
    return "".join(held)


def split(text: Iterable[str], where: str) -> Iterator[str]:
    """The lines of a text in pieces, as `lines` yields those of a file.

    Args:
      text: the pieces.
      where: names the text in messages.

    Raises:
      InputError: a line of more than LONGEST_LINE characters.
    """
    held, size, line = [""], 0, 1  # the parts of a line that has not ended yet
    for piece in text:
        *ended, last = piece.split("\n")
        if ended:
            yield "".join([*held, ended[0]])
            yield from ended[1:]
            held, size, line = [], 0, line + len(ended)
        held.append(last)
        size += len(last)
        if size > LONGEST_LINE:
            raise InputError(f"{where}:{line}: a line of more than {LONGEST_LINE:,} characters; break it into lines")
    if size:
        yield "".join(held)


def decoded(file: Any, where: str) -> Iterator[str]:
    """The text of a binary stream, in the pieces of `pieces`.

    Args:
      file: a binary stream, such as `sys.stdin.buffer`.
      where: names the stream in messages.

    Raises:
      InputError: the stream is not text.
    """
    stream = unpacked(file, where)
    head = _read(stream, HEAD, where)
    mark, encoding = next(((m, e) for m, e in MARKS if head.startswith(m)), (b"", "utf-8"))
    _check_is_text(head, mark, where)
    decoder = codecs.getincrementaldecoder(encoding)()
    blocks = itertools.chain(
        (head[at : at + PIECE] for at in range(len(mark), len(head), PIECE)),
        iter(lambda: _read(stream, PIECE, where), b""),
        (b"",),
    )
    at, line, carried, first = len(mark), 1, "", True
    returns = _ends_in_returns(head, encoding)
    for block in blocks:
        start = at - len(decoder.getstate()[0])
        try:
            text = carried + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            good = carried + error.object[: error.start].decode(encoding)
            line += _one_end(good, returns).count("\n")
            raise InputError(
                f"{where}:{line}: not {encoding.upper()} at byte {start + error.start} ({error.reason}); convert the "
                "file to UTF-8 or leave the line out"
            ) from None
        at += len(block)
        if first and text:
            text, first = text.lstrip("\ufeff"), False
        if block:  # a "\n" may follow a "\r" at the end of a block
            kept = len(text.rstrip("\r"))
            text, carried = _one_end(text[:kept], returns), text[kept:]
            end = text.rfind("\n") + 1 or len(text)
            text, carried = text[:end], text[end:] + carried
        else:
            text = _one_end(text, returns)
            text = text if returns else text.rstrip("\r")
        line += text.count("\n")
        if text:
            yield text


def _one_end(text: str, returns: bool) -> str:
    """The text with "\\n" as its only line end."""
    if "\r" not in text:
        return text
    if returns:
        return text.replace("\r\n", "\n").replace("\r", "\n")
    *ended, last = text.split("\n")
    return "\n".join([*(line.rstrip("\r") for line in ended), last])


def _ends_in_returns(head: bytes, encoding: str) -> bool:
    """Whether the lines of a file end in "\\r" alone, as on Macs before OS X."""
    text = head.decode(encoding, "ignore")
    return "\r" in text and "\n" not in text


def _check_is_text(head: bytes, mark: bytes, where: str) -> None:
    for magic, what in NO_TEXT.items():
        if head.startswith(magic):
            raise InputError(f"{where} is {what}")
    start = head[:1024]
    if (not mark or mark == codecs.BOM_UTF8) and start.count(0) > len(start) // 4:
        raise InputError(
            f"{where} is not text, or UTF-16 without a byte-order mark: {start.count(0)} of its first {len(start)} "
            "bytes are 0; convert the file to UTF-8"
        )


def unpacked(file: Any, where: str) -> IO[bytes] | BinaryIO:
    """The decompressed stream, or the stream itself if it is not compressed.

    Args:
      file: a binary stream.
      where: names it in messages.
    """
    file = file if hasattr(file, "peek") else io.BufferedReader(file)  # stdin of a notebook or a test has no peek
    magic = file.peek(8)[:10]
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", magic):
        return bz2.BZ2File(file)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        extras.need("pyarrow", f"{where}, which is compressed by Zstandard")
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return file


def _read(file: IO[bytes] | BinaryIO, count: int, where: str) -> bytes:
    try:
        return file.read(count)
    except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise InputError(f"{where}: not a whole compressed file ({error}); fetch or pack it again") from None
    except OSError as error:
        if error.strerror:  # an error of the disk, not of the decompressor
            raise
        raise InputError(f"{where}: not a whole compressed file ({error}); fetch or pack it again") from None
