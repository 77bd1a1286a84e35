"""The manifest of a step: which step of which run it is, the size and SHA-256 of every file in its folder, and the
proof that they are on the disk.

    manifest.json   {"manifest": 2, "step": 1200, "run": "5f0c...", "sha256": digest of the file without this value,
                     "files": {"meta/metadata": {"bytes": 5120, "sha256": "..."}, "params/d/...": ...}}

Version 1, without step and run, is what earlier versions wrote, and what hosts exchange about their shares.

Array files carry no check of their own that a reader would notice: Orbax restores a flipped byte as another number. So
each file is digested when a step is saved, and again before anything is restored from it. The manifest is written last
and vouches for itself, to the byte, so that a folder either has a true list of its files or counts as damaged.

All this proves that the files are those that were written; not by whom: who can write a folder can write its manifest.

SHA-256 is what `sha256sum` computes; a core digests about 1 GB/s, and threads share the files, since hashlib lets go of
the interpreter's lock.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from transformer_jax import files
from transformer_jax.errors import InputError
from transformer_jax.runs import store

NAME = "manifest.json"
MAX_BYTES = 2**26  # the largest manifest, about 500,000 files; more of a stranger's file is not read
# What viewers of a folder leave there, and whatever begins with a dot.
LEFT_BEHIND = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"}


class Damaged(InputError):
    """A step is not what was written: the message names the file and what differs."""


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest says: the files by name and, from version 2 on, the step and the id of its run ("": unknown)."""

    files: dict[str, File]
    step: int | None = None
    run: str = ""


# ------------------------------------------------------------------------------------------------------------- writing


def digest(folder: Path, names: Iterable[str]) -> dict[str, File]:
    """Size and SHA-256 of the files `names`, by name; names are relative to `folder`, with slashes."""
    names = list(names)
    with ThreadPoolExecutor(_threads()) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name, folder), names), strict=True))


def names(folder: Path) -> list[str]:
    """All files below `folder` but the manifest itself, sorted."""
    if store.remote(folder):
        return sorted(name for name in store.sizes(folder) if name != NAME)
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name != NAME)


def write(path: Path, listed: dict[str, File], *, step: int | None = None, run: str = "") -> None:
    """Writes a manifest and waits until it is on the disk. What it lists must be there already: `files.sync_tree`.

    Args:
      path: the file; in a store a step's manifest makes the step, and is written once.
      listed: size and digest of each file.
      step: the step; None writes version 1.
      run: the id of its run.

    Raises:
      store.Changed: there is one already, in a store.
    """
    data = render(Manifest(listed, step, run))
    if store.remote(path):
        store.put(path, data, generation=0 if path.name == NAME else None)
    else:
        files.write(path, data)


def forget(folder: Path) -> None:
    """Asks the kernel to drop its copies of the files in `folder`, so that a check that follows reads the disk."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Manifest:
    """The manifest in the file `path`.

    Raises:
      Damaged: it is missing, or differs in a byte from what was written.
    """
    folder = path.parent
    try:
        data = store.get(path)[0] if store.remote(path) else files.read(path, MAX_BYTES, inside=folder)
    except (OSError, InputError) as error:
        raise Damaged(f"{path} cannot be read ({_reason(error)}), so {folder} cannot be checked") from None
    try:
        stored = files.parse_json(data, str(path))
        step, run = (stored["step"], stored["run"]) if stored["manifest"] == 2 else (None, "")
        given = {name: File(entry["bytes"], entry["sha256"]) for name, entry in stored["files"].items()}
        found = Manifest(given, step, run)
        exact = type(step) in (int, type(None)) and type(run) is str and data == render(found)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        exact = False
    if not exact:
        raise Damaged(f"{path} is not as it was written, so {folder} cannot be trusted")
    for name in found.files:
        spelled = name.encode(errors="replace").decode()  # half of a surrogate pair is no file's name
        if name.startswith("/") or ".." in name.split("/") or "\0" in name or name != spelled:
            raise Damaged(f"{path} lists {name!r}, which is not a file in this folder")
    return found


def verify(folder: Path, items: Collection[str] | None = None, part: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Compares the files in a step's folder with its manifest; returns how many files and bytes were read.

    Args:
      folder: the step's.
      items: only these subfolders, such as {"params"}, beside meta and the files at the top; None: all.
      part: (i, n): this process reads the i-th of n parts.

    Raises:
      Damaged: a file is missing, new, longer, shorter or has another digest; the message names the first one.
    """
    written = read(folder / NAME).files
    listed = compare(folder, written, items)
    mine = listed[part[0] :: part[1]]
    try:
        digests = digest(folder, mine)
    except OSError as error:
        raise Damaged(f"{error.filename or folder} cannot be read: {_reason(error)}") from None
    except InputError as error:
        raise Damaged(str(error)) from None
    for name in mine:
        if digests[name] != written[name]:
            raise Damaged(
                f"{folder / name} is not as it was written: its SHA-256 is {digests[name].sha256[:12]}..., and "
                f"{written[name].sha256[:12]}... was written"
            )
    return len(mine), sum(written[name].bytes for name in mine)


def compare(folder: Path, written: dict[str, File], items: Collection[str] | None = None) -> list[str]:
    """The names of the files that belong to `items`, after all names and their sizes were compared with a manifest.

    Args:
      folder: the step's.
      written: what its manifest says.
      items: only these subfolders, beside meta and the files at the top; None: all.

    Raises:
      Damaged: as `verify`, of names and sizes.
    """
    wanted = None if items is None else {*items, "meta"}

    def chosen(name: str) -> bool:
        item, slash, _ = name.partition("/")
        return wanted is None or not slash or item in wanted

    sizes = store.sizes(folder) if store.remote(folder) else None
    for name in names(folder) if sizes is None else sorted(sizes.keys() - {NAME}):
        if name not in written and not _left_behind(name):
            raise Damaged(f"{folder / name} is not in the manifest of its step; take it away, or use another step")
    listed = sorted(name for name in written if chosen(name))
    for name in listed:
        try:
            found = (folder / name).stat().st_size if sizes is None else sizes[name]
        except (OSError, KeyError) as error:
            raise Damaged(f"{folder / name} is in the manifest of its step, but: {_reason(error)}") from None
        if found != written[name].bytes:
            raise Damaged(f"{folder / name} has {found:,} bytes, and {written[name].bytes:,} were written")
    return listed


def _left_behind(name: str) -> bool:
    """Whether a file is what file systems and viewers leave in a folder, or is in a folder of theirs."""
    return any(part.startswith(".") or part.lower() in LEFT_BEHIND for part in name.split("/"))


def render(content: Manifest) -> bytes:
    """The bytes of a manifest, a function of its `content` alone: no byte can differ unnoticed."""
    body = ",\n".join(
        f"{json.dumps(name)}: {json.dumps({'bytes': int(file.bytes), 'sha256': str(file.sha256)})}"
        for name, file in sorted(content.files.items())
    )
    whose = f'2, "step": {content.step}, "run": {json.dumps(content.run)}' if content.step is not None else "1"
    head, tail = f'{{"manifest": {whose}, "sha256": "', f'", "files": {{\n{body}\n}}}}\n'
    own = hashlib.sha256((head + tail).encode()).hexdigest()
    return (head + own + tail).encode()


def _digest(path: Path, folder: Path) -> File:
    if store.remote(path):
        return File(*store.digest(path))
    with files.opened(path, inside=folder) as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
        return File(file.tell(), value)


def _reason(error: Exception) -> str:
    """What the system says, or that there is no such object: a store's errors have no number."""
    if isinstance(error, InputError):
        return str(error)
    return getattr(error, "strerror", None) or "No such object"


def _threads() -> int:
    return min(16, 2 * (os.cpu_count() or 1))
