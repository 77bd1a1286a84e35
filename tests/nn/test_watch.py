"""Attention looked at: every family's probabilities equal NumPy's in float64, and a head of factor 0 is removed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models import bert, gpt, seq2seq
from transformer_jax.nn import params as params_lib
from transformer_jax.nn import watch

TOKENS = np.random.default_rng(0).integers(2, 20, (2, 7)).astype(np.int32)
SIZES = {"vocab_size": 20, "max_length": 9, "width": 12, "num_layers": 2, "num_heads": 2}


def norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotated(x, theta=10_000.0):
    """Rotate-half, [B, T, N, H]."""
    H = x.shape[-1]
    angles = np.arange(x.shape[1])[:, None] / theta ** (np.arange(0, H, 2) / H)
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))
    return x * cos + np.concatenate([-x[..., H // 2 :], x[..., : H // 2]], -1) * sin


def reference(params, cfg, tokens, window):
    """The definition for a pre-norm GPT in float64: [L, B, N, T, T], and the logits."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    B, T = tokens.shape
    N, K, H = cfg.num_heads, cfg.kv_heads, cfg.head_width
    x = p["embed"]["token"]["embedding"][tokens]
    x = x + (p["embed"]["position"]["embedding"][:T] if cfg.position == "learned" else 0)
    ago = np.arange(T)[:, None] - np.arange(T)
    allowed = (ago >= 0) & (ago < (window or T))
    found = []
    for layer in params_lib.unstack(p["blocks"], cfg.num_layers):
        h, a = norm(x, layer["attention_norm"]), layer["attention"]
        q, k, v = (
            (h @ a[name]["kernel"] + a[name]["bias"]).reshape(B, T, n, H)
            for name, n in (("query", N), ("key", K), ("value", K))
        )
        q, k = (rotated(q), rotated(k)) if cfg.position == "rotary" else (q, k)
        k, v = np.repeat(k, N // K, 2), np.repeat(v, N // K, 2)
        scores = np.einsum("BTNH,BSNH->BNTS", q, k) / np.sqrt(H)
        if cfg.position == "alibi":
            scores = scores - 2.0 ** (-8 * np.arange(1, N + 1) / N)[:, None, None] * np.abs(ago)
        probs = softmax(np.where(allowed, scores, -np.inf))
        found.append(probs)
        y = np.einsum("BNTS,BSNH->BTNH", probs, v).reshape(B, T, N * H)
        x = x + y @ a["out"]["kernel"] + a["out"]["bias"]
        m, h = layer["mlp"], norm(x, layer["mlp_norm"])
        h = np.maximum(h @ m["up"]["kernel"] + m["up"]["bias"], 0)
        x = x + h @ m["down"]["kernel"] + m["down"]["bias"]
    return np.stack(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "rotary", "num_kv_heads": 1, "window": 3},
        {"position": "alibi"},
        {"position": "learned", "scan_layers": True},
    ],
    ids=["rotary, grouped, window", "alibi", "learned, scanned"],
)
def test_gpt_equals_the_definition(changes):
    cfg = gpt.Config(**SIZES, activation="relu", init_std=0.3, **changes)
    params = gpt.init(jax.random.key(0), cfg)
    weights = jax.jit(gpt.attention_weights, static_argnums=1)(params, cfg, TOKENS)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(weights, reference(params, cfg, TOKENS, cfg.window), atol=2e-6)


def test_with_a_cache_each_step_is_a_row_of_the_whole():
    cfg = watch.open_up(gpt.Config(**SIZES, position="rotary", init_std=0.3))
    params = gpt.init(jax.random.key(0), cfg)
    whole = gpt.attention_weights(params, cfg, TOKENS)

    def step(params, tokens):
        _, cache = gpt.prefill(params, cfg, tokens[:, :-1], gpt.init_cache(cfg, 2, 8))
        with watch.attention() as seen:
            gpt.decode_step(params, cfg, tokens[:, -1], cache)
        return seen.probabilities(watch.CACHED)

    np.testing.assert_allclose(jax.jit(step)(params, TOKENS)[..., 0, :7], whole[..., -1, :], atol=1e-6)


def test_an_encoder_does_not_look_at_padding_and_its_states_are_unchanged():
    """With a bias of distances and a local window, in every second layer."""
    cfg = bert.Config(
        **SIZES, position="rotary", relative_bias=True, local_window=2, global_every=2, heads=("mlm",), init_std=0.3
    )
    params = bert.init(jax.random.key(0), cfg)

    def both(params, tokens, lengths):
        with watch.attention() as seen:
            states = bert.apply(params, watch.open_up(cfg), tokens, lengths=lengths)
        weights = bert.attention_weights(params, cfg, tokens, lengths=lengths)
        return states, bert.apply(params, cfg, tokens, lengths=lengths), weights, seen.probabilities(watch.SELF)

    watched, states, weights, same = jax.jit(both)(params, TOKENS, jnp.array([7, 4]))
    np.testing.assert_allclose(watched, states, atol=1e-5)
    np.testing.assert_array_equal(weights, same)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert np.all(weights[:, 1, :, :4, 4:] == 0)
    far = np.abs(np.arange(7)[:, None] - np.arange(7)) > 2
    assert np.all(weights[1, 0][..., far] == 0) and np.all(weights[0, 0][..., far] > 0)


def test_a_translator_has_three_kinds():
    cfg = seq2seq.Config(**SIZES, num_decoder_layers=1, position="relative", scale_scores=False, init_std=0.3)
    params = seq2seq.init(jax.random.key(0), cfg)
    found = jax.jit(seq2seq.attention_weights, static_argnums=1)(
        params, cfg, TOKENS, TOKENS[:, :5], source_lengths=jnp.array([7, 3])
    )
    assert [x.shape for x in found] == [(2, 2, 2, 7, 7), (1, 2, 2, 5, 5), (1, 2, 2, 5, 7)]
    for weights in found:
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert np.all(found.cross[:, 1, :, :, 3:] == 0) and np.all(np.triu(found.decoder[0, 0, 0], 1) == 0)


def test_a_factor_of_zero_is_the_model_without_the_head():
    """The same as with the head's rows of the output kernel at zero."""
    cfg = gpt.Config(**SIZES, init_std=0.3)
    params = gpt.init(jax.random.key(0), cfg)
    kernel = params["blocks"]["attention"]["out"]["kernel"]
    deleted = jax.tree.map(lambda x: x, params)
    deleted["blocks"]["attention"]["out"]["kernel"] = kernel.at[1, :6].set(0)  # layer 1, head 0

    @jax.jit
    def without(params, factors):
        with watch.attention(factors={"self": factors}):
            return gpt.hidden(params, watch.open_up(cfg), TOKENS)

    wanted = jax.jit(gpt.hidden, static_argnums=1)(deleted, cfg, TOKENS)
    np.testing.assert_allclose(without(params, jnp.ones((2, 2)).at[1, 0].set(0)), wanted, atol=1e-5)
    assert np.abs(without(params, jnp.ones((2, 2))) - wanted).max() > 1e-2
    assert dataclasses.replace(cfg, scan_layers=False, attention="xla") == watch.open_up(cfg)
