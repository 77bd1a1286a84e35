"""The transformer block: attention and MLP, each with its norm, residual and dropout, by a config.

Every family's `Config` has the fields of `BlockConfig`, so one block serves them all.

B batch, T length, S cache slots, D width, N query heads, K key/value heads, H head width, F MLP width, L layers.
"""

import math
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

import jax

from transformer_jax import sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import attention, layers, positions
from transformer_jax.nn.attention import KVCache
from transformer_jax.nn.masks import Mask


class BlockConfig(Protocol):
    """What a block needs to know; `models.gpt.Config` documents each field."""

    @property
    def width(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def mlp_features(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def gated(self) -> bool: ...
    @property
    def norm(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def norm_order(self) -> str: ...
    @property
    def bias(self) -> bool: ...
    @property
    def has_qkv_bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def dropout(self) -> float: ...
    @property
    def init_std(self) -> float: ...
    @property
    def attention(self) -> str: ...


def check(cfg: Any) -> None:
    """What any family's config must meet. Errors: `InputError` naming the field, its value and what it may be."""
    for name, hint in get_type_hints(type(cfg)).items():
        if get_origin(hint) is Literal and getattr(cfg, name) not in get_args(hint):
            raise InputError(f"model.{name} is {getattr(cfg, name)!r}; it is one of {', '.join(get_args(hint))}")
    for name in ("vocab_size", "max_length", "width", "num_layers", "num_heads", "kv_heads", "mlp_features"):
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


def declare(cfg: BlockConfig) -> dict[str, Any]:
    """One block's parameters. With pre-norm, kernels that write to the residual stream start smaller by sqrt(2 L)
    (GPT-2); after it, the norms scale what they add."""
    D, H, std = cfg.width, cfg.head_width, cfg.init_std
    out_std = std / math.sqrt(2 * cfg.num_layers) if cfg.norm_order == "pre" else std

    def project(heads: int, axis: str) -> dict[str, Any]:
        return layers.declare_dense(D, heads * H, ("embed", axis), bias=cfg.has_qkv_bias, std=std)

    heads: dict[str, Any] = {
        "query": project(cfg.num_heads, "heads"),
        "key": project(cfg.kv_heads, "kv_heads"),
        "value": project(cfg.kv_heads, "kv_heads"),
        "out": layers.declare_dense(cfg.num_heads * H, D, ("heads", "embed"), bias=cfg.bias, std=out_std),
    }
    if cfg.qk_norm:
        heads |= {name: layers.declare_norm(H, "rms", bias=False) for name in ("query_norm", "key_norm")}
    return {
        "attention_norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
        "attention": heads,
        "mlp_norm": layers.declare_norm(D, cfg.norm, bias=cfg.bias),
        "mlp": layers.declare_mlp(D, cfg.mlp_features, gated=cfg.gated, bias=cfg.bias, std=std, out_std=out_std),
    }


def apply(
    p: dict[str, Any],
    cfg: BlockConfig,
    x_BTD: jax.Array,
    *,
    mask: Mask,
    rope: tuple[jax.Array, jax.Array] | None = None,
    bias_NTS: jax.Array | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """x after the block [B, T, D], and the block's keys and values [B, T, K, H] for whoever fills a cache.

    Arguments: one layer's parameters; config; x; who may attend to whom; (cos, sin) of `positions.rotary_angles`;
    a bias on the scores; dropout's key (None: no dropout).
    """
    attention_key, key_1, key_2 = (None,) * 3 if key is None else jax.random.split(key, 3)
    h_BTD = x_BTD if cfg.norm_order == "post" else layers.norm(p["attention_norm"], x_BTD, cfg.norm, cfg.norm_eps)
    q_BTNH, k_BTKH, v_BTKH = _project(p["attention"], cfg, h_BTD, rope)
    a_BTNH = attention.attend(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask,
        bias_NTS=bias_NTS,
        dropout_rate=cfg.dropout,
        key=attention_key,
        implementation=cfg.attention,
    )
    return _finish(p, cfg, x_BTD, a_BTNH, key_1, key_2), (k_BTKH, v_BTKH)


def apply_cached(
    p: dict[str, Any],
    cfg: BlockConfig,
    x_BTD: jax.Array,
    cache: KVCache,
    layer: jax.Array | int,
    *,
    rope: tuple[jax.Array, jax.Array] | None = None,
    bias_NS: jax.Array | None = None,
) -> tuple[jax.Array, KVCache]:
    """One new token per row (T = 1): its keys and values go into the cache's slot `index` of this layer."""
    h_BTD = x_BTD if cfg.norm_order == "post" else layers.norm(p["attention_norm"], x_BTD, cfg.norm, cfg.norm_eps)
    q_BTNH, k_BTKH, v_BTKH = _project(p["attention"], cfg, h_BTD, rope)
    cache = attention.write(cache, layer, k_BTKH, v_BTKH)
    mask = Mask(start_B=cache.start_B, end_B=(cache.index + 1)[None])
    k_BKSH = jax.lax.dynamic_index_in_dim(cache.k_LBKSH, layer, keepdims=False)
    v_BKSH = jax.lax.dynamic_index_in_dim(cache.v_LBKSH, layer, keepdims=False)
    a_BNH = attention.attend_cached(q_BTNH[:, 0], k_BKSH, v_BKSH, mask, bias_NS=bias_NS)
    return _finish(p, cfg, x_BTD, a_BNH[:, None], None, None), cache


def _project(
    p: dict[str, Any], cfg: BlockConfig, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array] | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, normed and rotated as the config asks."""

    def heads(name: str, count: int, axis: str) -> jax.Array:
        y = layers.dense(p[name], x_BTD, out=axis).reshape(*x_BTD.shape[:2], count, cfg.head_width)
        y = sharding.constrain(y, ("batch", "length", axis, None))
        if f"{name}_norm" in p:
            y = layers.norm(p[f"{name}_norm"], y, "rms", cfg.norm_eps)
        return positions.rotate(y, *rope) if rope is not None and name != "value" else y

    return (
        heads("query", cfg.num_heads, "heads"),
        heads("key", cfg.kv_heads, "kv_heads"),
        heads("value", cfg.kv_heads, "kv_heads"),
    )


def _finish(
    p: dict[str, Any],
    cfg: BlockConfig,
    x_BTD: jax.Array,
    a_BTNH: jax.Array,
    key_1: jax.Array | None,
    key_2: jax.Array | None,
) -> jax.Array:
    """From the attended values to the block's output: projection, residual, MLP, residual."""
    B, T = a_BTNH.shape[:2]
    a_BTD = layers.dense(p["attention"]["out"], a_BTNH.reshape(B, T, -1), out=None)
    x_BTD = x_BTD + layers.dropout(a_BTD, cfg.dropout, key_1)
    if cfg.norm_order == "post":
        x_BTD = layers.norm(p["attention_norm"], x_BTD, cfg.norm, cfg.norm_eps)
    h_BTD = x_BTD if cfg.norm_order == "post" else layers.norm(p["mlp_norm"], x_BTD, cfg.norm, cfg.norm_eps)
    x_BTD = x_BTD + layers.dropout(layers.mlp(p["mlp"], h_BTD, cfg.activation), cfg.dropout, key_2)
    return layers.norm(p["mlp_norm"], x_BTD, cfg.norm, cfg.norm_eps) if cfg.norm_order == "post" else x_BTD
