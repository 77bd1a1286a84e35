"""The files of a source: which they are, on which side each is, and a hash of them all.

for name, path in source_files.find_files(("texts/", "gs://mine/more/*.jsonl"), "train", records.SUFFIXES): ...
is_validation = source_files.position(name) < 0.1          # the same on every machine, whatever the other files are
"""

import glob
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformer_jax import hf
from transformer_jax.data import columnar, remote, text_files
from transformer_jax.errors import InputError

Files = Sequence[tuple[str, remote.File]]  # (path relative to the searched folder, file), sorted, the names unique

ANY = ("",)  # `find_files` finds files with any suffix
READ_TO_IDENTIFY = 1 << 30  # `identity` reads file contents up to this many bytes


# ---- Which files ---------------------------------------------------------------------------------------------------


def settle_paths(source: Any, *names: str) -> None:
    """Makes tuples of single paths in a source of files, and refuses a source without files.

    Args:
      source: a frozen dataclass with `validation_fraction`.
      *names: its fields of paths, first that of the training files.

    Raises:
      InputError: no training files, or a `validation_fraction` that is not between 0 and 1.
    """
    for name in names:
        if isinstance(value := getattr(source, name), str):  # one path, written without the comma of a tuple
            object.__setattr__(source, name, (value,) if value else ())
    if not getattr(source, names[0]):
        raise InputError(f"{type(source).__name__}({names[0]}=()) names no file; give files, folders or globs")
    check_fraction(source)


def one_file(files: tuple[str, ...]) -> str:
    """The only one of the `files`, for a source that reads a single file. Raises `InputError` for several."""
    if len(files) != 1:
        raise InputError(f"{', '.join(files)}: {len(files)} files, where one is read; give one")
    return files[0]


def find_files(
    paths: tuple[str, ...], split: str, suffixes: tuple[str, ...] = ANY, skipped: Counter[str] | None = None
) -> Files:
    """The files that the paths name, each once, sorted by name.

    Args:
      paths: files, folders or globs, local, at URLs or on the Hub (hf://datasets/org/name/train.csv), from where they
        are downloaded. Hidden files in folders are ignored.
      split: names the data in messages.
      suffixes: the suffixes of the files to find in folders, in lower case; files that are named may have any suffix.
      skipped: counts the other files in folders by suffix; None: they are not counted.

    Raises:
      InputError: a path that does not exist, or without files.
    """
    found: dict[remote.File, str] = {}
    for given in paths:
        if hf.named(given):
            given = str(hf.local(given))
        if remote.is_url(given):
            found |= _at_url(given, split, suffixes, skipped)
            continue
        start = Path(given).expanduser()
        if start.is_file():
            matches, root = [start], start.parent
        elif start.is_dir():
            root, inside = start, [p for p in start.rglob("*") if p.is_file() and not _hidden(p.relative_to(start))]
            matches = _of_kind(inside, suffixes, skipped, lambda path: path.read_bytes())
        elif glob.has_magic(given):
            matches, root = [Path(p) for p in glob.glob(str(start), recursive=True)], start.parent
            while glob.has_magic(str(root)):
                root = root.parent
        else:
            raise InputError(f"no such file or folder: {given} (the {split} data; looked in {Path.cwd()})")
        matches = [p for p in matches if p.is_file() and not _hidden(p.relative_to(root))]
        if not matches:
            raise _nothing(given, split, suffixes)
        for path in matches:
            # A file and a link to it count once. Files in the Hub's cache are links to files without a suffix.
            real = path.resolve()
            found.setdefault(path if real.parent.name == "blobs" else real, path.relative_to(root).as_posix())
    times = Counter(found.values())
    # Two folders may hold files of the same name, but a name means one document.
    named = ((name if times[name] == 1 else str(path), path) for path, name in found.items())
    return sorted(named, key=lambda file: (file[0], str(file[1])))


def _at_url(given: str, split: str, suffixes: tuple[str, ...], skipped: Counter[str] | None) -> dict[remote.File, str]:
    """{file: its name} of the files that a URL names, as `find_files` finds those of this machine."""
    urls, root = remote.found(given)
    names = {url: str(url).removeprefix(f"{root}/") for url in urls}
    inside = [url for url in urls if not _hidden(Path(names[url]))]
    if [str(url).rstrip("/") for url in urls] != [given.rstrip("/")] and not glob.has_magic(given):  # a folder
        inside = _of_kind(inside, suffixes, skipped, lambda url: remote.read(str(url)) or b"")
    if not inside:
        raise _nothing(given, split, suffixes)
    return {url: names[url] for url in inside}


def _nothing(given: str, split: str, suffixes: tuple[str, ...]) -> InputError:
    of_kind = "" if suffixes == ANY else f" ending in {', '.join(suffixes)}"
    return InputError(f"no files{of_kind} in {given} (the {split} text)")


def _of_kind(
    inside: list[Any], suffixes: tuple[str, ...], skipped: Counter[str] | None, content: Callable[[Any], bytes]
) -> list[Any]:
    """The files of a folder with these suffixes. Of a folder of `save_to_disk` only the files that it lists are data.

    Args:
      inside: all files of the folder.
      suffixes: as for `find_files`.
      skipped: counts the others.
      content: reads a small file.
    """
    matches = [path for path in inside if suffixes == ANY or text_files.suffix(path) in suffixes]
    if ".arrow" in suffixes:
        if several := [str(path) for path in inside if str(path).endswith("/dataset_dict.json")]:
            raise InputError(f"{several[0]}: a data set of several splits; name the folder of one, such as train")
        states = [path for path in inside if str(path).endswith(f"/{columnar.STATE}")]
        listed = {
            f"{str(path).removesuffix(columnar.STATE)}{name}"
            for path in states
            for name in columnar.saved_to_disk(content(path), str(path))
        }
        folders = tuple(str(path).removesuffix(columnar.STATE) for path in states)
        matches = [p for p in matches if not str(p).startswith(folders or "\0") or str(p) in listed]
    if skipped is not None:
        skipped.update(f"{Path(path).suffix or 'other'} files" for path in set(inside) - set(matches))
    return matches


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# ---- The side of each ----------------------------------------------------------------------------------------------


def position(text: str) -> float:
    """A hash of a text as a number in [0, 1).

    Args:
      text: any text.
    """
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def check_fraction(source: Any) -> None:
    """Refuses a source whose `validation_fraction` is not between 0 and 1.

    Args:
      source: with this field.

    Raises:
      InputError: the fraction is out of range.
    """
    if not 0 < source.validation_fraction < 1:
        raise InputError(
            f"{type(source).__name__}.validation_fraction = {source.validation_fraction} must be between 0 and 1"
        )


# ---- What they hold ------------------------------------------------------------------------------------------------


def is_utf8(path: Path) -> bool:
    """Whether a file is UTF-8 text.

    Args:
      path: the file.
    """
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def identity(files: Files, how: str) -> str:
    """A hash of the files' names and contents.

    If their total size is above READ_TO_IDENTIFY, it hashes sizes and modification times instead of contents, so
    that a run over terabytes does not begin by reading them all. For files at URLs it hashes the listing only.

    Args:
      files: as `find_files` returns them.
      how: whatever else decides the data, such as the column.
    """
    small = sum(remote.size(path) for _, path in files) <= READ_TO_IDENTIFY
    digest = hashlib.sha256(how.encode())
    for name, path in files:
        content = path.read_bytes() if small and isinstance(path, Path) else None
        label = f"\0{name}\0{remote.size(path)}\0{remote.version(path) if content is None else ''}\0"
        digest.update(label.encode("utf-8", "surrogateescape"))
        digest.update(content or b"")
    return digest.hexdigest()
