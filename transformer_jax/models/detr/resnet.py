"""ResNet with bottlenecks; DETR reads the last stage (He et al. 2016, arXiv 1512.03385, with the stride in the
3 x 3 convolution), with frozen batch norm.

The statistics, scales and biases of its norms have no gradient: they come with a checkpoint. Without one they change
nothing, but for the last norm of each block, whose scale makes the sum of all blocks about as large as its parts.

B batch, Y and X pixels, C channels, F new channels.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.nn.params import Param, normal, ones, zeros

if TYPE_CHECKING:
    from transformer_jax.models.detr import Config

NORM_EPS = 1e-5


class Convolution(NamedTuple):
    """The sizes of a convolution: channels in and out, its kernel's side, and its stride."""

    channels: int
    features: int
    side: int
    stride: int


def plan(cfg: "Config") -> dict[str, Convolution]:
    """{path of a convolution, such as "stage1/block0/middle": its sizes} of the backbone of `cfg`."""
    made = {"stem": Convolution(cfg.channels, cfg.stem_width, 7, 2)}
    channels = cfg.stem_width
    for stage, (depth, width) in enumerate(zip(cfg.stage_depths, cfg.stage_widths, strict=True)):
        for block in range(depth):
            path, stride, inner = f"stage{stage}/block{block}", 2 if stage and not block else 1, width // 4
            made[f"{path}/reduce"] = Convolution(channels, inner, 1, 1)
            made[f"{path}/middle"] = Convolution(inner, inner, 3, stride)
            made[f"{path}/expand"] = Convolution(inner, width, 1, 1)
            if stride > 1 or channels != width:
                made[f"{path}/shortcut"] = Convolution(channels, width, 1, stride)
            channels = width
    return made


def declare(cfg: "Config") -> dict[str, Any]:
    """{path: the `Param`s of a convolution and its norm}, nested, for `cfg`.

    The rows of a kernel [C * side * side, F] are in the order of channel, row and column: a published kernel
    [F, C, side, side] is its transpose, reshaped.
    """
    tree: dict[str, Any] = {}
    small = sum(cfg.stage_depths) ** -0.5
    for path, conv in plan(cfg).items():
        rows = conv.channels * conv.side**2
        scale = (lambda key, shape: jnp.full(shape, small)) if path.endswith("expand") else ones
        vectors = {"scale": scale, "bias": zeros, "mean": zeros, "variance": ones}
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = {
            "kernel": Param((rows, conv.features), (None, None), normal((2 / rows) ** 0.5)),
            "norm": {name: Param((conv.features,), (None,), init) for name, init in vectors.items()},
        }
    return tree


def features(p: Any, cfg: "Config", images_BYXC: jax.Array) -> jax.Array:
    """The last stage's features, [B, Y/32, X/32, F] in cfg.dtype, with the quotients rounded up.

    Args:
      p: of `declare`.
      cfg: the model's config.
      images_BYXC: floats, normalised.
    """
    x_BYXC = sharding.constrain(images_BYXC.astype(cfg.dtype), ("batch", None, None, None))
    x_BYXC = jax.nn.relu(_normed(p["stem"], x_BYXC, 7, 2))
    edge = ((0, 0), (1, 1), (1, 1), (0, 0))
    x_BYXC = jax.lax.reduce_window(x_BYXC, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edge)
    for stage, depth in enumerate(cfg.stage_depths):
        for block in range(depth):
            x_BYXC = _bottleneck(p[f"stage{stage}"][f"block{block}"], x_BYXC, 2 if stage and not block else 1)
    return x_BYXC


# Compiled as one function, so that blocks of equal sizes are traced and differentiated once.
@functools.partial(jax.jit, static_argnums=2)
def _bottleneck(p: Any, x_BYXC: jax.Array, stride: int) -> jax.Array:
    h_BYXC = jax.nn.relu(_normed(p["reduce"], x_BYXC, 1, 1))
    h_BYXC = jax.nn.relu(_normed(p["middle"], h_BYXC, 3, stride))
    kept_BYXF = _normed(p["shortcut"], x_BYXC, 1, stride) if "shortcut" in p else x_BYXC
    return jax.nn.relu(_normed(p["expand"], h_BYXC, 1, 1) + kept_BYXF)


def _normed(p: Any, x_BYXC: jax.Array, side: int, stride: int) -> jax.Array:
    """A convolution and its frozen norm."""
    kernel = p["kernel"].reshape(x_BYXC.shape[-1], side, side, -1).transpose(1, 2, 0, 3).astype(x_BYXC.dtype)
    edge = [(side // 2, side // 2)] * 2
    y_BYXF = jax.lax.conv_general_dilated(
        x_BYXC, kernel, (stride, stride), edge, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    norm = {name: jax.lax.stop_gradient(value) for name, value in p["norm"].items()}
    scale_F = norm["scale"] * jax.lax.rsqrt(norm["variance"] + NORM_EPS)
    y_BYXF = y_BYXF * scale_F.astype(y_BYXF.dtype) + (norm["bias"] - norm["mean"] * scale_F).astype(y_BYXF.dtype)
    return sharding.constrain(y_BYXF, ("batch", None, None, None))
