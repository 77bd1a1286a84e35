"""GPT against a float64 version of the papers, and the identities that a decoder must satisfy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn import reference
from transformer_jax import models
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.positions import RopeScaling

GPT2 = gpt.Config(vocab_size=29, max_length=16, width=16, num_layers=2, num_heads=4)
LLAMA = dataclasses.replace(
    GPT2,
    num_kv_heads=2,
    head_dim=6,
    mlp_width=24,
    activation="silu",
    gated=True,
    norm="rms",
    norm_eps=1e-6,
    bias=False,
    qk_norm=True,
    position="rotary",
    tie_embeddings=False,
)
VARIANTS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama3_rope": dataclasses.replace(
        LLAMA, qk_norm=False, qkv_bias=True, rope_theta=100.0, rope_scaling=RopeScaling(original_length=16)
    ),
    "post_norm": dataclasses.replace(GPT2, norm_order="post", activation="gelu"),
    "sinusoidal": dataclasses.replace(GPT2, position="sinusoidal", activation="relu", norm="rms"),
    "relative": dataclasses.replace(GPT2, position="relative", num_kv_heads=1),
    "alibi": dataclasses.replace(GPT2, position="alibi", bias=False),
}
B, T = 3, 12
TOKENS = np.random.default_rng(0).integers(0, 29, (B, T))
SEGMENTS = np.array([[0] * 12, [0] * 5 + [1] * 7, [3, 3, 2, 2, 2, 2, 2, 2, 2, 2, 5, 5]])
PREFIX = np.array([4, 7, 0])


def double(cfg):
    """Float64 parameters in which every leaf matters."""
    return reference.random_params(gpt.declare(cfg), seed=1)


def single(cfg):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), double(cfg))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_papers(name):
    """Plain, with packed documents, and with a prefix on top: within 1e-5 of float64."""
    cfg = VARIANTS[name]

    @jax.jit
    def ours(params):
        masked = gpt.apply(params, cfg, TOKENS, segments=jnp.asarray(SEGMENTS), prefix=jnp.asarray(PREFIX))
        return gpt.apply(params, cfg, TOKENS), masked

    plain, masked = ours(single(cfg))
    assert plain.dtype == jnp.float32 and plain.shape == (B, T, 29)
    params = double(cfg)
    for b in range(B):
        expected = reference.gpt_logits(params, cfg, TOKENS[b])
        np.testing.assert_allclose(plain[b], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        expected = reference.gpt_logits(params, cfg, TOKENS[b], SEGMENTS[b], PREFIX[b])
        np.testing.assert_allclose(masked[b], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_and_decode_are_the_full_forward_pass(name):
    """Prompts of 6, 4 and 1 tokens, padded on the left; then four more tokens one at a time."""
    cfg = VARIANTS[name]
    params = single(cfg)
    lengths, padded, more = np.array([6, 4, 1]), 6, 4
    start = padded - lengths
    prompts = np.stack([np.r_[np.full(s, 28), TOKENS[b, : padded - s]] for b, s in enumerate(start)])
    follow = np.stack([TOKENS[b, n : n + more] for b, n in enumerate(lengths)])

    @jax.jit
    def decode(params, prompts, start_B, follow):
        logits, cache = gpt.prefill(params, cfg, prompts, gpt.init_cache(cfg, B, padded + more), start_B=start_B)

        def step(cache, token_B):
            logits, cache = gpt.decode_step(params, cfg, token_B, cache)
            return cache, logits

        cache, rest = jax.lax.scan(step, cache, follow.T)
        return jnp.concatenate([logits[None], rest]), cache.index

    logits, index = decode(params, prompts, start, follow)
    assert index == padded + more
    for b, n in enumerate(lengths):
        expected = reference.gpt_logits(double(cfg), cfg, TOKENS[b, : n + more])[n - 1 :]
        np.testing.assert_allclose(logits[:, b], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_no_token_sees_a_later_one(name):
    """d logits[t] / d embedding[s] is exactly zero for s > t; with a prefix, also exactly not zero inside it."""
    cfg = dataclasses.replace(VARIANTS[name], vocab_size=T, tie_embeddings=False)
    tokens = jnp.arange(T)[
        None
    ]  # every position its own row of the table, so that the table's gradient is per position

    def influence(params, prefix):
        def logits(table):
            token = {"token": {"embedding": table}}
            return gpt.apply({**params, "embed": {**params["embed"], **token}}, cfg, tokens, prefix=prefix)[0].sum(-1)

        return jnp.abs(jax.jacrev(logits)(params["embed"]["token"]["embedding"])).max(-1)

    both = jax.jit(lambda params: (influence(params, None), influence(params, jnp.array([4]))))
    causal_TS, prefix_TS = both(single(cfg))
    seen = np.tri(T, dtype=bool)
    assert (np.asarray(causal_TS) != 0).tolist() == seen.tolist()
    seen[:4, :4] = True
    assert (np.asarray(prefix_TS) != 0).tolist() == seen.tolist()


def both_ways(cfg, options):
    """Loss and gradients with dropout for each set of options, in one compilation."""

    def loss(params, cfg):
        key = jax.random.key(3, impl="rbg")  # compiles in a third of the time
        return jnp.sum(jnp.sin(gpt.apply(params, cfg, TOKENS, key=key)))

    configs = [dataclasses.replace(cfg, dropout=0.2, **option) for option in options]
    return jax.jit(lambda params: [jax.value_and_grad(loss)(params, c) for c in configs])(single(cfg))


def same(one, other, tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))


def test_scanned_is_unrolled_and_remat_changes_nothing():
    """Values and gradients with dropout: one parameter tree, the same draws, whichever way the stack is run."""
    options = [
        {"scan_layers": True},
        {"scan_layers": False, "remat": "dots"},
        {"scan_layers": True, "remat": "full"},
    ]
    first, *others = both_ways(LLAMA, options)
    for other in others:
        same(other, first, 2e-5)


def test_dropout_needs_a_key_and_follows_it():
    cfg = dataclasses.replace(GPT2, dropout=0.5)
    run = jax.jit(lambda params, key: gpt.apply(params, cfg, TOKENS, key=key))
    params = single(cfg)
    off, one = run(params, None), run(params, jax.random.key(0))
    np.testing.assert_array_equal(one, run(params, jax.random.key(0)))
    assert (np.asarray(one) != run(params, jax.random.key(1))).any()
    assert (np.asarray(one) != off).any()
    np.testing.assert_allclose(off[0], reference.gpt_logits(double(cfg), cfg, TOKENS[0]), rtol=1e-4, atol=1e-4)


def test_bfloat16_computes_near_and_returns_float32_logits():
    cfg = dataclasses.replace(LLAMA, dtype="bfloat16")
    hidden, logits = jax.jit(lambda p: (gpt.hidden(p, cfg, TOKENS), gpt.apply(p, cfg, TOKENS)))(single(cfg))
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    expected = reference.gpt_logits(double(cfg), cfg, TOKENS[0])
    assert np.abs(logits[0] - expected).max() < 0.05 * np.abs(expected).max()
    assert jax.eval_shape(lambda: gpt.init_cache(cfg, 2, 8)).k_LBKSH.dtype == jnp.bfloat16


def test_one_token_more_than_the_context():
    params = jax.eval_shape(lambda: gpt.init(jax.random.key(0), GPT2))
    for length, f in (
        (17, lambda: jax.eval_shape(lambda p: gpt.apply(p, GPT2, jnp.zeros((1, 17), int)), params)),
        (17, lambda: gpt.init_cache(GPT2, 1, 17)),
        (9, lambda: gpt.prefill(params, GPT2, jnp.zeros((1, 9), int), gpt.init_cache(GPT2, 1, 8))),
    ):
        with pytest.raises(ValueError, match=f"{length} tokens"):
            f()


# ---- Config and declaration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, r"model.num_heads 5 does not divide model.width 768; .*head-dim"),
        ({"num_kv_heads": 5}, r"model.num_kv_heads 5 does not divide model.num_heads 12"),
        ({"num_kv_heads": 0}, r"model.kv_heads is 0; it must be at least 1"),
        ({"num_layers": 0}, r"model.num_layers is 0"),
        ({"vocab_size": -1}, r"model.vocab_size is -1"),
        ({"position": "rotary", "head_dim": 5}, "even head width; it is 5"),
        ({"position": "sinusoidal", "width": 15, "num_heads": 3}, "even model.width; it is 15"),
        ({"dropout": 1.0}, r"model.dropout is 1.0"),
        ({"position": "rope"}, r"model.position is 'rope'; it is one of learned, sinusoidal, rotary"),
        ({"norm": "rmsnorm"}, r"model.norm is 'rmsnorm'"),
        ({"dtype": "bf16"}, r"model.dtype is 'bf16'"),
        ({"rope_scaling": RopeScaling()}, r"model.rope_scaling needs model.position rotary; it is learned"),
    ],
)
def test_a_config_that_contradicts_itself(settings, message):
    with pytest.raises(InputError, match=message):
        gpt.Config(**{"vocab_size": 8, **settings})


def test_published_parameter_counts():
    """GPT-2's four sizes, Llama 2 7B and Llama 3.1 8B, as the checkpoints hold them."""
    sizes = {
        (12, 768, 12): 124_439_808,
        (24, 1024, 16): 354_823_168,
        (36, 1280, 20): 774_030_080,
        (48, 1600, 25): 1_557_611_200,
    }
    for (num_layers, width, num_heads), expected in sizes.items():
        cfg = gpt.Config(vocab_size=50257, num_layers=num_layers, width=width, num_heads=num_heads)
        assert params_lib.count(gpt.declare(cfg)) == expected
    shape = {"num_layers": 32, "width": 4096, "num_heads": 32, "head_dim": None, "qk_norm": False}
    llama2 = dataclasses.replace(LLAMA, vocab_size=32_000, mlp_width=11_008, num_kv_heads=None, **shape)
    llama3 = dataclasses.replace(LLAMA, vocab_size=128_256, mlp_width=14_336, num_kv_heads=8, **shape)
    assert params_lib.count(gpt.declare(llama2)) == 6_738_415_616
    assert params_lib.count(gpt.declare(llama3)) == 8_030_261_248


@pytest.mark.parametrize("name", ["llama3_rope", "relative"])
def test_every_leaf_is_used(name):
    """Each parameter's gradient is somewhere not zero, in every layer: none is declared and then forgotten."""
    cfg = VARIANTS[name]
    params = single(cfg)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(gpt.apply(p, cfg, TOKENS)))))(params)
    for leaf, grad in params_lib.flatten(grads).items():
        if leaf.endswith("key/bias") and cfg.position != "rotary":
            continue  # shifts all of a query's scores alike, which the softmax takes out again
        per_layer = (
            np.asarray(grad).reshape(cfg.num_layers, -1) if leaf.startswith("blocks") else np.asarray(grad)[None]
        )
        assert all(np.abs(layer).max() > 0 for layer in per_layer), leaf


def test_a_config_is_a_static_argument_and_finds_its_family():
    assert hash(LLAMA) == hash(dataclasses.replace(LLAMA)) and dataclasses.replace(LLAMA) == LLAMA
    assert models.family(LLAMA) is gpt
    with pytest.raises(InputError, match="model is a dict, but builtins, which defines it, has no function declare"):
        models.family({})
