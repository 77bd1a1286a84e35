"""Learning rates per parameter: the factor of each one, and frozen parameters."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib


def factors(layer_decay: float, groups: Sequence[tuple[str, float]], declaration: Any) -> Any:
    """The factor of each parameter's learning rate: a tree like the parameters, of float32 arrays that broadcast.

    A factor is a scalar, or [L, 1, ...] for stacked layers whose factors differ. Patterns are matched against the path
    of each layer: "blocks/0/mlp/up/kernel", "blocks/1/...", for a stacked leaf "blocks/mlp/up/kernel".

    Args:
      layer_decay: `Rates.layer_decay`.
      groups: `Rates.groups`.
      declaration: the tree of `nn.params.Param`.

    Raises:
      InputError: a pattern matches no parameter.
    """
    flat = params_lib.flatten(declaration)
    depth = max((p.shape[0] for p in flat.values() if p.axes[:1] == ("layers",)), default=0)
    unused = {pattern for pattern, _ in groups}

    def factor(path: str, layer: int) -> float:
        """The factor of one layer's parameter; the embeddings are layer -1, the parameters after the blocks `depth`."""
        scale = layer_decay ** (depth - layer)
        for pattern, own in groups:
            if re.search(pattern, path):
                unused.discard(pattern)
                scale *= own
        return scale

    scales: dict[str, Any] = {}
    for path, p in flat.items():
        stack, _, rest = path.partition("blocks/")  # stack: "", "encoder/" or "decoder/"
        if p.axes[:1] != ("layers",):
            scales[path] = np.float32(factor(path, -1 if path.startswith("embed/") else depth))
            continue
        of_layers = np.array([factor(f"{stack}blocks/{i}/{rest}", i) for i in range(p.shape[0])], np.float32)
        same = (of_layers == of_layers[0]).all()
        scales[path] = of_layers[0] if same else of_layers.reshape(-1, *(1,) * (len(p.shape) - 1))
    if unused:
        raise InputError(
            f"optim.groups pattern {min(unused)!r} matches no parameter; the paths are {', '.join(list(flat)[:4])}, "
            '..., with the layer\'s number after "blocks/"'
        )
    treedef = jax.tree.structure(declaration, is_leaf=lambda x: isinstance(x, params_lib.Param))
    return jax.tree.unflatten(treedef, list(scales.values()))


def freeze(params: Any, scales: Any) -> Any:
    """The parameters, with `stop_gradient` on the frozen ones.

    No gradient is computed for them, and they do not count in its norm.

    Args:
      params: the parameter tree.
      scales: from `factors`; 0 freezes.
    """

    def leaf(p: jax.Array, scale: Any) -> jax.Array:
        if np.all(scale > 0):
            return p
        stopped = jax.lax.stop_gradient(p)
        return stopped if np.all(scale == 0) else jnp.where(scale > 0, p, stopped)

    return jax.tree.map(leaf, params, scales)


def trained(tree: Any, scales: Any) -> Any:
    """A tree with an `optax.MaskedNode`, which has no leaves, in place of each frozen parameter.

    A stacked leaf is kept if any of its layers is trained.

    Args:
      tree: a tree like the parameters.
      scales: from `factors`; 0 freezes.
    """
    is_param = lambda x: isinstance(x, params_lib.Param)  # noqa: E731
    return jax.tree.map(
        lambda x, scale: optax.MaskedNode() if np.all(scale == 0) else x, tree, scales, is_leaf=is_param
    )
