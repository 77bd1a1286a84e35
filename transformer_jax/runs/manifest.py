"""The manifest of a step: the size and SHA-256 of every file in its folder, and the proof that they are on the disk.

    manifest.json   {"manifest": 1, "sha256": digest of the file without this line's value,
                     "files": {"meta/metadata": {"bytes": 5120, "sha256": "..."}, "params/d/...": ...}}

Array files carry no check of their own that a reader would notice: Orbax restores a flipped byte as another number. So
each file is digested when a step is saved, and again before anything is restored from it. The manifest is written last
and vouches for itself, to the byte, so that a folder either has a true list of its files or counts as damaged.

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

from transformer_jax.errors import InputError
from transformer_jax.runs import store

NAME = "manifest.json"
VERSION = 1
MAX_BYTES = 2**26  # of a manifest, about 500,000 files; a stranger's file is not read beyond it


class Damaged(InputError):
    """A step is not what was written: the message names the file and what differs."""


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


# ------------------------------------------------------------------------------------------------------------- writing


def digest(folder: Path, names: Iterable[str]) -> dict[str, File]:
    """Size and SHA-256 of these files, by name; names are relative to `folder`, with slashes."""
    names = list(names)
    with ThreadPoolExecutor(_threads()) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def names(folder: Path) -> list[str]:
    """All files below `folder` but the manifest itself, sorted."""
    if store.remote(folder):
        return sorted(name for name in store.sizes(folder) if name != NAME)
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name != NAME)


def write(path: Path, files: dict[str, File]) -> None:
    """Writes a manifest and waits until it is on the disk. What it lists must be there already: `sync`.

    In a store a step's manifest makes the step, and is written once: `store.Changed` where there is one.
    """
    if store.remote(path):
        store.put(path, _render(files), generation=0 if path.name == NAME else None)
        return
    with path.open("wb") as file:
        file.write(_render(files))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync(folder: Path) -> None:
    """Waits until every file below `folder`, and every folder's list of names, is on the disk."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    with ThreadPoolExecutor(_threads()) as pool:
        list(pool.map(_sync, (path for path in paths if path.is_file())))
    for path in [*(path for path in paths if path.is_dir()), folder]:
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk: what was made, renamed or deleted survives a power cut."""
    _sync(folder)


def forget(folder: Path) -> None:
    """Asks the kernel to drop its copies of the files, so that a check that follows reads the disk."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    for path in folder.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> dict[str, File]:
    """What a manifest lists. Errors: `Damaged` when it is missing, or differs in a byte from what was written."""
    folder = path.parent
    try:
        if store.remote(path):
            data = store.get(path)[0]
        else:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({_reason(error)}), so {folder} cannot be checked") from None
    if len(data) > MAX_BYTES:
        raise Damaged(f"{path} has more than {MAX_BYTES:,} bytes; it is not a manifest")
    try:
        stored = json.loads(data)["files"]
        files = {name: File(entry["bytes"], entry["sha256"]) for name, entry in stored.items()}
        exact = data == _render(files)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        exact, files = False, {}
    if not exact:
        raise Damaged(f"{path} is not as it was written, so {folder} cannot be trusted")
    for name in files:
        spelled = name.encode(errors="replace").decode()  # half of a surrogate pair is no file's name
        if name.startswith("/") or ".." in name.split("/") or "\0" in name or name != spelled:
            raise Damaged(f"{path} lists {name!r}, which is not a file in this folder")
    return files


def verify(folder: Path, items: Collection[str] | None = None, part: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Compares the files in a step's folder with its manifest; returns how many files and bytes were read.

    Arguments:
      items: only these subfolders, such as {"params"}, beside meta and the files at the top; None: all.
      part: (i, n): this process reads the i-th of n parts.
    Errors: `Damaged` naming the first file that is missing, new, longer, shorter or has another digest.
    """
    files = read(folder / NAME)
    listed = compare(folder, files, items)
    mine = listed[part[0] :: part[1]]
    try:
        digests = digest(folder, mine)
    except OSError as error:
        raise Damaged(f"{error.filename or folder} cannot be read: {_reason(error)}") from None
    for name in mine:
        if digests[name] != files[name]:
            raise Damaged(
                f"{folder / name} is not as it was written: its SHA-256 is {digests[name].sha256[:12]}..., and "
                f"{files[name].sha256[:12]}... was written"
            )
    return len(mine), sum(files[name].bytes for name in mine)


def compare(folder: Path, files: dict[str, File], items: Collection[str] | None = None) -> list[str]:
    """The names of those files that belong to `items`, after all names in the folder, and the sizes of these, have been
    compared with what a manifest says. Errors: as `verify`."""
    wanted = None if items is None else {*items, "meta"}

    def chosen(name: str) -> bool:
        item, slash, _ = name.partition("/")
        return wanted is None or not slash or item in wanted

    sizes = store.sizes(folder) if store.remote(folder) else None
    for name in names(folder) if sizes is None else sorted(sizes.keys() - {NAME}):
        if name not in files and not name.rpartition("/")[2].startswith("."):  # which file systems and viewers leave
            raise Damaged(f"{folder / name} is not in the manifest of its step; take it away, or use another step")
    listed = sorted(name for name in files if chosen(name))
    for name in listed:
        try:
            found = (folder / name).stat().st_size if sizes is None else sizes[name]
        except (OSError, KeyError) as error:
            raise Damaged(f"{folder / name} is in the manifest of its step, but: {_reason(error)}") from None
        if found != files[name].bytes:
            raise Damaged(f"{folder / name} has {found:,} bytes, and {files[name].bytes:,} were written")
    return listed


def _render(files: dict[str, File]) -> bytes:
    """The bytes of a manifest, which are a function of what it lists: no byte can differ unnoticed."""
    body = ",\n".join(
        f"{json.dumps(name)}: {json.dumps({'bytes': int(file.bytes), 'sha256': str(file.sha256)})}"
        for name, file in sorted(files.items())
    )
    text = f'{{"manifest": {VERSION}, "sha256": "%s", "files": {{\n{body}\n}}}}\n'
    own = hashlib.sha256(text.replace("%s", "", 1).encode()).hexdigest()
    return text.replace("%s", own, 1).encode()


def _digest(path: Path) -> File:
    if store.remote(path):
        return File(*store.digest(path))
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
        return File(file.tell(), value)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """What the system says, or that there is no such object: a store's errors have no number."""
    return getattr(error, "strerror", None) or "No such object"


def _threads() -> int:
    return min(16, 2 * (os.cpu_count() or 1))
