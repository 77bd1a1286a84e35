"""Objects in an image: class and box of each query, or of each patch.

YOLOS (Fang et al. 2021, arXiv 2106.00666) reads them from learned tokens after the patches, OWL-ViT (Minderer et al.
2022, arXiv 2205.06230) from the patches themselves, with boxes relative to the patch's own place.

B batch, Y and X pixels, C channels, T tokens, D width, Q predictions, K classes.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sharding
from transformer_jax.models.vit.trunk import trunk
from transformer_jax.nn import layers
from transformer_jax.nn.params import Param, normal, zeros

if TYPE_CHECKING:
    from transformer_jax.models.vit import Config

Params = Any
MLP = ("first", "second", "out")


class Detections(NamedTuple):
    """The predictions of a batch.

    Attributes:
      logits: float32 [B, Q, K + 1]; the last class is "no object".
      boxes: float32 [B, Q, 4], centre x, centre y, width and height as shares of the image.
      earlier: in training, the predictions after each earlier layer, with a leading dimension of layers, where they
        have a loss as well (DETR's auxiliary losses); None: they have none.
    """

    logits: jax.Array
    boxes: jax.Array
    earlier: "Detections | None" = None


def detect(params: Params, cfg: "Config", images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Detections:
    """Classes and boxes of the objects in each image.

    Args:
      params: as for `hidden`.
      cfg: with a `detector`.
      images_BYXC: as for `hidden`.
      key: as for `hidden`.
    """
    x_BTD = sharding.constrain(trunk(params, cfg, images_BYXC, key), ("batch", None, None))
    rows, columns = (side // cfg.patch_size for side in images_BYXC.shape[1:3])
    begin = cfg.num_special + (rows * columns if cfg.detector == "queries" else 0)
    x_BQD = x_BTD[:, begin:].astype(jnp.float32)
    with sharding.replicated_length():
        logits_BQK, offsets_BQ4 = (mlp(params[name], x_BQD) for name in ("class_head", "box_head"))
    if cfg.detector == "patches":
        offsets_BQ4 = offsets_BQ4 + jnp.asarray(_places(rows, columns))
    return Detections(logits_BQK, jax.nn.sigmoid(offsets_BQ4))


def declare_detector(cfg: "Config") -> dict[str, Any]:
    """The heads' trees of `Param`s for `cfg`: two MLPs of three layers."""
    return {"class_head": declare_mlp(cfg.width, cfg.num_classes + 1), "box_head": declare_mlp(cfg.width, 4)}


def declare_mlp(width: int, outputs: int) -> dict[str, Any]:
    """An MLP of three layers, whose initial kernels keep the variance of the states.

    Args:
      width: D, of what it reads and of its hidden layers.
      outputs: features of the last layer.
    """
    D, std = width, width**-0.5
    sizes = dict(zip(MLP, (D, D, outputs), strict=True))
    return {
        name: {"kernel": Param((D, size), ("embed", None), normal(std)), "bias": Param((size,), (None,), zeros)}
        for name, size in sizes.items()
    }


def mlp(p: Any, x_BQD: jax.Array) -> jax.Array:
    """The outputs [B, Q, outputs] of an MLP with ReLU.

    Args:
      p: of `declare_mlp`.
      x_BQD: what it reads.
    """
    for name in MLP[:-1]:
        x_BQD = jax.nn.relu(layers.dense(p[name], x_BQD, out=None))
    return layers.dense(p[MLP[-1]], x_BQD, out=None)


def _places(rows: int, columns: int) -> Any:
    """The logits of each patch's own box, float32 [Q, 4]."""
    y_Q, x_Q = (place.ravel() for place in np.mgrid[:rows, :columns] + 0.5)
    box_Q4 = np.stack([x_Q / columns, y_Q / rows, np.full_like(x_Q, 1 / columns), np.full_like(x_Q, 1 / rows)], -1)
    box_Q4 = np.clip(box_Q4, 1e-3, 1 - 1e-3)
    return np.log(box_Q4 / (1 - box_Q4)).astype(np.float32)
