"""The heads: functions over hidden states, whose parameters are in the tree when `Config.heads` names them.

B batch, T length, P predicted positions, D width, E embedding width, C labels, V vocabulary.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.nn import layers

if TYPE_CHECKING:
    from transformer_jax.models.bert import Config

Params = Any

POOLER_ACTIVATIONS = layers.ACTIVATIONS | {"tanh": jnp.tanh}


def mlm_states(params: Params, cfg: "Config", x_BPD: jax.Array) -> jax.Array:
    """The states that the masked-LM head's output matrix multiplies, [B, P, E]: dense layer, activation and norm.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BPD: hidden states, of `apply`.
    """
    if cfg.head_transform:
        return _transformed(params, cfg, x_BPD)
    p = params["mlm"]
    h_BPE = layers.ACTIVATIONS[cfg.activation](layers.dense(p["transform"], x_BPD, out=None))
    return layers.norm(p["norm"], h_BPE, cfg.norm, cfg.norm_eps)


def _transformed(params: Params, cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    """The states that the heads read: with `head_transform` after a dense layer, activation and norm."""
    if not cfg.head_transform:
        return x_BTD
    p = params["transform"]
    h_BTE = layers.ACTIVATIONS[cfg.activation](layers.dense(p["dense"], x_BTD, out=None))
    return layers.norm(p["norm"], h_BTE, cfg.norm, cfg.norm_eps)


def mlm_kernel(params: Params, cfg: "Config") -> tuple[jax.Array, jax.Array]:
    """The output matrix [E, V] and its bias [V] in `params`, for `losses.linear_cross_entropy` of `mlm_states`.

    `cfg` says whether the matrix is tied.
    """
    p = params["mlm"]
    return params["embed"]["token"]["embedding"].T if cfg.tie_embeddings else layers.matrix(p), p["bias"]


def mlm(params: Params, cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    """Masked-LM logits [B, T, V] float32.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
    """
    kernel_EV, bias_V = mlm_kernel(params, cfg)
    h_BTE = mlm_states(params, cfg, x_BTD)
    axes = ("batch", "length", "vocab")
    return bias_V + sharding.einsum("BTD,DV->BTV", h_BTE, kernel_EV.astype(h_BTE.dtype), out=axes, dtype=jnp.float32)


def summary(cfg: "Config", x_BTD: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """The state of a whole text, [B, 1, D]: as `cfg.pooling` says, its first token's, its last one's, or the mean.

    Args:
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
      lengths: [B], tokens of each row before its padding, which a mean does not include; None: no padding.
    """
    if cfg.pooling == "first":
        return layers.token(x_BTD, 0)
    if cfg.pooling == "last":
        return layers.last_token(x_BTD, lengths)
    if cfg.pooling == "padded":
        return layers.last_token(x_BTD, None)
    T = x_BTD.shape[1]
    ends_B = jnp.full(len(x_BTD), T) if lengths is None else jnp.maximum(lengths, 1)
    weights_BT1 = ((jnp.arange(T) < ends_B[:, None]) / ends_B[:, None])[..., None]
    mean_B1D = jnp.sum(x_BTD * weights_BT1.astype(x_BTD.dtype), axis=1, keepdims=True)
    return sharding.constrain(mean_B1D, ("batch", None, None))


def pooled(params: Params, cfg: "Config", x_BTD: jax.Array, *, lengths: jax.Array | None = None) -> jax.Array:
    """The `summary` of a text after the pooler, [B, D].

    The pooler is a dense layer and an activation; with `head_transform` it is the transform that all heads share.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
      lengths: [B], tokens of each row before its padding, which a mean does not include; None: no padding.
    """
    x_B1D = summary(cfg, x_BTD, lengths)
    with sharding.replicated_length():
        if cfg.head_transform:
            return _transformed(params, cfg, x_B1D)[:, 0]
        h_BD = layers.dense(params["pooler"], x_B1D, out=None)[:, 0]
    return POOLER_ACTIVATIONS[cfg.pooler_activation](h_BD)


def pair(
    params: Params,
    cfg: "Config",
    x_BTD: jax.Array,
    *,
    lengths: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Logits [B, 2]: 0, the second text follows the first (NSP) or both are in order (SOP); 1, not.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
      lengths: as for `pooled`.
      key: the random key for dropout, which ALBERT's head has and BERT's has not; None: no dropout.
    """
    return _over_pooled(params["pair"], params, cfg, x_BTD, lengths, key)


def classify(
    params: Params,
    cfg: "Config",
    x_BTD: jax.Array,
    *,
    lengths: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Logits of the labels [B, C] (C = 1: the value itself, for regression).

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
      lengths: as for `pooled`.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    return _over_pooled(params["classification"], params, cfg, x_BTD, lengths, key)


def choose(
    params: Params,
    cfg: "Config",
    x_BTD: jax.Array,
    *,
    lengths: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """A score for each row [B]; of the choices of one question, each a row, the highest is the answer.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
      lengths: as for `pooled`.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    return _over_pooled(params["choice"], params, cfg, x_BTD, lengths, key)[:, 0]


def _over_pooled(
    p: Any, params: Params, cfg: "Config", x_BTD: jax.Array, lengths: jax.Array | None, key: jax.Array | None
) -> jax.Array:
    x_BD = layers.dropout(pooled(params, cfg, x_BTD, lengths=lengths), cfg.dropout, key)
    with sharding.replicated_length():
        x_B1D = sharding.constrain(x_BD.astype(jnp.float32)[:, None], ("batch", None, None))
        return layers.dense(p, x_B1D, out=None)[:, 0]


def tag(params: Params, cfg: "Config", x_BTD: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Logits of each token's labels [B, T, C] float32.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    x_BTD = layers.dropout(_transformed(params, cfg, x_BTD), cfg.dropout, key)
    return layers.dense(params["tokens"], x_BTD.astype(jnp.float32), out=None)


def spans(params: Params, cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    """Logits [B, T, 2] float32 of the answer's first and last token (Devlin et al. 2019, section 4.2).

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
    """
    return layers.dense(params["span"], _transformed(params, cfg, x_BTD).astype(jnp.float32), out=None)


def discriminate(params: Params, cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    """Logits [B, T] float32, above 0 where the token was replaced (Clark et al. 2020, section 2).

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BTD: hidden states, of `apply`.
    """
    p = params["discriminator"]
    h_BTD = layers.ACTIVATIONS[cfg.activation](layers.dense(p["transform"], x_BTD, out=None))
    return layers.dense(p["out"], h_BTD.astype(jnp.float32), out=None)[..., 0]
