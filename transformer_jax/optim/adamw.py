"""AdamW: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.

It is not a chain of Optax's parts, because a chain cannot receive two values that the step has computed: the norm of
the gradient, and whether the update counts at all. Selecting between new and old moments after a chain makes XLA's CPU
backend copy parameters and moments in every step, which takes two to three times as long (docs/performance.md).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax.nn import params as params_lib
from transformer_jax.optim import groups
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.transform import Skippable, without_frozen


@dataclass(frozen=True)
class AdamW(Rates):
    """AdamW. The defaults are the recipe of nanoGPT (karpathy/nanoGPT, train.py): linear warm-up, cosine decay, weight
    decay on matrices only, and the gradient's global norm clipped to 1."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.beta1 < 1, "beta1", "it must be in [0, 1)")
        self._require(0 <= self.beta2 < 1, "beta2", "it must be in [0, 1)")
        self._require(self.eps > 0, "eps", "it must be above 0")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """AdamW with float32 moments, for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate, scales = self.schedule(total_updates), self.lr_scales(declaration)
        decay_mask = params_lib.decay_mask(groups.trained(declaration, scales))
        return without_frozen(fused(self, learning_rate, groups.trained(scales, scales), decay_mask), scales)


def fused(cfg: AdamW, learning_rate: optax.Schedule, scales: Any, decay_mask: Any) -> Skippable:
    """AdamW in one pass over the moments, which also clips the gradient and skips an update that is not finite.

    Args:
      cfg: the settings.
      learning_rate: a function of the number of updates applied.
      scales: a tree like the parameters, the factor of each learning rate.
      decay_mask: a tree like the parameters, True where weight decay applies.

    Returns:
      A transformation; its `update` takes `finite=`, and `grad_norm=`, the global norm to clip by, which it computes if
      it is None.
    """
    beta1, beta2 = cfg.beta1, cfg.beta2

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        mu, nu = (optax.tree.zeros_like(params, dtype=jnp.float32) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        grads: optax.Updates,
        state: optax.ScaleByAdamState,
        params: optax.Params,
        *,
        grad_norm: jax.Array | None = None,
        finite: jax.Array | bool = True,
        **unused: Any,
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        norm = optax.tree.norm(grads) if grad_norm is None else grad_norm
        # The 1e-6 is that of torch.nn.utils.clip_grad_norm_, which the published recipes used; Optax adds none.
        clip = jnp.minimum(1.0, cfg.clip_norm / (norm + 1e-6)) if cfg.clip_norm else 1.0
        rate, count = learning_rate(state.count), state.count + 1

        def first(m: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(finite, beta1 * m + (1 - beta1) * (clip * g), m)

        def second(v: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(finite, beta2 * v + (1 - beta2) * (clip * g) ** 2, v)

        def change(p: jax.Array, m: jax.Array, v: jax.Array, decayed: bool, scale: Any) -> jax.Array:
            direction = m / (1 - beta1**count) / (jnp.sqrt(v / (1 - beta2**count)) + cfg.eps)
            return -rate * scale * (direction + cfg.weight_decay * p if decayed else direction)

        mu = jax.tree.map(first, state.mu, grads)
        nu = jax.tree.map(second, state.nu, grads)
        updates = jax.tree.map(change, params, mu, nu, decay_mask, scales)
        return updates, optax.ScaleByAdamState(jnp.where(finite, count, state.count), mu, nu)

    return Skippable(init, update)
