"""FastSpeech (Ren et al. 2019): from a text and how long each token lasts to a mel spectrogram, all at once.

    x_BSD = fastspeech.encode(params, cfg, tokens_BS, sizes_B)
    durations_BS = jnp.round(jnp.exp(fastspeech.log_durations(params, cfg, x_BSD)))
    x_BFM = fastspeech.decode(params, cfg, x_BSD, durations_BS, steps=T)
    waves_BW = fastspeech.to_waves(cfg, x_BFM, jax.random.key(0))

An encoder reads the text; each of its states is repeated for as many steps as its token lasts, with where in the token
each step is; a decoder reads these, and gives `stride` frames for each step. Since durations are given in training, no
attention has to find the alignment.

Letters: B rows, S tokens, T steps, F frames, M mel bins, K frequencies, D width, W samples.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import sharding, sound
from transformer_jax.contracts import RUN
from transformer_jax.nn import block, config, layers, positions, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask

Params = Any
RATE = 16_000  # Hz
FLOOR, MIDDLE, SCALE = 1e-7, -3.0, 2.0  # features are (log10(energy + FLOOR) - MIDDLE) / SCALE
LONGEST = 60.0  # steps that a token may last


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """A speaker of text. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    vocab_size: int = field(default=32, metadata=RUN)
    """V, the tokens."""
    decoder_layers: int = 3
    """Layers after the states are repeated."""
    mels: int = 80
    """M, mel bins."""
    window: int = 400
    """Samples of a frame, at 16 kHz."""
    hop: int = 160
    """Samples from frame to frame."""
    stride: int = 3
    """Frames that are given for each step."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""

    @property
    def position(self) -> Literal["rotary"]:
        """Rotary positions, on both sides."""
        return "rotary"

    def __post_init__(self) -> None:
        config.check(self, sizes=("vocab_size", "decoder_layers", "mels", "window", "hop", "stride"))

    @property
    def step_samples(self) -> int:
        """Samples of a step."""
        return self.hop * self.stride


mesh_sizes = config.mesh_sizes


def _decoder(cfg: Config) -> Config:
    return dataclasses.replace(cfg, num_layers=cfg.decoder_layers)


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`."""
    D, std = cfg.width, cfg.init_std

    def dense(width_in: int, width_out: int) -> dict[str, Any]:
        return layers.declare_dense(width_in, width_out, ("embed", None), bias=True, std=std)

    return {
        "embed": {"token": layers.declare_embedding(cfg.vocab_size, D, "vocab", std=std)},
        "encoder": {
            "blocks": params_lib.stack(block.declare(cfg), cfg.num_layers),
            "norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
        },
        "duration": {"hidden": dense(D, D), "out": dense(D, 1)},
        "place": layers.declare_dense(2, D, (None, "embed"), bias=True, std=0.5),
        "decoder": {
            "blocks": params_lib.stack(block.declare(_decoder(cfg)), cfg.decoder_layers),
            "norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
        },
        "head": dense(D, cfg.stride * cfg.mels),
    }


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`."""
    return params_lib.init(key, declare(cfg))


def encode(
    params: Params, cfg: Config, tokens_BS: jax.Array, sizes_B: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
    """The states of the tokens, [B, S, D] in cfg.dtype.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      tokens_BS: integers below V.
      sizes_B: tokens of each row before its padding.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    x_BSD = sharding.take(params["embed"]["token"]["embedding"], tokens_BS, out=("batch", "length", None))
    return _blocks(params["encoder"], cfg, x_BSD.astype(cfg.dtype), sizes_B, key)


def _blocks(p: Any, cfg: Config, x_BTD: jax.Array, ends_B: jax.Array, key: jax.Array | None) -> jax.Array:
    rope = positions.rotary_angles(jnp.arange(x_BTD.shape[1]), cfg.head_width, theta=cfg.rope_theta)
    mask = Mask(end_B=ends_B)

    def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        return block.apply(p, cfg, x_BTD, mask=mask, rope=rope, key=key)[0]

    options: Any = {"num_layers": cfg.num_layers, "scan": cfg.scan_layers, "remat": cfg.remat, "key": key}
    x_BTD = stack.run(one, p["blocks"], x_BTD, **options)
    return layers.norm(p["norm"], x_BTD, cfg.norm, cfg.norm_eps)


def log_durations(params: Params, cfg: Config, x_BSD: jax.Array) -> jax.Array:
    """The logarithm of how many steps each token lasts, float32 [B, S]; its gradient ends at the states.

    Args:
      params: as for `encode`.
      cfg: as for `encode`.
      x_BSD: the result of `encode`.
    """
    hidden = jax.nn.relu(layers.dense(params["duration"]["hidden"], jax.lax.stop_gradient(x_BSD), out=None))
    return layers.dense(params["duration"]["out"], hidden.astype(jnp.float32), out=None)[..., 0]


def whole_durations(log_durations_BS: jax.Array, sizes_B: jax.Array) -> jax.Array:
    """The nearest whole numbers of steps from 1 on, int32 [B, S]; 0 for padding.

    Args:
      log_durations_BS: the result of `log_durations`.
      sizes_B: as for `encode`.
    """
    whole_BS = jnp.clip(jnp.round(jnp.exp(log_durations_BS)), 1, LONGEST).astype(jnp.int32)
    return jnp.where(jnp.arange(whole_BS.shape[1]) < sizes_B[:, None], whole_BS, 0)


def decode(
    params: Params,
    cfg: Config,
    x_BSD: jax.Array,
    durations_BS: jax.Array,
    *,
    steps: int,
    key: jax.Array | None = None,
) -> jax.Array:
    """The mel spectrogram, float32 [B, F, M], F = steps * stride; frames after the last token have no meaning.

    Args:
      params: as for `encode`.
      cfg: as for `encode`.
      x_BSD: the result of `encode`.
      durations_BS: int, steps of each token; 0 for padding.
      steps: T, static; what lasts longer is truncated.
      key: as for `encode`.
    """
    end_BS = jnp.cumsum(durations_BS, axis=1)
    at_T = jnp.arange(steps)
    begin_BS = end_BS - durations_BS
    own_BTS = ((at_T[:, None] >= begin_BS[:, None]) & (at_T[:, None] < end_BS[:, None])).astype(x_BSD.dtype)
    past_BT = at_T - jnp.einsum("BTS,BS->BT", own_BTS, begin_BS.astype(x_BSD.dtype))
    lasts_BT = jnp.maximum(jnp.einsum("BTS,BS->BT", own_BTS, durations_BS.astype(x_BSD.dtype)), 1.0)
    place_BT2 = jnp.stack([(past_BT + 0.5) / lasts_BT, jnp.log(lasts_BT)], axis=-1)
    repeated_BTD = sharding.constrain(jnp.einsum("BTS,BSD->BTD", own_BTS, x_BSD), ("batch", "length", None))
    x_BTD = repeated_BTD + layers.dense(params["place"], place_BT2, out=None)
    x_BTD = _blocks(params["decoder"], _decoder(cfg), x_BTD, end_BS[:, -1], key)
    frames_BTf = layers.dense(params["head"], x_BTD.astype(jnp.float32), out=None)
    return frames_BTf.reshape(len(x_BTD), steps * cfg.stride, cfg.mels)


def features(cfg: Config, waves_BW: jax.Array) -> jax.Array:
    """What `decode` is trained to give: log mel energies, shifted and scaled, float32 [B, F, M], F = W // hop.

    Args:
      cfg: the model's config.
      waves_BW: floats in [-1, 1] at 16 kHz.
    """
    spectra_BFK = sound.stft(waves_BW, sound.hann(cfg.window), cfg.hop)[:, : waves_BW.shape[1] // cfg.hop]
    power_BFK = jnp.square(spectra_BFK.real) + jnp.square(spectra_BFK.imag)
    energy_BFM = power_BFK @ jnp.asarray(sound.mel_filters(cfg.mels, fft=cfg.window, rate=RATE), jnp.float32)
    return (jnp.log10(energy_BFM + FLOOR) - MIDDLE) / SCALE


def to_waves(cfg: Config, x_BFM: jax.Array, key: jax.Array) -> jax.Array:
    """Waves whose features are near the given ones, float32 [B, F * hop], by Griffin-Lim.

    Args:
      cfg: the model's config.
      x_BFM: the result of `features` or `decode`.
      key: the random key for the first phases.
    """
    energy_BFM = jnp.maximum(10.0 ** (x_BFM * SCALE + MIDDLE) - FLOOR, 0.0)
    power_BFK = sound.mel_to_power(energy_BFM, sound.mel_filters(cfg.mels, fft=cfg.window, rate=RATE))
    magnitudes_BFK = jnp.pad(jnp.sqrt(power_BFK), ((0, 0), (0, 1), (0, 0)))  # the frame at the end of the last sample
    return sound.griffin_lim(key, magnitudes_BFK, hop=cfg.hop)
