"""What is added to any Optax transformation: clipping, learning rates per parameter, frozen parameters, skipped steps.

A user's own optimiser uses the same functions:

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
    """An Optax transformation whose `update` takes `finite=`, a bool scalar; False leaves the state unchanged."""


def make(optimizer: Optimizer, total_updates: int, declaration: Any) -> Skippable:
    """The transformation of an optimiser. Its `update` takes `grad_norm=` and `finite=` (`contracts.Optimizer`).

    Args:
      optimizer: one of the package's, or the user's own.
      total_updates: updates of the whole run.
      declaration: the tree of `nn.params.Param`.

    Raises:
      InputError: `optimizer.make` does not return an Optax transformation.
    """
    made = optimizer.make(total_updates, declaration)
    if not isinstance(made, optax.GradientTransformation):
        raise InputError(
            f"optim: {type(optimizer).__name__}.make returned a {type(made).__name__}; it must return an "
            "optax.GradientTransformation"
        )
    return skippable(made)


def lr_scales(optimizer: Optimizer, declaration: Any) -> Any:
    """The factor of each parameter's learning rate, a tree like the parameters; 0: the parameter is frozen.

    Args:
      optimizer: one of the package's, or the user's own.
      declaration: the tree of `nn.params.Param`.
    """
    if isinstance(optimizer, ScalesRates):
        return optimizer.lr_scales(declaration)
    return groups.factors(1.0, (), declaration)


def around(
    rates: Rates, declaration: Any, build: Callable[[Any], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """An Optax transformation with the settings of `Rates` applied.

    The gradient is clipped before the transformation, its updates are scaled by the factors of the learning rate, and
    frozen parameters have no state.

    Args:
      rates: the settings.
      declaration: the tree of `nn.params.Param`.
      build: called with the declaration of the parameters that are not frozen (`groups.trained`); returns the
        transformation, including learning rate and weight decay.
    """
    scales = rates.lr_scales(declaration)
    parts = [clipped(rates.clip_norm), build(groups.trained(declaration, scales)), scaled(scales)]
    return without_frozen(optax.chain(*parts), scales)


def clipped(clip_norm: float) -> optax.GradientTransformation:
    """Clips the global norm of the gradient to `clip_norm`; 0: it is not clipped.

    `update` takes the norm as `grad_norm=`, or computes it. The factor is that of torch.nn.utils.clip_grad_norm_, which
    the published recipes used; Optax does not add the 1e-6.
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
    """Multiplies each update by its factor in `scales` (`lr_scales`)."""
    if all(np.all(scale == 1) for scale in jax.tree.leaves(scales)):
        return optax.identity()
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, scale: scale * u, updates, groups.trained(scales, scales))
    )


def by_layer(inner: optax.GradientTransformation, declaration: Any) -> optax.GradientTransformation:
    """A transformation that treats each layer of a stacked leaf as a parameter of its own.

    A stacked leaf [L, D, F] is L matrices: each has its own trust ratio, or its own factored moments.

    Args:
      inner: the transformation, which treats each leaf as one parameter.
      declaration: the tree of `nn.params.Param`; it states which leaves are stacked.
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
    """A transformation of the parameters that are not frozen; frozen ones have no state, and their updates are 0.

    Args:
      inner: the transformation.
      scales: from `lr_scales`; 0 freezes.
    """
    if not any(np.all(scale == 0) for scale in jax.tree.leaves(scales)):
        return inner
    extra = optax.with_extra_args_support(inner)

    def update(grads: Any, state: Any, params: Any, **args: Any) -> tuple[Any, Any]:
        updates, state = extra.update(groups.trained(grads, scales), state, groups.trained(params, scales), **args)
        with_zeros = jax.tree.map(
            lambda u, p: jnp.zeros_like(p) if isinstance(u, optax.MaskedNode) else u,
            updates,
            params,
            is_leaf=lambda u: isinstance(u, optax.MaskedNode),
        )
        return with_zeros, state

    kind = Skippable if isinstance(inner, Skippable) else optax.GradientTransformationExtraArgs
    return kind(lambda params: inner.init(groups.trained(params, scales)), update)


def skippable(optimizer: optax.GradientTransformation) -> Skippable:
    """Any Optax transformation, `optimizer`, as a `Skippable`; unchanged if it is one already."""
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
