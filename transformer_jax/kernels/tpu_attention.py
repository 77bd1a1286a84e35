"""Attention as a Pallas kernel for TPUs: the scores never leave the chip, and no head is copied to another layout.

Queries, keys and values are [B, T, N * H], as the projections make them, or one array [3, B, T, N * H] where one
product makes all three, which then has one gradient. A program of the grid works on a block of columns: one head of
width 128, the two heads of 64 that share 128 lanes, or all heads where widths fit neither. So nothing is transposed or
padded in memory before or after the kernel. In TPU programs with 64-wide heads that is a quarter of the time outside
the kernel (docs/performance.md, by the compiler's estimate).

The scores are computed transposed, keys down and queries across, as in JAX's splash attention. The statistics of a
query (its maximum, its sum, the log of its denominator) are then a row, which broadcasts over sublanes and is stored
without a transposition. Within a block of 128 lanes, one head is selected by zeros in the other's lanes. This is free:
the matrix unit contracts 128 lanes whether 64 of them are zero or not, and the sums of a block's heads are in separate
lanes.

The forward pass is the online softmax of FlashAttention (Dao et al. 2022, algorithm 1), which keeps the log of each
query's denominator. The backward pass (Dao 2023, section 3.1.2) recomputes the probabilities, once, for all three
gradients. Blocks that the causal mask or the window hides completely are not visited.

B batch, T queries, S keys, N heads, H head width, J blocks of C columns, P = C // H heads of a block; t and s: queries
and keys of a block.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
HIDDEN = -1e30  # finite: the result of a query that sees no key is not used, but must not be NaN
FEW = 8  # the rows of a register; with fewer queries or keys the kernel gains nothing
LARGEST_BLOCK = 1024  # queries or keys, where no smaller size divides them
NARROW = 128  # a window up to here has blocks of at most 256: of larger ones, most pairs would be hidden
# Bytes of the vector memory in which a kernel works; later chips have 64 MiB or more.
SMALL_VMEM = {"TPU v4": 16 * 2**20}


class Shape(NamedTuple):
    """What the compiled program depends on: static and hashable."""

    head_width: int
    scale: float
    causal: bool
    local: bool  # whether there is a window
    narrow: bool  # whether it is known to be at most `NARROW`
    fused: bool  # whether queries, keys and values are one array [3, B, T, D], and so their gradients
    chip: str
    interpret: bool


def block(length: int, narrow: bool = False) -> int | None:
    """The queries or keys of a block of a sequence of this `length`; None where no block divides it.

    Args:
      length: the length of the sequence.
      narrow: whether a window hides all but few keys.
    """
    if length <= 256:
        return length
    sizes = (256, 128) if narrow else (512, 384, 256, 128)
    return next((size for size in sizes if length % size == 0), length if length <= LARGEST_BLOCK else None)


def fits(
    num_queries: int,
    num_keys: int,
    num_heads: int,
    head_width: int,
    *,
    bytes_each: int,
    chip: str,
    fused: bool = False,
    grouped: bool = False,
) -> bool:
    """Whether the kernel computes these sizes: blocks divide the lengths, and fit the chip's vector memory.

    Args:
      num_queries: T on one device.
      num_keys: S.
      num_heads: N on one device.
      head_width: H.
      bytes_each: the bytes of one element.
      chip: `jax.Device.device_kind`.
      fused: whether queries, keys and values are one array.
      grouped: whether several query heads share a head of keys and values, which needs blocks of one head.
    """
    t, s = block(num_queries), block(num_keys)
    if t is None or s is None or head_width % 16 or min(num_queries, num_keys) < FEW:
        return False
    C = _columns(num_heads, head_width)
    if grouped and head_width != C:
        return False
    # Each array counts twice, because the next block is fetched meanwhile. Forward: a block of q and o, all of k and v.
    # Backward: all of q, o, do and dq with its float32 sums, blocks of k and v and of their gradients, or all of the
    # gradients where they are one array or summed over the query heads of a group.
    forward = 2 * bytes_each * C * (2 * t + 2 * num_keys)
    summed = num_keys if grouped else s
    gradients = 3 * num_queries if fused else num_queries + 2 * summed
    backward = 2 * bytes_each * C * (3 * num_queries + 2 * s + gradients) + 4 * C * (num_queries + 2 * summed)
    working = 4 * t * s * 6
    return max(forward, backward) + working <= 0.75 * _vmem(chip)


def _vmem(chip: str) -> int:
    return SMALL_VMEM.get(chip, 64 * 2**20)


def _columns(num_heads: int, head_width: int) -> int:
    """C: a block's columns, a multiple of the head's width and of the lanes; else all columns."""
    width = num_heads * head_width
    for C in (head_width, LANES):
        if C % LANES == 0 and C % head_width == 0 and width % C == 0:
            return C
    return width


def attention(
    operands: tuple[jax.Array, ...],
    segments: tuple[jax.Array, jax.Array] | None,
    offset: jax.Array | int,
    window: jax.Array | int | None,
    *,
    head_width: int,
    causal: bool,
    scale: float,
    chip: str,
    narrow: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T scale) v of every head, [B, T, N * H], for one device's arrays, whose sizes `fits` accepts.

    Args:
      operands: q [B, T, N * H], k and v [B, S, K * H]; or one array [3, B, T, N * H], which then has one gradient.
        K is N, or divides it where `fits` accepts groups: a block of queries then reads the keys of its group.
      segments: int32 ([B, T], [B, S]); a query sees keys of its own segment. None: all keys.
      offset: the position of the first query among the keys, for causal and window.
      window: a query sees keys at most this far from it; None: all keys.
      head_width: H.
      causal: whether a query sees keys at its own position and before alone.
      scale: what the scores are multiplied by.
      chip: `jax.Device.device_kind`.
      narrow: whether the window is known to be at most `NARROW`.
      interpret: run on a CPU, slowly.
    """
    shape = Shape(head_width, scale, causal, window is not None, narrow, len(operands) == 1, chip, interpret)
    where = jnp.stack([jnp.asarray(offset, jnp.int32), jnp.asarray(0 if window is None else window, jnp.int32)])
    rows: tuple[jax.Array, ...] = ()
    if segments is not None:
        q_BT, k_BS = (ids.astype(jnp.int32) for ids in segments)
        rows = (q_BT[:, None, :], k_BS[:, :, None])  # across and down, as in the scores
    return _attention(shape, operands, where, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(shape: Shape, operands, where, rows):
    return jax.lax.bitcast_convert_type(_forward(shape, operands, where, rows)[0], operands[0].dtype)


def _attention_forward(shape: Shape, operands, where, rows):
    bits, lse = (checkpoint_name(x, "attention") for x in _forward(shape, operands, where, rows))
    return jax.lax.bitcast_convert_type(bits, operands[0].dtype), (operands, where, rows, bits, lse)


def _attention_backward(shape: Shape, kept, do):
    operands, where, rows, bits, lse = kept
    grads = _backward(shape, operands, where, rows, bits, lse, do)
    return tuple(grads), None, tuple(None for _ in rows)


_attention.defvjp(_attention_forward, _attention_backward)


# ------------------------------------------------------------------------------------------------------- one block


def _heads(C: int, H: int) -> list[int]:
    return list(range(C // H))


def _one(x_tC: jax.Array, head: int, H: int) -> jax.Array:
    """A head's columns of a block. A block as wide as the lanes keeps its shape, with zeros in the other columns."""
    C = x_tC.shape[1]
    if C == H:
        return x_tC
    if C != LANES:
        return x_tC[:, head * H : (head + 1) * H]
    lane_1C = jax.lax.broadcasted_iota(jnp.int32, (1, C), 1)
    return jnp.where((lane_1C >= head * H) & (lane_1C < (head + 1) * H), x_tC, jnp.zeros((), x_tC.dtype))


def _operand(x_sC: jax.Array, head: int, H: int) -> jax.Array:
    """What is multiplied with `_one` of the other side. Where that has zeros, the values here do not matter."""
    return x_sC if x_sC.shape[1] in (H, LANES) else x_sC[:, head * H : (head + 1) * H]


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    dims = (((contract[0],), (contract[1],)), ((), ()))
    # Float32 operands are for tests and for exact results: no rounding to bfloat16.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _scores(shape: Shape, k_sC, q_tC, head: int, first_key, first_query, where_ref, ids) -> jax.Array:
    """Scores in units of log 2, [s, t], the hidden ones at HIDDEN."""
    H = shape.head_width
    scores_st = _product(_operand(k_sC, head, H), _one(q_tC, head, H), (1, 1)) * (shape.scale / math.log(2.0))
    seen = []
    if shape.causal or shape.local:
        key_st = first_key + jax.lax.broadcasted_iota(jnp.int32, scores_st.shape, 0)
        query_st = where_ref[0] + first_query + jax.lax.broadcasted_iota(jnp.int32, scores_st.shape, 1)
        if shape.causal:
            seen.append(key_st <= query_st)
        if shape.local:
            seen.append(jnp.abs(key_st - query_st) <= where_ref[1])
    if ids is not None:
        query_1t, key_s1 = ids
        seen.append(key_s1 == query_1t)
    for one in seen:
        scores_st = jnp.where(one, scores_st, HIDDEN)
    return scores_st


def _visited(shape: Shape, first, size: int, count: int, other: int, where_ref, *, keys: bool) -> tuple[Any, Any]:
    """(first, end) of the blocks, of `count` with `other` positions each, that a block of the other side may meet.

    `keys`: whether they are keys and the block is queries, or the reverse.
    """
    low: Any = 0
    high: Any = count
    at = first + where_ref[0] if keys else first - where_ref[0]  # the block's first position, in the other side's count
    if shape.causal and keys:
        high = (at + size - 1) // other + 1
    if shape.causal and not keys:
        low = at // other
    if shape.local:
        if keys or not shape.causal:
            low = jnp.maximum(low, (at - where_ref[1]) // other)
        if not keys or not shape.causal:
            high = jnp.minimum(high, (at + size - 1 + where_ref[1]) // other + 1)
    if shape.causal or shape.local:
        low, high = jnp.clip(low, 0, count), jnp.clip(high, 0, count)
    return low, high


def _each(low, high, count: int, body) -> None:
    """body(i) for each block: a loop on the chip, or none where there is one block."""
    if count == 1 and isinstance(low, int):
        body(0)
        return
    jax.lax.fori_loop(low, high, lambda i, _: body(i), None)


# ---------------------------------------------------------------------------------------------------------- forward


# The kernels pass the attended values as unsigned integers, their bits. Of floats that it keeps, `jax.checkpoint`
# makes a rounded copy, which is a pass over memory of its own where no product is there to fuse it with.
BITS = {2: jnp.uint16, 4: jnp.uint32}


def _forward(shape: Shape, operands, where_2, rows):
    (B, T, D), S, H = operands[0].shape[-3:], operands[-1].shape[-2], shape.head_width
    C = _columns(D // H, H)
    t, s = block(T, shape.narrow), block(S, shape.narrow)
    assert t is not None and s is not None
    J, P, keys = D // C, C // H, S // s
    q, k, v = operands * 3 if shape.fused else operands

    def kernel(where_ref, *refs):
        ids_refs, (q_ref, k_ref, v_ref, o_ref, lse_ref, top, total, sums) = refs[: len(rows)], refs[len(rows) :]
        first_query = pl.program_id(2) * t
        q_tC = q_ref[...]
        top[...] = jnp.full(top.shape, HIDDEN, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

        def visit(i) -> None:
            at = pl.ds(i * s, s) if keys > 1 else slice(None)
            k_sC, v_Cs = k_ref[at, :], v_ref[at, :].T
            ids = (ids_refs[0][...], ids_refs[1][at, :]) if rows else None
            for head in _heads(C, H):
                mine, stat = slice(head * H, (head + 1) * H), slice(head, head + 1)
                scores_st = _scores(shape, k_sC, q_tC, head, i * s, first_query, where_ref, ids)
                old_1t = top[stat, :]
                new_1t = jnp.maximum(old_1t, jnp.max(scores_st, axis=0, keepdims=True))
                exps_st = jnp.exp2(scores_st - new_1t)
                shrink_1t = jnp.exp2(old_1t - new_1t)
                top[stat, :] = new_1t
                total[stat, :] = total[stat, :] * shrink_1t + jnp.sum(exps_st, axis=0, keepdims=True)
                values_Ht = _product(v_Cs[mine, :], exps_st.astype(v_Cs.dtype), (1, 0))
                sums[mine, :] = sums[mine, :] * shrink_1t + values_Ht

        low, high = _visited(shape, first_query, t, keys, s, where_ref, keys=True)
        _each(low, high, keys, visit)
        for head in _heads(C, H):
            mine, stat = slice(head * H, (head + 1) * H), slice(head, head + 1)
            sums[mine, :] = sums[mine, :] / total[stat, :]
        o_ref[...] = jax.lax.bitcast_convert_type(sums[...].T.astype(q_tC.dtype), o_ref.dtype)
        # A query that sees no key has no gradient: its recomputed probabilities are 0.
        lse_ref[...] = jnp.where(top[...] > HIDDEN / 2, top[...] + jnp.log2(total[...]), 0.0)

    group = D // operands[-1].shape[-1]
    specs = [_spec(shape, which, t if which == 0 else S, C, every=which > 0, group=group) for which in range(3)]
    ids_specs = [
        pl.BlockSpec((None, 1, t), lambda b, j, i: (b, 0, i)),
        pl.BlockSpec((None, S, 1), lambda b, j, i: (b, 0, 0)),
    ]
    return pl.pallas_call(
        kernel,
        grid=(B, J, T // t),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *ids_specs[: len(rows)], *specs],
        out_specs=[
            pl.BlockSpec((None, t, C), lambda b, j, i: (b, i, j)),
            pl.BlockSpec((None, None, P, t), lambda b, j, i: (b, j, 0, i)),
        ],
        out_shape=[_like(q, (B, T, D), BITS[q.dtype.itemsize]), _like(q, (B, J, P, T), jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM((P, t), jnp.float32),
            pltpu.VMEM((P, t), jnp.float32),
            pltpu.VMEM((C, t), jnp.float32),
        ],
        compiler_params=_parameters(shape),
        cost_estimate=_cost(shape, B, T, S, D, products=2, arrays=4),
        interpret=shape.interpret,
        name="attention_forward",
    )(where_2, *rows, q, k, v)


# --------------------------------------------------------------------------------------------------------- backward


def _backward_kernel(shape: Shape, T: int, S: int, C: int, group: int, num_ids: int):
    """The kernel for T queries and S keys, C columns at a time; `num_ids`: 2 with segments, else 0.

    Its grid is (rows, heads of keys, query heads of a group, blocks of keys).
    """
    H, t, s = shape.head_width, block(T, shape.narrow), block(S, shape.narrow)
    assert t is not None and s is not None
    queries = T // t

    def kernel(where_ref, *refs):
        ids_refs, refs = refs[:num_ids], refs[num_ids:]
        (q_ref, k_ref, v_ref, o_ref, lse_ref, do_ref), refs = refs[:6], refs[6:]
        *out_refs, delta, dq_CT, dk_sums, dv_sums = refs
        first_key = pl.program_id(3) * s
        own = pl.ds(pl.multiple_of(first_key, s), s) if s < S else slice(None)
        if shape.fused:
            dq_ref, dk_ref, dv_ref = out_refs[0].at[0], out_refs[0].at[1, own], out_refs[0].at[2, own]
        else:
            dq_ref, dk_ref, dv_ref = out_refs
        if group > 1:  # the sums of all keys stay until the last query head of the group has added to them
            dk_ref, dv_ref, dk_sums, dv_sums = (x.at[own] for x in (dk_ref, dv_ref, dk_sums, dv_sums))

        @pl.when(pl.program_id(3) == 0)
        def _begin() -> None:
            dq_CT[...] = jnp.zeros(dq_CT.shape, jnp.float32)
            for i in range(queries):  # the sum of each query's probabilities times their gradients
                at = slice(i * t, (i + 1) * t)
                o_tC = jax.lax.bitcast_convert_type(o_ref[at, :], do_ref.dtype)
                both_Ct = (o_tC.astype(jnp.float32) * do_ref[at, :].astype(jnp.float32)).T
                for head in _heads(C, H):
                    delta[head : head + 1, at] = jnp.sum(both_Ct[head * H : (head + 1) * H], axis=0, keepdims=True)

        @pl.when(group == 1 or pl.program_id(2) == 0)
        def _no_sums() -> None:
            dk_sums[...] = jnp.zeros(k_ref.shape, jnp.float32)
            dv_sums[...] = jnp.zeros(v_ref.shape, jnp.float32)

        k_sC, v_sC = k_ref[...], v_ref[...]
        k_Cs = k_sC.T

        def visit(i) -> None:
            at = pl.ds(i * t, t) if queries > 1 else slice(None)
            q_tC, do_tC = q_ref[at, :], do_ref[at, :]
            ids = (ids_refs[0][:, at], ids_refs[1][...]) if num_ids else None
            for head in _heads(C, H):
                mine, stat = slice(head * H, (head + 1) * H), slice(head, head + 1)
                q_one, do_one = _one(q_tC, head, H), _one(do_tC, head, H)
                scores_st = _scores(shape, k_sC, q_tC, head, first_key, i * t, where_ref, ids)
                probs_st = jnp.exp2(scores_st - lse_ref[stat, at])
                d_probs_st = _product(_operand(v_sC, head, H), do_one, (1, 1))
                d_scores_st = (probs_st * (d_probs_st - delta[stat, at])).astype(q_tC.dtype)
                columns = mine if C not in (H, LANES) else slice(None)
                dv_sums[:, columns] += _product(probs_st.astype(do_tC.dtype), do_one, (1, 0))
                dk_sums[:, columns] += _product(d_scores_st, q_one, (1, 0))
                dq_CT[mine, at] += _product(k_Cs[mine, :], d_scores_st, (1, 0))

        low, high = _visited(shape, first_key, s, queries, t, where_ref, keys=False)
        _each(low, high, queries, visit)

        @pl.when(group == 1 or pl.program_id(2) == group - 1)
        def _keys_end() -> None:
            dk_ref[...] = (dk_sums[...] * shape.scale).astype(dk_ref.dtype)
            dv_ref[...] = dv_sums[...].astype(dv_ref.dtype)

        @pl.when(pl.program_id(3) == S // s - 1)
        def _end() -> None:
            for i in range(queries):
                at = slice(i * t, (i + 1) * t)
                dq_ref[at, :] = (dq_CT[:, at] * shape.scale).T.astype(dq_ref.dtype)

    return kernel


def _backward(shape: Shape, operands, where_2, rows, bits_BTD, lse_BJPT, do_BTD):
    (B, T, D), S, H = operands[0].shape[-3:], operands[-1].shape[-2], shape.head_width
    C = _columns(D // H, H)
    s = block(S, shape.narrow)
    assert s is not None
    J, P = D // C, C // H
    group = 1 if shape.fused else D // operands[-1].shape[-1]
    q, k, v = operands * 3 if shape.fused else operands

    def each(spec: pl.BlockSpec) -> pl.BlockSpec:
        at = spec.index_map
        assert at is not None
        return pl.BlockSpec(spec.block_shape, lambda b, k, g, i: at(b, k * group + g, i))

    whole = pl.BlockSpec((None, T, C), lambda b, j, i: (b, 0, j))
    specs = [_spec(shape, which, T if which == 0 else s, C, every=which == 0, group=group) for which in range(3)]
    gradients = [pl.BlockSpec((3, None, T, C), lambda b, j, i: (0, b, 0, j))] if shape.fused else specs
    if group > 1:
        gradients = [specs[0], *(_spec(shape, which, S, C, every=True, group=group) for which in (1, 2))]
    ids_specs = [
        pl.BlockSpec((None, 1, T), lambda b, j, i: (b, 0, 0)),
        pl.BlockSpec((None, s, 1), lambda b, j, i: (b, i, 0)),
    ]
    lse_spec = pl.BlockSpec((None, None, P, T), lambda b, j, i: (b, j, 0, 0))
    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    summed = S if group > 1 else s
    return pl.pallas_call(
        _backward_kernel(shape, T, S, C, group, len(rows)),
        grid=(B, J // group, group, S // s),
        in_specs=[smem, *map(each, (*ids_specs[: len(rows)], *specs, whole, lse_spec, whole))],
        out_specs=[each(spec) for spec in gradients],
        out_shape=[_like(q, x.shape, x.dtype) for x in operands],
        scratch_shapes=[
            pltpu.VMEM((P, T), jnp.float32),
            pltpu.VMEM((C, T), jnp.float32),
            pltpu.VMEM((summed, C), jnp.float32),
            pltpu.VMEM((summed, C), jnp.float32),
        ],
        compiler_params=_parameters(shape, pltpu.ARBITRARY),
        cost_estimate=_cost(shape, B, T, S, D, products=5, arrays=8),
        interpret=shape.interpret,
        name="attention_backward",
    )(where_2, *rows, q, k, v, bits_BTD, lse_BJPT, do_BTD)


def _spec(shape: Shape, which: int, rows: int, C: int, *, every: bool, group: int = 1) -> pl.BlockSpec:
    """The block of queries (0), keys (1) or values (2) that a program reads: `rows` tokens and C columns.

    `every`: the tokens are all of them; else those of the program's index in the grid. `group`: how many query heads
    share a head of keys.
    """

    def at(i):
        return 0 if every else i

    if shape.fused:
        return pl.BlockSpec((None, None, rows, C), lambda b, j, i: (which, b, at(i), j))
    shared = 1 if which == 0 else group
    return pl.BlockSpec((None, rows, C), lambda b, j, i: (b, at(i), j // shared))


def _like(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An output that varies over the manual mesh axes that x varies over."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def _parameters(shape: Shape, *inner: Any) -> Any:
    # Rows and heads in any order; the blocks of a head one after the other, since they add to its sums.
    order = (pltpu.PARALLEL, pltpu.PARALLEL, pltpu.ARBITRARY, *inner)
    return pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=int(0.95 * _vmem(shape.chip)))


def _cost(shape: Shape, B: int, T: int, S: int, D: int, *, products: int, arrays: int) -> pl.CostEstimate:
    """For the compiler's scheduler, which does not see into the kernel."""
    share = 0.5 if shape.causal else 1.0
    share = min(share, 3 * 256 / S) if shape.narrow else share  # a block of queries visits three of keys
    return pl.CostEstimate(
        flops=int(2 * products * B * T * S * D * share),
        transcendentals=int(B * T * S * D // shape.head_width * share),
        bytes_accessed=2 * arrays * B * max(T, S) * D,
    )
