"""What XLA's CPU backend computes faster in another form than the plain one.

B batch, T length, D and F features, V vocabulary, z rows, N query heads, K key/value heads, H head width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.kernels import cpu_attention
from transformer_jax.kernels.cross_entropy import linear_cross_entropy
from transformer_jax.kernels.gradients import add_bias, collapses, gelu, gelu_tanh, norm, vary_alike

__all__ = [
    "attention",
    "attention_fits",
    "decoding_config",
    "decoding_layout",
    "dense",
    "gelu",
    "gelu_tanh",
    "linear_cross_entropy",
    "norm",
    "tied_logits",
]

FEW_ROWS = 96  # rows on one device; see `_few_rows`


# --------------------------------------------------------------------------------------------------------------- dense


def dense(plain: Callable[..., jax.Array], p: dict[str, jax.Array], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """`nn.layers.dense`, with gradients in the layouts of the parameters.

    Args:
      plain: for an Explicit mesh or a sharded length.
      p: "kernel" [D, F], or "transposed" [F, D] after `decoding_layout`, in int8 with "scale" [F], and "bias" [F] where
        there is one.
      x_BTD: activations.
      out: the logical axis of F.
    """
    if "scale" in p:
        y_BTF = _eight_bits(p, x_BTD, out)
    elif "transposed" in p:
        y_BTF = _few_rows(p["transposed"].astype(x_BTD.dtype), x_BTD, out)
    elif not collapses():
        y_BTF = plain({"kernel": p["kernel"]}, x_BTD, out=out)
    else:
        (B, T, D), kernel_DF = x_BTD.shape, p["kernel"].astype(x_BTD.dtype)
        y_zF = _product(*vary_alike(x_BTD.reshape(-1, D), kernel_DF))
        y_BTF = sharding.constrain(y_zF.reshape(B, T, -1), ("batch", "length", out))
    return add_bias(y_BTF, p["bias"].astype(x_BTD.dtype)) if "bias" in p else y_BTF


@jax.custom_vjp
def _product(x_zD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x w, whose gradient for w has w's layout.

    JAX's own rule gives it transposed, and XLA's CPU backend then copies it in one thread: a twelfth of the time of a
    training step of BERT-base (measured: 2 cores, medians of interleaved runs).
    """
    return jnp.einsum("zD,DF->zF", x_zD, w_DF)


def _product_forward(x_zD, w_DF):
    return _product(x_zD, w_DF), (x_zD, w_DF)


def _product_backward(operands, dy_zF):
    x_zD, w_DF = operands
    dx_zD = jnp.einsum("zF,DF->zD", dy_zF, w_DF)
    (z, D), F = x_zD.shape, dy_zF.shape[1]
    if not z >= D > F:
        return dx_zD, jnp.einsum("zD,zF->DF", x_zD, dy_zF)
    # The gradient of a kernel with more rows than columns is faster as a transposed product, unless it is large beside
    # the batch. The barrier keeps the compiler from undoing the transposition.
    return dx_zD, jax.lax.optimization_barrier(jnp.einsum("zF,zD->FD", dy_zF, x_zD)).T


_product.defvjp(_product_forward, _product_backward)


BLOCK = 2**20  # elements of a kernel that are converted to float at a time


def _eight_bits(p: dict[str, jax.Array], x_BTD: jax.Array, out: str | None) -> jax.Array:
    """x @ kernel * scale of an int8 kernel: one block of columns at a time is converted to x's dtype.

    XLA's CPU backend would write the whole kernel in float32 to memory and read it again for the product.
    """
    (B, T, D), F = x_BTD.shape, p["scale"].shape[-1]
    kernel_FD = p["transposed"] if "transposed" in p else p["kernel"].T
    count = _blocks(D, F)
    if count == 1 or not collapses() or (out is not None and sharding.shards(out) > 1):
        y_BTF = sharding.einsum("BTD,FD->BTF", x_BTD, kernel_FD.astype(x_BTD.dtype), out=("batch", "length", out))
        return y_BTF * p["scale"].astype(x_BTD.dtype)
    x_zD = x_BTD.reshape(-1, D)

    @jax.checkpoint  # the backward pass converts each block again, and keeps none in float32
    def block(i: jax.Array) -> jax.Array:
        part_fD = jax.lax.dynamic_slice_in_dim(kernel_FD, i * (F // count), F // count).astype(x_BTD.dtype)
        return jnp.einsum("fD,zD->fz", part_fD, x_zD)

    y_FB = jax.lax.map(block, jnp.arange(count)).reshape(F, -1)
    y_zF = y_FB.T * p["scale"].astype(x_BTD.dtype)
    return sharding.constrain(y_zF.reshape(B, T, F), ("batch", "length", out))


def _blocks(D: int, F: int) -> int:
    """The smallest number of equal blocks of columns with at most `BLOCK` elements each; 1 where there is none."""
    return next((n for n in range(-(-D * F // BLOCK), F) if F % n == 0), 1)


# ------------------------------------------------------------------------------------------------------------ decoding


def decoding_config(plain: Callable[..., Any], cfg: Any) -> Any:
    """`cfg` with unrolled layers: a scan over layers copies their kernels for every token.

    Args:
      plain: for a config whose layers cannot be scanned.
      cfg: a family's Config.
    """
    return dataclasses.replace(cfg, scan_layers=False) if hasattr(cfg, "scan_layers") else plain(cfg)


def decoding_layout(plain: Callable[..., Any], blocks: Any) -> Any:
    """Parameters of unstacked layers with a transposed copy, "transposed" [F, D], in place of each "kernel" [D, F].

    Args:
      plain: not used.
      blocks: a list of trees, one for each layer.
    """
    # The barrier keeps the transposition out of the loop over the tokens.
    return jax.lax.optimization_barrier(_transposed(blocks))


def _transposed(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_transposed(part) for part in tree]
    if not isinstance(tree, Mapping):
        return tree
    parts = {name: _transposed(part) for name, part in tree.items() if name != "kernel"}
    return parts | {"transposed": tree["kernel"].T} if "kernel" in tree else parts


def _few_rows(kernel_FD: jax.Array, x_BTD: jax.Array, out: str | None) -> jax.Array:
    """x @ kernel, with the kernel as the first operand where there are few rows.

    XLA's CPU backend then takes half to nine tenths of the time, and from about a hundred rows on no less
    (docs/performance.md).
    """
    B, T, _ = x_BTD.shape
    if T > 1 or B // sharding.shards("batch") > FEW_ROWS:
        return sharding.einsum("BTD,FD->BTF", x_BTD, kernel_FD, out=("batch", "length", out))
    y_FB = sharding.einsum("FD,BD->FB", kernel_FD, x_BTD[:, 0], out=(out, "batch"))
    # The barrier keeps the compiler from swapping the operands.
    return jax.lax.optimization_barrier(y_FB).T[:, None]


def tied_logits(plain: Callable[..., jax.Array], p: dict[str, jax.Array], x_BD: jax.Array) -> jax.Array:
    """`nn.layers.tied_logits`, with the table as the first operand, as it is stored.

    XLA's CPU backend would otherwise read the table column by column or copy it: 2 to 8 times as slow.

    Args:
      plain: not used.
      p: "embedding" [V, D].
      x_BD: one hidden state for each row.
    """
    table_VD = p["embedding"].astype(x_BD.dtype)
    logits_VB = sharding.einsum("VD,BD->VB", table_VD, x_BD, out=("vocab", "batch"), dtype=jnp.float32)
    # The barrier keeps the compiler from swapping the operands.
    return jax.lax.optimization_barrier(logits_VB).T


# ----------------------------------------------------------------------------------------------------------- attention


def attention_fits(q_BTNH: Any, mask: Any, *, num_keys: int, bias: bool, dropout: bool) -> bool:
    """Whether `attention` computes this case: float32, the length not sharded, and not local attention of a few keys.

    Args:
      q_BTNH: queries, or their shape and dtype.
      mask: an `nn.masks.Mask`.
      num_keys: S, any.
      bias: whether the scores have a bias.
      dropout: whether the probabilities have dropout.
    """
    plain = bias or dropout or mask.local_block(q_BTNH.shape[1]) is not None
    return not plain and q_BTNH.dtype == jnp.float32 and sharding.shards("length") == 1


def attention(
    plain: Callable[..., jax.Array],
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Any,
    *,
    bias_NTS: jax.Array | None,
    scale: float,
    dropout_rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """`nn.attention.attend` in blocks of queries (`cpu_attention`), where `attention_fits`.

    Args:
      plain: for the other cases.
      q_BTNH: queries.
      k_BSKH: keys; K divides N.
      v_BSKH: values.
      mask: an `nn.masks.Mask`.
      bias_NTS: added to the scores.
      scale: what the scores are multiplied by.
      dropout_rate: the dropout rate of the probabilities.
      key: the random key for dropout; None: no dropout.
    """
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    if not attention_fits(q_BTNH, mask, num_keys=S, bias=bias_NTS is not None, dropout=key is not None):
        options: Any = {"bias_NTS": bias_NTS, "scale": scale, "dropout_rate": dropout_rate, "key": key}
        return plain(q_BTNH, k_BSKH, v_BSKH, mask, **options)
    with jax.named_scope("attention"):
        q_BKGTH = jnp.moveaxis(q_BTNH.reshape(B, T, K, N // K, H), 1, 3)
        k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
        # The kernel applies the causal mask itself. With a prefix, which is visible above the diagonal, the whole mask
        # is passed as booleans.
        causal = mask.causal and mask.prefix_B is None
        allowed_BTS = mask.replace(causal=mask.causal and not causal).dense(T, S)
        out_BKGTH = cpu_attention.attention(q_BKGTH, k_BKSH, v_BKSH, allowed_BTS, causal, scale)
        return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H)
