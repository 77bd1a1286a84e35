"""Adapters: a frozen model, and a few parameters beside its kernels that are trained in place of it.

    rule = Lora(rank=8, alpha=16, target="attention/(query|value)/", full=("classification/",))
    declaration = declare(family.declare(cfg), rule)          # leaves lora_a and lora_b beside each chosen kernel
    params = attach(params, declaration, jax.random.key(0))   # the model's parameters, and the adapter's initial values
    family.apply(params, cfg, tokens)                         # `nn.layers.dense` adds what the adapter says
    params = merge(params)                                    # the family's own tree again

The adapter's parameters are declared like all others, so shardings, counts, initial values, restore targets and moments
follow. What is not trained has `trained=False` in the declaration: it has no gradient and no moments, and a checkpoint
does not hold it. An experiment has its rule in `Experiment.adapter`.

D features of the input, F of the output, r the rank.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from transformer_jax import patterns
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, Tree

LEAVES = ("lora_a", "lora_b", "lora_scale", "lora_magnitude")


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation: a kernel W becomes W + (alpha / rank) A B, with A [D, r] and B [r, F] (Hu et al. 2021).

    Patterns are regular expressions, searched in the paths of the parameters: "blocks/attention/query/kernel".
    """

    rank: int = 0
    """r; 0: no adapter, all parameters are trained."""
    alpha: float = 16.0
    """The product A B is multiplied by alpha / rank."""
    target: str = "attention/(query|value)/"
    """The kernels that get an adapter; "." gives one to all of them. The default is that of the paper."""
    full: tuple[str, ...] = ()
    """The parameters that are trained themselves, such as "classification/" for a new head."""
    rank_stabilised: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that high ranks learn as fast as low ones (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the norm of each column of the kernel as well; the adapter changes its direction (Liu et al. 2024)."""
    ranks: tuple[tuple[str, int], ...] = ()
    """(pattern, rank): another rank for some kernels; the first pattern that matches counts."""
    alphas: tuple[tuple[str, float], ...] = ()
    """(pattern, alpha): likewise."""

    def __post_init__(self) -> None:
        numbers = [("rank", self.rank), *((f"ranks {pattern!r}", rank) for pattern, rank in self.ranks)]
        for name, rank in numbers:
            if rank < (name != "rank"):
                raise InputError(f"adapter.{name} is {rank}; it must be at least 1 (adapter.rank 0: no adapter)")
        for name, alpha in [("alpha", self.alpha), *((f"alphas {pattern!r}", alpha) for pattern, alpha in self.alphas)]:
            if not 0 < alpha < math.inf:
                raise InputError(
                    f"adapter.{name} is {alpha}; it must be above 0, otherwise the adapter changes nothing"
                )
        named = [("target", self.target), *(("full", pattern) for pattern in self.full)]
        named += [("ranks", pattern) for pattern, _ in self.ranks] + [("alphas", pattern) for pattern, _ in self.alphas]
        for name, pattern in named:
            patterns.refuse_exploding(pattern, f"adapter.{name}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"adapter.{name} has {pattern!r}, which is no regular expression ({error})") from None

    def of(self, path: str) -> tuple[int, float]:
        """(rank, scale) of the adapter of the kernel at `path`."""
        rank = next((rank for pattern, rank in self.ranks if re.search(pattern, path)), self.rank)
        alpha = next((alpha for pattern, alpha in self.alphas if re.search(pattern, path)), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def declare(declaration: Tree, rule: Lora) -> Tree:
    """A declaration with the leaves of an adapter, in which all but these and `rule.full` are not trained.

    Args:
      declaration: a family's tree of `Param`.
      rule: which kernels get an adapter. Of rank 0: the declaration is returned as it is.

    Raises:
      InputError: a pattern matches nothing, or a rank is larger than its kernel.
    """
    if rule.rank == 0:
        return declaration
    flat = params_lib.flatten(declaration)
    kernels = [path for path, p in flat.items() if path.endswith("/kernel") and _is_matrix(p)]
    chosen = [path for path in kernels if re.search(rule.target, path)]
    _refuse_unused(rule, kernels, list(flat))
    whole = {path for path in flat if any(re.search(pattern, path) for pattern in rule.full)}
    declared = {path: dataclasses.replace(p, trained=path in whole) for path, p in flat.items()}
    for path in chosen:
        if path in whole:
            raise InputError(f"adapter.target and adapter.full both match {path}; one of them must not")
        rank, scale = rule.of(path)
        if rank > min(flat[path].shape[-2:]):
            raise InputError(
                f"adapter.rank {rank} is more than {path} of shape {list(flat[path].shape)} has; give a lower rank, or "
                "train that kernel itself: adapter.full"
            )
        declared |= {
            f"{path.removesuffix('kernel')}{leaf}": p for leaf, p in _leaves(flat[path], rank, scale, rule.dora)
        }
    return params_lib.nested(declared)


def _is_matrix(p: Param) -> bool:
    return len(p.shape) - (p.axes[:1] == ("layers",)) == 2


def _refuse_unused(rule: Lora, kernels: list[str], paths: list[str]) -> None:
    """Raises `InputError` for a pattern that matches none of the paths that it is for."""
    for name, pattern, among in (
        ("target", rule.target, kernels),
        *(("full", pattern, paths) for pattern in rule.full),
        *(("ranks", pattern, kernels) for pattern, _ in rule.ranks),
        *(("alphas", pattern, kernels) for pattern, _ in rule.alphas),
    ):
        if not any(re.search(pattern, path) for path in among):
            what = "parameters" if name == "full" else "kernels"
            raise InputError(f"adapter.{name} {pattern!r} matches nothing; the {what} are {', '.join(among)}")


def _leaves(kernel: Param, rank: int, scale: float, dora: bool) -> list[tuple[str, Param]]:
    """The leaves beside a kernel. A is uniform as in the published code (Kaiming's bound for a slope of sqrt(5))."""
    (*lead, D, F), (*lead_axes, axis_D, axis_F) = kernel.shape, kernel.axes

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -(D**-0.5), D**-0.5)

    leaves = [
        ("lora_a", Param((*lead, D, rank), (*lead_axes, axis_D, None), draw)),
        ("lora_b", Param((*lead, rank, F), (*lead_axes, None, axis_F), params_lib.zeros)),
        ("lora_scale", Param(tuple(lead), tuple(lead_axes), lambda key, shape: jnp.full(shape, scale), trained=False)),
    ]
    magnitude = Param((*lead, F), (*lead_axes, None if axis_F == "embed" else axis_F), params_lib.ones, decay=False)
    return [*leaves, ("lora_magnitude", magnitude)] if dora else leaves


def attach(params: Tree, declaration: Tree, key: jax.Array) -> Tree:
    """The parameters with the initial values of an adapter, with which the model computes what it did before.

    Args:
      params: the family's tree.
      declaration: the tree that `declare` returned; the leaves that `params` lacks are drawn.
      key: draws them.
    """
    have = params_lib.flatten(params)
    drawn = {path: p for path, p in params_lib.flatten(declaration).items() if path not in have}
    made = params_lib.flatten(params_lib.init(key, params_lib.nested(drawn)))
    for path in made:
        if path.endswith("lora_magnitude"):
            at = path.removesuffix("lora_magnitude")
            layer = {name: have[f"{at}{name}"] for name in ("kernel", "scale") if f"{at}{name}" in have}
            made[path] = layers.column_norms(layers.unpacked(layer))
    return params_lib.nested(have | made)


def scales(declaration: Tree) -> Tree:
    """The values of the leaves of an adapter that are not trained, by their `declaration`: a tree of these alone."""
    flat = params_lib.flatten(declaration)
    ours = {path: p for path, p in flat.items() if path.endswith("lora_scale")}
    return params_lib.init(jax.random.key(0), params_lib.nested(ours))


def is_adapted(params: Tree) -> bool:
    """Whether `params` has leaves of an adapter."""
    return any(path.endswith(LEAVES) for path in params_lib.flatten(params))


def merge(params: Tree) -> Tree:
    """The tree without adapters: each is added to its kernel, in float32 also where the base's is of eight bits.

    Args:
      params: a tree with adapters; one without is returned as it is.
    """
    return _merged(params) if is_adapted(params) else params


def _merged(tree: Tree) -> Tree:
    if not isinstance(tree, Mapping):
        return tree
    if "lora_a" not in tree:
        return {name: _merged(part) for name, part in tree.items()}
    rest = {name: part for name, part in tree.items() if name not in (*LEAVES, "scale")}
    dtype = jnp.float32 if "scale" in tree else tree["kernel"].dtype
    return rest | {"kernel": layers.matrix(dict(tree)).astype(dtype)}


def without(params: Tree) -> Tree:
    """The model beside which an adapter is trained: `params` without the adapter's leaves; no array is copied."""
    flat = params_lib.flatten(params)
    return params_lib.nested({path: leaf for path, leaf in flat.items() if not path.endswith(LEAVES)})


def unmerge(merged: Tree, adapted: Tree) -> Tree:
    """`adapted` with the base that `merged` is made of, up to rounding: each kernel minus what the adapter adds.

    Args:
      merged: the parameters that `merge` returned, or a folder that holds them.
      adapted: a tree with the same adapters, whose kernels are ignored.

    Raises:
      InputError: DoRA, whose magnitudes do not say which norms the base's kernels had.
    """
    if any(path.endswith("lora_magnitude") for path in params_lib.flatten(adapted)):
        raise InputError("an adapter of DoRA cannot be unmerged: the norms of the base's kernels are lost")

    def undone(tree: Tree, whole: Tree) -> Tree:
        if not isinstance(tree, Mapping):
            return whole
        if "lora_a" not in tree:
            return {name: undone(part, whole[name]) for name, part in tree.items()}
        # A merged kernel of eight bits has become float32, without scales.
        parts = {name: part if name in LEAVES else whole[name] for name, part in tree.items() if name != "scale"}
        change = layers.adapted(dict(tree) | {"kernel": jnp.zeros_like(whole["kernel"])})
        return parts | {"kernel": whole["kernel"] - change}

    return undone(adapted, merged)
