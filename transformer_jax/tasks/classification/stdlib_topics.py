"""From which part of the standard library is this passage of code? Twenty topics, on every machine, no network."""

import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer_jax.data import sources
from transformer_jax.data.tables import Row, Rows, Side
from transformer_jax.errors import InputError

# The parts of the library with the most code, of those that every installation has: tkinter and idlelib are packages of
# their own on many systems, and what came or went between Python 3.11 and 3.14 is not among them. Where no package is
# large enough any more, the modules of one subject are a part. A missing module (zipfile is a file or a folder, by
# version; _pydatetime came with 3.12) is not missed.
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
_LINES = 10  # of a passage; the last, shorter one of a file is left out
_MOST: dict[Side, int] = {"train": 300, "validation": 60, "test": 60}  # passages of a topic, evenly drawn from all


@dataclass(frozen=True)
class StdlibTopics:
    """Passages of the running Python's standard library, each labelled with the one of `TOPICS` that it is from.

    So that the task is not to find a name, lines with one of the topic's own are left out (import lines, mostly; names
    of two or three letters count as words or in capitals), and blank lines with them. A file is on one side only: a
    topic's largest file trains; of the others, in the order of a hash of their paths, validation and test get an eighth
    of the passages each, or a little more, without those that stand word for word in a training file. A topic gives at
    most 300, 60 and 60 passages: without that a quarter of all were tables of `encodings`. Like the text, the split can
    differ between Python versions.
    """

    pairs = False
    has_test = True

    def rows(self, side: Side) -> Rows:
        root = Path(sysconfig.get_path("stdlib"))
        files = {topic: _topic_files(root, topic) for topic in TOPICS}
        # A few passages stand in several files, word for word: most are licences and tables.
        trained = {row.text for sides in files.values() for passages in sides["train"] for row in passages}
        held: list[Row] = []
        for sides in files.values():
            rows = [row for passages in sides[side] for row in passages if side == "train" or row.text not in trained]
            chosen = np.linspace(0, len(rows) - 1, min(_MOST[side], len(rows))).astype(int)
            held += [rows[i] for i in chosen]
        return Rows(f"passages of the Python standard library at {root} ({side})", held)


def _topic_files(root: Path, topic: str) -> dict[Side, list[list[Row]]]:
    """Each file's passages, by side."""
    own = re.compile("|".join(rf"\b{n}\b|{n.upper()}" if len(n) < 4 else f"(?i:{n})" for n in TOPICS[topic]))
    files: list[tuple[str, list[Row]]] = []
    for path in sorted(p for name in TOPICS[topic] for p in (root / f"{name}.py", *(root / name).rglob("*.py"))):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or sources.NOT_EMBEDDED & set(name.split("/")) or not sources.is_utf8(path):
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
            f"{', '.join(TOPICS[topic])}, and one each is needed to train, validate and test; "
            "use a Python that comes with its source"
        )
    largest = max(files, key=lambda file: len(file[1]))
    sides: dict[Side, list[list[Row]]] = {"train": [largest[1]], "validation": [], "test": []}
    share = sum(len(rows) for _, rows in files) / 8

    def size(side: Side) -> int:
        return sum(map(len, sides[side]))

    for _, rows in sorted((f for f in files if f is not largest), key=lambda file: sources.position(file[0])):
        less: Side = "validation" if size("validation") <= size("test") else "test"
        sides[less if size(less) < share else "train"].append(rows)
    return sides
