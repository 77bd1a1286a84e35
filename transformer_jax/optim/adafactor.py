"""Adafactor (Shazeer and Stern 2018): second moments stored as one mean per row and one per column."""

from dataclasses import dataclass
from typing import Any

import optax

from transformer_jax.nn import params as params_lib
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.transform import around, by_layer

EPS = 1e-30  # added to the squared gradient, as in the paper


@dataclass(frozen=True)
class Adafactor(Rates):
    """Adafactor. Its learning rate is that of `schedule`; the paper's own rate, the "relative step", is not used."""

    peak_lr: float = 1e-2
    """The highest learning rate; times a parameter's root mean square where `scale_by_parameter` is on."""
    weight_decay: float = 0.0
    """An update subtracts the learning rate times this times the matrix."""
    clip_norm: float = 0.0
    """The global norm of the gradient is clipped to this; 0: it is not, because `clip_update` clips each update."""
    decay_exponent: float = 0.8
    """The decay of the second moment at update n is 1 - n^-decay_exponent."""
    clip_update: float = 1.0
    """Each parameter's update is clipped to this root mean square; 0: not clipped."""
    scale_by_parameter: bool = True
    """Multiply each update by its parameter's root mean square, or 0.001 if that is larger."""
    min_size_to_factor: int = 128
    """Matrices with at least this many rows and columns have factored moments."""
    momentum: float = 0.0
    """Decay of the first moment; 0: none is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.decay_exponent <= 1, "decay_exponent", "it must be in (0, 1]")
        self._require(self.clip_update >= 0, "clip_update", "it must be at least 0 (0: not clipped)")
        self._require(self.min_size_to_factor >= 1, "min_size_to_factor", "it must be at least 1")
        self._require(0 <= self.momentum < 1, "momentum", "it must be in [0, 1)")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """Adafactor for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate = self.schedule(total_updates)

        def build(trained: Any) -> optax.GradientTransformation:
            moments = optax.scale_by_factored_rms(
                decay_rate=self.decay_exponent,
                min_dim_size_to_factor=self.min_size_to_factor,
                epsilon=EPS,
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
