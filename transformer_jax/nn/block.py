"""The transformer block: attention and MLP, each with its norm, residual and dropout, by a config.

A decoder that reads an encoder's states has cross-attention between the two. One block serves every family.

B batch, T length, S keys or slots, D width, N query heads, K key/value heads, H head width, F MLP width, L layers.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax import kernels, sharding
from transformer_jax.nn import attention, layers, positions, watch
from transformer_jax.nn.attention import KVCache
from transformer_jax.nn.config import Config
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param, unstack

Rope = tuple[jax.Array, jax.Array]  # (cos, sin) of `positions.rotary_angles`


class Cross(NamedTuple):
    """What cross-attention reads: one layer's keys and values of the encoder's states, and who may attend to whom.

    The keys may have fewer rows than the queries. Then consecutive rows of queries, the same number for each, share a
    row of keys (beams over one source).
    """

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    mask: Mask


def declare(cfg: Config, *, cross: bool = False, layer_scale: float = 0.0) -> dict[str, Any]:
    """One block's parameters.

    With pre-norm, kernels that write to the residual stream start smaller by sqrt(2 L) (GPT-2), with cross-attention by
    sqrt(3 L). With post-norm, the norms scale what they add.

    Args:
      cfg: sizes and initial values.
      cross: whether there is cross-attention.
      layer_scale: where above 0, the initial value of a learned factor for each feature that a sublayer adds (Touvron
        et al. 2021, "CaiT", equation 4).
    """
    D, H, std = cfg.width, cfg.head_width, cfg.init_std
    out_std = std / math.sqrt((3 if cross else 2) * cfg.num_layers) if cfg.norm_order == "pre" else std

    def project(heads: int, axis: str) -> dict[str, Any]:
        return layers.declare_dense(D, heads * H, ("embed", axis), bias=cfg.has_qkv_bias, std=std)

    def heads() -> dict[str, Any]:
        return {
            "query": project(cfg.num_heads, "heads"),
            "key": project(cfg.kv_heads, "kv_heads"),
            "value": project(cfg.kv_heads, "kv_heads"),
            "out": layers.declare_dense(cfg.num_heads * H, D, ("heads", "embed"), bias=cfg.bias, std=out_std),
        }

    def norm() -> dict[str, Any]:
        return layers.declare_norm(D, cfg.norm, bias=cfg.bias)

    def factors() -> dict[str, Any]:
        if layer_scale == 0.0:
            return {}
        return {"layer_scale": {"scale": Param((D,), (None,), lambda key, shape: jnp.full(shape, layer_scale))}}

    def output_norm() -> dict[str, Any]:
        return {"output_norm": norm()} if cfg.output_norm else {}

    norms = {name: layers.declare_norm(H, "rms", bias=False) for name in ("query_norm", "key_norm") if cfg.qk_norm}
    mlp = layers.declare_mlp(D, cfg.mlp_features, gated=cfg.gated, bias=cfg.bias, std=std, out_std=out_std)
    return {
        "attention_norm": norm(),
        "attention": heads() | norms | output_norm() | factors(),
        **({"cross_norm": norm(), "cross": heads()} if cross else {}),
        "mlp_norm": norm(),
        "mlp": mlp | output_norm() | factors(),
    }


# ----------------------------------------------------------------------------------------------------------- the block


@kernels.choose("block")
def apply(
    p: dict[str, Any],
    cfg: Config,
    x_BTD: jax.Array,
    *,
    mask: Mask,
    rope: Rope | None = None,
    bias_NTS: jax.Array | None = None,
    distances_dD: jax.Array | None = None,
    cross: Cross | None = None,
    drop_path: jax.Array | float | None = None,
    num_outputs: int | None = None,
    unnormed: jax.Array | bool = False,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """x after the block [B, T, D], and its keys and values [B, T, K, H], for a cache.

    Args:
      p: one layer's parameters, of `declare`.
      cfg: the model's config.
      x_BTD: the residual stream.
      mask: who may attend to whom.
      rope: (cos, sin) of `positions.rotary_angles`; None: positions are not rotary.
      bias_NTS: added to the scores.
      distances_dD: vectors of the distances T - 1 to 1 - T, for `positions.disentangled_bias`; None: there is none.
      cross: what cross-attention reads; None: there is none.
      drop_path: the probability that a row skips a sublayer (stochastic depth, Huang et al. 2016); None: there is none.
      num_outputs: how many of the first tokens are returned, [B, num_outputs, D]; None: all. The others are keys and
        values only.
      unnormed: whether attention reads x as it is, without its norm.
      key: the random key for dropout and stochastic depth; None: evaluation, without either.
    """
    scale_2B11 = None
    if drop_path is not None and key is not None:
        key, depth_key = jax.random.split(key)
        scale_2B11 = _row_scales(depth_key, drop_path, x_BTD.shape[0])
    attention_key, *keys = _dropout_keys(key, cross)
    h_BTD = _pre_norm(p["attention_norm"], cfg, x_BTD)
    h_BTD = h_BTD if unnormed is False else jnp.where(unnormed, x_BTD, h_BTD)
    x_BTD = x_BTD if num_outputs is None else x_BTD[:, :num_outputs]
    options: Any = {"rope": rope, "bias_NTS": bias_NTS, "distances_dD": distances_dD}
    a_BTNH, k_BTKH, v_BTKH = self_attention(
        p["attention"], cfg, h_BTD, mask, **options, num_outputs=num_outputs, key=attention_key
    )
    return _after_attention(p, cfg, x_BTD, a_BTNH, cross, keys, cfg.attention, scale_2B11), (k_BTKH, v_BTKH)


@kernels.choose("self_attention")
def self_attention(
    p: dict[str, Any],
    cfg: Config,
    x_BTD: jax.Array,
    mask: Mask,
    *,
    rope: Rope | None,
    bias_NTS: jax.Array | None,
    distances_dD: jax.Array | None,
    num_outputs: int | None,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The attended values of all heads [B, T or num_outputs, N, H], the keys and the values [B, T, K, H].

    Args:
      p: the sublayer's parameters.
      cfg: the model's config.
      x_BTD: what the sublayer reads, after the norm.
      mask: as for `apply`.
      rope: as for `apply`.
      bias_NTS: as for `apply`.
      distances_dD: as for `apply`.
      num_outputs: as for `apply`.
      key: the random key for the dropout of the probabilities.
    """
    q_BTNH, k_BTKH, v_BTKH = _project_qkv(p, cfg, x_BTD, rope, num_outputs)
    if distances_dD is not None:
        with sharding.rules({**sharding.current_rules(), "batch": None, "length": None}):
            key_dNH, query_dNH = (_heads(p, cfg, distances_dD[None], name)[0] for name in ("key", "query"))
        bias_NTS = positions.disentangled_bias(q_BTNH, k_BTKH, key_dNH, query_dNH) * cfg.score_scale
    options: Any = {"bias_NTS": bias_NTS, "key": key, "implementation": cfg.attention}
    options |= {"scale": cfg.score_scale, "cap": cfg.score_cap, "dropout_rate": cfg.attention_dropout}
    return attention.attend(q_BTNH, k_BTKH, v_BTKH, mask, **options), k_BTKH, v_BTKH


def _after_attention(
    p: dict[str, Any],
    cfg: Config,
    x_BTD: jax.Array,
    a_BTNH: jax.Array,
    cross: Cross | None,
    keys: list[jax.Array | None],
    implementation: str,
    scale_2B11: jax.Array | None = None,
) -> jax.Array:
    """From the attended values to the block's output: projection, residual, cross-attention, MLP, residual."""
    key_1, key_2, *cross_keys = keys
    scale_1, scale_2 = (None, None) if scale_2B11 is None else (scale_2B11[0], scale_2B11[1])
    y_BTD = _scale_output(p["attention"], cfg, _project_out(p["attention"], a_BTNH))
    x_BTD = _add_and_post_norm(p["attention_norm"], cfg, x_BTD, y_BTD, key_1, scale_1)
    if cross is not None:
        attention_key, key_3 = cross_keys
        h_BTD = _pre_norm(p["cross_norm"], cfg, x_BTD)
        a_BTNH = _attend_cross(p["cross"], cfg, h_BTD, cross, attention_key, implementation)
        x_BTD = _add_and_post_norm(p["cross_norm"], cfg, x_BTD, _project_out(p["cross"], a_BTNH), key_3)
    h_BTD = _pre_norm(p["mlp_norm"], cfg, x_BTD)
    y_BTD = _scale_output(p["mlp"], cfg, layers.mlp(p["mlp"], h_BTD, cfg.activation))
    return _add_and_post_norm(p["mlp_norm"], cfg, x_BTD, y_BTD, key_2, scale_2)


def _pre_norm(p_norm: dict[str, Any], cfg: Config, x_BTD: jax.Array) -> jax.Array:
    """What a sublayer reads of the residual stream."""
    return x_BTD if cfg.norm_order == "post" else layers.norm(p_norm, x_BTD, cfg.norm, cfg.norm_eps)


def _add_and_post_norm(
    p_norm: dict[str, Any],
    cfg: Config,
    x_BTD: jax.Array,
    y_BTD: jax.Array,
    key: jax.Array | None,
    scale_B11: jax.Array | None = None,
) -> jax.Array:
    """The residual stream after a sublayer whose output is y, multiplied by a factor for each row."""
    y_BTD = layers.dropout(y_BTD, cfg.dropout, key)
    x_BTD = _add(x_BTD, y_BTD if scale_B11 is None else y_BTD * scale_B11.astype(y_BTD.dtype))
    return layers.norm(p_norm, x_BTD, cfg.norm, cfg.norm_eps) if cfg.norm_order == "post" else x_BTD


@kernels.choose("residual")
def _add(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    return x_BTD + y_BTD


def _scale_output(p: dict[str, Any], cfg: Config, y_BTD: jax.Array) -> jax.Array:
    """A sublayer's output after its norm and times its LayerScale, where it has them."""
    y_BTD = layers.norm(p["output_norm"], y_BTD, cfg.norm, cfg.norm_eps) if "output_norm" in p else y_BTD
    return y_BTD * p["layer_scale"]["scale"].astype(y_BTD.dtype) if "layer_scale" in p else y_BTD


def _row_scales(key: jax.Array, drop_path: jax.Array | float, batch: int) -> jax.Array:
    """For each of two sublayers, 0 for the rows that skip it and 1 / (1 - drop_path) for the others, [2, B, 1, 1]."""
    scale_2B = jax.random.bernoulli(key, 1.0 - drop_path, (2, batch)) / (1.0 - drop_path)
    return sharding.constrain(scale_2B[:, :, None, None], (None, "batch", None, None))


def _dropout_keys(key: jax.Array | None, cross: Cross | None) -> list[jax.Array | None]:
    """Keys of the attention probabilities' and the sublayers' dropout, in order; the cross-attention's are last."""
    count = 3 if cross is None else 5
    return [None] * count if key is None else list(jax.random.split(key, count))


# --------------------------------------------------------------------------------------------------------------- heads


def _project_qkv(
    p: dict[str, Any], cfg: Config, x_BTD: jax.Array, rope: Rope | None, num_outputs: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (of the first `num_outputs` tokens), keys and values, normed and rotated as the config asks."""

    def heads(name: str) -> jax.Array:
        y = _heads(p, cfg, x_BTD[:, :num_outputs] if name == "query" else x_BTD, name)
        if f"{name}_norm" in p:
            y = layers.norm(p[f"{name}_norm"], y, "rms", cfg.norm_eps)
        return positions.rotate(y, *rope) if rope is not None and name != "value" else y

    return heads("query"), heads("key"), heads("value")


def _heads(p: dict[str, Any], cfg: Config, x_BTD: jax.Array, name: str) -> jax.Array:
    """One projection, split into heads, [B, T, N or K, H]."""
    count, axis = (cfg.num_heads, "heads") if name == "query" else (cfg.kv_heads, "kv_heads")
    y = layers.dense(p[name], x_BTD, out=axis).reshape(*x_BTD.shape[:2], count, cfg.head_width)
    return sharding.constrain(y, ("batch", "length", axis, None))


def _project_out(p: dict[str, Any], a_BTNH: jax.Array) -> jax.Array:
    """The attended values of all heads, projected to the model's width."""
    return layers.dense(p["out"], a_BTNH.reshape(*a_BTNH.shape[:2], -1), out=None)


def _attend_cross(
    p: dict[str, Any], cfg: Config, x_BTD: jax.Array, cross: Cross, key: jax.Array | None, implementation: str
) -> jax.Array:
    """The attended values of the encoder's states, [B, T, N, H]."""
    q_BTNH = _heads(p, cfg, x_BTD, "query")
    shape, sources = q_BTNH.shape, cross.k_BSKH.shape[0]
    if sources != shape[0]:  # a source's rows (beams) become further queries of one row
        q_BTNH = q_BTNH.reshape(sources, -1, *shape[2:])
    options: Any = {"scale": cfg.score_scale, "dropout_rate": cfg.attention_dropout, "key": key}
    operands = (q_BTNH, cross.k_BSKH, cross.v_BSKH, cross.mask)
    return attention.attend(*operands, **options, implementation=implementation, kind=watch.CROSS).reshape(shape)


def cross_keys_values(p: dict[str, Any], cfg: Config, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys and values [B, S, K, H] of cross-attention.

    Args:
      p: a block's "cross".
      cfg: the model's config.
      x_BSD: the encoder's states.
    """
    return _heads(p, cfg, x_BSD, "key"), _heads(p, cfg, x_BSD, "value")


def cross_attention(
    p: dict[str, Any],
    cfg: Config,
    x_BTD: jax.Array,
    keys_BSD: jax.Array,
    values_BSD: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Attention alone, without a mask, a norm or a residual, [B, T, D].

    Args:
      p: a block's "cross" or "attention".
      cfg: the model's config.
      x_BTD: makes the queries.
      keys_BSD: makes the keys.
      values_BSD: makes the values; None: `keys_BSD`.
      key: the dropout key of the probabilities; None: evaluation.
    """
    values_BSD = keys_BSD if values_BSD is None else values_BSD
    cross = Cross(_heads(p, cfg, keys_BSD, "key"), _heads(p, cfg, values_BSD, "value"), Mask())
    return _project_out(p, _attend_cross(p, cfg, x_BTD, cross, key, cfg.attention))


def attention_weights(p: dict[str, Any], cfg: Config, x_BTD: jax.Array) -> jax.Array:
    """The attention probabilities of a block without a mask, to look at, float32 [B, N, T, T]; rows sum to 1.

    Args:
      p: one layer's parameters.
      cfg: the model's config.
      x_BTD: the block's input.
    """
    q_BTNH, k_BTKH, _ = _project_qkv(p["attention"], cfg, _pre_norm(p["attention_norm"], cfg, x_BTD), None)
    k_BTNH = jnp.repeat(k_BTKH, cfg.num_heads // cfg.kv_heads, axis=2)
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH * cfg.score_scale, k_BTNH, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores_BNTS, axis=-1)


# ------------------------------------------------------------------------------------------------------------ decoding


def apply_cached(
    p: dict[str, Any],
    cfg: Config,
    x_BTD: jax.Array,
    cache: KVCache,
    layer: jax.Array | int,
    *,
    rope: Rope | None = None,
    bias_NS: jax.Array | None = None,
    window: int | None = None,
    cross: Cross | None = None,
) -> tuple[jax.Array, KVCache]:
    """One new token of each row (T = 1) after the block, and the cache with its keys and values in slot `index`.

    Args:
      p: one layer's parameters, of `declare` or `for_decoding`.
      cfg: the model's config.
      x_BTD: the residual stream, T = 1.
      cache: the cache of all layers, with a free slot.
      layer: this layer's number; it may be traced.
      rope: as for `apply`.
      bias_NS: added to the scores.
      window: how many tokens before it the new one sees; None: all.
      cross: as for `apply`.
    """
    q_BTNH, k_BTKH, v_BTKH = _project_qkv(p["attention"], cfg, _pre_norm(p["attention_norm"], cfg, x_BTD), rope)
    cache = attention.write(cache, layer, k_BTKH, v_BTKH)
    start_B = cache.start_B if window is None else jnp.maximum(cache.start_B, cache.index - window)
    mask = Mask(start_B=start_B, end_B=(cache.index + 1)[None])
    k_BKSH = jax.lax.dynamic_index_in_dim(cache.k_LBKSH, layer, keepdims=False)
    v_BKSH = jax.lax.dynamic_index_in_dim(cache.v_LBKSH, layer, keepdims=False)
    options: Any = {"bias_NS": bias_NS, "scale": cfg.score_scale, "cap": cfg.score_cap}
    a_BNH = attention.attend_cached(q_BTNH[:, 0], k_BKSH, v_BKSH, mask, **options)
    # Plain cross-attention: for one query in each row, the kernels would first copy the keys to another layout.
    return _after_attention(p, cfg, x_BTD, a_BNH[:, None], cross, _dropout_keys(None, cross)[1:], "xla"), cache


@functools.partial(jax.jit, static_argnums=1)
def for_decoding(stacked: dict[str, Any], num_layers: int) -> list[dict[str, Any]]:
    """The blocks `stacked` as one tree for each of `num_layers` layers, which `apply` and `apply_cached` take as well.

    On CPUs the kernels are transposed. It is one copy of the parameters.
    """
    return _decoding_layout(unstack(stacked, num_layers))


@kernels.choose("decoding_layout")
def _decoding_layout(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return blocks
