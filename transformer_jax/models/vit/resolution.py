"""The same model for images of another size."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from transformer_jax.models.vit import Config

Params = Any


def resample_positions(params: Params, cfg: "Config", image_size: int | tuple[int, int]) -> "tuple[Params, Config]":
    """(params, cfg) of the same model for images of another size, with interpolated positions.

    Interpolation is bicubic without antialiasing, with half-pixel centres, as in PyTorch and so in DINO and in
    Transformers' `interpolate_pos_encoding` (big_vision's is linear, timm's antialiased), or with antialiasing where
    `cfg.interpolate` says so. sincos2d positions are functions of the new size.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      image_size: rows and columns of pixels; one number: a square.

    Raises:
      InputError: patches do not divide this size.
    """
    new = dataclasses.replace(cfg, image_size=image_size)
    if cfg.position != "learned" or new.grid == cfg.grid:
        return params, new
    interpolation = _antialiased if cfg.interpolate == "antialiased" else _bicubic
    down_yY, across_xX = (interpolation(old, now) for old, now in zip(cfg.grid, new.grid, strict=True))

    def resampled(table: Any) -> Any:
        """A table [..., tokens, D] with its rows of the patches interpolated."""
        end = cfg.num_positioned + cfg.num_patches
        special, patches, queries = jnp.split(table, (cfg.num_positioned, end), axis=-2)
        grid = jnp.reshape(patches, (*table.shape[:-2], *cfg.grid, cfg.width))
        grid = jnp.einsum("yY,xX,...YXD->...yxD", down_yY, across_xX, grid, precision="highest").astype(table.dtype)
        return jnp.concatenate([special, grid.reshape(*table.shape[:-2], -1, cfg.width), queries], axis=-2)

    position = {"embedding": resampled(params["embed"]["position"]["embedding"])}
    params = {**params, "embed": {**params["embed"], "position": position}}
    if cfg.layer_positions:
        params["layer_positions"] = {"embedding": resampled(params["layer_positions"]["embedding"])}
    return params, new


def resized(params: Params, cfg: "Config", wanted: "Config", log: Callable[[str], None]) -> Params:
    """The parameters of `cfg` for the image size and the queries of `wanted`, with a line to `log` for each change.

    Queries that `cfg` has not begin with a position of zeros.
    """
    if cfg.sides != wanted.sides:
        log(f"from images of {cfg.image_size} pixels to {wanted.image_size}")
        params, cfg = resample_positions(params, cfg, wanted.image_size)
    if cfg.query_tokens != wanted.query_tokens and cfg.position == "learned":
        log(f"from {cfg.query_tokens} queries to {wanted.query_tokens}")
        kept = min(cfg.query_tokens, wanted.query_tokens)

        def counted(table: Any, others: int) -> Any:
            missing = [(0, 0)] * (table.ndim - 2) + [(0, wanted.query_tokens - kept), (0, 0)]
            return jnp.pad(table[..., : others + kept, :], missing)

        others = cfg.num_positioned + cfg.num_patches
        position = {"embedding": counted(params["embed"]["position"]["embedding"], others)}
        params = {**params, "embed": {**params["embed"], "position": position}}
        if cfg.layer_positions:
            table = params["layer_positions"]["embedding"]
            params["layer_positions"] = {"embedding": counted(table, others)}
        if kept:
            params["queries"] = {"embedding": counted(params["queries"]["embedding"], 0)}
    return params


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
