"""ViT: the Vision Transformer, from the paper's over DeiT to big_vision's plain recipe, by config.

The defaults are ViT-B/16 (Dosovitskiy et al. 2021, arXiv 2010.11929): patches and a class token with learned positions,
pre-norm blocks, a linear head that starts at zero.

    cfg = vit.Config(**vit.SIZES["S"], patch_size=16)
    params = vit.init(jax.random.key(0), cfg)
    logits_BK = jax.jit(vit.apply, static_argnums=1)(params, cfg, images_BYXC)

    DeiT          distillation="head", initializer="normal", stochastic_depth=0.1 (Touvron et al. 2021)
    big_vision    position="sincos2d", pool="mean" or "map", activation="gelu_tanh" (Beyer et al. 2022)
    registers     num_registers=4 (Darcet et al. 2024)
    DeiT III      layer_scale=1e-4, stochastic_depth up to 0.5 (Touvron et al. 2022)
    YOLOS         detector="queries", num_queries=100, and layer_positions=True for S and B (Fang et al. 2021)
    OWL-ViT       detector="patches": each patch predicts a box near its own place (Minderer et al. 2022)
    MAE           decoder=Decoder(8), num_classes=0: `reconstruct` predicts masked patches (He et al. 2022)
    DINOv2        layer_scale=1, pool="both", interpolate="bicubic"; giant: gated=True, activation="silu" (Oquab et al.
                  2023)

The paper's code and big_vision compute GELU by its approximation ("gelu_tanh"), timm and Transformers exactly.

Config and parameters are here, the functions in `trunk.py`, `heads.py`, `detection.py`, `inspection.py` and
`resolution.py`.

B batch, Y and X pixels, C channels, P values of a patch, S special tokens, T tokens, D width, K classes, L layers,
Q queries.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from transformer_jax.contracts import RUN, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.models.vit.detection import declare_detector, detect
from transformer_jax.models.vit.heads import apply, distilled_logits, features, head_logits, pooled, segment
from transformer_jax.models.vit.inspection import attention_weights, hidden_states, rollout
from transformer_jax.models.vit.reconstruction import Decoder, declare_decoder, reconstruct
from transformer_jax.models.vit.resolution import resample_positions, resized
from transformer_jax.models.vit.trunk import hidden, patches, unsplit
from transformer_jax.nn import block, config, layers
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, normal, zeros

Params = Any

__all__ = [
    "LABEL_HEADS",
    "SIZES",
    "TRUNK",
    "Config",
    "Decoder",
    "apply",
    "attention_weights",
    "declare",
    "detect",
    "distilled_logits",
    "features",
    "head_logits",
    "hidden",
    "hidden_states",
    "init",
    "mesh_sizes",
    "patches",
    "pooled",
    "reconstruct",
    "resample_positions",
    "resized",
    "rollout",
    "segment",
    "unsplit",
]

TRUNK = ("embed", "blocks", "final_norm", "pool", "layer_positions")  # the parts of the tree that are no head
LABEL_HEADS = ("head", "distillation_head")

# Ti and S: Touvron et al. 2021; B, L and H: Dosovitskiy et al. 2021, table 1.
SIZES: dict[str, dict[str, Any]] = {
    "Ti": {"width": 192, "num_layers": 12, "num_heads": 3},
    "S": {"width": 384, "num_layers": 12, "num_heads": 6},
    "B": {"width": 768, "num_layers": 12, "num_heads": 12},
    "L": {"width": 1024, "num_layers": 24, "num_heads": 16},
    "H": {"width": 1280, "num_layers": 32, "num_heads": 16},
}


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """A Vision Transformer. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    image_size: int | tuple[int, int] = field(default=224, metadata=RUN)
    """Rows and columns of pixels; one number: a square."""
    patch_size: int = 16
    """Pixels of a patch's side; it divides the image's rows and columns."""
    channels: int = 3
    """C, of the images."""
    num_classes: int = field(default=1000, metadata=RUN)
    """K; 0: no head, features only. In an experiment the task's labels replace the default."""
    pool: Literal["class", "mean", "both", "map"] = "class"
    """The head's input: a class token, the mean of the patches, both side by side, or attention pooling by a learned
    query (Zhai et al. 2022, section 3.3). There is a class token only with "class" and "both"."""
    distillation: Literal["none", "token", "head"] = "none"
    """DeiT's second token: none; a token without a head; or with a head of its own, for a teacher's labels."""
    num_registers: int = 0
    """Further tokens, without positions, that no head reads (Darcet et al. 2024)."""
    position: Literal["learned", "sincos2d"] = "learned"
    """A table with a row for each class or distillation token and patch, or sines and cosines for the patches alone."""
    interpolate: Literal["never", "bicubic", "antialiased"] = "never"
    """How learned positions fit images of another size: never, so that such images are refused, or interpolated in each
    call (`resolution`)."""
    patch_bias: bool = True
    """A bias in the projection of the patches; CLIP has none."""
    embedding_norm: bool = False
    """A norm before the first block (CLIP)."""
    head_grid: int = field(default=1, metadata=RUN)
    """Rows and columns of labels that the head gives each patch in segmentation (`segment`)."""
    detector: Literal["none", "queries", "patches"] = field(default="none", metadata=RUN)
    """What predicts objects (`detect`), in place of the classifier's head: learned tokens after the patches; or each
    patch, with a box whose centre is that of the patch before it has learned another."""
    num_queries: int = field(default=100, metadata=RUN)
    """Q, learned tokens with detector "queries"."""
    layer_positions: bool = False
    """Learned positions that are added after every layer but the last (YOLOS-S and B)."""
    decoder: Decoder = field(default=Decoder(), metadata=RUN)
    """What predicts masked patches (`reconstruct`), in pre-training."""
    pre_logits: int = field(default=0, metadata=RUN)
    """Width of a tanh layer before the head, which the paper uses in pre-training; 0: none."""
    qkv_bias: bool = True
    """Biases in the query, key and value projections."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    gated: bool = False
    """Multiply the MLP's hidden layer by a gate: SwiGLU with activation "silu"."""
    layer_scale: float = 0.0
    """Initial value of a learned factor for each feature that a sublayer adds, such as 1e-4; 0: there is none."""
    norm_eps: float = 1e-6
    """The paper's, timm's and big_vision's; Transformers' is 1e-12."""
    dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for embeddings and sublayers' outputs; applied, as the next three, only when a key is given."""
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for attention probabilities."""
    stochastic_depth: float = field(default=0.0, metadata=TRAINING)
    """The drop_path rate of the last layer; it grows linearly from 0 in the first."""
    patch_dropout: float = field(default=0.0, metadata=TRAINING)
    """The share of each image's patches that is dropped (Liu et al. 2022, arXiv 2208.07220)."""
    initializer: Literal["xavier", "normal"] = field(default="xavier", metadata=TRAINING)
    """Kernels are uniform (Glorot and Bengio 2010), the patches' Normal(0, 1/P), as in the paper's code and big_vision;
    or all are Normal(0, init_std^2), as in DeiT. The head and the class token are zero at first."""
    init_std: float = field(default=0.02, metadata=RUN)
    """Of the initial positions, distillation and register tokens, and with initializer "normal" of kernels."""

    def __post_init__(self) -> None:
        config.check(self, sizes=("patch_size", "channels"))
        for name in ("num_classes", "num_registers", "pre_logits", "layer_scale"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("attention_dropout", "stochastic_depth", "patch_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if min(self.sides) < 1:
            raise InputError(f"model.image_size is {self.image_size}; it must be at least 1")
        if any(side % self.patch_size for side in self.sides):
            raise InputError(
                f"model.patch_size {self.patch_size} does not divide model.image_size {self.image_size}; "
                "change one of them"
            )
        if self.position == "sincos2d" and (self.width % 4 or self.width < 8):
            raise InputError(f"sincos2d positions need a width that is a multiple of 4 from 8 on; it is {self.width}")
        if self.distillation != "none" and not self.has_class_token:
            raise InputError(
                f"model.distillation is {self.distillation!r} with model.pool {self.pool!r}; the distillation token "
                "stands beside a class token, so set model.pool to 'class'"
            )
        if self.detector != "none" and (self.distillation != "none" or self.pre_logits or not self.num_classes):
            raise InputError(
                f"model.detector is {self.detector!r}, which needs model.num_classes and neither distillation nor "
                "pre_logits"
            )
        if self.head_grid < 1 or (self.head_grid > 1 and (self.pool != "mean" or self.pre_logits)):
            raise InputError(
                f"model.head_grid is {self.head_grid}; it must be at least 1, and above 1 only with pool 'mean' and "
                "without pre_logits"
            )
        if self.detector == "queries" and self.num_queries < 1:
            raise InputError(f"model.num_queries is {self.num_queries}; it must be at least 1")
        if self.detector == "queries" and (self.position != "learned" or self.patch_dropout):
            raise InputError("model.detector 'queries' needs learned positions and no patch_dropout")
        if self.detector == "patches" and self.patch_dropout:
            raise InputError("model.detector 'patches' needs all patches; set patch_dropout to 0")
        if self.layer_positions and (self.position != "learned" or self.patch_dropout or self.num_registers):
            raise InputError("model.layer_positions needs learned positions, no registers and no patch_dropout")
        if self.decoder.layers and (self.decoder.width % max(self.decoder.heads, 1) or self.decoder.width % 4):
            raise InputError(f"model.decoder is {self.decoder}: its width must be a multiple of its heads and of 4")
        if self.distillation == "head" and not self.num_classes:
            raise InputError("model.distillation 'head' needs classes; set model.num-classes, or distillation 'token'")
        if self.distillation == "head" and self.pre_logits:
            raise InputError(f"model.pre_logits is {self.pre_logits} with two heads; it is for one, so set it to 0")

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.sides[0] // self.patch_size, self.sides[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is no patch but learned, for the head to read."""
        return self.pool in ("class", "both")

    @property
    def pooled_width(self) -> int:
        """Width of what the pooling gives."""
        return self.width * (2 if self.pool == "both" else 1)

    @property
    def num_positioned(self) -> int:
        """Special tokens that have a position in the table: class and distillation."""
        return self.has_class_token + (self.distillation != "none")

    @property
    def num_special(self) -> int:
        """S, tokens before the patches: class, distillation, registers."""
        return self.num_positioned + self.num_registers

    @property
    def query_tokens(self) -> int:
        """Tokens after the patches."""
        return self.num_queries if self.detector == "queries" else 0

    @property
    def num_predictions(self) -> int:
        """Q, the boxes of `detect`; 0: the model detects nothing."""
        return self.num_patches if self.detector == "patches" else self.query_tokens

    @property
    def max_length(self) -> int:
        """T of a whole image."""
        return self.num_special + self.num_patches + self.query_tokens

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.qkv_bias


# ------------------------------------------------------------------------------------------------------- parameters


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`. Weight decay applies to kernels alone, as in the published recipes.

    The rows of the patches' kernel [C * side * side, D] are in the order of channel, row and column of a patch: a
    convolution's kernel [D, C, side, side] is its transpose, reshaped.
    """
    D, std, patch_values = cfg.width, cfg.init_std, cfg.channels * cfg.patch_size**2
    patch_std = patch_values**-0.5 if cfg.initializer == "xavier" else std
    embed = {"patch": layers.declare_dense(patch_values, D, (None, "embed"), bias=cfg.patch_bias, std=patch_std)}
    if cfg.has_class_token:
        embed["class"] = _declare_tokens(1, D, zeros)
    if cfg.distillation != "none":
        embed["distillation"] = _declare_tokens(1, D, normal(std))
    if cfg.num_registers:
        embed["registers"] = _declare_tokens(cfg.num_registers, D, normal(std))
    if cfg.position == "learned":
        rows = cfg.num_positioned + cfg.num_patches + cfg.query_tokens
        table = Param((rows, D), ("position", "embed"), normal(std), decay=False)
        embed["position"] = {"embedding": table}

    if cfg.embedding_norm:
        embed["norm"] = layers.declare_norm(D, cfg.norm, bias=cfg.bias)

    rest: dict[str, Any] = {
        "blocks": params_lib.stack(block.declare(cfg, layer_scale=cfg.layer_scale), cfg.num_layers),
        "final_norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
    }
    if cfg.layer_positions:
        shape = (cfg.num_layers - 1, 1, cfg.max_length, D)
        table = Param(shape, (None, None, "position", "embed"), normal(std), decay=False)
        rest["layer_positions"] = {"embedding": table}
    if cfg.pool == "map":
        one = block.declare(cfg, cross=True)
        rest["pool"] = {
            "probe": _declare_tokens(1, D, params_lib.xavier),
            "attention": one["cross"],
            "norm": one["mlp_norm"],
            "mlp": one["mlp"],
        }
    if cfg.decoder.layers:
        rest["decoder"] = declare_decoder(cfg)
    if cfg.pre_logits:
        rest["pre_logits"] = layers.declare_dense(cfg.pooled_width, cfg.pre_logits, ("embed", None), bias=True, std=std)

    def initialized(path: Any, p: Param) -> Param:
        draw = params_lib.xavier if cfg.initializer == "xavier" else normal(std)
        return dataclasses.replace(p, init=draw) if path[-1].key == "kernel" else p

    rest = jax.tree_util.tree_map_with_path(initialized, rest, is_leaf=lambda x: isinstance(x, Param))
    if cfg.detector != "none":
        queries = {"queries": _declare_tokens(cfg.num_queries, D, normal(std))} if cfg.query_tokens else {}
        return {"embed": embed, **rest, **queries, **declare_detector(cfg)}
    heads = ["head"] * (cfg.num_classes > 0) + ["distillation_head"] * (cfg.distillation == "head")
    return {"embed": embed, **rest, **{name: _declare_head(cfg) for name in heads}}


def _declare_tokens(count: int, width: int, init: params_lib.Initializer) -> dict[str, Param]:
    return {"embedding": Param((count, width), (None, "embed"), init, decay=False)}


def _declare_head(cfg: Config) -> dict[str, Param]:
    outputs = cfg.num_classes * cfg.head_grid**2
    kernel = Param((cfg.pre_logits or cfg.pooled_width, outputs), ("embed", None), zeros)
    return {"kernel": kernel, "bias": Param((outputs,), (None,), zeros)}


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`; the distributions are those of its `initializer`."""
    return params_lib.init(key, declare(cfg))
