"""From hidden states to logits: pooling and the heads.

B batch, T tokens, D width, K classes.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.models.vit.trunk import trunk
from transformer_jax.nn import block, layers

if TYPE_CHECKING:
    from transformer_jax.models.vit import Config

Params = Any


def apply(params: Params, cfg: "Config", images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Logits [B, K] float32: `head_logits` of the `hidden` states.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      images_BYXC: as for `hidden`.
      key: as for `hidden`.
    """
    return head_logits(params, cfg, trunk(params, cfg, images_BYXC, key, num_outputs=_num_outputs(cfg)))


def features(params: Params, cfg: "Config", images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """The head's input, [B, D], [B, 2 D] or [B, pre_logits]: `pooled` of the `hidden` states.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      images_BYXC: as for `hidden`.
      key: as for `hidden`.
    """
    return pooled(params, cfg, trunk(params, cfg, images_BYXC, key, num_outputs=_num_outputs(cfg)))


def _num_outputs(cfg: "Config") -> int | None:
    """How many of the first tokens the heads read; None: all, or the length is sharded and must not change."""
    if cfg.pool != "class" or cfg.layer_positions or sharding.shards("length") > 1:
        return None
    return 2 if cfg.distillation == "head" else 1


def pooled(params: Params, cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    """The head's input, [B, D], [B, 2 D] or [B, pre_logits]: what `cfg.pool` names, then a tanh layer if there is one.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      x_BTD: the result of `hidden`.
    """
    parts_B1D = [layers.token(x_BTD, 0)] if cfg.has_class_token else []
    if cfg.num_special and cfg.pool != "class":  # without the special tokens a sharded length would not divide
        x_BTD = sharding.constrain(x_BTD, ("batch", None, None))[:, cfg.num_special :]
    if cfg.pool in ("mean", "both"):
        parts_B1D.append(sharding.constrain(jnp.mean(x_BTD, axis=1, keepdims=True), ("batch", None, None)))
    with sharding.replicated_length():
        if cfg.pool == "map":
            parts_B1D = [_probed(params["pool"], cfg, sharding.constrain(x_BTD, ("batch", None, None)))]
        x_B1D = parts_B1D[0] if len(parts_B1D) == 1 else jnp.concatenate(parts_B1D, axis=-1)
        if cfg.pre_logits:
            x_B1D = jnp.tanh(layers.dense(params["pre_logits"], x_B1D, out=None))
    return x_B1D[:, 0]


def _probed(p: Any, cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    """big_vision's attention pooling, [B, 1, D]: a learned query, then an MLP with its norm and residual."""
    probe_1D = sharding.constrain(p["probe"]["embedding"], (None, None)).astype(x_BTD.dtype)
    probe_B1D = jnp.broadcast_to(probe_1D, (x_BTD.shape[0], *probe_1D.shape))
    y_B1D = block.cross_attention(p["attention"], cfg, sharding.constrain(probe_B1D, ("batch", None, None)), x_BTD)
    return y_B1D + layers.mlp(p["mlp"], layers.norm(p["norm"], y_B1D, cfg.norm, cfg.norm_eps), cfg.activation)


def head_logits(params: Params, cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    """Logits [B, K] float32; of a model with two heads, their mean (Touvron et al. 2021).

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      x_BTD: the result of `hidden`.
    """
    if cfg.distillation == "head":
        own_BK, distilled_BK = distilled_logits(params, cfg, x_BTD)
        return (own_BK + distilled_BK) / 2
    return _head(params["head"], pooled(params, cfg, x_BTD))


def distilled_logits(params: Params, cfg: "Config", x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits of the class token's head, of the distillation token's), [B, K] float32 each.

    Args:
      params: as for `hidden`.
      cfg: with distillation="head".
      x_BTD: the result of `hidden`.
    """
    own_B1D, distilled_B1D = (layers.token(x_BTD, i) for i in (0, 1))
    return _head(params["head"], own_B1D[:, 0]), _head(params["distillation_head"], distilled_B1D[:, 0])


def segment(params: Params, cfg: "Config", images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Logits of the parts of each patch, float32 [B, rows, columns, K], by the head applied to each patch alone.

    Rows and columns are those of the patches times `cfg.head_grid`. With a grid of 1 this is Segmenter's linear decoder
    (Strudel et al. 2021, arXiv 2105.05633).

    Args:
      params: as for `hidden`.
      cfg: with pool="mean", so that the head reads states of the model's width.
      images_BYXC: as for `hidden`.
      key: as for `hidden`; there is no patch dropout.
    """
    x_BTD = sharding.constrain(trunk(params, cfg, images_BYXC, key), ("batch", None, None))[:, cfg.num_special :]
    B, s = len(x_BTD), cfg.head_grid
    rows, columns = (side // cfg.patch_size for side in images_BYXC.shape[1:3])
    with sharding.replicated_length():
        logits_BTK = layers.dense(params["head"], x_BTD.astype(jnp.float32), out=None)
    # One dimension at a time, as Explicit meshes need it.
    parts = logits_BTK.reshape(B, rows, columns, -1).reshape(B, rows, columns, s, s, cfg.num_classes)
    parts = parts.transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(B, rows * s, columns, s, cfg.num_classes).reshape(B, rows * s, columns * s, cfg.num_classes)


def _head(p: Any, x_BD: jax.Array) -> jax.Array:
    with sharding.replicated_length():
        x_B1D = sharding.constrain(x_BD.astype(jnp.float32)[:, None], ("batch", None, None))
        return layers.dense(p, x_B1D, out=None)[:, 0]
