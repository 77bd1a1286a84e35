"""Labelled images in files of records: Parquet, Arrow and `save_to_disk`, WebDataset, as the Hugging Face Hub has them.

The image of a record is the bytes of its file, or {"bytes": ..., "path": ...}. Such files are read from front to back,
and training reads images in another order every epoch, so the bytes are copied once into the cache of this machine:

    CACHE/images/KEY/
      images.bin    the bytes of all image files, one after another
      ends.bin      int64: where each ends
      index.json    the class of each image, and how many each file of records has
"""

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import files
from transformer_jax.data import records, remote, source_files, tokens
from transformer_jax.data.image_sources import Images, Item, Side
from transformer_jax.errors import InputError

OPTIONS = "--data.source.image and --data.source.label"
INDEX_BYTES = 1 << 28  # the largest index.json


@dataclass(frozen=True)
class ImageRecords:
    """Files of records with a column of images and one of labels.

    The classes are the sorted labels of the training files. Without `validation`, a hash of each record's place decides
    whether it is held out.
    """

    train: tuple[str, ...]
    """Files, globs, or folders (all their files of records), local or URLs."""
    validation: tuple[str, ...] = ()
    """Files that choose the checkpoint; empty: a part of `train`."""
    test: tuple[str, ...] = ()
    """Files that the chosen checkpoint is reported on; empty: none."""
    image: str = "image"
    """The column of the image; of WebDataset the ending of its name, such as jpg."""
    label: str = "label"
    """The column of the label, a name or a number; of WebDataset an ending, such as cls."""
    validation_fraction: float = 0.1
    """The share of images held out if `validation` is empty."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "train", "validation", "test")

    def of_files(self, files: tuple[str, ...]) -> "ImageRecords":
        return dataclasses.replace(self, train=files, validation=files, test=())

    def classes(self) -> tuple[str, ...]:
        names = set(self._held("train").labels)
        if len(names) < 2:
            raise InputError(f"{', '.join(self.train)}: all labels are {min(names)!r}; a classifier needs two or more")
        return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))

    def images(self, side: Side) -> Images | None:
        if side == "test" and not self.test:
            return None
        held, names = self._held(side), self.classes()
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := set(held.labels) - set(names):
            raise InputError(f"{side} images have the label {min(unknown)!r}, which no training image has")
        rows = np.arange(len(held.labels))
        if side != "test" and not self.validation:
            places = [source_files.position(held.where(row)) for row in rows.tolist()]
            chosen = [(place < self.validation_fraction) == (side == "validation") for place in places]
            rows = rows[chosen]

        def read(wanted: Sequence[int]) -> list[Item]:
            own = rows[list(wanted)].tolist()
            return [Item(held.bytes_of(row), numbers[held.labels[row]], held.where(row)) for row in own]

        return Images(f"{', '.join(getattr(self, side) or self.train)} ({side})", len(rows), read)

    def _held(self, side: Side) -> "_Held":
        paths = getattr(self, side) or self.train
        found = source_files.find_files(paths, side, records.SUFFIXES)
        versions = tuple((remote.size(path), remote.version(path)) for _, path in found)
        return _copied(tuple(found), versions, self.image, self.label)


@dataclass(frozen=True, eq=False)
class _Held:
    """Copied images: `labels[row]`, and the bytes of each."""

    labels: Sequence[str]
    images: np.ndarray
    """uint8 [bytes]."""
    ends: np.ndarray
    """int64 [rows]."""
    names: Sequence[str]
    """Of the files of records."""
    firsts: np.ndarray
    """int64 [files]: the row of each one's first record."""

    def bytes_of(self, row: int) -> bytes:
        return self.images[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes()

    def where(self, row: int) -> str:
        file = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return f"{self.names[file]}:{row - int(self.firsts[file]) + 1}"


@functools.lru_cache(maxsize=4)
def _copied(
    found: tuple[tuple[str, remote.File], ...], versions: tuple[tuple[int, str], ...], image: str, label: str
) -> _Held:
    """The images of some files, copied into the cache unless they are there.

    `versions` is only a key of `lru_cache`: a file that has changed is copied again.
    """
    identity = source_files.identity(found, f"images {image} {label}")
    parent = tokens.cache_dir() / "images"
    folder = parent / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not folder.exists():
        parent.mkdir(mode=0o700, exist_ok=True)
        tokens.sweep(parent)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        try:
            _copy(found, image, label, temporary)
            files.sync_tree(temporary)
            temporary.rename(folder)
        except OSError as error:
            if not folder.exists():  # if it exists, another process has made the same
                raise InputError(f"cannot write the images' copy {folder} ({error}); make room") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    index = files.read_json(folder / "index.json", INDEX_BYTES, inside=folder)
    sizes = [(folder / name).stat().st_size for name in ("images.bin", "ends.bin")]
    if sizes != index["sizes"]:
        raise InputError(f"{folder} is damaged: its files have {sizes} bytes, not {index['sizes']}; delete the folder")
    return _Held(
        labels=[index["classes"][i] for i in index["labels"]],
        images=np.asarray(np.memmap(folder / "images.bin", np.uint8, mode="r")),
        ends=np.asarray(np.memmap(folder / "ends.bin", "<i8", mode="r")),
        names=index["files"],
        firsts=np.cumsum([0, *index["counts"][:-1]]),
    )


def _copy(found: Sequence[tuple[str, remote.File]], image: str, label: str, folder: Path) -> None:
    """Writes the copy into a temporary folder."""
    labels, ends, counts, end = list[str](), list[int](), list[int](), 0
    with (folder / "images.bin").open("wb") as out:
        for _, path in found:
            counts.append(0)
            for number, record in records.read(path, headed=True, columns=(image, label)):
                where = f"{path}:{number}"
                data = _value(record, image, where)
                data = data.get("bytes") if isinstance(data, dict) else data
                if not isinstance(data, bytes) or not data:
                    raise InputError(
                        f"{where}: column {image!r} holds {type(data).__name__}, not the bytes of an image"
                    )
                name = _value(record, label, where)
                if not isinstance(name, str | int) or isinstance(name, bool):
                    raise InputError(f"{where}: column {label!r} holds {name!r:.80}, not a name or a whole number")
                out.write(data)
                end += len(data)
                ends.append(end)
                labels.append(str(name))
                counts[-1] += 1
    if not labels:
        raise InputError(f"{', '.join(str(path) for _, path in found)}: no images")
    (folder / "ends.bin").write_bytes(np.array(ends, "<i8").tobytes())
    classes = sorted(set(labels))
    number_of = {name: number for number, name in enumerate(classes)}
    index = {
        "classes": classes,
        "labels": [number_of[name] for name in labels],
        "files": [name for name, _ in found],
        "counts": counts,
        "sizes": [end, 8 * len(ends)],
    }
    (folder / "index.json").write_text(json.dumps(index))


def _value(record: dict[str, Any], column: str, where: str) -> Any:
    holder, name = records.within(record, column, where, OPTIONS)
    return holder[name]
