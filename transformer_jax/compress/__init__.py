"""Smaller models: kernels in eight bits, here; as two factors, `low_rank`; fewer weights or heads, `pruning`.

    rule = Int8(target="blocks/")                             # or low_rank.LowRank(target="blocks/", share=0.5)
    params = rule.apply(params)                               # int8 "kernel", and float32 "scale" beside it
    family.apply(params, cfg, tokens)                         # `nn.layers.dense` multiplies by both
    declaration = rule.declare(family.declare(cfg))           # of this tree: shardings, restore targets, counts
    params = unpack(params)                                   # float32 kernels, the family's own tree again

In eight bits weights alone are rounded, symmetrically, with one scale for each output: w = scale * q with q in
[-127, 127] and scale = max |w| / 127 over the inputs. No data are needed.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from transformer_jax import patterns
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, Tree

KERNELS = ("/kernel", "/low_a", "/low_b")
"""How the paths of kernels end, in a model of either kind."""


class Rule(Protocol):
    """How kernels are stored: a frozen dataclass."""

    def declare(self, declaration: Tree) -> Tree:
        """The tree of `Param` of a model whose kernels are stored so.

        Args:
          declaration: the family's own tree.
        """
        ...

    def apply(self, params: Tree) -> Tree:
        """The parameters of that tree.

        Args:
          params: float parameters, the family's own tree.
        """
        ...


@dataclass(frozen=True)
class Int8:
    """Which kernels are stored in eight bits."""

    target: str = ""
    """A regular expression, searched in the paths of the kernels: "blocks/" is all of the blocks'; "": none."""

    def __post_init__(self) -> None:
        check_pattern(self.target)

    def declare(self, declaration: Tree) -> Tree:
        """`declaration` with the chosen kernels in int8, each with its scales; none of it is trained. See `Rule`.

        Raises:
          InputError: the pattern matches no kernel.
        """
        if not self.target:
            return declaration
        flat = params_lib.flatten(declaration)
        declared = {path: dataclasses.replace(p, trained=False) for path, p in flat.items()}
        for path in chosen(flat, self.target):
            (*lead, _, F), (*lead_axes, _, axis_F) = flat[path].shape, flat[path].axes
            declared[path] = dataclasses.replace(declared[path], init=_zeros, dtype="int8")
            axes = (*lead_axes, None if axis_F == "embed" else axis_F)
            declared[_scale(path)] = Param((*lead, F), axes, params_lib.ones, trained=False)
        return params_lib.nested(declared)

    def apply(self, params: Tree) -> Tree:
        """`params` with the chosen kernels in eight bits. See `Rule`."""
        flat = params_lib.flatten(params)
        for path in chosen(flat, self.target) if self.target else ():
            flat[path], flat[_scale(path)] = _quantized(flat[path])
        return params_lib.nested(flat)


def check_pattern(target: str) -> None:
    """Raises `InputError` where `target`, a rule's pattern, is no regular expression, or one that takes too long."""
    patterns.refuse_exploding(target, "compress.target")
    try:
        re.compile(target)
    except re.error as error:
        raise InputError(f"compress.target {target!r} is no regular expression ({error})") from None


def chosen(flat: Mapping[str, Any], target: str) -> list[str]:
    """The paths of the kernels that a pattern chooses.

    Args:
      flat: {path: parameter, or its declaration}.
      target: a regular expression, searched in the paths.

    Raises:
      InputError: it matches no kernel.
    """
    kernels = [path for path in flat if path.endswith("/kernel")]
    found = [path for path in kernels if re.search(target, path)]
    if not found:
        raise InputError(f"compress.target {target!r} matches nothing; the kernels are {', '.join(kernels)}")
    return found


def _zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.int8)


def _scale(path: str) -> str:
    return f"{path.removesuffix('kernel')}scale"


@jax.jit
def _quantized(kernel_DF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 [..., D, F], float32 scales [..., F]) of a kernel; a column of zeros has scale 1."""
    wide = kernel_DF.astype(jnp.float32)
    scale_F = jnp.max(jnp.abs(wide), axis=-2) / 127.0
    scale_F = jnp.where(scale_F == 0.0, 1.0, scale_F)
    return jnp.clip(jnp.round(wide / scale_F[..., None, :]), -127, 127).astype(jnp.int8), scale_F


def unpack(params: Tree) -> Tree:
    """`params` with each kernel of eight bits, or of two factors, as float32, in the family's own tree."""
    if not isinstance(params, Mapping):
        return params
    if "low_a" in params or getattr(params.get("kernel"), "dtype", None) == jnp.int8:
        rest = {name: part for name, part in params.items() if name not in ("scale", "low_a", "low_b")}
        return rest | {"kernel": layers.unpacked(dict(params))}
    return {name: unpack(part) for name, part in params.items()}


def is_quantized(params: Tree) -> bool:
    """Whether `params` has kernels of eight bits."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def size(params: Tree) -> int:
    """Bytes of all leaves of `params`."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
