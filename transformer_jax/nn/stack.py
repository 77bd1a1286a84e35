"""L identical blocks, one after the other: scanned (compiled once) or unrolled (each compiled on its own).

Parameters are stored stacked, with a leading "layers" axis, for both, so a checkpoint never depends on the choice. A
block is a function (params of one layer, carry, layer number, key or None) -> carry.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax import kernels
from transformer_jax.nn import params as params_lib

Block = Callable[[Any, Any, Any, jax.Array | None], Any]

# What the backward pass keeps of the forward pass, from most memory to least.
REMAT: dict[str, Any] = {
    "none": None,  # everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of the weight matmuls
    "full": jax.checkpoint_policies.nothing_saveable,  # the input of each block
}


def run(
    block: Block | Sequence[Block],
    params: Any,
    carry: Any,
    *,
    num_layers: int,
    scan: bool,
    remat: str,
    key: jax.Array | None,
    last: Block | None = None,
) -> Any:
    """The carry after all layers. Layer i gets fold_in(key, i), so scanned and unrolled layers have the same dropout.

    Args:
      block: applied by each layer; or n blocks: layer i applies number i modulo n. A scan then runs n layers
        at a time, and the remaining ones one by one.
      params: stacked, or for unrolled layers already one tree per layer.
      carry: the first layer's carry.
      num_layers: L.
      scan: whether layers are scanned or unrolled.
      remat: a name of `REMAT`.
      key: the random key for dropout; None: evaluation, without dropout.
      last: in place of `block` in the last layer; its carry may have another shape.
    """
    policy, blocks = _policy(remat), [block] if callable(block) else list(block)
    if policy is not None:
        blocks = [jax.checkpoint(one, policy=policy, prevent_cse=not scan) for one in blocks]
    n = len(blocks)

    def layer_key(layer: Any) -> jax.Array | None:
        return None if key is None else jax.random.fold_in(key, layer)

    count = num_layers if last is None else num_layers - 1
    begin = count // n * n if scan else 0
    if begin:

        def body(carry: Any, xs: tuple[Any, jax.Array]) -> tuple[Any, None]:
            params, first = xs
            for i, layer_params in enumerate([params] if n == 1 else params_lib.unstack(params, n)):
                layer = first + i  # train.diagnose finds the layer of a NaN by this name
                carry = blocks[i](layer_params, carry, layer, layer_key(layer))
            return carry, None

        scanned, layers = params_lib.unstack_from(params, begin, num_layers)
        if n > 1:
            scanned = jax.tree.map(lambda leaf: leaf.reshape(-1, n, *leaf.shape[1:]), scanned)
        carry = jax.lax.scan(body, carry, (scanned, jnp.arange(0, begin, n)))[0]
    else:
        layers = params if isinstance(params, list) else params_lib.unstack(params, num_layers)
    for layer in range(begin, count):
        carry = blocks[layer % n](layers[layer - begin], carry, layer, layer_key(layer))
    if last is not None:
        carry = last(layers[-1], carry, count, layer_key(count))
    return carry


@kernels.choose("remat_policy")
def _policy(remat: str) -> Any:
    return REMAT[remat]
