"""A data set on every machine: passages of the standard library, labelled with one of twenty topics."""

import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer_jax.data import source_files, sources, tables
from transformer_jax.data.tables import Row, Rows, Side
from transformer_jax.errors import InputError

# The largest parts of the library that every installation of Python 3.11 to 3.14 has. (tkinter and idlelib are separate
# packages on many systems.) A topic is a package, or several modules on one subject. A missing module is ignored:
# zipfile is a file or a folder, depending on the version.
TOPICS: dict[str, tuple[str, ...]] = {
    "archives": ("tarfile", "zipfile", "gzip", "bz2", "lzma", "shutil", "_compression"),
    "asyncio": ("asyncio",),
    "concurrent": ("concurrent",),
    "ctypes": ("ctypes",),
    "debugging": ("bdb", "pdb", "trace", "traceback", "tracemalloc", "profile", "cProfile", "pstats"),
    "email": ("email",),
    "encodings": ("encodings",),
    "http": ("http",),
    "importlib": ("importlib",),
    "json": ("json",),
    "logging": ("logging",),
    "mailbox": ("mailbox", "imaplib", "poplib", "smtplib", "ftplib", "netrc"),
    "multiprocessing": ("multiprocessing",),
    "numbers": ("_pydecimal", "decimal", "fractions", "statistics", "numbers", "random"),
    "re": ("re",),
    "syntax": ("ast", "tokenize", "dis", "inspect", "pyclbr", "symtable", "tabnanny"),
    "unittest": ("unittest",),
    "urllib": ("urllib",),
    "wsgiref": ("wsgiref",),
    "xml": ("xml",),
}
_LINES = 10  # lines of a passage; the shorter rest of a file is dropped
_MOST: dict[Side, int] = {"train": 300, "validation": 60, "test": 60}  # the most passages of a topic, evenly spaced


@dataclass(frozen=True)
class StdlibTopics:
    """Passages of the running Python's standard library, each labelled with its topic (`TOPICS`).

    Lines that name a module of the topic are removed, because they would reveal it; most are imports. A name of two or
    three letters counts only as a word or in capitals. Blank lines are removed as well.

    All passages of a file are on one side. The largest file of a topic is training data. The others, in the order of a
    hash of their paths, give validation and test about an eighth of the passages each. Passages that also occur in a
    training file are dropped there. A topic gives at most 300, 60 and 60 passages; otherwise a quarter of all would be
    tables of `encodings`. The split can differ between Python versions, as the text does.
    """

    pairs = False
    has_test = True

    def of_files(self, files: tuple[str, ...]) -> tables.Table:
        return tables.Table(files, files)

    def rows(self, side: Side) -> Rows:
        """The passages of a side.

        Args:
          side: "train", "validation" or "test".
        """
        root = Path(sysconfig.get_path("stdlib"))
        files = {topic: _topic_files(root, topic) for topic in TOPICS}
        # A few passages, mostly licences and tables, occur in several files: held-out sides omit those of training.
        trained = {row.text for sides in files.values() for passages in sides["train"] for row in passages}
        held: list[Row] = []
        for sides in files.values():
            rows = [row for passages in sides[side] for row in passages if side == "train" or row.text not in trained]
            chosen = np.linspace(0, len(rows) - 1, min(_MOST[side], len(rows))).astype(int)
            held += [rows[i] for i in chosen]
        return Rows(f"passages of the Python standard library at {root} ({side})", held)


def _topic_files(root: Path, topic: str) -> dict[Side, list[list[Row]]]:
    """{side: the passages of each of its files}."""
    own = re.compile("|".join(rf"\b{n}\b|{n.upper()}" if len(n) < 4 else f"(?i:{n})" for n in TOPICS[topic]))
    files: list[tuple[str, list[Row]]] = []
    for path in sorted(p for name in TOPICS[topic] for p in (root / f"{name}.py", *(root / name).rglob("*.py"))):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or sources.NOT_EMBEDDED & set(name.split("/")) or not source_files.is_utf8(path):
            continue
        numbered = enumerate(path.read_text("utf-8").splitlines(), 1)
        kept = [(number, line) for number, line in numbered if line.strip() and not own.search(line)]
        passages = [kept[first : first + _LINES] for first in range(0, len(kept) - _LINES + 1, _LINES)]
        if passages:
            rows = [Row("\n".join(line for _, line in p), None, topic, f"{name}:{p[0][0]}") for p in passages]
            files.append((name, rows))
    if len(files) < 3:
        raise InputError(
            f"the standard library at {root} has {len(files)} files with passages of {_LINES} lines under "
            f"{', '.join(TOPICS[topic])}, but each side needs one; use a Python with the source "
            "files of its standard library"
        )
    largest = max(files, key=lambda file: len(file[1]))
    sides: dict[Side, list[list[Row]]] = {"train": [largest[1]], "validation": [], "test": []}
    share = sum(len(rows) for _, rows in files) / 8

    def size(side: Side) -> int:
        return sum(map(len, sides[side]))

    for _, rows in sorted((f for f in files if f is not largest), key=lambda file: source_files.position(file[0])):
        less: Side = "validation" if size("validation") <= size("test") else "test"
        sides[less if size(less) < share else "train"].append(rows)
    return sides
