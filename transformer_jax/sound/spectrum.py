"""Frames of a wave, their spectra, and the wave of spectra.

B batch, W samples of a wave, T frames, F frequencies, L samples of a frame.
"""

from typing import Any

import numpy as np


def hann(length: int, *, periodic: bool = True) -> np.ndarray:
    """The Hann window, float64 [length].

    Args:
      length: L.
      periodic: one period of a cosine without its last sample, as spectra that are added up again need it; else
        symmetric, as Kaldi's.
    """
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length if periodic else length - 1))


def frames(x_BW: Any, length: int, hop: int) -> Any:
    """The frames of the waves that are whole, [B, T, length], T = (W - length) // hop + 1.

    Made of shifted slices: a gather would take longer than the spectra.

    Args:
      x_BW: waves of at least `length` samples.
      length: L.
      hop: samples from one frame's start to the next one's.
    """
    xp = x_BW.__array_namespace__()
    B, W = x_BW.shape
    if length > W:
        raise ValueError(f"a wave of {W} samples is shorter than a frame of {length}")
    T, parts = (W - length) // hop + 1, -(-length // hop)
    end = (T + parts - 1) * hop
    blocks = xp.pad(x_BW, ((0, 0), (0, max(0, end - W))))[:, :end].reshape(B, -1, hop)
    return xp.concatenate([blocks[:, i : i + T] for i in range(parts)], axis=-1)[..., :length]


def stft(x_BW: Any, window_L: np.ndarray, hop: int) -> Any:
    """The spectra of frames that are centred at every `hop`-th sample, complex [B, 1 + W // hop, L // 2 + 1].

    The waves are mirrored at their ends.

    Args:
      x_BW: floats.
      window_L: the window of each frame.
      hop: samples from frame to frame.
    """
    xp = x_BW.__array_namespace__()
    L = len(window_L)
    x_BW = xp.pad(x_BW, ((0, 0), (L // 2, L // 2)), mode="reflect")
    return xp.fft.rfft(frames(x_BW, L, hop) * xp.asarray(window_L, dtype=x_BW.dtype))


def istft(spectra_BTF: Any, window_L: np.ndarray, hop: int) -> Any:
    """The waves whose `stft` is nearest to the spectra, [B, (T - 1) * hop] (Griffin and Lim 1984, equation 6).

    Args:
      spectra_BTF: as `stft` returns them.
      window_L: that of `stft`.
      hop: that of `stft`.
    """
    xp = spectra_BTF.__array_namespace__()
    L, T = len(window_L), spectra_BTF.shape[1]
    x_BTL = xp.fft.irfft(spectra_BTF, n=L)
    window = xp.asarray(window_L, dtype=x_BTL.dtype)
    x_BW = _overlap_add(x_BTL * window, hop)
    weights_W = _overlap_add(xp.broadcast_to(window**2, (1, T, L)), hop)
    kept = slice(L // 2, L // 2 + (T - 1) * hop)
    return x_BW[:, kept] / xp.maximum(weights_W[:, kept], 1e-8)


def _overlap_add(x_BTL: Any, hop: int) -> Any:
    """The sum of frames that begin `hop` samples after each other, [B, at least (T - 1) * hop + L]."""
    xp = x_BTL.__array_namespace__()
    B, T, L = x_BTL.shape
    parts = -(-L // hop)
    x_BTPh = xp.pad(x_BTL, ((0, 0), (0, 0), (0, parts * hop - L))).reshape(B, T, parts, hop)
    shifted = [xp.pad(x_BTPh[:, :, i], ((0, 0), (i, parts - 1 - i), (0, 0))) for i in range(parts)]
    return sum(shifted[1:], shifted[0]).reshape(B, -1)
