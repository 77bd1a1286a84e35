"""The audio spectrogram transformer: a DeiT over the patches of a sound's spectrogram (Gong et al. 2021).

Patches overlap. The head classifies the mean of the class and the distillation token. The blocks are those of `vit`.

    cfg = spectrogram.Config(num_classes=35, max_frames=128)
    params = spectrogram.init(jax.random.key(0), cfg)
    x_BFM = spectrogram.features(cfg, waves_BW, lengths_B)
    logits_BK = spectrogram.apply(params, cfg, x_BFM)

B batch, W samples, F frames, M mel bins, T tokens, D width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax import sharding, sound
from transformer_jax.contracts import RUN, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.models.vit import trunk
from transformer_jax.nn import block, config, convolution, layers
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, normal, zeros

Params = Any

TRUNK = ("embed", "blocks", "final_norm")
LABEL_HEADS = ("head",)
RATE = 16_000  # Hz
WINDOW, HOP = 400, 160  # samples of a frame, and from frame to frame


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """An audio spectrogram transformer. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    num_classes: int = field(default=527, metadata=RUN)
    """K; 0: no head. In an experiment the task's labels replace the default, AudioSet's."""
    num_mels: int = 128
    """M, mel bins."""
    max_frames: int = field(default=1024, metadata=RUN)
    """F, of 10 ms: longer sounds are truncated, shorter ones padded."""
    patch_size: int = 16
    """Mel bins and frames of a patch."""
    mel_stride: int = 10
    """Mel bins from patch to patch."""
    frame_stride: int = 10
    """Frames from patch to patch."""
    mean: float = -4.2677393
    """Of the features, which become (x - mean) / (2 * std). The default is AudioSet's."""
    std: float = 4.5689974
    """Likewise."""
    qkv_bias: bool = True
    """Biases in the query, key and value projections."""
    norm_eps: float = 1e-12
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for attention probabilities."""
    stochastic_depth: float = field(default=0.0, metadata=TRAINING)
    """The drop_path rate of the last layer; it grows linearly from 0 in the first."""

    def __post_init__(self) -> None:
        config.check(self, sizes=("num_mels", "max_frames", "patch_size", "mel_stride", "frame_stride"))
        if self.num_classes < 0 or self.std <= 0:
            raise InputError(f"model.num_classes is {self.num_classes} and std {self.std}; give 0 or more, and above 0")
        if self.patch_size > min(self.num_mels, self.max_frames):
            raise InputError(
                f"model.patch_size {self.patch_size} is larger than a spectrogram of {self.num_mels} mel bins and "
                f"{self.max_frames} frames"
            )
        for name in ("attention_dropout", "stochastic_depth"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")

    @property
    def position(self) -> str:
        """A table with a row for each token."""
        return "learned"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a column, from low to high bins, and of a row, over time."""
        return (
            convolution.length(self.num_mels, taps=self.patch_size, stride=self.mel_stride),
            convolution.length(self.max_frames, taps=self.patch_size, stride=self.frame_stride),
        )

    @property
    def num_patches(self) -> int:
        """Patches of a spectrogram."""
        return self.grid[0] * self.grid[1]

    @property
    def max_length(self) -> int:
        """T."""
        return 2 + self.num_patches

    @property
    def window(self) -> int:
        """Samples of the longest sound that is read whole."""
        return (self.max_frames - 1) * HOP + WINDOW

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.qkv_bias

    @property
    def layer_positions(self) -> bool:
        """Whether positions are added after layers: no."""
        return False


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`.

    The rows of the patches' kernel [side * side, D] are in the order of mel bin and frame: a convolution's kernel
    [D, 1, side, side] is its transpose, reshaped.
    """
    D, std = cfg.width, cfg.init_std

    def token(init: params_lib.Initializer) -> dict[str, Param]:
        return {"embedding": Param((1, D), (None, "embed"), init, decay=False)}

    table = Param((cfg.max_length, D), ("position", "embed"), normal(std), decay=False)
    patch_values = cfg.patch_size**2
    heads = {
        "head_norm": layers.declare_norm(D, "layer", bias=True),
        "head": {
            "kernel": Param((D, cfg.num_classes), ("embed", None), zeros),
            "bias": Param((cfg.num_classes,), (None,), zeros),
        },
    }
    return {
        "embed": {
            "patch": layers.declare_dense(patch_values, D, (None, "embed"), bias=True, std=patch_values**-0.5),
            "class": token(zeros),
            "distillation": token(normal(std)),
            "position": {"embedding": table},
        },
        "blocks": params_lib.stack(block.declare(cfg), cfg.num_layers),
        "final_norm": layers.declare_norm(D, "layer", bias=True),
        **(heads if cfg.num_classes else {}),
    }


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`; the head is zero at first."""
    return params_lib.init(key, declare(cfg))


# ------------------------------------------------------------------------------------------------------------ functions


def features(cfg: Config, waves_BW: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Kaldi's filter banks, normalised by the config's mean and deviation, float32 [B, F, M].

    Only whole frames of a sound count. After them every bin is 0 before it is normalised, as the published models have
    it: that is not silence, which would be -15.9.

    Args:
      cfg: the model's config.
      waves_BW: int16, or floats in [-1, 1], at 16,000 samples a second; truncated or padded.
      lengths_B: int, the samples of each before its padding; a sound shorter than `WINDOW` has no frame.
    """
    x_BFM = sound.fbank(sound.fitted(sound.as_float(waves_BW), cfg.window), num_mels=cfg.num_mels, rate=RATE)
    frames_B = convolution.length(lengths_B, taps=WINDOW, stride=HOP)
    is_sound_BF = jnp.arange(cfg.max_frames) < frames_B[:, None]
    return (jnp.where(is_sound_BF[..., None], x_BFM, 0.0) - cfg.mean) / (2 * cfg.std)


def hidden(params: Params, cfg: Config, x_BFM: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Hidden states after the final norm, [B, T, D] in cfg.dtype: two special tokens, then the patches, by rows.

    Args:
      params: of `init`.
      cfg: the model's config.
      x_BFM: of `features`.
      key: of dropout and stochastic depth; None: evaluation.

    Raises:
      InputError: features of another size than the config's.
    """
    return _trunk(params, cfg, x_BFM, key)


def apply(params: Params, cfg: Config, x_BFM: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """The logits of the classes, float32 [B, K].

    Args:
      params: as for `hidden`.
      cfg: likewise, with a head.
      x_BFM: likewise.
      key: likewise.
    """
    num_outputs = None if sharding.shards("length") > 1 else 2
    return head_logits(params, cfg, _trunk(params, cfg, x_BFM, key, num_outputs))


def head_logits(params: Params, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    """The logits of the classes, float32 [B, K], of the mean of the two special tokens.

    Args:
      params: as for `hidden`.
      cfg: likewise, with a head.
      x_BTD: of `hidden`.
    """
    with sharding.replicated_length():
        x_B1D = (layers.token(x_BTD, 0) + layers.token(x_BTD, 1)).astype(jnp.float32) / 2
        x_B1D = layers.norm(params["head_norm"], x_B1D, "layer", cfg.norm_eps)
        return layers.dense(params["head"], x_B1D, out=None)[:, 0]


def _trunk(
    params: Params, cfg: Config, x_BFM: jax.Array, key: jax.Array | None, num_outputs: int | None = None
) -> jax.Array:
    """The hidden states; only the first `num_outputs` tokens pass through the last layer (None: all)."""
    if x_BFM.shape[1:] != (cfg.max_frames, cfg.num_mels):
        raise InputError(
            f"features have the shape {x_BFM.shape}; the model's are {('B', cfg.max_frames, cfg.num_mels)}"
        )
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    p = params["embed"]
    with sharding.replicated_length():  # the parts that are concatenated need not divide
        patches_BTP = sharding.constrain(_patches(cfg, x_BFM.astype(cfg.dtype)), ("batch", None, None))
        x_BTD = layers.dense(p["patch"], patches_BTP, out=None)
        names = ("class", "distillation")
        special = [sharding.constrain(p[name]["embedding"], (None, None)).astype(cfg.dtype) for name in names]
        special = [jnp.broadcast_to(token, (len(x_BTD), *token.shape)) for token in special]
        special = [sharding.constrain(token, ("batch", None, None)) for token in special]
        table_TD = sharding.constrain(p["position"]["embedding"], (None, None)).astype(cfg.dtype)
        x_BTD = layers.dropout(jnp.concatenate([*special, x_BTD], axis=1) + table_TD, cfg.dropout, embed_key)
    x_BTD = sharding.constrain(x_BTD, ("batch", "length", None), name="the tokens of a sound")
    return trunk.blocks(params, cfg, x_BTD, blocks_key, num_outputs=num_outputs)  # type: ignore[arg-type]


def _patches(cfg: Config, x_BFM: jax.Array) -> jax.Array:
    """The patches from low to high bins, and of the same bins in the order of time, [B, N, side * side]."""
    (rows, columns), side = cfg.grid, cfg.patch_size
    bands = [x_BFM[:, :, row * cfg.mel_stride :][:, :, :side] for row in range(rows)]
    x_BrFm = jnp.stack(bands, axis=1)
    end = (columns - 1) * cfg.frame_stride + 1
    taps = [x_BrFm[:, :, tap : tap + end : cfg.frame_stride] for tap in range(side)]
    x_BrcP = jnp.stack(taps, axis=-1).reshape(len(x_BFM), rows, columns, side * side)  # one axis at a time, as in `vit`
    return x_BrcP.reshape(len(x_BFM), rows * columns, side * side)


def resized(params: Params, cfg: Config, wanted: Config, log: Callable[[str], None]) -> Params:
    """The parameters of `cfg` for sounds of the length of `wanted`, with a line to `log` for a change.

    Positions of shorter sounds are the middle ones of `cfg`, those of longer ones are interpolated linearly (Gong et
    al. 2021, section 2.2).
    """
    old, new = cfg.grid[1], wanted.grid[1]
    if old == new:
        return params
    log(f"from {cfg.max_frames} frames to {wanted.max_frames}")
    table_TD = params["embed"]["position"]["embedding"]
    special_2D, patches_ND = jnp.split(table_TD, (2,))
    patches_rcD = patches_ND.reshape(*cfg.grid, cfg.width)
    if new < old:
        patches_rcD = patches_rcD[:, (old - new) // 2 :][:, :new]
    else:
        patches_rcD = jax.image.resize(patches_rcD, (cfg.grid[0], new, cfg.width), "linear", antialias=False)
    table_TD = jnp.concatenate([special_2D, patches_rcD.reshape(-1, cfg.width).astype(table_TD.dtype)])
    return {**params, "embed": {**params["embed"], "position": {"embedding": table_TD}}}
