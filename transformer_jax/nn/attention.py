"""Attention: one function for self, cross, multi-head and grouped-query attention, and the cache for decoding.

B batch, T queries, S keys (or cache slots), N query heads, K key/value heads, G = N // K, H head width, L layers.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from transformer_jax import sharding
from transformer_jax.nn import attention_cpu, attention_tpu, masks
from transformer_jax.nn.layers import dropout
from transformer_jax.nn.masks import Mask

REORDERED_SLOTS = 16  # moved at a time: few enough for a CPU's cache, enough for long runs of memory


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens seen so far.

    k_LBKSH, v_LBKSH   heads before slots: decoding then reads each head's keys contiguously
    index              int32 scalar: the slot that the next token takes, the same for every row
    start_B            int32: each row's first slot that holds a token; the slots before it are left padding
    """

    k_LBKSH: jax.Array
    v_LBKSH: jax.Array
    index: jax.Array
    start_B: jax.Array

    @property
    def num_slots(self) -> int:
        """S."""
        return self.k_LBKSH.shape[3]


def empty_cache(
    num_layers: int, batch: int, num_slots: int, kv_heads: int, head_width: int, dtype: jnp.dtype
) -> KVCache:
    """A cache of `num_slots` slots for each of `batch` rows with nothing in it."""
    shape = (num_layers, batch, kv_heads, num_slots, head_width)
    axes = (None, "batch", "kv_heads", None, None)
    k_LBKSH, v_LBKSH = (sharding.constrain(jnp.zeros(shape, dtype), axes) for _ in range(2))  # two buffers to donate
    return KVCache(k_LBKSH, v_LBKSH, jnp.zeros((), jnp.int32), jnp.zeros((batch,), jnp.int32))


def write(cache: KVCache, layer: jax.Array | int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KVCache:
    """The cache with T tokens' keys and values of one layer in the slots from `index` on; `index` stays."""
    at = (layer, 0, 0, cache.index, 0)
    k_LBKTH, v_LBKTH = (jnp.moveaxis(x, 1, 2)[None].astype(cache.k_LBKSH.dtype) for x in (k_BTKH, v_BTKH))
    axes = (None, "batch", "kv_heads", None, None)
    k_LBKTH, v_LBKTH = sharding.constrain(k_LBKTH, axes), sharding.constrain(v_LBKTH, axes)
    return dataclasses.replace(
        cache,
        k_LBKSH=jax.lax.dynamic_update_slice(cache.k_LBKSH, k_LBKTH, at),
        v_LBKSH=jax.lax.dynamic_update_slice(cache.v_LBKSH, v_LBKTH, at),
    )


def reorder(cache: KVCache, rows_R: jax.Array) -> KVCache:
    """The cache whose row r is row rows_R[r] of this one, [R] int32 in range; R may differ from B.

    Beam search repeats rows with it once and then permutes them after every token. With as many rows as before, only
    the slots that are filled move, a few at a time and in place; the rest of a row is not its own, and nobody reads it.
    """
    (B, _, S, _), start_R = cache.k_LBKSH.shape[1:], jnp.take(cache.start_B, rows_R, mode="clip")
    if len(rows_R) != B:
        k_LRKSH, v_LRKSH = (_take_rows(x, rows_R) for x in (cache.k_LBKSH, cache.v_LBKSH))
        return dataclasses.replace(cache, k_LBKSH=k_LRKSH, v_LBKSH=v_LRKSH, start_B=start_R)
    C = min(REORDERED_SLOTS, S)

    def move(chunk: jax.Array, arrays: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        first = jnp.minimum(chunk * C, S - C)
        again_C1 = (first + jnp.arange(C) < chunk * C)[:, None]  # the last chunk may begin in the one before it

        def one(x_LBKSH: jax.Array) -> jax.Array:
            old_LBKCH = jax.lax.dynamic_slice_in_dim(x_LBKSH, first, C, axis=3)
            new_LBKCH = jnp.where(again_C1, old_LBKCH, _take_rows(old_LBKCH, rows_R))
            return jax.lax.dynamic_update_slice_in_dim(x_LBKSH, new_LBKCH, first, axis=3)

        return tuple(one(x) for x in arrays)

    chunks = (cache.index + C - 1) // C
    k_LBKSH, v_LBKSH = jax.lax.fori_loop(0, chunks, move, (cache.k_LBKSH, cache.v_LBKSH))
    return dataclasses.replace(cache, k_LBKSH=k_LBKSH, v_LBKSH=v_LBKSH, start_B=start_R)


def _take_rows(x_LBKSH: jax.Array, rows_R: jax.Array) -> jax.Array:
    x_LRKSH = jnp.take(x_LBKSH, rows_R, axis=1, mode="clip")
    return sharding.constrain(x_LRKSH, (None, "batch", "kv_heads", None, None))


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    bias_NTS: jax.Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(q k^T scale + bias) v over the keys that the mask allows, [B, T, N, H] (Vaswani et al. 2017, 3.2).

    Arguments: queries, keys and values (N a multiple of K: grouped-query attention, Ainslie et al. 2023); the mask;
    a bias on the scores; scale, 1/sqrt(H) by default; dropout of the probabilities, applied only with a key;
    implementation "auto", "xla", "tpu", "cudnn" or "cpu" (see `choose`). Scores and softmax are float32.
    Errors: `ValueError` for a causal, segment or window mask with T != S, and for a named implementation that does not
    compute this case (it would leave out the mask, the bias or the dropout).
    """
    masks.check(mask, q_BTNH.shape[1], k_BSKH.shape[1])
    scale = 1.0 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
    dropping = key is not None and dropout_rate > 0.0
    k_BSKH = sharding.constrain(k_BSKH, ("batch", None, "kv_heads", None))  # every query needs all keys
    v_BSKH = sharding.constrain(v_BSKH, ("batch", None, "kv_heads", None))
    case: Any = {"num_keys": k_BSKH.shape[1], "bias": bias_NTS is not None, "dropout": dropping}
    if implementation == "auto":
        implementation = choose(q_BTNH, mask, **case)
    elif not covers(implementation, q_BTNH, mask, **case):
        hidden_by = [name for name, value in vars(mask).items() if value is not None and value is not False]
        raise ValueError(
            f"attention {implementation!r} does not compute this case ({q_BTNH.dtype}, head width {q_BTNH.shape[-1]}, "
            f"mask by {hidden_by}, {case}); 'auto' picks an implementation that does"
        )
    if implementation == "cudnn":
        return _cudnn(q_BTNH, k_BSKH, v_BSKH, mask, scale)
    if implementation == "tpu":
        B, T, N, H = q_BTNH.shape
        if k_BSKH.shape[2] != N:  # grouped queries
            k_BSKH, v_BSKH = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k_BSKH, v_BSKH))
        operands = tuple(x.reshape(B, -1, N * H) for x in (q_BTNH, k_BSKH, v_BSKH))
        return _tpu(operands, H, mask, scale).reshape(B, T, N, H)
    with jax.named_scope("attention"):
        return _unfused(
            implementation, q_BTNH, k_BSKH, v_BSKH, mask, bias_NTS, scale, dropout_rate, key if dropping else None
        )


def attend_together(qkv_3BTD: jax.Array, mask: Mask, *, head_width: int, scale: float) -> jax.Array:
    """`attend` of queries, keys and values in one array [3, B, T, N * H], -> [B, T, N * H]; see `takes_together`."""
    masks.check(mask, qkv_3BTD.shape[2], qkv_3BTD.shape[2])
    return _tpu((qkv_3BTD,), head_width, mask, scale)


def takes_together(q_BTNH: Any, mask: Mask, *, bias: bool, dropout: bool, implementation: str) -> bool:
    """Whether self-attention of such queries is better made of one array, for which one product makes queries, keys and
    values: x is read once for all three, and its gradient written once. Our kernel for TPUs takes them so where the
    length is whole on each device, and so is every head; not on Explicit axes, for which that product is not written.
    The arguments are those of `choose`, of q the shape and the dtype."""
    if implementation not in ("auto", "tpu") or AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        return False
    if q_BTNH.shape[2] % sharding.shards("heads"):  # three products say what is wrong
        return False
    ours = implementation == "tpu" or sharding.target_platform() == "tpu"
    case: Any = {"num_keys": q_BTNH.shape[1], "bias": bias, "dropout": dropout, "together": True}
    return ours and sharding.shards("length") == 1 and covers("tpu", q_BTNH, mask, **case)


def _unfused(
    implementation: str,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    bias_NTS: jax.Array | None,
    scale: float,
    dropout_rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """By operations that the compiler knows, with heads before lengths."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = jnp.moveaxis(q_BTNH.reshape(B, T, K, N // K, H), 1, 3)
    k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
    if implementation == "cpu":
        # Its causal blocks, or all of the mask as booleans: a prefix is visible ahead of the diagonal.
        causal = mask.causal and mask.prefix_B is None
        mask_BTS = masks.dense(dataclasses.replace(mask, causal=mask.causal and not causal), T, k_BSKH.shape[1])
        out_BKGTH = attention_cpu.attention(q_BKGTH, k_BKSH, v_BKSH, mask_BTS, causal, scale)
    else:
        mask_BTS = masks.dense(mask, T, k_BSKH.shape[1])
        out_BKGTH = _plain(q_BKGTH, k_BKSH, v_BKSH, mask_BTS, bias_NTS, scale, dropout_rate, key)
    return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H)


def attend_cached(
    q_BNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask: Mask,
    *,
    bias_NS: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """One query per row against a layer's cache, [B, N, H]; the mask says which slots are filled."""
    B, N, H = q_BNH.shape
    K, S = k_BKSH.shape[1:3]
    q_BKGTH = q_BNH.reshape(B, K, N // K, 1, H)
    bias_NTS = None if bias_NS is None else bias_NS[:, None, :]
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    out = _plain(q_BKGTH, k_BKSH, v_BKSH, masks.dense(mask, 1, S), bias_NTS, scale, 0.0, None)
    return out.reshape(B, N, H)


def choose(q_BTNH: jax.Array, mask: Mask, *, num_keys: int, bias: bool, dropout: bool) -> str:
    """The implementation for these operands, by the platform that the program is for.

    "tpu"     TPU: a kernel of ours (`attention_tpu`); any mask but a prefix, head widths in multiples of 16, lengths
              that its blocks divide
    "cudnn"   GPU: fused; float16 and bfloat16, head widths up to 128 in multiples of 8, even lengths, causal masks and
              right padding
    "cpu"     CPU: blocks of queries (`attention_cpu`); float32, any mask, the length unsharded
    "xla"     everything else, on any platform
    """
    own = {"gpu": "cudnn", "cpu": "cpu", "tpu": "tpu"}.get(sharding.target_platform(), "xla")
    return own if covers(own, q_BTNH, mask, num_keys=num_keys, bias=bias, dropout=dropout) else "xla"


def covers(
    implementation: str,
    q_BTNH: jax.Array,
    mask: Mask,
    *,
    num_keys: int,
    bias: bool,
    dropout: bool,
    together: bool = False,
) -> bool:
    """Whether an implementation computes this case at all, on the platform that it is for; together: with queries, keys
    and values in one array."""
    if implementation == "xla":
        return True
    if bias or dropout:
        return False
    if implementation == "cudnn":
        T, H = q_BTNH.shape[1], q_BTNH.shape[-1]
        fits = q_BTNH.dtype in (jnp.bfloat16, jnp.float16) and H % 8 == 0 and H <= 128
        # JAX refuses to differentiate it for odd lengths, such as the 197 tokens of a ViT with its class token.
        fits = fits and T % 2 == 0 and num_keys % 2 == 0
        return fits and all(a is None for a in (mask.segment_BT, mask.prefix_B, mask.start_B, mask.window))
    if implementation == "tpu":
        _, T, N, H = q_BTNH.shape
        T, N = T // sharding.shards("length"), N // sharding.shards("heads")
        sizes: Any = {"bytes_each": q_BTNH.dtype.itemsize, "chip": sharding.target_chip(), "together": together}
        fits = attention_tpu.fits(T, num_keys, N, H, **sizes)
        return fits and q_BTNH.dtype in (jnp.bfloat16, jnp.float32) and mask.prefix_B is None
    return implementation == "cpu" and q_BTNH.dtype == jnp.float32 and sharding.shards("length") == 1


def _plain(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array | None,
    bias_NTS: jax.Array | None,
    scale: float,
    dropout_rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """The definition, on any platform. Query heads that share a key head stand together, so nothing is repeated."""
    K, G, T, S = *q_BKGTH.shape[1:4], k_BKSH.shape[2]
    # The scale is applied to the queries, the smaller operand.
    scores_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH * scale, k_BKSH, preferred_element_type=jnp.float32)
    if bias_NTS is not None:
        scores_BKGTS += bias_NTS.reshape(K, G, T, S)
    if mask_BTS is not None:
        # A finite low value: a row that may see nothing (a padded query) gets numbers nobody reads, not NaN.
        scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, -1e30)
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BKSH.dtype)
    probs_BKGTS = dropout(probs_BKGTS, dropout_rate, key)
    return jnp.einsum("BKGTS,BKSH->BKGTH", probs_BKGTS, v_BKSH)


def _cudnn(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, scale: float) -> jax.Array:
    """cuDNN's fused kernel, told the mask as a flag and lengths: it never holds the scores in memory."""
    B, T = q_BTNH.shape[:2]
    lengths: dict[str, Any] = {}
    if mask.end_B is not None:
        # A row that only fills up a batch has no keys at all: one, so that its softmax has something to be of.
        ends_B = jnp.maximum(mask.end_B, 1).astype(jnp.int32)
        lengths = {"query_seq_lengths": jnp.full((B,), T, jnp.int32), "key_value_seq_lengths": ends_B}
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, scale=scale, is_causal=mask.causal, implementation="cudnn", **lengths
    )


def _tpu(operands: tuple[jax.Array, ...], head_width: int, mask: Mask, scale: float) -> jax.Array:
    """Our kernel on each device's rows, queries and heads, which lie side by side, as the projections make them."""
    (B, T, _), S = operands[0].shape[-3:], operands[-1].shape[-2]
    ids, cut, rows = masks.as_segments(mask, B, T, S), sharding.cut_by("length"), (("batch", "length"), ("batch", None))
    if ids is not None:  # made here: on Explicit axes their types do not say yet where they lie
        ids = (sharding.constrain(ids[0], rows[0]), sharding.constrain(ids[1], rows[1]))
    window = () if mask.window is None else (jnp.asarray(mask.window, jnp.int32),)
    chip, interpret = sharding.target_chip(), sharding.target_platform() == "cpu"
    count = len(operands)

    def local(*arrays):
        mine, rest = arrays[:count], arrays[count:]
        return attention_tpu.attention(
            mine,
            segments=rest[:2] if ids is not None else None,
            offset=jax.lax.axis_index(cut) * mine[0].shape[-2] if cut else 0,
            window=rest[-1] if window else None,
            head_width=head_width,
            causal=mask.causal,
            scale=scale,
            chip=chip,
            interpret=interpret,
        )

    queries, keys = ("batch", "length", "heads"), ("batch", None, "heads")
    axes: list[Any] = [queries, keys, keys] if count == 3 else [(None, *keys)]
    axes += [*(rows if ids else ()), *[()] * len(window)]
    return sharding.on_each_device(local, *operands, *(ids or ()), *window, axes=axes, out=queries)
