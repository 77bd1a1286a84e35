"""examples/cookbook.py: its model is causal, decodes what it computes in full, and trains on a mesh, and it samples."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pages.reading import ROOT
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.decoding import decode
from transformer_jax.nn import attention
from transformer_jax.nn import params as params_lib


@pytest.fixture(scope="module")
def cookbook():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield importlib.import_module("cookbook")


@pytest.fixture(scope="module")
def model(cookbook):
    cfg = cookbook.Config(vocab_size=257, width=16, num_layers=2, num_heads=2, mlp_width=24)
    return cfg, params_lib.init(jax.random.key(0), cookbook.declare(cfg))


def test_it_fits_on_a_page(cookbook):
    assert len((ROOT / "examples/cookbook.py").read_text(encoding="utf-8").splitlines()) <= 250


def test_no_token_sees_a_later_one(cookbook, model):
    cfg, params = model
    tokens_BT = jnp.arange(12)[None]

    @jax.jit
    def at(token, i):
        changed_BT = tokens_BT.at[0, i].set(token)
        return cookbook.forward(params, cfg, changed_BT, jnp.arange(12))[0][0]

    before, after = at(6, 6), at(200, 6)
    np.testing.assert_array_equal(before[:6], after[:6])
    assert not np.allclose(before[6:], after[6:])


def test_the_cache_decodes_what_the_whole_pass_computes(cookbook, model):
    """Greedy, prompts of two lengths: each row's tokens are the arg max of a pass over that row alone."""
    cfg, params = model
    prompts, new = [[5, 6, 7, 8], [9, 10]], 5
    settings = decode.Sampling(max_new_tokens=new, temperature=0.0)
    cache = attention.empty_cache(cfg.num_layers, 2, 4 + new, cfg.num_heads, cfg.head_width, jnp.dtype("float32"))
    generate = jax.jit(decode.generate, static_argnames=("model", "cfg", "sampling"))
    keys_B = decode.row_keys(jax.random.key(0), 2)
    made = generate(cookbook, params, cfg, cache, decode.left_pad(prompts), keys_B, settings)

    @functools.partial(jax.jit, static_argnames="length")
    def following(tokens_BT, length):
        x_BTD, _ = cookbook.forward(params, cfg, tokens_BT, jnp.arange(tokens_BT.shape[1]))
        return jnp.argmax(cookbook.logits(params, x_BTD[0, length - 1 : -1]), axis=-1)

    for prompt, row in zip(prompts, np.asarray(made.tokens_BM), strict=True):
        tokens_BT = jnp.asarray([[*prompt, *row]])
        np.testing.assert_array_equal(following(tokens_BT, len(prompt)), row)


def test_it_trains_on_eight_devices_and_writes_text(cookbook, model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on the mat; the dog sat on the cat\n" * 200)
    data = corpus.TextCorpus(sources.TextFiles((str(tmp_path / "text.txt"),)), tokenizers.Bytes(), length=32)
    loss = cookbook.main(model[0], data, steps=30, batch_size=8, new_tokens=8)
    assert loss < 3.5 < np.log(257)
    printed = capsys.readouterr().out
    assert "on 8 devices" in printed and "step 30: loss" in printed
    assert "\ndef add(" in printed and "\nimport " in printed
