"""Fewer weights, or fewer heads: what a model does without.

    params = Prune(target="blocks/", share=0.5).apply(params)             # half of these weights are zero
    cfg, params = without_heads(cfg, params, family.declare, keep=2)      # a smaller model of the same family

Zeros save no time in dense products, and no bytes in a checkpoint: they show how many weights a model needs. Fewer
heads make a smaller model, which loads, trains and leaves like any other.

L layers, N heads, H their width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from transformer_jax import compress
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Tree


@dataclass(frozen=True)
class Prune:
    """Which weights become zero: the smallest ones of all chosen kernels together (Han et al. 2015)."""

    target: str = "blocks/"
    """A regular expression, searched in the paths of the kernels."""
    share: float = 0.5
    """The share of their weights that become zero."""

    def __post_init__(self) -> None:
        compress.check_pattern(self.target)
        if not 0 < self.share < 1:
            raise InputError(f"compress.share is {self.share}; it must be above 0 and below 1")

    def change(self, model: Any, params: Tree, declare: Callable[[Any], Tree]) -> tuple[Any, Tree]:
        """(`model`, parameters with zeros): zeros change values alone, so nothing is stored of the rule.

        Args:
          model: the model's Config.
          params: float parameters.
          declare: not used.
        """
        return model, self.apply(params)

    def apply(self, params: Tree) -> Tree:
        """`params` with zeros.

        Args:
          params: float parameters.

        Raises:
          InputError: the pattern matches no kernel.
        """
        flat = params_lib.flatten(params)
        paths = compress.chosen(flat, self.target)
        sizes = np.concatenate([np.abs(np.asarray(flat[path], np.float32)).ravel() for path in paths])
        count = round(self.share * len(sizes))
        least = np.partition(sizes, count)[count]  # the smallest weight that stays
        pruned = {path: jnp.where(jnp.abs(flat[path]) < least, 0.0, flat[path]) for path in paths}
        return params_lib.nested(flat | pruned)


def without_heads(cfg: Any, params: Tree, declare: Callable[[Any], Tree], keep: int) -> tuple[Any, Tree]:
    """(config, parameters) of the model with `keep` heads in each layer: those that can change its states most.

    A head counts by the norm of its value projection times its output projection, the largest change that a state of
    length 1 can cause (the heads' own ranking needs data: Michel et al. 2019).

    Args:
      cfg: a Config with `num_heads` and `head_dim`.
      params: its float parameters.
      declare: the family's; axes named "heads" or "kv_heads" are those of the heads.
      keep: from 1 to the number of heads.

    Raises:
      InputError: the model has no such settings, groups its heads, or has other parameters for each head.
    """
    fields = {f.name for f in dataclasses.fields(cfg)}
    if not {"num_heads", "head_dim"} <= fields or cfg.kv_heads != cfg.num_heads:
        raise InputError(f"heads can be removed from a model with num_heads, head_dim and no groups, not {type(cfg)}")
    if not 1 <= keep <= cfg.num_heads:
        raise InputError(f"keep is {keep}; the model has {cfg.num_heads} heads in each layer")
    N, H = cfg.num_heads, cfg.head_width
    flat, declared = dict(params_lib.flatten(params)), params_lib.flatten(declare(cfg))
    smaller = dataclasses.replace(cfg, num_heads=keep, head_dim=H)
    for at in sorted({path.removesuffix("value/kernel") for path in flat if path.endswith("value/kernel")}):
        best = _best(flat[f"{at}value/kernel"], flat[f"{at}out/kernel"], N, keep)
        for path, p in declared.items():
            if path.startswith(at) and (axes := [i for i, name in enumerate(p.axes) if name in ("heads", "kv_heads")]):
                flat[path] = _taken(flat[path], axes[0], best, N, H)
    shapes = {path: p.shape for path, p in params_lib.flatten(declare(smaller)).items()}
    if getattr(cfg, "position", "") == "alibi" or shapes != {path: leaf.shape for path, leaf in flat.items()}:
        raise InputError("heads cannot be removed from a model whose positions give each head its own numbers")
    return smaller, params_lib.nested(flat)


def _best(value_LDNH: Any, out_LNHD: Any, N: int, keep: int) -> np.ndarray:
    """The numbers of the heads that stay, in order, [L, keep] or [keep]."""
    value, out = (np.asarray(x, np.float32) for x in (value_LDNH, out_LNHD))
    *lead, D, _ = value.shape
    product = np.einsum(
        "...dnh,...nhe->...nde", value.reshape(*lead, D, N, -1), out.reshape(*lead, N, -1, out.shape[-1])
    )
    norms = np.linalg.norm(product, ord=2, axis=(-2, -1))
    return np.sort(np.argsort(-norms, axis=-1, kind="stable")[..., :keep], axis=-1)


def _taken(leaf: Any, axis: int, best: np.ndarray, N: int, H: int) -> Any:
    """`leaf` with the chosen heads' parts of an axis of N H numbers."""
    x = np.asarray(leaf)
    columns = (best[..., None] * H + np.arange(H)).reshape(*best.shape[:-1], -1)
    if best.ndim == 1:
        return jnp.asarray(np.take(x, columns, axis))
    return jnp.asarray(np.stack([np.take(layer, own, axis - 1) for layer, own in zip(x, columns, strict=True)]))


def zeros(params: Mapping[str, Any]) -> float:
    """The share of the numbers of all kernels of `params` that are zero."""
    kernels = [leaf for path, leaf in params_lib.flatten(params).items() if path.endswith("/kernel")]
    return 1 - sum(int(jnp.count_nonzero(leaf)) for leaf in kernels) / max(1, sum(leaf.size for leaf in kernels))
