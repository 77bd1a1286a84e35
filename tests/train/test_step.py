"""The train step: accumulation, skipping, the average, keys, compilation, and the same numbers on many devices.

The model is a small residual MLP with dropout; it has what the step must handle (stacked matrices and vectors, weights,
randomness) and compiles in a moment.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax import optim, sharding
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib

WIDTH, HIDDEN, LAYERS, ROWS, LENGTH = 8, 16, 2, 32, 4
BLOCK = {
    "up": {
        "kernel": params_lib.Param((WIDTH, HIDDEN), ("embed", "mlp"), params_lib.normal(0.3)),
        "bias": params_lib.Param((HIDDEN,), ("mlp",), params_lib.zeros),
    },
    "down": {"kernel": params_lib.Param((HIDDEN, WIDTH), ("mlp", "embed"), params_lib.normal(0.3))},
}
DECLARATION = {"blocks": params_lib.stack(BLOCK, LAYERS)}
CFG = Optim(peak_lr=1e-2, warmup_steps=2)
TOTAL = 20
KEY = jax.random.key(7)


def make_loss(dropout: float = 0.0):
    """Squared error, summed over the weighted positions; x, y [B, T, D], weights [B, T]."""

    def loss(params, batch, key):
        x_BTD = batch["x"]
        for layer in params_lib.unstack(params["blocks"], LAYERS):
            h_BTF = jnp.tanh(x_BTD @ layer["up"]["kernel"] + layer["up"]["bias"])
            x_BTD = x_BTD + h_BTF @ layer["down"]["kernel"]
        if dropout:
            x_BTD = jnp.where(jax.random.bernoulli(key, 1 - dropout, x_BTD.shape), x_BTD / (1 - dropout), 0)
        error_BT = jnp.sum((x_BTD - batch["y"]) ** 2, -1)
        total, weight = jnp.sum(error_BT * batch["weights"]), jnp.sum(batch["weights"])
        return total, weight, {"error": (total, weight), "rows": (jnp.float32(x_BTD.shape[0]), jnp.float32(1))}

    return loss


def make_batch(seed: int = 0, **changes) -> dict:
    rng = np.random.default_rng(seed)
    batch = {
        "x": rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
        "y": rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32),
        "weights": (rng.random((ROWS, LENGTH)) < 0.7).astype(np.float32),  # every micro-batch weighs something else
    }
    return batch | changes


def build(mesh=None, *, dropout=0.0, recent=0, **options):
    """(state, jitted step) on a mesh; by default on one device."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    optimizer = optim.make(CFG, TOTAL, DECLARATION)
    ema = bool(options.get("ema_decay"))
    state = state_lib.init(jax.random.key(0), DECLARATION, optimizer, mesh, ema=ema, recent=recent)
    step = step_lib.make_step(make_loss(dropout), optimizer, CFG.schedule(TOTAL), **options)
    places = state_lib.state_shardings(DECLARATION, optimizer, mesh, ema=ema, recent=recent)
    return state, step_lib.jit_step(step, places, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))


def copy(tree):
    """A copy on the host: the state itself is donated to the next step."""
    return jax.tree.map(np.array, tree)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_all_differ(a, b):
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.any(np.asarray(x) != np.asarray(y))), a, b)))


def test_one_step_is_the_optimisers_update_of_the_mean_loss():
    state, step = build()
    before, batch = copy(state), make_batch()
    state, metrics = step(state, batch, KEY)

    def mean(params):
        total, weight, _ = make_loss()(params, batch, KEY)
        return total / weight

    value, grads = jax.jit(jax.value_and_grad(mean))(before.params)
    optimizer = optim.make(CFG, TOTAL, DECLARATION)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(before.params), before.params)
    assert_close(state.params, optax.apply_updates(before.params, updates), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["weight"], batch["weights"].sum())
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(copy(grads))))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], CFG.peak_lr / 3, rtol=1e-6)
    assert int(state.step) == 1 and int(metrics["skipped"]) == 0
    np.testing.assert_allclose(metrics["sums"]["error"][0] / metrics["sums"]["error"][1], value, rtol=1e-6)


def test_accumulation_is_the_big_batch():
    """The same up to the order of float32 additions, though the micro-batches weigh differently."""
    results = {}
    for accumulate in (1, 4):
        state, step = build(accumulate=accumulate)
        for seed in range(3):
            state, metrics = step(state, make_batch(seed), KEY)
        results[accumulate] = (state.params, metrics["loss"], metrics["weight"], metrics["grad_norm"])
        rows, micro_batches = metrics["sums"]["rows"]
        assert (rows, micro_batches) == (ROWS, accumulate)
    assert_close(results[4], results[1], rtol=2e-5, atol=1e-6)


def test_micro_batches_hold_every_row_once_and_strided():
    rows = {"x": jnp.arange(12).reshape(6, 2)}
    parts = sharding.micro_batches(rows, 3)["x"]
    assert np.array_equal(parts[:, :, 0] // 2, [[0, 3], [1, 4], [2, 5]])
    with pytest.raises(InputError, match="a batch of 6 rows does not divide into accumulate=4 micro-batches"):
        sharding.micro_batches(rows, 4)


def test_micro_batches_move_no_row_between_devices():
    mesh = sharding.make_mesh()
    place = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    per_part = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    split = jax.jit(lambda x: sharding.micro_batches(x, 4), in_shardings=place, out_shardings=per_part)
    text = split.lower(jax.ShapeDtypeStruct((32, 5), jnp.float32)).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|collective-permute|all-reduce", text)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_non_finite_step_changes_nothing(accumulate, bad):
    """NaN in the data, infinity in the data, and an overflow on the way: state identical to the bit, and counted."""
    state, step = build(accumulate=accumulate, ema_decay=0.9)
    state, _ = step(state, make_batch(0), KEY)
    before = copy(state)
    batch = make_batch(1)
    batch["y"][5, 2, 3] = bad
    batch["weights"][5, 2] = 1
    state, metrics = step(state, batch, KEY)
    assert not np.isfinite(metrics["loss"])
    assert_identical((state.params, state.opt_state, state.ema), (before.params, before.opt_state, before.ema))
    assert (int(state.step), int(state.skipped), int(metrics["skipped"])) == (2, 1, 1)

    state, metrics = step(state, make_batch(2), KEY)  # training goes on, with the learning rate of the second update
    np.testing.assert_allclose(metrics["learning_rate"], CFG.peak_lr * 2 / 3, rtol=1e-6)
    assert np.isfinite(metrics["loss"]) and int(metrics["skipped"]) == 1
    assert_all_differ(state.params, before.params)


def test_a_finite_loss_with_a_non_finite_gradient_is_skipped():
    """sqrt at 0: the value is 0 and the gradient is not a number."""
    optimizer = optim.make(CFG, TOTAL, {"a": params_lib.Param((2,), (None,), params_lib.zeros)})

    def loss(params, batch, key):
        return jnp.sqrt(0 * params["a"]).sum(), jnp.float32(1), {}

    step = step_lib.make_step(loss, optimizer, CFG.schedule(TOTAL))
    state, metrics = step(state_lib.create({"a": jnp.ones(3)}, optimizer), {}, KEY)
    assert float(metrics["loss"]) == 0.0 and int(state.skipped) == 1
    assert np.array_equal(state.params["a"], np.ones(3))


def test_a_batch_of_weight_zero_is_no_nan():
    state, step = build()
    state, metrics = step(state, make_batch(weights=np.zeros((ROWS, LENGTH), np.float32)), KEY)
    assert (float(metrics["loss"]), float(metrics["weight"]), float(metrics["grad_norm"])) == (0.0, 0.0, 0.0)
    assert int(metrics["skipped"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(copy(state.params)))


def test_ema_is_the_average_of_the_parameters():
    state, step = build(ema_decay=0.75)
    want = jax.tree.map(lambda p: np.asarray(p, np.float64), copy(state.params))
    for seed in range(4):
        state, _ = step(state, make_batch(seed), KEY)
        now = jax.tree.map(lambda p: np.asarray(p, np.float64), copy(state.params))
        want = jax.tree.map(lambda average, p: 0.75 * average + 0.25 * p, want, now)
    assert_close(state.ema, want, rtol=1e-6, atol=1e-7)
    assert_all_differ(state.ema, state.params)


def test_ema_decay_and_state_must_agree():
    state, _ = build()
    optimizer = optim.make(CFG, TOTAL, DECLARATION)
    step = step_lib.make_step(make_loss(), optimizer, CFG.schedule(TOTAL), ema_decay=0.5)
    with pytest.raises(ValueError, match=r"ema_decay 0.5 with a state whose ema is off"):
        step(state, make_batch(), KEY)


def test_dropout_is_a_function_of_key_and_step():
    first, step = build(dropout=0.5)
    start = copy(first)
    losses = [float(step(jax.device_put(start), make_batch(), KEY)[1]["loss"]) for _ in range(2)]
    assert losses[0] == losses[1]
    other_key = float(step(jax.device_put(start), make_batch(), jax.random.key(8))[1]["loss"])
    other_step = float(step(jax.device_put(start.replace(step=np.int32(3))), make_batch(), KEY)[1]["loss"])
    assert len({losses[0], other_key, other_step}) == 3


def test_each_micro_batch_has_its_own_dropout_key():
    half = make_batch()
    twice = {name: np.repeat(leaf, 2, axis=0) for name, leaf in half.items()}  # both micro-batches are `half`
    state, step = build(dropout=0.5, accumulate=2)
    params, step_key = copy(state.params), jax.random.fold_in(KEY, 0)
    parts = [make_loss(0.5)(params, half, jax.random.fold_in(step_key, i))[:2] for i in range(2)]
    assert abs(float(parts[0][0] - parts[1][0])) > 1e-3
    _, metrics = step(state, twice, KEY)
    np.testing.assert_allclose(metrics["loss"], sum(p[0] for p in parts) / sum(p[1] for p in parts), rtol=1e-5)


def test_one_compilation_over_many_steps():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    state, step = build(mesh, accumulate=2, ema_decay=0.9)
    for seed in range(4):
        state, _ = step(state, make_batch(seed), KEY)
    assert step._cache_size() == 1


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["data", "all"])
def test_eight_devices_are_one_device(mesh):
    """Dropout and accumulation on, 4 steps: all agree to 1e-5 relative, 1e-6 absolute (sums are reordered)."""
    options = {"dropout": 0.2, "accumulate": 2, "ema_decay": 0.9}
    state_1, step_1 = build(**options)
    state_8, step_8 = build(sharding.make_mesh(**mesh), **options)
    assert_close(copy(state_8.params), copy(state_1.params), rtol=1e-6)  # drawn where they lie, the same draws
    for seed in range(4):
        state_1, metrics_1 = step_1(state_1, make_batch(seed), KEY)
        state_8, metrics_8 = step_8(state_8, make_batch(seed), KEY)
        assert_close(copy(metrics_8), copy(metrics_1), rtol=1e-5)
    assert_close(copy(state_8), copy(state_1), rtol=1e-5, atol=1e-6)


def test_moments_and_average_lie_where_their_parameter_lies():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    optimizer = optim.make(CFG, TOTAL, DECLARATION)
    target = state_lib.abstract(DECLARATION, optimizer, mesh, ema=True)
    kernel = target.params["blocks"]["up"]["kernel"].sharding
    assert kernel.spec == PartitionSpec(None, "fsdp", "tensor")
    for tree in (target.opt_state.mu, target.opt_state.nu, target.ema):
        assert jax.tree.map(lambda x: x.sharding, tree) == jax.tree.map(lambda x: x.sharding, target.params)
    state, _ = build(mesh, ema_decay=0.9)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), target
    )
    shard = state.params["blocks"]["up"]["kernel"].addressable_shards[0].data
    assert shard.shape == (LAYERS, WIDTH // 2, HIDDEN // 2)


def test_a_spike_is_told_and_skipped_when_it_is_to_be():
    """A hundred times the usual loss after 64 usual ones; before these nothing is known of what is usual."""
    results = {}
    for skip in (0.0, 10.0):
        state, step = build(recent=step_lib.RECENT, skip_spikes=skip)
        big = make_batch()
        big["y"] = big["y"] * 10
        for seed in (0, 1):
            state, metrics = step(state, big if seed else make_batch(seed), KEY)
            assert np.isnan(metrics["deviations"]) and int(metrics["skipped"]) == 0, "not yet"
        for seed in range(step_lib.RECENT):
            state, metrics = step(state, make_batch(seed), KEY)
        assert abs(metrics["deviations"]) < 5
        before = copy(state)
        state, metrics = step(state, big, KEY)
        assert metrics["deviations"] > 100 and float(state.recent[-1]) == float(metrics["loss"])
        results[skip] = (before, copy(state), int(metrics["skipped"]))
    before, after, skipped = results[10.0]
    assert skipped == 1
    assert_identical((after.params, after.opt_state), (before.params, before.opt_state))
    before, after, skipped = results[0.0]
    assert skipped == 0
    assert_all_differ(after.params, before.params)


def test_a_loss_that_is_not_finite_is_not_among_the_recent_ones():
    state, step = build(recent=step_lib.RECENT)
    state, _ = step(state, make_batch(), KEY)
    before = copy(state.recent)
    batch = make_batch(1)
    batch["y"][...] = np.nan
    state, _ = step(state, batch, KEY)
    np.testing.assert_array_equal(state.recent, before)
    assert np.isfinite(before).sum() == 1


def test_deviations_are_those_of_a_normal_distribution():
    recent = np.random.default_rng(0).normal(5, 0.5, 10_001).astype(np.float32)
    assert float(step_lib.deviations(recent, 6.0)) == pytest.approx(2, abs=0.1)
    recent[:3000] = 1e9  # outliers
    assert 0.5 < float(step_lib.deviations(recent, 6.0)) < 2
    assert float(step_lib.deviations(np.full(9, 2.0, np.float32), 2.2)) == pytest.approx(10, rel=1e-5), "1 % at least"
