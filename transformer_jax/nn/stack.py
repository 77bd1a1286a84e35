"""L identical blocks, one after the other: scanned (compiled once) or unrolled (each compiled on its own).

Parameters are stored stacked, with a leading "layers" axis, whichever way they are run, so a checkpoint never depends
on the choice. A block is a function (params of one layer, carry, layer number, key or None) -> carry.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.nn import params as params_lib

Block = Callable[[Any, Any, Any, jax.Array | None], Any]

# What the backward pass keeps of the forward pass, from most memory to least.
REMAT: dict[str, Any] = {
    "none": None,  # everything
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # outputs of the weight matmuls
    "full": jax.checkpoint_policies.nothing_saveable,  # the input of each block
}

# "none" on a TPU: what takes a product, the attention kernel, a sum over rows or random bits is kept. Norms,
# activations and sums are cheaper to compute again, inside the products that read them, than to write and to read.
CHEAP = jax.checkpoint_policies.save_only_these_names("product", "attention", "statistics", "dropout", "stream")


def run(
    block: Block,
    params: Any,
    carry: Any,
    *,
    num_layers: int,
    scan: bool,
    remat: str,
    key: jax.Array | None,
    last: Block | None = None,
) -> Any:
    """carry after all layers. Layer i gets fold_in(key, i), so both ways of running draw the same dropout.

    Arguments:
      params: stacked, or for the unrolled way already one tree per layer.
      last: what the last layer runs in place of `block`; its carry may have another shape.
    """
    policy = REMAT[remat]
    if remat == "none" and sharding.target_platform() == "tpu":
        policy = CHEAP
    if policy is not None:
        block = jax.checkpoint(block, policy=policy, prevent_cse=not scan)

    def layer_key(layer: Any) -> jax.Array | None:
        return None if key is None else jax.random.fold_in(key, layer)

    whole = num_layers if last is None else num_layers - 1
    if scan:

        def body(carry: Any, xs: tuple[Any, jax.Array]) -> tuple[Any, None]:
            layer_params, layer = xs
            return block(layer_params, carry, layer, layer_key(layer)), None

        scanned, rest = (params, []) if last is None else params_lib.unstack_last(params)
        carry = jax.lax.scan(body, carry, (scanned, jnp.arange(whole)))[0]
    else:
        layers = params if isinstance(params, list) else params_lib.unstack(params, num_layers)
        for layer, layer_params in enumerate(layers[:whole]):
            carry = block(layer_params, carry, layer, layer_key(layer))
        rest = layers[whole:]
    if last is not None:
        carry = last(rest[0], carry, whole, layer_key(whole))
    return carry
