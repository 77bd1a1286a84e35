"""Muon: momentum whose matrices are orthogonalised (Keller Jordan 2024, kellerjordan.github.io/posts/muon).

The blocks' kernels are stacked, and each layer's matrix is orthogonalised by itself. Matrices of one shape are one
batch of products, whichever parameter they belong to. A mesh's devices share that batch: each matrix is one device's.
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

# Coefficients of x -> a x + b x^3 + c x^5, one row a step: "Polar Express" (Amsel, Persson, Musco and Gower 2025).
POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


@dataclass(frozen=True)
class Muon(Rates):
    """Muon for the matrices of the blocks, AdamW for everything else: embeddings, heads, norms and biases."""

    peak_lr: float = 0.02
    """The highest learning rate of the matrices, reached after the warm-up. An update's singular values are about 1
    times the square root of columns over rows, where that is above 1."""
    momentum: float = 0.95
    """Decay of the matrices' momentum (Nesterov's)."""
    matrices: str = "(^|/)blocks/"
    """The matrices whose path this regular expression is found in are orthogonalised."""
    iterations: int = 5
    """Steps of the Newton-Schulz iteration, 1 to 5."""
    adamw_lr: float = 3e-3
    """The highest learning rate of what AdamW updates, by the same schedule."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's, added to the root of the second moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 <= self.momentum < 1, "momentum", "it must lie in [0, 1)")
        self._require(1 <= self.iterations <= len(POLYNOMIALS), "iterations", f"it must be 1 to {len(POLYNOMIALS)}")
        self._require(self.adamw_lr > 0, "adamw_lr", "it must be above 0")
        self._require(0 <= self.beta1 < 1, "beta1", "it must lie in [0, 1)")
        self._require(0 <= self.beta2 < 1, "beta2", "it must lie in [0, 1)")
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
        """Either "muon" or "adamw" for each parameter. Raises: `InputError` where no matrix is Muon's."""
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
    """Replaces each matrix U S V^T, [rows, columns] or stacked [layers, rows, columns], by about U V^T, times the
    square root of columns over rows where that is above 1."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        batches: dict[tuple[int, int], list[int]] = {}
        for i, leaf in enumerate(leaves):
            batches.setdefault((min(leaf.shape[-2:]), max(leaf.shape[-2:])), []).append(i)
        for members in batches.values():
            parts = [_wide(leaves[i]) for i in members]
            made = _shared(jnp.concatenate(parts), iterations)
            ends = [sum(len(part) for part in parts[: n + 1]) for n in range(len(parts) - 1)]
            for i, x_NST in zip(members, jnp.split(made, ends), strict=True):
                leaves[i] = _as_before(x_NST, leaves[i].shape)
        return jax.tree.unflatten(treedef, leaves), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def newton_schulz(x_NST: jax.Array, iterations: int) -> jax.Array:
    """Matrices [N, S, T], S <= T, with their singular values brought to about 1, by polynomials in x x^T."""
    x_NST = x_NST / (jnp.linalg.norm(x_NST, axis=(1, 2), keepdims=True) + 1e-7)
    for a, b, c in POLYNOMIALS[:iterations]:
        gram_NSS = jnp.einsum("NST,NUT->NSU", x_NST, x_NST)
        factor_NSS = b * gram_NSS + c * jnp.einsum("NSU,NUV->NSV", gram_NSS, gram_NSS)
        x_NST = a * x_NST + jnp.einsum("NSU,NUT->NST", factor_NSS, x_NST)
    return x_NST


def _shared(x_NST: jax.Array, iterations: int) -> jax.Array:
    """`newton_schulz`, each of the mesh's devices with its share of the matrices; zeros fill up the last shares.

    The matrices are gathered, shared and gathered again, in steps that the compiler has a collective for.
    """
    whole, shared, count = (None, None, None), ("matrices", None, None), len(x_NST)
    if "matrices" not in sharding.current_rules() or sharding.shards("matrices") == 1:
        return newton_schulz(x_NST, iterations)
    missing = -count % sharding.shards("matrices")
    x_NST = jnp.pad(sharding.constrain(x_NST, whole), ((0, missing), (0, 0), (0, 0)))
    x_NST = sharding.constrain(newton_schulz(sharding.constrain(x_NST, shared), iterations), shared)
    return sharding.constrain(x_NST, whole)[:count]


def _wide(x: jax.Array) -> jax.Array:
    """[N, rows, columns] with no more rows than columns, whole on every device."""
    x = sharding.constrain(x.reshape(-1, *x.shape[-2:]), (None, None, None))
    return jnp.swapaxes(x, 1, 2) if x.shape[1] > x.shape[2] else x


def _as_before(x_NST: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    rows, columns = shape[-2:]
    x = jnp.swapaxes(x_NST, 1, 2) if rows > columns else x_NST
    return math.sqrt(max(1.0, columns / rows)) * x.reshape(shape)
