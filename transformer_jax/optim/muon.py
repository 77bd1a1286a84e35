"""Muon: momentum with orthogonalised updates of matrices (Keller Jordan 2024, kellerjordan.github.io/posts/muon).

Kernels of the blocks are stacked, and each layer's matrix is orthogonalised alone. All matrices of one shape form one
batch of products, which is sharded over the devices of the mesh.

N matrices of one shape, S rows, T columns, S <= T.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from transformer_jax import sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.transform import around

# (a, b, c) of x -> a x + b x^3 + c x^5, one row per iteration: "Polar Express" (Amsel, Persson, Musco and Gower 2025).
POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


@dataclass(frozen=True)
class Muon(Rates):
    """Muon for the matrices of the blocks, and AdamW for all other parameters: embeddings, heads, norms and biases."""

    peak_lr: float = 0.02
    """The highest learning rate of the matrices, reached after the warm-up. Before it is applied, the singular values
    of an update are about sqrt(max(1, columns / rows))."""
    momentum: float = 0.95
    """Decay of the matrices' momentum (Nesterov's)."""
    matrices: str = "(^|/)blocks/"
    """A regular expression: the matrices whose path it matches are orthogonalised."""
    iterations: int = 5
    """Steps of the Newton-Schulz iteration, 1 to 5."""
    adamw_lr: float = 3e-3
    """The highest learning rate of the parameters that AdamW updates; the schedule is the same."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's, added to the root of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.momentum < 1, "momentum", "it must be in [0, 1)")
        self._require(1 <= self.iterations <= len(POLYNOMIALS), "iterations", f"it must be 1 to {len(POLYNOMIALS)}")
        self._require(self.adamw_lr > 0, "adamw_lr", "it must be above 0")
        self._require(0 <= self.beta1 < 1, "beta1", "it must be in [0, 1)")
        self._require(0 <= self.beta2 < 1, "beta2", "it must be in [0, 1)")
        self._require(self.eps > 0, "eps", "it must be above 0")

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        """Muon and AdamW for parameters of this declaration (`contracts.Optimizer`)."""
        learning_rate = self.schedule(total_updates)

        def build(trained: Any) -> optax.GradientTransformation:
            decay_mask = params_lib.decay_mask(trained)
            muon = optax.chain(
                optax.trace(self.momentum, nesterov=True),
                orthogonalized(self.iterations),
                optax.add_decayed_weights(self.weight_decay, decay_mask),
                optax.scale_by_learning_rate(learning_rate),
            )
            adamw = optax.adamw(
                lambda n: learning_rate(n) * (self.adamw_lr / self.peak_lr),
                self.beta1,
                self.beta2,
                self.eps,
                weight_decay=self.weight_decay,
                mask=decay_mask,
            )
            return optax.partition({"muon": muon, "adamw": adamw}, self.labels(trained))

        return around(self, declaration, build)

    def labels(self, declaration: Any) -> Any:
        """A tree like `declaration` of "muon" or "adamw". Raises `InputError` if no matrix matches `matrices`."""
        decayed = params_lib.flatten(params_lib.decay_mask(declaration))
        flat = {
            path: "muon" if decayed[path] and re.search(self.matrices, path) else "adamw"
            for path, p in params_lib.flatten(declaration).items()
        }
        if "muon" not in flat.values():
            raise InputError(
                f"optim.matrices {self.matrices!r} finds no matrix; the paths are {', '.join(list(flat)[:4])}, ..."
            )
        treedef = jax.tree.structure(declaration, is_leaf=lambda x: isinstance(x, params_lib.Param))
        return jax.tree.unflatten(treedef, list(flat.values()))


def orthogonalized(iterations: int) -> optax.GradientTransformation:
    """Replaces each matrix U S V^T by approximately sqrt(max(1, columns / rows)) U V^T.

    Leaves are [rows, columns], or stacked [layers, rows, columns].

    Args:
      iterations: the number of iterations of `newton_schulz`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        batches: dict[tuple[int, int], list[int]] = {}
        for i, leaf in enumerate(leaves):
            batches.setdefault((min(leaf.shape[-2:]), max(leaf.shape[-2:])), []).append(i)
        for members in batches.values():
            parts = [_wide(leaves[i]) for i in members]
            made = _sharded_newton_schulz(jnp.concatenate(parts), iterations)
            ends = [sum(len(part) for part in parts[: n + 1]) for n in range(len(parts) - 1)]
            for i, x_NST in zip(members, jnp.split(made, ends), strict=True):
                leaves[i] = _scaled(x_NST, leaves[i].shape)
        return jax.tree.unflatten(treedef, leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def newton_schulz(x_NST: jax.Array, iterations: int) -> jax.Array:
    """The matrices with all singular values near 1, by polynomials in x x^T.

    Args:
      x_NST: [N, S, T], S <= T.
      iterations: 1 to 5, rows of `POLYNOMIALS`.
    """
    x_NST = x_NST / (jnp.linalg.norm(x_NST, axis=(1, 2), keepdims=True) + 1e-7)
    for a, b, c in POLYNOMIALS[:iterations]:
        gram_NSS = jnp.einsum("NST,NUT->NSU", x_NST, x_NST)
        factor_NSS = b * gram_NSS + c * jnp.einsum("NSU,NUV->NSV", gram_NSS, gram_NSS)
        x_NST = a * x_NST + jnp.einsum("NSU,NUT->NST", factor_NSS, x_NST)
    return x_NST


def _sharded_newton_schulz(x_NST: jax.Array, iterations: int) -> jax.Array:
    """`newton_schulz` with N, padded by zeros, sharded over the devices of the mesh.

    The three constraints gather, shard and gather the matrices, each as a single collective.
    """
    replicated, sharded, count = (None, None, None), ("matrices", None, None), len(x_NST)
    if "matrices" not in sharding.current_rules() or sharding.shards("matrices") == 1:
        return newton_schulz(x_NST, iterations)
    missing = -count % sharding.shards("matrices")
    x_NST = jnp.pad(sharding.constrain(x_NST, replicated), ((0, missing), (0, 0), (0, 0)))
    x_NST = sharding.constrain(newton_schulz(sharding.constrain(x_NST, sharded), iterations), sharded)
    return sharding.constrain(x_NST, replicated)[:count]


def _wide(x: jax.Array) -> jax.Array:
    """A leaf as [N, S, T], replicated; transposed where it has more rows than columns."""
    x = sharding.constrain(x.reshape(-1, *x.shape[-2:]), (None, None, None))
    return jnp.swapaxes(x, 1, 2) if x.shape[1] > x.shape[2] else x


def _scaled(x_NST: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_wide`, times sqrt(max(1, columns / rows))."""
    rows, columns = shape[-2:]
    x = jnp.swapaxes(x_NST, 1, 2) if rows > columns else x_NST
    return math.sqrt(max(1.0, columns / rows)) * x.reshape(shape)
