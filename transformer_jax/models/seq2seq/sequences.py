"""Whole sequences through the encoder and the decoder, and the parts that decoding shares with them.

B batch, S source length, T target length, D width, N heads, V vocabulary.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import sharding
from transformer_jax.nn import block, layers, positions, stack, watch
from transformer_jax.nn.masks import Mask

if TYPE_CHECKING:
    from transformer_jax.models.seq2seq import Config

Params = Any


def encode(
    params: Params,
    cfg: "Config",
    tokens_BS: jax.Array,
    *,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The encoder's states, [B, S, D] in cfg.dtype.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      tokens_BS: the source.
      lengths: [B], tokens of each row before its right padding; None: no padding.
      segments: [B, S], integers that separate packed sources; positions restart in each. None: nothing is packed.
      key: the random key for dropout; None: evaluation, without dropout.

    Raises:
      ValueError: S > cfg.max_length.
    """
    p = params["encoder"]
    check_length(cfg, tokens_BS.shape[1])
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    columns_S = jnp.arange(tokens_BS.shape[1])
    where = columns_S if segments is None else positions.restarted(segments)
    x_BSD = layers.dropout(embed(params, p, cfg, tokens_BS, where), cfg.dropout, embed_key)
    mask = Mask(segment_BT=segments, end_B=lengths)
    bias_NSS = score_bias(p, cfg, columns_S, columns_S, bidirectional=True)

    def one(p: Any, x_BSD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        return block.apply(p, cfg, x_BSD, mask=mask, bias_NTS=bias_NSS, key=key)[0]

    x_BSD = stack.run(
        one, p["blocks"], x_BSD, num_layers=cfg.num_layers, scan=cfg.scan_layers, remat=cfg.remat, key=blocks_key
    )
    return final_norm(p, cfg, x_BSD)


def hidden(
    params: Params,
    cfg: "Config",
    source_BS: jax.Array,
    target_BT: jax.Array,
    *,
    source_lengths: jax.Array | None = None,
    source_segments: jax.Array | None = None,
    target_segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The states that `head` multiplies, [B, T, D] in cfg.dtype.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      source_BS: the encoder's input.
      target_BT: the decoder's input: the target shifted right, after its start token. Its right padding needs no mask:
        no token before it sees it.
      source_lengths: [B], tokens of each source before its right padding; None: no padding.
      source_segments: [B, S], integers of packed pairs, with target_segments: a target sees the source of its integer.
      target_segments: [B, T], likewise.
      key: the random key for dropout; None: evaluation, without dropout.

    Raises:
      ValueError: S or T > cfg.max_length.
    """
    encode_key, decode_key = (None, None) if key is None else jax.random.split(key)
    x_BSD = encode(params, cfg, source_BS, lengths=source_lengths, segments=source_segments, key=encode_key)
    return decode(
        params,
        cfg,
        x_BSD,
        target_BT,
        source_lengths=source_lengths,
        source_segments=source_segments,
        target_segments=target_segments,
        key=decode_key,
    )


def decode(
    params: Params,
    cfg: Any,
    x_BSD: jax.Array,
    target_BT: jax.Array,
    *,
    source_lengths: jax.Array | None = None,
    source_segments: jax.Array | None = None,
    target_segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The states that `head` multiplies, [B, T, D] in cfg.dtype, of whole targets.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      x_BSD: the encoder's states.
      target_BT: as for `hidden`.
      source_lengths: as for `hidden`.
      source_segments: as for `hidden`.
      target_segments: as for `hidden`.
      key: as for `hidden`.

    Raises:
      ValueError: T > cfg.max_length.
    """
    p = params["decoder"]
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    check_length(cfg, target_BT.shape[1])
    columns_T = jnp.arange(target_BT.shape[1])
    where = columns_T if target_segments is None else positions.restarted(target_segments)
    x_BTD = layers.dropout(embed(params, p, cfg, target_BT, where), cfg.dropout, embed_key)
    mask = Mask(causal=True, segment_BT=target_segments)
    cross_mask = Mask(segment_BT=target_segments, key_segment_BS=source_segments, end_B=source_lengths)
    bias_NTT = score_bias(p, cfg, columns_T, columns_T)

    def one(p: Any, x_BTD: jax.Array, layer: Any, key: jax.Array | None) -> jax.Array:
        cross = block.Cross(*block.cross_keys_values(p["cross"], cfg, x_BSD), cross_mask)
        return block.apply(p, cfg, x_BTD, mask=mask, bias_NTS=bias_NTT, cross=cross, key=key)[0]

    x_BTD = stack.run(
        one, p["blocks"], x_BTD, num_layers=cfg.decoder_layers, scan=cfg.scan_layers, remat=cfg.remat, key=blocks_key
    )
    return _scaled(cfg, final_norm(p, cfg, x_BTD))


class AttentionWeights(NamedTuple):
    """The attention probabilities of each layer and head, float32; rows sum to 1.

    Attributes:
      encoder: [L, B, N, S, S].
      decoder: [L, B, N, T, T], of each token to those before it.
      cross: [L, B, N, T, S], of each target token to the source.
    """

    encoder: jax.Array
    decoder: jax.Array
    cross: jax.Array


def attention_weights(
    params: Params,
    cfg: "Config",
    source_BS: jax.Array,
    target_BT: jax.Array,
    *,
    source_lengths: jax.Array | None = None,
) -> AttentionWeights:
    """The attention probabilities of encoder, decoder and cross-attention.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      source_BS: as for `hidden`.
      target_BT: as for `hidden`.
      source_lengths: as for `hidden`.
    """
    with watch.attention() as seen:
        hidden(params, watch.open_up(cfg), source_BS, target_BT, source_lengths=source_lengths)
    own = seen.each(watch.SELF)  # the encoder's layers are computed first
    encoder, decoder = jnp.stack(own[: cfg.num_layers]), jnp.stack(own[cfg.num_layers :])
    return AttentionWeights(encoder, decoder, seen.probabilities(watch.CROSS))


def head(params: Params, cfg: "Config") -> jax.Array:
    """The output matrix [D, V] in `params`, for `losses.linear_cross_entropy`; `cfg` says whether it is tied."""
    return layers.tied_kernel(params["embed"]["token"]) if cfg.tie_embeddings else layers.matrix(params["head"])


def head_bias(params: Params, cfg: "Config") -> jax.Array | None:
    """The bias of the logits [V] in `params`; None where `cfg` has none."""
    return params["head"]["bias"] if cfg.logits_bias else None


def apply(
    params: Params,
    cfg: "Config",
    source_BS: jax.Array,
    target_BT: jax.Array,
    *,
    source_lengths: jax.Array | None = None,
    source_segments: jax.Array | None = None,
    target_segments: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Logits of the token after each decoder input, [B, T, V] float32.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      source_BS: as for `hidden`.
      target_BT: as for `hidden`.
      source_lengths: as for `hidden`.
      source_segments: as for `hidden`.
      target_segments: as for `hidden`.
      key: as for `hidden`.
    """
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
    return logits(params, cfg, x_BTD)


# ------------------------------------------------------------------------------------------------ the parts of both


def embed(params: Params, side: Any, cfg: "Config", tokens_BT: jax.Array, where: jax.Array) -> jax.Array:
    """Token embeddings plus the positions that are added to them, [B, T, D].

    Args:
      params: the parameters of the model.
      side: the encoder's or decoder's part of `params`.
      cfg: the model's config.
      tokens_BT: the tokens of that side.
      where: positions, [T] or [B, T].
    """
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


def score_bias(
    side: Any, cfg: "Config", queries_T: jax.Array, keys_S: jax.Array, *, bidirectional: bool = False
) -> jax.Array | None:
    """The bias on the scores [N, T, S] of relative positions; None for other positions.

    Left padding does not change distances.

    Args:
      side: the encoder's or decoder's parameters.
      cfg: the model's config.
      queries_T: their columns.
      keys_S: their columns.
      bidirectional: whether keys after the query are visible.
    """
    if cfg.position != "relative":
        return None
    table, far = side["relative_bias"]["embedding"], cfg.relative_max_distance
    return positions.relative_bias(table, queries_T, keys_S, max_distance=far, bidirectional=bidirectional)


def final_norm(side: Any, cfg: Any, x_BTD: jax.Array) -> jax.Array:
    """The states after the last block, normed where the model is pre-norm.

    Args:
      side: the encoder's or decoder's parameters.
      cfg: the model's config.
      x_BTD: after the last block.
    """
    return layers.norm(side["final_norm"], x_BTD, cfg.norm, cfg.norm_eps) if cfg.norm_order == "pre" else x_BTD


def _scaled(cfg: "Config", x_BTD: jax.Array) -> jax.Array:
    return x_BTD * cfg.width**-0.5 if cfg.scale_head else x_BTD


def logits(params: Params, cfg: Any, x_BTD: jax.Array) -> jax.Array:
    """The logits of hidden states, [B, T, V] float32.

    Args:
      params: the parameters of the model.
      cfg: the model's config.
      x_BTD: the result of `decode`.
    """
    kernel_DV, bias_V = head(params, cfg).astype(x_BTD.dtype), head_bias(params, cfg)
    axes = ("batch", "length", "vocab")
    logits_BTV = sharding.einsum("BTD,DV->BTV", x_BTD, kernel_DV, out=axes, dtype=jnp.float32)
    return logits_BTV if bias_V is None else logits_BTV + bias_V


def next_logits(params: Params, cfg: "Config", x_BD: jax.Array) -> jax.Array:
    """Logits of one hidden state for each row, [B, V] float32.

    Args:
      params: the parameters of the model.
      cfg: the model's config.
      x_BD: after the final norm.
    """
    x_BD = _scaled(cfg, x_BD)
    if not cfg.tie_embeddings:
        with sharding.replicated_length():
            return logits(params, cfg, x_BD[:, None])[:, 0]
    logits_BV, bias_V = layers.tied_logits(params["embed"]["token"], x_BD), head_bias(params, cfg)
    return logits_BV if bias_V is None else logits_BV + bias_V


def check_length(cfg: "Config", length: int) -> None:
    """Raises `ValueError` where `length` is above the max_length of `cfg`."""
    if length > cfg.max_length:
        raise ValueError(f"{length} tokens are more than the model's max_length of {cfg.max_length}")
