"""Detection: what a step reports, COCO's numbers, pictures and predictions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from transformer_jax.augment import Crop, RandAugment
from transformer_jax.contracts import Predict
from transformer_jax.data import boxes
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.losses import sets
from transformer_jax.models import detr, vit
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks import Detection
from transformer_jax.tasks.detection import coco
from transformer_jax.tasks.detection.scenes import Scenes

CFG = vit.Config(
    image_size=(16, 24), patch_size=8, channels=1, num_classes=10, width=16, num_layers=2, num_heads=2, pool="mean",
    detector="patches",
)  # fmt: skip
DETR = detr.Config(
    image_size=(16, 24), channels=1, num_classes=10, width=16, num_layers=1, num_decoder_layers=3, num_heads=2,
    mlp_width=16, num_queries=5, stem_width=4, stage_depths=(1,), stage_widths=(8,), dropout=0.0,
)  # fmt: skip
SIZE = Preprocess(size=(16, 24), resize=(16, 24), mean=(0.4,), std=(0.3,))
DATA = boxes.BoxSet(Scenes(train=8, validation=6), most_objects=4)
TASK = Detection(preprocess=SIZE, augment=(Crop(padding=2),)).settle(DATA)


@pytest.fixture(scope="module")
def prepared():
    return TASK.prepare(DATA, CFG, seed=0)


@pytest.fixture(scope="module")
def params():
    return vit.init(jax.random.key(0), CFG)


def test_scenes_are_the_same_on_every_machine_and_their_boxes_are_tight(prepared):
    made = Scenes(train=8, validation=6).pictures("train")
    pixels, labels = made.read([0])[0], made.labels([0])[0]
    of = made.objects[0]
    assert pixels.shape == labels.shape == (48, 48) and pixels.dtype == np.uint8 and 1 <= len(of.boxes) <= 4
    for (left, top, right, bottom), k in zip(of.boxes.astype(int), of.classes, strict=True):
        own = labels[top:bottom, left:right] == k + 1
        assert own[0].any() and own[-1].any() and own[:, 0].any() and own[:, -1].any()
    again = Scenes(train=8, validation=6, seed=0).pictures("train").read([0])[0]
    np.testing.assert_array_equal(pixels, again)
    assert prepared.facts["train_images"] == 8 and prepared.facts["classes"] == 10


def test_loss_and_detections(prepared, params):
    """A step's numbers are those of an evaluation, where nothing is augmented; the gradient reaches every parameter."""
    batch = prepared.validation.examples.stacked(range(6))
    batch["weights"] = np.array([1, 1, 1, 1, 1, 0], np.float32)
    plain = dataclasses.replace(TASK, augment=())

    def loss(params):
        total, weight, sums = plain.loss(params, CFG, batch, key=jax.random.key(1))
        return total, (weight, sums)

    (total, (weight, sums)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    again, outputs = jax.jit(lambda params: plain.evaluate(params, CFG, batch))(params)
    assert weight == 5 and sums["loss"] == (total, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again, dict(sums))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    objects = sum(len(of.boxes) for of in prepared.validation.reference[1][:5])
    assert sums["matched_iou"][1] == objects and sums["empty_share"][1] == 5 * 6 and outputs["boxes"].shape == (6, 6, 4)
    centres = np.asarray(outputs["boxes"])[0, :, :2].reshape(2, 3, 2)  # boxes begin near their own patches
    assert (np.diff(centres[..., 0], axis=1) > 0).all() and (np.diff(centres[..., 1], axis=0) > 0).all()


def test_report_is_cocos_and_constant_boxes_are_worth_little(prepared, tmp_path):
    truth = prepared.validation.reference[1]
    most = max(len(of.boxes) for of in truth)
    outputs = {"scores": np.zeros((6, most)), "classes": np.zeros((6, most), int), "boxes": np.zeros((6, most, 4))}
    for e, of in enumerate(truth):
        n = len(of.boxes)
        outputs["scores"][e, :n], outputs["classes"][e, :n] = 0.9, of.classes
        outputs["boxes"][e, :n] = boxes.shares(of.boxes, of.size)
    sums = {"loss": (12.0, 6.0), "matched_iou": (3.0, 4.0)}
    report = TASK.report(sums, outputs, prepared.validation)
    assert report["loss_per_image"] == 2 and report["matched_iou"] == 0.75
    assert report["ap"] == report["ap50"] == report["ap75"] == report["ap_small"] == pytest.approx(1.0)
    assert report["ap_large"] == -1, "no digit is so large"
    baseline = TASK.score(None, None, None, prepared.validation, tmp_path, "validation")
    assert 0 <= baseline["baseline_ap_of_constant_boxes"] < 0.1
    (path,) = TASK.pictures(outputs, prepared.validation, tmp_path, "validation")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_average_precision_of_a_case_by_hand():
    """Two objects of one class in two images. The best detection is false and the next hits one object with an overlap
    of 0.8: precision 1/2 up to a recall of 1/2, which 51 of 101 points reach, at 7 of 10 thresholds (0.50 to 0.80)."""
    box = np.array([[0.0, 0, 10, 10]])
    one = boxes.Objects("a", (50, 50), box, np.zeros(1, int), np.zeros(1, bool), np.array([100.0]))
    found = [
        coco.Found(np.array([[30.0, 30, 40, 40], [0, 0, 10, 8]]), np.zeros(2, int), np.array([0.9, 0.8])),
        coco.Found(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)),
    ]
    numbers = coco.average_precision([one, one], found, 1)
    assert numbers["ap50"] == pytest.approx(0.5 * 51 / 101) and numbers["ap"] == pytest.approx(0.5 * 51 / 101 * 0.7)


def test_predictions_of_files_and_cocos_json(params, tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 30)), ("b.png", (20, 60))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    options = dataclasses.replace(
        TASK.predict_options(Predict()), threshold=0.0, top=3, draw=str(tmp_path), coco=str(tmp_path / "found.json")
    )
    loaded = dataclasses.make_dataclass("Loaded", ["params", "config"])(params, CFG)
    inputs = TASK.read(paths, options)
    first, second, broken = (answer for _, answer in TASK.answered(loaded, inputs, options))
    assert len(first["objects"]) == len(second["objects"]) == 3 and "error" in broken
    scores = [one["score"] for one in first["objects"]]
    assert scores == sorted(scores, reverse=True)
    left, top, width, height = second["objects"][0]["box"]
    assert 0 <= left <= left + width <= 60 and 0 <= top <= top + height <= 20
    assert (tmp_path / "a_boxes.png").is_file()
    tree = json.loads((tmp_path / "found.json").read_text())
    assert [image["file_name"] for image in tree["images"]] == paths[:2] and len(tree["annotations"]) == 6
    assert tree["annotations"][3]["bbox"] == second["objects"][0]["box"]
    assert TASK.describe(first).endswith(f"{paths[0]} ({tmp_path / 'a_boxes.png'})")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in .*empty; name image files"):
        TASK.read([str(tmp_path / "empty")], options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": "none"}, "the model predicts no objects; give it a detector"),
        ({"detector": "queries", "num_queries": 3}, "data.most_objects is 4, but the model predicts 3 objects"),
        ({"image_size": 16}, r"model.image_size is 16, but task.preprocess.size is \(16, 24\)"),
        ({"channels": 3}, "model.channels is 3, but task.preprocess.mean"),
        ({"num_classes": 9}, "model.num_classes is 9, but there are 10 classes"),
    ],
)
def test_models_that_do_not_suit(change, message):
    with pytest.raises(InputError, match=message):
        TASK.check(dataclasses.replace(CFG, **change), DATA)


def test_augmentation_that_cannot_move_boxes():
    with pytest.raises(InputError, match="RandAugment, which defines neither"):
        Detection(augment=(RandAugment(),))


def test_detr_learns_after_each_layer_and_leaves_its_norms(prepared):
    """The loss is the sum over the decoder's layers, and the row is of the last. Frozen norms have no gradient."""
    batch, key = prepared.validation.examples.stacked(range(6)), jax.random.key(1)
    plain = dataclasses.replace(TASK, augment=())
    images, objects = (batch["images"] / 255.0 - 0.4) / 0.3, [batch[name] for name in ("boxes", "classes", "objects")]

    def run(params):
        def loss(p):
            total, *rest = plain.loss(p, DETR, batch, key=key)
            return total, rest

        found = detr.detect(params, DETR, images.astype(np.float32), key=key)
        every = [jnp.concatenate([a, b[None]]) for a, b in zip(found.earlier[:2], found[:2], strict=True)]
        wanted = jax.vmap(lambda *of: sets.set_loss(*of, sets.Objects(*objects), TASK.costs).loss.sum())(*every)
        return jax.value_and_grad(loss, has_aux=True)(params), wanted

    ((total, (weight, sums)), gradient), wanted = jax.jit(run)(detr.init(jax.random.key(0), DETR))
    assert wanted.shape == (3,) and weight == 6
    np.testing.assert_allclose(total, wanted.sum(), rtol=1e-4)
    np.testing.assert_allclose(sums["loss"][0], wanted[-1], rtol=1e-4)
    for path, leaf in params_lib.flatten(gradient).items():
        assert np.any(leaf) != ("/norm/" in path), path
