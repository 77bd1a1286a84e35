"""GPT: the decoder-only language model, from GPT-2 to Llama, by config.

The defaults are GPT-2 small (Radford et al. 2019; the weights of `gpt2` fit). The modern decoder (Touvron et al. 2023)
is the same functions with norm="rms", position="rotary", gated=True, activation="silu", bias=False, fewer key/value
heads and untied embeddings.

    cfg = gpt.Config(vocab_size=50257)
    params = gpt.init(jax.random.key(0), cfg)
    logits = jax.jit(gpt.apply, static_argnums=1)(params, cfg, tokens)

B batch, T length, S cache slots, D width, N query heads, K key/value heads, H head width, V vocabulary, L layers.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transformer_jax import kernels, sharding
from transformer_jax.contracts import TRAINING
from transformer_jax.errors import InputError
from transformer_jax.nn import attention, block, config, layers, positions, stack, watch
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.attention import KVCache
from transformer_jax.nn.masks import Mask
from transformer_jax.nn.params import Param, normal

Params = Any
TRUNK = ("embed", "blocks", "relative_bias", "final_norm", "head")  # the whole tree: the one head is part of the model
RELATIVE_BUCKETS = 32  # T5's, with distances up to 128


@dataclass(frozen=True, kw_only=True)
class Config(config.TextConfig):
    """A GPT. Frozen and hashable: a static argument of jit.

    Raises:
      InputError: on construction, where sizes contradict each other.
    """

    num_kv_heads: int | None = field(default=None, metadata={"means": "kv_heads"})
    """Key/value heads, each shared by num_heads / num_kv_heads query heads; None: as many as query heads."""
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu_tanh"
    qkv_bias: bool | None = field(default=None, metadata={"means": "has_qkv_bias"})
    """Biases in the query, key and value projections; None: as `bias`."""
    qk_norm: bool = False
    """RMSNorm of each query and key head (Qwen3)."""
    position: Literal["learned", "sinusoidal", "rotary", "relative", "alibi"] = "learned"
    """Learned and sinusoidal are added to the embeddings, which are not scaled by sqrt(width) as in Vaswani et al.;
    rotary rotates queries and keys; relative (T5's buckets) and ALiBi are added to the scores, divided by sqrt(H)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: positions.RopeScaling | None = None
    """Llama 3.1's scaling of the frequencies; None: no scaling."""
    window: int = 0
    """How many tokens a query sees: itself and those right before it; 0: all before it (Mistral)."""
    global_every: int = 0
    """With a window, layers n-1, 2n-1, ... see all tokens before them (Gemma 2: n = 2); 0: no layer does."""
    scale_embedding: bool = False
    """Token embeddings times sqrt(width) (Gemma)."""
    output_norm: bool = False
    """A norm of each sublayer's output before it is added, in addition to the other norms (Gemma 2)."""
    score_width: int | None = field(default=None, metadata={"means": "score_scale"})
    """The attention scores are divided by its square root; None: the width of a head."""
    score_cap: float = 0.0
    """c of c tanh(score / c), the soft cap of the attention scores (Gemma 2); 0: none."""
    logit_cap: float = 0.0
    """The same of the output logits."""
    num_outputs: int | None = None
    """The head predicts only the first tokens of the vocabulary, this many; None: all (Image GPT)."""
    dropout: float = field(default=0.0, metadata=TRAINING)
    """The rate for embeddings, attention probabilities and sublayers' outputs; applied only when a key is given."""

    def __post_init__(self) -> None:
        config.check(self)
        if self.position == "sinusoidal" and self.width % 2:
            raise InputError(f"sinusoidal positions need an even model.width; it is {self.width}")
        for name in ("window", "global_every", "score_cap", "logit_cap"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be at least 0")
        if self.global_every and not self.window:
            raise InputError(
                f"model.global_every is {self.global_every} without a model.window; set one, or set it to 0"
            )
        if self.score_width is not None and self.score_width < 1:
            raise InputError(f"model.score_width is {self.score_width}; it must be at least 1")
        if self.num_outputs is not None and (self.tie_embeddings or not 0 < self.num_outputs <= self.vocab_size):
            raise InputError(
                f"model.num_outputs is {self.num_outputs}; it must be at most model.vocab_size = {self.vocab_size}, "
                "with a head of its own (--model.no-tie-embeddings)"
            )
        if self.rope_scaling is not None and self.position != "rotary":
            raise InputError(f"model.rope_scaling needs model.position rotary; it is {self.position}")

    @property
    def kv_heads(self) -> int:
        """K, the number of key/value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def score_scale(self) -> float:
        """What the attention scores are multiplied by."""
        return 1.0 / math.sqrt(self.head_width if self.score_width is None else self.score_width)

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias


mesh_sizes = config.mesh_sizes


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of `Param`s of `cfg`."""
    embed = {"token": layers.declare_embedding(cfg.vocab_size, cfg.width, "vocab", std=cfg.init_std)}
    if cfg.position == "learned":
        embed["position"] = layers.declare_embedding(cfg.max_length, cfg.width, "position", std=cfg.init_std)
    tree: dict[str, Any] = {"embed": embed, "blocks": params_lib.stack(block.declare(cfg), cfg.num_layers)}
    if cfg.position == "relative":
        shape = (RELATIVE_BUCKETS, cfg.num_heads)
        tree["relative_bias"] = {"embedding": Param(shape, (None, None), normal(cfg.init_std))}
    if cfg.norm_order == "pre":
        tree["final_norm"] = layers.declare_norm(cfg.width, cfg.norm, bias=cfg.bias)
    if not cfg.tie_embeddings:
        outputs = cfg.vocab_size if cfg.num_outputs is None else cfg.num_outputs
        tree["head"] = layers.declare_dense(cfg.width, outputs, ("embed", "vocab"), bias=False, std=cfg.init_std)
    return tree


def init(key: jax.Array, cfg: Config) -> Params:
    """Initial float32 parameters of `cfg` by `key`: Normal(0, init_std^2), residual outputs smaller by sqrt(2 L)."""
    return params_lib.init(key, declare(cfg))


def hidden(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    *,
    segments: jax.Array | None = None,
    prefix: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the final norm, [B, T, D] in cfg.dtype.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
      tokens_BT: integers below V.
      segments: [B, T], integers that separate packed documents: attention does not cross them and positions restart.
        None: nothing is packed.
      prefix: [B], the number of first tokens that every token sees (prefix-LM); None: causal.
      key: the random key for dropout; None: evaluation, without dropout.

    Raises:
      ValueError: T > cfg.max_length.
    """
    mask = Mask(causal=True, segment_BT=segments, prefix_B=prefix)
    position_ids = jnp.arange(tokens_BT.shape[1]) if segments is None else positions.restarted(segments)
    return _forward(params, cfg, tokens_BT, position_ids, mask, key)[0]


def features(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    *,
    lengths: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The state of each row's last token, which has seen the whole text, [B, D] in cfg.dtype.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      tokens_BT: as for `hidden`.
      lengths: [B], tokens of each row before its right padding; None: no padding.
      key: the random key for dropout; None: evaluation, without dropout.
    """
    return layers.last_token(hidden(params, cfg, tokens_BT, key=key), lengths)[:, 0]


def head(params: Params, cfg: Config) -> jax.Array:
    """The output matrix [D, V] in `params`, for `losses.linear_cross_entropy`; `cfg` says whether it is tied."""
    return layers.tied_kernel(params["embed"]["token"]) if cfg.tie_embeddings else layers.matrix(params["head"])


def apply(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    *,
    segments: jax.Array | None = None,
    prefix: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Logits of the next token at each position, [B, T, V] float32.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      tokens_BT: as for `hidden`.
      segments: as for `hidden`.
      prefix: as for `hidden`.
      key: as for `hidden`.
    """
    return _logits(params, cfg, hidden(params, cfg, tokens_BT, segments=segments, prefix=prefix, key=key))


def attention_weights(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    *,
    segments: jax.Array | None = None,
    prefix: jax.Array | None = None,
) -> jax.Array:
    """The attention probabilities of each layer and head, float32 [L, B, N, T, T]; rows sum to 1.

    Args:
      params: as for `hidden`.
      cfg: as for `hidden`.
      tokens_BT: as for `hidden`.
      segments: as for `hidden`.
      prefix: as for `hidden`.
    """
    with watch.attention() as seen:
        hidden(params, watch.open_up(cfg), tokens_BT, segments=segments, prefix=prefix)
    return seen.probabilities(watch.SELF)


def init_cache(cfg: Config, batch: int, length: int) -> KVCache:
    """A cache without tokens.

    Args:
      cfg: the model's config.
      batch: B.
      length: tokens of each row that fit.

    Raises:
      ValueError: length > cfg.max_length.
    """
    _check_length(cfg, length)
    return attention.empty_cache(cfg.num_layers, batch, length, cfg.kv_heads, cfg.head_width, jnp.dtype(cfg.dtype))


def prefill(
    params: Params, cfg: Config, tokens_BT: jax.Array, cache: KVCache, *, start_B: jax.Array | None = None
) -> tuple[jax.Array, KVCache]:
    """Logits [B, V] after each row's last token, and the cache with the prompts.

    Args:
      params: the parameters, as `init` or `for_decoding` returns them.
      cfg: the model's config.
      tokens_BT: prompts.
      cache: without tokens.
      start_B: the column of each row's first token, whose position is 0: prompts of different lengths are padded on the
        left. None: no padding.

    Raises:
      ValueError: T is above the cache's slots.
    """
    T, S = tokens_BT.shape[1], cache.k_LBKSH.shape[3]
    if T > S:
        raise ValueError(
            f"the prompts have {T} tokens, the cache {S} slots; make it with init_cache(cfg, batch, {T} or more)"
        )
    position_ids = jnp.arange(T)
    if start_B is not None:
        position_ids = jnp.maximum(position_ids - start_B[:, None], 0)
        cache = dataclasses.replace(cache, start_B=start_B.astype(jnp.int32))
    mask = Mask(causal=True, start_B=start_B)
    x_BTD, filled = _forward(params, cfg, tokens_BT, position_ids, mask, None, cache)
    assert filled is not None
    last_BD = sharding.constrain(x_BTD, ("batch", None, None))[:, -1]
    return _next_logits(params, cfg, last_BD), dataclasses.replace(filled, index=filled.index + T)


def decode_step(params: Params, cfg: Config, token_B: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Logits [B, V] of the token after `token_B`, and the cache with it.

    Args:
      params: the parameters, as `init` or `for_decoding` returns them.
      cfg: the model's config.
      token_B: the next token of each row.
      cache: with a free slot (`cache.index` < its slots), which a compiled function cannot check.
    """
    position_B1 = (cache.index - cache.start_B)[:, None]
    rope = _rope(cfg, position_B1)
    slots_S = jnp.arange(cache.k_LBKSH.shape[3])
    bias = _bias(params, cfg, cache.index[None], slots_S)
    bias_NS = None if bias is None else bias[:, 0]

    def step(window: int | None, p: Any, carry: Any, layer: Any, key: jax.Array | None) -> Any:
        x_BTD, cache = carry
        return block.apply_cached(p, cfg, x_BTD, cache, layer, rope=rope, bias_NS=bias_NS, window=window)

    settings: Any = {"num_layers": cfg.num_layers, "scan": cfg.scan_layers, "remat": "none", "key": None}
    with sharding.replicated_length():
        carry = (_embed(params, cfg, token_B[:, None], position_B1), cache)
        steps = [functools.partial(step, window) for window in _windows(cfg)]
        x_BTD, filled = stack.run(steps, params["blocks"], carry, **settings)
        x_BTD = _final_norm(params, cfg, x_BTD)
    filled = dataclasses.replace(filled, index=cache.index + 1)
    return _next_logits(params, cfg, x_BTD[:, 0]), filled


def reorder(cache: KVCache, rows_R: jax.Array) -> KVCache:
    """The cache whose row r is row `rows_R[r]` of `cache`, for beam search; R may differ from the cache's rows."""
    return attention.reorder(cache, rows_R)


def repeat(cache: KVCache, times: int) -> KVCache:
    """The `cache` with each row `times` times, side by side: the beams of one prompt."""
    return attention.reorder(cache, jnp.repeat(jnp.arange(len(cache.start_B)), times))


def for_decoding(params: Params, cfg: Config) -> Params:
    """The same parameters in the layout that `decode_step` reads fastest. `prefill` takes either.

    Where layers are unrolled, each has arrays of its own, and on CPUs its kernels are transposed: one copy of the
    blocks. A slice of stacked arrays would be copied for every token, on a CPU several times the work of the step.
    Scanned layers stay stacked.

    Args:
      params: the parameters, as `init` returns them.
      cfg: the model's config.
    """
    if cfg.scan_layers or isinstance(params["blocks"], list):
        return params
    return dict(params) | {"blocks": block.for_decoding(params["blocks"], cfg.num_layers)}


def _forward(
    params: Params,
    cfg: Config,
    tokens_BT: jax.Array,
    position_ids: jax.Array,
    mask: Mask,
    key: jax.Array | None,
    cache: KVCache | None = None,
) -> tuple[jax.Array, KVCache | None]:
    """Embeddings, blocks and final norm; each layer's keys and values are written to the cache, if there is one.

    `position_ids`: the tokens' positions, [T] or [B, T]. `mask`: of a layer without a window.
    """
    _check_length(cfg, tokens_BT.shape[1])
    embed_key, blocks_key = (None, None) if key is None else jax.random.split(key)
    x_BTD = layers.dropout(_embed(params, cfg, tokens_BT, position_ids), cfg.dropout, embed_key)
    rope = _rope(cfg, position_ids)
    columns_T = jnp.arange(tokens_BT.shape[1])
    bias_NTS = _bias(params, cfg, columns_T, columns_T)

    def layer_block(window: int | None, p: Any, carry: Any, layer: Any, key: jax.Array | None) -> Any:
        x_BTD, cache = carry
        seen = mask.replace(window=window)  # type: ignore[attr-defined]
        x_BTD, (k_BTKH, v_BTKH) = block.apply(p, cfg, x_BTD, mask=seen, rope=rope, bias_NTS=bias_NTS, key=key)
        return x_BTD, None if cache is None else attention.write(cache, layer, k_BTKH, v_BTKH)

    x_BTD, cache = stack.run(
        [functools.partial(layer_block, window) for window in _windows(cfg)],
        params["blocks"],
        (x_BTD, cache),
        num_layers=cfg.num_layers,
        scan=cfg.scan_layers,
        remat=cfg.remat,
        key=blocks_key,
    )
    return _final_norm(params, cfg, x_BTD), cache


def _embed(params: Params, cfg: Config, tokens_BT: jax.Array, position_ids: jax.Array) -> jax.Array:
    """Token embeddings plus the positions that are added to them, [B, T, D]."""
    x_BTD = layers.embed(params["embed"]["token"], tokens_BT, cfg.dtype)
    x_BTD = x_BTD * jnp.asarray(cfg.width**0.5, x_BTD.dtype) if cfg.scale_embedding else x_BTD
    if cfg.position == "learned":
        table = params["embed"]["position"]["embedding"].astype(cfg.dtype)
        if position_ids.ndim == 1:
            return x_BTD + layers.positions_from(table, 0, position_ids.shape[0])
        return x_BTD + sharding.take(table, position_ids, out=("batch", "length", None), rows="position")
    if cfg.position == "sinusoidal":
        return x_BTD + positions.sinusoidal(position_ids, cfg.width).astype(x_BTD.dtype)
    return x_BTD


def _windows(cfg: Config) -> Sequence[int | None]:
    """How many tokens before it a query sees (None: all), by the layer's number modulo the length of the list."""
    if not cfg.window or not cfg.global_every:
        return [cfg.window - 1 if cfg.window else None]
    return [cfg.window - 1] * (cfg.global_every - 1) + [None]


def _rope(cfg: Config, position_ids: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    if cfg.position != "rotary":
        return None
    return positions.rotary_angles(position_ids, cfg.head_width, theta=cfg.rope_theta, scaling=cfg.rope_scaling)


def _bias(params: Params, cfg: Config, queries_T: jax.Array, keys_S: jax.Array) -> jax.Array | None:
    """The bias on the scores [N, T, S] of positions that need one. Distances do not change with left padding."""
    if cfg.position == "relative":
        return positions.relative_bias(params["relative_bias"]["embedding"], queries_T, keys_S)
    if cfg.position == "alibi":
        return positions.alibi_bias(cfg.num_heads, queries_T, keys_S)
    return None


def _final_norm(params: Params, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    return layers.norm(params["final_norm"], x_BTD, cfg.norm, cfg.norm_eps) if cfg.norm_order == "pre" else x_BTD


def _logits(params: Params, cfg: Config, x_BTD: jax.Array) -> jax.Array:
    kernel_DV = head(params, cfg).astype(x_BTD.dtype)
    axes = ("batch", "length", "vocab")
    logits_BTV = sharding.einsum("BTD,DV->BTV", x_BTD, kernel_DV, out=axes, dtype=jnp.float32)
    return kernels.soft_cap(logits_BTV, cfg.logit_cap) if cfg.logit_cap else logits_BTV


def _next_logits(params: Params, cfg: Config, x_BD: jax.Array) -> jax.Array:
    """Logits of one hidden state for each row, [B, D] -> [B, V] float32."""
    if not cfg.tie_embeddings:
        with sharding.replicated_length():
            return _logits(params, cfg, x_BD[:, None])[:, 0]
    logits_BV = layers.tied_logits(params["embed"]["token"], x_BD)
    return kernels.soft_cap(logits_BV, cfg.logit_cap) if cfg.logit_cap else logits_BV


def _check_length(cfg: Config, length: int) -> None:
    if length > cfg.max_length:
        raise ValueError(f"{length} tokens are more than the model's max_length of {cfg.max_length}")
