"""YOLOS (Fang et al. 2021) as Hugging Face stores it: `model_type: yolos`, a ViT with detection tokens.

The tokens stand after the patches, and the positions of both are interpolated in each call. The two heads are MLPs of
three layers. In the larger models positions are added after every layer but the last as well.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table, dense
from transformer_jax.models import vit
from transformer_jax.models.vit import vit as vit_format
from transformer_jax.models.vit.detection import MLP
from transformer_jax.tasks.detection import Detection

MODEL_TYPES = ("yolos",)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
IMAGE_PROCESSORS = {
    "Yolos": {
        **{"size": {"shortest_edge": 800, "longest_edge": 1333}, "max_size": 1333, "multiple": 16},
        **{"resample": 2, "do_center_crop": False, **IMAGENET},
    }
}

DEFAULTS = {name: value for name, value in vit_format.DEFAULTS.items() if name != "pooler_output_size"} | {
    "num_detection_tokens": settings.REQUIRED,
    "use_mid_position_embeddings": True,
}
# Of the training loss, whose weights are the task's.
UNREAD = (
    *("auxiliary_loss", "class_cost", "bbox_cost", "giou_cost"),
    *("bbox_loss_coefficient", "giou_loss_coefficient", "eos_coefficient"),
)


def table(cfg: vit.Config) -> Table:
    """Where each leaf lives."""
    heads = (
        row
        for head, theirs in (("class_head", "class_labels_classifier"), ("box_head", "bbox_predictor"))
        for i, name in enumerate(MLP)
        for row in dense(f"{head}/{name}", f"{theirs}.layers.{i}")
    )
    own = (
        Row("queries/embedding", "vit.embeddings.detection_tokens", one_row=True),
        Row("layer_positions/embedding", "vit.encoder.mid_position_embeddings"),
    )
    return vit_format.make_table(cfg, "vit", (*own, *heads))


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> vit.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `vit` does not
    compute."""
    known = {name: value for name, value in given.items() if name not in UNREAD}
    sizes = vit_format.read_sizes(given, where)
    known |= {name: max(sides(value)) for name, value in sizes.items()}
    s = settings.read(known, DEFAULTS, {}, where)
    if "class_labels_classifier.layers.0.weight" not in names:
        raise InputError(f"{where}: there is no class_labels_classifier; only YolosForObjectDetection is read")
    fields = vit_format.common_fields(s, len(settings.label_names(given, where)), where) | sizes
    return vit.Config(
        **fields,
        mlp_width=s["intermediate_size"],
        detector="queries",
        num_queries=s["num_detection_tokens"],
        layer_positions=s["use_mid_position_embeddings"],
        interpolate="bicubic",
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, vit.Config) and cfg.detector != "none"


def write_config(cfg: vit.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`.

    Raises:
      InputError: a detector that YOLOS does not have.
    """
    if cfg.detector != "queries" or cfg.interpolate == "antialiased":
        raise InputError(
            f"model.detector is {cfg.detector!r} and model.interpolate {cfg.interpolate!r}: YOLOS has queries, and "
            "positions without antialiasing, so no Hugging Face folder can be written of this model"
        )
    return vit_format.write_fields(cfg, "yolos", "YolosForObjectDetection") | {
        "image_size": list(cfg.sides),
        "num_detection_tokens": cfg.num_queries,
        "use_mid_position_embeddings": cfg.layer_positions,
    }


def task(folder: Path, cfg: vit.Config) -> Detection | None:
    """Detection with the folder's labels and preprocessing."""
    size = cfg.image_size
    preprocess = hub.preprocessing(folder) or Preprocess(
        size=size, resize=size, mean=tuple(IMAGENET["image_mean"]), std=tuple(IMAGENET["image_std"])
    )
    return Detection(labels=settings.distinct(hub.labels(folder)), preprocess=preprocess)
