"""One file per task: from data to batches, loss, reported numbers and predictions."""

from transformer_jax.tasks.causal_lm import CausalLM
from transformer_jax.tasks.classification import Classification

__all__ = ["CausalLM", "Classification"]
