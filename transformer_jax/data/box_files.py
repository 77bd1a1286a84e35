"""Sources of images with boxes in files.

Coco           COCO's JSON: "images", "annotations", "categories" (Lin et al. 2014)
PascalVoc      one XML file for each image in Annotations/, lists of names in ImageSets/Main/ (Everingham et al. 2010)
Yolo           one text file for each image in labels/, "class x y width height" in shares of the image

Letters: N boxes of an image.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from transformer_jax import files, hf
from transformer_jax.data import image_files, image_sources, source_files
from transformer_jax.data.boxes import Objects, Pictures, pixels
from transformer_jax.data.image_sources import Side
from transformer_jax.errors import InputError

JSON_BYTES = 2**30  # the largest annotation file; COCO's largest has 470 MB
JSON_VALUES = 2**26  # the most values in it; most of them are corners of outlines
TEXT_BYTES = 2**22  # the largest file for one image


@dataclass(frozen=True)
class Coco:
    """A data set in COCO's format. Categories are numbered in the order of their ids."""

    train: str
    """The JSON file to train on."""
    train_images: str
    """The folder of its images."""
    validation: str = ""
    """The JSON file to validate on; empty: a part of `train`."""
    validation_images: str = ""
    """The folder of its images; empty: `train_images`."""
    validation_fraction: float = 0.1
    """The share of images held out if there is no validation file, by a hash of their names."""

    def __post_init__(self) -> None:
        source_files.check_fraction(self)

    def classes(self) -> tuple[str, ...]:
        """The names of the training file's categories."""
        return tuple(name for _, name in _categories_of(self.train))

    def pictures(self, side: Side) -> Pictures | None:
        """The images of a side; there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        if side == "test":
            return None
        own = side == "validation" and bool(self.validation)
        path = self.validation if own else self.train
        folder = hf.here(self.validation_images if own and self.validation_images else self.train_images)
        tree = _coco(path)
        numbers = {id: k for k, (id, _) in enumerate(_categories_of(self.train))}
        if own and _categories(tree, path) != _categories_of(self.train):
            raise InputError(f"{path} has other categories than {self.train}; they must be the same, with the same ids")
        boxes: dict[Any, list[Any]] = {}
        for one in _list(tree, "annotations", path, ("image_id", "category_id", "bbox")):
            boxes.setdefault(one["image_id"], []).append(one)
        listed = _list(tree, "images", path, ("id", "file_name", "width", "height"))
        if unknown := boxes.keys() - {one["id"] for one in listed}:
            raise InputError(
                f"{path}: {len(unknown)} image ids of its annotations, such as {min(unknown)}, are no image's"
            )
        if not self.validation:
            below, held = self.validation_fraction, side == "validation"
            listed = [one for one in listed if (source_files.position(one["file_name"]) < below) == held]
        objects = [_coco_objects(one, boxes.get(one["id"], []), numbers, path) for one in listed]
        return _pictures(f"{path} ({side})", objects, [folder / one["file_name"] for one in listed])


def _coco(path: str) -> Any:
    found = hf.here(path)
    if not found.is_file():
        raise InputError(f"{path} is no file (looked in {Path.cwd()}); name COCO's JSON file with the annotations")
    tree = files.read_json(found, JSON_BYTES, most_values=JSON_VALUES)
    if not isinstance(tree, Mapping):
        raise InputError(f'{path} is no JSON object with "images", "annotations" and "categories"')
    return tree


@functools.lru_cache(maxsize=8)
def _categories_of(path: str) -> list[tuple[Any, str]]:
    return _categories(_coco(path), path)


def _list(tree: Mapping[str, Any], name: str, path: str, fields: Sequence[str]) -> list[Any]:
    """A list of objects with these fields."""
    if not isinstance(found := tree.get(name), list):
        raise InputError(f'{path} has no list "{name}"; it needs "images", "annotations" and "categories"')
    for i, one in enumerate(found):
        if not isinstance(one, Mapping) or (lacking := [field for field in fields if field not in one]):
            what = f'no "{lacking[0]}"' if isinstance(one, Mapping) else "is no object"
            raise InputError(f'{path}: number {i + 1} of "{name}" has {what}')
    return found


def _categories(tree: Mapping[str, Any], path: str) -> list[tuple[Any, str]]:
    return sorted((one["id"], one["name"]) for one in _list(tree, "categories", path, ("id", "name")))


def _coco_objects(image: Mapping[str, Any], given: Sequence[Any], numbers: Mapping[Any, int], path: str) -> Objects:
    where = f"{path}: image {image['file_name']}"
    boxes_N4 = np.zeros((len(given), 4))
    for n, one in enumerate(given):
        box = one["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(type(x) in (int, float) for x in box):
            raise InputError(f'{where}: "bbox" is {box!r}; it must be [left, top, width, height] in pixels')
        boxes_N4[n] = box[0], box[1], box[0] + box[2], box[1] + box[3]
    areas = [float(one.get("area", one["bbox"][2] * one["bbox"][3])) for one in given]
    return Objects(
        where,
        (int(image["height"]), int(image["width"])),
        boxes_N4,
        np.array([numbers.get(one["category_id"], -1) for one in given], int),
        np.array([bool(one.get("iscrowd", 0)) for one in given], bool),
        np.array(areas, np.float64),
        image["id"] if isinstance(image["id"], int) else 0,
    )


@dataclass(frozen=True)
class PascalVoc:
    """A data set in Pascal VOC's format. Difficult objects are ignored, as the challenge does."""

    path: str
    """The folder with Annotations/, JPEGImages/ and ImageSets/Main/."""
    names: tuple[str, ...] = ()
    """The classes, in order; (): those of all annotations, sorted."""
    train: str = "train"
    """The list of names to train on, ImageSets/Main/TRAIN.txt."""
    validation: str = "val"
    """The list of names to validate on."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        if self.names:
            return self.names
        trees = (self._tree(name) for side in ("train", "validation") for name in self._listed(side))
        return tuple(sorted({_text(one, "name", "") for tree in trees for one in tree.iter("object")}))

    def pictures(self, side: Side) -> Pictures | None:
        """The images of a side; there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        if side == "test":
            return None
        classes = self.classes()
        listed = self._listed(side)
        objects = [_voc_objects(self._tree(name), classes, f"{self.path}/Annotations/{name}.xml") for name in listed]
        folder = hf.here(self.path) / "JPEGImages"
        return _pictures(f"{self.path} ({side})", objects, [folder / f"{name}.jpg" for name in listed])

    def _listed(self, side: str) -> list[str]:
        path = hf.here(self.path) / "ImageSets" / "Main" / f"{getattr(self, side)}.txt"
        if not path.is_file():
            raise InputError(f"{path} is no file; it lists the images of a side, one name a line")
        return [line.split()[0] for line in files.read(path, JSON_BYTES).decode().splitlines() if line.strip()]

    def _tree(self, name: str) -> Any:
        path = hf.here(self.path) / "Annotations" / f"{name}.xml"
        if not path.is_file():
            raise InputError(f"{path} is no file; ImageSets/Main names it")
        data = files.read(path, TEXT_BYTES)
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise InputError(f"{path} defines XML entities, which are not read; remove them")
        try:
            return ElementTree.fromstring(data)
        except ElementTree.ParseError as error:
            raise InputError(f"{path} is no XML ({error})") from None


def _voc_objects(tree: Any, classes: Sequence[str], where: str) -> Objects:
    size = tree.find("size")
    rows, columns = (int(_number(size, name, where)) for name in ("height", "width"))
    found = tree.findall("object")
    boxes_N4 = np.zeros((len(found), 4))
    for n, one in enumerate(found):
        left, top, right, bottom = (
            _number(one.find("bndbox"), name, where) for name in ("xmin", "ymin", "xmax", "ymax")
        )
        boxes_N4[n] = left - 1, top - 1, right, bottom  # pixels are counted from 1, and the last one belongs to the box
    numbers = {name: k for k, name in enumerate(classes)}
    return Objects(
        where,
        (rows, columns),
        boxes_N4,
        np.array([numbers.get(_text(one, "name", where), -1) for one in found], int),
        np.array([one.findtext("difficult", "0").strip() == "1" for one in found], bool),
        np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1),
    )


def _text(tree: Any, name: str, where: str) -> str:
    value = None if tree is None else tree.findtext(name)
    if not value:
        raise InputError(f"{where} lacks <{name}>")
    return value.strip()


def _number(tree: Any, name: str, where: str) -> float:
    try:
        return float(_text(tree, name, where))
    except ValueError:
        raise InputError(f"{where}: <{name}> is {_text(tree, name, where)!r}; it must be a number") from None


@dataclass(frozen=True)
class Yolo:
    """A data set in YOLO's format: images/SIDE/NAME.jpg with labels/SIDE/NAME.txt. Without one, it has no objects."""

    path: str
    """The folder with images/ and labels/."""
    names: tuple[str, ...]
    """The classes, in the order of their numbers (data.yaml has them)."""
    train: str = "train"
    """The subfolder to train on."""
    validation: str = "val"
    """The subfolder to validate on."""

    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.names

    def pictures(self, side: Side) -> Pictures | None:
        """The images of a side; there is no test set.

        Args:
          side: "train", "validation" or "test".
        """
        if side == "test":
            return None
        top, name = hf.here(self.path), getattr(self, side)
        folder = top / "images" / name
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; it holds the images of a side")
        paths, _ = image_files.below(folder)
        objects = [_yolo_objects(path, top / "labels" / name / path.relative_to(folder)) for path in paths]
        return _pictures(f"{folder} ({side})", objects, paths)


def _yolo_objects(image: Path, beside: Path) -> Objects:
    path = beside.with_suffix(".txt")
    lines = files.read(path, TEXT_BYTES).decode().splitlines() if path.is_file() else []
    size, values = image_files.stored_size(image_sources.read_bytes(image), str(image)), []
    for n, line in enumerate(lines):
        if not (words := line.split()):
            continue
        try:
            number, *box = (float(word) for word in words)
        except ValueError:
            number, box = 0.0, []
        if len(box) != 4 or number != int(number):
            raise InputError(f"{path}:{n + 1}: {line!r} is not a class's number and four shares, x y width height")
        values.append((number, *box))
    table = np.array(values, np.float64).reshape(-1, 5)
    boxes_N4 = pixels(table[:, 1:], size)
    none, areas = np.zeros(len(table), bool), np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1)
    return Objects(str(path) if lines else str(image), size, boxes_N4, table[:, 0].astype(int), none, areas)


def _pictures(origin: str, objects: Sequence[Objects], paths: Sequence[Path]) -> Pictures:
    """The pictures of image files, which are read when they are asked for."""
    return Pictures(origin, objects, lambda rows: [image_sources.read_bytes(paths[row]) for row in rows])
