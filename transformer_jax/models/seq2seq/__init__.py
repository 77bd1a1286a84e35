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

B batch, S source length, T target length, D width, N heads, H head width, V vocabulary, L layers, R rows of a cache.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.contracts import TRAINING
from transformer_jax.errors import InputError
from transformer_jax.nn import attention, block, layers, positions, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.attention import KVCache
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param, normal, zeros

Params = Any
TRUNK = ("embed", "encoder", "decoder", "head")  # the whole tree: the one head is part of the model


@dataclass(frozen=True, kw_only=True)
class Config(block.TextConfig):
    """What an encoder-decoder is. Frozen and hashable: pass it as a static argument of jit.

    Errors: `InputError` on construction when sizes contradict each other.
    """

    width: int = 512
    """D, the width of the residual stream."""
    num_layers: int = 6
    """L of the encoder."""
    num_decoder_layers: int | None = field(default=None, metadata={"means": "decoder_layers"})
    """L of the decoder; None: as many as the encoder has."""
    num_heads: int = 8
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "relu"
    norm_order: Literal["pre", "post"] = "post"
    """Norm after each residual sum, or before each sublayer and once after the last."""
    embedding_norm: bool = False
    """A norm of the embeddings, one for source and one for target (BART)."""
    position: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative"] = "sinusoidal"
    """Added to the embeddings: sines and cosines in turn (Vaswani et al.) or one after the other (Marian), or a learned
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
    """What pads rows: the function does not depend on it, since lengths tell."""
    eos_id: int | None = None
    """What ends source and target."""
    decoder_start_id: int | None = None
    """The decoder's first input."""
    dropout: float = field(default=0.1, metadata=TRAINING)
    """Of the embeddings with their positions and of each sublayer's output; applied only when a key is given."""
    attention_dropout: float = field(default=0.0, metadata=TRAINING)
    """Of the attention probabilities, which Vaswani et al. do not drop."""
    initializer: Literal["xavier", "t5", "normal"] = field(default="xavier", metadata=TRAINING)
    """Kernels uniform by fan-in and fan-out (Glorot and Bengio 2010) with embeddings at 1/sqrt(D); normal by fan-in
    with embeddings at 1, as T5's unscaled scores need; or everything Normal(0, init_std^2)."""

    def __post_init__(self) -> None:
        block.check(self)
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
        """L of the decoder."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def score_scale(self) -> float:
        """What the attention scores are multiplied by."""
        return 1.0 / math.sqrt(self.head_width) if self.scale_scores else 1.0


# ------------------------------------------------------------------------------------------------------- parameters


mesh_sizes = block.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s."""
    D, V = cfg.width, cfg.vocab_size
    embedding_std = {"normal": cfg.init_std, "xavier": D**-0.5, "t5": 1.0}[cfg.initializer]

    def side(num_layers: int, *, cross: bool) -> dict[str, Any]:
        tree = {"blocks": params_lib.stack(_kernels_drawn(block.declare(cfg, cross=cross), cfg), num_layers)}
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
        head = _kernels_drawn(layers.declare_dense(D, V, ("embed", "vocab"), bias=False, std=cfg.init_std), cfg)
    if cfg.logits_bias:
        head["bias"] = Param((V,), ("vocab",), zeros)
    tree: dict[str, Any] = {
        "embed": {"token": layers.declare_embedding(V, D, "vocab", std=embedding_std)},
        "encoder": side(cfg.num_layers, cross=False),
        "decoder": side(cfg.decoder_layers, cross=True),
    }
    return tree | {"head": head} if head else tree


def _kernels_drawn(tree: dict[str, Any], cfg: Config) -> dict[str, Any]:
    """The declarations with their kernels' draws as `cfg.initializer` names them."""
    if cfg.initializer == "normal":
        return tree

    def redrawn(path: Any, p: Param) -> Param:
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            return p
        if cfg.initializer == "xavier":
            return dataclasses.replace(p, init=params_lib.xavier)
        # T5 leaves 1/sqrt(H) out of the scores and has it in the queries' kernel (Raffel et al.'s Mesh TensorFlow).
        fan_in = p.shape[0] * (cfg.head_width if "query" in names else 1)
        return dataclasses.replace(p, init=normal(fan_in**-0.5))

    return jax.tree_util.tree_map_with_path(redrawn, tree, is_leaf=lambda x: isinstance(x, Param))


def init(key: jax.Array, cfg: Config) -> Params:
    """Fresh float32 parameters, drawn as `cfg.initializer` says."""
    return params_lib.init(key, declare(cfg))


# ---------------------------------------------------------------------------------------------------- whole sequences


def encode(
    params: Params,
    cfg: Config,
    tokens_BS: jax.Array,
    *,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The encoder's states, [B, S] int -> [B, S, D] in cfg.dtype.

    Arguments: lengths [B], tokens of each row before its right padding; segments [B, S], numbers that keep packed
    sources apart, each with positions of its own; key switches dropout on.
    Errors: `ValueError` when S > cfg.max_length.
    """
    p = params["encoder"]
    _check_length(cfg, tokens_BS.shape[1])
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    columns_S = jnp.arange(tokens_BS.shape[1])
    where = columns_S if segments is None else positions.restarted(segments)
    x_BSD = layers.dropout(_embed(params, p, cfg, tokens_BS, where), cfg.dropout, embed_key)
    mask = Mask(segment_BT=segments, end_B=lengths)
    bias_NSS = _bias(p, cfg, columns_S, columns_S, bidirectional=True)

    def one(p: Any, x_BSD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        return block.apply(p, cfg, x_BSD, mask=mask, bias_NTS=bias_NSS, key=key)[0]

    x_BSD = stack.run(
        one, p["blocks"], x_BSD, num_layers=cfg.num_layers, scan=cfg.scan_layers, remat=cfg.remat, key=blocks_key
    )
    return _final_norm(p, cfg, x_BSD)


def hidden(
    params: Params,
    cfg: Config,
    source_BS: jax.Array,
    target_BT: jax.Array,
    *,
    source_lengths: jax.Array | None = None,
    source_segments: jax.Array | None = None,
    target_segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The states that `head` multiplies, [B, S] and [B, T] int -> [B, T, D] in cfg.dtype.

    Arguments: target_BT, the decoder's inputs: the target shifted right, after its start token; source_lengths [B],
    tokens of each source before its right padding; segments [B, S] and [B, T], given together, keep packed pairs apart:
    a target sees the source with its own number; key switches dropout on. Padding on the right of a target needs no
    mask: nothing before it sees it.
    Errors: `ValueError` when S or T is above cfg.max_length.
    """
    encode_key, embed_key, blocks_key = (None,) * 3 if key is None else jax.random.split(key, 3)
    x_BSD = encode(params, cfg, source_BS, lengths=source_lengths, segments=source_segments, key=encode_key)
    p = params["decoder"]
    _check_length(cfg, target_BT.shape[1])
    columns_T = jnp.arange(target_BT.shape[1])
    where = columns_T if target_segments is None else positions.restarted(target_segments)
    x_BTD = layers.dropout(_embed(params, p, cfg, target_BT, where), cfg.dropout, embed_key)
    mask = Mask(causal=True, segment_BT=target_segments)
    cross_mask = Mask(segment_BT=target_segments, key_segment_BS=source_segments, end_B=source_lengths)
    bias_NTT = _bias(p, cfg, columns_T, columns_T)

    def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        cross = block.Cross(*block.cross_keys_values(p["cross"], cfg, x_BSD), cross_mask)
        return block.apply(p, cfg, x_BTD, mask=mask, bias_NTS=bias_NTT, cross=cross, key=key)[0]

    x_BTD = stack.run(
        one, p["blocks"], x_BTD, num_layers=cfg.decoder_layers, scan=cfg.scan_layers, remat=cfg.remat, key=blocks_key
    )
    return _scaled(cfg, _final_norm(p, cfg, x_BTD))


def head(params: Params, cfg: Config) -> jax.Array:
    """The output matrix [D, V], for `losses.linear_cross_entropy`."""
    return layers.tied_kernel(params["embed"]["token"]) if cfg.tie_embeddings else params["head"]["kernel"]


def head_bias(params: Params, cfg: Config) -> jax.Array | None:
    """The bias of the logits [V], for the same; None where there is none."""
    return params["head"]["bias"] if cfg.logits_bias else None


def apply(
    params: Params,
    cfg: Config,
    source_BS: jax.Array,
    target_BT: jax.Array,
    *,
    source_lengths: jax.Array | None = None,
    source_segments: jax.Array | None = None,
    target_segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Logits of the token after each decoder input, [B, S] and [B, T] int -> [B, T, V] float32. Arguments as for
    `hidden`."""
    x_BTD = hidden(
        params,
        cfg,
        source_BS,
        target_BT,
        source_lengths=source_lengths,
        source_segments=source_segments,
        target_segments=target_segments,
        key=key,
    )
    return _logits(params, cfg, x_BTD)


# ----------------------------------------------------------------------------------------------------------- decoding


@flax.struct.dataclass
class Cache:
    """What decoding knows of each row: the target so far, and the encoder's states as the decoder reads them.

    target     the decoder's keys and values of the tokens seen so far
    cross_k, cross_v   each layer's keys and values of the source: [L, B, K, S, H], or with unrolled layers L times
                       [B, K, S, H]: a layer's slice would be copied for every token
    lengths_B  int32, tokens of each source

    The target may have more rows than the source, `times` consecutive ones for each (`repeat`).
    """

    target: KVCache
    cross_k: Any
    cross_v: Any
    lengths_B: jax.Array

    @property
    def num_slots(self) -> int:
        """Tokens of the target that it holds."""
        return self.target.num_slots


def init_cache(params: Params, cfg: Config, x_BSD: jax.Array, lengths: jax.Array | None, length: int) -> Cache:
    """A cache for `length` tokens of target over the encoder's states: cross keys and values are computed here, once.

    Arguments: params, of `init` or `for_decoding`; x_BSD and lengths [B], of `encode` (None: sources without padding).
    Errors: `ValueError` when length > cfg.max_length.
    """
    _check_length(cfg, length)
    B, S = x_BSD.shape[:2]

    def keys_values(p: Any) -> tuple[jax.Array, jax.Array]:
        pair = block.cross_keys_values(p, cfg, x_BSD)
        k_BKSH, v_BKSH = (sharding.constrain(jnp.moveaxis(x, 1, 2), ("batch", "kv_heads", None, None)) for x in pair)
        return k_BKSH, v_BKSH

    blocks = params["decoder"]["blocks"]
    if cfg.scan_layers:
        cross_k, cross_v = jax.lax.map(keys_values, blocks["cross"])
    else:
        ones = blocks if isinstance(blocks, list) else params_lib.unstack(blocks, cfg.decoder_layers)
        cross_k, cross_v = zip(*(keys_values(p["cross"]) for p in ones), strict=True)
    dtype = jnp.dtype(cfg.dtype)
    target = attention.empty_cache(cfg.decoder_layers, B, length, cfg.kv_heads, cfg.head_width, dtype)
    lengths_B = jnp.full((B,), S, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    return Cache(target, cross_k, cross_v, lengths_B)


def prefill(
    params: Params, cfg: Config, tokens_BT: jax.Array, cache: Cache, *, start_B: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """Read the beginnings of the targets (start tokens, forced ones) into an empty cache; logits [B, V] after each
    row's last token.

    Beginnings of different lengths are padded on the left: start_B[b] is the column of row b's first token, whose
    position is 0. Errors: `ValueError` when they are longer than the cache.
    """
    p, target = params["decoder"], cache.target
    T, slots = tokens_BT.shape[1], cache.num_slots
    if slots < T:
        raise ValueError(f"the targets' beginnings have {T} tokens, the cache {slots} slots; make it for {T} or more")
    where = columns_T = jnp.arange(T)
    if start_B is not None:
        where = jnp.maximum(where - start_B[:, None], 0)
        target = dataclasses.replace(target, start_B=start_B.astype(jnp.int32))
    mask = Mask(causal=True, start_B=start_B)
    bias_NTT = _bias(p, cfg, columns_T, columns_T)

    def one(p: Any, carry: Any, layer: Any, key: jax.Array | None) -> Any:
        x_BTD, target = carry
        cross = _cross(cache, layer)
        x_BTD, (k_BTKH, v_BTKH) = block.apply(p, cfg, x_BTD, mask=mask, bias_NTS=bias_NTT, cross=cross)
        return x_BTD, attention.write(target, layer, k_BTKH, v_BTKH)

    carry = (_embed(params, p, cfg, tokens_BT, where), target)
    x_BTD, target = _run(one, p, cfg, carry)
    last_BD = sharding.constrain(_final_norm(p, cfg, x_BTD), ("batch", None, None))[:, -1]
    target = dataclasses.replace(target, index=target.index + T)
    return _next_logits(params, cfg, last_BD), dataclasses.replace(cache, target=target)


def decode_step(params: Params, cfg: Config, token_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Append one token to each target; logits [B, V] of the token after it.

    The cache must have a slot left, which a compiled function cannot check.
    """
    p, target = params["decoder"], cache.target
    bias_N1S = _bias(p, cfg, target.index[None], jnp.arange(cache.num_slots))
    bias_NS = None if bias_N1S is None else bias_N1S[:, 0]

    def one(p: Any, carry: Any, layer: Any, key: jax.Array | None) -> Any:
        x_BTD, target = carry
        return block.apply_cached(p, cfg, x_BTD, target, layer, bias_NS=bias_NS, cross=_cross(cache, layer))

    with sharding.replicated_length():
        x_BTD = _embed(params, p, cfg, token_B[:, None], (target.index - target.start_B)[:, None])
        x_BTD, target = _run(one, p, cfg, (x_BTD, target))
        x_BTD = _final_norm(p, cfg, x_BTD)
    target = dataclasses.replace(target, index=target.index + 1)
    return _next_logits(params, cfg, x_BTD[:, 0]), dataclasses.replace(cache, target=target)


def reorder(cache: Cache, rows_R: jax.Array) -> Cache:
    """The cache whose row r is row rows_R[r] of this one, for beam search; R may differ from the cache's rows.

    After `repeat`, a row must come from one with the same source (rows_R[r] // times == r // times): then the cross
    keys and values stay as they are.
    """
    target = attention.reorder(cache.target, rows_R)
    if len(cache.target.start_B) != len(cache.lengths_B):
        return dataclasses.replace(cache, target=target)

    def pick(x: jax.Array) -> jax.Array:
        axes = (*(None,) * (x.ndim - 4), "batch", "kv_heads", None, None)
        return sharding.constrain(jnp.take(x, rows_R, axis=x.ndim - 4, mode="clip"), axes)

    cross_k, cross_v = jax.tree.map(pick, (cache.cross_k, cache.cross_v))
    return Cache(target, cross_k, cross_v, jnp.take(cache.lengths_B, rows_R, mode="clip"))


def repeat(cache: Cache, times: int) -> Cache:
    """Each row `times` times, side by side: hypotheses that share one copy of their source's keys and values."""
    rows_R = jnp.repeat(jnp.arange(len(cache.target.start_B)), times)
    return dataclasses.replace(cache, target=attention.reorder(cache.target, rows_R))


def for_decoding(params: Params, cfg: Config) -> Params:
    """The same parameters as `decode_step` reads them fastest: with cfg.scan_layers=False each decoder layer's arrays
    by themselves, on CPUs with kernels turned (one copy of the decoder's blocks), otherwise as they are. The other
    functions take either.
    """
    decoder = params["decoder"]
    if cfg.scan_layers or isinstance(decoder["blocks"], list):
        return params
    return dict(params) | {
        "decoder": dict(decoder) | {"blocks": block.for_decoding(decoder["blocks"], cfg.decoder_layers)}
    }


def _run(one: stack.Block, p: Any, cfg: Config, carry: Any) -> Any:
    settings: Any = {"num_layers": cfg.decoder_layers, "scan": cfg.scan_layers, "remat": "none", "key": None}
    return stack.run(one, p["blocks"], carry, **settings)


def _cross(cache: Cache, layer: Any) -> block.Cross:
    """A layer's keys and values of the source."""

    def of_layer(x: Any) -> jax.Array:
        x_BKSH = x[layer] if isinstance(x, tuple) else jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
        return jnp.moveaxis(x_BKSH, 2, 1)

    return block.Cross(of_layer(cache.cross_k), of_layer(cache.cross_v), Mask(end_B=cache.lengths_B))


# ------------------------------------------------------------------------------------------------- what all of it uses


def _embed(params: Params, side: Any, cfg: Config, tokens_BT: jax.Array, where: jax.Array) -> jax.Array:
    """Token embeddings plus the positions that are added to them, [B, T, D]; `where`, positions [T] or [B, T]."""
    x_BTD = layers.embed(params["embed"]["token"], tokens_BT, cfg.dtype)
    if cfg.scale_embedding:
        x_BTD = x_BTD * math.sqrt(cfg.width)
    if cfg.position == "learned":
        table, first = side["position"]["embedding"].astype(cfg.dtype), cfg.position_offset
        if where.ndim == 1:
            x_BTD = x_BTD + layers.positions_from(table, first, where.shape[0])
        else:
            x_BTD = x_BTD + sharding.take(table, where + first, out=("batch", "length", None), rows="position")
    elif cfg.position != "relative":
        halves = cfg.position == "sinusoidal_halves"
        x_BTD = x_BTD + positions.sinusoidal(where, cfg.width, halves=halves).astype(x_BTD.dtype)
    return layers.norm(side["embed_norm"], x_BTD, cfg.norm, cfg.norm_eps) if cfg.embedding_norm else x_BTD


def _bias(
    side: Any, cfg: Config, queries_T: jax.Array, keys_S: jax.Array, *, bidirectional: bool = False
) -> jax.Array | None:
    """The bias on the scores [N, T, S] of relative positions. Distances do not change with left padding."""
    if cfg.position != "relative":
        return None
    table, far = side["relative_bias"]["embedding"], cfg.relative_max_distance
    return positions.relative_bias(table, queries_T, keys_S, max_distance=far, bidirectional=bidirectional)


def _final_norm(side: Any, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    return layers.norm(side["final_norm"], x_BTD, cfg.norm, cfg.norm_eps) if cfg.norm_order == "pre" else x_BTD


def _scaled(cfg: Config, x_BTD: jax.Array) -> jax.Array:
    return x_BTD * cfg.width**-0.5 if cfg.scale_head else x_BTD


def _logits(params: Params, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    kernel_DV, bias_V = head(params, cfg).astype(x_BTD.dtype), head_bias(params, cfg)
    axes = ("batch", "length", "vocab")
    logits_BTV = sharding.einsum("BTD,DV->BTV", x_BTD, kernel_DV, out=axes, dtype=jnp.float32)
    return logits_BTV if bias_V is None else logits_BTV + bias_V


def _next_logits(params: Params, cfg: Config, x_BD: jax.Array) -> jax.Array:
    """Logits of the last hidden states, [B, D] -> [B, V] float32."""
    x_BD = _scaled(cfg, x_BD)
    if not cfg.tie_embeddings:
        with sharding.replicated_length():
            return _logits(params, cfg, x_BD[:, None])[:, 0]
    logits_BV, bias_V = layers.tied_logits(params["embed"]["token"], x_BD), head_bias(params, cfg)
    return logits_BV if bias_V is None else logits_BV + bias_V


def _check_length(cfg: Config, length: int) -> None:
    if length > cfg.max_length:
        raise ValueError(f"{length} tokens are more than the model's max_length of {cfg.max_length}")
