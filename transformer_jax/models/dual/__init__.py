"""Dual: two towers that map pictures and texts, or two texts, to vectors that can be compared.

A tower is any model whose family defines `features`: `vit.Config`, `bert.Config`, `gpt.Config`, or a user's own. The
left side is the picture where there is one.

    cfg = dual.Config(left=vit.Config(num_classes=0), right=gpt.Config(vocab_size=49408, max_length=77), width=512)
    params = dual.init(jax.random.key(0), cfg)
    left_BE = dual.left(params, cfg, images_BYXC)
    right_BE = dual.right(params, cfg, tokens_BT, lengths=lengths_B)
    logits_BC = dual.logits(params, cfg, left_BE, right_BE)

    CLIP                 both sides projected (Radford et al. 2021)
    SigLIP               projected=("right",), projection_bias=True, logit_bias=True (Zhai et al. 2023)
    sentence embeddings  right=None, one tower for both sides (Reimers and Gurevych 2019)

B rows, C rows of the right side, T length, Y and X pixels, D width of a tower, E width of the embeddings.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import models, sharding
from transformer_jax.contracts import LAUNCH, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param

Params = Any
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Two towers, projections and a temperature. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where a tower has no features, or sizes contradict each other.
    """

    left: Any
    """The Config of the tower that reads the left side: pictures, or texts."""
    right: Any = None
    """The Config of the tower that reads the right side, texts; None: the left tower reads both sides."""
    width: int = 512
    """E, the width of the embeddings."""
    projected: tuple[Side, ...] = SIDES
    """The sides with a linear projection to `width`; the features of the others are the embeddings. With one tower and
    ("left",) both sides share it."""
    projection_bias: bool = False
    """Biases in the projections."""
    projection_activation: Literal["none", "tanh"] = "none"
    """What follows the projections (sentence-transformers' Dense)."""
    text_length: int = field(default=0, metadata={"means": "max_length"})
    """The longest text that is read, in tokens; 0: as long as the text tower's positions."""
    normalize: bool = True
    """Embeddings have length 1."""
    logit_bias: bool = False
    """A learned number is added to the logits (SigLIP)."""
    learned_scale: bool = True
    """The factor of the cosines in the logits is a parameter, by its logarithm; otherwise it is `scale`."""
    scale: float = field(default=1 / 0.07, metadata=TRAINING)
    """That factor, or its initial value."""
    init_bias: float = field(default=-10.0, metadata=TRAINING)
    """The initial value of the number added to the logits."""
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata=LAUNCH)
    """Of activations, in both towers. Embeddings are float32."""
    attention: Literal["auto", "xla", "tpu", "cudnn", "cpu"] = field(default="auto", metadata=LAUNCH)
    """Which attention runs, in both towers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "projected", tuple(side for side in SIDES if side in self.projected))
        for side in SIDES[: 1 if self.right is None else 2]:
            tower = getattr(self, side)
            models.require(tower, f"model.{side}", ("declare", "features"), ("width", "dtype", "attention"))
            tower = dataclasses.replace(tower, dtype=self.dtype, attention=self.attention)
            object.__setattr__(self, side, tower)
            if side not in self.projected and _features(tower) != self.width:
                raise InputError(
                    f"model.width is {self.width}, but the features of model.{side}, which is not projected, have "
                    f"width {_features(tower)}; set one to the other, or add {side!r} to model.projected"
                )
        reader = "model.left, which reads both sides," if self.right is None else "model.right"
        models.require(self.text, reader, (), ("vocab_size", "max_length"))
        if not 0 <= self.text_length <= self.text.max_length:
            raise InputError(
                f"model.text_length is {self.text_length}, but the text tower reads {self.text.max_length} tokens"
            )
        if self.width < 1 or self.scale <= 0:
            raise InputError(f"model.width = {self.width}, model.scale = {self.scale}: must be above 0")

    @property
    def text(self) -> Any:
        """The Config of the tower that reads texts."""
        return self.left if self.right is None else self.right

    @property
    def image(self) -> Any:
        """The Config of the tower that reads pictures; None: both sides are texts."""
        return self.left if hasattr(self.left, "image_size") else None

    @property
    def image_size(self) -> int:
        """Pixels of a picture's side. Raises `AttributeError` where both sides are texts."""
        return self.left.image_size

    @property
    def channels(self) -> int:
        """Channels of a picture. Raises `AttributeError` where both sides are texts."""
        return self.left.channels

    @property
    def vocab_size(self) -> int:
        """The number of token ids of the text tower."""
        return self.text.vocab_size

    @property
    def max_length(self) -> int:
        """The longest text, in tokens."""
        return self.text_length or self.text.max_length

    @property
    def reads_padding(self) -> bool:
        """Whether padding changes a text's embedding, so that every text has to have `max_length` tokens (SigLIP)."""
        return getattr(self.text, "pooling", "") == "padded"

    def tower(self, side: Side) -> Any:
        """The Config of the tower that reads `side`."""
        return self.left if side == "left" or self.right is None else self.right

    def projection(self, side: Side) -> str:
        """The parameters that project `side`; "": none."""
        is_shared = self.right is None and self.projected == ("left",)
        return "left_projection" if is_shared else f"{side}_projection" if side in self.projected else ""


def _features(tower: Any) -> int:
    """The width of a tower's features."""
    return getattr(tower, "pre_logits", 0) or getattr(tower, "pooled_width", tower.width)


# ------------------------------------------------------------------------------------------------------- parameters


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`: each tower's own, the projections and the temperature."""
    tree: dict[str, Any] = {side: models.family(cfg.tower(side)).declare(cfg.tower(side)) for side in _towers(cfg)}
    for side in cfg.projected:
        features = _features(cfg.tower(side))
        tree[f"{side}_projection"] = layers.declare_dense(
            features, cfg.width, ("embed", None), bias=cfg.projection_bias, std=features**-0.5
        )
    if cfg.learned_scale:
        tree["logit_scale"] = {"scale": Param((1,), (None,), lambda key, shape: jnp.full(shape, math.log(cfg.scale)))}
    if cfg.logit_bias:
        tree["logit_bias"] = {"bias": Param((1,), (None,), lambda key, shape: jnp.full(shape, cfg.init_bias))}
    return tree


def _towers(cfg: Config) -> tuple[Side, ...]:
    return SIDES[: 1 if cfg.right is None else 2]


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`; the towers' distributions are their families'."""
    return params_lib.init(key, declare(cfg))


def mesh_sizes(cfg: Config) -> Mapping[str, tuple[str, int]]:
    """{field of `cfg`: (logical axis, size)}: sizes, besides the parameters', that a mesh must divide."""
    found = {side: models.hook(cfg.tower(side), "mesh_sizes")(cfg.tower(side)) for side in _towers(cfg)}
    return {f"{side}.{name}": size for side, sizes in found.items() for name, size in sizes.items()}


# -------------------------------------------------------------------------------------------------------- functions


def left(
    params: Params, cfg: Config, inputs: jax.Array, *, lengths: jax.Array | None = None, key: jax.Array | None = None
) -> jax.Array:
    """The embeddings of the left side, [B, E] float32.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      inputs: images [B, Y, X, C], normalised, or tokens [B, T].
      lengths: [B], tokens of each row before its right padding; None: no padding, or images.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    return embed(params, cfg, "left", inputs, lengths=lengths, key=key)


def right(
    params: Params, cfg: Config, inputs: jax.Array, *, lengths: jax.Array | None = None, key: jax.Array | None = None
) -> jax.Array:
    """The embeddings of the right side, [B, E] float32.

    Args:
      params: as for `left`.
      cfg: as for `left`.
      inputs: tokens [B, T].
      lengths: as for `left`.
      key: as for `left`.
    """
    return embed(params, cfg, "right", inputs, lengths=lengths, key=key)


def embed(
    params: Params,
    cfg: Config,
    side: Side,
    inputs: jax.Array,
    *,
    lengths: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The embeddings of a side, [B, E] float32.

    Args:
      params: as for `left`.
      cfg: as for `left`.
      side: "left" or "right".
      inputs: as for `left`.
      lengths: as for `left`.
      key: as for `left`.
    """
    tower, p = cfg.tower(side), params["left" if cfg.right is None else side]
    padding = {} if lengths is None else {"lengths": lengths}
    x_BE = models.family(tower).features(p, tower, inputs, key=key, **padding)
    if projection := cfg.projection(side):
        with sharding.replicated_length():
            x_BE = layers.dense(params[projection], x_BE[:, None], out=None)[:, 0]
        x_BE = jnp.tanh(x_BE) if cfg.projection_activation == "tanh" else x_BE
    x_BE = x_BE.astype(jnp.float32)
    return layers.unit_length(x_BE) if cfg.normalize else x_BE


def logits(params: Params, cfg: Config, left_BE: jax.Array, right_CE: jax.Array) -> jax.Array:
    """How well each left side fits each right side, [B, C] float32: scaled cosines, plus the bias where there is one.

    CLIP's probabilities are the softmax of a row or a column, SigLIP's the logistic function of each number.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      left_BE: the result of `left`.
      right_CE: the result of `right`.
    """
    log_scale, bias = temperature(params, cfg)
    return layers.unit_length(left_BE) @ layers.unit_length(right_CE).T * jnp.exp(log_scale) + bias


def temperature(params: Params, cfg: Config) -> tuple[jax.Array, jax.Array]:
    """(the logarithm of the factor of the cosines in the logits, what is added to them), scalars.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
    """
    log_scale = params["logit_scale"]["scale"][0] if cfg.learned_scale else jnp.float32(math.log(cfg.scale))
    return log_scale, params["logit_bias"]["bias"][0] if cfg.logit_bias else jnp.float32(0.0)
