"""LAMB: You et al. 2020, "Large batch optimization for deep learning: training BERT in 76 minutes", algorithm 2."""

from dataclasses import dataclass
from typing import Any

import optax

from transformer_jax.nn import params as params_lib
from transformer_jax.optim import groups
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.transform import around, by_layer


@dataclass(frozen=True)
class Lamb(Rates):
    """LAMB: the direction of Adam with decay, scaled to the norm of its matrix; one trust ratio per matrix and layer.

    Vectors have neither a trust ratio nor decay, as in the authors' code (google-research/albert, lamb_optimizer.py).
    """

    peak_lr: float = 1e-3
    """The highest learning rate, reached after the warm-up: the change of a matrix per update, relative to its norm."""
    weight_decay: float = 0.01
    """The direction is Adam's plus this times the matrix."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-6
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.beta1 < 1, "beta1", "it must be in [0, 1)")
        self._require(0 <= self.beta2 < 1, "beta2", "it must be in [0, 1)")
        self._require(self.eps > 0, "eps", "it must be above 0")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """LAMB for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate = self.schedule(total_updates)

        def build(trained: Any) -> optax.GradientTransformation:
            matrices = params_lib.decay_mask(trained)
            return optax.chain(
                optax.scale_by_adam(self.beta1, self.beta2, self.eps),
                optax.add_decayed_weights(self.weight_decay, matrices),
                optax.masked(by_layer(optax.scale_by_trust_ratio(), groups.trained(trained, matrices)), matrices),
                optax.scale_by_learning_rate(learning_rate),
            )

        return around(self, declaration, build)
