"""Contrastive losses against NumPy in float64, over meshes, and in micro-batches."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools.targets import collectives
from transformer_jax import sharding
from transformer_jax.losses import contrastive

B, E, H = 16, 8, 2


def sides(seed=0):
    rng = np.random.default_rng(seed)
    left, right, negatives = (rng.standard_normal(shape).astype(np.float32) for shape in ((B, E), (B, E), (B, H, E)))
    weights = np.ones(B, np.float32)
    weights[[3, 15]] = 0
    return left, right + left, negatives, weights


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(kind, left, right, negatives, weights, scale, bias):
    """The definitions, pair by pair, in float64; rows of weight 0 are not there at all."""
    rows = [i for i in range(B) if weights[i]]
    left, right = left[rows].astype(np.float64), right[rows].astype(np.float64)
    more = negatives[rows].reshape(-1, negatives.shape[-1]).astype(np.float64)
    logits = scale * unit(left) @ unit(np.concatenate([right, more])).T
    n, total = len(rows), 0.0
    for i in range(n):
        if kind == "softmax":
            total -= 0.5 * math.log(math.exp(logits[i, i]) / np.exp(logits[i]).sum())
            total -= 0.5 * math.log(math.exp(logits[i, i]) / np.exp(logits[:, i]).sum())
        else:
            signs = np.where(np.arange(logits.shape[1]) == i, 1, -1)
            total += np.log1p(np.exp(-signs * (logits[i] + bias))).sum()
    return total, n, sum(logits[i].argmax() == i for i in range(n))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_definition(kind):
    """With padding, hard negatives and two widths; the recall is of the whole embeddings."""
    left, right, negatives, weights = sides()
    loss = contrastive.info_nce if kind == "softmax" else functools.partial(contrastive.sigmoid, bias=-3.0)
    made = loss(left, right, 5.0, weights_B=weights, negatives_BHE=negatives, sizes=(4, 8))
    whole = by_hand(kind, left, right, negatives, weights, 5.0, -3.0)
    short = by_hand(kind, left[:, :4], right[:, :4], negatives[..., :4], weights, 5.0, -3.0)
    np.testing.assert_allclose(made, [(whole[0] + short[0]) / 2, whole[1], whole[2]], rtol=2e-5)
    assert 2 < whole[2] < 14


def test_texts_that_share_tokens_are_targets_too():
    """Both directions by hand in float64; the padding row is in no sum. Equal texts share the target evenly."""
    left, right, _, weights = sides(2)
    tokens = np.random.default_rng(3).integers(2, 12, (B, 5))
    tokens[:, 0] = 1  # of every text, so it counts for nothing
    tokens[7, 1:4] = tokens[2, [3, 1, 2]]
    lengths = np.full(B, 4)
    shared = contrastive.shared_tokens(tokens, lengths, weights, vocab_size=12, share=0.5)
    rows = [i for i in range(B) if weights[i]]
    bags = np.array([[v in tokens[i, : lengths[i]] for v in range(12)] for i in rows], float)
    bags *= np.log(len(rows) / np.maximum(bags.sum(0), 1))
    bags /= np.linalg.norm(bags, axis=1, keepdims=True)
    target = 0.5 * (bags @ bags.T) ** 2
    target[bags @ bags.T > 0.999] = 1
    assert shared[2, 7] == 1 and 0 < np.median(target) < 0.5
    np.testing.assert_allclose(np.asarray(shared)[np.ix_(rows, rows)], target, atol=1e-5)
    made = contrastive.info_nce(left, right, 5.0, weights_B=weights, shared_BB=shared)
    logits = 5.0 * unit(left[rows].astype(np.float64)) @ unit(right[rows].astype(np.float64)).T
    log_p = [logits - np.log(np.exp(logits).sum(axis, keepdims=True)) for axis in (1, 0)]
    nats = [-(target / target.sum(axis, keepdims=True) * log_p[i]).sum() for i, axis in enumerate((1, 0))]
    np.testing.assert_allclose(made.sum, sum(nats) / 2, rtol=1e-5)


def test_equal_embeddings_have_the_loss_of_a_guess():
    """log(B), at which a run stays that learns nothing; and nothing is found."""
    same = np.ones((B, E), np.float32)
    made = contrastive.info_nce(same, same, 100.0)
    np.testing.assert_allclose(made.sum / made.weight, math.log(B), rtol=1e-6)
    assert float(made.found) <= 1


def test_a_clipped_scale_can_come_back():
    def gradient(x, sign):
        return jax.grad(lambda x: sign * contrastive.clipped_scale(x, 100.0))(jnp.float32(x))

    assert float(contrastive.clipped_scale(jnp.float32(9.0), 100.0)) == pytest.approx(100.0, rel=1e-5)
    assert gradient(9.0, -1) == 0 and gradient(9.0, 1) == pytest.approx(100.0, rel=1e-5)  # up: stopped; down: not
    assert gradient(1.0, -1) == pytest.approx(-math.e, rel=1e-5)
    assert float(contrastive.clipped_scale(jnp.float32(9.0), 0)) == pytest.approx(math.exp(9.0), rel=1e-5)


def of(kind, left, right, negatives, weights, scale):
    """The mean loss, which a step takes the gradient of."""
    options = {"weights_B": weights, "negatives_BHE": negatives, "sizes": (4, 8)}
    if kind == "shared":
        texts = jnp.arange(3 * B).reshape(B, 3) * 7 % 10
        shared = contrastive.shared_tokens(texts, jnp.full(B, 3), weights, vocab_size=10, share=0.5)
        made = contrastive.info_nce(left, right, scale, weights, shared_BB=shared)
        return made.sum / made.weight
    loss = contrastive.info_nce if kind == "softmax" else functools.partial(contrastive.sigmoid, bias=-3.0)
    made = loss(left, right, scale, **options)
    return made.sum / made.weight


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("softmax", "data8"),
        ("sigmoid", "data2-fsdp2-tensor2"),
        pytest.param("softmax", "data2-fsdp2-tensor2", marks=pytest.mark.slow),
        pytest.param("sigmoid", "data8", marks=pytest.mark.slow),
    ],
)
def test_many_devices_have_the_loss_and_gradients_of_one(kind, mesh):
    """To 1e-5. What is sent: the right sides once forwards, their gradients once backwards, and vectors."""
    left, right, negatives, weights = sides(1)
    operands = (left, right, negatives, weights, np.float32(5.0))
    step = jax.value_and_grad(functools.partial(of, kind), argnums=(0, 1, 2, 4))
    expected = jax.jit(step)(*operands)
    sizes = collectives.MESHES[mesh]
    made = collectives.mesh_of(sizes)
    with jax.set_mesh(made):
        axes = (("batch", None), ("batch", None), ("batch", None, None), ("batch",), ())
        pairs = zip(axes, operands, strict=True)
        places = [jax.NamedSharding(made, sharding.partition_spec(a, np.shape(x), made)) for a, x in pairs]
        compiled = jax.jit(step, in_shardings=places).lower(*operands).compile()
        found = compiled(*map(jax.device_put, operands, places))
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6), found, expected)
    sent = collectives.rows(compiled, sizes)
    gathered = sum(size for name, (_, size) in sent.items() if name.startswith("all-gather"))
    summed = sum(size for name, (_, size) in sent.items() if name.startswith("all-reduce"))
    right_sides = 4 * B * (1 + H) * E
    assert gathered <= right_sides + 8 * 4 * B, sent
    assert right_sides <= summed <= right_sides + 32 * 4 * B, sent  # CPUs have no reduce-scatter
    assert not any("tensor" in name for name in sent), sent
    own = B // (sizes[0] * sizes[1])  # each device holds the logits of its own left sides, and no others
    text = compiled.as_text()
    assert f"f32[{own},{B * (1 + H)}]" in text and f"f32[{B},{B * (1 + H)}]" not in text


def test_shared_texts_on_many_devices_are_those_of_one():
    left, right, _, weights = sides(1)
    operands = (left, right, None, weights, np.float32(5.0))
    step = jax.value_and_grad(functools.partial(of, "shared"), argnums=(0, 1, 4))
    expected = jax.jit(step)(*operands)
    with jax.set_mesh(collectives.mesh_of(collectives.MESHES["data2-fsdp2-tensor2"])):
        found = jax.jit(step)(*operands)
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6), found, expected)


def test_micro_batches_have_the_gradients_of_the_batch():
    """GradCache: a tower in four parts, with one loss over all rows. Losses of the parts would be another loss."""
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((E, E)).astype(np.float32), rng.standard_normal((2, B, E)).astype(np.float32)

    def loss(kernel, parts):
        rows = {"left": x[0], "right": x[0] + 0.5 * x[1]}
        tower = lambda rows, key: {name: jnp.tanh(one @ kernel) for name, one in rows.items()}  # noqa: E731
        made = contrastive.info_nce(**_sides(contrastive.in_parts(tower, rows, parts, None)), scale=5.0)
        return made.sum / made.weight

    whole, parts = (jax.jit(jax.value_and_grad(functools.partial(loss, parts=n)))(kernel) for n in (1, 4))
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-4, atol=1e-6)
    backward = jax.make_jaxpr(jax.grad(functools.partial(loss, parts=4)))(kernel)
    assert "remat" in str(backward)


def _sides(made):
    return {"left_BE": made["left"], "right_BE": made["right"]}


def test_each_micro_batch_has_its_own_key_and_rows_keep_their_order():
    rows = {"x": np.arange(8, dtype=np.float32)}
    made = contrastive.in_parts(lambda rows, key: rows["x"], rows, 4, None)
    np.testing.assert_array_equal(made, rows["x"])
    drawn = contrastive.in_parts(lambda rows, key: jax.random.normal(key, rows["x"].shape), rows, 4, jax.random.key(0))
    assert len(np.unique(drawn)) == 8
