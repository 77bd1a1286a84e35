"""DETR: objects in an image by an encoder-decoder over the features of a ResNet (Carion et al. 2020, arXiv 2005.12872).

The defaults are DETR-R50. Learned queries attend to each other and to the encoder's states; each names a class and a
box. Positions are added to what queries and keys are made of, in every attention; values have none.

    cfg = detr.Config(num_classes=80)
    params = detr.init(jax.random.key(0), cfg)
    found = jax.jit(detr.detect, static_argnums=1)(params, cfg, images_BYXC)   # for tasks.Detection

    R101        stage_depths=(3, 4, 23, 3)

An image may have any size. The images of a batch have one, so that there is no padding to mask. The backbone is in
`resnet.py`.

B batch, Y and X pixels, C channels, S places of the features, D width, Q queries, K classes, L layers of the decoder.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.contracts import RUN, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.models.detr import resnet
from transformer_jax.models.vit.detection import Detections, declare_mlp, mlp
from transformer_jax.nn import block, config, layers, positions, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, normal

Params = Any

TRUNK = ("backbone",)  # a run may start from a ResNet alone


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """A DETR. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    image_size: int | tuple[int, int] = field(default=800, metadata=RUN)
    """Rows and columns of pixels that a run resizes images to; one number: a square. The model reads any."""
    channels: int = 3
    """C, of the images."""
    num_classes: int = field(default=91, metadata=RUN)
    """K; the model has one more output for "no object"."""
    width: int = 256
    num_layers: int = 6
    """Layers of the encoder."""
    num_decoder_layers: int = 6
    """L."""
    num_heads: int = 8
    mlp_width: int | None = field(default=2048, metadata={"means": "mlp_features"})
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "relu"
    num_queries: int = field(default=100, metadata=RUN)
    """Q; 0: the backbone alone, for a run to start from."""
    stem_width: int = 64
    """Channels of the backbone's first convolution."""
    stage_depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage of the backbone."""
    stage_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    """Channels of each stage."""
    dropout: float = field(default=0.1, metadata=TRAINING)
    """The rate for sublayers' outputs and the projected features; applied only when a key is given."""
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for attention probabilities."""
    auxiliary_loss: bool = field(default=True, metadata=TRAINING)
    """Whether training predicts after each layer of the decoder, or after the last alone."""

    def __post_init__(self) -> None:
        config.check(self, sizes=("channels", "num_classes", "stem_width", "num_decoder_layers"))
        if len(self.stage_depths) != len(self.stage_widths) or not self.stage_depths:
            raise InputError(
                f"model.stage_depths is {self.stage_depths} and model.stage_widths {self.stage_widths}; each stage "
                "has one of both"
            )
        if min(self.stage_depths) < 1 or any(width < 4 or width % 4 for width in self.stage_widths):
            raise InputError(
                f"model.stage_depths is {self.stage_depths} and model.stage_widths {self.stage_widths}; depths must be "
                "1 or more, widths multiples of 4"
            )
        if self.width % 4:
            raise InputError(f"model.width is {self.width}; positions in two dimensions need a multiple of 4")
        if self.num_queries < 0:
            raise InputError(f"model.num_queries is {self.num_queries}; it must be at least 0")

    @property
    def norm_order(self) -> str:
        """After each residual sum."""
        return "post"

    @property
    def position(self) -> str:
        """Sines and cosines of a place's row and column."""
        return "sincos2d"

    @property
    def interpolate(self) -> str:
        """How positions fit images of another size: they are functions of it."""
        return "sines"

    @property
    def num_predictions(self) -> int:
        """Q, the boxes of `detect`."""
        return self.num_queries


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`."""
    backbone = {"backbone": resnet.declare(cfg)}
    if not cfg.num_queries:
        return backbone
    D = cfg.width

    def side(num_layers: int, *, cross: bool) -> dict[str, Any]:
        return {"blocks": params_lib.stack(block.declare(cfg, cross=cross), num_layers)}

    def initialized(path: Any, p: Param) -> Param:
        return dataclasses.replace(p, init=params_lib.xavier) if path[-1].key == "kernel" else p

    transformer = {
        "project": layers.declare_dense(cfg.stage_widths[-1], D, (None, "embed"), bias=True, std=cfg.init_std),
        "encoder": side(cfg.num_layers, cross=False),
        "decoder": side(cfg.num_decoder_layers, cross=True)
        | {"final_norm": layers.declare_norm(D, "layer", bias=True)},
    }
    transformer = jax.tree_util.tree_map_with_path(initialized, transformer, is_leaf=lambda x: isinstance(x, Param))
    return {
        **backbone,
        **transformer,
        "queries": {"embedding": Param((cfg.num_queries, D), (None, "embed"), normal(1.0), decay=False)},
        "class_head": layers.declare_dense(D, cfg.num_classes + 1, ("embed", None), bias=True, std=D**-0.5),
        "box_head": declare_mlp(D, 4),
    }


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`."""
    return params_lib.init(key, declare(cfg))


def detect(params: Params, cfg: Config, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Detections:
    """Classes and boxes of the objects in each image; in training, those after each layer of the decoder as well.

    Args:
      params: of `init`.
      cfg: the model's config.
      images_BYXC: floats, normalised, of any size.
      key: of dropout; None: evaluation.
    """
    states_LBQD = hidden(params, cfg, images_BYXC, key=key)
    last = _read(params, states_LBQD[-1])
    if key is None or not cfg.auxiliary_loss or cfg.num_decoder_layers == 1:
        return last
    L, B, Q, D = states_LBQD[:-1].shape
    rows_BLQD = states_LBQD[:-1].swapaxes(0, 1).reshape(B, L * Q, D)
    found = _read(params, rows_BLQD)
    logits, boxes = (x.reshape(B, L, Q, -1).swapaxes(0, 1) for x in (found.logits, found.boxes))
    return last._replace(earlier=Detections(logits, boxes))


def _read(params: Params, x_BQD: jax.Array) -> Detections:
    x_BQD = sharding.constrain(x_BQD.astype(jnp.float32), ("batch", None, None))
    with sharding.replicated_length():
        logits_BQK = layers.dense(params["class_head"], x_BQD, out=None)
        return Detections(logits_BQK, jax.nn.sigmoid(mlp(params["box_head"], x_BQD)))


def hidden(params: Params, cfg: Config, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """The states of the queries after each layer of the decoder, normed, [L, B, Q, D] in cfg.dtype.

    Args:
      params: as for `detect`.
      cfg: likewise.
      images_BYXC: likewise.
      key: likewise.
    """
    keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
    x_ByxF = resnet.features(params["backbone"], cfg, images_BYXC)
    B, rows, columns, _ = x_ByxF.shape
    options: Any = {"scan": cfg.scan_layers, "remat": cfg.remat}
    with sharding.replicated_length():
        place_SD = _places(rows, columns, cfg.width).astype(cfg.dtype)
        x_BSD = layers.dense(params["project"], x_ByxF.reshape(B, rows * columns, -1), out=None)
        x_BSD = layers.dropout(x_BSD, cfg.dropout, keys[0])

        def encode(p: Any, x_BSD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
            return _layer(p, cfg, x_BSD, place_SD, None, key)

        x_BSD = stack.run(encode, params["encoder"]["blocks"], x_BSD, num_layers=cfg.num_layers, key=keys[1], **options)
        query_QD = sharding.constrain(params["queries"]["embedding"], (None, None)).astype(cfg.dtype)
        memory = (x_BSD + place_SD, x_BSD)

        def decode(p: Any, carry: Any, layer: Any, key: jax.Array | None) -> Any:
            x_BQD, states_LBQD = carry
            x_BQD = _layer(p, cfg, x_BQD, query_QD, memory, key)
            return x_BQD, jax.lax.dynamic_update_index_in_dim(states_LBQD, x_BQD, layer, 0)

        L = cfg.num_decoder_layers
        begin_BQD = sharding.constrain(jnp.zeros((B, *query_QD.shape), cfg.dtype), ("batch", None, None))
        states_LBQD = sharding.constrain(jnp.zeros((L, *begin_BQD.shape), cfg.dtype), (None, "batch", None, None))
        carry = (begin_BQD, states_LBQD)
        states_LBQD = stack.run(decode, params["decoder"]["blocks"], carry, num_layers=L, key=keys[2], **options)[1]
        return layers.norm(params["decoder"]["final_norm"], states_LBQD, "layer", cfg.norm_eps)


def _layer(
    p: Any,
    cfg: Config,
    x_BTD: jax.Array,
    position_TD: jax.Array,
    memory: tuple[jax.Array, jax.Array] | None,
    key: jax.Array | None,
) -> jax.Array:
    """One layer of the encoder; with `memory`, what keys and what values are made of, one of the decoder."""
    keys = (None,) * 5 if key is None else tuple(jax.random.split(key, 5))
    at_BTD = x_BTD + position_TD
    y_BTD = block.cross_attention(p["attention"], cfg, at_BTD, at_BTD, x_BTD, key=keys[0])
    x_BTD = _added(p["attention_norm"], cfg, x_BTD, y_BTD, keys[1])
    if memory is not None:
        y_BTD = block.cross_attention(p["cross"], cfg, x_BTD + position_TD, *memory, key=keys[2])
        x_BTD = _added(p["cross_norm"], cfg, x_BTD, y_BTD, keys[3])
    return _added(p["mlp_norm"], cfg, x_BTD, layers.mlp(p["mlp"], x_BTD, cfg.activation), keys[4])


def _added(p: Any, cfg: Config, x_BTD: jax.Array, y_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
    return layers.norm(p, x_BTD + layers.dropout(y_BTD, cfg.dropout, key), "layer", cfg.norm_eps)


def _places(rows: int, columns: int, width: int) -> jax.Array:
    """Sines and cosines of the place of each feature, float32 [S, D]: half of the width for its row, half for its
    column. A place is a share of the image; the whole is 2 pi."""
    row_y, column_x = (2 * math.pi * (jnp.arange(n) + 1) / (n + 1e-6) for n in (rows, columns))
    row_yD, column_xD = (positions.sinusoidal(at, width // 2) for at in (row_y, column_x))
    both = [jnp.broadcast_to(row_yD[:, None], (rows, columns, width // 2))]
    both += [jnp.broadcast_to(column_xD[None], (rows, columns, width // 2))]
    return jnp.concatenate(both, axis=-1).reshape(rows * columns, width)
