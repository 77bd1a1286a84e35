"""Waves: their dtype, channels, length and rate.

B batch, W samples of a wave, C channels.
"""

import functools
import math
from typing import Any

import numpy as np

from transformer_jax.errors import InputError
from transformer_jax.sound.spectrum import frames

ZERO_CROSSINGS = 32  # the filter's, on each side
ROLL_OFF = 0.95  # the filter's cutoff, of the lower of the two Nyquist frequencies
KAISER = 12.0  # the window's shape: aliases are about 118 dB below the signal
BLOCK = 256  # samples at least that one product resamples
LARGEST_KERNEL = 1 << 24  # elements


def as_float(waves: Any) -> Any:
    """`waves` as floats in [-1, 1): int16 is divided by 32768, floats are returned as they are."""
    xp = waves.__array_namespace__()
    return waves.astype(xp.float32) / 32768 if waves.dtype == xp.int16 else waves


def mono(waves_BWC: Any) -> Any:
    """The mean of the channels of `waves_BWC`, [B, W]."""
    return as_float(waves_BWC).mean(-1)


def fitted(waves_BW: Any, length: int) -> Any:
    """`waves_BW` with `length` samples, [B, length]: truncated, or padded with silence."""
    xp = waves_BW.__array_namespace__()
    return xp.pad(waves_BW[:, :length], ((0, 0), (0, max(0, length - waves_BW.shape[1]))))


def resample(waves_BW: Any, rate: int, new_rate: int) -> Any:
    """The waves at another rate, [B, ceil(W * new_rate / rate)], by a sinc filter with a Kaiser window.

    A constant wave stays constant, but for its ends: there is silence before and after a wave.

    Args:
      waves_BW: NumPy's or JAX's, int16 or floats.
      rate: samples a second, static.
      new_rate: samples a second, static.

    Raises:
      InputError: the ratio of the rates is no ratio of small integers.
    """
    x_BW = as_float(waves_BW)
    if rate == new_rate:
        return x_BW
    xp = x_BW.__array_namespace__()
    kernel_LN, step = _kernel(rate, new_rate)
    L, N = kernel_LN.shape
    length = -(-x_BW.shape[1] * new_rate // rate)
    blocks, before = -(-length // N), (L - step) // 2
    end = (blocks - 1) * step + L
    x_BW = xp.pad(x_BW, ((0, 0), (before, max(0, end - before - x_BW.shape[1]))))[:, :end]
    y_BTN = frames(x_BW, L, step) @ xp.asarray(kernel_LN, dtype=x_BW.dtype)
    return y_BTN.reshape(len(x_BW), -1)[:, :length]


@functools.lru_cache(maxsize=16)
def _kernel(rate: int, new_rate: int) -> tuple[np.ndarray, int]:
    """The matrix [L, N] from L samples to N new ones, and by how many samples the next N are later.

    Sample n of the new wave is at time n * rate / new_rate. `step` samples become N, a whole number of periods of the
    phase between the two; L - step samples more are the reach of the filter.
    """
    if rate < 1 or new_rate < 1:
        raise InputError(f"a wave cannot be resampled from {rate} to {new_rate} samples a second; both are at least 1")
    common = math.gcd(rate, new_rate)
    step, N = rate // common, new_rate // common
    periods = -(-BLOCK // step)
    step, N = step * periods, N * periods
    cutoff = ROLL_OFF * min(1.0, new_rate / rate)  # relative to the old Nyquist frequency
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    if (step + 2 * reach) * N > LARGEST_KERNEL:
        raise InputError(
            f"a wave cannot be resampled from {rate} to {new_rate} samples a second: their ratio {step}:{N} has too "
            "large terms; convert the file to a usual rate such as 16000 or 44100"
        )
    times_LN = np.arange(N) * rate / new_rate + reach - np.arange(step + 2 * reach)[:, None]
    window_LN = np.i0(KAISER * np.sqrt(np.maximum(0.0, 1 - (times_LN / reach) ** 2))) / np.i0(KAISER)
    kernel_LN = np.where(np.abs(times_LN) <= reach, np.sinc(cutoff * times_LN) * window_LN, 0.0)
    return kernel_LN / kernel_LN.sum(0), step
