"""Schedules against their published formulas and AdamW against a float64 NumPy loop of PyTorch's algorithm."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax import optim
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.params import Param, zeros
from transformer_jax.optim import Optim

NANOGPT = Optim(peak_lr=6e-4, warmup_steps=20, decay_steps=90, final_lr_fraction=0.1, beta1=0.9, beta2=0.95)


def nanogpt_lr(it: int, lr: float, min_lr: float, warmup: int, decay: int) -> float:
    """The learning rate as nanoGPT's README and train.py define it."""
    if it < warmup:
        return lr * (it + 1) / (warmup + 1)
    if it > decay:
        return min_lr
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * (it - warmup) / (decay - warmup))) * (lr - min_lr)


def rates(cfg: Optim, total_steps: int, counts) -> np.ndarray:
    return np.asarray(jax.vmap(cfg.schedule(total_steps))(jnp.asarray(counts, jnp.int32)), np.float64)


def test_cosine_is_nanogpts():
    counts = range(120)
    want = [nanogpt_lr(n, 6e-4, 6e-5, 20, 90) for n in counts]
    np.testing.assert_allclose(rates(NANOGPT, 120, counts), want, rtol=3e-6)


def test_cosine_ends_with_the_run_when_no_end_is_given():
    cfg = Optim(peak_lr=1.0, warmup_steps=2, final_lr_fraction=0.0)
    want = [nanogpt_lr(n, 1.0, 0.0, 2, 10) for n in range(11)]
    np.testing.assert_allclose(rates(cfg, 10, range(11)), want, atol=1e-7)


def test_linear():
    cfg = Optim(peak_lr=1.0, lr_schedule="linear", warmup_steps=3, final_lr_fraction=0.2)
    want = [0.25, 0.5, 0.75, *(1 - 0.8 * k / 8 for k in range(9)), 0.2, 0.2]
    np.testing.assert_allclose(rates(cfg, 11, range(14)), want, rtol=1e-6)


def test_rsqrt_is_that_of_the_transformer():
    width, warmup = 512, 4000
    published = [width**-0.5 * min(step**-0.5, step * warmup**-1.5) for step in (1, 2, 1000, 4000, 4001, 100_000)]
    cfg = Optim(peak_lr=(width * warmup) ** -0.5, lr_schedule="rsqrt", warmup_steps=warmup - 1)
    np.testing.assert_allclose(rates(cfg, 100, [0, 1, 999, 3999, 4000, 99_999]), published, rtol=1e-6)


def test_constant_and_wsd():
    constant = Optim(peak_lr=0.5, lr_schedule="constant", warmup_steps=1)
    np.testing.assert_allclose(rates(constant, 9, [0, 1, 2, 1000]), [0.25, 0.5, 0.5, 0.5])
    wsd = Optim(peak_lr=1.0, lr_schedule="wsd", warmup_steps=1, cooldown_steps=4, final_lr_fraction=0.0)
    np.testing.assert_allclose(rates(wsd, 10, range(12)), [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0], atol=1e-7)


MATRIX = {"a": Param((3, 1), (None, None), zeros)}
VECTORS = {name: Param((2,), (None,), zeros) for name in ("a", "b")}
DECLARATION = {
    "blocks": params_lib.stack({"kernel": params_lib.Param((4, 3), ("embed", "mlp"), params_lib.normal(1.0))}, 2)
    | params_lib.stack({"scale": params_lib.Param((4,), (None,), params_lib.ones)}, 2),
    "head": params_lib.Param((4, 5), ("embed", "vocab"), params_lib.normal(1.0)),
}


def adamw_float64(params: dict, all_grads: list[dict], cfg: Optim, decayed: set[str]) -> dict:
    """torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW as documented, in float64; decay on these leaves only."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    for it, grads in enumerate(all_grads):
        lr = nanogpt_lr(it, cfg.peak_lr, cfg.peak_lr * cfg.final_lr_fraction, cfg.warmup_steps, cfg.decay_steps)
        g = {k: np.asarray(x, np.float64) for k, x in grads.items()}
        norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        g = {k: x * min(1.0, cfg.clip_norm / (norm + 1e-6)) for k, x in g.items()}
        for k in p:
            p[k] = p[k] * (1 - lr * (cfg.weight_decay if k in decayed else 0.0))
            m[k] = cfg.beta1 * m[k] + (1 - cfg.beta1) * g[k]
            v[k] = cfg.beta2 * v[k] + (1 - cfg.beta2) * g[k] ** 2
            denominator = np.sqrt(v[k]) / math.sqrt(1 - cfg.beta2 ** (it + 1)) + cfg.eps
            p[k] -= lr / (1 - cfg.beta1 ** (it + 1)) * m[k] / denominator
    return p


def test_adamw_is_pytorchs():
    cfg = Optim(peak_lr=0.05, warmup_steps=3, decay_steps=25, beta2=0.99, weight_decay=0.5, clip_norm=1.0)
    params = params_lib.init(jax.random.key(0), DECLARATION)
    optimizer = optim.make(cfg, 30, DECLARATION)
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    all_grads = []
    now, update = params, jax.jit(optimizer.update)
    for it in range(30):  # some of these gradients are clipped, some are not
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * (0.02 if it % 3 else 1.0), p.dtype), now)
        all_grads.append(params_lib.flatten(grads))
        updates, state = update(grads, state, now)
        now = optax.apply_updates(now, updates)
    want = adamw_float64(params_lib.flatten(params), all_grads, cfg, decayed={"blocks/kernel", "head"})
    for name, leaf in params_lib.flatten(now).items():
        np.testing.assert_allclose(leaf, want[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_decay_reaches_matrices_alone():
    """With zero gradients the update is the decay: -lr * decay * p on matrices, nothing on a stacked vector."""
    cfg = Optim(peak_lr=0.1, lr_schedule="constant", weight_decay=0.5)
    params = params_lib.init(jax.random.key(0), DECLARATION)
    optimizer = optim.make(cfg, 10, DECLARATION)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["kernel"], -0.05 * params["blocks"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(updates["head"], -0.05 * params["head"], rtol=1e-6)
    assert not np.any(updates["blocks"]["scale"])


def test_the_norm_is_clipped_to():
    """The first moments are (1 - beta1) times the clipped gradient; its norm may be given."""
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # norm 5
    for cfg, norm, scale in [
        (Optim(clip_norm=1.0), {}, 1 / 5),
        (Optim(clip_norm=1.0), {"grad_norm": jnp.float32(8.0)}, 1 / 8),
        (Optim(clip_norm=1.0), {"grad_norm": jnp.float32(0.5)}, 1.0),
        (Optim(clip_norm=0.0), {}, 1.0),
    ]:
        optimizer = optim.make(cfg, 10, VECTORS)
        _, state = optimizer.update(grads, optimizer.init(params), params, **norm)
        np.testing.assert_allclose(state.mu["b"], [0.1 * 4 * scale], rtol=1e-6)
        np.testing.assert_allclose(state.nu["a"], [0.05 * (3 * scale) ** 2, 0], rtol=1e-6)


@pytest.mark.parametrize("optimizer", [optim.make(Optim(), 10, MATRIX), optim.skippable(optax.adam(0.1))])
def test_an_update_that_is_not_finite_leaves_the_state(optimizer):
    assert optim.skippable(optimizer) is optimizer
    params, grads = {"a": jnp.ones(3)}, {"a": jnp.array([1.0, 2.0, 3.0])}
    _, state = optimizer.update(grads, optimizer.init(params), params, finite=True)
    bad = {"a": jnp.array([1.0, jnp.nan, jnp.inf])}
    _, after = jax.jit(optimizer.update)(bad, state, params, finite=False)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True))


def test_moments_are_float32():
    params = params_lib.init(jax.random.key(0), DECLARATION)
    state = optim.make(Optim(), 10, DECLARATION).init(params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.ndim} == {"float32"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peak_lr": -1.0}, "optim.peak_lr is -1.0; it must be above 0"),
        (
            {"lr_schedule": "cosin"},
            "optim.lr_schedule is 'cosin'; it must be one of cosine, linear, rsqrt, flat_rsqrt, constant, wsd",
        ),
        ({"beta2": 1.0}, "optim.beta2 is 1.0; it must be in [0, 1)"),
        ({"final_lr_fraction": 2.0}, "optim.final_lr_fraction is 2.0; it must be in [0, 1]: final over peak"),
        (
            {"lr_schedule": "wsd"},
            "optim.cooldown_steps is 0 with schedule 'wsd'; wsd decays over the last cooldown_steps, "
            "and no other schedule uses them",
        ),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(InputError) as error:
        Optim(**values)
    assert str(error.value) == message


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="optim.warmup_steps 20 is more than the 10 steps that the linear schedule"):
        Optim(lr_schedule="linear", warmup_steps=20).schedule(10)


# ---- Learning rates of their own -------------------------------------------------------------------------------------

STACKED = {
    "embed": {"embedding": Param((4, 2), (None, None), zeros)},
    "blocks": params_lib.stack({"kernel": Param((2, 2), (None, None), zeros), "bias": Param((2,), (None,), zeros)}, 3),
    "head": {"kernel": Param((2, 4), (None, None), zeros)},
}


def test_layer_decay_and_groups_multiply_by_path():
    """Three layers: heads 1, layers 0.5, 0.25, 0.125 from the top, embeddings 0.0625."""
    cfg = Optim(layer_decay=0.5, groups=(("blocks/[01]/.*bias$", 0.0), ("^head/", 3.0)))
    scales = optim.lr_scales(cfg, STACKED)
    assert float(scales["embed"]["embedding"]) == 0.0625
    np.testing.assert_array_equal(scales["blocks"]["kernel"].ravel(), [0.125, 0.25, 0.5])
    assert scales["blocks"]["kernel"].shape == (3, 1, 1)
    np.testing.assert_array_equal(scales["blocks"]["bias"].ravel(), [0, 0, 0.5])
    assert float(scales["head"]["kernel"]) == 3


def test_the_updates_are_scaled_and_what_is_frozen_stays_to_the_bit():
    cfg = Optim(groups=(("embed|blocks/0/", 0.0), ("head", 0.5)), clip_norm=0.0, weight_decay=0.1)
    params = params_lib.init(
        jax.random.key(0),
        jax.tree.map(
            lambda p: Param(p.shape, p.axes, params_lib.normal(1.0)), STACKED, is_leaf=lambda x: isinstance(x, Param)
        ),
    )
    scales = optim.lr_scales(cfg, STACKED)
    grads = jax.grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(optim.freeze(p, scales))))(params)
    assert not np.any(grads["embed"]["embedding"]) and not np.any(grads["blocks"]["kernel"][0])
    np.testing.assert_allclose(grads["blocks"]["kernel"][1:], 2 * params["blocks"]["kernel"][1:])
    ours, plain = optim.make(cfg, 10, STACKED), optim.make(Optim(clip_norm=0.0, weight_decay=0.1), 10, STACKED)
    updates, reference = (o.update(grads, o.init(params), params)[0] for o in (ours, plain))
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after["embed"]["embedding"], params["embed"]["embedding"])
    np.testing.assert_array_equal(after["blocks"]["kernel"][0], params["blocks"]["kernel"][0])
    np.testing.assert_allclose(updates["blocks"]["kernel"][1:], reference["blocks"]["kernel"][1:], rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["kernel"], 0.5 * reference["head"]["kernel"], rtol=1e-6)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match=r"'encoder' matches no parameter; the paths are blocks/bias"):
        optim.lr_scales(Optim(groups=(("encoder", 0.0),)), STACKED)
    with pytest.raises(InputError, match=r"'\(', which is no regular expression"):
        Optim(groups=(("(", 1.0),))
