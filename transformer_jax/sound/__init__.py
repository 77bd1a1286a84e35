"""Sound on the device: from waves to the features that models read, and back. Pure functions of arrays.

    waves_BW = sound.as_float(waves)                            # int16 [B, W] -> float32 in [-1, 1)
    waves_BW = sound.resample(sound.mono(waves_BWC), 44_100, 16_000)
    x_BTM = jax.jit(sound.log_mel)(waves_BW)                    # Whisper's features, 100 frames a second
    waves_BW = sound.griffin_lim(key, magnitudes_BTF, hop=160)  # a wave that has these magnitudes

Everything but `inversion.py` computes with NumPy arrays as well as with JAX's, in float32 or float64, so that the
preparation of data needs no device. Pad the waves, not the features: the models were trained on features of silence.

B batch, W samples of a wave, C channels, T frames, F frequencies, M mel bins.
"""

from transformer_jax.sound.inversion import griffin_lim, mel_to_power
from transformer_jax.sound.mel import fbank, log_mel, mel_filters
from transformer_jax.sound.spectrum import frames, hann, istft, stft
from transformer_jax.sound.waves import as_float, fitted, mono, resample

__all__ = [
    "as_float",
    "fbank",
    "fitted",
    "frames",
    "griffin_lim",
    "hann",
    "istft",
    "log_mel",
    "mel_filters",
    "mel_to_power",
    "mono",
    "resample",
    "stft",
]
