"""Decoding: the target token by token, with a cache of keys and values.

B batch, S source length or slots, T target length, D width, K heads, H head width, V vocabulary, L layers, R rows of a
reordered cache.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.models.seq2seq.sequences import check_length, embed, final_norm, next_logits, score_bias
from transformer_jax.nn import attention, block, stack
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.attention import KVCache
from transformer_jax.nn.masks import Mask

if TYPE_CHECKING:
    from transformer_jax.models.seq2seq import Config

Params = Any


@flax.struct.dataclass
class Cache:
    """The state of decoding: keys and values of the targets so far, and of the sources.

    The target may have more rows than the source, `times` consecutive ones for each (`repeat`).

    Attributes:
      target: the decoder's keys and values of the tokens so far.
      cross_k: each layer's keys of the source, [L, B, K, S, H]; with unrolled layers L arrays [B, K, S, H], because a
        layer's slice would be copied for every token.
      cross_v: the values, likewise.
      lengths_B: int32, tokens of each source.
    """

    target: KVCache
    cross_k: Any
    cross_v: Any
    lengths_B: jax.Array

    @property
    def num_slots(self) -> int:
        """The number of target tokens that fit."""
        return self.target.num_slots


def init_cache(params: Params, cfg: "Config", x_BSD: jax.Array, lengths: jax.Array | None, length: int) -> Cache:
    """A cache without target tokens. The keys and values of cross-attention are computed, once.

    Args:
      params: the parameters, as `init` or `for_decoding` returns them.
      cfg: the model's config.
      x_BSD: the encoder's states.
      lengths: [B], as for `encode`; None: sources without padding.
      length: target tokens that fit.

    Raises:
      ValueError: length > cfg.max_length.
    """
    check_length(cfg, length)
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
    params: Params, cfg: "Config", tokens_BT: jax.Array, cache: Cache, *, start_B: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after each row's last token, and the cache with the tokens.

    Args:
      params: the parameters, as `init` or `for_decoding` returns them.
      cfg: the model's config.
      tokens_BT: the first tokens of the targets (start tokens, forced ones).
      cache: without target tokens.
      start_B: the column of each row's first token, whose position is 0: rows of different lengths are padded on the
        left. None: no padding.

    Raises:
      ValueError: T is above the cache's slots.
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
    bias_NTT = score_bias(p, cfg, columns_T, columns_T)

    def one(p: Any, carry: Any, layer: Any, key: jax.Array | None) -> Any:
        x_BTD, target = carry
        cross = _cross(cache, layer)
        x_BTD, (k_BTKH, v_BTKH) = block.apply(p, cfg, x_BTD, mask=mask, bias_NTS=bias_NTT, cross=cross)
        return x_BTD, attention.write(target, layer, k_BTKH, v_BTKH)

    carry = (embed(params, p, cfg, tokens_BT, where), target)
    x_BTD, target = _run(one, p, cfg, carry)
    last_BD = sharding.constrain(final_norm(p, cfg, x_BTD), ("batch", None, None))[:, -1]
    target = dataclasses.replace(target, index=target.index + T)
    return next_logits(params, cfg, last_BD), dataclasses.replace(cache, target=target)


def decode_step(params: Params, cfg: "Config", token_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Logits [B, V] of the token after `token_B`, and the cache with it.

    Args:
      params: the parameters, as `init` or `for_decoding` returns them.
      cfg: the model's config.
      token_B: the next token of each target.
      cache: with a free slot, which a compiled function cannot check.
    """
    p, target = params["decoder"], cache.target
    bias_N1S = score_bias(p, cfg, target.index[None], jnp.arange(cache.num_slots))
    bias_NS = None if bias_N1S is None else bias_N1S[:, 0]

    def one(p: Any, carry: Any, layer: Any, key: jax.Array | None) -> Any:
        x_BTD, target = carry
        return block.apply_cached(p, cfg, x_BTD, target, layer, bias_NS=bias_NS, cross=_cross(cache, layer))

    with sharding.replicated_length():
        x_BTD = embed(params, p, cfg, token_B[:, None], (target.index - target.start_B)[:, None])
        x_BTD, target = _run(one, p, cfg, (x_BTD, target))
        x_BTD = final_norm(p, cfg, x_BTD)
    target = dataclasses.replace(target, index=target.index + 1)
    return next_logits(params, cfg, x_BTD[:, 0]), dataclasses.replace(cache, target=target)


def reorder(cache: Cache, rows_R: jax.Array) -> Cache:
    """The cache whose row r is row `rows_R[r]` of `cache`, for beam search; R may differ from the cache's rows.

    After `repeat`, both rows must have the same source (rows_R[r] // times == r // times). The keys and values of the
    source are then not moved.
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
    """The `cache` with each row `times` times, side by side: hypotheses that share their source's keys and values."""
    rows_R = jnp.repeat(jnp.arange(len(cache.target.start_B)), times)
    return dataclasses.replace(cache, target=attention.reorder(cache.target, rows_R))


def for_decoding(params: Params, cfg: "Config") -> Params:
    """The same parameters in the layout that `decode_step` reads fastest. The other functions take either.

    Where layers are unrolled, each decoder layer has arrays of its own, and on CPUs its kernels are transposed: one
    copy of the decoder's blocks. Scanned layers stay stacked.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
    """
    decoder = params["decoder"]
    if cfg.scan_layers or isinstance(decoder["blocks"], list):
        return params
    return dict(params) | {
        "decoder": dict(decoder) | {"blocks": block.for_decoding(decoder["blocks"], cfg.decoder_layers)}
    }


def _run(one: stack.Block, p: Any, cfg: "Config", carry: Any) -> Any:
    settings: Any = {"num_layers": cfg.decoder_layers, "scan": cfg.scan_layers, "remat": "none", "key": None}
    return stack.run(one, p["blocks"], carry, **settings)


def _cross(cache: Cache, layer: Any) -> block.Cross:
    """A layer's keys and values of the source."""

    def of_layer(x: Any) -> jax.Array:
        x_BKSH = x[layer] if isinstance(x, tuple) else jax.lax.dynamic_index_in_dim(x, layer, keepdims=False)
        return jnp.moveaxis(x_BKSH, 2, 1)

    return block.Cross(of_layer(cache.cross_k), of_layer(cache.cross_v), Mask(end_B=cache.lengths_B))
