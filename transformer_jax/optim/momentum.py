"""Optimisers with one moment: SGD with momentum, and Lion."""

from dataclasses import dataclass
from typing import Any

import optax

from transformer_jax.nn import params as params_lib
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.transform import around


@dataclass(frozen=True)
class Sgd(Rates):
    """Stochastic gradient descent with momentum, as torch.optim.SGD: the decay is added to the gradient."""

    peak_lr: float = 0.1
    """The highest learning rate, reached after the warm-up."""
    weight_decay: float = 0.0
    """This times the matrix is added to its gradient."""
    momentum: float = 0.9
    """Decay of the sum of gradients; 0: none is kept."""
    nesterov: bool = False
    """Nesterov's momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.momentum < 1, "momentum", "it must be in [0, 1)")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """SGD for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate = self.schedule(total_updates)

        def build(trained: Any) -> optax.GradientTransformation:
            decay = optax.add_decayed_weights(self.weight_decay, params_lib.decay_mask(trained))
            return optax.chain(decay, optax.sgd(learning_rate, self.momentum or None, self.nesterov))

        return around(self, declaration, build)


@dataclass(frozen=True)
class Lion(Rates):
    """Lion: Chen et al. 2023, "Symbolic discovery of optimization algorithms".

    Every element changes by the learning rate, which should be 3 to 10 times lower than AdamW's, and the decay higher
    by the same factor (section 5).
    """

    peak_lr: float = 1e-4
    """The highest learning rate, reached after the warm-up."""
    weight_decay: float = 1.0
    """An update subtracts the learning rate times this times the matrix."""
    beta1: float = 0.9
    """Share of the moment in the direction; the rest is the gradient."""
    beta2: float = 0.99
    """Decay of the moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.beta1 < 1, "beta1", "it must be in [0, 1)")
        self._require(0 <= self.beta2 < 1, "beta2", "it must be in [0, 1)")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """Lion for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate = self.schedule(total_updates)

        def build(trained: Any) -> optax.GradientTransformation:
            mask = params_lib.decay_mask(trained)
            return optax.lion(learning_rate, self.beta1, self.beta2, weight_decay=self.weight_decay, mask=mask)

        return around(self, declaration, build)
