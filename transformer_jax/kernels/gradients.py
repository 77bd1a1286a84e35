"""Gradients written out, for several platforms: what the backward pass then keeps and computes is our choice.

B batch, T length, F features, z rows.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType

from transformer_jax import kernels, sharding


def vary_alike(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """The arrays, each marked as varying over every Manual mesh axis that one of them varies over; None stays None.

    Inside a shard_map with `check_vma=True` the operands of a custom gradient must have the types of its results. JAX's
    own operations cast their operands; ours call this. The cast's transpose is the sum over those axes, so the gradient
    of what all devices share is that of the whole batch.

    Args:
      *arrays: arrays of any shapes and dtypes, or None.
    """
    varying = [frozenset() if a is None else jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*varying)
    pairs = zip(arrays, varying, strict=True)
    return tuple(a if a is None else jax.lax.pcast(a, tuple(sorted(union - v)), to="varying") for a, v in pairs)


def collapses() -> bool:
    """Whether batch and length may be collapsed to one dimension: no Explicit mesh, no sharded length."""
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return not explicit and sharding.shards("length") == 1


# ---------------------------------------------------------------------------------------------------------------- bias


def add_bias(y_BTF: jax.Array, bias_F: jax.Array) -> jax.Array:
    """`y_BTF` + `bias_F`. The gradient of the bias, a sum over all rows, is computed as a product with ones.

    The compilers for CPU and TPU are faster at a product than at a sum over rows: 3 % of the CPU time of a training
    step of ViT-S/16 (measured).
    """
    return _add_bias(*vary_alike(y_BTF, bias_F)) if collapses() else y_BTF + bias_F


@jax.custom_vjp
def _add_bias(y_BTF: jax.Array, bias_F: jax.Array) -> jax.Array:
    return y_BTF + bias_F


def _add_bias_forward(y_BTF, bias_F):
    return y_BTF + bias_F, None


def _add_bias_backward(_, dy_BTF):
    dy_zF = dy_BTF.reshape(-1, dy_BTF.shape[-1])
    # Eight rows of ones: the compiler would fuse a product with one row into a loop that recomputes dy.
    return dy_BTF, jnp.einsum("yz,zF->yF", jnp.ones((8, len(dy_zF)), dy_zF.dtype), dy_zF)[0]


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


# --------------------------------------------------------------------------------------------------------------- norms


def norm(plain: Any, p: dict[str, jax.Array], x: jax.Array, kind: str, eps: float) -> jax.Array:
    """`nn.layers.norm`, whose backward pass keeps x in its own dtype and two numbers for each row.

    JAX's own gradient would keep float32 copies of x.

    Args:
      plain: not used.
      p: scale [F], and bias [F] where there is one.
      x: [..., F].
      kind: "layer" or "rms".
      eps: added to the variance.
    """
    with jax.named_scope("norm"):
        return _norm(kind, eps, *vary_alike(x, p["scale"], p.get("bias")))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _norm(kind: str, eps: float, x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    return _norm_forward(kind, eps, x, scale, bias)[0]


def _norm_forward(kind, eps, x, scale, bias):
    wide = x.astype(jnp.float32)
    mean = checkpoint_name(jnp.mean(wide, axis=-1, keepdims=True), "statistics") if kind == "layer" else None
    centred = wide if mean is None else wide - mean
    variance = _variance(wide, mean, centred)
    inverse = checkpoint_name(jax.lax.rsqrt(variance + eps), "statistics")
    y = centred * inverse * scale
    return (y if bias is None else y + bias).astype(x.dtype), (x, mean, inverse, scale, bias)


@kernels.choose("variance")
def _variance(wide: jax.Array, mean: jax.Array | None, centred: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(centred), axis=-1, keepdims=True)


def _norm_backward(kind, eps, kept, dy):
    x, mean, inverse, scale, bias = kept
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    normed = (wide if mean is None else wide - mean) * inverse
    d_normed = dy * scale
    dx = d_normed - normed * jnp.mean(d_normed * normed, axis=-1, keepdims=True)
    if mean is not None:
        dx = dx - jnp.mean(d_normed, axis=-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    d_bias = None if bias is None else jnp.sum(dy, axis=rows).astype(bias.dtype)
    return (dx * inverse).astype(x.dtype), jnp.sum(dy * normed, axis=rows).astype(scale.dtype), d_bias


_norm.defvjp(_norm_forward, _norm_backward)


# --------------------------------------------------------------------------------------------------------- activations


# One array, the derivative, is kept for the backward pass, not one for each elementary function.


def gelu(plain: Any, x: jax.Array) -> jax.Array:
    """`nn.layers.gelu` of `x`, its derivative written out; `plain` is not used."""
    return _gelu(x)


@jax.custom_jvp
def _gelu(x: jax.Array) -> jax.Array:
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


@_gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    cumulative = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return x * cumulative, (cumulative + x * density) * dx


def gelu_tanh(plain: Any, x: jax.Array) -> jax.Array:
    """`nn.layers.gelu_tanh` of `x`, its derivative written out; `plain` is not used."""
    return _gelu_tanh(x)


@jax.custom_jvp
def _gelu_tanh(x: jax.Array) -> jax.Array:
    return 0.5 * x * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


@_gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    scale = math.sqrt(2.0 / math.pi)
    tanh = jnp.tanh(scale * (x + 0.044715 * x * x * x))
    inner = scale * (1.0 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1.0 + tanh), (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner) * dx
