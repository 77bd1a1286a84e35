"""The set loss against SciPy's matching and a float64 version of DETR's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from transformer_jax.errors import InputError
from transformer_jax.losses import sets


def test_matching_costs_what_scipys_does_on_a_thousand_cases():
    """Of 0 to 6 objects, padded to 6, for 9 predictions; some costs are equal, and some are far from the others."""
    rng = np.random.default_rng(0)
    costs = rng.standard_normal((1000, 6, 9)).astype(np.float32) * rng.choice([0.01, 1.0, 100.0], (1000, 1, 1))
    costs[::7] = np.round(costs[::7])
    counts = rng.integers(0, 7, 1000)
    weights = (np.arange(6) < counts[:, None]).astype(np.float32)
    matched = np.asarray(jax.jit(sets.match)(costs, weights))
    assert all(len(set(row)) == 6 for row in matched), "no prediction is matched twice"
    for one, count, row in zip(costs.astype(np.float64), counts, matched, strict=True):
        wanted = one[:count][linear_sum_assignment(one[:count])].sum()
        assert one[np.arange(count), row[:count]].sum() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_matching_ends_where_a_model_has_diverged():
    costs = np.full((2, 3, 4), np.nan, np.float32)
    costs[1, 0] = (np.inf, -np.inf, 0, 1)
    matched = np.asarray(jax.jit(sets.match)(costs, np.ones((2, 3), np.float32)))
    assert all(len(set(row)) == 3 for row in matched) and matched[1, 0] == 1


def test_more_objects_than_predictions_are_refused():
    with pytest.raises(InputError, match="there are 5 objects for 4 predictions"):
        sets.match(jnp.zeros((1, 5, 4)), jnp.ones((1, 5)))


def iou_and_giou(a, b):
    """Of two boxes by centre and size, from their definitions."""
    (al, at, ar, ab), (bl, bt, br, bb) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    both = max(min(ar, br) - max(al, bl), 0) * max(min(ab, bb) - max(at, bt), 0)
    either = (ar - al) * (ab - at) + (br - bl) * (bb - bt) - both
    hull = (max(ar, br) - min(al, bl)) * (max(ab, bb) - min(at, bt))
    return both / either, both / either - (hull - either) / hull


def test_set_loss_is_detrs():
    """Per image: the weighted mean of the cross-entropy, 5 L1 and 2 (1 - GIoU) over its objects. Nothing is NaN without
    objects, and only class logits then have a gradient."""
    rng = np.random.default_rng(1)
    B, M, Q, K = 3, 4, 6, 5
    logits, boxes, true = (
        rng.standard_normal((B, Q, K + 1)),
        rng.uniform(0.1, 0.6, (B, Q, 4)),
        rng.uniform(0.1, 0.6, (B, M, 4)),
    )
    classes, counts, costs = rng.integers(0, K, (B, M)), (4, 2, 0), sets.Costs()
    weights = (np.arange(M) < np.array(counts)[:, None]).astype(np.float32)
    objects = sets.Objects(*(jnp.asarray(x) for x in (true.astype(np.float32), classes, weights)))

    def total(logits, boxes):
        return sets.set_loss(logits, boxes, objects, costs)

    found = jax.jit(total)(logits.astype(np.float32), boxes.astype(np.float32))
    for b, n in enumerate(counts):
        p = np.exp(logits[b]) / np.exp(logits[b]).sum(-1, keepdims=True)
        pair = [[iou_and_giou(true[b, m], boxes[b, q]) for q in range(Q)] for m in range(n)]
        cost = [
            [5 * np.abs(true[b, m] - boxes[b, q]).sum() - 2 * pair[m][q][1] - p[q, classes[b, m]] for q in range(Q)]
            for m in range(n)
        ]
        rows, columns = linear_sum_assignment(np.array(cost).reshape(n, Q))
        wanted, weight = np.full(Q, K), np.full(Q, 0.1)
        wanted[columns], weight[columns] = classes[b, rows], 1.0
        nats = -(weight * np.log(p[np.arange(Q), wanted])).sum() / weight.sum()
        l1 = sum(np.abs(true[b, m] - boxes[b, q]).sum() for m, q in zip(rows, columns, strict=True))
        giou = sum(1 - pair[m][q][1] for m, q in zip(rows, columns, strict=True))
        loss = nats + (5 * l1 + 2 * giou) / max(n, 1)
        iou = sum(pair[m][q][0] for m, q in zip(rows, columns, strict=True))
        right = sum(logits[b, q].argmax() == classes[b, m] for m, q in zip(rows, columns, strict=True))
        ours = [float(x[b]) for x in found]
        np.testing.assert_allclose(ours, [loss, nats, l1, iou, right, (logits[b].argmax(-1) == K).sum()], rtol=2e-5)
    grads = jax.jit(jax.grad(lambda *a: jnp.sum(total(*a).loss), (0, 1)))(
        logits.astype(np.float32), boxes.astype(np.float32)
    )
    assert all(np.isfinite(g).all() for g in grads) and np.abs(grads[0][2]).max() > 0 and not np.any(grads[1][2])
    assert np.abs(np.asarray(grads[1][0])).max() > 0
