"""Sources of labelled images. A user's own source implements `Source`.

Digits         1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn: no file, no network
Folder         a folder of class folders with JPEG, PNG and WebP files
               (`image_records.ImageRecords` reads Parquet, Arrow and WebDataset)
TfdsImages     a prepared data set of TensorFlow Datasets, read without TensorFlow: cifar10, imagenet2012, ...
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from transformer_jax import extras, files, hf
from transformer_jax.data import image_files, records, source_files
from transformer_jax.errors import InputError

Side = Literal["train", "validation", "test"]


class Item(NamedTuple):
    """An image as it is stored.

    Attributes:
      data: the bytes of its file, or pixels uint8 [Y, X].
      label: the number of its class.
      where: names it in messages, such as the path of its file.
    """

    data: bytes | np.ndarray
    label: int
    where: str


@dataclass(frozen=True, eq=False)
class Images:
    """One side of a source: train, validation or test. `read(rows)` returns these images in this order."""

    origin: str
    """Names the data in messages."""
    count: int
    read: Callable[[Sequence[int]], list[Item]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Counts of files that are not images, by kind: {".gif files": 2}."""

    def __post_init__(self) -> None:
        if not self.count:
            raise InputError(f"{self.origin}: no images")


class Source(Protocol):
    """A source of labelled images: a frozen dataclass."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        ...

    def images(self, side: Side) -> Images | None:
        """The images of a side, or None if there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        ...


@dataclass(frozen=True)
class Digits:
    """The test set of UCI's "Optical recognition of handwritten digits" (Alpaydin and Kaynak 1998), from scikit-learn.

    The split is stratified and fixed: 1,257 images to train on, 180 to validate on, 360 to test on.
    """

    def of_files(self, files: tuple[str, ...]) -> "Folder":
        folder = source_files.one_file(files)
        return Folder(folder, folder)

    def classes(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def images(self, side: Side) -> Images:
        extras.need("sklearn", "scikit-learn's digits", extra="vision")
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
    extras.need("sklearn", "scikit-learn's digits", extra="vision")
    from sklearn import datasets

    digits = datasets.load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


@dataclass(frozen=True)
class Folder:
    """Images in PATH/CLASS/*.jpg (.png, .webp), or in PATH/train/CLASS, PATH/val/CLASS and PATH/test/CLASS.

    The classes are the sorted names of the training folders. Other files in them are counted. Without a validation
    folder, a hash of each file's path decides whether it is held out.
    """

    path: str
    """The folder that holds the class folders, or the folders train, val (validation, valid) and test."""
    validation: str = ""
    """The folder that holds the class folders to validate on; empty: PATH/val, or a part of `path`."""
    validation_fraction: float = 0.1
    """The share of files held out if there is no validation folder."""

    def __post_init__(self) -> None:
        source_files.check_fraction(self)

    def of_files(self, files: tuple[str, ...]) -> "Folder":
        folder = source_files.one_file(files)
        return Folder(folder, folder)

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
                raise InputError(f"{folder}: the training set has no class {folder.name!r}; {_few(names)}")
            files, others = image_files.below(folder)
            skipped += others
            if not files:
                have = f" ({records.counted(others)})" if others else ""
                raise InputError(f"{folder}: no images in it{have}; they end in {', '.join(image_files.SUFFIXES)}")
            found += [(path.relative_to(root).as_posix(), path, names.index(folder.name)) for path in files]
        if side != "test" and not self.validation and self._root("validation") == self._root("train"):
            held, below = side == "validation", self.validation_fraction
            found = [item for item in found if (source_files.position(item[0]) < below) == held]

        def read(numbers: Sequence[int]) -> list[Item]:
            return [Item(read_bytes(found[i][1]), found[i][2], str(found[i][1])) for i in numbers]

        return Images(f"{root} ({side})", len(found), read, skipped)

    def _root(self, side: Side) -> Path:
        """The folder with the class folders of a side: `path` itself if it is not divided into sides."""
        if side == "validation" and self.validation:
            return _folder(self.validation)
        top = _folder(self.path)
        names = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
        if not (top / "train").is_dir():
            return top
        own = next((top / name for name in names[side] if (top / name).is_dir()), None)
        return own or (top if side == "test" else top / "train")


def _folder(path: str) -> Path:
    folder = hf.here(path)
    if not folder.is_dir():
        raise InputError(f"{path} is no folder (looked in {Path.cwd()}); it holds a folder for each class")
    return folder


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Args:
      path: the path of a regular file of at most `image_files.MOST_BYTES`.

    Raises:
      InputError: the file cannot be read, or is too large.
    """
    try:
        return files.read(path, image_files.MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def _few(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > 10 else ""
    return f"its classes are {', '.join(names[:10])}{more}"


@dataclass(frozen=True)
class TfdsImages:
    """A prepared TFDS data set in array_record format: cifar10, imagenet2012, oxford_flowers102, your own.

    `image_files` decodes its files, as those of a folder.
    """

    name: str
    """The TFDS name, such as "imagenette/full"."""
    train: str = "train"
    """The training split. Slices such as "train[:98%]" work, for a set without a validation split."""
    validation: str = "validation"
    """The split that chooses the checkpoint."""
    test: str = ""
    """The split that the chosen checkpoint is reported on; empty: none."""
    image: str = "image"
    """The feature that holds the image."""
    label: str = "label"
    """The feature of the label."""
    data_dir: str = ""
    """The TFDS store; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    def of_files(self, files: tuple[str, ...]) -> Folder:
        folder = source_files.one_file(files)
        return Folder(folder, folder)

    def classes(self) -> tuple[str, ...]:
        from transformer_jax.data import tfds_store

        source, full_name, _ = tfds_store.open_split(self.name, self.train, self.data_dir)
        features = source.dataset_info.features
        tfds_store.need_features(features, full_name, {"image": self.image, "label": self.label})
        if not hasattr(features[self.label], "names"):
            raise InputError(
                f"TFDS {full_name}: feature {self.label!r} has no class names; name another with --data.source.label"
            )
        return tuple(features[self.label].names)

    def images(self, side: Side) -> Images | None:
        split = getattr(self, side)
        if side == "test" and not split:
            return None
        extras.need("tensorflow_datasets", "images of TFDS")
        import tensorflow_datasets as tfds

        from transformer_jax.data import tfds_store

        classes = self.classes()
        encoded = {self.image: tfds.decode.SkipDecoding()}
        source, full_name, _ = tfds_store.open_split(self.name, split, self.data_dir, decoders=encoded)

        def read(numbers: Sequence[int]) -> list[Item]:
            items = []
            for number, example in zip(numbers, source.__getitems__(list(numbers)), strict=True):
                where, label = f"TFDS {full_name}:{split}:{number}", int(example[self.label])
                tfds_store.class_name(classes, label, where)  # refuses a label out of range
                items.append(Item(example[self.image], label, where))
            return items

        return Images(f"TFDS {full_name} ({split})", len(source), read)
