"""One file per task: from data to batches, loss, reported numbers and predictions."""

from transformer_jax.tasks.causal_lm import CausalLM

__all__ = ["CausalLM"]
