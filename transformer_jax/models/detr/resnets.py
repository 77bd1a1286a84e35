"""ResNet (He et al. 2016) as Hugging Face stores it: `model_type: resnet`, for a DETR to start from.

The classifier is not read, and the batch norms are frozen.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax.contracts import Task
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table
from transformer_jax.models import detr
from transformer_jax.models.detr import resnet

MODEL_TYPES = ("resnet",)
DEFAULTS: dict[str, Any] = {"num_channels": 3, "embedding_size": 64}
NEUTRAL = {
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
# Lists, which are checked below, and the names of the stages.
LISTS = {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}
UNREAD = (*LISTS, "out_features", "out_indices", "stage_names")
LAYERS = {"reduce": "layer.0", "middle": "layer.1", "expand": "layer.2", "shortcut": "shortcut"}
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def rows(cfg: detr.Config, prefix: str) -> list[Row]:
    """The rows of the backbone.

    Args:
      cfg: the model's config.
      prefix: with which its tensors begin.
    """
    made = []
    for path, conv in resnet.plan(cfg).items():
        stage, *rest = path.split("/")
        theirs = f"{prefix}.embedder.embedder"
        if rest:
            numbers = stage.removeprefix("stage"), rest[0].removeprefix("block")
            theirs = "{}.encoder.stages.{}.layers.{}.{}".format(prefix, *numbers, LAYERS[rest[1]])
        kernel, unfolded = f"backbone/{path}/kernel", (conv.channels, conv.side, conv.side)
        made.append(Row(kernel, f"{theirs}.convolution.weight", transpose=True, unfolded=unfolded))
        made += [Row(f"backbone/{path}/norm/{a}", f"{theirs}.normalization.{b}") for a, b in NORM.items()]
    return made


def table(cfg: detr.Config) -> Table:
    """Where each leaf lives."""
    return Table(
        rows=tuple(rows(cfg, "resnet")),
        prefix="resnet.",
        buffers=r".*\.num_batches_tracked|classifier\.1\.(weight|bias)",
        tied={},
    )


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> detr.Config:
    """The config of a config.json's object. Errors: `InputError` for what `detr`'s backbone does not compute."""
    return detr.Config(**read_sizes(given, where), num_queries=0)


def read_sizes(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `detr.Config` that describe the backbone.

    Args:
      given: the object of config.json.
      where: names the file in messages.

    Raises:
      InputError: a ResNet of another kind.
    """
    s = settings.read({name: value for name, value in given.items() if name not in UNREAD}, DEFAULTS, NEUTRAL, where)
    lists = {name: given.get(name) or default for name, default in LISTS.items()}
    for name, value in lists.items():
        if not isinstance(value, list) or any(type(x) is not int or x < 1 for x in value):
            raise InputError(f'{where}: "{name}" is {value!r}; it must be a list of integers above 0')
    last = given.get("out_features") or [f"stage{len(lists['depths'])}"]
    if last[-1] != f"stage{len(lists['depths'])}":
        raise InputError(f'{where}: "out_features" is {last}; only the last stage is read')
    return {
        "channels": s["num_channels"],
        "stem_width": s["embedding_size"],
        "stage_widths": tuple(lists["hidden_sizes"]),
        "stage_depths": tuple(lists["depths"]),
    }


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, detr.Config) and not cfg.num_queries


def write_config(cfg: detr.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`."""
    return write_sizes(cfg) | {"architectures": ["ResNetModel"]}


def write_sizes(cfg: detr.Config) -> dict[str, Any]:
    """The settings of the backbone of `cfg`."""
    return {
        "model_type": "resnet",
        "num_channels": cfg.channels,
        "embedding_size": cfg.stem_width,
        "hidden_sizes": list(cfg.stage_widths),
        "depths": list(cfg.stage_depths),
        **NEUTRAL,
    }


def task(folder: Path, cfg: detr.Config) -> Task | None:
    """None: it has no head that is read."""
    return None
