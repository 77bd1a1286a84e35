"""Boxes from COCO's, Pascal VOC's and YOLO's files, and what is refused in them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from transformer_jax.data import boxes
from transformer_jax.data.box_files import Coco, PascalVoc, Yolo
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError

CLASSES = ("cat", "dog")
BOXES = {"a": [(2, 3, 12, 15, 1), (20, 0, 40, 30, 0)], "b": []}  # left, top, right, bottom, class; images of 30 x 40
SIZE = Preprocess(size=(16, 24), resize=(16, 24))


@pytest.fixture
def folder(tmp_path):
    """The same two images in all three formats, with the same boxes."""
    for name in ("images/train", "labels/train", "Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    tree = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]}
    for number, (name, found) in enumerate(BOXES.items(), 10):
        image = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8))
        for path in (f"images/train/{name}.jpg", f"JPEGImages/{name}.jpg"):
            image.save(tmp_path / path)
        tree["images"].append({"id": number, "file_name": f"{name}.jpg", "width": 40, "height": 30})
        objects = ""
        for left, top, right, bottom, k in found:
            bbox = [left, top, right - left, bottom - top]
            tree["annotations"].append(
                {"id": len(tree["annotations"]), "image_id": number, "category_id": (3, 7)[k], "bbox": bbox}
            )
            edges = zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, right, bottom), strict=True)
            bndbox = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
            objects += f"<object><name>{CLASSES[k]}</name><bndbox>{bndbox}</bndbox></object>"
        size = "<size><width>40</width><height>30</height></size>"
        (tmp_path / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        rows = [
            f"{k} {(left + r) / 80} {(t + b) / 60} {(r - left) / 40} {(b - t) / 30}\n" for left, t, r, b, k in found
        ]
        if rows:
            (tmp_path / f"labels/train/{name}.txt").write_text("".join(rows))
    (tmp_path / "coco.json").write_text(json.dumps(tree))
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    return tmp_path


def sources(folder):
    return {
        "coco": Coco(str(folder / "coco.json"), str(folder / "JPEGImages"), str(folder / "coco.json")),
        "voc": PascalVoc(str(folder), validation="train"),
        "yolo": Yolo(str(folder), CLASSES, validation="train"),
    }


def test_three_formats_hold_the_same_boxes(folder):
    batches = []
    for source in sources(folder).values():
        made = boxes.prepare(boxes.BoxSet(source, most_objects=3), SIZE, CLASSES, seed=0)
        assert made.facts["train_objects"] == 2 and made.validation.pictures.objects[0].size == (30, 40)
        batches.append(made.validation.stacked([0, 1]))
        assert batches[-1]["images"].shape == (2, 16, 24, 3)
        on_demand = boxes.prepare(boxes.BoxSet(source, most_objects=3, memory=0), SIZE, CLASSES, seed=0)
        np.testing.assert_array_equal(on_demand.validation.stacked([0, 1])["images"], batches[-1]["images"])
    wanted = np.zeros((2, 3, 4), np.float32)
    wanted[0, :2] = [(7 / 40, 9 / 30, 10 / 40, 12 / 30), (30 / 40, 15 / 30, 20 / 40, 30 / 30)]
    for batch in batches:
        np.testing.assert_allclose(batch["boxes"], wanted, atol=1e-6)
        np.testing.assert_array_equal(batch["classes"], [[1, 0, 0], [0, 0, 0]])
        np.testing.assert_array_equal(batch["objects"], [[1, 1, 0], [0, 0, 0]])
        np.testing.assert_array_equal(batch["weights"], [1, 1])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((2, 3, 50, 15, 0), r"a.jpg: box 1, left, top, right, bottom = 2, 3, 50, 15, is outside the image of 40 x 30"),
        ((5, 5, 5, 9, 0), "is empty: its width or height is 0"),
        ((9, 5, 5, 9, 0), "is reversed"),
        ((float("nan"), 5, 5, 9, 0), "is not of finite numbers"),
        ((1, 1, 5, 9, 4), "is of the unknown class 4; there are 2 classes"),
    ],
)
def test_bad_boxes_are_refused_in_one_line_or_left_out(box, message):
    one = boxes.Objects(
        "a.jpg",
        (30, 40),
        np.array([box[:4], (1, 1, 9, 9)], float),
        np.array([box[4], 1]),
        np.zeros(2, bool),
        np.ones(2),
    )
    pictures = boxes.Pictures("set", [one], lambda rows: [])
    data = boxes.BoxSet(source=None)
    with pytest.raises(InputError, match=message) as caught:
        boxes.checked(pictures, CLASSES, data, {}, "train")
    assert "\n" not in str(caught.value) and "--data.bad-boxes skip" in str(caught.value)
    facts = {}
    kept = boxes.checked(pictures, CLASSES, dataclasses.replace(data, bad_boxes="skip"), facts, "train")
    assert facts == {"train_boxes_skipped": 1} and kept.objects[0].boxes.tolist() == [[1, 1, 9, 9]]


def test_500_objects_need_room_for_them():
    many = boxes.Objects(
        "a.jpg", (30, 40), np.tile([1.0, 1, 9, 9], (500, 1)), np.zeros(500, int), np.zeros(500, bool), np.ones(500)
    )
    pictures = boxes.Pictures("set", [many], lambda rows: [])
    with pytest.raises(InputError, match="a.jpg has 500 objects, more than data.most_objects = 100"):
        boxes.checked(pictures, CLASSES, boxes.BoxSet(source=None), {}, "train")
    assert boxes.checked(pictures, CLASSES, boxes.BoxSet(source=None, most_objects=500), {}, "train")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("coco", ("coco.json", '"images"', '"pictures"'), 'has no list "images"'),
        ("coco", ("coco.json", '"image_id": 10', '"image_id": 99'), "1 image ids of its annotations, such as 99"),
        ("coco", ("coco.json", "[2, 3, 10, 12]", "[2, 3]"), r'"bbox" is \[2, 3\]; it must be'),
        ("voc", ("Annotations/a.xml", "<xmin>3", "<xmin>three"), "<xmin> is 'three'; it must be a number"),
        ("voc", ("Annotations/a.xml", "<annotation>", "<!DOCTYPE a><annotation>"), "defines XML entities"),
        ("voc", ("Annotations/a.xml", "</annotation>", ""), "a.xml is no XML"),
        ("yolo", ("labels/train/a.txt", "1 ", "1 0.5 "), "is not a class's number and four shares"),
    ],
)
def test_damaged_files_are_refused(folder, name, change, message):
    path, old, new = folder / change[0], change[1], change[2]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        boxes.prepare(boxes.BoxSet(sources(folder)[name]), SIZE, CLASSES, seed=0)
    assert "\n" not in str(caught.value)


def test_cropping_and_other_classes_are_refused(folder):
    data = boxes.BoxSet(sources(folder)["coco"])
    with pytest.raises(InputError, match="with boxes give resize the value of size"):
        boxes.prepare(data, Preprocess(size=16, resize=20), CLASSES, seed=0)
    with pytest.raises(InputError, match=r"the data have the classes cat, dog \(2\), the model cat \(1\)"):
        boxes.prepare(data, SIZE, ("cat",), seed=0)
