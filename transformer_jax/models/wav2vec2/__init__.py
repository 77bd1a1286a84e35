"""wav2vec 2.0 (Baevski et al. 2020): an encoder over the samples of a wave, with a CTC head.

Convolutions make a frame of every 320 samples; a grouped convolution over frames says where they are; then blocks as in
BERT (`norm_order="post"`, "base") or pre-norm ("large", XLSR).

    cfg = wav2vec2.Config(vocab_size=32)
    x_BWC = wav2vec2.features(cfg, waves_BW, starts_B1, lengths_B1)
    logits_BTV = wav2vec2.logits(params, cfg, x_BWC, starts_B1, lengths_B1)

    large       width=1024, num_layers=24, num_heads=16, norm_order="pre", frame_norm="layer", frame_bias=True,
                masks_padding=True

A row holds one utterance. The contrastive pre-training of the paper is not here.

B rows, W samples, C features of a convolution, T frames, D width, V labels and the blank.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import sound
from transformer_jax.contracts import RUN, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.nn import block, config, convolution, layers, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param, normal, ones, zeros

Params = Any
TRUNK = ("frames", "project", "position", "embed_norm", "blocks", "final_norm")
LABEL_HEADS = ("head",)


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """wav2vec 2.0 with a CTC head. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    vocab_size: int = field(default=32, metadata=RUN)
    """V, the labels and the blank."""
    blank_id: int = field(default=0, metadata=RUN)
    """The symbol of the blank; -1: the last."""
    norm_order: Literal["pre", "post"] = "post"
    """Norm after each residual sum ("base"), or before each sublayer and once after the last ("large")."""
    widths: tuple[int, ...] = (512,) * 7
    """C of each convolution."""
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Of each convolution."""
    taps: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Of each convolution."""
    frame_norm: Literal["group", "layer"] = "group"
    """A norm of each feature over time after the first convolution, or of each frame after every one."""
    frame_bias: bool = False
    """Biases in the convolutions."""
    position_taps: int = 128
    """Of the convolution that says where frames are."""
    position_groups: int = 16
    """Its groups of features."""
    normalize: bool = True
    """Each wave is scaled to mean 0 and variance 1."""
    masks_padding: bool = False
    """Whether attention ignores padding. Models with `frame_norm` "group" were trained without."""
    attention_dropout: float = field(default=0.1, metadata=TRAINING)
    """The rate for attention probabilities."""

    def __post_init__(self) -> None:
        for name in ("widths", "strides", "taps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        config.check(self, ("vocab_size", "position_taps", "position_groups"))
        sizes = (self.widths, self.strides, self.taps)
        if not self.widths or len({len(one) for one in sizes}) > 1 or min(map(min, sizes)) < 1:
            raise InputError(
                f"model.widths {self.widths}, strides {self.strides} and taps {self.taps} must be positive numbers, "
                "one of each for each convolution"
            )
        if self.width % self.position_groups:
            raise InputError(f"model.position_groups {self.position_groups} does not divide model.width {self.width}")
        if not -1 <= self.blank_id < self.vocab_size:
            raise InputError(f"model.blank_id is {self.blank_id}; it is a label below {self.vocab_size}, or -1")

    @property
    def position(self) -> str:
        """Positions are in the frames, by a convolution."""
        return "convolution"

    @property
    def blank(self) -> int:
        """The symbol of the blank."""
        return self.vocab_size - 1 if self.blank_id == -1 else self.blank_id

    @property
    def step_samples(self) -> int:
        """Samples from frame to frame."""
        return math.prod(self.strides)


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`."""
    D, std, last = cfg.width, cfg.init_std, cfg.widths[-1]
    frames = {}
    for i, (width_in, width_out, taps) in enumerate(zip((1, *cfg.widths[:-1]), cfg.widths, cfg.taps, strict=True)):
        options: Any = {"bias": cfg.frame_bias, "std": math.sqrt(2 / (width_in * taps))}  # He et al. 2015
        frames[str(i)] = dict[str, Any](convolution.declare(width_in, width_out, taps, (None, None), **options))
        if cfg.frame_norm == "layer" or i == 0:
            frames[str(i)]["norm"] = layers.declare_norm(width_out, "layer", bias=True)
    rows = D // cfg.position_groups * cfg.position_taps
    norm = layers.declare_norm(D, "layer", bias=True)
    return {
        "frames": frames,
        "project": {
            "norm": layers.declare_norm(last, "layer", bias=True),
            **layers.declare_dense(last, D, (None, "embed"), bias=True, std=std),
        },
        "position": {
            "kernel": Param((rows, D), (None, None), normal(2 / math.sqrt(rows))),
            "scale": Param((1, cfg.position_taps), (None, None), ones, decay=False),
            "bias": Param((D,), (None,), zeros),
        },
        **({"embed_norm": norm} if cfg.norm_order == "post" else {"final_norm": norm}),
        "blocks": params_lib.stack(block.declare(cfg), cfg.num_layers),
        "head": layers.declare_dense(D, cfg.vocab_size, ("embed", None), bias=True, std=std),
    }


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`."""
    return params_lib.init(key, declare(cfg))


def steps(cfg: Config, samples: Any) -> Any:
    """How many frames `cfg` makes of an utterance of `samples` samples, at least 0; arrays elementwise."""
    for taps, stride in zip(cfg.taps, cfg.strides, strict=True):
        samples = convolution.length(samples, taps=taps, stride=stride)
    return samples * (samples > 0)


def features(cfg: Config, waves_BW: jax.Array, starts_BU: jax.Array, lengths_BU: jax.Array) -> jax.Array:
    """The waves as `logits` reads them, float32 [B, W, 1]: silent after their ends, and normalised where `cfg` asks.

    Args:
      cfg: the model's config.
      waves_BW: int16, or floats in [-1, 1], at 16,000 samples a second.
      starts_BU: not read: an utterance begins with its row, U = 1.
      lengths_BU: its samples.
    """
    x_BW = sound.as_float(waves_BW)
    inside_BW = jnp.arange(x_BW.shape[1]) < lengths_BU
    if cfg.normalize:
        count_B1 = jnp.maximum(lengths_BU, 1)
        mean_B1 = jnp.sum(x_BW * inside_BW, axis=1, keepdims=True) / count_B1
        x_BW = (x_BW - mean_B1) * inside_BW
        x_BW = x_BW * jax.lax.rsqrt(jnp.sum(jnp.square(x_BW), axis=1, keepdims=True) / count_B1 + 1e-7)
    return (x_BW * inside_BW)[..., None]


def hidden(
    params: Params,
    cfg: Config,
    x_BWC: jax.Array,
    starts_BU: jax.Array,
    lengths_BU: jax.Array,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the last norm, [B, T, D] in cfg.dtype, T = steps(W).

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BWC: the result of `features`.
      starts_BU: as for `features`.
      lengths_BU: as for `features`.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    x_BTC = _frames(params["frames"], cfg, x_BWC.astype(cfg.dtype))
    p = params["project"]
    x_BTD = layers.dense(p, layers.norm(p["norm"], x_BTC, "layer", cfg.norm_eps), out=None)
    mask = Mask()
    if cfg.masks_padding:
        steps_B = steps(cfg, lengths_BU[:, 0])
        x_BTD = jnp.where((jnp.arange(x_BTD.shape[1]) < steps_B[:, None])[..., None], x_BTD, 0)
        mask = Mask(end_B=steps_B)
    x_BTD = x_BTD + _positions(params["position"], cfg, x_BTD)
    if cfg.norm_order == "post":
        x_BTD = layers.norm(params["embed_norm"], x_BTD, "layer", cfg.norm_eps)
    x_BTD = layers.dropout(x_BTD, cfg.dropout, embed_key)

    def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        return block.apply(p, cfg, x_BTD, mask=mask, key=key)[0]

    settings: Any = {"num_layers": cfg.num_layers, "scan": cfg.scan_layers, "remat": cfg.remat, "key": blocks_key}
    x_BTD = stack.run(one, params["blocks"], x_BTD, **settings)
    return layers.norm(params["final_norm"], x_BTD, "layer", cfg.norm_eps) if cfg.norm_order == "pre" else x_BTD


def _frames(p: dict[str, Any], cfg: Config, x_BTC: jax.Array) -> jax.Array:
    """The frames that the convolutions make of samples, [B, T, C]."""
    for i, (taps, stride) in enumerate(zip(cfg.taps, cfg.strides, strict=True)):
        one = p[str(i)]
        x_BTC = convolution.apply(one, x_BTC, taps=taps, stride=stride)
        if "norm" in one and cfg.frame_norm == "layer":
            x_BTC = layers.norm(one["norm"], x_BTC, "layer", 1e-5)
        elif "norm" in one:  # GroupNorm: each feature over time, padding included
            wide_BTC = x_BTC.astype(jnp.float32)
            wide_BTC = wide_BTC - wide_BTC.mean(1, keepdims=True)
            wide_BTC = wide_BTC * jax.lax.rsqrt(jnp.square(wide_BTC).mean(1, keepdims=True) + 1e-5)
            x_BTC = (wide_BTC * one["norm"]["scale"] + one["norm"]["bias"]).astype(x_BTC.dtype)
        x_BTC = layers.gelu(x_BTC)
    return x_BTC


def _positions(p: dict[str, jax.Array], cfg: Config, x_BTD: jax.Array) -> jax.Array:
    """The convolution over frames in groups of features; each tap has a norm of its own (Salimans and Kingma 2016)."""
    taps, groups = cfg.position_taps, cfg.position_groups
    kernel_CtD = p["kernel"].reshape(cfg.width // groups, taps, cfg.width)
    norm_t1 = jnp.sqrt(jnp.sum(jnp.square(kernel_CtD), axis=(0, 2)))[:, None]
    kernel_tCD = jnp.swapaxes(kernel_CtD * (p["scale"][0][:, None] / norm_t1), 0, 1)
    y_BTD = jax.lax.conv_general_dilated(
        x_BTD,
        kernel_tCD.astype(x_BTD.dtype),
        window_strides=(1,),
        padding=[(taps // 2, taps - 1 - taps // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
    return layers.gelu(y_BTD + p["bias"].astype(x_BTD.dtype))


def logits(
    params: Params,
    cfg: Config,
    x_BWC: jax.Array,
    starts_BU: jax.Array,
    lengths_BU: jax.Array,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """The logits of labels and blank, float32 [B, T, V].

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      x_BWC: as for `hidden`.
      starts_BU: as for `hidden`.
      lengths_BU: as for `hidden`.
      key: as for `hidden`.
    """
    x_BTD = hidden(params, cfg, x_BWC, starts_BU, lengths_BU, key=key)
    return layers.dense(params["head"], x_BTD.astype(jnp.float32), out=None)
