"""What segments are worth: panoptic quality, and COCO's average precision of masks.

Letters: Y and X pixels, S segments of an image, K classes.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax import extras
from transformer_jax.losses.mask_sets import IGNORED


class Segmented(NamedTuple):
    """The segments of an image, which do not overlap.

    Attributes:
      numbers: int [Y, X]; n + 1 is segment n, 0 none of them; of the truth, `IGNORED` does not count.
      classes: int [S].
    """

    numbers: np.ndarray
    classes: np.ndarray


def panoptic_quality(truth: Sequence[Segmented], found: Sequence[Segmented], num_classes: int) -> dict[str, float]:
    """{"pq", "sq", "rq"}: panoptic, segmentation and recognition quality (Kirillov et al. 2019, arXiv 1801.00868).

    A found segment is right where its intersection over union with a true one of its class is above 0.5. The quality of
    a class is the sum of those over the mean number of true and found segments; "pq" is the mean over the classes that
    occur. Pixels that do not count are no part of a found segment, and one with more than half of them is no error.

    Args:
      truth: of each image.
      found: in the same order.
      num_classes: K.
    """
    iou_K, right_K, true_K, found_K = np.zeros((4, num_classes))
    for true, one in zip(truth, found, strict=True):
        number_T, number_F = len(true.classes), len(one.classes)
        counted = true.numbers != IGNORED
        pairs = true.numbers[counted].astype(np.int64) * (number_F + 1) + one.numbers[counted]
        both = np.bincount(pairs, minlength=(number_T + 1) * (number_F + 1)).reshape(number_T + 1, number_F + 1)
        whole_F = np.bincount(one.numbers.ravel(), minlength=number_F + 1)[1:]
        area_T, area_F = both.sum(1)[1:], both.sum(0)[1:]
        union = area_T[:, None] + area_F[None] - both[1:, 1:]
        iou = both[1:, 1:] / np.maximum(union, 1) * (true.classes[:, None] == one.classes[None])
        t, f = np.nonzero(iou > 0.5)  # at most one for each
        np.add.at(iou_K, true.classes[t], iou[t, f])
        np.add.at(right_K, true.classes[t], 1)
        np.add.at(true_K, true.classes[area_T > 0], 1)
        judged = (whole_F > 0) & (2 * (whole_F - area_F) <= whole_F)
        judged[f] = True
        np.add.at(found_K, one.classes[judged], 1)
    some = true_K + found_K > 0
    if not some.any():
        return {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    pq_K = iou_K[some] / ((true_K + found_K)[some] / 2)
    rq_K = right_K[some] / ((true_K + found_K)[some] / 2)
    sq_K = np.divide(iou_K[some], right_K[some], out=np.zeros(int(some.sum())), where=right_K[some] > 0)
    return {"pq": float(pq_K.mean()), "sq": float(sq_K.mean()), "rq": float(rq_K.mean())}


class Masks(NamedTuple):
    """Masks in an image, which may overlap.

    Attributes:
      masks: bool [S, Y, X].
      classes: int [S].
      scores: float [S].
    """

    masks: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def average_precision(truth: Sequence[Segmented], found: Sequence[Masks], num_classes: int) -> dict[str, float]:
    """{"mask_ap", "mask_ap50"} by pycocotools, each in [0, 1], or -1 where there is no object (Lin et al. 2014).

    Args:
      truth: the objects of each image.
      found: the masks in each image, in the same order and of the same size.
      num_classes: K.
    """
    extras.need("pycocotools", "the average precision of masks")
    from pycocotools import mask as encoded
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def coded(mask: np.ndarray) -> Any:
        return encoded.encode(np.asfortranarray(mask.astype(np.uint8)))

    objects = [
        {"image_id": i, "category_id": int(k), "segmentation": coded(mask), "area": float(mask.sum()), "iscrowd": 0}
        for i, of in enumerate(truth)
        for k, mask in ((k, of.numbers == n + 1) for n, k in enumerate(of.classes))
        if mask.any()
    ]
    results = [
        {"image_id": i, "category_id": int(k), "segmentation": coded(mask), "score": float(score)}
        for i, one in enumerate(found)
        for mask, k, score in zip(*one, strict=True)
        if mask.any()
    ]
    if not objects or not results:
        return dict.fromkeys(("mask_ap", "mask_ap50"), 0.0 if objects else -1.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress and a table
        ours = COCO()
        ours.dataset = {
            "images": [
                {"id": i, "height": of.numbers.shape[0], "width": of.numbers.shape[1]} for i, of in enumerate(truth)
            ],
            "categories": [{"id": k} for k in range(num_classes)],
            "annotations": [{"id": n + 1, **one} for n, one in enumerate(objects)],
        }
        ours.createIndex()
        judged = COCOeval(ours, ours.loadRes(results), "segm")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {"mask_ap": float(judged.stats[0]), "mask_ap50": float(judged.stats[1])}
