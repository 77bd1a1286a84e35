"""FastSpeech: states repeated by durations, padding without effect, features that become a wave again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models import fastspeech

CFG = fastspeech.Config(
    vocab_size=7, mels=40, width=16, num_layers=1, decoder_layers=1, num_heads=2, dropout=0.0, scan_layers=False
)


@pytest.fixture(scope="module")
def made():
    """(durations, spectrograms) of two rows, of which the first is shorter, and of the first one alone."""
    rng = np.random.default_rng(0)
    fresh = jax.jit(fastspeech.init, static_argnums=1)(jax.random.key(0), CFG)
    params = jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32), fresh)
    tokens = np.array([[1, 2, 3, 5, 5], [4, 1, 6, 2, 3]])
    durations = np.array([[2, 1, 3, 0, 0], [1, 1, 2, 4, 2]])

    @jax.jit
    def spoken(tokens_BS, durations_BS):
        sizes_B = (durations_BS > 0).sum(1)
        x_BSD = fastspeech.encode(params, CFG, tokens_BS, sizes_B)
        whole_BS = fastspeech.whole_durations(fastspeech.log_durations(params, CFG, x_BSD), sizes_B)
        return whole_BS, fastspeech.decode(params, CFG, x_BSD, durations_BS, steps=10)

    other = np.array([[1, 2, 3, 0, 6], [4, 1, 6, 2, 3]])
    return durations, spoken(tokens, durations), spoken(other, durations)


def test_padding_has_no_effect(made):
    durations, (whole, mel), (other_whole, other_mel) = made
    assert mel.shape == (2, 30, 40)
    np.testing.assert_allclose(mel[0, : 3 * 6], other_mel[0, : 3 * 6], atol=1e-5)
    np.testing.assert_array_equal(whole, other_whole)
    assert (np.asarray(whole)[durations > 0] >= 1).all() and not np.asarray(whole)[durations == 0].any()


def test_features_become_a_wave_of_the_same_features():
    at = np.arange(16_000) / 16_000
    wave = (0.3 * np.sin(2 * np.pi * 500 * at * (1 + at))).astype(np.float32)[None]
    cfg = fastspeech.Config(mels=80, width=16, num_heads=2)

    @jax.jit
    def both(wave_BW):
        x_BFM = fastspeech.features(cfg, wave_BW)
        again_BW = fastspeech.to_waves(cfg, x_BFM, jax.random.key(0))
        return x_BFM, fastspeech.features(cfg, jnp.pad(again_BW, ((0, 0), (0, 400)))), again_BW

    first, second, again = jax.device_get(both(wave))
    assert again.shape == (1, 16_000)
    loud = first[0, 5:-5] > first.max() - 1.0  # 20 dB below the loudest
    assert np.abs(first[0, 5:-5] - second[0, 5 : first.shape[1] - 5])[loud].mean() < 0.1
