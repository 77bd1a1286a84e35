"""preprocessor_config.json: the settings of Transformers' image processors, read strictly and written.

Published files give a size in three ways: as one number, as height and width, or as the shortest edge.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.data.preprocess import Preprocess, Resample, sides
from transformer_jax.errors import InputError
from transformer_jax.hub import weights

FILE = "preprocessor_config.json"

# Pillow's numbers of its filters.
FILTERS: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# Transformers' defaults for all image processors.
SHARED = {
    "crop_size": 224,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SUFFIXES = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
# Settings that do not change the pixels.
UNREAD = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "device", "return_tensors"),
    *("data_format", "input_data_format", "do_convert_rgb", "size_divisor", "default_to_square", "disable_grouping"),
    *("do_pad", "pad_size", "format", "do_convert_annotations"),  # these concern batches and annotations
)


def read(folder: Path, processors: Mapping[str, Mapping[str, Any]]) -> Preprocess | None:
    """The preprocessing of a snapshot's images; None if the folder has no such file.

    Args:
      folder: the folder of the snapshot.
      processors: {name: the defaults of its own} of the supported image processors, such as {"ViT": {"size": 224}}.

    Raises:
      InputError: an unsupported processor, or settings that `Preprocess` cannot express.
    """
    path = folder / FILE
    if not path.exists():
        return None
    given = {name: value for name, value in weights.read_json(path).items() if value is not None}
    kind = given.get("image_processor_type", given.get("feature_extractor_type", "ViTImageProcessor"))
    stem = next((stem for stem in processors if kind in [stem + suffix for suffix in SUFFIXES]), None)
    if stem is None:
        raise InputError(f"{path}: the image processor {kind!r} is not supported; those of {', '.join(processors)} are")
    if type(given.get("size")) is int and "max_size" in given:  # of old files
        given["size"] = {"shortest_edge": given["size"], "longest_edge": given["max_size"]}
    s = {**SHARED, **processors[stem], **given}
    for name, value in given.items():
        if name not in UNREAD and name not in SHARED and name not in processors[stem]:
            raise InputError(
                f'{path}: "{name}": {value!r} is an unknown setting; remove it if it does not change the pixels'
            )
    for name, needed in (("do_resize", True), ("do_rescale", True)):
        if s[name] is not needed:
            raise InputError(f'{path}: "{name}" is {s[name]!r}; only {needed} is supported')
    if not isinstance(s["rescale_factor"], float) or not math.isclose(s["rescale_factor"], 1 / 255, rel_tol=1e-6):
        raise InputError(f'{path}: "rescale_factor" is {s["rescale_factor"]!r}; only 1/255 is supported')
    if s["resample"] not in FILTERS:
        raise InputError(f'{path}: "resample" is {s["resample"]!r}; it is one of {FILTERS}')
    resize, fit = _size(s["size"], f'{path}: "size"')
    size = _size(s["crop_size"], f'{path}: "crop_size"')[0] if s["do_center_crop"] else resize
    if fit == "shortest" and not s["do_center_crop"]:
        raise InputError(f'{path}: "size" is {s["size"]!r} without "do_center_crop", so images would not be square')
    if s["do_normalize"]:
        mean, std = (_channels(s[name], f'{path}: "{name}"') for name in ("image_mean", "image_std"))
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        return Preprocess(
            size=size,
            resize=resize,
            fit=fit,
            multiple=processors[stem].get("multiple", 1) if fit == "inside" else 1,
            resample=FILTERS[s["resample"]],
            mean=mean,
            std=std,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _size(value: Any, where: str) -> tuple[Any, Any]:
    """(pixels of a side, or rows and columns; `Preprocess.fit`)."""
    given = {"height": value, "width": value} if type(value) is int else value
    if isinstance(given, Mapping) and all(type(side) is int for side in given.values()):
        if given.keys() == {"height", "width"}:
            rows, columns = given["height"], given["width"]
            return rows if rows == columns else (rows, columns), "squash"
        if given.keys() == {"shortest_edge", "longest_edge"}:
            return (given["shortest_edge"], given["longest_edge"]), "inside"
        if given.keys() == {"shortest_edge"}:
            return given["shortest_edge"], "shortest"
    raise InputError(
        f"{where} is {value!r}; it must be one number, height and width, or a shortest_edge, with a longest_edge or not"
    )


def _channels(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(type(x) in (int, float) for x in value):
        raise InputError(f"{where} is {value!r}; it must be a list with a number for each channel")
    return tuple(float(x) for x in value)


def write(preprocess: Preprocess, processor: str) -> dict[str, Any]:
    """The settings of Transformers' image processor for a preprocessing.

    Args:
      preprocess: to express.
      processor: the name of the image processor: "ViT" for ViTImageProcessor.
    """
    resized, cropped = ({"height": s[0], "width": s[1]} for s in (sides(preprocess.resize), preprocess.sides))
    edges = dict(zip(("shortest_edge", "longest_edge"), resized.values(), strict=True))
    crops = preprocess.fit == "shortest" or preprocess.size != preprocess.resize
    size = {"squash": resized, "shortest": {"shortest_edge": preprocess.resize}, "inside": edges}[preprocess.fit]
    return {
        "image_processor_type": f"{processor}ImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": next(number for number, name in FILTERS.items() if name == preprocess.resample),
        **({} if preprocess.fit == "inside" else {"do_center_crop": crops, "crop_size": cropped}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
