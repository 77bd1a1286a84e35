"""EoMT: a Vision Transformer that segments by itself (Kerssies et al. 2025, arXiv 2503.19108).

Learned queries join the tokens of a DINOv2 before its last blocks. Each query then names a class and, by its product
with the enlarged patches, a mask.

    masks = eomt.predict_masks(params, cfg, images_BYXC)        # one for each query, with its classes
    logits_BYXK = eomt.segment(params, cfg, images_BYXC)        # the class of each pixel, for tasks.Segmentation

The attention of queries is not masked: published models have learned to do without.

B batch, Y and X pixels, C channels, T tokens, D width, Q queries, K classes, L layers, U enlargements.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.contracts import RUN, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.models.vit import trunk
from transformer_jax.nn import block, config, layers, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param, normal, ones, zeros

Params = Any

TRUNK = ("embed", "blocks", "final_norm")
MLP = ("first", "second", "out")
UPSCALE_EPS = 1e-6  # the norms' eps between enlargements


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """An EoMT; the defaults are its ViT-L. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    image_size: int = 640
    """Pixels of a side; images are square."""
    patch_size: int = 16
    """Pixels of a patch's side; it divides the image's."""
    channels: int = 3
    """C, of the images."""
    num_classes: int = field(default=150, metadata=RUN)
    """K; the model has one more output for "no object"."""
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    num_queries: int = 200
    """Q, the number of masks that are predicted for an image."""
    num_blocks: int = 4
    """How many of the last blocks process the queries beside the patches."""
    num_registers: int = 4
    """Further tokens beside the class token, without positions."""
    upscale_blocks: int = 2
    """U, enlargements before the masks; each doubles the masks' sides."""
    gated: bool = False
    """Multiply the MLP's hidden layer by a gate."""
    layer_scale: float = 1.0
    """Initial value of a learned factor for each feature that a sublayer adds."""
    norm_eps: float = 1e-6
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for attention probabilities."""

    def __post_init__(self) -> None:
        config.check(self, sizes=("image_size", "patch_size", "channels", "num_classes", "num_queries"))
        if not 1 <= self.num_blocks < self.num_layers:
            raise InputError(f"model.num_blocks is {self.num_blocks}; it must be 1 or more, and less than the layers")
        if self.image_size % self.patch_size:
            raise InputError(f"model.patch_size {self.patch_size} does not divide model.image_size {self.image_size}")
        if min(self.num_registers, self.upscale_blocks) < 0 or self.layer_scale <= 0:
            raise InputError(
                f"model.num_registers is {self.num_registers}, upscale_blocks {self.upscale_blocks} and layer_scale "
                f"{self.layer_scale}; the first two must be 0 or more, the last above 0"
            )

    @property
    def position(self) -> str:
        """The kind of positions: one learned row for each patch."""
        return "learned"

    @property
    def pool(self) -> str:
        """The kind of pooling: none, as each patch is read by itself."""
        return "mean"

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        return self.image_size, self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def num_predictions(self) -> int:
        """Q, the masks of `predict_masks`."""
        return self.num_queries

    @property
    def num_special(self) -> int:
        """Tokens before the patches."""
        return 1 + self.num_registers

    @property
    def max_length(self) -> int:
        """T of a whole image, with the queries."""
        return self.num_queries + self.num_special + self.num_patches


mesh_sizes = config.mesh_sizes


class Masks(NamedTuple):
    """The predictions of a batch.

    Attributes:
      logits: float32 [B, Q, K + 1]; the last class is "no object".
      masks: float32 [B, Q, rows, columns], logits; the sides are those of the patches times 2^U.
    """

    logits: jax.Array
    masks: jax.Array


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`. The rows of the patches' kernel are in the order of `vit.declare`."""
    D, std, values = cfg.width, cfg.init_std, cfg.channels * cfg.patch_size**2

    def tokens(count: int) -> dict[str, Param]:
        return {"embedding": Param((count, D), (None, "embed"), normal(std), decay=False)}

    embed = {
        "patch": layers.declare_dense(values, D, (None, "embed"), bias=True, std=std),
        "class": tokens(1),
        **({"registers": tokens(cfg.num_registers)} if cfg.num_registers else {}),
        "position": {"embedding": Param((cfg.num_patches, D), ("position", "embed"), normal(std), decay=False)},
    }
    bias = {"bias": Param((D,), (None,), zeros)}
    one = {
        "up": {"kernel": Param((D, 4 * D), ("embed", None), normal(D**-0.5)), **bias},
        "depthwise": {"kernel": Param((D, 9), (None, None), normal(1 / 3))},
        "norm": {"scale": Param((D,), (None,), ones, decay=False), **bias},
    }
    dense = {"kernel": Param((D, D), ("embed", None), normal(D**-0.5)), **bias}
    classes = {
        "kernel": Param((D, cfg.num_classes + 1), ("embed", None), normal(std)),
        "bias": Param((cfg.num_classes + 1,), (None,), zeros),
    }
    return {
        "embed": embed,
        "blocks": params_lib.stack(block.declare(cfg, layer_scale=cfg.layer_scale), cfg.num_layers),
        "final_norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
        "queries": tokens(cfg.num_queries),
        "mask_head": dict.fromkeys(MLP, dense),
        "class_head": classes,
        **({"upscale": params_lib.stack(one, cfg.upscale_blocks)} if cfg.upscale_blocks else {}),
    }


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`."""
    return params_lib.init(key, declare(cfg))


def hidden(params: Params, cfg: Config, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Hidden states after the final norm, [B, T, D]: the queries, the class token, the registers, the patches.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      images_BYXC: floats, normalised.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
    x_BTD = _embedded(params["embed"], cfg, images_BYXC, keys[0])
    first = cfg.num_layers - cfg.num_blocks

    def blocks(x_BTD: jax.Array, begin: int, end: int, key: jax.Array | None) -> jax.Array:
        def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
            return block.apply(p, cfg, x_BTD, mask=Mask(), key=key)[0]

        some = jax.tree.map(lambda x: x[begin:end], params["blocks"])
        options: Any = {"num_layers": end - begin, "scan": cfg.scan_layers, "remat": cfg.remat, "key": key}
        return stack.run(one, some, x_BTD, **options)

    x_BTD = blocks(x_BTD, 0, first, keys[1])
    with sharding.replicated_length():
        queries_QD = sharding.constrain(params["queries"]["embedding"], (None, None)).astype(cfg.dtype)
        queries_BQD = jnp.broadcast_to(queries_QD, (len(x_BTD), *queries_QD.shape))
        queries_BQD = sharding.constrain(queries_BQD, ("batch", None, None))
        x_BTD = jnp.concatenate([queries_BQD, sharding.constrain(x_BTD, ("batch", None, None))], axis=1)
    x_BTD = blocks(sharding.constrain(x_BTD, ("batch", "length", None)), first, cfg.num_layers, keys[2])
    return layers.norm(params["final_norm"], x_BTD, cfg.norm, cfg.norm_eps)


def _embedded(p: Any, cfg: Config, images_BYXC: jax.Array, key: jax.Array | None) -> jax.Array:
    trunk.check_images(cfg, images_BYXC)
    with sharding.replicated_length():
        x_BTD = layers.dense(p["patch"], trunk.patches(cfg, images_BYXC).astype(cfg.dtype), out=None)
        x_BTD = x_BTD + sharding.constrain(p["position"]["embedding"], (None, None)).astype(cfg.dtype)
        special = [
            sharding.constrain(p[name]["embedding"], (None, None)).astype(cfg.dtype)
            for name in ("class", "registers")
            if name in p
        ]
        spread = [jnp.broadcast_to(tokens, (len(x_BTD), *tokens.shape)) for tokens in special]
        spread = [sharding.constrain(tokens, ("batch", None, None)) for tokens in spread]
        x_BTD = layers.dropout(jnp.concatenate([*spread, x_BTD], axis=1), cfg.dropout, key)
    return sharding.constrain(x_BTD, ("batch", "length", None))


def predict_masks(params: Params, cfg: Config, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> Masks:
    """The class and the mask of each query.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      images_BYXC: as for `hidden`.
      key: as for `hidden`.
    """
    x_BTD = sharding.constrain(hidden(params, cfg, images_BYXC, key=key), ("batch", None, None)).astype(jnp.float32)
    query_BQD, patch_BPD = x_BTD[:, : cfg.num_queries], x_BTD[:, cfg.num_queries + cfg.num_special :]
    with sharding.replicated_length():
        logits_BQK = layers.dense(params["class_head"], query_BQD, out=None)
        for name in MLP:
            query_BQD = layers.dense(params["mask_head"][name], query_BQD, out=None)
            query_BQD = query_BQD if name == MLP[-1] else layers.ACTIVATIONS[cfg.activation](query_BQD)
    enlarged_ByxD = patch_BPD.reshape(len(patch_BPD), *cfg.grid, cfg.width)
    for i in range(cfg.upscale_blocks):
        enlarged_ByxD = _enlarged(jax.tree.map(lambda x, i=i: x[i], params["upscale"]), cfg, enlarged_ByxD)
    return Masks(logits_BQK, jnp.einsum("BQD,ByxD->BQyx", query_BQD, enlarged_ByxD))


def _enlarged(p: Any, cfg: Config, x_ByxD: jax.Array) -> jax.Array:
    """An image of states with its sides doubled: each state becomes 2 x 2, then neighbours mix feature by feature."""
    B, Y, X, D = x_ByxD.shape
    parts = jnp.einsum("ByxD,DF->ByxF", x_ByxD, p["up"]["kernel"]).reshape(B, Y, X, D, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    x_ByxD = parts.reshape(B, 2 * Y, X, 2, D).reshape(B, 2 * Y, 2 * X, D) + p["up"]["bias"]
    # A sum over neighbours: the compiler shards the kernel's gradient of a convolution by features wrongly.
    edged = jnp.pad(layers.ACTIVATIONS[cfg.activation](x_ByxD), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel_9D = p["depthwise"]["kernel"].T
    x_ByxD = sum(edged[:, i // 3 : i // 3 + 2 * Y, i % 3 : i % 3 + 2 * X] * kernel_9D[i] for i in range(9))
    return layers.norm(p["norm"], x_ByxD, "layer", UPSCALE_EPS)


def segment(params: Params, cfg: Config, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Logarithms of the score of each class in each part of the masks, float32 [B, rows, columns, K].

    The score is the sum over the queries of the class's probability times the mask's (MaskFormer: Cheng et al. 2021,
    section 3.4).

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      images_BYXC: as for `hidden`.
      key: as for `hidden`.
    """
    found = predict_masks(params, cfg, images_BYXC, key=key)
    p_BQK = jax.nn.softmax(found.logits)[..., :-1]
    return jnp.log(jnp.einsum("BQK,BQyx->ByxK", p_BQK, jax.nn.sigmoid(found.masks)) + 1e-9)
