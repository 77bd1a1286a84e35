"""Text files: whatever a system or a program writes around the same text, the text is the same."""

import bz2
import codecs
import gzip
import io
import lzma

import pyarrow
import pytest

from transformer_jax.data import text_files
from transformer_jax.errors import InputError

LINES = ["one, \u2028 two", "", "Grüße 世界 🙂\x0c\u0085", "\ufeff inside", "last"]
MARKS = {
    "utf-8": (b"", codecs.BOM_UTF8),
    "utf-16-le": (codecs.BOM_UTF16_LE,),
    "utf-16-be": (codecs.BOM_UTF16_BE,),
    "utf-32-le": (codecs.BOM_UTF32_LE,),
    "utf-32-be": (codecs.BOM_UTF32_BE,),
}
PACKERS = {"plain": lambda data: data, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_marks_encodings_line_ends_and_packing_do_not_matter(tmp_path, monkeypatch, end, ended, piece):
    monkeypatch.setattr(text_files, "PIECE", piece)
    path = tmp_path / "a.txt"  # the name says nothing of the packing
    for encoding, marks in MARKS.items():
        for mark in marks:
            for pack in PACKERS.values():
                path.write_bytes(pack(mark + (end.join(LINES) + end * ended).encode(encoding)))
                assert list(text_files.lines(path)) == LINES
                assert text_files.whole(path) == "\n".join(LINES) + "\n" * ended


def test_a_return_inside_a_line_ends_nothing(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\r\nthree\n")
    assert list(text_files.lines(tmp_path / "a.txt")) == ["one\rtwo", "three"]


def test_blank_lines_are_lines(tmp_path):
    for written, count in {"": 0, "\n": 1, "a": 1, "a\n\n": 2, "\n\na": 3}.items():
        (tmp_path / "a.txt").write_text(written)
        assert len(list(text_files.lines(tmp_path / "a.txt"))) == count


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\ntwo\ncaf\xe9 \n", r"a.txt:3: not UTF-8 at byte 11 \(invalid continuation byte\); convert the file"),
        (codecs.BOM_UTF8 + b"one\r\ntwo\xff", r"a.txt:2: not UTF-8 at byte 11 \(invalid start byte\)"),
        (codecs.BOM_UTF16_LE + "one\n".encode("utf-16-le") + b"\0", r"a.txt:2: not UTF-16-LE at byte 10"),
        (
            "one\ntwo\n".encode("utf-16-le"),
            r"a.txt is not text, or UTF-16 without a byte-order mark: 8 of its",
        ),
        (b"PAR1\0\0\0", r"a.txt is a Parquet file, which Records, Table and Columns read by its columns"),
        (b"PK\x03\x04\0\0", r"a.txt is a ZIP archive, as .xlsx"),
        (
            gzip.compress(b"one two three" * 99, mtime=0)[:-9],
            r"a.txt: not a whole compressed file \(Compressed file ended",
        ),
        (gzip.compress(b"one", mtime=0)[:-8] + b"\0" * 8, r"a.txt: not a whole compressed file \(CRC check failed"),
        (lzma.compress(b"one two three" * 99)[:-9], r"a.txt: not a whole compressed file"),
        (bz2.compress(b"one")[:-4] + b"\0" * 4, r"a.txt: not a whole compressed file"),
        (gzip.compress(b"one", mtime=0) + b"more", r"a.txt: not a whole compressed file"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        text_files.whole(tmp_path / "a.txt")
    assert "\n" not in str(error.value)


def test_zstandard_is_read_in_several_frames_and_refused_where_it_is_truncated(tmp_path):
    frame = bytes(pyarrow.Codec("zstd").compress(b"Gr\xc3\xbc\xc3\x9fe\n" * 99))
    (tmp_path / "a.zst").write_bytes(frame + frame)
    assert text_files.whole(tmp_path / "a.zst") == "Grüße\n" * 198
    (tmp_path / "a.zst").write_bytes(frame + frame[:-5])
    with pytest.raises(InputError, match=r"a.zst: not a whole compressed file \(Truncated compressed stream"):
        text_files.whole(tmp_path / "a.zst")


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match=r"gone cannot be read \(No such file or directory\); looked in "):
        text_files.whole(tmp_path / "gone")
    with pytest.raises(InputError, match=r"is a folder"):
        text_files.whole(tmp_path)


def test_a_line_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 100)
    monkeypatch.setattr(text_files, "PIECE", 50)
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"short\n" + b"x" * 1000))
    with pytest.raises(InputError, match=r"a.txt:2: a line of more than 100 characters"):
        list(text_files.lines(tmp_path / "a.txt"))


def test_a_stream_is_read_as_a_file_is():
    stream = io.BufferedReader(io.BytesIO(gzip.compress(codecs.BOM_UTF8 + b"one\r\ntwo")))
    assert list(text_files.split(text_files.decoded(stream, "stdin"), "stdin")) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.CSV", ".csv"), ("a.csv.GZ", ".csv"), ("a.tar.xz", ".tar"), ("a.gz", ""), ("a", ""), ("x/B.Csv.bz2", ".csv")],
)
def test_suffix(name, suffix):
    assert text_files.suffix(name) == suffix
