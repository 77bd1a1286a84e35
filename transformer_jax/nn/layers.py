"""The small layers: dense, embedding, norms, MLP, dropout. Each is a declaration and a function.

Kernels are stored [in, out], flattened where the field has more axes (heads times head width), so that no product needs
a reshape the compiler must execute. Parameters are float32 and are cast to the dtype of the activations where they are
used; statistics of norms are float32.

B batch, T length, D width, F MLP width, V vocabulary.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from transformer_jax import sharding
from transformer_jax.nn.params import Param, normal, ones, zeros

FEW_ROWS = 96  # of a device; see `_turned_product`


# Hendrycks and Gimpel 2016. The derivatives are written out so that the backward pass finds one array, the derivative,
# and not the several that differentiating each elementary function would keep.
@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's cumulative function at x."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    cumulative = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return x * cumulative, (cumulative + x * density) * dx


@jax.custom_jvp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The approximation by a hyperbolic tangent, which GPT-2 uses."""
    return 0.5 * x * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    scale = math.sqrt(2.0 / math.pi)
    tanh = jnp.tanh(scale * (x + 0.044715 * x * x * x))
    inner = scale * (1.0 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1.0 + tanh), (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner) * dx


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def declare_dense(
    width_in: int, width_out: int, axes: tuple[str | None, str | None], *, bias: bool, std: float
) -> dict[str, Param]:
    """A kernel [in, out] drawn from Normal(0, std^2), and a zero bias [out] where asked for."""
    kernel = Param((width_in, width_out), axes, normal(std))
    # A vector of the model's width is too small to be worth gathering: it is never sharded.
    bias_axis = None if axes[1] == "embed" else axes[1]
    return {"kernel": kernel, "bias": Param((width_out,), (bias_axis,), zeros)} if bias else {"kernel": kernel}


def dense(p: dict[str, jax.Array], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """x @ kernel + bias, [B, T, D] -> [B, T, F]; `out` is the logical name of the new last axis. p may be `turned`."""
    if "turned" in p:
        y_BTF = _turned_product(p["turned"].astype(x_BTD.dtype), x_BTD, out)
    else:
        y_BTF = sharding.einsum("BTD,DF->BTF", x_BTD, p["kernel"].astype(x_BTD.dtype), out=("batch", "length", out))
    y_BTF = sharding.add_bias(y_BTF, p["bias"].astype(x_BTD.dtype)) if "bias" in p else y_BTF
    return checkpoint_name(y_BTF, "product")


def turned(tree: Any) -> Any:
    """Parameters of unstacked layers for decoding on CPUs: in place of each "kernel" [D, F] its transpose, "turned"."""
    if isinstance(tree, list):
        return [turned(part) for part in tree]
    if not isinstance(tree, Mapping):
        return tree
    parts = {name: turned(part) for name, part in tree.items() if name != "kernel"}
    return parts | {"turned": tree["kernel"].T} if "kernel" in tree else parts


def _turned_product(kernel_FD: jax.Array, x_BTD: jax.Array, out: str | None) -> jax.Array:
    """x @ kernel, the kernel first where there are few rows: of most sizes XLA's CPU backend then takes half to nine
    tenths of the time, and from about a hundred rows on no less than with x first (docs/performance.md)."""
    B, T, _ = x_BTD.shape
    if T > 1 or B // sharding.shards("batch") > FEW_ROWS:
        return sharding.einsum("BTD,FD->BTF", x_BTD, kernel_FD, out=("batch", "length", out))
    y_FB = sharding.einsum("FD,BD->FB", kernel_FD, x_BTD[:, 0], out=(out, "batch"))
    # The barrier keeps the compiler from turning the product around again.
    return jax.lax.optimization_barrier(y_FB).T[:, None]


def dense_together(parts: list[dict[str, jax.Array]], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """`dense` with each of s parts' parameters as one product, [B, T, D] -> [s, B, T, F]; so are its gradients."""
    dtype = x_BTD.dtype
    # In the order in which the kernels are stored: else their gradients come out turned around, and AdamW with them.
    kernel_sDF = sharding.in_order(jnp.stack([p["kernel"].astype(dtype) for p in parts]))
    y_sBTF = jnp.einsum("BTD,sDF->sBTF", x_BTD, kernel_sDF)
    if "bias" in parts[0]:
        y_sBTF = jax.vmap(sharding.add_bias)(y_sBTF, jnp.stack([p["bias"].astype(dtype) for p in parts]))
    return checkpoint_name(sharding.constrain(y_sBTF, (None, "batch", "length", out)), "product")


def declare_embedding(rows: int, width: int, axis: str, *, std: float) -> dict[str, Param]:
    """A table [rows, D]."""
    return {"embedding": Param((rows, width), (axis, "embed"), normal(std))}


def embed(p: dict[str, jax.Array], ids_BT: jax.Array, dtype: Any) -> jax.Array:
    """Rows of the table, [B, T] -> [B, T, D] in `dtype`."""
    with jax.named_scope("embed"):
        return sharding.take(p["embedding"].astype(dtype), ids_BT, out=("batch", "length", None))


def positions_from(table_PD: jax.Array, first: int, length: int) -> jax.Array:
    """`length` rows of a table of positions from row `first` on, one for each column of a batch, [T, D]."""
    # Whole, then cut by the length: from parts of the width to parts of the length the compiler knows no way, and the
    # table's gradient would be cut by the length into the optimiser.
    return sharding.constrain(sharding.constrain(table_PD, (None, None))[first : first + length], ("length", None))


def tied_logits(p: dict[str, jax.Array], x_BD: jax.Array) -> jax.Array:
    """Logits of one hidden state a row against the table's rows, [B, D] -> [B, V] float32."""
    # The table comes first and as it is stored: turned around, XLA's CPU backend reads it column by column or copies
    # it, 2 to 8 times as slow. The barrier keeps the compiler from turning it around itself.
    table_VD = p["embedding"].astype(x_BD.dtype)
    logits_VB = sharding.einsum("VD,BD->VB", table_VD, x_BD, out=("vocab", "batch"), dtype=jnp.float32)
    return jax.lax.optimization_barrier(logits_VB).T


def declare_norm(width: int, kind: str, *, bias: bool) -> dict[str, Param]:
    """LayerNorm ("layer": scale, and bias where asked for) or RMSNorm ("rms": scale)."""
    scale = {"scale": Param((width,), (None,), ones)}
    return scale | {"bias": Param((width,), (None,), zeros)} if bias and kind == "layer" else scale


def norm(p: dict[str, jax.Array], x: jax.Array, kind: str, eps: float) -> jax.Array:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis, computed in float32.

    Differentiable in reverse mode: the gradient is written out, so that what the backward pass finds is x as it came,
    and two numbers for each row, and not its float32 copies.
    """
    with jax.named_scope("norm"):
        return _norm(kind, eps, *sharding.vary_together(x, p["scale"], p.get("bias")))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _norm(kind: str, eps: float, x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    return _norm_forward(kind, eps, x, scale, bias)[0]


def _norm_forward(kind, eps, x, scale, bias):
    wide = x.astype(jnp.float32)
    mean = checkpoint_name(jnp.mean(wide, axis=-1, keepdims=True), "statistics") if kind == "layer" else None
    centred = wide if mean is None else wide - mean
    if mean is not None and sharding.target_platform() == "tpu":
        # Both sums in one pass over x, which the product that made x takes on: its variance loses digits where the mean
        # is large beside the deviation, of which float32 has enough for bfloat16's x.
        variance = jnp.maximum(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) - jnp.square(mean), 0.0)
    else:
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    inverse = checkpoint_name(jax.lax.rsqrt(variance + eps), "statistics")
    y = centred * inverse * scale
    return (y if bias is None else y + bias).astype(x.dtype), (x, mean, inverse, scale, bias)


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


def declare_mlp(
    width: int, mlp_width: int, *, gated: bool, bias: bool, std: float, out_std: float
) -> dict[str, dict[str, Param]]:
    """up [D, F], down [F, D], and a gate [D, F] where asked for."""
    up = {"up": declare_dense(width, mlp_width, ("embed", "mlp"), bias=bias, std=std)}
    gate = {"gate": declare_dense(width, mlp_width, ("embed", "mlp"), bias=bias, std=std)} if gated else {}
    return up | gate | {"down": declare_dense(mlp_width, width, ("mlp", "embed"), bias=bias, std=out_std)}


def mlp(p: dict[str, Any], x_BTD: jax.Array, activation: str) -> jax.Array:
    """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""
    act = ACTIVATIONS[activation]
    h_BTF = dense(p["up"], x_BTD, out="mlp")
    h_BTF = act(dense(p["gate"], x_BTD, out="mlp")) * h_BTF if "gate" in p else act(h_BTF)
    return dense(p["down"], h_BTF, out=None)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with each element zeroed with probability `rate` and the rest scaled up; x itself without a key.

    The rate is rounded to a multiple of 2^-16: 16 random bits an element cost half of what 32 do.
    """
    if key is None or rate == 0.0:
        return x
    threshold = min(round(rate * 65536), 65535)  # the highest rates keep one in 65536
    keep = checkpoint_name(jax.random.bits(key, x.shape, jnp.uint16) >= threshold, "dropout")
    return jnp.where(keep, x * (65536 / (65536 - threshold)), jnp.zeros((), x.dtype)).astype(x.dtype)
