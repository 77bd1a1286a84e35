"""Attention looked at: the probabilities of every layer and head of a forward pass, and the pass without some heads.

    with watch.attention() as seen:
        gpt.hidden(params, watch.open_up(cfg), tokens)
    seen.probabilities("self")                          # [L, B, N, T, S]

Inside the context `nn.attention` computes its plain form and keeps the probabilities that it computes, so any model
that is built on it can be looked at: with rotary positions, biases, windows, caps, cross-attention and a cache. Layers
must be unrolled (`open_up`); the context and what is read from it belong into one jitted function.

L layers, B batch, N query heads, T queries, S keys.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from transformer_jax import kernels

C = TypeVar("C")

SELF, CROSS, CACHED = "self", "cross", "cached"


@dataclass(eq=False)
class Watch:
    """What a forward pass shows, in the order in which it computes it.

    Attributes:
      found: (kind, probabilities float32 [B, N, T, S]) of each call.
      factors: {kind: [L, N]}, what each head's output is multiplied by: 0 removes the head. {}: 1.
      added: {kind: of each layer [B, N, T, S]}, added to the probabilities after the softmax: zeros, to
        differentiate by them.
    """

    found: list[tuple[str, jax.Array]] = field(default_factory=list)
    factors: Mapping[str, jax.Array] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, kind: str, probs_BNTS: jax.Array) -> jax.Array:
        """The probabilities with which the pass continues; those given are kept."""
        layer = sum(name == kind for name, _ in self.found)
        self.found.append((kind, probs_BNTS))
        if kind in self.added:
            probs_BNTS = probs_BNTS + self.added[kind][layer].astype(probs_BNTS.dtype)
        if kind in self.factors:  # scaling the probabilities scales the head's output
            probs_BNTS = probs_BNTS * self.factors[kind][layer][:, None, None].astype(probs_BNTS.dtype)
        return probs_BNTS

    def each(self, kind: str) -> list[jax.Array]:
        """The probabilities of each layer: of `kind` "self", "cross" or "cached"."""
        return [probs_BNTS for name, probs_BNTS in self.found if name == kind]

    def probabilities(self, kind: str) -> jax.Array:
        """The probabilities of all layers of a `kind`, float32 [L, B, N, T, S]; rows sum to 1."""
        return jnp.stack(self.each(kind))


_watch = jax.make_user_context(default_value=None)  # part of jit's cache key, as that of `kernels.use`


def current() -> Watch | None:
    """The watch of the context; None outside of one."""
    return _watch.value


@contextlib.contextmanager
def attention(
    factors: Mapping[str, jax.Array] | None = None, added: Mapping[str, Any] | None = None
) -> Iterator[Watch]:
    """A context in which attention is looked at, and changed.

    Args:
      factors: as `Watch.factors`.
      added: as `Watch.added`.
    """
    watch = Watch([], factors or {}, added or {})
    with kernels.use("plain"), _watch(watch):
        yield watch


def open_up(cfg: C) -> C:
    """The model's config `cfg` with unrolled layers, the plain attention and nothing recomputed: parameters stay."""
    names = {f.name for f in dataclasses.fields(cfg)}  # type: ignore[arg-type]
    wanted: dict[str, Any] = {"scan_layers": False, "remat": "none", "attention": "xla"}
    return dataclasses.replace(cfg, **{name: value for name, value in wanted.items() if name in names})  # type: ignore
