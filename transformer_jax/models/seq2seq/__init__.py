"""The encoder-decoder Transformer, from "Attention Is All You Need" over T5 to BART and Marian, by config.

The defaults are the base model of Vaswani et al. 2017: post-norm, sinusoidal positions, ReLU, one table for source,
target and softmax.

    cfg = seq2seq.Config(vocab_size=37000)
    params = seq2seq.init(jax.random.key(0), cfg)
    logits_BTV = jax.jit(seq2seq.apply, static_argnums=1)(params, cfg, source, target, source_lengths=lengths)

    big         width=1024, num_heads=16, dropout=0.3 (Vaswani et al. 2017, table 3)
    pre-norm    norm_order="pre"
    T5          norm="rms", norm_eps=1e-6, norm_order="pre", bias=False, position="relative", scale_embedding=False,
                scale_scores=False, scale_head=True, initializer="t5" (Raffel et al. 2020)
    T5 v1.1     the same with gated=True, activation="gelu_tanh", tie_embeddings=False, scale_head=False
    BART        position="learned", position_offset=2, embedding_norm=True, activation="gelu", scale_embedding=False,
                logits_bias=True, initializer="normal" (Lewis et al. 2020)
    mBART       BART's with norm_order="pre", scale_embedding=True (Liu et al. 2020)
    Marian      position="sinusoidal_halves", activation="silu", logits_bias=True (Junczys-Dowmunt et al. 2018)

Config and parameters are here, whole sequences in `sequences.py`, token by token in `decoding.py`.

D width, N heads, H head width, V vocabulary, L layers.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from transformer_jax.contracts import TRAINING
from transformer_jax.errors import InputError
from transformer_jax.models.seq2seq.decoding import (
    Cache,
    decode_step,
    for_decoding,
    init_cache,
    prefill,
    reorder,
    repeat,
)
from transformer_jax.models.seq2seq.sequences import (
    AttentionWeights,
    apply,
    attention_weights,
    encode,
    head,
    head_bias,
    hidden,
)
from transformer_jax.nn import block, config, layers
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, normal, zeros

Params = Any

__all__ = [
    "TRUNK",
    "AttentionWeights",
    "Cache",
    "Config",
    "apply",
    "attention_weights",
    "declare",
    "decode_step",
    "encode",
    "for_decoding",
    "head",
    "head_bias",
    "hidden",
    "init",
    "init_cache",
    "mesh_sizes",
    "prefill",
    "reorder",
    "repeat",
]

TRUNK = ("embed", "encoder", "decoder", "head")  # the whole tree: the one head is part of the model


@dataclass(frozen=True, kw_only=True)
class Config(config.TextConfig):
    """An encoder-decoder. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    width: int = 512
    """D, the width of the residual stream."""
    num_layers: int = 6
    """L of the encoder."""
    num_decoder_layers: int | None = field(default=None, metadata={"means": "decoder_layers"})
    """L of the decoder; None: as many as the encoder has."""
    num_heads: int = 8
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "relu"
    norm_order: Literal["pre", "post"] = "post"
    """Norm after each residual sum, or before each sublayer and once after the last."""
    embedding_norm: bool = False
    """A norm of the embeddings, one for source and one for target (BART)."""
    position: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative"] = "sinusoidal"
    """Added to the embeddings: sines and cosines, alternating (Vaswani et al.) or in halves (Marian), or a learned
    table each for source and target. Added to the scores: T5's buckets, one table for all layers of a side."""
    position_offset: int = 0
    """Row of the learned tables for the first token: 2 in BART, whose first rows belong to padding."""
    relative_buckets: int = 32
    relative_max_distance: int = 128
    """Distances from here on share the last bucket."""
    scale_embedding: bool = True
    """Multiply token embeddings by sqrt(width)."""
    scale_scores: bool = True
    """Divide attention scores by sqrt(head width), which T5 does not."""
    scale_head: bool = False
    """Divide the last hidden states by sqrt(width) before the logits (T5 with the tied table)."""
    logits_bias: bool = False
    """A bias on the logits, which Marian trains and BART keeps at zero."""
    pad_id: int | None = None
    """The id of padding. The function does not depend on it: padding is given by lengths."""
    eos_id: int | None = None
    """The id that ends source and target."""
    decoder_start_id: int | None = None
    """The decoder's first input."""
    dropout: float = field(default=0.1, metadata=TRAINING)
    """The rate for embeddings with positions and for sublayers' outputs; applied only when a key is given."""
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for attention probabilities, which Vaswani et al. do not drop."""
    initializer: Literal["xavier", "t5", "normal"] = field(default="xavier", metadata=TRAINING)
    """Kernels uniform by fan-in and fan-out (Glorot and Bengio 2010), embeddings of deviation 1/sqrt(D); kernels normal
    by fan-in, embeddings of deviation 1, for T5's unscaled scores; or all of them Normal(0, init_std^2)."""

    def __post_init__(self) -> None:
        config.check(self)
        if self.decoder_layers < 1:
            raise InputError(f"model.num_decoder_layers is {self.num_decoder_layers}; it must be at least 1")
        if self.position.startswith("sinusoidal") and self.width % 2:
            raise InputError(f"sinusoidal positions need an even model.width; it is {self.width}")
        if self.position_offset < 0:
            raise InputError(f"model.position_offset is {self.position_offset}; it must be at least 0")
        if not 0.0 <= self.attention_dropout < 1.0:
            raise InputError(f"model.attention_dropout is {self.attention_dropout}; it must be in [0, 1)")
        if self.relative_buckets < 4 or self.relative_buckets % 2:
            raise InputError(f"model.relative_buckets is {self.relative_buckets}; it must be even and at least 4")
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise InputError(
                f"model.relative_max_distance {self.relative_max_distance} must be above half of "
                f"model.relative_buckets {self.relative_buckets}"
            )
        for name in ("pad_id", "eos_id", "decoder_start_id"):
            if not 0 <= (getattr(self, name) or 0) < self.vocab_size:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be below {self.vocab_size}, from 0")

    @property
    def decoder_layers(self) -> int:
        """The decoder's layers: `num_decoder_layers`; without it, `num_layers`."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def score_scale(self) -> float:
        """What the attention scores are multiplied by."""
        return 1.0 / math.sqrt(self.head_width) if self.scale_scores else 1.0


# ------------------------------------------------------------------------------------------------------- parameters


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`."""
    D, V = cfg.width, cfg.vocab_size
    embedding_std = {"normal": cfg.init_std, "xavier": D**-0.5, "t5": 1.0}[cfg.initializer]

    def side(num_layers: int, *, cross: bool) -> dict[str, Any]:
        tree = {"blocks": params_lib.stack(_with_initializers(block.declare(cfg, cross=cross), cfg), num_layers)}
        if cfg.position == "learned":
            rows = cfg.max_length + cfg.position_offset
            tree["position"] = layers.declare_embedding(rows, D, "position", std=embedding_std)
        if cfg.position == "relative":
            draw = normal(D**-0.5 if cfg.initializer == "t5" else embedding_std)
            tree["relative_bias"] = {"embedding": Param((cfg.relative_buckets, cfg.num_heads), (None, None), draw)}
        if cfg.embedding_norm:
            tree["embed_norm"] = layers.declare_norm(D, cfg.norm, bias=cfg.bias)
        if cfg.norm_order == "pre":
            tree["final_norm"] = layers.declare_norm(D, cfg.norm, bias=cfg.bias)
        return tree

    head: dict[str, Any] = {}
    if not cfg.tie_embeddings:
        head = _with_initializers(layers.declare_dense(D, V, ("embed", "vocab"), bias=False, std=cfg.init_std), cfg)
    if cfg.logits_bias:
        head["bias"] = Param((V,), ("vocab",), zeros)
    tree: dict[str, Any] = {
        "embed": {"token": layers.declare_embedding(V, D, "vocab", std=embedding_std)},
        "encoder": side(cfg.num_layers, cross=False),
        "decoder": side(cfg.decoder_layers, cross=True),
    }
    return tree | {"head": head} if head else tree


def _with_initializers(tree: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """The declarations with the kernels' initialisers by `cfg.initializer`."""
    if cfg.initializer == "normal":
        return tree

    def initialized(path: Any, p: Param) -> Param:
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            return p
        if cfg.initializer == "xavier":
            return dataclasses.replace(p, init=params_lib.xavier)
        # T5 does not divide the scores by sqrt(H), but the queries' initial kernel (Raffel et al.'s Mesh TensorFlow).
        fan_in = p.shape[0] * (cfg.head_width if "query" in names else 1)
        return dataclasses.replace(p, init=normal(fan_in**-0.5))

    return jax.tree_util.tree_map_with_path(initialized, tree, is_leaf=lambda x: isinstance(x, Param))


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`; the distributions are those of its `initializer`."""
    return params_lib.init(key, declare(cfg))
