"""Speech: an encoder over the mel spectrogram of a wave, with a CTC head (Graves et al. 2006).

A dense layer reads the frames of 10 ms in steps of `stride`, each with some frames on both sides; then come pre-norm
blocks with rotary positions, and a softmax over labels and the blank.

    cfg = speech.Config(vocab_size=30)
    params = speech.init(jax.random.key(0), cfg)
    x_BFM = speech.features(cfg, waves_BW, starts_BU, lengths_BU)
    logits_BTV = speech.logits(params, cfg, x_BFM, starts_BU, lengths_BU)

A row may hold several utterances, each at a multiple of `step_samples` and with `gap` silent samples after it: each has
the logits that it has alone.

Letters: B rows, W samples, U utterances of a row, F frames, M mel bins, T steps, D width, V labels and the blank.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import sharding, sound
from transformer_jax.contracts import RUN
from transformer_jax.errors import InputError
from transformer_jax.nn import block, config, layers, positions, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask

Params = Any
TRUNK = ("embed", "blocks", "final_norm")
LABEL_HEADS = ("head",)
RATE = 16_000  # Hz
FLOOR = 1e-7  # the lowest mel energy: that of a wave of about -60 dB


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """An encoder of speech. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    vocab_size: int = field(default=32, metadata=RUN)
    """V, the labels and the blank. In an experiment the task's tokenizer replaces the default."""
    blank_id: int = field(default=-1, metadata=RUN)
    """The symbol of the blank; -1: the last."""
    mels: int = 80
    """M, mel bins."""
    window: int = 400
    """Samples of a frame, at 16 kHz."""
    hop: int = 160
    """Samples from frame to frame."""
    stride: int = 3
    """Frames of a step."""
    context: int = 9
    """Frames that a step reads: its own, and as many on both sides."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    gated: bool = False
    """Multiply the MLP's hidden layer by a gate."""

    @property
    def position(self) -> Literal["rotary"]:
        """Rotary positions, which count from the first step of each utterance."""
        return "rotary"

    def __post_init__(self) -> None:
        config.check(self, sizes=("vocab_size", "mels", "window", "hop", "stride", "context"))
        if not -1 <= self.blank_id < self.vocab_size:
            raise InputError(f"model.blank_id is {self.blank_id}; it is a label below {self.vocab_size}, or -1")
        if self.context < self.stride or (self.context - self.stride) % 2:
            raise InputError(
                f"model.context is {self.context}; it must be model.stride {self.stride} plus an even number of frames"
            )
        if self.window < self.hop or (self.window - self.hop) % 2:
            raise InputError(f"model.window is {self.window}; it must be model.hop {self.hop} plus an even number")

    @property
    def blank(self) -> int:
        """The symbol of the blank."""
        return self.vocab_size - 1 if self.blank_id == -1 else self.blank_id

    @property
    def step_samples(self) -> int:
        """Samples of a step."""
        return self.hop * self.stride

    @property
    def gap(self) -> int:
        """Silent samples between two utterances of a row, with which neither affects the other."""
        return self.window + self.hop * self.context


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`."""
    D, std, values = cfg.width, cfg.init_std, cfg.context * cfg.mels
    return {
        "embed": {"frames": layers.declare_dense(values, D, (None, "embed"), bias=True, std=values**-0.5)},
        "blocks": params_lib.stack(block.declare(cfg), cfg.num_layers),
        "final_norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
        "head": layers.declare_dense(D, cfg.vocab_size, ("embed", None), bias=True, std=std),
    }


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`."""
    return params_lib.init(key, declare(cfg))


def steps(cfg: Config, samples: Any) -> Any:
    """How many steps of `cfg` an utterance of `samples` samples has; arrays elementwise."""
    return -(-samples // cfg.step_samples)


def features(cfg: Config, waves_BW: jax.Array, starts_BU: jax.Array, lengths_BU: jax.Array) -> jax.Array:
    """Log mel energies, float32 [B, F, M], F = W // hop, 0 outside of the utterances.

    Of each utterance, every bin has mean 0 and all bins together have variance 1, so a microphone's loudness and
    colour do not count.

    Args:
      cfg: the model's config.
      waves_BW: floats in [-1, 1] at 16 kHz.
      starts_BU: int, the first sample of each utterance.
      lengths_BU: int, its samples; 0: there is none.
    """
    edge = (cfg.window - cfg.hop) // 2
    # Of an utterance's last samples the frames see silence, not noise that was added to the gap.
    frames_BFL = sound.frames(jnp.pad(waves_BW, ((0, 0), (edge, edge))), cfg.window, cfg.hop)
    spectra_BFK = jnp.fft.rfft(frames_BFL * jnp.asarray(sound.hann(cfg.window), waves_BW.dtype), axis=-1)
    power_BFK = jnp.square(spectra_BFK.real) + jnp.square(spectra_BFK.imag)
    filters_KM = sound.mel_filters(cfg.mels, fft=cfg.window, rate=RATE)
    x_BFM = jnp.log(jnp.einsum("BFK,KM->BFM", power_BFK, jnp.asarray(filters_KM, jnp.float32)) + FLOOR)
    inside_BFU = _inside(x_BFM.shape[1], cfg.hop, starts_BU, lengths_BU)
    count_BU1 = jnp.maximum(inside_BFU.sum(1), 1.0)[..., None]
    mean_BUM = jnp.einsum("BFU,BFM->BUM", inside_BFU, x_BFM) / count_BU1
    x_BFM = (x_BFM - jnp.einsum("BFU,BUM->BFM", inside_BFU, mean_BUM)) * inside_BFU.sum(-1, keepdims=True)
    square_BU = jnp.einsum("BFU,BFM->BU", inside_BFU, jnp.square(x_BFM)) / (count_BU1[..., 0] * cfg.mels)
    return x_BFM * jnp.einsum("BFU,BU->BF", inside_BFU, jax.lax.rsqrt(square_BU + 1e-5))[..., None]


def _inside(count: int, size: int, starts_BU: jax.Array, lengths_BU: jax.Array) -> jax.Array:
    """float32 [B, count, U]: 1 where a frame or step of `size` samples holds a sample of the utterance."""
    first_BU, end_BU = starts_BU // size, -(-(starts_BU + lengths_BU) // size)
    at_F = jnp.arange(count)[None, :, None]
    end_BU = jnp.where(lengths_BU > 0, end_BU, first_BU)
    return ((at_F >= first_BU[:, None]) & (at_F < end_BU[:, None])).astype(jnp.float32)


def hidden(
    params: Params,
    cfg: Config,
    x_BFM: jax.Array,
    starts_BU: jax.Array,
    lengths_BU: jax.Array,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the final norm, [B, T, D] in cfg.dtype, T = F // stride.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BFM: the result of `features`.
      starts_BU: as for `features`, multiples of `cfg.step_samples`.
      lengths_BU: as for `features`, multiples of `cfg.step_samples`.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    _B, F, _M = x_BFM.shape
    T, edge = F // cfg.stride, (cfg.context - cfg.stride) // 2
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    padded = jnp.pad(x_BFM.astype(cfg.dtype), ((0, 0), (edge, edge), (0, 0)))
    shifted = [padded[:, i : i + T * cfg.stride : cfg.stride] for i in range(cfg.context)]
    stacked = sharding.constrain(jnp.concatenate(shifted, axis=-1), ("batch", "length", None), name="the steps")
    x_BTD = layers.dense(params["embed"]["frames"], stacked, out=None)
    x_BTD = layers.dropout(x_BTD, cfg.dropout, embed_key)
    inside_BTU = _inside(T, cfg.step_samples, starts_BU, lengths_BU)
    numbers_U = jnp.arange(1, starts_BU.shape[1] + 1, dtype=jnp.float32)
    segments_BT = jnp.max(inside_BTU * numbers_U, axis=-1).astype(jnp.int32)
    rope = positions.rotary_angles(positions.restarted(segments_BT), cfg.head_width, theta=cfg.rope_theta)
    mask = Mask(segment_BT=segments_BT)

    def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        return block.apply(p, cfg, x_BTD, mask=mask, rope=rope, key=key)[0]

    x_BTD = stack.run(
        one,
        params["blocks"],
        x_BTD,
        num_layers=cfg.num_layers,
        scan=cfg.scan_layers,
        remat=cfg.remat,
        key=blocks_key,
    )
    return layers.norm(params["final_norm"], x_BTD, cfg.norm, cfg.norm_eps)


def logits(
    params: Params,
    cfg: Config,
    x_BFM: jax.Array,
    starts_BU: jax.Array,
    lengths_BU: jax.Array,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """The logits of labels and blank, float32 [B, T, V].

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      x_BFM: as for `hidden`.
      starts_BU: as for `hidden`.
      lengths_BU: as for `hidden`.
      key: as for `hidden`.
    """
    x_BTD = hidden(params, cfg, x_BFM, starts_BU, lengths_BU, key=key)
    return layers.dense(params["head"], x_BTD.astype(jnp.float32), out=None)
