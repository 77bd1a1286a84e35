"""What a platform computes in place of the plain form: `cpu`, `tpu` and `gpu`, and the one choice between them.

The mathematics is in `nn`, `models` and `losses`, once, in its plain form. Where a platform's compiler does better with
another form, the function is marked with `choose`, and the platform's module has a function of that name:

    @kernels.choose("norm")                      # nn/layers.py
    def norm(p, x, kind, eps): ...               # the definition

    def norm(plain, p, x, kind, eps): ...        # kernels/cpu.py

A kernel takes the plain form as its first argument, to wrap it, or to call it for a case that the kernel does not
cover. It returns the same values and gradients. Which module is asked depends on what the program is compiled for: the
devices of the current mesh, or the default backend.

Kernels with a gradient of their own are differentiable in reverse mode, once. For forward mode, Hessians, and
`jax.export` with a symbolic length, ask for the plain form of everything:

    with kernels.use("plain"):
        jax.jvp(loss, (params,), (direction,))

    length = jax.export.symbolic_shape("B, T", constraints=["T <= 1024"])     # the model's max_length
    with kernels.use("plain"):
        jax.export.export(jax.jit(forward))(params, jax.ShapeDtypeStruct(length, int))
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

PLATFORMS = ("cpu", "tpu", "gpu")

F = TypeVar("F", bound=Callable[..., Any])

# A context that is part of jit's cache key: one function traced with two choices is compiled twice.
_asked = jax.make_user_context(default_value="auto")


def use(platform: str):
    """A context manager inside which `choose` picks the kernels of `platform`.

    Args:
      platform: "auto", of the platform that the program is compiled for; "plain", no kernels; or "cpu", "tpu" or "gpu",
        to test a platform's kernels on another one.

    Raises:
      ValueError: for another name.
    """
    if platform not in ("auto", "plain", *PLATFORMS):
        raise ValueError(f"kernels.use({platform!r}): give auto, plain, {', '.join(PLATFORMS)}")
    return _asked(platform)


def choose(name: str) -> Callable[[F], F]:
    """A decorator of a plain form, which calls the platform's kernel of this `name` in its place where there is one."""

    def decorate(plain: F) -> F:
        @functools.wraps(plain)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            kernel = find(name)
            return plain(*args, **kwargs) if kernel is None else kernel(plain, *args, **kwargs)

        return chosen  # type: ignore[return-value]

    return decorate


def find(name: str, platform: str = "auto") -> Callable[..., Any] | None:
    """The kernel called `name` of a `platform` ("auto": the current one); None where the plain form is used."""
    platform = _asked.value if platform == "auto" else platform
    platform = target_platform() if platform == "auto" else platform
    if platform not in PLATFORMS:
        return None
    module: ModuleType = importlib.import_module(f"transformer_jax.kernels.{platform}")  # imports Pallas only for TPUs
    return getattr(module, name) if name in module.__all__ else None


def target_platform() -> str:
    """The platform that the traced program is compiled for: of the current mesh's devices, or the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def target_chip() -> str:
    """The kind of device that the traced program is compiled for, in JAX's words: "TPU v5p", "NVIDIA H100", "cpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


@choose("row_sums")
def row_sums(x: jax.Array) -> jax.Array:
    """Sums of `x`, float32, over its last axis, which no mesh axis should shard."""
    return jnp.sum(x, axis=-1)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """`cap` tanh(`x` / `cap`), which is x where it is small and stays within (-cap, cap) (Bello et al. 2017)."""
    return cap * jnp.tanh(x / cap)
