"""Who may attend to whom, as a description rather than an array.

A fused kernel needs "causal" or "these lengths", only the plain attention a boolean array. So a mask is a value that
states its conditions, and `Mask.dense` gives the array.

B batch, T queries, S keys.
"""

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax import sharding


@flax.struct.dataclass
class Mask:
    """The conditions that a (query, key) pair must all meet. The default lets every query see every key.

    Attributes:
      causal: a query sees keys at its own position and before; needs T == S.
      prefix_B: with causal: the first prefix_B[b] keys are visible to every query as well (prefix-LM; Raffel et al.
        2020, section 3.2.1).
      segment_BT: a query sees only keys of its own segment (packed documents); needs T == S, unless key_segment_BS
        gives the keys' segments (cross-attention of packed pairs).
      key_segment_BS: the keys' segments, where they are not the queries'.
      start_B: keys before start_B[b] are left padding and hidden.
      end_B: keys from end_B[b] on are right padding (or not yet written) and hidden.
      window: a query sees only keys at most this far from it, on both sides (local attention; Beltagy et al. 2020,
        section 3.1); needs T == S. It may be traced, so that the layers of one scan can differ.
    """

    causal: bool = flax.struct.field(pytree_node=False, default=False)
    prefix_B: jax.Array | None = None
    segment_BT: jax.Array | None = None
    key_segment_BS: jax.Array | None = None
    start_B: jax.Array | None = None
    end_B: jax.Array | None = None
    window: jax.Array | int | None = None

    def check(self, num_queries: int, num_keys: int) -> None:
        """Raises `ValueError` for a causal, segment or window mask where `num_queries` is not `num_keys`."""
        own_segments = self.segment_BT is not None and self.key_segment_BS is None
        square = self.causal or own_segments or self.window is not None
        if square and num_queries != num_keys:
            raise ValueError(
                f"a causal, segment or window mask needs as many queries as keys; got {num_queries} and {num_keys}"
            )

    def local_block(self, length: int) -> int | None:
        """The queries of one block where attention is computed in blocks, each with the keys in its reach only.

        None where that would not skip half of the keys, and where the reach is not known before the program runs.

        Args:
          length: T, which is S.
        """
        if not isinstance(self.window, int) or self.prefix_B is not None or self.key_segment_BS is not None:
            return None
        block = max(self.window, 64)
        return block if 2 * (block + 2 * self.window) <= length else None

    def dense(self, num_queries: int, num_keys: int) -> jax.Array | None:
        """Booleans [1 or B, 1 or T, S], True where attention is allowed; None when nothing is hidden.

        Args:
          num_queries: T.
          num_keys: S.

        Raises:
          ValueError: a causal, segment or window mask with T != S.
        """
        self.check(num_queries, num_keys)
        keys_S = jnp.arange(num_keys)
        allowed = []
        if self.causal:
            causal_TS = jnp.arange(num_queries)[:, None] >= keys_S[None, :]
            if self.prefix_B is None:
                allowed.append(causal_TS[None])
            else:
                allowed.append(causal_TS[None] | (keys_S[None, None, :] < self.prefix_B[:, None, None]))
        if self.segment_BT is not None:
            keys_BS = self.segment_BT if self.key_segment_BS is None else self.key_segment_BS
            keys_BS = sharding.constrain(keys_BS, ("batch", None))  # every query needs all keys
            allowed.append(self.segment_BT[:, :, None] == keys_BS[:, None, :])
        if self.start_B is not None:
            allowed.append(keys_S[None, None, :] >= self.start_B[:, None, None])
        if self.end_B is not None:
            allowed.append(keys_S[None, None, :] < self.end_B[:, None, None])
        if self.window is not None:
            allowed.append((jnp.abs(jnp.arange(num_queries)[:, None] - keys_S[None, :]) <= self.window)[None])
        if not allowed:
            return None
        result = allowed[0]
        for condition in allowed[1:]:
            result = result & condition
        return result
