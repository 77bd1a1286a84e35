"""Classification of images: losses against float64, what a key does, scores, pictures, predictions."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from transformer_jax.augment import Crop, Flip
from transformer_jax.contracts import Evaluation
from transformer_jax.data import images
from transformer_jax.data.image_sources import Digits, Folder
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.models import bert, vit
from transformer_jax.tasks import CausalLM, ImageClassification

CFG = vit.Config(
    image_size=8, patch_size=4, num_classes=3, width=8, num_layers=1, num_heads=2, scan_layers=False, dropout=0.0
)
PREPROCESS = Preprocess(size=8, resize=8, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
LABELS = ("ant", "bee", "cow")
TASK = ImageClassification(LABELS, PREPROCESS)


def batch(rows: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
        "labels": rng.integers(0, 3, rows).astype(np.int32),
        "weights": (np.arange(rows) != 2).astype(np.float32),
    }


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def params() -> Any:
    rng, fresh = np.random.default_rng(1), jax.jit(vit.init, static_argnums=1)(jax.random.key(0), CFG)
    return jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32), fresh)


@pytest.fixture(scope="module")
def logits_BK(params) -> np.ndarray:
    normalised = (batch()["images"] / 255.0 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
    return np.asarray(jax.jit(vit.apply, static_argnums=1)(params, CFG, normalised.astype(np.float32)), np.float64)


def loss(task, params, rows, key=None):
    return jax.jit(task.loss, static_argnums=1)(params, CFG, rows, key=key)


# ---- Loss ----------------------------------------------------------------------------------------------------------


def test_softmax(params, logits_BK):
    rows = batch()
    total, weight, sums = loss(TASK, params, rows)
    nats_B = np.log(np.exp(logits_BK).sum(-1)) - logits_BK[np.arange(8), rows["labels"]]
    np.testing.assert_allclose(total, nats_B[rows["weights"] > 0].sum(), rtol=1e-5)
    right = (logits_BK.argmax(-1) == rows["labels"])[rows["weights"] > 0].sum()
    assert weight == 7 and sums["loss"] == (total, weight) and sums["accuracy"] == (right, 7)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_smooth_targets(params, logits_BK, objective):
    rows = batch()
    task = dataclasses.replace(TASK, objective=objective, label_smoothing=0.3)
    total, _, sums = loss(task, params, rows)

    def nats(targets_BK):
        if objective == "softmax":
            return -(targets_BK * (logits_BK - np.log(np.exp(logits_BK).sum(-1, keepdims=True)))).sum()
        yes = 1 / (1 + np.exp(-logits_BK))
        return -(targets_BK * np.log(yes) + (1 - targets_BK) * np.log(1 - yes)).sum()

    one_hot_BK = np.eye(3)[rows["labels"]] * rows["weights"][:, None]
    if objective == "sigmoid":  # rows of weight 0 have a loss as well, of targets 0
        logits_BK = np.delete(logits_BK, 2, axis=0)
        one_hot_BK = np.delete(one_hot_BK, 2, axis=0)
    smooth_BK = 0.7 * one_hot_BK + 0.1 * one_hot_BK.sum(-1, keepdims=True)
    np.testing.assert_allclose(total, nats(smooth_BK), rtol=1e-5)
    np.testing.assert_allclose(sums["loss"][0], nats(one_hot_BK), rtol=1e-5)  # reported without


def test_a_key_augments(params):
    rows = batch()
    task = dataclasses.replace(TASK, augment=(Flip(), Crop(padding=2)))
    step = jax.jit(task.loss, static_argnums=1)
    one, again, other = (float(step(params, CFG, rows, key=jax.random.key(s))[0]) for s in (1, 1, 2))
    assert one == again != other
    without = float(step(params, CFG, rows)[0])
    np.testing.assert_allclose(without, float(loss(TASK, params, rows)[0]), rtol=1e-6)  # no key: no augmentation


def test_mixing(params):
    """Each row of two kinds of images is mixed with the row before: targets and images in the same shares, which a
    model without layers in between would give back; and nothing is learned from an image that was left out."""
    rows = batch()
    task = dataclasses.replace(TASK, mixup=1.0)
    _, weight, _ = loss(task, params, rows, jax.random.key(0))
    assert weight == 6, "the row left out, and the one that it is mixed into"
    same = rows | {"images": np.repeat(rows["images"][:1], 8, axis=0), "labels": np.zeros(8, np.int32)}
    mixed, plain = loss(task, params, same, jax.random.key(0))[0] / 6, loss(TASK, params, same)[0] / 7
    np.testing.assert_allclose(mixed, plain, rtol=1e-5)


# ---- Evaluation ----------------------------------------------------------------------------------------------------


def outputs(K: int = 3) -> dict[str, np.ndarray]:
    probability_EK = np.full((4, K), 0.1 / (K - 1))
    probability_EK[np.arange(4), [0, 1, 2, 2]] = 0.9
    return {
        "logits": np.log(probability_EK).astype(np.float32),
        "labels": np.array([0, 1, 0, 1], np.int32),
        "weights": np.array([1, 1, 1, 0], np.float32),
    }


def report(task: ImageClassification, outputs: dict[str, np.ndarray]) -> dict[str, float]:
    return task.report({"loss": (3.0, 3.0)}, outputs, Evaluation(None, task.labels))


def test_report():
    scores = report(TASK, outputs())
    assert scores["accuracy"] == pytest.approx(2 / 3) and scores["loss_nats_per_image"] == 1
    assert scores["accuracy_low"] < 2 / 3 < scores["accuracy_high"]
    assert scores["calibration_error"] == pytest.approx(0.9 - 2 / 3)
    assert "accuracy_top5" not in scores, "of three"
    many = ImageClassification(tuple("abcdefgh"), PREPROCESS)
    assert report(many, outputs(8))["accuracy_top5"] == 1.0, "the right one is second"


def test_a_diverged_model_is_reported():
    broken = outputs() | {"logits": np.full((4, 3), np.nan, np.float32)}
    scores = report(TASK, broken)
    assert all(0 <= value <= 1 for name, value in scores.items() if name != "loss_nats_per_image")


def test_evaluate_and_pictures(params, tmp_path, monkeypatch):
    rows = batch()
    sums, made = jax.jit(TASK.evaluate, static_argnums=1)(params, CFG, rows)
    assert sums["loss"][1] == 7 and made["logits"].shape == (8, 3) and made["labels"].tolist() == list(rows["labels"])
    examples = [{name: array[i] for name, array in rows.items()} for i in range(8)]
    shown: list[Any] = []
    monkeypatch.setattr(
        "transformer_jax.tasks.image_classification.pictures.plot_mistakes",
        lambda images, titles, path: shown.extend(images),
    )
    paths = TASK.pictures({k: np.asarray(v) for k, v in made.items()}, Evaluation(examples, LABELS), tmp_path, "test")
    assert [path.name for path in paths] == ["test_confusion.png", "test_reliability.png", "test_mistakes.png"]
    assert is_png(paths[0]) and is_png(paths[1])
    logits_EK = np.asarray(made["logits"])
    wrong = (logits_EK.argmax(-1) != rows["labels"]) & (rows["weights"] > 0)
    sure_E = (np.exp(logits_EK) / np.exp(logits_EK).sum(-1, keepdims=True)).max(-1)
    order = sorted(np.flatnonzero(wrong), key=lambda e: -sure_E[e])
    assert len(order) > 1
    np.testing.assert_array_equal(np.stack(shown), rows["images"][order])


def test_flops():
    """ViT-B/16 at 224 pixels has 17.58 GMACs (timm); 2 FLOPs each, thrice for training."""
    task = ImageClassification()
    assert task.flops(vit.Config(), images.ImageSet(Digits())) == pytest.approx(6 * 17.58e9, rel=0.01)
    assert task.tokens(images.ImageSet(Digits())) == 1


# ---- What does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a",)}, r"task.labels = \('a',\)"),
        ({"label_smoothing": 1.0}, r"task.label_smoothing = 1.0"),
        ({"mixup": -0.1}, r"task.mixup = -0.1"),
        ({"preprocess": Preprocess(mean=(0.5, 0.5), std=(1.0, 1.0))}, r"1 channel \(grey\) or 3 \(RGB\)"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TASK, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, r"model.image_size is 16, but task.preprocess.size is 8"),
        ({"channels": 1}, r"model.channels is 1, but task.preprocess.mean is \(0.2, 0.3, 0.4\)"),
        (
            {"num_classes": 4},
            r"model.num_classes is 4, but there are 3 classes \(ant, bee, cow\); give --model.num-cla",
        ),
    ],
)
def test_models_that_do_not_fit(changes, message):
    with pytest.raises(InputError, match=message):
        TASK.check(dataclasses.replace(CFG, **changes), images.ImageSet(Digits()))


def test_patches_that_do_not_divide():
    with pytest.raises(InputError, match=r"model.patch_size 3 does not divide model.image_size 8"):
        dataclasses.replace(CFG, patch_size=3)


def test_text_is_no_image():
    from transformer_jax.data import corpus

    with pytest.raises(InputError, match=r"needs data with source, .*; TextCorpus has no train_crop, crop_area, bro"):
        TASK.check(CFG, corpus.TextCorpus(length=8))
    with pytest.raises(InputError, match=r"needs a model with Config.image_size, .* which bert does not define"):
        TASK.check(bert.Config(), images.ImageSet(Digits()))
    assert TASK.reads_text is False and CausalLM.reads_text is True


def test_labels_come_from_the_data(tmp_path):
    for name in LABELS:
        (tmp_path / name).mkdir()
    unnamed = dataclasses.replace(TASK, labels=())
    assert unnamed.settle(images.ImageSet(Folder(str(tmp_path)))) == TASK
    assert TASK.settle(images.ImageSet(Digits())) is TASK


# ---- Predictions ---------------------------------------------------------------------------------------------------


def test_predictions(params, logits_BK, tmp_path):
    paths = []
    for i, image in enumerate(batch()["images"][:3]):
        path = tmp_path / str(i) / "a.png"
        path.parent.mkdir()
        Image.fromarray(image).save(path)
        paths.append(str(path))
    answers = list(TASK.predict(params, CFG, None, paths, top=2, attention=tmp_path))
    for answer, logits_K, path in zip(answers, logits_BK, paths, strict=False):
        probability_K = np.exp(logits_K) / np.exp(logits_K).sum()
        assert answer["image"] == path and answer["label"] == LABELS[logits_K.argmax()]
        assert answer["probability"] == answer["top"][0]["probability"] == pytest.approx(probability_K.max(), rel=1e-4)
        assert len(answer["top"]) == 2 and TASK.describe(answer).startswith(answer["label"])
        json.dumps(answer)
    drawn = [answer["attention"] for answer in answers]
    assert drawn == [str(tmp_path / f"a{n}_attention.png") for n in ("", "-2", "-3")]
    assert all(is_png(Path(path)) for path in drawn)
    sigmoid = dataclasses.replace(TASK, objective="sigmoid")
    (alone,) = sigmoid.predict(params, CFG, None, paths[:1], top=3)
    assert alone["probability"] == pytest.approx(1 / (1 + np.exp(-logits_BK[0].max())), rel=1e-4)


def test_files_that_cannot_be_predicted(params, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "c.png")
    paths = [str(tmp_path / name) for name in ("b.jpg", "c.png", "a.jpg")]
    gone, good, broken = TASK.predict(params, CFG, None, paths, top=1)
    assert gone == {"image": paths[0], "error": "the file cannot be read (No such file or directory)"}
    assert good["image"] == paths[1] and good["label"] in TASK.labels
    assert broken["error"].startswith("cannot be decoded (")
    (alone,) = TASK.predict(params, CFG, None, paths[:1], top=1)
    assert alone == gone


def test_a_model_without_a_head_predicts_nothing(params):
    with pytest.raises(InputError, match=r"the model has no classification head"):
        next(TASK.predict(params, dataclasses.replace(CFG, num_classes=0), None, ["a.png"], top=1))


def test_a_resize_follows_the_size():
    """At another size with the checkpoint's `resize` the model would see a part of each picture."""
    published = ImageClassification(LABELS, Preprocess(size=224, resize=256, fit="shortest"))
    said: list[str] = []
    small = ImageClassification(LABELS, Preprocess(size=32, resize=256, fit="shortest"))
    assert small.adopt(published, said.append, "snapshot").preprocess.resize == 37
    assert said == ["pictures are resized to 37 pixels for a size of 32, as 256 in snapshot"]
    for own in (Preprocess(size=32, resize=40), published.preprocess):
        assert (
            ImageClassification(LABELS, own).adopt(published, said.append, "snapshot").preprocess.resize == own.resize
        )
    assert len(said) == 1
