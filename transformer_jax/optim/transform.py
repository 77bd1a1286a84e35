"""Around any Optax transformation: the clipped gradient, learning rates by parameter, frozen parameters, skipped steps.

A user's own optimiser gets them from the same functions:

    @dataclass(frozen=True)
    class AdaBelief(optim.Rates):
        def make(self, total_updates, declaration):
            return optim.around(self, declaration, lambda trained: optax.adabelief(self.schedule(total_updates)))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax.contracts import Optimizer, ScalesRates
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import groups
from transformer_jax.optim.rates import Rates


class Skippable(optax.GradientTransformationExtraArgs):
    """An optax transformation whose `update` takes `finite=`, a bool scalar: where it is False, its state stays."""


def make(optimizer: Optimizer, total_updates: int, declaration: Any) -> Skippable:
    """The transformation of an optimiser, ours or the user's.

    Args:
      total_updates: updates of the whole run.
      declaration: the tree of `Param`s.
    Returns: a transformation; `update(grads, state, params, grad_norm=..., finite=...)` leaves its state as it is where
      `finite` is False.
    Raises: `InputError` where `optimizer.make` returns something else.
    """
    made = optimizer.make(total_updates, declaration)
    if not isinstance(made, optax.GradientTransformation):
        raise InputError(
            f"optim: {type(optimizer).__name__}.make returned a {type(made).__name__}; it must return an "
            "optax.GradientTransformation"
        )
    return skippable(made)


def lr_scales(optimizer: Optimizer, declaration: Any) -> Any:
    """What each parameter's learning rate is multiplied by, a tree like the parameters; 0: the parameter is frozen."""
    if isinstance(optimizer, ScalesRates):
        return optimizer.lr_scales(declaration)
    return groups.factors(1.0, (), declaration)


def around(
    rates: Rates, declaration: Any, build: Callable[[Any], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """An optax transformation with what `Rates` promises: the gradient is clipped before it, its updates are scaled by
    the factors of the learning rate, and frozen parameters have no state.

    Args:
      build: called with the declaration of the parameters that are not frozen (`groups.trained`); returns the
        transformation, learning rate and weight decay included.
    """
    scales = rates.lr_scales(declaration)
    parts = [clipped(rates.clip_norm), build(groups.trained(declaration, scales)), scaled(scales)]
    return without_frozen(optax.chain(*parts), scales)


def clipped(clip_norm: float) -> optax.GradientTransformation:
    """Clips the gradient's global norm, which may be given as `grad_norm=`; 0: it is not clipped.

    As torch.nn.utils.clip_grad_norm_, which the published recipes used; optax leaves the 1e-6 out.
    """
    if not clip_norm:
        return optax.identity()

    def update(
        grads: optax.Updates, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **unused: Any
    ) -> tuple[optax.Updates, Any]:
        norm = optax.tree.norm(grads) if grad_norm is None else grad_norm
        clip = jnp.minimum(1.0, clip_norm / (norm + 1e-6))
        return jax.tree.map(lambda g: clip * g, grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scaled(scales: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor (`lr_scales`)."""
    if all(np.all(scale == 1) for scale in jax.tree.leaves(scales)):
        return optax.identity()
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, scale: scale * u, updates, groups.trained(scales, scales))
    )


def by_layer(inner: optax.GradientTransformation, declaration: Any) -> optax.GradientTransformation:
    """A transformation that takes each leaf as one parameter, applied to each layer of the stacked ones by itself.

    A stacked leaf [L, D, F] is L matrices: one trust ratio, one pair of factored moments for each.
    """
    depths = jax.tree.map(
        lambda p: p.shape[0] if p.axes[:1] == ("layers",) else 0,
        declaration,
        is_leaf=lambda x: isinstance(x, params_lib.Param),
    )
    mapped = optax.GradientTransformation(
        jax.vmap(inner.init), lambda updates, state, params=None: jax.vmap(inner.update)(updates, state, params)
    )
    kinds = {str(depth): mapped if depth else inner for depth in jax.tree.leaves(depths)}
    return optax.partition(kinds, jax.tree.map(str, depths))


def without_frozen(inner: optax.GradientTransformation, scales: Any) -> optax.GradientTransformation:
    """`inner` for the parameters that are not frozen: the others have no state, and their updates are 0."""
    if not any(np.all(scale == 0) for scale in jax.tree.leaves(scales)):
        return inner
    extra = optax.with_extra_args_support(inner)

    def update(grads: Any, state: Any, params: Any, **args: Any) -> tuple[Any, Any]:
        updates, state = extra.update(groups.trained(grads, scales), state, groups.trained(params, scales), **args)
        whole = jax.tree.map(
            lambda u, p: jnp.zeros_like(p) if isinstance(u, optax.MaskedNode) else u,
            updates,
            params,
            is_leaf=lambda u: isinstance(u, optax.MaskedNode),
        )
        return whole, state

    kind = Skippable if isinstance(inner, Skippable) else optax.GradientTransformationExtraArgs
    return kind(lambda params: inner.init(groups.trained(params, scales)), update)


def skippable(optimizer: optax.GradientTransformation) -> Skippable:
    """Any optax transformation as a `Skippable`; itself if it is one already."""
    if isinstance(optimizer, Skippable):
        return optimizer
    inner = optax.with_extra_args_support(optimizer)

    def update(
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params,
        *,
        finite: jax.Array | bool = True,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, new = inner.update(grads, state, params, **extra)
        return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

    return Skippable(inner.init, update)
