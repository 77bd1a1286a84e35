"""The same model for images of another size."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from transformer_jax.models.vit import Config

Params = Any


def resample_positions(params: Params, cfg: "Config", image_size: int) -> "tuple[Params, Config]":
    """(params, cfg) of the same model for images of another size, with interpolated positions.

    Interpolation is bicubic without antialiasing, with half-pixel centres, as in PyTorch and so in DINO and in
    Transformers' `interpolate_pos_encoding` (big_vision's is linear, timm's antialiased), or with antialiasing where
    `cfg.interpolate` says so. sincos2d positions are functions of the new size.

    Args:
      params: of `init`.
      cfg: the model's config.
      image_size: pixels of a side.

    Raises:
      InputError: patches do not divide this size.
    """
    new = dataclasses.replace(cfg, image_size=image_size)
    if cfg.position != "learned" or new.grid == cfg.grid:
        return params, new
    weights = (_antialiased if cfg.interpolate == "antialiased" else _bicubic)(cfg.grid, new.grid)
    table = params["embed"]["position"]["embedding"]
    special, patches = table[: cfg.num_positioned], table[cfg.num_positioned :]
    patches_YXD = jnp.reshape(patches, (cfg.grid, cfg.grid, -1))
    patches_yxD = jnp.einsum("yY,xX,YXD->yxD", weights, weights, patches_YXD, precision="highest")
    table = jnp.concatenate([special, patches_yxD.reshape(-1, cfg.width).astype(table.dtype)])
    return {**params, "embed": {**params["embed"], "position": {"embedding": table}}}, new


def resized(params: Params, cfg: "Config", wanted: "Config", log: Callable[[str], None]) -> Params:
    """The parameters of `cfg` for the image size of `wanted`, with a line to `log` where it is another."""
    if cfg.image_size == wanted.image_size:
        return params
    log(f"from images of {cfg.image_size} pixels to {wanted.image_size}")
    return resample_positions(params, cfg, wanted.image_size)[0]


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The weight of a neighbour by its distance, 0 from 2 on (Keys 1981)."""
    d = np.abs(distance)
    inner, outer = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))


def _bicubic(old: int, new: int) -> np.ndarray:
    """The matrix float32 [new, old] that interpolates `old` values at `new` places, with PyTorch's a of -3/4. The value
    at the border is repeated beyond it."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        neighbour = np.floor(at) + tap
        np.add.at(weights, (np.arange(new), np.clip(neighbour, 0, old - 1).astype(int)), _cubic(at - neighbour, -0.75))
    return weights.astype(np.float32)


def _antialiased(old: int, new: int) -> np.ndarray:
    """The same with a of -1/2, with a wider kernel where there are fewer places than values, and nothing beyond the
    border, as in Pillow and in PyTorch with `antialias`."""
    scale = old / new
    distance = np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * scale
    weights = _cubic(distance / max(scale, 1.0), -0.5)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
