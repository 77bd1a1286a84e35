"""What happens inside: hidden states, attention, and the patches that a prediction depends on.

L layers, B batch, N heads, T and S and U tokens, P patches, D width.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from transformer_jax import looking
from transformer_jax.models.vit.trunk import embed, fitted
from transformer_jax.nn import block
from transformer_jax.nn.masks import Mask

if TYPE_CHECKING:
    from transformer_jax.models.vit import Config

Params = Any


def hidden_states(params: Params, cfg: "Config", images_BYXC: jax.Array) -> jax.Array:
    """The residual stream before the first block and after each, without the final norm, [L + 1, B, T, D].

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      images_BYXC: floats, normalised.
    """
    last_BTD, x_LBTD = _through_layers(params, cfg, images_BYXC, lambda p, x_BTD: x_BTD)
    return jnp.concatenate([x_LBTD, last_BTD[None]])


def attention_weights(params: Params, cfg: "Config", images_BYXC: jax.Array) -> jax.Array:
    """The attention probabilities of each layer and head, float32 [L, B, N, T, T]; rows sum to 1.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      images_BYXC: floats, normalised.
    """
    return _through_layers(params, cfg, images_BYXC, lambda p, x_BTD: block.attention_weights(p, cfg, x_BTD))[1]


def _through_layers(
    params: Params, cfg: "Config", images_BYXC: jax.Array, look: Callable[[Any, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(states after the last block, look(parameters, input) of each layer, stacked)."""

    params = fitted(params, cfg, images_BYXC)

    def one(x_BTD: jax.Array, p: Any) -> tuple[jax.Array, jax.Array]:
        return block.apply(p, cfg, x_BTD, mask=Mask())[0], look(p, x_BTD)

    return jax.lax.scan(one, embed(params, cfg, images_BYXC, None), params["blocks"])


def rollout(w_LBNTT: jax.Array, cfg: "Config") -> jax.Array:
    """The share of each patch in what the head reads, float32 [B, rows, columns] (Abnar and Zuidema 2020, section 3).

    It is the product over the layers of the attention, averaged over heads, and the identity, half each. The head reads
    the class token, or the mean of the patches.

    Args:
      w_LBNTT: the result of `attention_weights`.
      cfg: the model's config.
    """
    flow_BTT, B = looking.rollout(w_LBNTT), w_LBNTT.shape[1]
    to_patches_BTP = flow_BTT[:, :, cfg.num_special :]
    read_BP = to_patches_BTP[:, 0] if cfg.has_class_token else jnp.mean(to_patches_BTP[:, cfg.num_special :], axis=1)
    return read_BP.reshape(B, *_grid(cfg, read_BP.shape[1]))


def _grid(cfg: "Config", patches: int) -> tuple[int, int]:
    """Rows and columns of this number of patches: the config's, or of an interpolated square."""
    return cfg.grid if patches == cfg.num_patches else (math.isqrt(patches), math.isqrt(patches))
