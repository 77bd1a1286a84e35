"""Features against Transformers' NumPy path, resampling against sines, and the way back to a wave."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sound.waves_of_tests import RATE, like_speech, waves
from transformer_jax import sound
from transformer_jax.errors import InputError

EXPECTED = dict(np.load(Path(__file__).parents[1] / "data/sound/features.npz"))
LOG_MEL = jax.jit(sound.log_mel, static_argnames="num_mels")


def _stored(features: np.ndarray) -> np.ndarray:
    """The frames that the fixture holds."""
    return np.concatenate([features[::61], features[-1:]])


@pytest.mark.parametrize("case", [name for name in EXPECTED if name.startswith("whisper/")])
def test_log_mel_is_whispers(case):
    _, num_mels, name = case.split("/")
    x = sound.fitted(waves()[name][None], 30 * RATE)
    exact = sound.log_mel(x.astype(np.float64), num_mels=int(num_mels))[0]
    assert exact.shape == (3000, int(num_mels)) and exact.dtype == np.float64
    np.testing.assert_allclose(_stored(exact), EXPECTED[case], atol=1e-5)
    single = np.asarray(LOG_MEL(jnp.asarray(x), num_mels=int(num_mels)))[0]
    assert single.dtype == np.float32
    np.testing.assert_allclose(_stored(single), EXPECTED[case], atol=2e-4)


@pytest.mark.parametrize("case", [name for name in EXPECTED if name.startswith("kaldi/")])
def test_fbank_is_kaldis(case):
    x = waves()[case.split("/")[2]][None]
    np.testing.assert_allclose(_stored(sound.fbank(x.astype(np.float64))[0]), EXPECTED[case], atol=1e-5)
    np.testing.assert_allclose(_stored(sound.fbank(x)[0]), EXPECTED[case], atol=2e-3)  # nats, down to -15.9


def test_padding_is_silence_whatever_it_holds():
    x = like_speech(RATE)[None]
    padded = np.concatenate([x, np.full((1, RATE), 0.7, np.float32)], axis=1)
    masked = sound.log_mel(padded, np.array([RATE]))
    np.testing.assert_array_equal(masked, sound.log_mel(sound.fitted(x, 2 * RATE)))
    assert np.abs(masked - sound.log_mel(padded)).max() > 0.1
    # The features of the rows do not depend on each other.
    both = sound.log_mel(np.concatenate([padded, 0.1 * padded]), np.array([RATE, 100]))
    np.testing.assert_array_equal(both[:1], masked)


def test_integers_are_fractions_and_channels_are_averaged():
    stereo = np.stack([np.array([[16384, -32768]], np.int16), np.array([[0, 0]], np.int16)], axis=-1)
    np.testing.assert_array_equal(sound.mono(stereo), [[0.25, -0.5]])
    assert sound.mono(stereo).dtype == np.float32


@pytest.mark.parametrize(("rate", "new_rate"), [(8000, 16000), (22050, 16000), (44100, 16000), (16000, 22050), (10, 9)])
def test_a_resampled_sine_is_the_sine_at_the_new_rate(rate, new_rate):
    hertz = 0.11 * min(rate, new_rate)

    old = np.sin(2 * np.pi * hertz * np.arange(3000) / rate)
    new = np.sin(2 * np.pi * hertz * np.arange(-(-3000 * new_rate // rate)) / new_rate)
    made = sound.resample(old[None], rate, new_rate)[0]
    assert made.shape == new.shape and made.dtype == np.float64
    inner = slice(len(new) // 10, -len(new) // 10)
    np.testing.assert_allclose(made[inner], new[inner], atol=2e-5)
    single = jax.jit(sound.resample, static_argnums=(1, 2))(jnp.asarray(old[None], jnp.float32), rate, new_rate)
    np.testing.assert_allclose(single[0], made, atol=2e-5)


def test_resampling_leaves_no_alias():
    """5 kHz at 16 kHz is above 8 kHz's highest frequency: it is silence there, and not 3 kHz."""
    high = np.sin(2 * np.pi * 5000 * np.arange(4000) / 16000)[None]
    assert np.abs(sound.resample(high, 16000, 8000)[0, 200:-200]).max() < 2e-5
    constant = sound.resample(np.ones((1, 4000)), 16000, 11025)[0, 200:-200]
    np.testing.assert_allclose(constant, 1.0, atol=1e-12)


def test_what_cannot_be_resampled_or_filtered_is_refused():
    with pytest.raises(InputError, match="from 15999 to 16001 samples a second: their ratio"):
        sound.resample(np.zeros((1, 10)), 15999, 16001)
    with pytest.raises(InputError, match="both are at least 1"):
        sound.resample(np.zeros((1, 10)), 0, 16000)
    with pytest.raises(InputError, match="from 20 to 8000 Hz: a wave of 8000"):
        sound.mel_filters(80, fft=400, rate=8000, low=20, high=8000)
    with pytest.raises(ValueError, match="pad it to at least 160"):
        sound.log_mel(np.zeros((1, 159), np.float32))
    with pytest.raises(ValueError, match="shorter than a frame of 400"):
        sound.fbank(np.zeros((1, 399), np.float32))


def test_frames_are_slices():
    x = np.arange(20.0).reshape(2, 10)
    for length, hop in ((4, 2), (5, 2), (2, 3), (10, 1)):
        expected = [[row[i : i + length] for i in range(0, 10 - length + 1, hop)] for row in x]
        np.testing.assert_array_equal(sound.frames(x, length, hop), expected)


def test_filters_of_htk():
    """Two bins of 0 to 1,000 Hz: edges at thirds of 2595 log10(1 + 1000 / 700) mels."""
    edges = 700 * (10 ** (2595 * np.log10(1 + 1000 / 700) * np.arange(4) / 3 / 2595) - 1)
    filters = sound.mel_filters(2, fft=2000, rate=2000, scale="htk")
    for i in range(2):
        wanted = np.interp(np.arange(1001), edges[i : i + 3], [0.0, 1.0, 0.0])
        np.testing.assert_allclose(filters[:, i], wanted, atol=1e-12)


def test_a_spectrum_is_inverted():
    x = like_speech(8000).astype(np.float64)[None]
    window = sound.hann(400)
    spectra = sound.stft(x, window, 160)
    naive = np.fft.rfft(x[0, 1600 - 200 : 1600 + 200] * window)  # the frame that is centred at sample 1,600
    np.testing.assert_allclose(spectra[0, 10], naive, atol=1e-12)
    np.testing.assert_allclose(sound.istft(spectra, window, 160), x, atol=1e-12)


def test_griffin_lim_gives_a_wave_of_these_magnitudes():
    x = jnp.asarray(like_speech(RATE // 2)[None])
    filters = sound.mel_filters(80, fft=400, rate=RATE)

    @jax.jit
    def round_trip(x):
        power = sound.mel_to_power(10 ** (4 * sound.log_mel(x) - 4), filters)
        wanted = jnp.abs(sound.stft(x, sound.hann(400), 160))
        waves = [sound.griffin_lim(jax.random.key(0), wanted, hop=160, iterations=n) for n in (1, 32)]
        made = [jnp.abs(sound.stft(wave, sound.hann(400), 160)) for wave in waves]
        return power, [jnp.linalg.norm(m - wanted) / jnp.linalg.norm(wanted) for m in made], waves[0].shape[1]

    power, errors, length = round_trip(x)
    assert length == RATE // 2 and float(power.min()) >= 0
    fitted = (jnp.log10(jnp.maximum(power @ filters.astype(np.float32), 1e-10)) + 4) / 4
    assert np.abs(fitted - sound.log_mel(x)).mean() < 0.01
    assert errors[1] < 0.15 and errors[1] < errors[0] / 2, errors
