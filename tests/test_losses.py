"""Cross-entropy against float64, and the tiled one against the plain one: values, gradients and memory."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from tools.targets import hlo
from transformer_jax import sharding
from transformer_jax.errors import InputError
from transformer_jax.kernels.cross_entropy import num_tiles
from transformer_jax.losses import cross_entropy, linear_cross_entropy

B, T, D, V = 4, 24, 8, 50
RNG = np.random.default_rng(0)
X, KERNEL, BIAS = RNG.standard_normal((B, T, D)), RNG.standard_normal((D, V)), RNG.standard_normal(V)
LABELS = RNG.integers(0, V, (B, T))
WEIGHTS = RNG.uniform(0, 2, (B, T)) * (RNG.uniform(size=(B, T)) > 0.3)
SMOOTH = {"label_smoothing": 0.1, "z_loss": 1e-2}


def by_definition(logits, labels, weights, label_smoothing=0.0, z_loss=0.0):
    """Token by token in float64: the cross-entropy of a target distribution, and z log(Z)^2."""
    total = 0.0
    for b, t in np.ndindex(labels.shape):
        log_z = np.log(np.sum(np.exp(logits[b, t])))
        target = np.full(V, label_smoothing / V)
        target[labels[b, t]] += 1 - label_smoothing
        total += weights[b, t] * (-np.sum(target * (logits[b, t] - log_z)) + z_loss * log_z**2)
    return total, weights.sum()


def f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, SMOOTH])
def test_cross_entropy_is_its_definition(options):
    logits = X @ KERNEL + BIAS
    ours = cross_entropy(*f32(logits), LABELS, *f32(WEIGHTS), **options)
    np.testing.assert_allclose(ours[:2], by_definition(logits, LABELS, WEIGHTS, **options), rtol=1e-5)
    np.testing.assert_allclose(ours.plain, by_definition(logits, LABELS, WEIGHTS)[0], rtol=1e-5)


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary():
    total, weight, _ = cross_entropy(jnp.zeros((2, 3, V)), jnp.zeros((2, 3), int))
    assert weight == 6 and total.dtype == weight.dtype == jnp.float32
    np.testing.assert_allclose(total, 6 * np.log(V), rtol=1e-6)


def tiles(number):
    return {"tile_bytes": 4 * B * T * V // number}


def test_tiled_is_plain():
    """Values and gradients of x, kernel, bias and weights, for one tile, some, and one position at a time."""

    def plain(x, kernel, bias, weights):
        total, weight, reported = cross_entropy(x @ kernel + bias, LABELS, weights, **SMOOTH)
        return total / weight, reported

    def tiled(x, kernel, bias, weights, number):
        options = {"bias_V": bias, **SMOOTH, **tiles(number)}
        total, weight, reported = linear_cross_entropy(x, kernel, LABELS, weights, **options)
        return total / weight, reported

    grad = {"argnums": (0, 1, 2, 3), "has_aux": True}
    numbers = (1, 3, 24, 1000)

    @jax.jit
    def all_of_them(*args):
        values = [tiled(*args, number) for number in numbers]
        return (
            jax.value_and_grad(plain, **grad)(*args),
            values,
            [jax.value_and_grad(tiled, **grad)(*args, number) for number in numbers],
        )

    expected, values, others = all_of_them(*f32(X, KERNEL, BIAS, WEIGHTS))
    total, weight = by_definition(X @ KERNEL + BIAS, LABELS, WEIGHTS, **SMOOTH)
    reported, _ = by_definition(X @ KERNEL + BIAS, LABELS, WEIGHTS)
    np.testing.assert_allclose(expected[0], (total / weight, reported), rtol=1e-5)
    np.testing.assert_allclose(values, [(total / weight, reported)] * len(numbers), rtol=1e-5)
    for other in others:
        for one, two in zip(jax.tree.leaves(expected), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


def test_capped_logits_in_tiles_are_capped_logits():
    """And the cap matters: the logits reach 2 and are capped at 1."""

    def plain(x, kernel, bias):
        logits = jnp.tanh(x @ kernel + bias)
        return cross_entropy(logits, LABELS, WEIGHTS, **SMOOTH)[0]

    def tiled(x, kernel, bias):
        return linear_cross_entropy(x, kernel, LABELS, WEIGHTS, bias_V=bias, cap=1.0, **SMOOTH, **tiles(3))[0]

    args = f32(X, KERNEL, BIAS)
    one, two = jax.jit(lambda *args: [jax.value_and_grad(f, (0, 1, 2))(*args) for f in (plain, tiled)])(*args)
    np.testing.assert_allclose(jax.jit(tiled)(*args), one[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    assert np.abs(X @ KERNEL + BIAS).max() > 2


def test_what_is_reported_trains_nothing():
    """One pass over the logits: the sums with and without smoothing, of which only the first has gradients."""
    x, kernel, logits = f32(X, KERNEL, X @ KERNEL)
    for loss, args in ((linear_cross_entropy, (x, kernel)), (cross_entropy, (logits,))):
        grads = jax.grad(lambda *args, loss=loss: loss(*args, LABELS, **SMOOTH).plain, tuple(range(len(args))))(*args)
        assert not any(np.asarray(g).any() for g in grads)


def test_tiled_is_plain_in_bfloat16():
    """x in bfloat16, parameters in float32: the loss is float32 and the gradients come in their own dtypes."""
    x = jnp.asarray(X, jnp.bfloat16)
    kernel, bias, weights = f32(KERNEL, BIAS, WEIGHTS)

    def plain(x, kernel, bias):
        logits = jnp.einsum("BTD,DV->BTV", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return cross_entropy(logits + bias, LABELS, weights)[0]

    def tiled(x, kernel, bias):
        return linear_cross_entropy(x, kernel, LABELS, weights, bias_V=bias, **tiles(3))[0]

    one, two = jax.jit(lambda *args: [jax.value_and_grad(f, (0, 1, 2))(*args) for f in (plain, tiled)])(x, kernel, bias)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
    assert two[0].dtype == jnp.float32 and [g.dtype for g in two[1]] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for a, b in zip(one[1], two[1], strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=0.01 * np.abs(a).max())  # bfloat16 has 8 bits


def largest_float32(number):
    """Elements of the largest float32 array in the compiled gradient of the loss in so many tiles."""
    x, kernel = f32(X, KERNEL)

    def loss(x, kernel):
        return linear_cross_entropy(x, kernel, LABELS, **tiles(number))[0]

    text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    return max(np.prod([int(n) for n in dims.split(",")]) for dims in re.findall(r"\bf32\[([\d,]+)\]", text))


def test_the_logits_are_never_whole():
    assert largest_float32(1) >= B * T * V  # so the measure sees them
    assert largest_float32(6) <= B * T * V / 6


@pytest.mark.parametrize("length", [1, 7, 24])
def test_a_tile_fits_where_the_length_has_a_divisor(length):
    """Seven positions in two tiles are seven tiles of one; a single position is one tile, however large."""
    x, kernel = f32(X[:, :length], KERNEL)
    whole = linear_cross_entropy(x, kernel, LABELS[:, :length])[0]
    cut = linear_cross_entropy(x, kernel, LABELS[:, :length], tile_bytes=4 * B * V * max(1, length // 2))[0]
    np.testing.assert_allclose(whole, cut, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_labels_of_any_dtype(dtype):
    """Also NumPy's own, and bytes with a vocabulary that has more words than a byte has values."""
    logits = np.random.default_rng(1).standard_normal((1, 3, 300)).astype(np.float32)
    labels = np.array([[1, 44, 255]])
    expected = -np.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1).sum()
    np.testing.assert_allclose(cross_entropy(logits, labels.astype(dtype))[0], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int32, jnp.bfloat16])
def test_weights_of_any_dtype_count_in_float32(dtype):
    """A padding mask is often boolean; it is a weight like any other, and its gradient exists nowhere."""
    x, kernel, logits = f32(X, KERNEL, X @ KERNEL)
    weights = jnp.asarray(WEIGHTS > 0).astype(dtype)
    expected = by_definition(X @ KERNEL, LABELS, (WEIGHTS > 0).astype(float))
    for result in (cross_entropy(logits, LABELS, weights), linear_cross_entropy(x, kernel, LABELS, weights)):
        assert result[0].dtype == result[1].dtype == jnp.float32
        np.testing.assert_allclose(result[:2], expected, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: linear_cross_entropy(x, kernel, LABELS, weights)[0])(x)).all()


def test_a_token_of_weight_zero_changes_nothing():
    x, kernel, weights = f32(X, KERNEL, WEIGHTS)
    other = jnp.where(weights > 0, LABELS, (LABELS + 1) % V)
    f = jax.jit(jax.value_and_grad(lambda x, labels: linear_cross_entropy(x, kernel, labels, weights)[0]))
    value, grad = f(x, jnp.asarray(LABELS))
    assert value == f(x, other)[0]
    assert not np.asarray(grad)[WEIGHTS == 0].any()


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (2, 2, 1, 2), (2, 1, 2, 2)])
def test_tiles_on_a_mesh_send_the_kernels_gradient_once(shape):
    """Eight tiles on eight devices: values and gradients of one, and not an all-reduce of the kernel's in each tile."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((16, 32, 8), (8, 64)))
    labels = jnp.asarray(rng.integers(0, 64, (16, 32)))
    settings = {"label_smoothing": 0.1}

    def loss(x, kernel, labels, **tiled):
        return linear_cross_entropy(x, kernel, labels, **settings, **tiled)[0]

    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel, labels)
    mesh = sharding.make_mesh(*shape)
    axes = (("batch", "length", None), ("embed", "vocab"), ("batch", "length"))
    places = [
        NamedSharding(mesh, sharding.partition_spec(a, x.shape, mesh))
        for a, x in zip(axes, (x, kernel, labels), strict=True)
    ]

    @partial(jax.jit, in_shardings=places, out_shardings=(None, (places[0], places[1])))
    def step(x, kernel, labels):
        return jax.value_and_grad(partial(loss, tile_bytes=4 * 64 * 16 * 32 // 64), argnums=(0, 1))(x, kernel, labels)

    with jax.set_mesh(mesh):
        compiled = step.lower(x, kernel, labels).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), compiled(x, kernel, labels), expected
    )
    whole = kernel.nbytes // shape[3]  # of a vocabulary that is cut, a device's part
    large = [c for c in hlo.collectives(compiled.as_text()) if c.bytes >= whole]
    assert all(c.count == 1 for c in large), large
    assert any(c.kind == "all-reduce" for c in large)


def test_how_many_tiles():
    def tiles(rows, length, columns, chip="TPU v5p", **changes):
        return num_tiles(rows, length, columns, "tpu", chip, **changes)

    assert [tiles(16, 1024, 50257), tiles(16, 256, 32000), tiles(8, 80, 30522)] == [16, 2, 1]  # of 256 MiB at most
    assert tiles(1, 7, 2**26) == 7 and tiles(64, 1, 2**26) == 1  # a tile has at least a position of every row
    assert tiles(1, 8192, 128256) == 8  # 1,024 positions, though 513 MB
    # At least 512 positions where the chip gains from as few, and a tile that fits stays whole.
    v5e = [(16, 256, 32000), (8, 1024, 50257), (8, 80, 30522), (64, 127, 32000), (8, 256, 65), (32, 1024, 12576)]
    assert [tiles(*sizes, "TPU v5 lite") for sizes in v5e] == [8, 16, 1, 127, 1, 32]
    assert [tiles(*sizes) for sizes in v5e] == [2, 8, 1, 127, 1, 8]
    assert tiles(16, 256, 32000, "TPU v5 lite", tile_bytes=2**28) == 2


@pytest.mark.parametrize("label", [-100, V])
def test_what_is_no_label_needs_weight_0(label):
    """It changes nothing then, in either loss; else it is refused, or where nothing can be, makes no number."""
    x, kernel, weights = f32(X, KERNEL, WEIGHTS)
    others = jnp.where(weights > 0, LABELS, label)

    def both(labels, weights):
        tiled = linear_cross_entropy(x, kernel, labels, weights, **tiles(3))
        return cross_entropy(x @ kernel, labels, weights)[:2], tiled[:2]

    np.testing.assert_array_equal(both(others, weights), both(LABELS, weights))
    wrong = others.at[1, 2].set(label)
    for loss in (
        lambda labels: cross_entropy(x @ kernel, labels, jnp.ones_like(weights)),
        lambda labels: linear_cross_entropy(x, kernel, labels),
    ):
        with pytest.raises(InputError, match=f"label {label} is none of the 50 .*give weight 0"):
            loss(wrong)
        made = jax.jit(loss)(wrong)
        assert jnp.isnan(made.sum / made.weight), "in a compiled function the mean is not a number"
