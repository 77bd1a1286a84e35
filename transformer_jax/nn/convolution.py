"""Convolutions over time, as products of a dense layer with neighbouring frames.

So their kernels are those of dense layers: adapters, kernels of eight bits and the platforms' products work unchanged.

B batch, T frames, C features of a frame, F features of a new frame.
"""

from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.nn import layers
from transformer_jax.nn.params import Param


def declare(
    width_in: int, width_out: int, taps: int, axes: tuple[str | None, str | None], *, bias: bool, std: float
) -> dict[str, Param]:
    """The kernel [width_in * taps, width_out], drawn from Normal(0, std^2), and a zero bias where asked for.

    Args:
      width_in: C.
      width_out: F.
      taps: how many frames a new frame is made of.
      axes: the logical names of the kernel's axes.
      bias: whether there is one.
      std: the standard deviation of the kernel's initial values.
    """
    return layers.declare_dense(width_in * taps, width_out, axes, bias=bias, std=std)


def apply(
    p: dict[str, jax.Array], x_BTC: jax.Array, *, taps: int, stride: int = 1, padding: int = 0, out: str | None = None
) -> jax.Array:
    """The convolution, [B, `length`(T), F].

    Args:
      p: the parameters that `declare` declares; the kernel's rows are ordered by feature, then by tap.
      x_BTC: the frames.
      taps: as for `declare`.
      stride: frames from one new frame to the next.
      padding: zeros before the first frame and after the last.
      out: the logical name of the new features; None: not sharded.
    """
    x_BTC = jnp.pad(x_BTC, ((0, 0), (padding, padding), (0, 0)))
    T = length(x_BTC.shape[1], taps=taps, stride=stride)
    shifted = [x_BTC[:, tap : tap + (T - 1) * stride + 1 : stride] for tap in range(taps)]
    x_BTCt = jnp.stack(shifted, axis=-1)
    return layers.dense(p, x_BTCt.reshape(*x_BTCt.shape[:2], -1), out=out)


def length(frames: Any, *, taps: int, stride: int = 1, padding: int = 0) -> Any:
    """How many frames a convolution makes of `frames`, an integer or an array of them.

    Args:
      frames: T, before the padding.
      taps: as for `apply`.
      stride: as for `apply`.
      padding: as for `apply`.
    """
    return (frames + 2 * padding - taps) // stride + 1
