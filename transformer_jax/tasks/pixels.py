"""Shared by the tasks of images: the check of the model's input, and functions without a sharding of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType

from transformer_jax import sharding
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.errors import InputError


def check(model_cfg: Any, preprocess: Preprocess) -> None:
    """Refuses a model whose images have another size or other channels than those that are prepared.

    Args:
      model_cfg: the model's Config.
      preprocess: the preprocessing of the task. A model that resamples its positions (`interpolate`) takes every size.

    Raises:
      InputError: which setting is to be changed.
    """
    fixed = getattr(model_cfg, "interpolate", "never") == "never"
    if fixed and sides(model_cfg.image_size) != preprocess.sides:
        raise InputError(
            f"model.image_size is {model_cfg.image_size}, but task.preprocess.size is {preprocess.size}; set one to "
            "the other"
        )
    if model_cfg.channels != len(preprocess.mean):
        raise InputError(
            f"model.channels is {model_cfg.channels}, but task.preprocess.mean is {preprocess.mean}; give a number for "
            "each channel"
        )


def in_auto_mesh(
    f: Callable[..., Any],
    *arrays: jax.Array,
    out: Sequence[sharding.Axes],
    shapes: Sequence[tuple[int, ...]] | None = None,
) -> tuple[jax.Array, ...]:
    """The results of f, which is written without regard to sharding: in an Explicit mesh the compiler shards inside it.

    Args:
      f: gives a tuple of arrays; it must not close over arrays.
      *arrays: f's arguments.
      out: the logical axes of each result.
      shapes: the shapes of the results; None: those of the last arguments.
    """
    if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        shapes = [x.shape for x in arrays[-len(out) :]] if shapes is None else shapes
        specs = tuple(sharding.specs(axes, shape)[1] for axes, shape in zip(out, shapes, strict=True))
        return jax.sharding.auto_axes(f, out_sharding=specs)(*arrays)
    return tuple(sharding.constrain(x, axes) for x, axes in zip(f(*arrays), out, strict=True))
