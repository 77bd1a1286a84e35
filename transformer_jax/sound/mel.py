"""Log-mel features: Whisper's, and Kaldi's filter banks, which the audio spectrogram transformer reads.

B batch, W samples of a wave, T frames, F frequencies, M mel bins.
"""

import functools
from typing import Any, Literal

import numpy as np

from transformer_jax.errors import InputError
from transformer_jax.sound.spectrum import frames, hann, stft
from transformer_jax.sound.waves import as_float

Scale = Literal["slaney", "htk", "kaldi"]
SMALLEST = 1.1920929e-07  # Kaldi's floor of a bin's energy: the distance from 1 to the next float32


def log_mel(
    waves_BW: Any, lengths_B: Any = None, *, num_mels: int = 80, rate: int = 16_000, window: int = 400, hop: int = 160
) -> Any:
    """Whisper's features (Radford et al. 2022, section 2.2), [B, W // hop, num_mels], of which most are in [-1, 1].

    They are log10 of the energy in each mel bin, at least 8 below the wave's highest, then (x + 4) / 4. Whisper pads
    each wave with silence to 30 seconds (`fitted`).

    Args:
      waves_BW: int16, or floats in [-1, 1]; float64 is computed in float64. W is at least `hop`.
      lengths_B: int [B], the samples of each wave before its padding, which then is read as silence; None: all.
      num_mels: M, 80; 128 in Whisper's large-v3.
      rate: samples a second.
      window: samples of a frame.
      hop: samples from one frame to the next.
    """
    x_BW = as_float(waves_BW)
    xp = x_BW.__array_namespace__()
    if x_BW.shape[1] < hop:
        raise ValueError(f"a wave of {x_BW.shape[1]} samples has no frame; pad it to at least {hop}")
    if lengths_B is not None:
        x_BW = xp.where(xp.arange(x_BW.shape[1]) < lengths_B[:, None], x_BW, xp.zeros((), x_BW.dtype))
    spectra_BTF = stft(x_BW, hann(window), hop)[:, : x_BW.shape[1] // hop]
    filters_FM = mel_filters(num_mels, fft=window, rate=rate, high=min(8000.0, rate / 2))
    mel_BTM = _power(spectra_BTF) @ xp.asarray(filters_FM, dtype=x_BW.dtype)
    log_BTM = xp.log10(xp.maximum(mel_BTM, 1e-10))
    return (xp.maximum(log_BTM, log_BTM.max((1, 2), keepdims=True) - 8) + 4) / 4


def fbank(
    waves_BW: Any,
    *,
    num_mels: int = 128,
    rate: int = 16_000,
    low: float = 20.0,
    window: int = 400,
    hop: int = 160,
    fft: int = 512,
) -> Any:
    """Kaldi's filter banks with a Hann window, [B, (W - window) // hop + 1, num_mels]: nats of energy in each bin.

    Each frame loses its mean and is pre-emphasised, x[t] - 0.97 x[t - 1]. Only whole frames are read.

    Args:
      waves_BW: int16, or floats in [-1, 1]. W is at least `window`.
      num_mels: M.
      rate: samples a second.
      low: the lowest frequency in hertz; the highest is rate / 2.
      window: samples of a frame.
      hop: samples from one frame to the next.
      fft: samples of the transform, at least `window`.
    """
    x_BW = as_float(waves_BW)
    xp = x_BW.__array_namespace__()
    x_BTL = frames(x_BW, window, hop)
    x_BTL = x_BTL - x_BTL.mean(-1, keepdims=True)
    before_BTL = xp.concatenate([x_BTL[..., :1], x_BTL[..., :-1]], axis=-1)
    x_BTL = (x_BTL - 0.97 * before_BTL) * xp.asarray(hann(window, periodic=False), dtype=x_BW.dtype)
    filters_FM = mel_filters(num_mels, fft=fft, rate=rate, low=low, scale="kaldi")
    mel_BTM = _power(xp.fft.rfft(x_BTL, n=fft)) @ xp.asarray(filters_FM, dtype=x_BW.dtype)
    return xp.log(xp.maximum(mel_BTM, SMALLEST))


def _power(spectra_BTF: Any) -> Any:
    return spectra_BTF.real**2 + spectra_BTF.imag**2


@functools.lru_cache(maxsize=16)
def mel_filters(
    num_mels: int, *, fft: int, rate: int, low: float = 0.0, high: float | None = None, scale: Scale = "slaney"
) -> np.ndarray:
    """The triangular filters, float64 [F, num_mels], F = fft // 2 + 1. Not to be written to.

    Args:
      num_mels: M, whose centres are equally far apart on the mel scale.
      fft: samples of the transform.
      rate: samples a second.
      low: where the first triangle begins, in hertz.
      high: where the last one ends; None: rate / 2.
      scale: "slaney", linear below 1,000 Hz, with triangles of the same area (Slaney 1998); "htk", logarithmic, of the
        same height (Young et al. 2006); or "kaldi", the same with triangles over mels, not hertz.

    Raises:
      InputError: the frequencies are out of range.
    """
    high = rate / 2 if high is None else high
    if not 0 <= low < high <= rate / 2 or num_mels < 1:
        raise InputError(
            f"{num_mels} mel bins from {low:g} to {high:g} Hz: a wave of {rate} samples a second has frequencies "
            f"from 0 to {rate / 2:g} Hz"
        )
    edges = np.linspace(_mels(np.array(low), scale), _mels(np.array(high), scale), num_mels + 2)
    places_F1 = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    if scale == "kaldi":
        places_F1 = _mels(places_F1, scale)
    else:
        edges = _hertz(edges, scale)
    rising = (places_F1 - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - places_F1) / np.diff(edges)[1:]
    filters_FM = np.maximum(0.0, np.minimum(rising, falling))
    return filters_FM * (2 / (edges[2:] - edges[:-2])) if scale == "slaney" else filters_FM


def _mels(hertz: np.ndarray, scale: Scale) -> np.ndarray:
    if scale != "slaney":
        return (1127.0 if scale == "kaldi" else 2595 / np.log(10)) * np.log1p(hertz / 700)
    return np.where(hertz < 1000, 3 * hertz / 200, 15 + 27 / np.log(6.4) * np.log(np.maximum(hertz, 1000) / 1000))


def _hertz(mels: np.ndarray, scale: Scale) -> np.ndarray:
    if scale != "slaney":
        return 700 * np.expm1(mels / (2595 / np.log(10)))
    return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(np.log(6.4) / 27 * (np.maximum(mels, 15) - 15)))
