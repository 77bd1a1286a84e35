"""Whisper (Radford et al. 2022): from sound to text, by an encoder over frames and a decoder over tokens.

    cfg = whisper.Config(vocab_size=51865)                                     # the sizes of "base"
    x_BTM = whisper.features(cfg, waves_BW)                                    # 30 seconds of sound each
    logits_BTV = jax.jit(whisper.apply, static_argnums=1)(params, cfg, x_BTM, tokens_BT)

    tiny        width=384, num_layers=4, num_heads=6
    small       width=768, num_layers=12, num_heads=12
    large-v3    width=1280, num_layers=32, num_heads=20, num_mels=128, vocab_size=51866

The encoder is two convolutions, sinusoids and pre-norm blocks. The decoder is that of `seq2seq` with learned positions,
and is decoded by its functions. No projection to keys has a bias.

B batch, W samples of a wave, M mel bins, S frames of the encoder, T tokens, D width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sound
from transformer_jax.contracts import TRAINING
from transformer_jax.errors import InputError
from transformer_jax.models.seq2seq.decoding import (
    decode_step,
    for_decoding,
    init_cache,
    prefill,
    reorder,
    repeat,
)
from transformer_jax.models.seq2seq.sequences import decode, final_norm, head, head_bias, logits
from transformer_jax.nn import block, config, convolution, layers, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param

Params = Any

__all__ = [
    "TRUNK",
    "Config",
    "apply",
    "declare",
    "decode",
    "decode_step",
    "encode",
    "features",
    "for_decoding",
    "head",
    "head_bias",
    "hidden",
    "init",
    "init_cache",
    "mesh_sizes",
    "prefill",
    "reorder",
    "repeat",
]

TRUNK = ("embed", "encoder", "decoder")  # the whole tree: the only head is the transposed embedding

RATE = 16_000  # samples a second
HOP = 160  # samples between frames of features; the encoder's frames are twice as far apart
TAPS = 3  # the width of both convolutions, in frames


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """Whisper. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    vocab_size: int
    """V, the number of token ids."""
    width: int = 512
    """D, the width of the residual stream."""
    num_layers: int = 6
    """L of the encoder."""
    num_decoder_layers: int | None = field(default=None, metadata={"means": "decoder_layers"})
    """L of the decoder; None: as many as the encoder has."""
    num_heads: int = 8
    num_mels: int = 80
    """M, mel bins of a frame."""
    max_frames: int = 1500
    """S, the encoder's frames of a window, 20 ms each: 30 seconds."""
    max_length: int = 448
    """The most tokens of a window, its first ones included."""
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    pad_id: int | None = None
    """The id of padding. The function does not depend on it."""
    eos_id: int | None = None
    """The id that ends a text. Smaller ids are text, larger ones are Whisper's special tokens and times."""
    decoder_start_id: int | None = None
    """The decoder's first input."""
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for attention probabilities."""

    def __post_init__(self) -> None:
        config.check(self, ("vocab_size", "max_length", "max_frames", "num_mels", "decoder_layers"))
        if self.width % 2 or self.width < 4:
            raise InputError(f"model.width is {self.width}; sinusoids need an even number of at least 4")
        if not 0.0 <= self.attention_dropout < 1.0:
            raise InputError(f"model.attention_dropout is {self.attention_dropout}; it must be in [0, 1)")
        for name in ("pad_id", "eos_id", "decoder_start_id"):
            if not 0 <= (getattr(self, name) or 0) < self.vocab_size:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be below {self.vocab_size}, from 0")

    @property
    def decoder_layers(self) -> int:
        """The decoder's layers: `num_decoder_layers`; without it, `num_layers`."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def window(self) -> int:
        """W, the samples that the encoder reads at once."""
        return 2 * HOP * self.max_frames

    # What the decoder of `seq2seq` asks of a config.
    position = property(lambda self: "learned")
    position_offset = property(lambda self: 0)
    scale_embedding = property(lambda self: False)
    embedding_norm = property(lambda self: False)
    scale_head = property(lambda self: False)
    tie_embeddings = property(lambda self: True)
    logits_bias = property(lambda self: False)


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`."""
    D, std = cfg.width, cfg.init_std

    def blocks(num_layers: int, *, cross: bool) -> dict[str, Any]:
        tree = block.declare(cfg, cross=cross)
        for name in ("attention", "cross") if cross else ("attention",):
            tree[name]["key"].pop("bias")
        return params_lib.stack(tree, num_layers)

    norm = {"final_norm": layers.declare_norm(D, "layer", bias=True)}
    return {
        "embed": {"token": layers.declare_embedding(cfg.vocab_size, D, "vocab", std=std)},
        "encoder": {
            "convolution_1": convolution.declare(cfg.num_mels, D, TAPS, (None, "embed"), bias=True, std=std),
            "convolution_2": convolution.declare(D, D, TAPS, (None, "embed"), bias=True, std=std),
            "position": {"embedding": Param((cfg.max_frames, D), ("position", "embed"), _sinusoids, decay=False)},
            "blocks": blocks(cfg.num_layers, cross=False),
            **norm,
        },
        "decoder": {
            "position": layers.declare_embedding(cfg.max_length, D, "position", std=std),
            "blocks": blocks(cfg.decoder_layers, cross=True),
            **norm,
        },
    }


def _sinusoids(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sines, then cosines, of D/2 wavelengths from 2 pi to 20,000 pi frames."""
    frames, width = shape
    rates = np.exp(-np.log(10_000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(frames)[:, None] * rates
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`: Normal(0, init_std^2), and the encoder's fixed sinusoids."""
    return params_lib.init(key, declare(cfg))


# ------------------------------------------------------------------------------------------------------------ functions


def features(cfg: Config, waves_BW: jax.Array, *, lengths: jax.Array | None = None) -> jax.Array:
    """What `encode` reads, [B, 2 * max_frames, M] float32: `sound.log_mel` of waves truncated or padded with silence.

    Args:
      cfg: the model's config.
      waves_BW: int16, or floats in [-1, 1], at 16,000 samples a second.
      lengths: [B], samples of each wave before its padding; None: all.
    """
    return sound.log_mel(sound.fitted(waves_BW, cfg.window), lengths, num_mels=cfg.num_mels, rate=RATE, hop=HOP)


def encode(params: Params, cfg: Config, features_BTM: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """The encoder's states, [B, S, D] in cfg.dtype.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      features_BTM: the result of `features`, two frames for each state.
      key: the random key for dropout; None: evaluation, without dropout.

    Raises:
      ValueError: more features than 2 * cfg.max_frames.
    """
    if features_BTM.shape[1] > 2 * cfg.max_frames:
        raise ValueError(f"{features_BTM.shape[1]} frames are more than the model's {2 * cfg.max_frames}")
    p, act = params["encoder"], layers.ACTIVATIONS["gelu"]  # whatever the blocks have
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    x_BTD = features_BTM.astype(cfg.dtype)
    x_BTD = act(convolution.apply(p["convolution_1"], x_BTD, taps=TAPS, padding=1))
    x_BSD = act(convolution.apply(p["convolution_2"], x_BTD, taps=TAPS, stride=2, padding=1))
    table_PD = jax.lax.stop_gradient(p["position"]["embedding"]).astype(cfg.dtype)
    x_BSD = layers.dropout(x_BSD + layers.positions_from(table_PD, 0, x_BSD.shape[1]), cfg.dropout, embed_key)

    def one(p: Any, x_BSD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        return block.apply(p, cfg, x_BSD, mask=Mask(), key=key)[0]

    x_BSD = stack.run(
        one, p["blocks"], x_BSD, num_layers=cfg.num_layers, scan=cfg.scan_layers, remat=cfg.remat, key=blocks_key
    )
    return final_norm(p, cfg, x_BSD)


def hidden(
    params: Params, cfg: Config, features_BTM: jax.Array, target_BT: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
    """The states that `head` multiplies, [B, T, D] in cfg.dtype.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      features_BTM: the result of `features`.
      target_BT: the decoder's input: its first tokens and the text. Its right padding needs no mask.
      key: the random key for dropout; None: evaluation, without dropout.

    Raises:
      ValueError: as `encode`, or T > cfg.max_length.
    """
    encode_key, decode_key = (None, None) if key is None else jax.random.split(key)
    return decode(params, cfg, encode(params, cfg, features_BTM, key=encode_key), target_BT, key=decode_key)


def apply(
    params: Params, cfg: Config, features_BTM: jax.Array, target_BT: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
    """Logits of the token after each decoder input, [B, T, V] float32.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      features_BTM: as for `hidden`.
      target_BT: as for `hidden`.
      key: as for `hidden`.
    """
    return logits(params, cfg, hidden(params, cfg, features_BTM, target_BT, key=key))
