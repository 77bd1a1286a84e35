"""preprocessor_config.json: the settings of Transformers' image processors of ViT and DeiT, read strictly and written.

Published files come in three generations: a size as one number, as height and width, and as the shortest edge.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.data.preprocess import Preprocess, Resample
from transformer_jax.errors import InputError
from transformer_jax.hub import weights

FILE = "preprocessor_config.json"

# Pillow's numbers of the filters.
FILTERS: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# What a processor of Transformers does where the file does not say.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "do_center_crop": False},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True},
}
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
# Of the processor's own working, not what it computes.
UNREAD = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "device", "return_tensors"),
    *("data_format", "input_data_format", "do_convert_rgb", "size_divisor", "default_to_square", "disable_grouping"),
)


def read(folder: Path) -> Preprocess | None:
    """What a snapshot's images are to go through; None where the folder has no such file.

    Errors: `InputError` for another model type's processor, and for what `Preprocess` does not say.
    """
    path = folder / FILE
    if not path.exists():
        return None
    given = {name: value for name, value in weights.read_json(path).items() if value is not None}
    kind = given.get("image_processor_type", given.get("feature_extractor_type", "ViTImageProcessor"))
    stem = next((stem for stem in DEFAULTS if kind in [stem + suffix for suffix in SUFFIXES]), None)
    if stem is None:
        raise InputError(f"{path}: image processors of type {kind!r} are not read; those of ViT and DeiT are")
    s = SHARED | DEFAULTS[stem] | given
    for name, value in given.items():
        if name not in UNREAD and name not in SHARED and name not in DEFAULTS[stem]:
            raise InputError(
                f'{path}: "{name}": {value!r} is not a setting known here; remove it if it changes nothing'
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
        return Preprocess(size=size, resize=resize, fit=fit, resample=FILTERS[s["resample"]], mean=mean, std=std)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _size(value: Any, where: str) -> tuple[int, Any]:
    """(pixels, how an image is made to fit them)."""
    sides = {"height": value, "width": value} if type(value) is int else value
    if isinstance(sides, Mapping) and all(type(side) is int for side in sides.values()):
        if sides.keys() == {"height", "width"} and sides["height"] == sides["width"]:
            return sides["height"], "squash"
        if sides.keys() == {"shortest_edge"}:
            return sides["shortest_edge"], "shortest"
    raise InputError(f"{where} is {value!r}; it must be one number, equal height and width, or a shortest_edge")


def _channels(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(type(x) in (int, float) for x in value):
        raise InputError(f"{where} is {value!r}; it must be a list of a number for each channel")
    return tuple(float(x) for x in value)


def write(preprocess: Preprocess, model_type: str) -> dict[str, Any]:
    """The settings that say `preprocess` to Transformers' processor of a model type, "vit" or "deit"."""
    square = {"height": preprocess.resize, "width": preprocess.resize}
    crops = preprocess.fit == "shortest" or preprocess.size != preprocess.resize
    return {
        "image_processor_type": {"vit": "ViTImageProcessor", "deit": "DeiTImageProcessor"}[model_type],
        "do_resize": True,
        "size": square if preprocess.fit == "squash" else {"shortest_edge": preprocess.resize},
        "resample": next(number for number, name in FILTERS.items() if name == preprocess.resample),
        "do_center_crop": crops,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
