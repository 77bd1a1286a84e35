"""docs/numbers.json: every number that README and the site state, the command behind it, and what that command gave.

    {"measured": {NAME: {"command": ..., "file": ..., "minutes": ..., "machine": ..., "numbers": {...}, "seen": {...}}},
     "published": {NAME: {"value": ..., "source": ...}},
     "blocks": {PAGE: {BLOCK: [LINE, ...]}}}

A person writes what is to be measured: the command, the file that it leaves, the path of each number in that file, the
range that holds, the minutes that it takes and the kind of machine. `seen` is written by `tools/verify` alone
(`running.py`): the values, the date, the commit, the machine, the SHA-256 of the file, and a digest of each folder of
code that the command imported. A digest of the whole record shows a value that was typed by hand.

`pages.py` makes the tables of the pages from it.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FILE = "docs/numbers.json"
MACHINES = ("cpu", "gpu", "tpu")
Book = dict[str, Any]
"""The content of the file."""

ENTRY: dict[str, Any] = {"command": str, "file": str, "minutes": (int, float), "machine": str, "numbers": dict}
SEEN = ("values", "date", "commit", "machine", "minutes", "results", "code", "digest")


def read(root: Path = ROOT) -> Book:
    """The checked content of docs/numbers.json.

    Raises:
      InputError: an entry lacks a field, a record was changed by hand, or a value is outside of its range.
    """
    book = files.read_json(root / FILE)
    for name, entry in book["measured"].items():
        for field, kind in ENTRY.items():
            if not isinstance(entry.get(field), kind):
                raise InputError(f"{FILE}: {name} has no valid {field!r}: {str(entry.get(field))[:80]}")
        if entry["machine"] not in MACHINES or not entry["command"].startswith("tools/run "):
            raise InputError(f"{FILE}: {name} needs a command `tools/run MODULE ...` and one of {', '.join(MACHINES)}")
        if seen := entry.get("seen"):
            _check_seen(name, entry, seen)
    for name, entry in book["published"].items():
        if "value" not in entry or not entry.get("source"):
            raise InputError(f"{FILE}: the published number {name} needs a value and its source")
    return book


def _check_seen(name: str, entry: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    if set(seen) != set(SEEN) or seen["digest"] != digest(seen):
        raise InputError(f"{FILE}: what is seen of {name} was not written by tools/verify; run tools/verify {name}")
    for number, value in seen["values"].items():
        if number in entry["numbers"] and not holds(entry["numbers"][number], value):
            raise InputError(f"{FILE}: {name}:{number} is {value}, outside of {entry['numbers'][number]['holds']}")


def write(book: Book, root: Path = ROOT) -> None:
    """Writes `book` into docs/numbers.json, which is whole or as it was."""
    files.write(root / FILE, json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def digest(seen: Mapping[str, Any]) -> str:
    """A digest of a record without its own field "digest"."""
    rest = {name: value for name, value in seen.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def holds(number: Mapping[str, Any], value: float) -> bool:
    """Whether `value` is in the range of `number`; one without a range, such as a time, always holds."""
    low, high = number.get("holds", (-float("inf"), float("inf")))
    return low <= value <= high


# ---- The code behind a number ----------------------------------------------------------------------------------------


def code(paths: Iterable[str], root: Path = ROOT) -> dict[str, str]:
    """{folder: "DIGEST file file ..."} of Python files of this checkout.

    Args:
      paths: relative to the root. A file that is not there counts as an empty one.
      root: of the checkout.
    """
    folders: dict[str, list[str]] = {}
    for path in sorted(set(paths)):
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name.removesuffix(".py"))
    return {folder: " ".join([_digest(root / folder, names), *names]) for folder, names in folders.items()}


def changed(seen: Mapping[str, Any], root: Path = ROOT) -> list[str]:
    """The folders whose code is not what it was when the record `seen` was made."""
    return [
        folder
        for folder, text in seen["code"].items()
        if _digest(root / folder, text.split()[1:]) != text.partition(" ")[0]
    ]


def _digest(folder: Path, names: Iterable[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        path = folder / f"{name}.py"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found.update(f"{name}\0{without_words(text)}\0".encode())
    return found.hexdigest()[:8]


def without_words(source: str) -> str:
    """Python source without docstrings, whole lines of comment and blank lines: what can change a number."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for at in body if isinstance(body, list) else ():
            if isinstance(at, ast.Expr) and isinstance(at.value, ast.Constant) and isinstance(at.value.value, str):
                lines[at.lineno - 1 : at.end_lineno] = [""] * ((at.end_lineno or at.lineno) - at.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip() and not re.match(r"\s*#", line))
