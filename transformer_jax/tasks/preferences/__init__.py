"""Direct preference optimisation (Rafailov et al. 2023): of two replies to a prompt, the better one gains likelihood.

The loss of a pair is equation 7: -log sigmoid(beta (r_chosen - r_rejected)), r a reply's log-likelihood in the model
minus that in the reference, which is frozen. The loss falls as well where the likelihoods of both replies fall, so
every row shows them: `log_likelihood_chosen` and `log_likelihood_rejected`, in nats per reply.

B pairs, T length, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import losses, models
from transformer_jax.contracts import Evaluation, Outputs, Prepared, Sums, Task
from transformer_jax.data.chat_templates import Template
from transformer_jax.errors import InputError
from transformer_jax.tasks import encoder
from transformer_jax.tasks.chat import Chat
from transformer_jax.tasks.preferences import pairs
from transformer_jax.tasks.preferences.pairs import Preferences as Preferences

WRITTEN = ("loss", "reward_accuracy", "reward_margin", "log_likelihood_chosen", "log_likelihood_rejected")


@dataclass(frozen=True)
class DPO(Chat):
    """Equation 7 on pairs of replies; `predict` holds a conversation, as that of a chat."""

    template: Template = field(default_factory=Template)
    """How a conversation is written; empty: the tokenizer's own chat template."""
    beta: float = 0.1
    """How far the model may move from the reference: larger, less."""
    sft_weight: float = 0.0
    """Weight of the cross-entropy of the chosen reply, per token, which is added to the loss."""
    reference: str = ""
    """The frozen model: a run, a step or a Hugging Face folder; empty: what the run starts from, `init_from`, of which
    a run that trains an adapter alone needs no second copy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise InputError(f"task.beta = {self.beta}: must be positive")
        if not 0 <= self.sft_weight < math.inf:
            raise InputError(f"task.sft_weight = {self.sft_weight}: must be 0 or more")
        if self.metrics or self.train_on != "assistant":
            raise InputError("task.metrics and task.train_on are settings of a chat; leave them out for preferences")

    def frozen(self, model_cfg: Any) -> Mapping[str, tuple[str, Any]]:
        """The reference."""
        return {"reference": (self.reference, model_cfg)}

    def example(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        T = data.length
        dtypes = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
        both = {
            f"{name}_{what}": jax.ShapeDtypeStruct((T,), dtype)
            for name in pairs.REPLIES
            for what, dtype in dtypes.items()
        }
        return both | {"weights": jax.ShapeDtypeStruct((), np.float32)}

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The encoded pairs.

        Raises:
          InputError: what `pairs.prepare` refuses, or a tokenizer with more ids than the model.
        """
        made = pairs.prepare(data, self.template, seed=seed, tokenizer=workdir_tokenizer)
        encoder.check_ids(model_cfg, made.tokenizer)
        held = {side: Evaluation(examples) for side, examples in made.sides.items()}
        return Prepared(
            made.sides["train"], held["validation"], made.facts, made.tokenizer, held.get("test"), made.identity
        )

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, Any], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, sums) over the pairs of a batch; the weight is the number of pairs."""
        reference = batch["reference"]
        chosen_B, rejected_B = log_likelihoods(params, model_cfg, batch, key=key)
        frozen = jax.lax.stop_gradient(log_likelihoods(reference.params, reference.config, batch))
        margin_B = self.beta * ((chosen_B - frozen[0]) - (rejected_B - frozen[1]))
        losses_B = -jax.nn.log_sigmoid(margin_B)
        if self.sft_weight:
            losses_B -= self.sft_weight * chosen_B / jnp.maximum(batch["chosen_weights"].sum(axis=-1), 1.0)
        weights_B = batch["weights"]
        shown = (losses_B, (margin_B > 0).astype(jnp.float32), margin_B, chosen_B, rejected_B)
        weight = weights_B.sum()
        sums = {name: ((x_B * weights_B).sum(), weight) for name, x_B in zip(WRITTEN, shown, strict=True)}
        return sums["loss"][0], weight, sums

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_pair"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The loss per pair, the share of pairs with the larger reward for the chosen reply, the mean difference of the
        rewards, and the mean log-likelihoods of the replies."""
        means = {name: sums[name][0] / sums[name][1] for name in WRITTEN}
        return {"loss_nats_per_pair": means.pop("loss"), **means}

    logits_and_states = Task.logits_and_states  # a pair has no logits of one text

    def score(self, *args: Any, **options: Any) -> dict[str, float | str]:
        """Nothing is generated."""
        return {}

    def tokens(self, data: Any) -> int:
        """The number of tokens of both replies with their prompts, padding included."""
        return 2 * data.length

    def flops(self, model_cfg: Any, data: Any) -> float:
        """The FLOPs of a training step on a pair: two replies, forward and backward, and forward in the reference."""
        return 2 * (1 + 1 / 3) * super().flops(model_cfg, data)


def log_likelihoods(
    params: Any, model_cfg: Any, batch: Mapping[str, Any], *, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The log-likelihoods of the chosen and of the rejected replies, float32 [B] each, in nats.

    Args:
      params: the parameters of a language model.
      model_cfg: its Config.
      batch: see `pairs`.
      key: the random key for dropout; None: no dropout.
    """
    family = models.family(model_cfg)

    def both(what: str) -> jax.Array:  # [B, 2, T] -> [2 B, T]: a pair stays on its device
        rows = jnp.stack([batch[f"{name}_{what}"] for name in pairs.REPLIES], axis=1)
        return rows.reshape(-1, rows.shape[-1])

    x_BTD = family.hidden(params, model_cfg, both("inputs"), key=key)
    cap = getattr(model_cfg, "logit_cap", 0.0)
    log_likelihoods_BT = losses.log_likelihoods(x_BTD, family.head(params, model_cfg), both("targets"), cap=cap)
    total_B2 = (log_likelihoods_BT * both("weights")).sum(axis=-1).reshape(-1, 2)
    return total_B2[:, 0], total_B2[:, 1]
