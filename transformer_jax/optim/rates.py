"""The settings of every optimiser: the learning rate over time and per parameter, and the clipping of the gradient."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from transformer_jax import patterns
from transformer_jax.contracts import LAUNCH
from transformer_jax.errors import InputError
from transformer_jax.optim import groups as groups_lib


@dataclass(frozen=True)
class Rates:
    """The settings that every optimiser of the package inherits, so that `--optim.peak-lr` means the same for all.

    Every count is in updates. For update n (from 0) and w = `warmup_steps`, the learning rate is
    `peak_lr * (n + 1) / (w + 1)` while n < w. Then, with d = `decay_steps` (0: the run's last step) and
    final = `final_lr_fraction * peak_lr`:

    - "cosine": final + (peak - final) * (1 + cos(pi * (n - w) / (d - w))) / 2, and final after d
    - "linear": the straight line from peak at w to final at d, and final after d
    - "rsqrt": peak * sqrt((w + 1) / (n + 1)), the schedule of Vaswani et al. 2017, section 5.3; it has no end
    - "flat_rsqrt": the same after w, and peak before: no warm-up (Raffel et al. 2020, "T5", section 3.1.2)
    - "constant": peak
    - "wsd": peak, then the straight line to final over the `cooldown_steps` before d (warm-up, stable, decay: Hu et al.
      2024, "MiniCPM", section 4)
    """

    peak_lr: float = 6e-4
    """The highest learning rate, reached after the warm-up."""
    lr_schedule: Literal["cosine", "linear", "rsqrt", "flat_rsqrt", "constant", "wsd"] = "cosine"
    """The form of the schedule after the warm-up, as above."""
    warmup_steps: int = field(default=0, metadata=LAUNCH)
    """Updates over which the learning rate rises linearly."""
    decay_steps: int = field(default=0, metadata=LAUNCH)
    """The update at which the decay ends; 0: the run's last step."""
    cooldown_steps: int = field(default=0, metadata=LAUNCH)
    """wsd only: updates over which the learning rate falls at the end."""
    final_lr_fraction: float = 0.1
    """The last learning rate as a share of the highest."""
    weight_decay: float = 0.1
    """An update subtracts the learning rate times this times the matrix."""
    clip_norm: float = 1.0
    """The global norm of the gradient is clipped to this; 0: it is not clipped."""
    layer_decay: float = 1.0
    """The learning rate of layer i of L is multiplied by this to the power L - i. The embeddings are i = -1, and the
    heads i = L (the idea is that of ELECTRA, Clark et al. 2020, appendix B, which counts layers differently)."""
    groups: tuple[tuple[str, float], ...] = ()
    """(pattern, factor): the learning rate of the parameters whose path the regular expression matches, such as
    "embed/", "blocks/[0-5]/" (the first six layers) or "bias$", is multiplied by the factor; 0 freezes them, to the
    bit. Where several patterns match, all their factors apply."""

    def __post_init__(self) -> None:
        for pattern, factor in self.groups:
            patterns.refuse_exploding(pattern, "optim.groups")
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"optim.groups has {pattern!r}, which is no regular expression ({error})") from None
            if not 0 <= factor < float("inf"):
                raise InputError(f"optim.groups: the factor of {pattern!r} is {factor}; it must be 0 or more")
        names = ("cosine", "linear", "rsqrt", "flat_rsqrt", "constant", "wsd")
        self._require(self.lr_schedule in names, "lr_schedule", f"it must be one of {', '.join(names)}")
        self._require(0 < self.peak_lr < float("inf"), "peak_lr", "it must be above 0")
        self._require(self.warmup_steps >= 0, "warmup_steps", "it must be at least 0")
        self._require(self.decay_steps >= 0, "decay_steps", "it must be at least 0 (0: the run's last step)")
        self._require(self.cooldown_steps >= 0, "cooldown_steps", "it must be at least 0")
        self._require(0 <= self.final_lr_fraction <= 1, "final_lr_fraction", "it must be in [0, 1]: final over peak")
        self._require(self.weight_decay >= 0, "weight_decay", "it must be at least 0")
        self._require(0 < self.layer_decay <= 1, "layer_decay", "it must be in (0, 1]; 1 is off")
        self._require(self.clip_norm >= 0, "clip_norm", "it must be at least 0 (0: no clipping)")
        if (self.lr_schedule == "wsd") != (self.cooldown_steps > 0):
            fix = "wsd decays over the last cooldown_steps, and no other schedule uses them"
            raise InputError(f"optim.cooldown_steps is {self.cooldown_steps} with schedule {self.lr_schedule!r}; {fix}")

    def _require(self, ok: bool, field: str, fix: str) -> None:
        if not ok:
            raise InputError(f"optim.{field} is {getattr(self, field)!r}; {fix}")

    def schedule(self, total_updates: int) -> optax.Schedule:
        """The learning rate as a function of the number of updates applied so far: int32 scalar -> float32 scalar.

        Args:
          total_updates: updates of the whole run.

        Raises:
          InputError: warm-up and cool-down are longer than the schedule.
        """
        peak, final, warmup = self.peak_lr, self.peak_lr * self.final_lr_fraction, self.warmup_steps
        end = self.decay_steps or total_updates
        if self.lr_schedule in ("cosine", "linear", "wsd") and warmup + self.cooldown_steps > end:
            sizes = f"{warmup} + cooldown_steps {self.cooldown_steps}" if self.cooldown_steps else f"{warmup}"
            raise InputError(
                f"optim.warmup_steps {sizes} is more than the {end} steps that the {self.lr_schedule} schedule has; "
                "lower it"
            )

        def learning_rate(count: jax.typing.ArrayLike) -> jax.Array:
            n = jnp.asarray(count, jnp.float32)
            start = end - self.cooldown_steps if self.lr_schedule == "wsd" else warmup
            done = jnp.clip((n - start) / max(end - start, 1), 0.0, 1.0)  # from 0 at the decay's start to 1 at its end
            if self.lr_schedule == "cosine":
                after = final + (peak - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
            elif self.lr_schedule in ("linear", "wsd"):
                after = peak + (final - peak) * done
            elif self.lr_schedule in ("rsqrt", "flat_rsqrt"):
                after = peak * jnp.sqrt((warmup + 1) / (n + 1))
            else:
                after = jnp.full_like(n, peak)
            rising = peak if self.lr_schedule == "flat_rsqrt" else peak * (n + 1) / (warmup + 1)
            return jnp.where(n < warmup, rising, after)

        return learning_rate

    def lr_scales(self, declaration: Any) -> Any:
        """The factor of each parameter's learning rate, a tree like `declaration` (`groups.factors`)."""
        return groups_lib.factors(self.layer_decay, self.groups, declaration)
