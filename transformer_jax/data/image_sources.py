"""Where labelled images come from.

    Digits         1,797 handwritten digits of 8 x 8 pixels, which scikit-learn brings along: no file, no network
    Folder         a folder of class folders with JPEG, PNG and WebP files
    TfdsImages     a data set that TensorFlow Datasets has prepared, without TensorFlow: cifar10, imagenet2012, ...

They are `Source`s, and so may a user's own be.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from transformer_jax import files
from transformer_jax.data import image_files, records, sources
from transformer_jax.errors import InputError

Side = Literal["train", "validation", "test"]


class Item(NamedTuple):
    """An image as it is stored: its file's bytes, or uint8 [Y, X]; the number of its class; where it is, for people."""

    data: bytes | np.ndarray
    label: int
    where: str


@dataclass(frozen=True, eq=False)
class Images:
    """One side of a source. `read(rows)` gives those images, in this order."""

    origin: str
    """What is read, for messages."""
    count: int
    read: Callable[[Sequence[int]], list[Item]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files that are no images, by kind, and how many: {".gif files": 2}."""

    def __post_init__(self) -> None:
        if not self.count:
            raise InputError(f"{self.origin}: no images")


class Source(Protocol):
    """Where labelled images come from: a frozen dataclass."""

    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of their numbers."""
        ...

    def images(self, side: Side) -> Images | None:
        """The images of a side; None where there is no test set."""
        ...


@dataclass(frozen=True)
class Digits:
    """The test part of UCI's "Optical recognition of handwritten digits" (Alpaydin and Kaynak 1998), in scikit-learn.

    Split in proportion to the classes, always in the same way: 1,257 to train on, 180 to validate on, 360 to test on.
    """

    def classes(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def images(self, side: Side) -> Images:
        from sklearn import model_selection

        values, labels = _digits()
        rows = np.arange(len(labels))
        rest, test = model_selection.train_test_split(rows, test_size=360, stratify=labels, random_state=0)
        train, validation = model_selection.train_test_split(rest, test_size=180, stratify=labels[rest], random_state=0)
        own = {"train": train, "validation": validation, "test": test}[side]

        def read(numbers: Sequence[int]) -> list[Item]:
            return [Item(values[own[i]], int(labels[own[i]]), f"digit {own[i]}") for i in numbers]

        return Images(f"digits ({side})", len(own), read)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    digits = datasets.load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


@dataclass(frozen=True)
class Folder:
    """PATH/CLASS/*.jpg (.png, .webp), or PATH/train/CLASS/*.jpg with PATH/val (or validation) and, if there is one,
    PATH/test.

    The classes are the folders to train on, in the order of their names; other files in them are counted. Without a
    validation folder a part of the files, chosen by a hash of their names, is held out.
    """

    path: str
    validation_fraction: float = 0.1
    """The part held out where there is no validation folder."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"Folder.validation_fraction = {self.validation_fraction} must lie between 0 and 1")

    def classes(self) -> tuple[str, ...]:
        names = tuple(sorted(folder.name for folder in _subfolders(self._root("train"))))
        if len(names) < 2:
            found = f"one class folder, {names[0]!r}" if names else "no class folders"
            raise InputError(
                f"{self._root('train')} has {found}; a classifier needs two or more, each with the images of one class"
            )
        return names

    def images(self, side: Side) -> Images | None:
        root = self._root(side)
        if side == "test" and root == Path(self.path):
            return None
        names = self.classes()
        found: list[tuple[str, Path, int]] = []
        skipped: Counter[str] = Counter()
        for folder in _subfolders(root):
            if folder.name not in names:
                raise InputError(f"{folder}: there is no class {folder.name!r} to train on; {_few(names)}")
            files, others = image_files.below(folder)
            skipped += others
            if not files:
                have = f" ({records.counted(others)})" if others else ""
                raise InputError(f"{folder}: no images in it{have}; they end in {', '.join(image_files.SUFFIXES)}")
            found += [(path.relative_to(root).as_posix(), path, names.index(folder.name)) for path in files]
        if side != "test" and self._root("validation") == self._root("train"):
            held, below = side == "validation", self.validation_fraction
            found = [item for item in found if (sources.position(item[0]) < below) == held]

        def read(numbers: Sequence[int]) -> list[Item]:
            return [Item(read_bytes(found[i][1]), found[i][2], str(found[i][1])) for i in numbers]

        return Images(f"{root} ({side})", len(found), read, skipped)

    def _root(self, side: Side) -> Path:
        """The folder with the class folders of a side; `path` itself where they are not divided into sides."""
        top = Path(self.path).expanduser()
        if not top.is_dir():
            raise InputError(f"{self.path} is no folder (looked in {Path.cwd()}); it holds a folder for each class")
        names = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
        if not (top / "train").is_dir():
            return top
        own = next((top / name for name in names[side] if (top / name).is_dir()), None)
        return own or (top if side == "test" else top / "train")


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def read_bytes(path: Path) -> bytes:
    """An encoded image, of a regular file that is not too long."""
    try:
        return files.read(path, image_files.MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def _few(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > 10 else ""
    return f"its classes are {', '.join(names[:10])}{more}"


@dataclass(frozen=True)
class TfdsImages:
    """A data set that TensorFlow Datasets has prepared in array_record format: cifar10, imagenet2012, imagenette/full,
    oxford_flowers102, your own. Files are decoded here, as those of a folder."""

    name: str
    """As TFDS writes it."""
    train: str = "train"
    """Slices such as "train[:98%]" work, where a set has no validation split of its own."""
    validation: str = "validation"
    """The split to choose the checkpoint on."""
    test: str = ""
    """The split to report the chosen checkpoint on; empty: none."""
    image: str = "image"
    """The feature that holds the image."""
    label: str = "label"
    """The feature of the label."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def classes(self) -> tuple[str, ...]:
        from transformer_jax.data import tfds_store

        source, full_name, _ = tfds_store.open_split(self.name, self.train, self.data_dir)
        features = source.dataset_info.features
        for name in (self.image, self.label):
            if name not in features:
                raise InputError(f"TFDS {full_name}: no feature {name!r}; it has {', '.join(sorted(features))}")
        if not hasattr(features[self.label], "names"):
            raise InputError(f"TFDS {full_name}: feature {self.label!r} has no names of classes; name another")
        return tuple(features[self.label].names)

    def images(self, side: Side) -> Images | None:
        split = {"train": self.train, "validation": self.validation, "test": self.test}[side]
        if side == "test" and not split:
            return None
        import tensorflow_datasets as tfds

        from transformer_jax.data import tfds_store

        classes = len(self.classes())
        encoded = {self.image: tfds.decode.SkipDecoding()}
        source, full_name, _ = tfds_store.open_split(self.name, split, self.data_dir, decoders=encoded)

        def read(numbers: Sequence[int]) -> list[Item]:
            items = []
            for number, example in zip(numbers, source.__getitems__(list(numbers)), strict=True):
                where, label = f"TFDS {full_name}:{split}:{number}", int(example[self.label])
                if not 0 <= label < classes:
                    raise InputError(
                        f"{where}: label {label} is none of the {classes} that the set has; its labels are not public, "
                        "or the store is damaged"
                    )
                items.append(Item(example[self.image], label, where))
            return items

        return Images(f"TFDS {full_name} ({split})", len(source), read)
