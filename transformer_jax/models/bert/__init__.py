"""BERT: the bidirectional encoder, from BERT itself over RoBERTa, ALBERT and ELECTRA to the modern one, by config.

The defaults are BERT-base (Devlin et al. 2019). `apply` gives hidden states. Heads (`heads.py`) are functions over
them, whose parameters are in the tree when `Config.heads` names them.

    cfg = bert.Config(vocab_size=30522, heads=("mlm",))
    params = bert.init(jax.random.key(0), cfg)
    x_BTD = jax.jit(bert.apply, static_argnums=1)(params, cfg, tokens, lengths=lengths)
    logits_BTV = bert.mlm(params, cfg, x_BTD)

    RoBERTa     position_offset=2, num_types=1 (Liu et al. 2019)
    ALBERT      embedding_width=128, share_layers=True, activation="gelu_tanh" (Lan et al. 2020)
    DistilBERT  num_types=0, pooler_activation="relu" (Sanh et al. 2019)
    MPNet       position_offset=2, num_types=0, relative_bias=True (Song et al. 2020)
    DeBERTa v3  position="none", distance_buckets=256, num_types=0, pooler_activation="gelu" (He et al. 2021)
    ESM-2       norm_order="pre", position="rotary", embedding_norm=False, num_types=0, zeroed_token=32 (Lin et al.
                2023)
    ELECTRA     embedding_width, pooler_activation="gelu", heads=("discriminator",) (Clark et al. 2020)
    ModernBERT  norm_order="pre", position="rotary", gated=True, num_types=0, bias=False, local_window=64,
                global_every=3, first_attention_norm=False, head_transform=True (Warner et al. 2024)

B batch, T length, D width, E embedding width, C labels, V vocabulary, L layers.
"""

import functools
import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sharding
from transformer_jax.contracts import RUN, TRAINING
from transformer_jax.errors import InputError
from transformer_jax.models.bert import contact_maps
from transformer_jax.models.bert.heads import (
    choose,
    classify,
    discriminate,
    mlm,
    mlm_kernel,
    mlm_states,
    pair,
    pooled,
    spans,
    summary,
    tag,
)
from transformer_jax.nn import block, config, layers, positions, stack, watch
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param, zeros

Params = Any

__all__ = [
    "HEADS",
    "LABEL_HEADS",
    "TRUNK",
    "Config",
    "Head",
    "apply",
    "attention_weights",
    "choose",
    "classify",
    "contacts",
    "declare",
    "discriminate",
    "features",
    "init",
    "mesh_sizes",
    "mlm",
    "mlm_kernel",
    "mlm_states",
    "pair",
    "pooled",
    "spans",
    "summary",
    "tag",
]

Head = Literal["pooler", "mlm", "pair", "classification", "tokens", "span", "choice", "discriminator", "contacts"]
HEADS: tuple[Head, ...] = get_args(Head)
TRUNK = ("embed", "blocks", "relative_bias", "distances", "final_norm")  # the parts of the tree that are no head
RELATIVE_BUCKETS = 32  # T5's, with distances up to 128
UNMASKED_IN_TRAINING = 1.0 - 0.15 * 0.8  # ESM's: 80 % of the chosen 15 % are masked
LABEL_HEADS = ("classification", "tokens")


@dataclass(frozen=True, kw_only=True)
class Config(config.TextConfig):
    """An encoder. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    vocab_size: int = 30522
    """V, the number of token ids."""
    max_length: int = 512
    """The longest sequence, in tokens."""
    embedding_width: int | None = field(default=None, metadata={"means": "embed_features"})
    """E, the width of the embeddings, projected to `width` where it is another; None: width (ALBERT, section 3.1)."""
    embedding_norm: bool = True
    """A norm right after the embeddings."""
    zeroed_token: int | None = None
    """The id whose embedding counts as zero, the mask's. The others are scaled by 0.88, the share of tokens that are
    not masked in training, over this share of the row, in evaluation too (ESM's token dropout). None: none."""
    num_types: int = 2
    """Token types, which tell the two texts of a pair apart; 0: none."""
    position: Literal["learned", "rotary", "none"] = "learned"
    """Learned is added to the embeddings; rotary rotates queries and keys."""
    position_offset: int = 0
    """Row of the position table for the first token: 2 in RoBERTa, whose first rows belong to padding."""
    relative_bias: bool = False
    """A learned bias on the scores by distance, one table for all layers, beside the positions (MPNet)."""
    distance_buckets: int = 0
    """Buckets of the distance between two tokens, on each side, with a learned vector each. Queries and keys are also
    compared with these vectors (`positions.disentangled_bias`), whose norm and table all layers share (DeBERTa). Even;
    `max_length` is the distance of the last bucket. 0: none."""
    norm_eps: float = 1e-12
    norm_order: Literal["pre", "post"] = "post"
    """Norm after each residual sum (BERT), or before each sublayer and once at the end."""
    first_attention_norm: bool = True
    """Layer 0's attention reads normed states; False: it reads the embeddings, which have a norm (ModernBERT)."""
    share_layers: bool = False
    """All layers use the parameters of one, which are stored once (ALBERT, section 3.1)."""
    local_window: int = 0
    """Tokens that a local layer sees on each side; 0: all layers are global."""
    global_every: int = 1
    """With a window, n of at least 2: layers 0, n, 2n, ... are still global."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies in global layers."""
    local_rope_theta: float = 10_000.0
    """The same in local layers."""
    pooling: Literal["first", "mean", "last", "padded"] = "first"
    """The state of a whole text: its first token's, the mean over its tokens, or its last token's. "padded": that of
    the last column, with padding read like any token (SigLIP)."""
    pooler_activation: Literal["tanh", "gelu", "relu"] = "tanh"
    head_transform: bool = False
    """All heads read the states through one transform, dense layer, activation and norm, and need no pooler
    (ModernBERT)."""
    tie_embeddings: bool = True
    """The masked-LM head's output matrix is the token embedding's transpose."""
    heads: tuple[Head, ...] = field(default=("mlm", "pair"), metadata=RUN)
    """The heads in the parameter tree; those that read the pooled first token bring the pooler."""
    num_labels: int = field(default=2, metadata=RUN)
    """C, of the heads "classification" and "tokens"; 1 for regression. In an experiment the task's labels replace the
    default."""
    dropout: float = field(default=0.1, metadata=TRAINING)
    """The rate for embeddings, attention probabilities, sublayers' outputs and heads; only when a key is given."""

    def __post_init__(self) -> None:
        config.check(self)
        for head in self.heads:
            if head not in HEADS:
                raise InputError(f"model.heads has {head!r}; the heads are {', '.join(HEADS)}")
        pools = {"pair", "classification", "choice", "pooler"} & set(self.heads) and not self.head_transform
        asked = set(self.heads) - {"pooler"} | ({"pooler"} if pools else set())
        object.__setattr__(self, "heads", tuple(head for head in HEADS if head in asked))  # one spelling of one set
        for name, least in (
            *(("embed_features", 1), ("num_types", 0), ("position_offset", 0), ("local_window", 0)),
            *(("global_every", 1), ("num_labels", 1), ("distance_buckets", 0)),
        ):
            if getattr(self, name) < least:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.local_window and self.global_every == 1:
            warnings.warn(  # no error: runs that were trained so are still read
                f"model.local_window is {self.local_window}, but model.global_every is 1, so every layer is global; "
                f"give model.global_every 2 or more: {self.num_layers} leaves only the first layer global",
                stacklevel=2,
            )
        if self.distance_buckets and (self.distance_buckets % 2 or self.max_length < self.distance_buckets // 2 + 2):
            raise InputError(
                f"model.distance_buckets is {self.distance_buckets}; it must be even, and model.max_length, "
                f"{self.max_length}, at least half of it and 2"
            )

    @property
    def score_scale(self) -> float:
        """What the attention scores are multiplied by: with distances they are sums of three products."""
        return 1.0 / math.sqrt(self.head_width * (3 if self.distance_buckets else 1))

    @property
    def embed_features(self) -> int:
        """E, the width of the embeddings."""
        return self.width if self.embedding_width is None else self.embedding_width


# ------------------------------------------------------------------------------------------------------- parameters


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`: the trunk, and the heads that `cfg.heads` names."""
    D, E, std = cfg.width, cfg.embed_features, cfg.init_std
    embed: dict[str, Any] = {
        "token": layers.declare_embedding(cfg.vocab_size, E, "vocab", std=std),
    }
    if cfg.embedding_norm:
        embed["norm"] = layers.declare_norm(E, cfg.norm, bias=cfg.bias)
    if cfg.position == "learned":
        rows = cfg.max_length + cfg.position_offset
        embed["position"] = layers.declare_embedding(rows, E, "position", std=std)
    if cfg.num_types:
        embed["type"] = {"embedding": Param((cfg.num_types, E), (None, "embed"), params_lib.normal(std))}
    if E != D:
        embed["project"] = _declare_dense(E, D, std)
    blocks = params_lib.stack(block.declare(cfg), 1 if cfg.share_layers else cfg.num_layers)
    tree: dict[str, Any] = {"embed": embed, "blocks": blocks}
    if cfg.relative_bias:
        tree["relative_bias"] = {
            "embedding": Param((RELATIVE_BUCKETS, cfg.num_heads), (None, None), params_lib.normal(std))
        }
    if cfg.distance_buckets:
        vectors = Param((2 * cfg.distance_buckets, D), (None, "embed"), params_lib.normal(std))
        tree["distances"] = {"embedding": vectors, "norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias)}
    if cfg.norm_order == "pre":
        tree["final_norm"] = layers.declare_norm(D, cfg.norm, bias=cfg.bias)
    bias = Param((cfg.vocab_size,), ("vocab",), zeros)
    norm = layers.declare_norm(E, cfg.norm, bias=cfg.bias)
    if cfg.head_transform and cfg.heads:
        kernel = layers.declare_dense(D, E, ("embed", None), bias=cfg.bias, std=std)
        tree["transform"] = {"dense": kernel, "norm": norm}
    heads: dict[Head, Any] = {
        "pooler": _declare_dense(D, D, std),
        "mlm": {"bias": bias}
        if cfg.head_transform
        else {"transform": _declare_dense(D, E, std), "norm": norm, "bias": bias},
        "pair": _declare_dense(D, 2, std),
        "classification": _declare_dense(D, cfg.num_labels, std),
        "tokens": _declare_dense(D, cfg.num_labels, std),
        "span": _declare_dense(D, 2, std),
        "choice": _declare_dense(D, 1, std),
        "discriminator": {"transform": _declare_dense(D, D, std), "out": _declare_dense(D, 1, std)},
        "contacts": _declare_dense(cfg.num_layers * cfg.num_heads, 1, std),
    }
    if not cfg.tie_embeddings:
        heads["mlm"]["kernel"] = Param((E, cfg.vocab_size), ("embed", "vocab"), params_lib.normal(std))
    return tree | {name: heads[name] for name in cfg.heads}


def _declare_dense(width_in: int, width_out: int, std: float) -> dict[str, Param]:
    return layers.declare_dense(width_in, width_out, ("embed", None), bias=True, std=std)


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`: Normal(0, init_std^2), which BERT truncates at two deviations."""
    return params_lib.init(key, declare(cfg))


# ------------------------------------------------------------------------------------------------------------ trunk


def apply(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    *,
    types: jax.Array | None = None,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the last block, [B, T, D] in cfg.dtype.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      tokens_BT: integers below V.
      types: [B, T], 0 or 1 for the texts of a pair; None: all 0.
      lengths: [B], tokens of each row before its right padding; None: no padding.
      segments: [B, T], integers that separate packed documents, whose positions restart: each document has the hidden
        states that it has alone. None: nothing is packed.
      key: the random key for dropout; None: evaluation, without dropout.

    Raises:
      ValueError: T > cfg.max_length.
    """
    if (T := tokens_BT.shape[1]) > cfg.max_length:
        raise ValueError(f"{T} tokens are more than the model's max_length of {cfg.max_length}")
    if cfg.zeroed_token is not None and segments is not None:
        raise ValueError(
            "with model.zeroed_token a row's embeddings depend on all of it, so documents cannot be packed"
        )
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    where = jnp.arange(T) if segments is None else positions.restarted(segments)
    x_BTD = _embed(params["embed"], cfg, tokens_BT, types, where, lengths, embed_key)
    everywhere = Mask(segment_BT=segments, end_B=lengths)
    local = everywhere.replace(window=cfg.local_window)  # type: ignore[attr-defined]
    rope, local_rope = _rope(cfg, where, cfg.rope_theta), _rope(cfg, where, cfg.local_rope_theta)
    columns_T, bias_NTS = jnp.arange(T), None
    if cfg.relative_bias:
        table = params["relative_bias"]["embedding"]
        bias_NTS = positions.relative_bias(table, columns_T, columns_T, bidirectional=True)
    distances_dD = _distances(params["distances"], cfg, T) if cfg.distance_buckets else None
    shared = jax.tree.map(lambda leaf: leaf[0], params["blocks"]) if cfg.share_layers else None

    def one(is_global: bool, p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        p = p if shared is None else shared
        mask, own_rope = (everywhere, rope) if is_global else (local, local_rope)
        unnormed = not cfg.first_attention_norm and layer == 0
        options: Any = {"rope": own_rope, "bias_NTS": bias_NTS, "distances_dD": distances_dD, "unnormed": unnormed}
        return block.apply(p, cfg, x_BTD, mask=mask, **options, key=key)[0]

    kinds = range(cfg.global_every if cfg.local_window else 1)
    x_BTD = stack.run(
        [functools.partial(one, i == 0) for i in kinds],
        {} if cfg.share_layers else params["blocks"],
        x_BTD,
        num_layers=cfg.num_layers,
        scan=cfg.scan_layers,
        remat=cfg.remat,
        key=blocks_key,
    )
    if cfg.norm_order == "pre":
        x_BTD = layers.norm(params["final_norm"], x_BTD, cfg.norm, cfg.norm_eps)
    return x_BTD


def attention_weights(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    *,
    types: jax.Array | None = None,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """The attention probabilities of each layer and head, float32 [L, B, N, T, T]; rows sum to 1, of padding too.

    Args:
      params: as for `apply`.
      cfg: as for `apply`.
      tokens_BT: as for `apply`.
      types: as for `apply`.
      lengths: as for `apply`.
      segments: as for `apply`.
    """
    with watch.attention() as seen:
        apply(params, watch.open_up(cfg), tokens_BT, types=types, lengths=lengths, segments=segments)
    return seen.probabilities(watch.SELF)


def contacts(params: Params, cfg: Config, tokens_BT: jax.Array, *, lengths: jax.Array | None = None) -> jax.Array:
    """Logits [B, T-2, T-2] float32, above 0 where two residues of a protein touch (`contact_maps.logits`).

    Args:
      params: the parameters, as `init` returns them, with the head "contacts".
      cfg: the model's config.
      tokens_BT: a first token, the residues and a last token, then padding. Its first residue is row and column 0.
      lengths: [B], tokens of each row before its padding; None: no padding.
    """
    w_LBNTT = attention_weights(params, cfg, tokens_BT, lengths=lengths)
    return contact_maps.logits(params["contacts"], w_LBNTT, lengths)


def features(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    *,
    lengths: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The state of each whole text, as `cfg.pooling` says, without a head, [B, D] in cfg.dtype.

    Args:
      params: as for `apply`.
      cfg: as for `apply`.
      tokens_BT: as for `apply`.
      lengths: as for `apply`.
      key: as for `apply`.
    """
    lengths = None if cfg.pooling == "padded" else lengths
    return summary(cfg, apply(params, cfg, tokens_BT, lengths=lengths, key=key), lengths)[:, 0]


def _embed(
    p: Any,
    cfg: Config,
    tokens_BT: jax.Array,
    types_BT: jax.Array | None,
    where: jax.Array,
    lengths_B: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    """Token, position and type embeddings, normed and projected to the model's width, [B, T, D]."""
    x_BTE = layers.embed(p["token"], tokens_BT, cfg.dtype)
    if cfg.zeroed_token is not None:
        x_BTE = x_BTE * _token_scales(cfg.zeroed_token, tokens_BT, lengths_B)[..., None].astype(x_BTE.dtype)
    if cfg.position == "learned":
        table = p["position"]["embedding"].astype(cfg.dtype)
        if where.ndim == 1:
            x_BTE = x_BTE + layers.positions_from(table, cfg.position_offset, where.shape[0])
        else:
            at = where + cfg.position_offset
            x_BTE = x_BTE + sharding.take(table, at, out=("batch", "length", None), rows="position")
    if cfg.num_types:
        table = sharding.constrain(p["type"]["embedding"], (None, None)).astype(cfg.dtype)
        if types_BT is None:
            x_BTE = x_BTE + table[0]
        else:  # the table is tiny: a product with one-hot rows needs no gather, and its gradient no scatter
            one_hot = jax.nn.one_hot(types_BT, cfg.num_types, dtype=cfg.dtype)
            x_BTE = x_BTE + layers.dense({"kernel": table}, one_hot, out=None)
    x_BTE = layers.norm(p["norm"], x_BTE, cfg.norm, cfg.norm_eps) if "norm" in p else x_BTE
    x_BTE = layers.dropout(x_BTE, cfg.dropout, key)
    return layers.dense(p["project"], x_BTE, out=None) if "project" in p else x_BTE


def _token_scales(zeroed: int, tokens_BT: jax.Array, lengths_B: jax.Array | None) -> jax.Array:
    """The factor of each token's embedding, float32 [B, T]: see `Config.zeroed_token`."""
    T = tokens_BT.shape[1]
    is_zeroed_BT = sharding.constrain(tokens_BT, ("batch", None)) == zeroed
    length_B = jnp.full(len(tokens_BT), T) if lengths_B is None else jnp.maximum(lengths_B, 1)
    masked_B = jnp.sum(is_zeroed_BT & (jnp.arange(T) < length_B[:, None]), axis=1) / length_B
    scale_B1 = (UNMASKED_IN_TRAINING / jnp.maximum(1.0 - masked_B, 1.0 / T))[:, None]
    return sharding.constrain(jnp.where(is_zeroed_BT, 0.0, scale_B1), ("batch", "length"))


def _distances(p: Any, cfg: Config, length: int) -> jax.Array:
    """The vectors of the distances T - 1, ..., 1 - T, [2 T - 1, D]."""
    rows = positions.log_buckets(
        np.arange(length - 1, -length, -1), span=cfg.distance_buckets, max_distance=cfg.max_length
    )
    vectors_RD = layers.norm(p["norm"], sharding.constrain(p["embedding"], (None, None)), cfg.norm, cfg.norm_eps)
    return vectors_RD.astype(cfg.dtype)[rows]


def _rope(cfg: Config, where: jax.Array, theta: float) -> tuple[jax.Array, jax.Array] | None:
    return positions.rotary_angles(where, cfg.head_width, theta=theta) if cfg.position == "rotary" else None
