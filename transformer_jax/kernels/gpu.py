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
      mask: causal, right padding, both or none.
      num_keys: S; like T it must be even: JAX does not differentiate cuDNN's attention for odd lengths, such as the 197
        tokens of a ViT with its class token.
      bias: whether the scores have a bias.
      dropout: whether the probabilities have dropout.
    """
    T, H = q_BTNH.shape[1], q_BTNH.shape[-1]
    fits = q_BTNH.dtype in (jnp.bfloat16, jnp.float16) and H % 8 == 0 and H <= 128
    fits = fits and T % 2 == 0 and num_keys % 2 == 0 and not bias and not dropout
    return fits and all(a is None for a in (mask.segment_BT, mask.prefix_B, mask.start_B, mask.window))


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
      mask: an `nn.masks.Mask`, which cuDNN gets as a flag and lengths.
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
    B, T = q_BTNH.shape[:2]
    lengths: dict[str, Any] = {}
    if mask.end_B is not None:
        # A row that only fills up a batch has no keys. It gets one, so that its softmax is finite.
        ends_B = jnp.maximum(mask.end_B, 1).astype(jnp.int32)
        lengths = {"query_seq_lengths": jnp.full((B,), T, jnp.int32), "key_value_seq_lengths": ends_B}
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, scale=scale, is_causal=mask.causal, implementation="cudnn", **lengths
    )
