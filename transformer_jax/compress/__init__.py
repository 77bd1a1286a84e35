"""Kernels in eight bits: a quarter of the bytes, for models that are evaluated, or that an adapter is trained beside.

    rule = Int8(target="blocks/")
    params = quantize(params, rule)                           # int8 "kernel", and float32 "scale" beside it
    family.apply(params, cfg, tokens)                         # `nn.layers.dense` multiplies by both
    declaration = declare(family.declare(cfg), rule)          # of this tree: shardings, restore targets, counts
    params = unpack(params)                                   # float32 kernels, the family's own tree again

Weights alone are rounded, symmetrically, with one scale for each output: w = scale * q with q in [-127, 127] and
scale = max |w| / 127 over the inputs. No data are needed.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from transformer_jax import patterns
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, Tree


@dataclass(frozen=True)
class Int8:
    """Which kernels are stored in eight bits."""

    target: str = ""
    """A regular expression, searched in the paths of the kernels: "blocks/" is all of the blocks'; "": none."""

    def __post_init__(self) -> None:
        patterns.refuse_exploding(self.target, "compress.target")
        try:
            re.compile(self.target)
        except re.error as error:
            raise InputError(f"compress.target {self.target!r} is no regular expression ({error})") from None

    def matches(self, path: str) -> bool:
        """Whether the parameter at `path` is a kernel that is stored in eight bits."""
        return bool(self.target) and path.endswith("/kernel") and re.search(self.target, path) is not None


def declare(declaration: Tree, rule: Int8) -> Tree:
    """A declaration in which the kernels that `rule` names are int8, each with its scales; none of it is trained.

    Args:
      declaration: a family's tree of `Param`.
      rule: of target "": the declaration is returned as it is.

    Raises:
      InputError: the pattern matches no kernel.
    """
    if not rule.target:
        return declaration
    flat = params_lib.flatten(declaration)
    chosen = [path for path in flat if rule.matches(path)]
    if not chosen:
        kernels = ", ".join(path for path in flat if path.endswith("/kernel"))
        raise InputError(f"compress.target {rule.target!r} matches nothing; the kernels are {kernels}")
    declared = {path: dataclasses.replace(p, trained=False) for path, p in flat.items()}
    for path in chosen:
        (*lead, _, F), (*lead_axes, _, axis_F) = flat[path].shape, flat[path].axes
        declared[path] = dataclasses.replace(declared[path], init=_zeros, dtype="int8")
        axes = (*lead_axes, None if axis_F == "embed" else axis_F)
        declared[_scale(path)] = Param((*lead, F), axes, params_lib.ones, trained=False)
    return params_lib.nested(declared)


def _zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.int8)


def _scale(path: str) -> str:
    return f"{path.removesuffix('kernel')}scale"


def quantize(params: Tree, rule: Int8) -> Tree:
    """The parameters with the kernels that `rule` names in eight bits.

    Args:
      params: float parameters, the family's own tree.
      rule: which kernels.
    """
    flat = params_lib.flatten(params)
    for path in [path for path in flat if rule.matches(path)]:
        flat[path], flat[_scale(path)] = _quantized(flat[path])
    return params_lib.nested(flat)


@jax.jit
def _quantized(kernel_DF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 [..., D, F], float32 scales [..., F]) of a kernel; a column of zeros has scale 1."""
    wide = kernel_DF.astype(jnp.float32)
    scale_F = jnp.max(jnp.abs(wide), axis=-2) / 127.0
    scale_F = jnp.where(scale_F == 0.0, 1.0, scale_F)
    return jnp.clip(jnp.round(wide / scale_F[..., None, :]), -127, 127).astype(jnp.int8), scale_F


def unpack(params: Tree) -> Tree:
    """`params` with each int8 kernel as float32; a tree without such kernels has the same leaves."""
    if not isinstance(params, Mapping):
        return params
    if getattr(params.get("kernel"), "dtype", None) == jnp.int8:
        rest = {name: part for name, part in params.items() if name != "scale"}
        return rest | {"kernel": layers.unpacked(dict(params))}
    return {name: unpack(part) for name, part in params.items()}


def is_quantized(params: Tree) -> bool:
    """Whether `params` has kernels of eight bits."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def size(params: Tree) -> int:
    """Bytes of all leaves of `params`."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
