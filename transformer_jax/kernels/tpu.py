"""What the TPU's compiler computes faster in another form than the plain one (docs/performance.md has the estimates).

B batch, T queries, S keys, D width, F features, V vocabulary, N query heads, K key/value heads, H head width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType

from transformer_jax import kernels, sharding
from transformer_jax.kernels import tpu_attention
from transformer_jax.kernels.cross_entropy import linear_cross_entropy
from transformer_jax.kernels.gradients import add_bias, gelu, gelu_tanh, norm
from transformer_jax.sharding import Axes

__all__ = [
    "attention",
    "attention_fits",
    "block",
    "dense",
    "dropout_mask",
    "gelu",
    "gelu_tanh",
    "linear_cross_entropy",
    "norm",
    "remat_policy",
    "residual",
    "rotate",
    "row_sums",
    "self_attention",
    "tied_kernel",
    "variance",
]

# -------------------------------------------------------------------------------- what is kept for the backward pass

# The results of products, the attention kernel, sums over rows, random bits, and the residual stream. Norms,
# activations and sums are recomputed inside the products that read them: cheaper than to write and to read them.
KEPT = jax.checkpoint_policies.save_only_these_names("product", "attention", "statistics", "dropout", "stream")


def remat_policy(plain: Callable[[str], Any], remat: str) -> Any:
    """The policy of `jax.checkpoint` for the setting `remat`: for "none" it is `KEPT`, otherwise `plain`'s."""
    return KEPT if remat == "none" else plain(remat)


def dense(plain: Callable[..., jax.Array], p: dict[str, jax.Array], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """`nn.layers.dense`, which is kept for the backward pass; the gradient of the bias is a product.

    Args:
      plain: computes the product.
      p: "kernel" [D, F], in int8 with "scale" [F], and "bias" [F] where there is one.
      x_BTD: activations.
      out: the logical axis of F.
    """
    y_BTF = plain({name: leaf for name, leaf in p.items() if name != "bias"}, x_BTD, out=out)
    y_BTF = add_bias(y_BTF, p["bias"].astype(x_BTD.dtype)) if "bias" in p else y_BTF
    return checkpoint_name(y_BTF, "product")


def dropout_mask(plain: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...], threshold: int) -> jax.Array:
    """Booleans, True where an element stays, which are kept for the backward pass.

    Args:
      plain: makes them.
      key: the random key for the bits.
      shape: the shape of the result.
      threshold: compared with 16 random bits; an element is kept if they are not below it.
    """
    return checkpoint_name(plain(key, shape, threshold), "dropout")


def residual(plain: Callable[..., jax.Array], x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """The residual stream after a sublayer, which is kept for the backward pass.

    Args:
      plain: the sum.
      x_BTD: the residual stream.
      y_BTD: what the sublayer adds.
    """
    return checkpoint_name(plain(x_BTD, y_BTD), "stream")


# ------------------------------------------------------------------------------------------------------------- layouts


def block(plain: Callable[..., Any], p: Any, cfg: Any, x_BTD: jax.Array, **rest: Any) -> Any:
    """`nn.block.apply` of x in row-major order.

    Without this the compiler makes the batch of images the minor dimension, because their 197 tokens do not fill its
    tiles, and copies each operand and result of the attention kernel: a fifth of the time of ViT-S/16's step.

    Args:
      plain: the block.
      p: its parameters.
      cfg: its config.
      x_BTD: the residual stream.
      **rest: the block's other arguments.
    """
    return plain(p, cfg, _row_major(x_BTD), **rest)


def tied_kernel(plain: Callable[..., jax.Array], p: dict[str, jax.Array]) -> jax.Array:
    """`nn.layers.tied_kernel` of the table `p`, whose gradient then has the table's layout; `plain` is not used.

    Otherwise XLA transposes the gradient, and AdamW then copies the parameter and its moments.
    """
    return _row_major(p["embedding"]).T


def rotate(plain: Callable[..., jax.Array], x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`nn.positions.rotate` with the halves exchanged by a product, which is exact: each sum has one term.

    Halves of 64 columns are not aligned to the 128 lanes: the compiler splits, pads and joins them in float32, in four
    passes over memory. The matrix unit exchanges them in the pass that multiplies.

    Args:
      plain: not used.
      x_BTNH: queries or keys.
      cos: [T, H/2] or [B, T, H/2].
      sin: the same shape as `cos`.
    """
    half = x_BTNH.shape[-1] // 2
    one = jnp.eye(half, dtype=x_BTNH.dtype)
    zero = jnp.zeros_like(one)
    exchange_HK = jnp.block([[zero, one], [-one, zero]])  # (first, second) becomes (-second, first)
    options: Any = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    exchanged_BTNH = jnp.einsum("BTNH,HK->BTNK", x_BTNH, exchange_HK, **options)
    cos, sin = (jnp.concatenate([a, a], axis=-1)[..., None, :] for a in (cos, sin))  # the same angle for every head
    return (x_BTNH.astype(jnp.float32) * cos + exchanged_BTNH * sin).astype(x_BTNH.dtype)


def _row_major(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


# ---------------------------------------------------------------------------------------------------------------- sums


def row_sums(plain: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
    """`kernels.row_sums` of `x` as a product with ones; `plain` in an Explicit mesh.

    A sum over rows takes the vector unit two to four times as long as reading them. Each number enters the matrix unit
    as the sum of two of bfloat16, with an error of 2^-17.
    """
    if _is_explicit():
        return plain(x)
    # Eight columns of ones: the compiler makes a sum of a product with a vector.
    ones = jnp.ones((x.shape[-1], 8), x.dtype)
    return jnp.einsum("...F,Fy->...y", x, ones, precision=jax.lax.Precision.HIGH)[..., 0]


def variance(plain: Callable[..., jax.Array], wide: jax.Array, mean: jax.Array | None, centred: jax.Array) -> jax.Array:
    """The mean square of each centred row: of LayerNorm by E[x^2] - E[x]^2, of RMSNorm by `plain`.

    Both means are computed in one pass over x, fused with the product that made x. The subtraction loses digits where
    the mean is much larger than the deviation; float32 has enough of them for x in bfloat16.

    Args:
      plain: for RMSNorm.
      wide: x in float32, [..., F].
      mean: [..., 1]; None: RMSNorm.
      centred: x - mean.
    """
    if mean is None:
        return plain(wide, mean, centred)
    return jnp.maximum(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) - jnp.square(mean), 0.0)


# ----------------------------------------------------------------------------------------------------------- attention


def self_attention(
    plain: Callable[..., Any],
    p: dict[str, Any],
    cfg: Any,
    x_BTD: jax.Array,
    mask: Any,
    *,
    rope: Any,
    bias_NTS: jax.Array | None,
    distances_dD: jax.Array | None,
    num_outputs: int | None,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`nn.block.self_attention` with one product for queries, keys and values, where the kernel takes one array.

    x is then read once, not three times, and its gradient written once.

    Args:
      plain: for the other cases: rotary positions, norms of heads, grouped heads, capped scores, adapters, an
        Explicit mesh.
      p: parameters of the sublayer.
      cfg: the block's config.
      x_BTD: what the sublayer reads.
      mask: an `nn.masks.Mask`.
      rope: (cos, sin) of rotary positions; None: others.
      bias_NTS: added to the scores.
      distances_dD: vectors of distances; None: there is none.
      num_outputs: how many tokens are queries; None: all.
      key: the random key for dropout; None: no dropout.
    """
    heads = jax.ShapeDtypeStruct((*x_BTD.shape[:2], cfg.num_heads, cfg.head_width), x_BTD.dtype)
    biased = bias_NTS is not None or distances_dD is not None
    case: Any = {"bias": biased, "dropout": key is not None and cfg.attention_dropout > 0.0}
    as_projected = rope is None and num_outputs is None and not cfg.qk_norm and cfg.kv_heads == cfg.num_heads
    as_projected &= not cfg.score_cap
    as_projected &= not any({"lora_a", "scale", "low_a"} & p[name].keys() for name in ("query", "key", "value"))
    if not as_projected or cfg.attention not in ("auto", "tpu") or not fused_fits(heads, mask, **case):
        options: Any = {"rope": rope, "bias_NTS": bias_NTS, "distances_dD": distances_dD}
        return plain(p, cfg, x_BTD, mask, **options, num_outputs=num_outputs, key=key)
    qkv_3BTD = _fused_dense([p[name] for name in ("query", "key", "value")], x_BTD, out="heads")
    a_BTD = attend_fused(qkv_3BTD, mask, head_width=cfg.head_width, scale=cfg.score_scale)
    return a_BTD.reshape(heads.shape), qkv_3BTD[1].reshape(heads.shape), qkv_3BTD[2].reshape(heads.shape)


def fused_fits(q_BTNH: Any, mask: Any, *, bias: bool, dropout: bool) -> bool:
    """Whether `attend_fused` computes this case: self-attention, neither the length nor a head sharded.

    Args:
      q_BTNH: queries, or their shape and dtype.
      mask: an `nn.masks.Mask`.
      bias: whether the scores have a bias.
      dropout: whether the probabilities have dropout.
    """
    if _is_explicit() or q_BTNH.shape[2] % sharding.shards("heads"):  # the unfused path raises the error for the heads
        return False
    case: Any = {"num_keys": q_BTNH.shape[1], "bias": bias, "dropout": dropout}
    return sharding.shards("length") == 1 and _fits(q_BTNH, mask, **case, fused=True)


def _fused_dense(parts: list[dict[str, jax.Array]], x_BTD: jax.Array, *, out: str | None) -> jax.Array:
    """`dense` with each of s parts' parameters as one product, [B, T, D] -> [s, B, T, F], and so are its gradients."""
    dtype = x_BTD.dtype
    # Row-major, as the kernels are stored. Otherwise XLA transposes their gradients, and AdamW copies every moment.
    kernel_sDF = _row_major(jnp.stack([p["kernel"].astype(dtype) for p in parts]))
    y_sBTF = jnp.einsum("BTD,sDF->sBTF", x_BTD, kernel_sDF)
    if any("bias" in p for p in parts):  # Whisper's keys have none
        none_F = jnp.zeros(y_sBTF.shape[-1:], dtype)
        y_sBTF = jax.vmap(add_bias)(y_sBTF, jnp.stack([p.get("bias", none_F).astype(dtype) for p in parts]))
    return checkpoint_name(sharding.constrain(y_sBTF, (None, "batch", "length", out)), "product")


def attend_fused(qkv_3BTD: jax.Array, mask: Any, *, head_width: int, scale: float) -> jax.Array:
    """`nn.attention.attend` of queries, keys and values in one array, [B, T, N * H], where `fused_fits`.

    Args:
      qkv_3BTD: [3, B, T, N * H].
      mask: an `nn.masks.Mask`.
      head_width: H.
      scale: what the scores are multiplied by.
    """
    return _kernel((qkv_3BTD,), head_width, mask, scale)


def attention_fits(q_BTNH: Any, mask: Any, *, num_keys: int, bias: bool, dropout: bool) -> bool:
    """Whether `attention` computes this case.

    Args:
      q_BTNH: queries, or their shape and dtype: float32 or bfloat16, heads in multiples of 16 wide.
      mask: any but a prefix.
      num_keys: S; lengths must have blocks that divide them and fit the chip (`tpu_attention.fits`).
      bias: whether the scores have a bias.
      dropout: whether the probabilities have dropout.
    """
    return _fits(q_BTNH, mask, num_keys=num_keys, bias=bias, dropout=dropout)


def _fits(q_BTNH: Any, mask: Any, *, num_keys: int, bias: bool, dropout: bool, **layout: bool) -> bool:
    """As `attention_fits`, in a `layout` of `tpu_attention.fits`."""
    if bias or dropout or q_BTNH.dtype not in (jnp.bfloat16, jnp.float32) or mask.prefix_B is not None:
        return False
    _, T, N, H = q_BTNH.shape
    T, N = T // sharding.shards("length"), N // sharding.shards("heads")
    sizes: dict[str, Any] = {"bytes_each": q_BTNH.dtype.itemsize, "chip": kernels.target_chip()}
    return tpu_attention.fits(T, num_keys, N, H, **(sizes | layout))


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
    """`nn.attention.attend` by our Pallas kernel (`tpu_attention`), where `attention_fits`.

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
    (B, T, N, H), S = q_BTNH.shape, k_BSKH.shape[1]
    if not attention_fits(q_BTNH, mask, num_keys=S, bias=bias_NTS is not None, dropout=key is not None):
        options: Any = {"bias_NTS": bias_NTS, "scale": scale, "dropout_rate": dropout_rate, "key": key}
        return plain(q_BTNH, k_BSKH, v_BSKH, mask, **options)
    case: Any = {"num_keys": S, "bias": False, "dropout": False}
    if k_BSKH.shape[2] != N and not _fits(q_BTNH, mask, **case, grouped=True):
        k_BSKH, v_BSKH = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k_BSKH, v_BSKH))
    operands = tuple(x.reshape(*x.shape[:2], -1) for x in (q_BTNH, k_BSKH, v_BSKH))
    return _kernel(operands, H, mask, scale).reshape(B, T, N, H)


def _kernel(operands: tuple[jax.Array, ...], head_width: int, mask: Any, scale: float) -> jax.Array:
    """The kernel on each device's rows, queries and heads, which stay side by side as the projections make them."""
    (B, T, _), S = operands[0].shape[-3:], operands[-1].shape[-2]
    ids, length_axes = segments(mask, B, T, S), sharding.mesh_axes("length")
    rows = (("batch", "length"), ("batch", None))
    if ids is not None:  # in an Explicit mesh the type of these arrays has no sharding yet
        ids = (sharding.constrain(ids[0], rows[0]), sharding.constrain(ids[1], rows[1]))
    window = () if mask.window is None else (jnp.asarray(mask.window, jnp.int32),)
    chip, interpret = kernels.target_chip(), kernels.target_platform() == "cpu"
    count = len(operands)

    def local(*arrays):
        mine, rest = arrays[:count], arrays[count:]
        return tpu_attention.attention(
            mine,
            segments=rest[:2] if ids is not None else None,
            offset=jax.lax.axis_index(length_axes) * mine[0].shape[-2] if length_axes else 0,
            window=rest[-1] if window else None,
            head_width=head_width,
            causal=mask.causal,
            scale=scale,
            chip=chip,
            narrow=isinstance(mask.window, int) and mask.window <= tpu_attention.NARROW,
            interpret=interpret,
        )

    queries, keys = ("batch", "length", "heads"), ("batch", None, "heads")
    axes: list[Any] = [queries, keys, keys] if count == 3 else [(None, *keys)]
    axes += [*(rows if ids else ()), *[()] * len(window)]
    return _on_each_device(local, *operands, *(ids or ()), *window, axes=axes, out=queries)


def segments(mask: Any, batch: int, num_queries: int, num_keys: int) -> tuple[jax.Array, jax.Array] | None:
    """A mask's segments, left and right padding as ids of queries and keys, int32 ([B, T], [B, S]).

    A query sees the keys of its own id, and a hidden key has an id that no query has. None where none of them hides
    anything. Causal, prefix and window are not included.

    Args:
      mask: an `nn.masks.Mask`.
      batch: B.
      num_queries: T.
      num_keys: S.
    """
    if all(a is None for a in (mask.segment_BT, mask.start_B, mask.end_B)):
        return None
    query_BT = jnp.zeros((batch, num_queries), jnp.int32) if mask.segment_BT is None else mask.segment_BT
    key_BS = jnp.zeros((batch, num_keys), jnp.int32)
    if mask.segment_BT is not None:
        key_BS = mask.segment_BT if mask.key_segment_BS is None else mask.key_segment_BS
    keys_S = jnp.arange(num_keys)
    if mask.start_B is not None:
        key_BS = jnp.where(keys_S >= mask.start_B[:, None], key_BS, -1)
    if mask.end_B is not None:
        key_BS = jnp.where(keys_S < mask.end_B[:, None], key_BS, -1)
    return query_BT.astype(jnp.int32), key_BS.astype(jnp.int32)


def _on_each_device(f: Callable[..., jax.Array], *arrays: jax.Array, axes: Sequence[Axes], out: Axes) -> jax.Array:
    """f of each device's shards of the arrays; of the arrays themselves where there is no mesh.

    No compiler can shard a kernel: it would gather its operands. f's result has the last dimensions of the first array.

    Args:
      f: a function of arrays with the dimensions of `arrays`.
      *arrays: sharded as `axes`.
      axes: the logical axes of each array.
      out: the logical axes of the result.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}
    if not free or math.prod(mesh.shape[n] for n in free) == 1:
        return f(*arrays)
    specs = tuple(sharding.partition_spec(a, x.shape, mesh) for a, x in zip(axes, arrays, strict=True))
    out_spec = sharding.partition_spec(out, arrays[0].shape[-len(out) :], mesh)
    return jax.shard_map(f, in_specs=specs, out_specs=out_spec, axis_names=free, check_vma=False)(*arrays)


def _is_explicit() -> bool:
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
