"""From images to hidden states: patches and tokens, blocks, final norm.

B batch, Y and X pixels, C channels, P values of a patch, T tokens, D width.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.errors import InputError
from transformer_jax.models.vit.resolution import resample_positions
from transformer_jax.nn import block, layers, positions, stack
from transformer_jax.nn.masks import Mask

if TYPE_CHECKING:
    from transformer_jax.models.vit import Config

Params = Any


def hidden(params: Params, cfg: "Config", images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Hidden states after the final norm, [B, T, D] in cfg.dtype.

    First the special tokens (class, distillation, registers), then the patches row by row (with patch dropout and a
    key, those that are not dropped), then the queries of a detector.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      images_BYXC: floats, normalised.
      key: the random key for dropout, stochastic depth and patch dropout; None: evaluation, without any of them.

    Raises:
      InputError: images of another size than the config's, where positions are not interpolated, or integers.
    """
    return trunk(params, cfg, images_BYXC, key)


def trunk(
    params: Params, cfg: "Config", images_BYXC: jax.Array, key: jax.Array | None, *, num_outputs: int | None = None
) -> jax.Array:
    """Hidden states after the final norm, [B, T or num_outputs, D].

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      images_BYXC: as for `hidden`.
      key: as for `hidden`.
      num_outputs: how many of the first tokens are computed by the last layer, in which the others are keys and values
        only; None: all.
    """
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    params = fitted(params, cfg, images_BYXC)
    x_BTD = embed(params, cfg, images_BYXC, embed_key)
    return blocks(params, cfg, x_BTD, blocks_key, num_outputs=num_outputs)


def blocks(
    params: Params, cfg: "Config", x_BTD: jax.Array, key: jax.Array | None, *, num_outputs: int | None = None
) -> jax.Array:
    """Hidden states after the final norm, [B, T or num_outputs, D], of tokens with their positions.

    Args:
      params: a tree with "blocks" and "final_norm".
      cfg: the settings of these.
      x_BTD: the result of `embed`, or some of its tokens.
      key: the random key for dropout and stochastic depth; None: evaluation, without either.
      num_outputs: as for `trunk`.
    """
    positions_L1TD = params["layer_positions"]["embedding"] if cfg.layer_positions else None
    deepest = max(cfg.num_layers - 1, 1)

    def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None, num_outputs: int | None = None) -> jax.Array:
        drop_path = cfg.stochastic_depth * layer / deepest if cfg.stochastic_depth else None
        x_BTD = block.apply(p, cfg, x_BTD, mask=Mask(), drop_path=drop_path, num_outputs=num_outputs, key=key)[0]
        return x_BTD if positions_L1TD is None else x_BTD + _after_layer(positions_L1TD, layer).astype(x_BTD.dtype)

    x_BTD = stack.run(
        one,
        params["blocks"],
        x_BTD,
        num_layers=cfg.num_layers,
        scan=cfg.scan_layers,
        remat=cfg.remat,
        key=key,
        last=None if num_outputs is None else functools.partial(one, num_outputs=num_outputs),
    )
    return layers.norm(params["final_norm"], x_BTD, cfg.norm, cfg.norm_eps)


def fitted(params: Params, cfg: "Config", images_BYXC: jax.Array) -> Params:
    """The parameters with positions for images of this size, interpolated where the config says so.

    Args:
      params: as for `hidden`.
      cfg: the model's config.
      images_BYXC: as for `hidden`.
    """
    if cfg.interpolate == "never" or images_BYXC.ndim != 4 or images_BYXC.shape[1:3] == cfg.sides:
        return params
    return resample_positions(params, cfg, (images_BYXC.shape[1], images_BYXC.shape[2]))[0]


def _after_layer(positions_L1TD: jax.Array, layer: Any) -> jax.Array:
    """The positions that are added after a layer, [1, T, D]; zeros after the last."""
    last = len(positions_L1TD)
    return jnp.where(layer < last, sharding.constrain(positions_L1TD, (None,) * 4)[jnp.minimum(layer, last - 1)], 0.0)


def embed(params: Params, cfg: "Config", images_BYXC: jax.Array, key: jax.Array | None) -> jax.Array:
    """Tokens and patches with their positions, [B, T, D].

    Args:
      params: as for `hidden`, with positions for images of this size.
      cfg: the model's config.
      images_BYXC: as for `hidden`.
      key: as for `hidden`.
    """
    if cfg.interpolate != "never" and images_BYXC.ndim == 4:
        cfg = dataclasses.replace(cfg, image_size=(images_BYXC.shape[1], images_BYXC.shape[2]))
    check_images(cfg, images_BYXC)
    p, queries = params["embed"], []
    dropout_key, patches_key = (None, None) if key is None else jax.random.split(key)
    with sharding.replicated_length():  # the parts that are concatenated need not divide
        x_BTD = layers.dense(p["patch"], patches(cfg, images_BYXC).astype(cfg.dtype), out=None)
        names = [name for name in ("class", "distillation", "registers") if name in p]
        special = [sharding.constrain(p[name]["embedding"], (None, None)).astype(cfg.dtype) for name in names]
        if cfg.position == "learned":
            table = sharding.constrain(p["position"]["embedding"], (None, None)).astype(cfg.dtype)
            x_BTD = x_BTD + table[cfg.num_positioned :][: cfg.num_patches]
            if cfg.query_tokens:
                query_QD = sharding.constrain(params["queries"]["embedding"], (None, None)).astype(cfg.dtype)
                queries = [query_QD + table[cfg.num_positioned + cfg.num_patches :]]
            special[: cfg.num_positioned] = [token + table[i] for i, token in enumerate(special[: cfg.num_positioned])]
        else:
            x_BTD = x_BTD + positions.sincos_2d(*cfg.grid, cfg.width).astype(cfg.dtype)
        if patches_key is not None and cfg.patch_dropout > 0.0:
            x_BTD = _some_patches(cfg, x_BTD, patches_key)
        spread = [jnp.broadcast_to(tokens, (x_BTD.shape[0], *tokens.shape)) for tokens in (*special, *queries)]
        spread = [sharding.constrain(tokens, ("batch", None, None)) for tokens in spread]
        x_BTD = jnp.concatenate([*spread[: len(special)], x_BTD, *spread[len(special) :]], axis=1)
        x_BTD = layers.norm(p["norm"], x_BTD, cfg.norm, cfg.norm_eps) if cfg.embedding_norm else x_BTD
        x_BTD = layers.dropout(x_BTD, cfg.dropout, dropout_key)
    return sharding.constrain(x_BTD, ("batch", "length", None), name="the tokens of an image")


def check_images(cfg: Any, images_BYXC: jax.Array) -> None:
    """Raises `InputError` for images `images_BYXC` of another size than that of `cfg`, or of integers."""
    wanted = (*cfg.sides, cfg.channels)
    if images_BYXC.ndim != 4 or images_BYXC.shape[1:] != wanted:
        raise InputError(
            f"images have the shape {images_BYXC.shape}; the model's are {('B', *wanted)}, so resize the images, or "
            "the model with resample_positions"
        )
    if not jnp.issubdtype(images_BYXC.dtype, jnp.floating):
        raise InputError(f"images are {images_BYXC.dtype}; scale and normalise them to floats first")


def patches(cfg: Any, images_BYXC: jax.Array) -> jax.Array:
    """The images' patches, row by row, each flattened in the order (channel, row, column), [B, N, P].

    Args:
      cfg: the model's config.
      images_BYXC: float images [B, Y, X, C] of the config's size.
    """
    B, (rows, columns), side, C = images_BYXC.shape[0], cfg.grid, cfg.patch_size, cfg.channels
    # One axis at a time: in an Explicit mesh a reshape of several is ambiguous.
    split = images_BYXC.reshape(B, rows, side, columns * side, C).reshape(B, rows, side, columns, side, C)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(B, rows * columns, C, side, side).reshape(B, rows * columns, -1)


def unsplit(cfg: "Config", patches_BNP: jax.Array) -> jax.Array:
    """The images [B, Y, X, C] of patches: the inverse of `patches`.

    Args:
      cfg: the model's config.
      patches_BNP: all patches of each image.
    """
    (rows, columns), side = cfg.grid, cfg.patch_size
    split = patches_BNP.reshape(-1, rows, columns, cfg.channels, side, side).transpose(0, 1, 4, 2, 5, 3)
    return split.reshape(-1, *cfg.sides, cfg.channels)


def _some_patches(cfg: "Config", x_BTD: jax.Array, key: jax.Array) -> jax.Array:
    """A random choice of each row's patches, in their order, the same number for each row."""
    B, T = x_BTD.shape[:2]
    kept = max(1, round(T * (1.0 - cfg.patch_dropout)))
    chosen_BK = jnp.sort(jnp.argsort(jax.random.uniform(key, (B, T)), axis=1)[:, :kept], axis=1)
    return layers.gather(x_BTD, chosen_BK, out=("batch", None, None))
