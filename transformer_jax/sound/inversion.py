"""From mel bins back to a wave: the power of each frequency, then phases that agree with it.

B batch, W samples of a wave, T frames, F frequencies, M mel bins.
"""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.sound.spectrum import hann, istft, stft


def mel_to_power(mel_BTM: jax.Array, filters_FM: np.ndarray, *, iterations: int = 64) -> jax.Array:
    """Non-negative powers [B, T, F] whose mel bins are nearest to the given ones (Lee and Seung 2001, theorem 1).

    Args:
      mel_BTM: energies, not logarithms: 10 ** (4 * x - 4) of `log_mel`'s x.
      filters_FM: `mel_filters`.
      iterations: multiplicative updates; each lowers the distance.
    """
    kernel_FM = jnp.asarray(filters_FM, mel_BTM.dtype)
    target_BTF = mel_BTM @ kernel_FM.T

    def update(_: int, power_BTF: jax.Array) -> jax.Array:
        return power_BTF * target_BTF / jnp.maximum(power_BTF @ kernel_FM @ kernel_FM.T, 1e-20)

    covered_F = jnp.maximum(kernel_FM.sum(1), 1e-20)
    return jax.lax.fori_loop(0, iterations, update, target_BTF / covered_F)


def griffin_lim(
    key: jax.Array, magnitudes_BTF: jax.Array, *, hop: int, iterations: int = 32, momentum: float = 0.99
) -> jax.Array:
    """Waves [B, (T - 1) * hop] whose spectra have nearly these magnitudes (Griffin and Lim 1984).

    With the momentum of Perraudin et al. 2013, section 3.

    Args:
      key: the random key for the first phases.
      magnitudes_BTF: the magnitudes of an `stft` with a periodic Hann window of 2 * (F - 1) samples.
      hop: samples from one frame to the next; at most half a window.
      iterations: how often phases are computed from a wave.
      momentum: 0: the original algorithm.
    """
    window_L = hann(2 * (magnitudes_BTF.shape[-1] - 1))
    angles = jax.random.uniform(key, magnitudes_BTF.shape, magnitudes_BTF.dtype, 0.0, 2 * np.pi)

    def step(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        spectra, before = carry
        consistent = stft(istft(spectra, window_L, hop), window_L, hop)
        ahead = consistent + momentum * (consistent - before)
        return magnitudes_BTF * ahead / jnp.maximum(jnp.abs(ahead), 1e-20), consistent

    first = magnitudes_BTF * jnp.exp(1j * angles)
    spectra_BTF, _ = jax.lax.fori_loop(0, iterations, step, (first, jnp.zeros_like(first)))
    return istft(spectra_BTF, window_L, hop)
