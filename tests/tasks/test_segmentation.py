"""Segmentation: what a step reports, the mean IoU, pictures and predictions, and bad labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from transformer_jax.augment import Crop
from transformer_jax.contracts import Predict
from transformer_jax.data import boxes, masks
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.models import vit
from transformer_jax.tasks import Segmentation, segmentation
from transformer_jax.tasks.detection.scenes import Scenes

CFG = vit.Config(
    image_size=(16, 24), patch_size=8, channels=1, num_classes=11, width=16, num_layers=1, num_heads=2, pool="mean",
    head_grid=2,
)  # fmt: skip
SIZE = Preprocess(size=(16, 24), resize=(16, 24), mean=(0.4,), std=(0.3,))
DATA = masks.MaskSet(Scenes(train=8, validation=6))
TASK = Segmentation(preprocess=SIZE, augment=(Crop(padding=2),)).settle(DATA)


@pytest.fixture(scope="module")
def prepared():
    return TASK.prepare(DATA, CFG, seed=0)


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(vit.init, static_argnums=1)(jax.random.key(0), CFG)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(x) + 0.2 * rng.standard_normal(x.shape).astype(np.float32), fresh)


def test_numbers_are_those_of_every_pixel_by_itself(prepared, params, tmp_path):
    """The loss and the overlap against NumPy, from the logits of each pixel."""
    batch = prepared.validation.examples.stacked(range(6))
    batch["weights"] = np.array([1, 1, 1, 1, 1, 0], np.float32)
    batch["labels"][0, :3] = masks.IGNORED

    def everything(params):
        logits = TASK._logits(params, CFG, batch["images"].astype(jnp.float32) / 255.0)
        return logits, TASK.evaluate(params, CFG, batch)

    logits, (sums, outputs) = jax.jit(everything)(params)
    logits, labels = np.asarray(logits, np.float64)[:5], batch["labels"][:5].astype(int)
    assert logits.shape == (5, 16, 24, 11)
    counted, says = labels != masks.IGNORED, logits.argmax(-1)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(p, np.where(counted, labels, 0)[..., None], -1)[..., 0])[counted].sum()
    right = (says == labels) & counted
    either = ((says > 0) | (labels > 0)) & counted
    wanted = {"loss": (nats, counted.sum()), "pixel_accuracy": (right.sum(), counted.sum())}
    wanted["iou"] = ((right & either).sum(), either.sum())
    for name, value in wanted.items():
        np.testing.assert_allclose([float(x) for x in sums[name]], value, rtol=1e-4)
    report = TASK.report(sums, {k: np.asarray(v)[:5] for k, v in outputs.items()}, prepared.validation)
    ious = []
    for k in range(11):
        a, b = (says == k) & counted, labels == k
        ious += [(a & b).sum() / (a | b).sum()] if (a | b).any() else []
    assert report["mean_iou"] == pytest.approx(np.mean(ious), abs=0.01)
    assert TASK.pictures(outputs, prepared.validation, tmp_path, "v")[0].read_bytes().startswith(b"\x89PNG")
    share = np.mean(np.stack([prepared.validation.examples[i]["labels"] for i in range(6)]) == 0)
    occur = len(np.unique(np.stack([prepared.validation.examples[i]["labels"] for i in range(6)])))
    baseline = TASK.score(None, None, None, prepared.validation)
    assert baseline == {"baseline_mean_iou_of_one_class": pytest.approx(share / occur)}


def test_parts_of_a_patch_are_where_they_belong(params):
    """With a head whose bias alone differs by part, each part of every patch has its own class."""
    marked = {
        **params,
        "head": {"kernel": params["head"]["kernel"] * 0, "bias": np.eye(4, 11, dtype=np.float32).ravel()},
    }
    found = jax.jit(vit.segment, static_argnums=1)(marked, CFG, np.zeros((1, 16, 24, 1), np.float32))
    np.testing.assert_array_equal(np.asarray(found).argmax(-1)[0], np.tile([[0, 1], [2, 3]], (2, 3)))


def test_a_training_step_moves_labels_with_the_pixels(prepared, params):
    batch = prepared.validation.examples.stacked(range(6))
    loss = lambda p: TASK.loss(p, CFG, batch, key=jax.random.key(0))[:2]  # noqa: E731
    (total, weight), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(total) and weight < 6 * 16 * 24, "what came from outside does not count"
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_without_a_background_other_pixels_do_not_count():
    task = Segmentation(labels=("a", "b"), background=False)
    assert task.classes == ("a", "b")
    labels = np.array([[[0, 1, 2, masks.IGNORED]]])
    logits = np.zeros((1, 1, 4, 2), np.float32)
    logits[..., 1] = 1.0
    sums, says = task._sums(jnp.asarray(logits), jnp.asarray(labels), jnp.ones(1))
    assert [float(x) for x in sums["iou"]] == [1, 2] and says.shape == (1, 1, 4)
    np.testing.assert_array_equal(task._confusion(np.ones((1, 1, 4), int), labels, 2), [[0, 1], [0, 1]])
    assert segmentation.mean_iou(np.array([[0, 1], [0, 1]])) == 0.25


def test_predictions_write_overlays(params, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    options = dataclasses.replace(TASK.predict_options(Predict()), draw=str(tmp_path))
    loaded = dataclasses.make_dataclass("Loaded", ["params", "config"])(params, CFG)
    first, broken = TASK.answers(loaded, [str(tmp_path / "a.png"), str(tmp_path / "c.png")], options)
    assert sum(first["shares"].values()) == pytest.approx(1.0) and "error" in broken
    with Image.open(tmp_path / "a_labels.png") as labels, Image.open(tmp_path / "a_overlay.png") as overlay:
        assert labels.size == overlay.size == (30, 40) and np.asarray(labels).max() < 11
    assert str(tmp_path / "a.png") in TASK.describe(first)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for side in ("training", "validation"):
        for kind in ("images", "annotations"):
            (tmp_path / kind / side).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "images" / side / "a.jpg")
        Image.fromarray(rng.integers(0, 3, (30, 40), np.uint8)).save(tmp_path / "annotations" / side / "a.png")
    return tmp_path


def test_a_folder_of_masks_and_what_is_refused(folder):
    grey = Preprocess(size=(16, 24), resize=(16, 24))
    data = masks.MaskSet(masks.MaskFolder(str(folder), ("a", "b")))
    made = masks.prepare(data, grey, ("a", "b"), seed=0)
    labels = made.train.stacked([0])["labels"][0]
    assert labels.shape == (16, 24) and set(np.unique(labels)) == {0, 1, 2} and made.facts["train_images"] == 1
    path = folder / "annotations/training/a.png"
    for values, message in (
        (np.full((30, 40), 7, np.uint8), r"a.jpg: its labels hold 7; the highest label is 2"),
        (np.zeros((20, 40), np.uint8), r"a.jpg: the image has 40 x 30 pixels and its labels 40 x 20"),
        (np.zeros((30, 40, 3), np.uint8), r"a.png has 3 channels"),
    ):
        Image.fromarray(values).save(path)
        with pytest.raises(InputError, match=message) as caught:
            masks.prepare(data, grey, ("a", "b"), seed=0)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match="a.png is no file; it holds the labels of an image"):
        masks.prepare(data, grey, ("a", "b"), seed=0)
    bare = dataclasses.make_dataclass("Bare", [])
    bare.classes, bare.pictures = (lambda self: ("a",)), (lambda self, side: boxes.Pictures("bare", [1], None))
    with pytest.raises(InputError, match="bare has no labels of pixels"):
        masks.prepare(masks.MaskSet(bare()), grey, ("a",), seed=0)


def test_models_that_do_not_suit():
    for change, message in (
        ({"num_classes": 10}, "model.num_classes is 10, but there are 11 classes, the background's included"),
        ({"pool": "class", "head_grid": 1}, "model.pool is 'class'; segmentation needs 'mean'"),
    ):
        with pytest.raises(InputError, match=message):
            TASK.check(dataclasses.replace(CFG, **change), DATA)
