"""Classifier-free guidance of a decoder (Ho and Salimans 2022; for tokens Sun et al. 2024, section 2.3).

    guided = Guided(gpt, scale=3.0, blank=256, outputs=256)
    made = sets.continuations(guided, params, cfg, prompts, Sampling(64, top_k=50), key=key)

Each prompt has two rows in the cache, the prompt and one of blanks. The next token is drawn from the mixture of their
logits, and both rows continue with it. `Guided` has the functions of a family that `decode` and `sets` call.

B prompts, T length, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.errors import InputError


@dataclass(frozen=True)
class Guided:
    """A decoder whose logits are blank + scale (prompt - blank). Frozen and hashable: a static argument of jit.

    Attributes:
      model: a family that decodes.
      scale: 1: the model as it is, with one row for each prompt; 0: as if there were no prompt; above 1: what the
        prompt makes more probable becomes still more probable.
      blank: the token that stands for each token of a prompt in the second row, as in training.
      outputs: only the first tokens of the vocabulary are drawn, this many; 0: all.

    Raises:
      InputError: a scale below 0.
    """

    model: Any
    scale: float
    blank: int
    outputs: int = 0

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise InputError(f"guidance is {self.scale}; it must be 0 or more, and 1 for none")

    def init_cache(self, cfg: Any, batch: int, length: int) -> Any:
        """A cache without tokens, for `batch` prompts."""
        return self.model.init_cache(cfg, batch if self.scale == 1 else 2 * batch, length)

    def for_decoding(self, params: Any, cfg: Any) -> Any:
        """The parameters in the layout that `decode_step` reads fastest."""
        return self.model.for_decoding(params, cfg)

    def prefill(
        self, params: Any, cfg: Any, tokens_BT: jax.Array, cache: Any, *, start_B: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Mixed logits [B, V] after each prompt, and the cache with both rows of each."""
        if self.scale != 1:
            tokens_BT = jnp.concatenate([tokens_BT, jnp.full_like(tokens_BT, self.blank)])
            start_B = None if start_B is None else jnp.concatenate([start_B, start_B])
        logits_BV, cache = self.model.prefill(params, cfg, tokens_BT, cache, start_B=start_B)
        return self._mixed(logits_BV), cache

    def decode_step(self, params: Any, cfg: Any, token_B: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Mixed logits [B, V] of the token after `token_B`, and the cache with it in both rows."""
        token_B = token_B if self.scale == 1 else jnp.concatenate([token_B, token_B])
        logits_BV, cache = self.model.decode_step(params, cfg, token_B, cache)
        return self._mixed(logits_BV), cache

    def _mixed(self, logits_BV: jax.Array) -> jax.Array:
        logits_BV = logits_BV[:, : self.outputs] if self.outputs else logits_BV
        if self.scale == 1:
            return logits_BV
        prompt_BV, blank_BV = jnp.split(logits_BV, 2)
        return blank_BV + self.scale * (prompt_BV - blank_BV)
