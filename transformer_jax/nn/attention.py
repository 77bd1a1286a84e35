"""Attention: one function for self, cross, multi-head and grouped-query attention, and the cache for decoding.

B batch, T queries, S keys (or cache slots), N query heads, K key/value heads, G = N // K, H head width, L layers,
R rows of a reordered cache.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax import kernels, sharding
from transformer_jax.nn import watch
from transformer_jax.nn.layers import dropout
from transformer_jax.nn.masks import Mask

# An implementation's name -> the platform whose kernel it is. "xla" is the plain form.
IMPLEMENTATIONS = {"auto": "auto", "xla": "plain", "tpu": "tpu", "cudnn": "gpu", "cpu": "cpu"}

# ----------------------------------------------------------------------------------------------------------- attention


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    bias_NTS: jax.Array | None = None,
    scale: float | None = None,
    cap: float = 0.0,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str = "auto",
    kind: str = watch.SELF,
) -> jax.Array:
    """softmax(q k^T scale + bias) v over the keys that the mask allows, [B, T, N, H] (Vaswani et al. 2017, 3.2).

    Scores and softmax are float32.

    Args:
      q_BTNH: queries.
      k_BSKH: keys; K divides N (grouped-query attention, Ainslie et al. 2023).
      v_BSKH: values.
      mask: who may attend to whom.
      bias_NTS: added to the scores; one for all rows, or [B, N, T, S].
      scale: what the scores are multiplied by; None: 1/sqrt(H).
      cap: the soft cap of the scores before the mask (`kernels.soft_cap`), for which the plain form runs; 0: none.
      dropout_rate: the dropout rate of the probabilities.
      key: the random key for dropout; None: no dropout.
      implementation: a name of `IMPLEMENTATIONS`. "auto" is the platform's kernel where it computes this case, and
        otherwise the plain form, "xla".
      kind: by which name `watch` keeps the probabilities.

    Raises:
      ValueError: a causal, segment or window mask with T != S, or a named implementation that does not compute this
        case.
    """
    mask.check(q_BTNH.shape[1], k_BSKH.shape[1])
    scale = 1.0 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
    k_BSKH = sharding.constrain(k_BSKH, ("batch", None, "kv_heads", None))  # every query needs all keys
    v_BSKH = sharding.constrain(v_BSKH, ("batch", None, "kv_heads", None))
    key = key if dropout_rate > 0.0 else None
    if watch.current() is not None:
        return _watched(
            q_BTNH, k_BSKH, v_BSKH, mask.dense(q_BTNH.shape[1], k_BSKH.shape[1]), bias_NTS, scale, cap, kind
        )
    options: Any = {"bias_NTS": bias_NTS, "scale": scale, "dropout_rate": dropout_rate, "key": key}

    def refuse(*operands: Any, **options: Any) -> jax.Array:
        hidden_by = [name for name, value in vars(mask).items() if value is not None and value is not False]
        case = {"num_keys": k_BSKH.shape[1], "bias": bias_NTS is not None, "dropout": key is not None, "cap": cap}
        raise ValueError(
            f"attention {implementation!r} does not compute this case ({q_BTNH.dtype}, head width {q_BTNH.shape[-1]}, "
            f"mask by {hidden_by}, {case}); 'auto' picks an implementation that does"
        )

    kernel = None if cap else kernels.find("attention", IMPLEMENTATIONS.get(implementation, "plain"))
    local = implementation == "cpu" and key is None and mask.local_block(q_BTNH.shape[1]) is not None
    plain = functools.partial(_attend, cap=cap) if implementation in ("auto", "xla") or local else refuse
    operands = (q_BTNH, k_BSKH, v_BSKH, mask)
    return plain(*operands, **options) if kernel is None else kernel(plain, *operands, **options)


def _attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    bias_NTS: jax.Array | None,
    scale: float,
    dropout_rate: float,
    key: jax.Array | None,
    cap: float,
) -> jax.Array:
    """The plain form."""
    (B, T, N, H), (S, K) = q_BTNH.shape, k_BSKH.shape[1:3]
    with jax.named_scope("attention"):
        q_BKGTH = jnp.moveaxis(q_BTNH.reshape(B, T, K, N // K, H), 1, 3)
        k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
        block = mask.local_block(T) if bias_NTS is None and sharding.shards("length") == 1 else None
        if block is None:
            out_BKGTH = _heads_first(q_BKGTH, k_BKSH, v_BKSH, mask.dense(T, S), bias_NTS, scale, cap, dropout_rate, key)
        else:
            out_BKGTH = _local(q_BKGTH, k_BKSH, v_BKSH, mask, block, scale, cap, dropout_rate, key)
        return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H)


def _watched(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array | None,
    bias_NTS: jax.Array | None,
    scale: float,
    cap: float,
    kind: str,
) -> jax.Array:
    """The plain form without dropout, whose probabilities `watch` keeps and may change, [B, T, N, H]."""
    times = q_BTNH.shape[2] // k_BSKH.shape[2]
    k_BSNH, v_BSNH = jnp.repeat(k_BSKH, times, axis=2), jnp.repeat(v_BSKH, times, axis=2)
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH * scale, k_BSNH, preferred_element_type=jnp.float32)
    scores_BNTS = scores_BNTS if bias_NTS is None else scores_BNTS + bias_NTS
    scores_BNTS = kernels.soft_cap(scores_BNTS, cap) if cap else scores_BNTS
    if mask_BTS is not None:
        scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, -1e30)
    seen = watch.current()
    assert seen is not None
    probs_BNTS = seen.changed(kind, jax.nn.softmax(scores_BNTS, axis=-1))
    return jnp.einsum("BNTS,BSNH->BTNH", probs_BNTS.astype(v_BSNH.dtype), v_BSNH)


def _local(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask: Mask,
    block: int,
    scale: float,
    cap: float,
    dropout_rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """The definition by n blocks of t queries, each with the s = t + 2 window keys in its reach: time and memory grow
    with T s in place of T T."""
    T, reach = q_BKGTH.shape[3], mask.window
    n = -(-T // block)
    assert isinstance(reach, int)

    def in_reach(x: jax.Array, axis: int) -> jax.Array:
        """x [..., T, ...] -> [..., n, s, ...]: the end of the block before, each block, the head of the next."""
        widths = [(reach, reach + n * block - T) if i == axis else (0, 0) for i in range(x.ndim)]
        padded, shape = jnp.pad(x, widths), (*x.shape[:axis], n, block, *x.shape[axis + 1 :])
        shifted = [jax.lax.slice_in_dim(padded, i * reach, i * reach + n * block, axis=axis) for i in range(3)]
        before, own, after = (one.reshape(shape) for one in shifted)
        before = jax.lax.slice_in_dim(before, 0, reach, axis=axis + 1)
        after = jax.lax.slice_in_dim(after, block - reach, block, axis=axis + 1)
        return jnp.concatenate([before, own, after], axis=axis + 1)

    queries_nt = jnp.arange(n * block).reshape(n, block)
    keys_ns = queries_nt[:, :1] - reach + jnp.arange(block + 2 * reach)
    distance_nts = queries_nt[:, :, None] - keys_ns[:, None, :]
    nearest = 0 if mask.causal else -reach
    exists_ns = (keys_ns >= 0) & (keys_ns < T)
    allowed_Bnts = ((distance_nts <= reach) & (distance_nts >= nearest) & exists_ns[:, None])[None]
    if mask.segment_BT is not None:
        queries_BT = jnp.pad(mask.segment_BT, [(0, 0), (0, n * block - T)])
        same = queries_BT.reshape(-1, n, block)[..., None] == in_reach(mask.segment_BT, 1)[:, :, None]
        allowed_Bnts = allowed_Bnts & same
    if mask.start_B is not None:
        allowed_Bnts = allowed_Bnts & (keys_ns[:, None] >= mask.start_B[:, None, None, None])
    if mask.end_B is not None:
        allowed_Bnts = allowed_Bnts & (keys_ns[:, None] < mask.end_B[:, None, None, None])

    q_BKGTH = jnp.pad(q_BKGTH, [(0, 0)] * 3 + [(0, n * block - T), (0, 0)])
    q_BKGntH = q_BKGTH.reshape(*q_BKGTH.shape[:3], n, block, q_BKGTH.shape[4])
    keys_n = None if key is None else jax.random.split(key, n)

    def one(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array, key: jax.Array | None) -> jax.Array:
        return _heads_first(q, k, v, allowed, None, scale, cap, dropout_rate, key)

    in_axes = (3, 2, 2, 1, None if key is None else 0)
    each = jax.vmap(one, in_axes=in_axes, out_axes=3)
    out_BKGntH = each(q_BKGntH, in_reach(k_BKSH, 2), in_reach(v_BKSH, 2), allowed_Bnts, keys_n)
    return out_BKGntH.reshape(q_BKGTH.shape)[..., :T, :]


def _heads_first(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array | None,
    bias_NTS: jax.Array | None,
    scale: float,
    cap: float,
    dropout_rate: float,
    key: jax.Array | None,
) -> jax.Array:
    """The definition, [B, K, G, T, H]: the G query heads of a key head are one group, so that keys are not repeated."""
    K, G, T, S = *q_BKGTH.shape[1:4], k_BKSH.shape[2]
    # The queries are scaled and not the scores, which are larger.
    scores_BKGTS = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH * scale, k_BKSH, preferred_element_type=jnp.float32)
    if bias_NTS is not None:
        scores_BKGTS += bias_NTS.reshape(-1, K, G, T, S)
    scores_BKGTS = kernels.soft_cap(scores_BKGTS, cap) if cap else scores_BKGTS
    if mask_BTS is not None:
        # A finite low value: the result of a query that sees no key (a padded one) is not used, but must not be NaN.
        scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, -1e30)
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BKSH.dtype)
    probs_BKGTS = dropout(probs_BKGTS, dropout_rate, key)
    return jnp.einsum("BKGTS,BKSH->BKGTH", probs_BKGTS, v_BKSH)


def attend_cached(
    q_BNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask: Mask,
    *,
    bias_NS: jax.Array | None = None,
    scale: float | None = None,
    cap: float = 0.0,
) -> jax.Array:
    """Attention of one query for each row to a layer's cache, [B, N, H].

    Args:
      q_BNH: queries.
      k_BKSH: the cache's keys.
      v_BKSH: the cache's values.
      mask: which slots are filled.
      bias_NS: added to the scores.
      scale: what the scores are multiplied by; None: 1/sqrt(H).
      cap: as for `attend`.
    """
    B, N, H = q_BNH.shape
    K, S = k_BKSH.shape[1:3]
    q_BKGTH = q_BNH.reshape(B, K, N // K, 1, H)
    bias_NTS = None if bias_NS is None else bias_NS[:, None, :]
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    if watch.current() is not None:
        k_BSKH, v_BSKH = jnp.moveaxis(k_BKSH, 1, 2), jnp.moveaxis(v_BKSH, 1, 2)
        return _watched(q_BNH[:, None], k_BSKH, v_BSKH, mask.dense(1, S), bias_NTS, scale, cap, watch.CACHED)[:, 0]
    return _heads_first(q_BKGTH, k_BKSH, v_BKSH, mask.dense(1, S), bias_NTS, scale, cap, 0.0, None).reshape(B, N, H)


# --------------------------------------------------------------------------------------------------------------- cache

REORDERED_SLOTS = 16  # slots that are moved at once: they fit a CPU's cache, and their copies are long enough


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens seen so far.

    Attributes:
      k_LBKSH: keys; heads before slots, so that decoding reads each head's keys contiguously.
      v_LBKSH: values.
      index: int32 scalar, the slot of the next token, the same for every row.
      start_B: int32, each row's first slot with a token; the slots before it are left padding.
    """

    k_LBKSH: jax.Array
    v_LBKSH: jax.Array
    index: jax.Array
    start_B: jax.Array

    @property
    def num_slots(self) -> int:
        """S, the number of slots, filled or free."""
        return self.k_LBKSH.shape[3]


def empty_cache(
    num_layers: int, batch: int, num_slots: int, kv_heads: int, head_width: int, dtype: jnp.dtype
) -> KVCache:
    """A cache with free slots only.

    Args:
      num_layers: L.
      batch: B.
      num_slots: S, for each row.
      kv_heads: K.
      head_width: H.
      dtype: the dtype of keys and values.
    """
    shape = (num_layers, batch, kv_heads, num_slots, head_width)
    axes = (None, "batch", "kv_heads", None, None)
    k_LBKSH, v_LBKSH = (sharding.constrain(jnp.zeros(shape, dtype), axes) for _ in range(2))  # two buffers to donate
    return KVCache(k_LBKSH, v_LBKSH, jnp.zeros((), jnp.int32), jnp.zeros((batch,), jnp.int32))


def write(cache: KVCache, layer: jax.Array | int, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KVCache:
    """The cache with T tokens' keys and values of one layer in the slots from `index` on; `index` is not changed.

    Args:
      cache: with T free slots.
      layer: its number; it may be traced.
      k_BTKH: keys.
      v_BTKH: values.
    """
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
    """The cache whose row r is row `rows_R[r]` of `cache`; indices are int32 in range, and R may differ from B.

    Beam search repeats rows once and then permutes them after every token. With as many rows as before, only the filled
    slots are moved, a few at a time and in place. The free slots then hold values of other rows, which are not read.
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
