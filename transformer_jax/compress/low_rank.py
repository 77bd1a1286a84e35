"""Kernels as two factors of low rank: fewer bytes and fewer multiplications, and both factors can be trained.

    rule = LowRank(target="blocks/", share=0.5)
    params = rule.apply(params)                               # "low_a" and "low_b" in place of each chosen "kernel"

A kernel W [D, F] becomes A [D, r] times B [r, F], the nearest product of that rank (the truncated singular value
decomposition, Eckart and Young 1936). The rank follows from the shape, so that the factors hold `share` of the kernel's
numbers; a declaration needs no data.

D features of the input, F of the output, r the rank.
"""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from transformer_jax import compress
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Tree, normal


@dataclass(frozen=True)
class LowRank:
    """Which kernels are two factors, and how many numbers these hold."""

    target: str = "blocks/"
    """A regular expression, searched in the paths of the kernels: "blocks/mlp/" is the MLPs' of a single stack."""
    share: float = 0.5
    """The numbers of both factors together, as a share of the kernel's."""

    def __post_init__(self) -> None:
        compress.check_pattern(self.target)
        if not 0 < self.share < 1:
            raise InputError(f"compress.share is {self.share}; it must be above 0 and below 1")

    def rank(self, shape: tuple[int, ...]) -> int:
        """r of a kernel of `shape` [..., D, F]."""
        D, F = shape[-2:]
        return max(1, int(self.share * D * F / (D + F)))

    def declare(self, declaration: Tree) -> Tree:
        """`declaration` with two factors in place of each chosen kernel. See `compress.Rule`.

        Raises:
          InputError: the pattern matches no kernel.
        """
        flat = params_lib.flatten(declaration)
        for path in compress.chosen(flat, self.target):
            kernel = flat.pop(path)
            (*lead, D, F), (*lead_axes, axis_D, axis_F) = kernel.shape, kernel.axes
            r, at = self.rank(kernel.shape), path.removesuffix("kernel")
            # Drawn, their product has the deviation of most kernels, 0.02.
            first, second = normal(D**-0.5), normal(0.02 * (D / r) ** 0.5)
            flat[f"{at}low_a"] = dataclasses.replace(
                kernel, shape=(*lead, D, r), axes=(*lead_axes, axis_D, None), init=first
            )
            flat[f"{at}low_b"] = dataclasses.replace(
                kernel, shape=(*lead, r, F), axes=(*lead_axes, None, axis_F), init=second
            )
        return params_lib.nested(flat)

    def apply(self, params: Tree) -> Tree:
        """`params` with the factors of each chosen kernel, which share its singular values. See `compress.Rule`."""
        flat = params_lib.flatten(params)
        for path in compress.chosen(flat, self.target):
            kernel = np.asarray(flat.pop(path), np.float32)
            r, at = self.rank(kernel.shape), path.removesuffix("kernel")
            left, values, right = np.linalg.svd(kernel, full_matrices=False)
            roots = np.sqrt(values[..., :r])
            flat[f"{at}low_a"] = jnp.asarray(left[..., :r] * roots[..., None, :])
            flat[f"{at}low_b"] = jnp.asarray(roots[..., :, None] * right[..., :r, :])
        return params_lib.nested(flat)
