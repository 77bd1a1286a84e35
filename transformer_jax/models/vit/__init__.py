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

The paper's code and big_vision compute GELU by its approximation ("gelu_tanh"), timm and Transformers exactly.

B batch, Y and X pixels, C channels, P values of a patch (its side squared times C), T tokens, D width, N heads, K
classes, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sharding
from transformer_jax.contracts import RUN, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.nn import block, config, layers, positions, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param, normal, zeros

Params = Any
TRUNK = ("embed", "blocks", "final_norm", "pool")  # the parts of the tree that are no head
LABEL_HEADS = ("head", "distillation_head")

# Ti: Touvron et al. 2021; S: the same; B, L, H: Dosovitskiy et al. 2021, table 1.
SIZES: dict[str, dict[str, Any]] = {
    "Ti": {"width": 192, "num_layers": 12, "num_heads": 3},
    "S": {"width": 384, "num_layers": 12, "num_heads": 6},
    "B": {"width": 768, "num_layers": 12, "num_heads": 12},
    "L": {"width": 1024, "num_layers": 24, "num_heads": 16},
    "H": {"width": 1280, "num_layers": 32, "num_heads": 16},
}


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """What a Vision Transformer is. Frozen and hashable: pass it as a static argument of jit.

    Errors: `InputError` on construction when sizes contradict each other.
    """

    image_size: int = field(default=224, metadata=RUN)
    """Pixels of a side; images are square."""
    patch_size: int = 16
    """Pixels of a patch's side; it divides the image's."""
    channels: int = 3
    """C, of the images."""
    num_classes: int = field(default=1000, metadata=RUN)
    """K; 0: no head, features only."""
    pool: Literal["class", "mean", "map"] = "class"
    """What the head reads: a class token, the patches' mean, or what a learned probe reads off them (Zhai et al. 2022,
    section 3.3). Only with "class" there is a class token."""
    distillation: Literal["none", "token", "head"] = "none"
    """DeiT's second token: none; there, and unread; or with a head of its own, for a teacher's labels."""
    num_registers: int = 0
    """Tokens besides, without positions, that nothing reads in the end (Darcet et al. 2024)."""
    position: Literal["learned", "sincos2d"] = "learned"
    """A table with a row for each class or distillation token and patch, or sines and cosines for the patches alone."""
    pre_logits: int = field(default=0, metadata=RUN)
    """Width of a tanh layer before the head, which the paper has while pre-training; 0: none."""
    qkv_bias: bool = True
    """Biases in the query, key and value projections."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    layer_scale: float = 0.0
    """Initial value of a learned factor for each feature that a sublayer adds, such as 1e-4; 0: there is none."""
    norm_eps: float = 1e-6
    """The paper's, timm's and big_vision's; Transformers has 1e-12."""
    dropout: float = field(default=0.0, metadata=TRAINING)
    """Of embeddings and sublayers' outputs; applied, as the next three, only when a key is given."""
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """Of attention probabilities."""
    stochastic_depth: float = field(default=0.0, metadata=TRAINING)
    """The probability that a row goes past a sublayer of the last layer; it grows linearly from 0 in the first."""
    patch_dropout: float = field(default=0.0, metadata=TRAINING)
    """The share of each image's patches that is left out (Liu et al. 2022, arXiv 2208.07220)."""
    initializer: Literal["xavier", "normal"] = field(default="xavier", metadata=TRAINING)
    """Kernels are drawn uniformly (Glorot and Bengio 2010), the patches' from Normal(0, 1/P), as the paper's code and
    big_vision do; or all from Normal(0, init_std^2), as DeiT does. The head and the class token start at zero."""
    init_std: float = field(default=0.02, metadata=RUN)
    """Of positions and of distillation and register tokens at the start, and with initializer "normal" of kernels."""

    def __post_init__(self) -> None:
        config.check(self, sizes=("image_size", "patch_size", "channels"))
        for name in ("num_classes", "num_registers", "pre_logits", "layer_scale"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("attention_dropout", "stochastic_depth", "patch_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if self.image_size % self.patch_size:
            raise InputError(
                f"model.patch_size {self.patch_size} does not divide model.image_size {self.image_size}; "
                "change one of them"
            )
        if self.position == "sincos2d" and (self.width % 4 or self.width < 8):
            raise InputError(f"sincos2d positions need a width that is a multiple of 4 from 8 on; it is {self.width}")
        if self.distillation != "none" and self.pool != "class":
            raise InputError(
                f"model.distillation is {self.distillation!r} with model.pool {self.pool!r}; the distillation token "
                "stands beside a class token, so set model.pool to 'class'"
            )
        if self.distillation == "head" and not self.num_classes:
            raise InputError("model.distillation 'head' needs classes; set model.num-classes, or distillation 'token'")
        if self.distillation == "head" and self.pre_logits:
            raise InputError(f"model.pre_logits is {self.pre_logits} with two heads; it is for one, so set it to 0")

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size

    @property
    def num_positioned(self) -> int:
        """Special tokens that have a position in the table: class and distillation."""
        return (self.pool == "class") + (self.distillation != "none")

    @property
    def num_special(self) -> int:
        """S, tokens before the patches: class, distillation, registers."""
        return self.num_positioned + self.num_registers

    @property
    def max_length(self) -> int:
        """T of a whole image."""
        return self.num_special + self.grid**2

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.qkv_bias


# ------------------------------------------------------------------------------------------------------- parameters


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s. Weight decay applies to kernels alone, as in the published recipes.

    A row of the patches' kernel [C * side * side, D] belongs to one channel, row and column of a patch, in this order:
    a convolution's kernel [D, C, side, side] is its transpose, reshaped.
    """
    D, std, patch_values = cfg.width, cfg.init_std, cfg.channels * cfg.patch_size**2
    patch_std = patch_values**-0.5 if cfg.initializer == "xavier" else std
    embed = {"patch": layers.declare_dense(patch_values, D, (None, "embed"), bias=True, std=patch_std)}
    if cfg.pool == "class":
        embed["class"] = _declare_tokens(1, D, zeros)
    if cfg.distillation != "none":
        embed["distillation"] = _declare_tokens(1, D, normal(std))
    if cfg.num_registers:
        embed["registers"] = _declare_tokens(cfg.num_registers, D, normal(std))
    if cfg.position == "learned":
        table = Param((cfg.num_positioned + cfg.grid**2, D), ("position", "embed"), normal(std), decay=False)
        embed["position"] = {"embedding": table}

    rest: dict[str, Any] = {
        "blocks": params_lib.stack(block.declare(cfg, layer_scale=cfg.layer_scale), cfg.num_layers),
        "final_norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
    }
    if cfg.pool == "map":
        one = block.declare(cfg, cross=True)
        rest["pool"] = {
            "probe": _declare_tokens(1, D, params_lib.xavier),
            "attention": one["cross"],
            "norm": one["mlp_norm"],
            "mlp": one["mlp"],
        }
    if cfg.pre_logits:
        rest["pre_logits"] = layers.declare_dense(D, cfg.pre_logits, ("embed", None), bias=True, std=std)

    def drawn(path: Any, p: Param) -> Param:
        draw = params_lib.xavier if cfg.initializer == "xavier" else normal(std)
        return dataclasses.replace(p, init=draw) if path[-1].key == "kernel" else p

    rest = jax.tree_util.tree_map_with_path(drawn, rest, is_leaf=lambda x: isinstance(x, Param))
    heads = ["head"] * (cfg.num_classes > 0) + ["distillation_head"] * (cfg.distillation == "head")
    return {"embed": embed, **rest, **{name: _declare_head(cfg) for name in heads}}


def _declare_tokens(count: int, width: int, init: params_lib.Initializer) -> dict[str, Param]:
    return {"embedding": Param((count, width), (None, "embed"), init, decay=False)}


def _declare_head(cfg: Config) -> dict[str, Param]:
    kernel = Param((cfg.pre_logits or cfg.width, cfg.num_classes), ("embed", None), zeros)
    return {"kernel": kernel, "bias": Param((cfg.num_classes,), (None,), zeros)}


def init(key: jax.Array, cfg: Config) -> Params:
    """Fresh float32 parameters, drawn as `cfg.initializer` says."""
    return params_lib.init(key, declare(cfg))


# ------------------------------------------------------------------------------------------------------------ trunk


def hidden(params: Params, cfg: Config, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Hidden states after the final norm, [B, T, D] in cfg.dtype: special tokens (class, distillation, registers), then
    the patches row by row; with patch dropout and a key, those of the patches that are kept.

    Arguments: images [B, Y, X, C], floats, already normalised; key switches on dropout, stochastic depth and patch
    dropout. Errors: `InputError` for images of another size than cfg's.
    """
    return _trunk(params, cfg, images_BYXC, key)


def _trunk(
    params: Params, cfg: Config, images_BYXC: jax.Array, key: jax.Array | None, *, num_outputs: int | None = None
) -> jax.Array:
    """Hidden states after the final norm: of all tokens, or of the `first` ones, which alone pass through all of the
    last layer then. The others are its keys and values."""
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    deepest = max(cfg.num_layers - 1, 1)

    def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None, num_outputs: int | None = None) -> jax.Array:
        drop_path = cfg.stochastic_depth * layer / deepest if cfg.stochastic_depth else None
        return block.apply(p, cfg, x_BTD, mask=Mask(), drop_path=drop_path, num_outputs=num_outputs, key=key)[0]

    x_BTD = stack.run(
        one,
        params["blocks"],
        _embed(params["embed"], cfg, images_BYXC, embed_key),
        num_layers=cfg.num_layers,
        scan=cfg.scan_layers,
        remat=cfg.remat,
        key=blocks_key,
        last=None if num_outputs is None else functools.partial(one, num_outputs=num_outputs),
    )
    return layers.norm(params["final_norm"], x_BTD, cfg.norm, cfg.norm_eps)


def _embed(p: Any, cfg: Config, images_BYXC: jax.Array, key: jax.Array | None) -> jax.Array:
    """Tokens and patches with their positions, [B, T, D]."""
    _check_images(cfg, images_BYXC)
    dropout_key, patches_key = (None, None) if key is None else jax.random.split(key)
    with sharding.replicated_length():  # the tokens come in parts of different lengths, of which few divide
        x_BTD = layers.dense(p["patch"], _patches(cfg, images_BYXC).astype(cfg.dtype), out=None)
        names = [name for name in ("class", "distillation", "registers") if name in p]
        special = [sharding.constrain(p[name]["embedding"], (None, None)).astype(cfg.dtype) for name in names]
        if cfg.position == "learned":
            table = sharding.constrain(p["position"]["embedding"], (None, None)).astype(cfg.dtype)
            x_BTD = x_BTD + table[cfg.num_positioned :]
            special[: cfg.num_positioned] = [token + table[i] for i, token in enumerate(special[: cfg.num_positioned])]
        else:
            x_BTD = x_BTD + positions.sincos_2d(cfg.grid, cfg.grid, cfg.width).astype(cfg.dtype)
        if patches_key is not None and cfg.patch_dropout > 0.0:
            x_BTD = _some_patches(cfg, x_BTD, patches_key)
        spread = [jnp.broadcast_to(tokens, (x_BTD.shape[0], *tokens.shape)) for tokens in special]
        spread = [sharding.constrain(tokens, ("batch", None, None)) for tokens in spread]
        x_BTD = layers.dropout(jnp.concatenate([*spread, x_BTD], axis=1), cfg.dropout, dropout_key)
    return sharding.constrain(x_BTD, ("batch", "length", None), name="the tokens of an image")


def _check_images(cfg: Config, images_BYXC: jax.Array) -> None:
    wanted = (cfg.image_size, cfg.image_size, cfg.channels)
    if images_BYXC.ndim != 4 or images_BYXC.shape[1:] != wanted:
        raise InputError(
            f"images have the shape {images_BYXC.shape}; the model's are {('B', *wanted)}, so resize the images, or "
            "the model with resample_positions"
        )
    if not jnp.issubdtype(images_BYXC.dtype, jnp.floating):
        raise InputError(f"images are {images_BYXC.dtype}; scale and normalise them to floats first")


def _patches(cfg: Config, images_BYXC: jax.Array) -> jax.Array:
    """The images' patches row by row, each flattened by channel, row and column, [B, T, P]."""
    B, grid, side, C = images_BYXC.shape[0], cfg.grid, cfg.patch_size, cfg.channels
    # An axis at a time: in an Explicit mesh a reshape that does more is ambiguous.
    cut = images_BYXC.reshape(B, grid, side, grid * side, C).reshape(B, grid, side, grid, side, C)
    return cut.transpose(0, 1, 3, 5, 2, 4).reshape(B, grid * grid, C, side, side).reshape(B, grid * grid, -1)


def _some_patches(cfg: Config, x_BTD: jax.Array, key: jax.Array) -> jax.Array:
    """A random choice of each row's patches, the same number of each, in their order."""
    B, T = x_BTD.shape[:2]
    kept = max(1, round(T * (1.0 - cfg.patch_dropout)))
    chosen_BK = jnp.sort(jnp.argsort(jax.random.uniform(key, (B, T)), axis=1)[:, :kept], axis=1)
    return layers.gather(x_BTD, chosen_BK, out=("batch", None, None))


# ------------------------------------------------------------------------------------------------------------ heads


def apply(params: Params, cfg: Config, images_BYXC: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """Logits [B, K] float32 of images [B, Y, X, C]: `head_logits` of the `hidden` states."""
    return head_logits(params, cfg, _trunk(params, cfg, images_BYXC, key, num_outputs=_read(cfg)))


def features(params: Params, cfg: Config, images_BYXC: jax.Array) -> jax.Array:
    """What the head reads, [B, D], or [B, pre_logits]: `pooled` of the `hidden` states."""
    return pooled(params, cfg, _trunk(params, cfg, images_BYXC, None, num_outputs=_read(cfg)))


def _read(cfg: Config) -> int | None:
    """How many of the first tokens the heads read; None: all, or a length that is cut, from which none is taken out."""
    if cfg.pool != "class" or sharding.shards("length") > 1:
        return None
    return 2 if cfg.distillation == "head" else 1


def pooled(params: Params, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    """The class token, the patches' mean or the probe's reading of them, through the tanh layer where there is one."""
    if cfg.num_special and cfg.pool != "class":  # without these, a length that is cut would not divide
        x_BTD = sharding.constrain(x_BTD, ("batch", None, None))[:, cfg.num_special :]
    if cfg.pool == "class":
        x_B1D = layers.token(x_BTD, 0)
    elif cfg.pool == "mean":
        x_B1D = sharding.constrain(jnp.mean(x_BTD, axis=1, keepdims=True), ("batch", None, None))
    with sharding.replicated_length():
        if cfg.pool == "map":
            x_B1D = _probed(params["pool"], cfg, sharding.constrain(x_BTD, ("batch", None, None)))
        if cfg.pre_logits:
            x_B1D = jnp.tanh(layers.dense(params["pre_logits"], x_B1D, out=None))
    return x_B1D[:, 0]


def _probed(p: Any, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    """Multi-head attention pooling as big_vision has it: a learned query, then an MLP with its norm and residual."""
    probe_1D = sharding.constrain(p["probe"]["embedding"], (None, None)).astype(x_BTD.dtype)
    probe_B1D = jnp.broadcast_to(probe_1D, (x_BTD.shape[0], *probe_1D.shape))
    y_B1D = block.cross_attention(p["attention"], cfg, sharding.constrain(probe_B1D, ("batch", None, None)), x_BTD)
    return y_B1D + layers.mlp(p["mlp"], layers.norm(p["norm"], y_B1D, cfg.norm, cfg.norm_eps), cfg.activation)


def head_logits(params: Params, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    """Logits [B, K] float32 from the hidden states; of a model with two heads, their mean (Touvron et al. 2021)."""
    if cfg.distillation == "head":
        own_BK, distilled_BK = distilled_logits(params, cfg, x_BTD)
        return (own_BK + distilled_BK) / 2
    return _head(params["head"], pooled(params, cfg, x_BTD))


def distilled_logits(params: Params, cfg: Config, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits of the class token's head, of the distillation token's), [B, K] float32 each: for distillation="head"."""
    own_B1D, distilled_B1D = (layers.token(x_BTD, i) for i in (0, 1))
    return _head(params["head"], own_B1D[:, 0]), _head(params["distillation_head"], distilled_B1D[:, 0])


def _head(p: Any, x_BD: jax.Array) -> jax.Array:
    with sharding.replicated_length():
        x_B1D = sharding.constrain(x_BD.astype(jnp.float32)[:, None], ("batch", None, None))
        return layers.dense(p, x_B1D, out=None)[:, 0]


# ---------------------------------------------------------------------------------------------------------- looking in


def hidden_states(params: Params, cfg: Config, images_BYXC: jax.Array) -> jax.Array:
    """The residual stream before the first block and after each, without the final norm, [L + 1, B, T, D]."""
    last_BTD, x_LBTD = _through_layers(params, cfg, images_BYXC, lambda p, x_BTD: x_BTD)
    return jnp.concatenate([x_LBTD, last_BTD[None]])


def attention_weights(params: Params, cfg: Config, images_BYXC: jax.Array) -> jax.Array:
    """Each layer's and head's attention weights, float32 [L, B, N, T, T]; a row sums to 1 over what it attends to."""
    return _through_layers(params, cfg, images_BYXC, lambda p, x_BTD: block.attention_weights(p, cfg, x_BTD))[1]


def _through_layers(
    params: Params, cfg: Config, images_BYXC: jax.Array, look: Callable[[Any, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(the states after the last block, what `look` gives of each layer's parameters and input, stacked)."""

    def one(x_BTD: jax.Array, p: Any) -> tuple[jax.Array, jax.Array]:
        return block.apply(p, cfg, x_BTD, mask=Mask())[0], look(p, x_BTD)

    return jax.lax.scan(one, _embed(params["embed"], cfg, images_BYXC, None), params["blocks"])


def rollout(w_LBNTT: jax.Array, cfg: Config) -> jax.Array:
    """How much of each patch arrives in what the model reads in the end, float32 [B, rows, columns] (Abnar and
    Zuidema 2020, section 3): attention averaged over heads, half of each token staying itself, multiplied through the
    layers.

    Arguments: weights of `attention_weights`. What is read is the class token, or else the mean of the patches.
    """

    def further(flow_BTT: jax.Array, w_BNTT: jax.Array) -> tuple[jax.Array, None]:
        step_BTT = (jnp.mean(w_BNTT, axis=1) + jnp.eye(w_BNTT.shape[-1])) / 2
        return jnp.einsum("BTS,BSU->BTU", step_BTT, flow_BTT, precision="highest"), None

    B, T = w_LBNTT.shape[1], w_LBNTT.shape[-1]
    flow_BTT = jax.lax.scan(further, jnp.broadcast_to(jnp.eye(T), (B, T, T)), w_LBNTT)[0]
    to_patches_BTP = flow_BTT[:, :, cfg.num_special :]
    read_BP = to_patches_BTP[:, 0] if cfg.pool == "class" else jnp.mean(to_patches_BTP[:, cfg.num_special :], axis=1)
    return read_BP.reshape(B, cfg.grid, cfg.grid)


# ------------------------------------------------------------------------------------------------- another resolution


def resample_positions(params: Params, cfg: Config, image_size: int) -> tuple[Params, Config]:
    """(params, cfg) of the same model for images of another size: its positions are interpolated, the rest stays.

    Interpolation is bicubic without antialiasing, half-pixel centres, as PyTorch's and so DINO's and Transformers'
    `interpolate_pos_encoding` (big_vision's is linear, timm's antialiased). sincos2d positions are computed anew.
    Errors: `InputError` for a size that the patches do not divide.
    """
    new = dataclasses.replace(cfg, image_size=image_size)
    if cfg.position != "learned" or new.grid == cfg.grid:
        return params, new
    table, weights = params["embed"]["position"]["embedding"], _bicubic(cfg.grid, new.grid)
    special, patches = table[: cfg.num_positioned], table[cfg.num_positioned :]
    patches_YXD = jnp.reshape(patches, (cfg.grid, cfg.grid, -1))
    patches_yxD = jnp.einsum("yY,xX,YXD->yxD", weights, weights, patches_YXD, precision="highest")
    table = jnp.concatenate([special, patches_yxD.reshape(-1, cfg.width).astype(table.dtype)])
    return {**params, "embed": {**params["embed"], "position": {"embedding": table}}}, new


def resized(params: Params, cfg: Config, wanted: Config, log: Callable[[str], None]) -> Params:
    """The parameters of `cfg` for the image size of `wanted`."""
    if cfg.image_size == wanted.image_size:
        return params
    log(f"from images of {cfg.image_size} pixels to {wanted.image_size}")
    return resample_positions(params, cfg, wanted.image_size)[0]


def _bicubic(old: int, new: int) -> np.ndarray:
    """The matrix float32 [new, old] that interpolates `old` values at `new` places (Keys 1981, with PyTorch's a of
    -3/4); beyond the border, the value at the border goes on."""
    a = -0.75
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        neighbour = np.floor(at) + tap
        d = np.abs(at - neighbour)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(weights, (np.arange(new), np.clip(neighbour, 0, old - 1).astype(int)), np.where(d <= 1, near, far))
    return weights.astype(np.float32)
