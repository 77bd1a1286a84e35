"""Augmentation of speech on the device: pure functions of (key, row), compiled into the training step.

    (Speed(), Noise())     of the wave, before the features
    (SpecAugment(),)       of the features

Each is a frozen dataclass in the experiment; `apply` runs a tuple of them over a batch, as `augment.apply` does for
images. A row may hold several utterances, at `starts` and of `lengths` samples; a length of 0 means that there is none.

B rows, W samples, U utterances of a row, F frames, M mel bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from transformer_jax.errors import InputError


@dataclass(frozen=True)
class Speed:
    """Each utterance is played faster or slower, by a factor uniform in [low, high]; its pitch changes with it.

    (Ko et al. 2015, "Audio augmentation for speech recognition".) It stays where it begins, and is not slower than its
    room in the row allows: `data.room` says how much there is. Samples are interpolated linearly.
    """

    low: float = 0.9
    high: float = 1.1

    def __post_init__(self) -> None:
        if not 0.5 <= self.low <= self.high <= 2.0:
            raise InputError(f"{self}: give factors with 0.5 <= low <= high <= 2")

    def wave(
        self, key: jax.Array, wave_W: jax.Array, starts_U: jax.Array, lengths_U: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        W, U = len(wave_W), len(starts_U)
        ends_U = jnp.append(starts_U[1:], W)
        ends_U = jnp.where(ends_U > starts_U, ends_U, W)  # what follows the last utterance has length 0 and start 0
        least_U = lengths_U / jnp.maximum(ends_U - starts_U, 1)
        factor_U = jnp.maximum(jax.random.uniform(key, (U,), minval=self.low, maxval=self.high), least_U)
        new_U = jnp.where(lengths_U > 0, jnp.floor(lengths_U / factor_U).astype(lengths_U.dtype), 0)
        at_W = jnp.arange(W)
        own_WU = (at_W[:, None] >= starts_U) & (at_W[:, None] < starts_U + new_U)
        start_W, factor_W, last_W = (
            jnp.sum(jnp.where(own_WU, x_U, 0), axis=-1) for x_U in (starts_U, factor_U, starts_U + lengths_U - 1)
        )
        from_W = start_W + (at_W - start_W) * factor_W
        below_W = jnp.floor(from_W).astype(jnp.int32)
        part_W = from_W - below_W
        left_W, right_W = wave_W[jnp.minimum(below_W, last_W)], wave_W[jnp.minimum(below_W + 1, last_W)]
        return jnp.where(own_WU.any(-1), left_W * (1 - part_W) + right_W * part_W, 0.0), new_U


@dataclass(frozen=True)
class Noise:
    """White noise is added, with a signal-to-noise ratio uniform in [low, high] decibels.

    The signal's power is the mean over the utterances of the row. The noise is only where they are.
    """

    low: float = 10.0
    high: float = 40.0
    probability: float = 0.5
    """The share of rows that have noise."""

    def __post_init__(self) -> None:
        if not self.low <= self.high or not 0 <= self.probability <= 1:
            raise InputError(f"{self}: give decibels with low <= high, and a probability in [0, 1]")

    def wave(
        self, key: jax.Array, wave_W: jax.Array, starts_U: jax.Array, lengths_U: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        noise_key, level_key, chance_key = jax.random.split(key, 3)
        at_W1 = jnp.arange(len(wave_W))[:, None]
        inside_W = ((at_W1 >= starts_U) & (at_W1 < starts_U + lengths_U)).any(-1)
        decibels = jax.random.uniform(level_key, minval=self.low, maxval=self.high)
        noise_W = jax.random.normal(noise_key, wave_W.shape) * inside_W
        noisy_W = wave_W + noise_W * noise_scale(wave_W, inside_W, decibels)
        return jnp.where(jax.random.uniform(chance_key) < self.probability, noisy_W, wave_W), lengths_U


def noise_scale(wave_W: jax.Array, inside_W: jax.Array, decibels: jax.Array | float) -> jax.Array:
    """The standard deviation of white noise that is `decibels` weaker than a wave, float32 [].

    Args:
      wave_W: float, samples of any scale.
      inside_W: bool, True for the samples whose power counts; padding is False.
      decibels: the signal-to-noise ratio, in dB.
    """
    power = jnp.sum(jnp.square(wave_W) * inside_W) / jnp.maximum(inside_W.sum(), 1)
    return jnp.sqrt(power) * 10.0 ** (-decibels / 20.0)


@dataclass(frozen=True)
class SpecAugment:
    """Bands of mel bins and spans of frames become 0, the mean (Park et al. 2019, without time warping).

    A row has `bands` bands of up to `bins` bins, and for each second of it `spans` spans of up to `frames` frames.
    """

    bands: int = 2
    bins: int = 15
    spans: float = 0.7
    frames: int = 12

    def __post_init__(self) -> None:
        if min(self.bands, self.bins, self.spans, self.frames) < 0:
            raise InputError(f"{self}: no number may be below 0")

    def features(self, key: jax.Array, x_FM: jax.Array) -> jax.Array:
        """The features of a row, with bands and spans of zeros.

        Args:
          key: the random key of the row.
          x_FM: float, log mel energies with mean 0, 100 frames a second.
        """
        F, M = x_FM.shape
        band_key, span_key = jax.random.split(key)
        kept_M = ~_covered(band_key, M, self.bands, self.bins)
        kept_F = ~_covered(span_key, F, round(self.spans * F / 100), self.frames)
        return x_FM * kept_F[:, None] * kept_M


def _covered(key: jax.Array, size: int, count: int, longest: int) -> jax.Array:
    """bool [size]: what `count` spans of a length uniform in [0, longest] cover."""
    if not count or not longest:
        return jnp.zeros(size, bool)
    length_key, start_key = jax.random.split(key)
    lengths = jax.random.randint(length_key, (count, 1), 0, min(longest, size) + 1)
    starts = jnp.floor(jax.random.uniform(start_key, (count, 1)) * (size - lengths + 1)).astype(jnp.int32)
    at = jnp.arange(size)
    return ((at >= starts) & (at < starts + lengths)).any(0)


WaveAugmentation = Speed | Noise


def apply(
    key: jax.Array,
    waves_BW: jax.Array,
    starts_BU: jax.Array,
    lengths_BU: jax.Array,
    augmentations: Sequence[WaveAugmentation],
) -> tuple[jax.Array, jax.Array]:
    """(waves, lengths of their utterances) after all augmentations, in order.

    Row b uses fold_in(fold_in(key, b), i) for augmentation i, so a row does not depend on the other rows.

    Args:
      key: the random key of the step.
      waves_BW: floats in [-1, 1].
      starts_BU: int, the first sample of each utterance.
      lengths_BU: int, its samples.
      augmentations: static.
    """
    if not augmentations:
        return waves_BW, lengths_BU

    def row(number: jax.Array, wave_W: jax.Array, starts_U: jax.Array, lengths_U: jax.Array) -> tuple[jax.Array, ...]:
        for i, augmentation in enumerate(augmentations):
            own = jax.random.fold_in(jax.random.fold_in(key, number), i)
            wave_W, lengths_U = augmentation.wave(own, wave_W, starts_U, lengths_U)
        return wave_W, lengths_U

    return jax.vmap(row)(jnp.arange(len(waves_BW)), waves_BW, starts_BU, lengths_BU)  # type: ignore[return-value]


def masked(key: jax.Array, x_BFM: jax.Array, augment: SpecAugment) -> jax.Array:
    """The features after `SpecAugment`, each row by fold_in(key, its number).

    Args:
      key: the random key of the step.
      x_BFM: features of mean 0.
      augment: static.
    """
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(x_BFM)))
    return jax.vmap(augment.features)(keys_B, x_BFM)
