"""Masked patches, predicted from the others: the masked autoencoder (He et al. 2022, arXiv 2111.06377).

The encoder reads the visible patches alone. A small decoder reads its states, with one learned token in place of each
masked patch, and predicts the pixels of every patch. Fine-tuning drops it, like any head.

B batch, Y and X pixels, C channels, N patches, P values of a patch, T tokens, D width.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.models.vit import trunk
from transformer_jax.nn import block, layers, positions
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, normal

if TYPE_CHECKING:
    from transformer_jax.models.vit import Config

Params = Any


@dataclass(frozen=True)
class Decoder:
    """The decoder of a masked autoencoder; the other settings of its blocks are the encoder's."""

    layers: int = 0
    """Blocks; 0: there is no decoder."""
    width: int = 512
    """Of its states; a multiple of 4, for its positions."""
    heads: int = 16
    """Of its attention."""


class Reconstruction(NamedTuple):
    """The predictions of a batch.

    Attributes:
      patches: float32 [B, N, P], in the order of `trunk.patches`.
      is_masked: float32 [B, N]; 1 for a patch that the encoder has not read.
    """

    patches: jax.Array
    is_masked: jax.Array


def reconstruct(
    params: Params,
    cfg: "Config",
    images_BYXC: jax.Array,
    order_BN: jax.Array,
    visible: int,
    *,
    key: jax.Array | None = None,
) -> Reconstruction:
    """The prediction of every patch from the visible ones.

    Args:
      params: the parameters, as `init` returns them.
      cfg: with a `decoder`.
      images_BYXC: floats, normalised.
      order_BN: a permutation of each image's patches; the first ones are visible.
      visible: how many.
      key: the random key for dropout and stochastic depth; None: evaluation, without either.
    """
    p, small, S = params["decoder"], decoder_config(cfg), cfg.num_special
    embed_key, encoder_key, decoder_key = [None] * 3 if key is None else jax.random.split(key, 3)
    rank_BN = jnp.argsort(order_BN, axis=1)  # the inverse: the place of each patch in that order
    whole = dataclasses.replace(cfg, patch_dropout=0.0)
    x_BTD = sharding.constrain(trunk.embed(params, whole, images_BYXC, embed_key), ("batch", None, None))
    with sharding.replicated_length():
        seen_BTD = layers.gather(x_BTD[:, S:], order_BN[:, :visible], out=("batch", None, None))
        x_BTD = jnp.concatenate([x_BTD[:, :S], seen_BTD], axis=1)
        x_BTD = trunk.blocks(params, cfg, x_BTD, encoder_key)
        x_BTD = layers.dense(p["embed"], x_BTD, out=None)
        mask_D = p["mask"]["embedding"][0].astype(x_BTD.dtype)
        masked = (len(x_BTD), cfg.num_patches - visible, small.width)
        x_BND = jnp.concatenate([x_BTD[:, S:], jnp.broadcast_to(mask_D, masked)], axis=1)
        x_BND = layers.gather(x_BND, rank_BN, out=("batch", None, None))
        x_BND = x_BND + positions.sincos_2d(*cfg.grid, small.width).astype(x_BND.dtype)
        x_BTD = trunk.blocks(p, small, jnp.concatenate([x_BTD[:, :S], x_BND], axis=1), decoder_key)
        found_BNP = layers.dense(p["out"], x_BTD[:, S:], out=None).astype(jnp.float32)
    return Reconstruction(found_BNP, (rank_BN >= visible).astype(jnp.float32))


def decoder_config(cfg: "Config") -> "Config":
    """The settings of the blocks of the decoder of `cfg`."""
    return dataclasses.replace(
        cfg,
        width=cfg.decoder.width,
        num_layers=cfg.decoder.layers,
        num_heads=cfg.decoder.heads,
        mlp_width=None,
        position="sincos2d",
        layer_positions=False,
        layer_scale=0.0,
        stochastic_depth=0.0,
        decoder=Decoder(),
    )


def declare_decoder(cfg: "Config") -> dict[str, Any]:
    """The tree of `Param`s of the decoder of `cfg`."""
    small, values = decoder_config(cfg), cfg.channels * cfg.patch_size**2
    D, std = small.width, cfg.init_std
    return {
        "embed": layers.declare_dense(cfg.width, D, ("embed", None), bias=True, std=std),
        "mask": {"embedding": Param((1, D), (None, "embed"), normal(std), decay=False)},
        "blocks": params_lib.stack(block.declare(small), small.num_layers),
        "final_norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
        "out": layers.declare_dense(D, values, ("embed", None), bias=True, std=std),
    }
