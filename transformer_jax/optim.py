"""The optimiser: a learning-rate schedule and AdamW, as one dataclass and two functions.

    optimizer = make(cfg, total_steps, decay_mask)      an optax transformation
    learning_rate = schedule(cfg, total_steps)          count of updates applied so far -> learning rate

The defaults are the recipe of nanoGPT (karpathy/nanoGPT, train.py): linear warm-up, cosine decay, AdamW (Loshchilov and
Hutter 2019, "Decoupled weight decay regularization", algorithm 2) with decay on matrices alone, and the gradient's
global norm clipped to 1. The transformation takes the norm from the caller where it is given, because the train step
logs it: gradients are read once for the norm and once for the update.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from transformer_jax.errors import InputError


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule. Every count is in updates of the optimiser.

    For update n (from 0) and w = `warmup_steps`, the learning rate is `peak_lr * (n + 1) / (w + 1)` while n < w. Then,
    with d = `decay_steps` (0: the run's last step) and final = `final_lr_fraction * peak_lr`:

    - "cosine":    final + (peak - final) * (1 + cos(pi * (n - w) / (d - w))) / 2, and final after d
    - "linear":    the straight line from peak at w to final at d, and final after d
    - "rsqrt":     peak * sqrt((w + 1) / (n + 1)), the schedule of Vaswani et al. 2017, section 5.3; it has no end
    - "constant":  peak
    - "wsd":       peak, then the straight line to final over the `cooldown_steps` before d (warm-up, stable, decay:
                   Hu et al. 2024, "MiniCPM", section 4)
    """

    peak_lr: float = 6e-4
    schedule: Literal["cosine", "linear", "rsqrt", "constant", "wsd"] = "cosine"
    warmup_steps: int = 0
    decay_steps: int = 0
    cooldown_steps: int = 0
    final_lr_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # 0: gradients are not clipped

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, fix: str) -> None:
            if not ok:
                raise InputError(f"optim.{field} is {getattr(self, field)!r}; {fix}")

        names = ("cosine", "linear", "rsqrt", "constant", "wsd")
        require(self.schedule in names, "schedule", f"it must be one of {', '.join(names)}")
        require(0 < self.peak_lr < float("inf"), "peak_lr", "it must be above 0")
        require(self.warmup_steps >= 0, "warmup_steps", "it must be at least 0")
        require(self.decay_steps >= 0, "decay_steps", "it must be at least 0 (0: the run's last step)")
        require(self.cooldown_steps >= 0, "cooldown_steps", "it must be at least 0")
        require(0 <= self.final_lr_fraction <= 1, "final_lr_fraction", "it must lie in [0, 1]: final over peak")
        require(0 <= self.beta1 < 1, "beta1", "it must lie in [0, 1)")
        require(0 <= self.beta2 < 1, "beta2", "it must lie in [0, 1)")
        require(self.eps > 0, "eps", "it must be above 0")
        require(self.weight_decay >= 0, "weight_decay", "it must be at least 0")
        require(self.clip_norm >= 0, "clip_norm", "it must be at least 0 (0: no clipping)")
        if (self.schedule == "wsd") != (self.cooldown_steps > 0):
            fix = "wsd decays over the last cooldown_steps, and no other schedule uses them"
            raise InputError(f"optim.cooldown_steps is {self.cooldown_steps} with schedule {self.schedule!r}; {fix}")


def schedule(cfg: Optim, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates applied so far (int32 scalar -> float32 scalar).

    Errors: `InputError` when warm-up (and cool-down) do not fit before the end of the decay.
    """
    peak, final, warmup = cfg.peak_lr, cfg.peak_lr * cfg.final_lr_fraction, cfg.warmup_steps
    end = cfg.decay_steps or total_steps
    if cfg.schedule in ("cosine", "linear", "wsd") and warmup + cfg.cooldown_steps > end:
        sizes = f"{warmup} + cooldown_steps {cfg.cooldown_steps}" if cfg.cooldown_steps else f"{warmup}"
        raise InputError(
            f"optim.warmup_steps {sizes} is more than the {end} steps that the {cfg.schedule} schedule has; lower it"
        )

    def learning_rate(count: jax.typing.ArrayLike) -> jax.Array:
        n = jnp.asarray(count, jnp.float32)
        start = end - cfg.cooldown_steps if cfg.schedule == "wsd" else warmup
        done = jnp.clip((n - start) / max(end - start, 1), 0.0, 1.0)  # share of the decay that is behind us
        if cfg.schedule == "cosine":
            after = final + (peak - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif cfg.schedule in ("linear", "wsd"):
            after = peak + (final - peak) * done
        elif cfg.schedule == "rsqrt":
            after = peak * jnp.sqrt((warmup + 1) / (n + 1))
        else:
            after = jnp.full_like(n, peak)
        return jnp.where(n < warmup, peak * (n + 1) / (warmup + 1), after)

    return learning_rate


def make(cfg: Optim, total_steps: int, decay_mask: Any) -> optax.GradientTransformationExtraArgs:
    """AdamW under `schedule(cfg, total_steps)`, moments in float32.

    Arguments:
      decay_mask: a tree of bools like the parameters, True where weight decay applies (`nn.params.decay_mask`).
    Returns: an optax transformation; `update(grads, state, params, grad_norm=...)` clips by that global norm, and
      computes it when it is not given.
    """
    return optax.chain(
        clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity(),
        optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps, mu_dtype=jnp.float32),
        optax.add_decayed_weights(cfg.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule(cfg, total_steps)),
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Gradients times min(1, max_norm / (norm + 1e-6)): PyTorch's `clip_grad_norm_`, which published recipes used.

    `optax.clip_by_global_norm` leaves the 1e-6 out, and cannot be handed a norm that is already known.
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_norm: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
