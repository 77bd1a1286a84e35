"""Two towers: features, projections, lengths, one tower for both sides, gradients on any mesh through the task."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import config_json, models
from transformer_jax.errors import InputError
from transformer_jax.models import bert, dual, gpt, vit
from transformer_jax.nn import params as params_lib

SIZE: Any = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
IMAGE = vit.Config(image_size=8, patch_size=4, num_classes=0, **SIZE)
TEXT = bert.Config(vocab_size=20, max_length=8, num_types=0, heads=(), dropout=0.0, pooling="mean", **SIZE)
CAUSAL = gpt.Config(vocab_size=20, max_length=8, **SIZE)


left, right = (jax.jit(f, static_argnums=1) for f in (dual.left, dual.right))


def tokens(seed, rows=3, length=6):
    return np.random.default_rng(seed).integers(0, 20, (rows, length)).astype(np.int32)


def some(cfg):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), params_lib.abstract(dual.declare(cfg))
    )


def test_pictures_and_texts():
    cfg = dual.Config(left=IMAGE, right=CAUSAL, width=12, logit_bias=True)
    params = some(cfg)
    images = np.random.default_rng(1).standard_normal((3, 8, 8, 3)).astype(np.float32)
    left_BE = left(params, cfg, images)
    lengths = np.array([2, 6, 4])
    right_BE = right(params, cfg, tokens(0), lengths=lengths)
    assert left_BE.shape == right_BE.shape == (3, 12) and left_BE.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(left_BE, axis=1), 1, rtol=1e-5)
    hidden = gpt.hidden(params["right"], CAUSAL, tokens(0))
    by_hand = hidden[np.arange(3), lengths - 1] @ params["right_projection"]["kernel"]
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    np.testing.assert_allclose(right_BE, by_hand, atol=1e-5)
    scale, bias = np.exp(params["logit_scale"]["scale"][0]), params["logit_bias"]["bias"][0]
    logits = dual.logits(params, cfg, left_BE, right_BE)
    np.testing.assert_allclose(logits, scale * np.asarray(left_BE) @ np.asarray(right_BE).T + bias, atol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "mean", "last", "padded"])
def test_what_is_pooled(pooling):
    """Padding changes nothing, but for "padded", which reads it."""
    cfg = dual.Config(left=dataclasses.replace(TEXT, pooling=pooling), width=16, projected=(), normalize=False)
    params, lengths = some(cfg), np.array([6, 3, 1])
    other = np.where(np.arange(6) < lengths[:, None], tokens(0), 7)
    made, changed = (left(params, cfg, x, lengths=lengths) for x in (tokens(0), other))
    assert (np.abs(made - changed).max() < 1e-6) == (pooling != "padded")
    x_BTD = bert.apply(params["left"], cfg.left, tokens(0), lengths=None if pooling == "padded" else lengths)
    by_hand = {
        "first": x_BTD[:, 0],
        "mean": np.stack([x_BTD[b, :n].mean(0) for b, n in enumerate(lengths)]),
        "last": x_BTD[np.arange(3), lengths - 1],
        "padded": x_BTD[:, -1],
    }[pooling]
    np.testing.assert_allclose(made, by_hand, atol=1e-6)


def test_one_tower_for_both_sides():
    cfg = dual.Config(left=TEXT, width=16, projected=())
    params = dual.init(jax.random.key(0), cfg)
    assert set(params) == {"left", "logit_scale"}
    np.testing.assert_array_equal(left(params, cfg, tokens(0)), right(params, cfg, tokens(0)))
    assert float(jnp.exp(dual.temperature(params, cfg)[0])) == pytest.approx(1 / 0.07, rel=1e-5)


def test_towers_compute_in_the_dtype_of_the_whole():
    cfg = dataclasses.replace(dual.Config(left=IMAGE, right=TEXT, width=16), dtype="bfloat16", attention="xla")
    assert {(t.dtype, t.attention) for t in (cfg.left, cfg.right)} == {("bfloat16", "xla")}
    assert config_json.from_json is not None and models.name(cfg) == "dual"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projected": ("right",)}, "model.width is 12, but the features of model.left.* 16"),
        ({"left": 3}, "model is a int"),
        ({"width": 0}, "must be above 0"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        dual.Config(**{"left": IMAGE, "right": TEXT, "width": 12} | changes)
