"""The small layers: dense, embedding, norms, MLP, dropout. Each is a declaration and a function.

Kernels are stored [in, out], flattened where the field has more axes (heads times head width), so that no product needs
a reshape the compiler must execute. Parameters are float32 and are cast to the dtype of the activations where they are
used; statistics of norms are float32. What a platform computes in another form is marked with `kernels.choose`.

B batch, T length, D width, F MLP width, V vocabulary, P positions.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import kernels, sharding
from transformer_jax.nn.params import Param, normal, ones, zeros

# --------------------------------------------------------------------------------------------------------- activations


@kernels.choose("gelu")
def gelu(x: jax.Array) -> jax.Array:
    """`x` times the normal distribution's cumulative function at x (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


@kernels.choose("gelu_tanh")
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The approximation of `gelu` at `x` by a hyperbolic tangent, which GPT-2 uses."""
    return 0.5 * x * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation of `gelu` at `x` by a logistic function, which CLIP uses (Hendrycks and Gimpel 2016)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

# --------------------------------------------------------------------------------------------------------------- dense


def declare_dense(
    width_in: int, width_out: int, axes: tuple[str | None, str | None], *, bias: bool, std: float
) -> dict[str, Param]:
    """A kernel [in, out] drawn from Normal(0, std^2), and a zero bias [out] where asked for.

    Args:
      width_in: features of the input.
      width_out: features of the output.
      axes: their logical names.
      bias: whether there is one.
      std: the standard deviation of the kernel's initial values.
    """
    kernel = Param((width_in, width_out), axes, normal(std))
    # A vector of the model's width is too small to be worth gathering: it is never sharded.
    bias_axis = None if axes[1] == "embed" else axes[1]
    return {"kernel": kernel, "bias": Param((width_out,), (bias_axis,), zeros)} if bias else {"kernel": kernel}


def dense(p: dict[str, jax.Array], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """x @ kernel + bias, [B, T, F] in x's dtype; with an adapter (`adapters`) x @ (kernel + scale a b) + bias.

    Args:
      p: "kernel" [D, F], in int8 with "scale" [F], or its factors "low_a" [D, r] and "low_b" [r, F], and "bias" [F]
        where there is one; of an adapter "lora_a" [D, r], "lora_b" [r, F] and "lora_scale" [], and of DoRA
        "lora_magnitude" [F].
      x_BTD: any dtype.
      out: the logical name of the new last axis; None: not sharded.
    """
    if "lora_a" not in p:
        return _dense_without_adapter(p, x_BTD, out=out)
    bias = {"bias": p["bias"]} if "bias" in p and "lora_magnitude" not in p else {}
    kernel = {name: p[name] for name in ("kernel", "transposed", "scale", "low_a", "low_b") if name in p}
    y_BTF = _dense_without_adapter(kernel | bias, x_BTD, out=out)
    low_BTr = _matmul_and_bias({"kernel": p["lora_a"]}, x_BTD, out=None)
    y_BTF += p["lora_scale"].astype(x_BTD.dtype) * _matmul_and_bias({"kernel": p["lora_b"]}, low_BTr, out=out)
    if "lora_magnitude" not in p:
        return y_BTF
    y_BTF *= (p["lora_magnitude"] / jax.lax.stop_gradient(column_norms(adapted(p)))).astype(x_BTD.dtype)
    return y_BTF + p["bias"].astype(x_BTD.dtype) if "bias" in p else y_BTF


def _dense_without_adapter(p: dict[str, jax.Array], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """x @ kernel + bias, without an adapter; of a kernel in two factors one product after the other."""
    if "low_a" not in p:
        return _matmul_and_bias(p, x_BTD, out=out)
    bias = {"bias": p["bias"]} if "bias" in p else {}
    return _matmul_and_bias(
        {"kernel": p["low_b"]} | bias, _matmul_and_bias({"kernel": p["low_a"]}, x_BTD, out=None), out=out
    )


@kernels.choose("dense")
def _matmul_and_bias(p: dict[str, jax.Array], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """x @ kernel + bias, without an adapter. Integers up to 127 are exact in every dtype that x may have."""
    y_BTF = sharding.einsum("BTD,DF->BTF", x_BTD, p["kernel"].astype(x_BTD.dtype), out=("batch", "length", out))
    y_BTF = y_BTF * p["scale"].astype(x_BTD.dtype) if "scale" in p else y_BTF
    return y_BTF + p["bias"].astype(x_BTD.dtype) if "bias" in p else y_BTF


def adapted(p: dict[str, jax.Array]) -> jax.Array:
    """The kernel plus what an adapter adds to it, [..., D, F] float32, without DoRA's magnitudes.

    Args:
      p: the parameters of a dense layer, or of the layers of a stack.
    """
    kernel_DF = unpacked(p)
    if "lora_a" not in p:
        return kernel_DF
    return kernel_DF + p["lora_scale"][..., None, None] * (p["lora_a"] @ p["lora_b"])


def unpacked(p: dict[str, jax.Array]) -> jax.Array:
    """The kernel of a dense layer `p`, [..., D, F]: of two factors their product, of eight bits times its scales."""
    if "low_a" in p:
        return p["low_a"] @ p["low_b"]
    kernel_DF = p["kernel"] if "kernel" in p else jnp.swapaxes(p["transposed"], -1, -2)
    return kernel_DF.astype(jnp.float32) * p["scale"][..., None, :] if "scale" in p else kernel_DF


def column_norms(kernel_DF: jax.Array) -> jax.Array:
    """The norm of each column of `kernel_DF`, which makes one output: [..., F]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel_DF), axis=-2))


def matrix(p: dict[str, jax.Array]) -> jax.Array:
    """The matrix [..., D, F] that a dense layer multiplies by: its kernel, with its adapter merged where it has one.

    Args:
      p: the parameters of a dense layer, or of the layers of a stack.
    """
    kernel_DF = adapted(p)
    if "lora_magnitude" not in p:
        return kernel_DF
    return kernel_DF * (p["lora_magnitude"] / jax.lax.stop_gradient(column_norms(kernel_DF)))[..., None, :]


# ---------------------------------------------------------------------------------------------------------- embeddings


def declare_embedding(rows: int, width: int, axis: str, *, std: float) -> dict[str, Param]:
    """A table [rows, D] drawn from Normal(0, std^2).

    Args:
      rows: the number of rows of the table.
      width: D.
      axis: the logical name of the rows.
      std: the standard deviation of the initial values.
    """
    return {"embedding": Param((rows, width), (axis, "embed"), normal(std))}


def embed(p: dict[str, jax.Array], ids_BT: jax.Array, dtype: Any) -> jax.Array:
    """Rows of the table, [B, T, D].

    Args:
      p: "embedding" [V, D].
      ids_BT: integers below V.
      dtype: the dtype of the result.

    Raises:
      ValueError: an id that is out of range, where the ids are known: outside jit. Inside it they are clipped.
    """
    _check_ids(ids_BT, len(p["embedding"]))
    with jax.named_scope("embed"):
        return sharding.take(p["embedding"].astype(dtype), ids_BT, out=("batch", "length", None))


def _check_ids(ids_BT: Any, rows: int) -> None:
    if isinstance(ids_BT, jax.core.Tracer) or not getattr(ids_BT, "is_fully_addressable", True):
        return
    ids = np.asarray(ids_BT)  # not by jnp, which a surrounding jit would trace
    lowest, highest = int(ids.min(initial=0)), int(ids.max(initial=0))
    if lowest < 0 or highest >= rows:
        raise ValueError(
            f"id {highest if highest >= rows else lowest} is not in a table of {rows} rows, 0 to {rows - 1}; encode "
            "with the tokenizer of these parameters"
        )


def positions_from(table_PD: jax.Array, first: int, length: int) -> jax.Array:
    """Consecutive rows of a table of positions, one for each column of a batch, [T, D].

    Args:
      table_PD: one row for each position.
      first: the first row.
      length: T.
    """
    # The table is gathered and then sharded by length: the compiler cannot reshard from the width to the length, and
    # the table's gradient would enter the optimiser sharded by length.
    return sharding.constrain(sharding.constrain(table_PD, (None, None))[first : first + length], ("length", None))


@kernels.choose("tied_kernel")
def tied_kernel(p: dict[str, jax.Array]) -> jax.Array:
    """The output matrix [D, V] of tied embeddings: the transpose of the table in `p`."""
    return p["embedding"].T


@kernels.choose("tied_logits")
def tied_logits(p: dict[str, jax.Array], x_BD: jax.Array) -> jax.Array:
    """Logits [B, V] float32 of one hidden state for each row, `x_BD`, against the rows of the table in `p`."""
    table_VD = p["embedding"].astype(x_BD.dtype)
    return sharding.einsum("BD,VD->BV", x_BD, table_VD, out=("batch", "vocab"), dtype=jnp.float32)


def gather(x_BTD: jax.Array, index_BP: jax.Array, *, out: sharding.Axes) -> jax.Array:
    """x[b, index[b, p]], a few positions of each row, [B, P, D].

    A product with one-hot rows, which is exact. It works on any mesh, also where the length is sharded, and its
    gradient is a product, where that of indexing is a scatter. It costs P / V of the projection to the vocabulary.

    Args:
      x_BTD: hidden states.
      index_BP: integers below T.
      out: the logical axes of the result.
    """
    one_hot_BPT = jax.nn.one_hot(index_BP, x_BTD.shape[1], dtype=x_BTD.dtype)
    _, explicit = sharding.specs(("batch", None, "length"), one_hot_BPT.shape)
    if explicit is not None:  # in an Explicit mesh both operands must be sharded along T
        one_hot_BPT = jax.sharding.reshard(one_hot_BPT, explicit)
    return sharding.einsum("BPT,BTD->BPD", one_hot_BPT, x_BTD, out=out)


def token(x_BTD: jax.Array, index: int) -> jax.Array:
    """Token `index` of each row of `x_BTD`, [B, 1, D]; of a sharded length, the other tokens are not moved."""
    if sharding.shards("length") == 1:
        return sharding.constrain(x_BTD[:, index : index + 1], ("batch", None, None))
    index_B1 = sharding.constrain(jnp.full((x_BTD.shape[0], 1), index, jnp.int32), ("batch", None))
    return gather(x_BTD, index_B1, out=("batch", None, None))


def last_token(x_BTD: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """The last token of each row, [B, 1, D].

    Args:
      x_BTD: hidden states.
      lengths_B: tokens of each row before its right padding; None: no padding.
    """
    if lengths_B is None:
        return token(x_BTD, x_BTD.shape[1] - 1)
    return gather(x_BTD, jnp.maximum(lengths_B - 1, 0)[:, None], out=("batch", None, None))


# --------------------------------------------------------------------------------------------------------------- norms


def declare_norm(width: int, kind: str, *, bias: bool) -> dict[str, Param]:
    """A scale [D] of ones, and a zero bias [D] where asked for.

    Args:
      width: D.
      kind: "layer" or "rms", which has no bias.
      bias: whether LayerNorm has one.
    """
    scale = {"scale": Param((width,), (None,), ones)}
    return scale | {"bias": Param((width,), (None,), zeros)} if bias and kind == "layer" else scale


@kernels.choose("norm")
def norm(p: dict[str, jax.Array], x: jax.Array, kind: str, eps: float) -> jax.Array:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis, in x's dtype.

    Args:
      p: "scale" [D], and "bias" [D] where there is one.
      x: [..., D], computed in float32.
      kind: "layer" or "rms".
      eps: added to the variance.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True) if kind == "layer" else wide
    y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps) * p["scale"]
    return (y + p["bias"] if "bias" in p else y).astype(x.dtype)


def unit_length(x_BE: jax.Array) -> jax.Array:
    """The rows of `x_BE` divided by their length, float32; a row of zeros stays one."""
    x_BE = x_BE.astype(jnp.float32)
    return x_BE * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x_BE), axis=-1, keepdims=True), 1e-24))


# ----------------------------------------------------------------------------------------------------- MLP and dropout


def declare_mlp(
    width: int, mlp_width: int, *, gated: bool, bias: bool, std: float, out_std: float
) -> dict[str, dict[str, Param]]:
    """up [D, F], down [F, D], and a gate [D, F] where asked for.

    Args:
      width: D.
      mlp_width: F.
      gated: whether there is a gate.
      bias: whether the layers have biases.
      std: the standard deviation of the kernels' initial values.
      out_std: the standard deviation of the initial values of down's kernel.
    """
    up = {"up": declare_dense(width, mlp_width, ("embed", "mlp"), bias=bias, std=std)}
    gate = {"gate": declare_dense(width, mlp_width, ("embed", "mlp"), bias=bias, std=std)} if gated else {}
    return up | gate | {"down": declare_dense(mlp_width, width, ("mlp", "embed"), bias=bias, std=out_std)}


def mlp(p: dict[str, Any], x_BTD: jax.Array, activation: str) -> jax.Array:
    """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202), [B, T, D].

    Args:
      p: the parameters that `declare_mlp` declares.
      x_BTD: what the sublayer reads.
      activation: a name of `ACTIVATIONS`.
    """
    act = ACTIVATIONS[activation]
    h_BTF = dense(p["up"], x_BTD, out="mlp")
    h_BTF = act(dense(p["gate"], x_BTD, out="mlp")) * h_BTF if "gate" in p else act(h_BTF)
    return dense(p["down"], h_BTF, out=None)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with each element zeroed with probability `rate` and the others scaled up.

    Args:
      x: any shape.
      rate: below 1, rounded to a multiple of 2^-16: 16 random bits an element cost half of what 32 do.
      key: None: x itself.
    """
    if key is None or rate == 0.0:
        return x
    threshold = min(round(rate * 65536), 65535)  # the highest rates keep one in 65536
    keep = _dropout_mask(key, x.shape, threshold)
    return jnp.where(keep, x * (65536 / (65536 - threshold)), jnp.zeros((), x.dtype)).astype(x.dtype)


@kernels.choose("dropout_mask")
def _dropout_mask(key: jax.Array, shape: tuple[int, ...], threshold: int) -> jax.Array:
    return jax.random.bits(key, shape, jnp.uint16) >= threshold
