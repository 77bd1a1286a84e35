"""Who may attend to whom, as a description rather than an array.

A fused kernel wants to be told "causal" or "these lengths"; only the plain implementation wants a boolean array. So a
mask is a value that says what it means, and `dense` spells it out.

B batch, T queries, S keys.
"""

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax import sharding


@flax.struct.dataclass
class Mask:
    """The conditions that a (query, key) pair must all meet. The default lets every query see every key.

    causal      a query sees keys at its own position and before; needs T == S.
    prefix_B    with causal: the first prefix_B[b] keys are visible to every query as well (prefix-LM; Raffel et al.
                2020, section 3.2.1).
    segment_BT  a query sees only keys of its own segment (packed documents); needs T == S, unless key_segment_BS
                states the keys' segments (cross-attention of packed pairs).
    start_B     keys before start_B[b] are left padding and hidden.
    end_B       keys from end_B[b] on are right padding (or not yet written) and hidden.
    window      a query sees only keys at most this far from it, on both sides (local attention; Beltagy et al. 2020,
                section 3.1); needs T == S. A traced number, so that layers of one scan can differ.
    """

    causal: bool = flax.struct.field(pytree_node=False, default=False)
    prefix_B: jax.Array | None = None
    segment_BT: jax.Array | None = None
    key_segment_BS: jax.Array | None = None
    start_B: jax.Array | None = None
    end_B: jax.Array | None = None
    window: jax.Array | int | None = None


def check(mask: Mask, num_queries: int, num_keys: int) -> None:
    """Errors: `ValueError` for a causal, segment or window mask with T != S."""
    own_segments = mask.segment_BT is not None and mask.key_segment_BS is None
    square = mask.causal or own_segments or mask.window is not None
    if square and num_queries != num_keys:
        raise ValueError(
            f"a causal, segment or window mask needs as many queries as keys; got {num_queries} and {num_keys}"
        )


def dense(mask: Mask, num_queries: int, num_keys: int) -> jax.Array | None:
    """The mask as booleans [1 or B, 1 or T, S], True where attention is allowed; None when nothing is hidden.

    Arguments: mask; T; S. Errors: `ValueError` for a causal, segment or window mask with T != S.
    """
    check(mask, num_queries, num_keys)
    keys_S = jnp.arange(num_keys)
    allowed = []
    if mask.causal:
        causal_TS = jnp.arange(num_queries)[:, None] >= keys_S[None, :]
        if mask.prefix_B is None:
            allowed.append(causal_TS[None])
        else:
            allowed.append(causal_TS[None] | (keys_S[None, None, :] < mask.prefix_B[:, None, None]))
    if mask.segment_BT is not None:
        keys_BS = mask.segment_BT if mask.key_segment_BS is None else mask.key_segment_BS
        keys_BS = sharding.constrain(keys_BS, ("batch", None))  # of all keys: the length may be cut
        allowed.append(mask.segment_BT[:, :, None] == keys_BS[:, None, :])
    if mask.start_B is not None:
        allowed.append(keys_S[None, None, :] >= mask.start_B[:, None, None])
    if mask.end_B is not None:
        allowed.append(keys_S[None, None, :] < mask.end_B[:, None, None])
    if mask.window is not None:
        allowed.append((jnp.abs(jnp.arange(num_queries)[:, None] - keys_S[None, :]) <= mask.window)[None])
    if not allowed:
        return None
    result = allowed[0]
    for condition in allowed[1:]:
        result = result & condition
    return result


def as_segments(mask: Mask, batch: int, num_queries: int, num_keys: int) -> tuple[jax.Array, jax.Array] | None:
    """Segments, left and right padding as ids ([B, T], [B, S] int32): a query sees the keys of its own id, and no
    hidden key has one. None where none of them hides anything. Causal, prefix and window are not in it."""
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
