"""Panoptic segmentation: the loss against a naive one, panoptic quality by hand, what a step reports, and bad input."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from transformer_jax.contracts import Evaluation
from transformer_jax.data import boxes
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.losses import mask_sets
from transformer_jax.models import eomt
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks import Panoptic
from transformer_jax.tasks.detection.scenes import Scenes
from transformer_jax.tasks.panoptic import quality
from transformer_jax.tasks.panoptic.segments import SegmentSet

CFG = eomt.Config(
    image_size=16, patch_size=8, channels=1, num_classes=10, width=16, num_layers=2, num_heads=2, num_queries=5,
    num_blocks=1, num_registers=0, upscale_blocks=2,
)  # fmt: skip
SIZE = Preprocess(size=16, resize=16, mean=(0.4,), std=(0.3,))
DATA = SegmentSet(Scenes(train=8, validation=6), most_segments=4)
TASK = Panoptic(preprocess=SIZE).settle(DATA)


@pytest.fixture(scope="module")
def prepared():
    return TASK.prepare(DATA, CFG, seed=0)


@pytest.fixture(scope="module")
def evaluated(prepared):
    """(parameters, a batch, what `loss` and `evaluate` return, the gradient)."""
    params = jax.jit(eomt.init, static_argnums=1)(jax.random.key(0), CFG)
    batch = prepared.validation.examples.stacked(range(6))
    batch["weights"] = np.array([1, 1, 1, 1, 1, 0], np.float32)

    def run(params):
        loss = lambda p: (lambda out: (out[0], out))(TASK.loss(p, CFG, batch))  # noqa: E731
        return jax.grad(loss, has_aux=True)(params), TASK.evaluate(params, CFG, batch)

    (gradient, out), (sums, outputs) = jax.jit(run)(params)
    return params, batch, out, sums, jax.tree.map(np.asarray, outputs), gradient


def naive_loss(logits_QK, masks_QP, numbers_P, classes, costs):
    """One image's loss in float64, with SciPy's matching."""
    counted = numbers_P != 255
    p_QK = np.exp(logits_QK - logits_QK.max(-1, keepdims=True))
    p_QK /= p_QK.sum(-1, keepdims=True)
    present = [n for n in range(len(classes)) if (numbers_P == n + 1).any()]
    cost, iou = np.zeros((3, len(present), len(masks_QP))), np.zeros((len(present), len(masks_QP)))
    for (m, n), q in itertools.product(enumerate(present), range(len(masks_QP))):
        x, true = masks_QP[q][counted], (numbers_P == n + 1)[counted]
        s = 1 / (1 + np.exp(-x))
        nats = -np.where(true, np.log(s), np.log(1 - s)).mean()
        cost[:, m, q] = nats, 1 - (2 * s[true].sum() + 1) / (s.sum() + true.sum() + 1), -p_QK[q, classes[n]]
        iou[m, q] = ((x > 0) & true).sum() / ((x > 0) | true).sum()
    rows, matched = linear_sum_assignment(costs.pixels * cost[0] + costs.dice * cost[1] + costs.classes * cost[2])
    wanted, weight = np.full(len(masks_QP), logits_QK.shape[-1] - 1), np.full(len(masks_QP), costs.no_object)
    for m, q in zip(rows, matched, strict=True):
        wanted[q], weight[q] = classes[present[m]], 1.0
    nats = (-np.log(p_QK[np.arange(len(wanted)), wanted]) * weight).sum() / weight.sum()
    means = [cost[i, rows, matched].sum() / max(len(rows), 1) for i in (0, 1)]
    return costs.classes * nats + costs.pixels * means[0] + costs.dice * means[1], iou[rows, matched].sum(), len(rows)


def test_the_loss_is_the_naive_one():
    """With pixels that do not count, a padded segment, a segment without pixels, and an image with no segment."""
    rng = np.random.default_rng(0)
    logits, found = rng.normal(0, 2, (3, 4, 4)), rng.normal(0, 2, (3, 4, 4, 6))
    numbers = rng.choice([0, 1, 2, 255], (3, 4, 6), p=[0.3, 0.3, 0.3, 0.1])
    numbers[1][numbers[1] == 2], numbers[2] = 0, 0
    classes, weights = np.array([[0, 2, 1], [1, 1, 0], [0, 0, 0]]), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], float)
    costs = mask_sets.Costs()
    segments = mask_sets.Segments(numbers, classes, weights.astype(np.float32))
    got = jax.jit(lambda *x: mask_sets.set_loss(*x, segments, costs))(logits.astype("f4"), found.astype("f4"))
    for b in range(3):
        loss, iou, count = naive_loss(
            logits[b], found[b].reshape(4, -1), numbers[b].ravel(), classes[b][weights[b] > 0], costs
        )
        np.testing.assert_allclose([got.loss[b], got.iou[b], got.segments[b]], [loss, iou, count], rtol=1e-5, atol=1e-6)
    assert list(got.segments) == [2, 1, 0]


def naive_quality(truth, found, K):
    """Kirillov et al. 2019, equation 1, over all pairs of segments."""
    per_class = []
    for k in range(K):
        ious, true, judged = [], 0, 0
        for t, f in zip(truth, found, strict=True):
            void, right = t.numbers == 255, set()
            of_t = [t.numbers == n + 1 for n, c in enumerate(t.classes) if c == k and (t.numbers == n + 1).any()]
            of_f = [f.numbers == n + 1 for n, c in enumerate(f.classes) if c == k and (f.numbers == n + 1).any()]
            for a, (j, b) in itertools.product(of_t, enumerate(of_f)):
                iou = (a & b).sum() / (a | (b & ~void)).sum()
                if iou > 0.5:
                    ious.append(iou)
                    right.add(j)
            true += len(of_t)
            judged += sum(j in right or (b & void).sum() * 2 <= b.sum() for j, b in enumerate(of_f))
        if true + judged:
            per_class.append(sum(ious) / ((true + judged) / 2))
    return float(np.mean(per_class))


def test_panoptic_quality():
    """Equal segments are worth 1; a hand-made case; and random images against all pairs of segments."""
    true = quality.Segmented(np.array([[1, 1, 1, 2, 2, 255]]), np.array([0, 1]))
    same = true._replace(numbers=np.where(true.numbers == 255, 0, true.numbers))
    assert quality.panoptic_quality([true], [same], 3) == {"pq": 1.0, "sq": 1.0, "rq": 1.0}
    one = quality.Segmented(np.array([[1, 1, 0, 2, 2, 3]]), np.array([0, 0, 1]))  # 2/3; wrong class; all on void
    np.testing.assert_allclose(
        list(quality.panoptic_quality([true], [one], 3).values()), [(2 / 3 / 1.5 + 0) / 2, 1 / 3, (1 / 1.5) / 2]
    )
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(20):
        base = np.repeat(rng.choice([0, 1, 2, 3, 255], 12, p=[0.2, 0.25, 0.25, 0.2, 0.1]), 5)[None]
        noisy = np.where(rng.random(base.shape) < 0.25, rng.integers(0, 4, base.shape), base)
        truth.append(quality.Segmented(base, rng.integers(0, 3, 3)))
        classes = np.where(rng.random(3) < 0.2, rng.integers(0, 3, 3), truth[-1].classes)
        found.append(quality.Segmented(np.where(noisy == 255, rng.integers(0, 4), noisy), classes))
    wanted = naive_quality(truth, found, 3)
    assert 0.1 < wanted < 0.9
    assert quality.panoptic_quality(truth, found, 3)["pq"] == pytest.approx(wanted, abs=1e-12)
    assert quality.panoptic_quality([], [], 3)["pq"] == 0.0


def test_a_step_and_its_report(prepared, evaluated, tmp_path):
    """Training and evaluation give the same numbers; every parameter learns; a perfect prediction is worth 1."""
    _, batch, (total, weight, row), sums, outputs, gradient = evaluated
    assert weight == 5 and set(row) == set(sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), row, sums)
    assert np.isfinite(total) and row["matched_iou"][1] == batch["segments"][:5].sum()
    for path, leaf in params_lib.flatten(gradient).items():
        assert np.any(leaf), path
    report = TASK.report(sums, outputs, prepared.validation)
    assert {"pq", "mean_iou", "mask_ap", "loss_per_image", "matched_iou"} <= set(report)
    classes = np.where(batch["segments"] > 0, batch["classes"], 0)
    side = np.arange(8) * 2 + 1
    small = batch["numbers"][:, side[:, None], side]
    inside = small[:, None] == np.arange(1, 6)[:, None, None]
    perfect = outputs | {
        "found": batch["numbers"],
        "found_classes": np.pad(classes, ((0, 0), (0, 1))),
        "named": np.where(batch["numbers"] > 0, np.take_along_axis(
            np.pad(classes, ((0, 0), (1, 0))), batch["numbers"].reshape(6, -1).astype(int), 1
        ).reshape(batch["numbers"].shape) + 1, 0),
        "scores": np.ones((6, 5)),
        "bits": np.packbits(inside, axis=-1),
    }  # fmt: skip
    best = TASK.report(sums, perfect, prepared.validation)
    assert (best["pq"], best["mean_iou"], best["mask_ap"]) == pytest.approx((1.0, 1.0, 1.0))
    constant = TASK.score(None, CFG, None, prepared.validation)
    assert constant["baseline_pq_of_one_segment"] < 0.05
    (path,) = TASK.pictures(outputs, prepared.validation, tmp_path, "a")
    with Image.open(path) as sheet:
        assert sheet.size[0] > 100


def test_stuff_is_one_segment_and_a_source_of_labels_has_nothing_else():
    @dataclasses.dataclass(frozen=True)
    class Labels:
        def classes(self):
            return Scenes().classes()

        def pictures(self, side):
            made = Scenes(train=8, validation=6).pictures(side)
            return made and dataclasses.replace(made, segments=None)

    data = SegmentSet(Labels(), most_segments=4)
    task = Panoptic(preprocess=SIZE, background=False).settle(data)
    assert task.stuff == task.labels == Scenes().classes() and TASK.stuff == ()
    batch = task.prepare(data, CFG, seed=0).validation.examples.stacked(range(6))
    labels = Scenes(train=8, validation=6).pictures("validation").labels(range(6))
    for b in range(6):
        classes = batch["classes"][b][batch["segments"][b] > 0]
        assert sorted(classes + 1) == sorted(set(np.unique(labels[b])) - {0} if len(classes) else [])
        assert 0 not in batch["numbers"][b], "without a background, it does not count"
    merged = task._merged(np.array([[1, 2, 3, 0]]), np.array([4, 4, 5]))
    np.testing.assert_array_equal(merged.numbers, [[1, 1, 2, 0]])
    np.testing.assert_array_equal(merged.classes, [4, 5])
    apart = TASK._merged(np.array([[1, 2, 3, 0]]), np.array([4, 4, 5]))
    np.testing.assert_array_equal(apart.numbers, [[1, 2, 3, 0]])


def test_predictions_of_files(evaluated, tmp_path):
    params = evaluated[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    task = dataclasses.replace(TASK, threshold=0.0, overlap=0.0)
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    one, other = task.predict(params, CFG, None, paths, top=3, draw=str(tmp_path))
    assert "cannot be read" in other["error"] and {"label", "score", "share"} == set(one["segments"][0])
    with Image.open(tmp_path / "a_numbers.png") as stored:
        numbers = np.asarray(stored)
    assert numbers.shape == (20, 30) and numbers.max() <= 5
    assert one["segments"][0]["label"] in task.labels and "% of" in task.describe(one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_queries": 3}, "most_segments is 4, but the model predicts 3 masks"),
        ({"num_classes": 7}, "num_classes is 7, but there are 10 classes"),
        ({"channels": 3}, "channels is 3"),
    ],
)
def test_models_that_do_not_suit(change, message):
    with pytest.raises(InputError, match=message):
        TASK.check(dataclasses.replace(CFG, **change), DATA)


def test_bad_segments():
    with pytest.raises(InputError, match="most_segments is 300"):
        SegmentSet(Scenes(), most_segments=300)
    with pytest.raises(InputError, match="segments; data.most_segments is 1, raise it|the highest label is 1"):
        data = SegmentSet(Scenes(train=8, validation=6), most_segments=1)
        TASK.prepare(data, CFG, seed=0).validation.examples.stacked(range(6))
    with pytest.raises(InputError, match="task.stuff names 'sky'"):
        dataclasses.replace(TASK, stuff=("sky",)).check(CFG, DATA)
    with pytest.raises(InputError, match="needs data with"):
        TASK.check(CFG, boxes.BoxSet(Scenes()))
    assert isinstance(TASK.prepare(DATA, CFG, seed=0).validation, Evaluation)


@pytest.mark.slow
def test_segments_are_learned():
    """One batch of scenes by heart: after 150 steps masks cover their segments and name their classes."""
    params = jax.jit(eomt.init, static_argnums=1)(jax.random.key(0), CFG)
    batch, adam = TASK.prepare(DATA, CFG, seed=0).train.stacked(range(4)), optax.adam(3e-3)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            loss = lambda p: (lambda total, weight, row: (total / weight, row))(*TASK.loss(p, CFG, batch))  # noqa: E731
            gradient, row = jax.grad(loss, has_aux=True)(params)
            updates, state = adam.update(gradient, state)
            return (optax.apply_updates(params, updates), state), {name: a / b for name, (a, b) in row.items()}

        return jax.lax.scan(step, (params, adam.init(params)), None, length=150)[1]

    row = jax.tree.map(np.asarray, run(params))
    assert row["matched_iou"][0] < 0.3 and row["class_accuracy"][0] < 0.5
    assert row["matched_iou"][-1] > 0.7 and row["class_accuracy"][-1] > 0.9 and row["loss"][-1] < 0.5 * row["loss"][0]
