"""A loss of one's own in a task that ships: focal cross-entropy for a language model (Lin et al. 2017, section 3).

    transformer-jax train own_loss.py --task.gamma 2 --workdir runs/focal
    transformer-jax predict runs/focal "def add(" --with own_loss.py

Data, reported numbers, samples and everything else stay CausalLM's, so runs with another gamma compare with each other.
B batch, T length, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax import models
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.tasks import CausalLM


# --8<-- [start:loss]
@dataclass(frozen=True)
class FocalLM(CausalLM):
    gamma: float = 1.0
    """A token that the model gives the probability p counts (1 - p)^gamma as much; 0: plain cross-entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma != 0 and self.gamma < 1:
            raise InputError(f"task.gamma = {self.gamma}: give 0 or at least 1; between, the gradient has no bound")

    def loss(self, params: Any, model_cfg: Any, batch: Any, *, key: jax.Array | None = None) -> Any:
        """What training minimises, its weight, and the sums to report, which have no gradient."""
        logits_BTV = models.family(model_cfg).apply(params, model_cfg, batch["inputs"], key=key)
        logp_BTV = jax.nn.log_softmax(logits_BTV)
        logp_BT = jnp.take_along_axis(logp_BTV, batch["targets"][..., None], axis=-1)[..., 0]
        weights_BT, weight = batch["weights"], batch["weights"].sum()
        focal = -((1 - jnp.exp(logp_BT)) ** self.gamma * logp_BT * weights_BT).sum()
        return focal, weight, {"loss": (-(logp_BT * weights_BT).sum(), weight)}


# --8<-- [end:loss]


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=128, width=128, num_layers=2, num_heads=4),
        data=TextCorpus(tokenizer=Bytes(), length=128),
        task=FocalLM(),
        train=Train(steps=200, batch_size=16),
    )
