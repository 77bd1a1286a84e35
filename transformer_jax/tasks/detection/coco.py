"""COCO's average precision by pycocotools, and detections as COCO's JSON.

Letters: N boxes of an image.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax import extras
from transformer_jax.data.boxes import Objects

# The first six of pycocotools' numbers; the others are recalls.
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class Found(NamedTuple):
    """The detections in one image.

    Attributes:
      boxes: float [N, 4]: left, top, right and bottom edge in pixels.
      classes: int [N].
      scores: float [N].
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def average_precision(truth: Sequence[Objects], found: Sequence[Found], num_classes: int) -> dict[str, float]:
    """{"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}, each in [0, 1], or -1 where no object is of a size.

    "ap" is the mean over the classes and over ten thresholds of the intersection over union, 0.50 to 0.95; "ap50" is at
    0.50 alone; small objects have fewer than 32^2 pixels, large ones more than 96^2. Up to 100 detections of an image
    count (Lin et al. 2014).

    Args:
      truth: the objects of each image.
      found: the detections in each image, in the same order.
      num_classes: the number of classes in the data.
    """
    extras.need("pycocotools", "COCO's average precision")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    boxes = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": int(of.classes[n]),
            "bbox": as_bbox(of.boxes[n]),
            "area": float(of.areas[n]),
            "iscrowd": int(of.ignored[n]),
        }
        for i, (image, of, n) in enumerate(
            (image, of, n) for image, of in enumerate(truth) for n in range(len(of.boxes))
        )
    ]
    results = [
        {"image_id": image, "category_id": int(k), "bbox": as_bbox(box), "score": float(score)}
        for image, one in enumerate(found)
        for box, k, score in zip(*one, strict=True)
    ]
    if not boxes or not results:
        return dict.fromkeys(NAMES, 0.0 if boxes else -1.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and a table
        ours = COCO()
        ours.dataset = {
            "images": [{"id": image} for image in range(len(truth))],
            "categories": [{"id": k} for k in range(num_classes)],
            "annotations": boxes,
        }
        ours.createIndex()
        judged = COCOeval(ours, ours.loadRes(results), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {name: float(value) for name, value in zip(NAMES, judged.stats, strict=False)}


def as_bbox(box: np.ndarray) -> list[float]:
    """[left, top, width, height] of a `box` (left, top, right, bottom)."""
    left, top, right, bottom = (float(x) for x in box)
    return [left, top, right - left, bottom - top]


def constant_boxes(truth: Sequence[Objects], num_classes: int) -> list[Found]:
    """The same nine boxes in each image, of the mean size, in a grid; each of every class, scored by how common it is.

    Args:
      truth: the objects of each image; the mean and the shares are theirs.
      num_classes: the number of classes in the data.
    """
    sizes = np.concatenate([(of.boxes[:, 2:] - of.boxes[:, :2]) / np.array(of.size[::-1]) for of in truth])
    width, height = sizes.mean(0)
    counts = np.bincount(np.concatenate([of.classes for of in truth]).astype(int), minlength=num_classes)
    x_9, y_9 = (place.ravel() for place in np.meshgrid(*[(np.arange(3) + 0.5) / 3] * 2))
    shares_94 = np.stack([x_9 - width / 2, y_9 - height / 2, x_9 + width / 2, y_9 + height / 2], axis=-1)
    boxes = np.repeat(shares_94, num_classes, axis=0)
    classes, scores = np.tile(np.arange(num_classes), 9), np.tile(counts / max(counts.sum(), 1), 9)
    best = np.argsort(-scores, kind="stable")[:100]
    return [Found(boxes[best] * np.tile(of.size[::-1], 2), classes[best], scores[best]) for of in truth]


def as_json(images: Sequence[dict[str, Any]], found: Sequence[Found], labels: Sequence[str]) -> dict[str, Any]:
    """Detections as a COCO data set, whose annotations have a "score" as well.

    Args:
      images: {"id", "file_name", "width", "height"} of each image.
      found: the detections in each.
      labels: the names of the classes; category k + 1 is class k.
    """
    boxes = [(image["id"], *one) for image, each in zip(images, found, strict=True) for one in zip(*each, strict=True)]
    return {
        "images": list(images),
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(labels)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": image,
                "category_id": int(k) + 1,
                "bbox": as_bbox(box),
                "area": float((box[2] - box[0]) * (box[3] - box[1])),
                "iscrowd": 0,
                "score": float(score),
            }
            for i, (image, box, k, score) in enumerate(boxes)
        ],
    }
