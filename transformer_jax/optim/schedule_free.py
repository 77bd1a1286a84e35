"""Schedule-free AdamW: Defazio et al. 2024, "The road less scheduled"."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
import optax
import optax.contrib

from transformer_jax.nn import params as params_lib
from transformer_jax.optim import groups
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.transform import clipped, scaled, without_frozen


@dataclass(frozen=True)
class ScheduleFree(Rates):
    """AdamW that evaluates an average of the parameters over the run, so that the learning rate need not decay.

    The gradient is taken at y = beta1 x + (1 - beta1) z, where x is that average and z the parameters of AdamW without
    momentum. The state stores z in place of a first moment.
    """

    peak_lr: float = 2.5e-3
    """The highest learning rate, reached after the warm-up; in the paper 1 to 10 times that of AdamW."""
    lr_schedule: Literal["cosine", "linear", "rsqrt", "flat_rsqrt", "constant", "wsd"] = "constant"
    """The form of the schedule after the warm-up, as in `Rates`."""
    beta1: float = 0.9
    """The weight of x in y."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.beta1 < 1, "beta1", "it must be in (0, 1)")
        self._require(0 <= self.beta2 < 1, "beta2", "it must be in [0, 1)")
        self._require(self.eps > 0, "eps", "it must be above 0")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """Schedule-free AdamW for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate, scales = self.schedule(total_updates), self.lr_scales(declaration)
        adamw = optax.chain(
            optax.scale_by_rms(self.beta2, self.eps, eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(self.weight_decay, params_lib.decay_mask(groups.trained(declaration, scales))),
            optax.scale_by_learning_rate(learning_rate),
            scaled(scales),  # scales the updates of z; x and y follow from z
        )
        # `schedule_free` counts updates from 1, the schedule from 0.
        averaged = optax.contrib.schedule_free(adamw, lambda count: learning_rate(count - 1), self.beta1)
        # Rounding in `averaged` would move frozen layers of a stacked leaf: their updates are set to 0.
        unfrozen = scaled(jax.tree.map(lambda scale: np.float32(scale > 0), scales))
        return without_frozen(optax.chain(clipped(self.clip_norm), averaged, unfrozen), scales)

    def evaluated(self, opt_state: Any, params: Any) -> Any:
        """The average x, from z in `opt_state` and y, the trained `params` (`contracts.EvaluatesOther`)."""

        def average(y: jax.Array, z: Any) -> jax.Array:
            frozen = isinstance(z, optax.MaskedNode)
            return y if frozen else y + (1 - self.beta1) / self.beta1 * (y - z)

        return jax.tree.map(average, params, opt_state[1].z)
