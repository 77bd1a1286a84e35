"""The settings of a block, and those of text models: what every family's `Config` inherits."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformer_jax import kernels
from transformer_jax.contracts import LAUNCH, RUN, TRAINING
from transformer_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a block, which every family's `Config` inherits. Frozen and hashable."""

    width: int = 768
    """D, the width of the residual stream."""
    num_layers: int = 12
    """L, the number of blocks."""
    num_heads: int = 12
    """N, the number of query heads."""
    mlp_width: int | None = field(default=None, metadata={"means": "mlp_features"})
    """Width of the MLP's hidden layer; None: 4 * width."""
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    norm_eps: float = 1e-5
    dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for embeddings and sublayers' outputs; applied only when a key is given."""
    init_std: float = field(default=0.02, metadata=RUN)
    """The standard deviation of initial kernels and embeddings; divided by sqrt(2 L) where pre-norm blocks write to the
    residual stream."""
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata=LAUNCH)
    """The dtype of activations. Parameters, statistics, softmax and logits are float32."""
    scan_layers: bool = field(default=True, metadata=LAUNCH)
    """One compiled block in a loop, or each layer compiled on its own: slower to compile, faster on small models."""
    remat: Literal["none", "dots", "full"] = field(default="none", metadata=LAUNCH)
    """What the backward pass recomputes: nothing, all but the weight matmuls, or everything in a block."""
    attention: Literal["auto", "xla", "tpu", "cudnn", "cpu"] = field(default="auto", metadata=LAUNCH)
    """Which attention runs (`nn.attention.IMPLEMENTATIONS`); "auto": by platform and operands."""

    # Settings of some families only; the others have these values.
    @property
    def head_dim(self) -> int | None:
        """Width of a head; None: width / num_heads."""
        return None

    @property
    def gated(self) -> bool:
        """Whether the MLP's hidden layer is multiplied by a gate."""
        return False

    @property
    def norm(self) -> str:
        """LayerNorm, "layer", or RMSNorm, "rms"."""
        return "layer"

    @property
    def norm_order(self) -> str:
        """The norm is before each sublayer and once at the end, "pre", or after each residual sum, "post"."""
        return "pre"

    @property
    def bias(self) -> bool:
        """Whether dense layers and LayerNorms have biases."""
        return True

    @property
    def qk_norm(self) -> bool:
        """Whether each query and key head has an RMSNorm."""
        return False

    @property
    def output_norm(self) -> bool:
        """Whether each sublayer's output has a norm before it is added."""
        return False

    @property
    def score_cap(self) -> float:
        """The soft cap of the attention scores; 0: none."""
        return 0.0

    @property
    def attention_dropout(self) -> float:
        """The dropout rate of the attention probabilities."""
        return self.dropout

    # Derived settings.
    @property
    def kv_heads(self) -> int:
        """K, key and value heads."""
        return self.num_heads

    @property
    def head_width(self) -> int:
        """H, the width of one head."""
        return self.width // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def mlp_features(self) -> int:
        """F, the width of the MLP's hidden layer."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.bias

    @property
    def score_scale(self) -> float:
        """What the attention scores are multiplied by."""
        return 1.0 / math.sqrt(self.head_width)


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """The settings of text models, in addition."""

    vocab_size: int
    """V, the number of token ids."""
    max_length: int = 1024
    """The longest sequence, in tokens."""
    head_dim: int | None = field(default=None, metadata={"means": "head_width"})
    """Width of a head; None: width / num_heads."""
    gated: bool = False
    """Multiply the MLP's hidden layer by a gate: SwiGLU with activation "silu", GeGLU with "gelu"."""
    norm: Literal["layer", "rms"] = "layer"
    norm_order: Literal["pre", "post"] = "pre"
    """Norm before each sublayer and once at the end (GPT-2 and later), or after each residual sum (BERT, GPT-1)."""
    bias: bool = True
    """Biases in the dense layers and LayerNorms."""
    tie_embeddings: bool = True
    """The output matrix is the token embedding's transpose."""


def attention_width(cfg: Any) -> int:
    """The width of all heads of all layers of `cfg`, for counting attention's FLOPs; 0 for a model without heads."""
    return cfg.num_layers * cfg.num_heads * cfg.head_width if isinstance(cfg, Config) else 0


@kernels.choose("decoding_config")
def for_decoding(cfg: Any) -> Any:
    """`cfg` as the platform generates tokens with it; any other form computes the same."""
    return cfg


def mesh_sizes(cfg: Config) -> dict[str, tuple[str, int]]:
    """{field of `cfg`: (logical axis, size)} that a mesh must divide: whole heads, not only a kernel's columns."""
    return {"num_heads": ("heads", cfg.num_heads), "num_kv_heads": ("kv_heads", cfg.kv_heads)}


def check(cfg: Any, sizes: tuple[str, ...] = ("vocab_size", "max_length")) -> None:
    """Checks what holds for any family's config.

    Args:
      cfg: a family's config.
      sizes: fields that must be positive and that only some families have.

    Raises:
      InputError: with the field, its value and the allowed ones.
    """
    for name, hint in get_type_hints(type(cfg)).items():
        if get_origin(hint) is Literal and getattr(cfg, name) not in get_args(hint):
            raise InputError(f"model.{name} is {getattr(cfg, name)!r}; it is one of {', '.join(get_args(hint))}")
    for name in (*sizes, "width", "num_layers", "num_heads", "kv_heads", "mlp_features"):
        if getattr(cfg, name) < 1:
            raise InputError(f"model.{name} is {getattr(cfg, name)}; it must be at least 1")
    if cfg.head_dim is None and cfg.width % cfg.num_heads:
        raise InputError(
            f"model.num_heads {cfg.num_heads} does not divide model.width {cfg.width}; "
            "change one of them or set model.head-dim"
        )
    if cfg.head_width < 1:
        raise InputError(f"model.head_width is {cfg.head_width}; it must be at least 1")
    if cfg.num_heads % cfg.kv_heads:
        raise InputError(f"model.num_kv_heads {cfg.kv_heads} does not divide model.num_heads {cfg.num_heads}")
    if cfg.position == "rotary" and cfg.head_width % 2:
        raise InputError(f"rotary positions need an even head width; it is {cfg.head_width}")
    if not 0.0 <= cfg.dropout < 1.0:
        raise InputError(f"model.dropout is {cfg.dropout}; it must be in [0, 1)")
