"""Adafactor: Shazeer and Stern 2018, second moments kept as one mean a row and one a column."""

from dataclasses import dataclass
from typing import Any

import optax

from transformer_jax.nn import params as params_lib
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.transform import around, by_layer


@dataclass(frozen=True)
class Adafactor(Rates):
    """Adafactor with the learning rate of its schedule: the "relative step" of the paper, a rate of its own, is off."""

    peak_lr: float = 1e-2
    """The highest learning rate; times a parameter's root mean square where `scale_by_parameter` is on."""
    weight_decay: float = 0.0
    """Share of each matrix taken off per update, times the learning rate."""
    clip_norm: float = 0.0
    """The gradient's global norm is clipped to this; 0: not clipped, as each update is (`clip_update`)."""
    decay_exponent: float = 0.8
    """The second moment's decay at update n is 1 - n^-this."""
    eps: float = 1e-30
    """Added to the squared gradient."""
    clip_update: float = 1.0
    """Each parameter's update is clipped to this root mean square; 0: not clipped."""
    scale_by_parameter: bool = True
    """An update is multiplied by its parameter's root mean square, which is taken to be at least 0.001."""
    min_size_to_factor: int = 128
    """Matrices with both sides at least this long have factored moments."""
    momentum: float = 0.0
    """Decay of a first moment; 0: there is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.decay_exponent <= 1, "decay_exponent", "it must lie in (0, 1]")
        self._require(self.eps > 0, "eps", "it must be above 0")
        self._require(self.clip_update >= 0, "clip_update", "it must be at least 0 (0: not clipped)")
        self._require(self.min_size_to_factor >= 1, "min_size_to_factor", "it must be at least 1")
        self._require(0 <= self.momentum < 1, "momentum", "it must lie in [0, 1)")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """Adafactor for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate = self.schedule(total_updates)

        def build(trained: Any) -> optax.GradientTransformation:
            moments = optax.scale_by_factored_rms(
                decay_rate=self.decay_exponent,
                min_dim_size_to_factor=self.min_size_to_factor,
                epsilon=self.eps,
            )
            parts = [by_layer(moments, trained)]
            if self.clip_update:
                parts.append(by_layer(optax.clip_by_block_rms(self.clip_update), trained))
            if self.scale_by_parameter:
                parts.append(by_layer(optax.scale_by_param_block_rms(), trained))
            if self.momentum:
                parts.append(optax.ema(self.momentum, debias=False))
            decay = optax.add_decayed_weights(self.weight_decay, params_lib.decay_mask(trained))
            return optax.chain(*parts, decay, optax.scale_by_learning_rate(learning_rate))

        return around(self, declaration, build)
