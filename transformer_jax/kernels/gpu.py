"""What GPUs compute faster in another form than the plain one: attention by cuDNN.

B batch, T queries, S keys, N query heads, K key/value heads, H head width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.kernels.cross_entropy import linear_cross_entropy
from transformer_jax.kernels.gradients import gelu, gelu_tanh, norm

__all__ = ["attention", "attention_fits", "gelu", "gelu_tanh", "linear_cross_entropy", "norm"]


def attention_fits(q_BTNH: Any, mask: Any, *, num_keys: int, bias: bool, dropout: bool) -> bool:
    """Whether `attention` computes this case.

    Args:
      q_BTNH: queries, or their shape and dtype: float16 or bfloat16, heads up to 128 wide in multiples of 8.
      mask: cuDNN reads one that it cannot describe as an array; not so a narrow window, whose blocks the plain form
        computes alone. One query, as in decoding, has too little work for a kernel of its own.
      num_keys: S.
      bias: whether the scores have a bias, which cuDNN would round to the dtype of the queries.
      dropout: whether the probabilities have dropout, which JAX's interface to cuDNN does not offer.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[-1]
    heads = q_BTNH.dtype in (jnp.bfloat16, jnp.float16) and H % 8 == 0 and H <= 128
    masks = _described(mask) or mask.local_block(T) is None
    return heads and masks and T > 1 and not bias and not dropout


def _described(mask: Any) -> bool:
    """Whether cuDNN knows the mask by flags, numbers of keys and the width of a causal window."""
    parts = (mask.segment_BT, mask.prefix_B, mask.start_B)
    window = mask.window is None or (isinstance(mask.window, int) and mask.causal)
    return window and all(part is None for part in parts)


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
    """`nn.attention.attend` by cuDNN's fused kernel, which never holds the scores in memory, where `attention_fits`.

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
    S = k_BSKH.shape[1]
    if not attention_fits(q_BTNH, mask, num_keys=S, bias=bias_NTS is not None, dropout=key is not None):
        options: Any = {"bias_NTS": bias_NTS, "scale": scale, "dropout_rate": dropout_rate, "key": key}
        return plain(q_BTNH, k_BSKH, v_BSKH, mask, **options)
    return _cudnn(q_BTNH, k_BSKH, v_BSKH, mask, scale)


def _cudnn(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Any, scale: float) -> jax.Array:
    (B, T), S = q_BTNH.shape[:2], k_BSKH.shape[1]
    # JAX differentiates cuDNN's attention for even lengths only, so the 197 tokens of a ViT get one more.
    t, s = T % 2, S % 2
    described: dict[str, Any] = {}
    if not _described(mask):
        # One array for all heads, [B, 1, T, S]: the scores of the plain form have it once for each head.
        allowed_B1TS = jnp.broadcast_to(mask.dense(T, S)[:, None], (B, 1, T, S))
        described["mask"] = jnp.pad(allowed_B1TS, ((0, 0), (0, 0), (0, t), (0, s)))
    else:
        described["is_causal"] = mask.causal
        if mask.window is not None:
            described["local_window_size"] = (mask.window, 0)
        if mask.end_B is not None or t or s:
            # A row that only fills up a batch has no keys. It gets one, so that its softmax is finite.
            ends_B = jnp.full((B,), S) if mask.end_B is None else jnp.clip(mask.end_B, 1, S)
            described["query_seq_lengths"] = jnp.full((B,), T, jnp.int32)
            described["key_value_seq_lengths"] = ends_B.astype(jnp.int32)
    more = lambda x, n: jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, 0))) if n else x  # noqa: E731
    out_BTNH = jax.nn.dot_product_attention(
        more(q_BTNH, t), more(k_BSKH, s), more(v_BSKH, s), scale=scale, implementation="cudnn", **described
    )
    return out_BTNH[:, :T]
