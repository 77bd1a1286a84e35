"""Classification and regression: the loss against float64, scores and pictures of known outputs, predictions."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.contracts import Evaluation
from transformer_jax.data import image_sources, images, tokenizers
from transformer_jax.data.tables import Table
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.models import bert, vit
from transformer_jax.tasks import Classification, ImageClassification, Tagging
from transformer_jax.tasks.classification.labelled import LabelledText
from transformer_jax.tasks.tagging.tagged import Conll, TaggedWords

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "max_length": 16,
    "width": 8,
    "num_layers": 1,
    "num_heads": 2,
    "init_std": 0.5,
    "scan_layers": False,
}
CFG = bert.Config(**SMALL, num_labels=3, heads=("classification",))
LABELS = ("a", "b", "c")


def batch(rows: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths_B = np.array([5, 12, 3, 7], np.int32)[:rows]
    return {
        "tokens": rng.integers(0, 60, (rows, 12)).astype(np.int32),
        "types": (np.arange(12) >= 3).astype(np.int32) * np.ones((rows, 1), np.int32),
        "lengths": lengths_B,
        "labels": np.array([2, 0, 1, 2], np.int32)[:rows],
        "weights": np.array([1, 1, 1, 0], np.float32)[:rows],
    }


@pytest.fixture(scope="module")
def params():
    return bert.init(jax.random.key(0), CFG)


def logits(task, params, cfg, rows) -> np.ndarray:
    return np.asarray(jax.jit(task.logits, static_argnums=1)(params, cfg, rows))


def loss(task, params, cfg, rows, key=None):
    return jax.jit(task.loss, static_argnums=1)(params, cfg, rows, key=key)


def nats(params, rows) -> np.ndarray:
    logits_BC = logits(Classification(LABELS), params, CFG, rows).astype(np.float64)
    log_z_B = np.log(np.exp(logits_BC).sum(-1))
    return log_z_B - logits_BC[np.arange(len(logits_BC)), rows["labels"]]


# ---- Loss ----------------------------------------------------------------------------------------------------------


def test_loss_is_the_cross_entropy_of_rows_that_count(params):
    rows = batch()
    total, weight, sums = loss(Classification(LABELS), params, CFG, rows)
    np.testing.assert_allclose(float(total), nats(params, rows)[:3].sum(), rtol=1e-5)
    assert float(weight) == 3 and sums["loss"] == (total, weight)


def test_regression_is_the_squared_error(params):
    cfg = bert.Config(**SMALL, num_labels=1, heads=("classification",))
    params = bert.init(jax.random.key(0), cfg)
    rows = batch() | {"labels": np.array([0.5, -1.0, 4.0, 9.0], np.float32)}
    task = Classification(labels=())
    values_B = logits(task, params, cfg, rows).astype(np.float64)[:, 0]
    total, weight, _ = loss(task, params, cfg, rows)
    np.testing.assert_allclose(float(total), ((values_B - rows["labels"]) ** 2)[:3].sum(), rtol=1e-5)
    assert float(weight) == 3
    assert next(task.predict(params, cfg, toy_tokenizer(), ["the cat"], top=1)).keys() == {"text", "value"}


def test_padding_and_types_reach_the_model(params):
    rows, task = batch(), Classification(LABELS)
    logits_BC = logits(task, params, CFG, rows)
    other = rows["tokens"].copy()
    other[0, 5:] = 1  # behind the first row's length
    np.testing.assert_allclose(logits(task, params, CFG, rows | {"tokens": other}), logits_BC, atol=1e-6)
    without = logits(task, params, CFG, {k: v for k, v in rows.items() if k != "types"})
    assert np.abs(without - logits_BC).max() > 1e-3
    one_type = bert.Config(**SMALL, num_labels=3, num_types=1, heads=("classification",))
    assert np.isfinite(logits(task, bert.init(jax.random.key(0), one_type), one_type, rows)).all()


def test_dropout_only_with_a_key(params):
    rows, task = batch(), Classification(LABELS)
    plain = [float(loss(task, params, CFG, rows)[0]) for _ in range(2)]
    assert plain[0] == plain[1] != float(loss(task, params, CFG, rows, jax.random.key(1))[0])


# ---- Report and pictures -------------------------------------------------------------------------------------------


def test_report_of_known_outputs(tmp_path):
    labels_E = np.array([0, 0, 1, 2, 2], np.int32)
    outputs = {"logits": np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 2]] * 5}
    task, evaluation = Classification(LABELS), Evaluation(None, labels_E)
    report = task.report({"loss": (2.0, 5.0), "accuracy": (4.0, 5.0)}, outputs, evaluation)
    assert report["accuracy"] == 0.8 and report["loss_nats_per_example"] == 0.4
    assert report["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert report["accuracy_low"] < 0.8 < report["accuracy_high"]
    pictures = task.pictures(outputs, evaluation, tmp_path, "test")
    assert [path.name for path in pictures] == ["test_confusion.png", "test_roc.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    one_class = Evaluation(None, np.zeros(5, np.int32))
    assert [p.name for p in task.pictures(outputs, one_class, tmp_path, "one")] == ["one_confusion.png"]
    diverged = {"logits": np.full_like(outputs["logits"], np.nan)}
    assert len(task.pictures(diverged, evaluation, tmp_path, "nan")) == 1


def test_report_of_regression(tmp_path):
    task, evaluation = Classification(()), Evaluation(None, np.array([1.0, 2.0, 4.0], np.float32))
    outputs = {"logits": np.array([[2.0], [4.0], [8.0]], np.float32)}
    report = task.report({"loss": (21.0, 3.0)}, outputs, evaluation)
    assert report["pearson"] == pytest.approx(1.0) and report["mean_squared_error"] == pytest.approx(7.0)
    assert task.pictures(outputs, evaluation, tmp_path, "x") == []


def test_flops_of_bert_base():
    """For each of 128 tokens 6 * 12 layers of 12 * 768^2 and 12 * 12 * 768 * 128; ALBERT computes as many layers as it
    would have without sharing."""
    bert_base = bert.Config(heads=("classification",))
    flops, data = 6 * 12 * 12 * 768**2 + 12 * 12 * 768 * 128, LabelledText(Table(("a.tsv",)), tokenizers.Bytes(), 128)
    assert Classification().flops(bert_base, data) == pytest.approx(128 * flops)
    albert = bert.Config(heads=("classification",), share_layers=True, embedding_width=128)
    projection = 6 * 128 * 768
    assert Classification().flops(albert, data) == pytest.approx(128 * (flops + projection))


# ---- Data and predictions ------------------------------------------------------------------------------------------


def toy_tokenizer():
    return tokenizers.build(tokenizers.TrainWordPiece(60), [("a", "the cat sat on a mat and so did every other cat")])


def toy(tmp_path, pairs: bool = False) -> LabelledText:
    rows = [{"x": "the cat sat " * (i + 1), "y": "a mat", "label": LABELS[i % 3]} for i in range(9)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Table((str(path),), (str(path),), text="x", text_b="y" if pairs else "")
    return LabelledText(source, tokenizers.TrainWordPiece(60), 12)


@pytest.mark.parametrize("pairs", [False, True])
def test_prepare(tmp_path, pairs):
    task, data = Classification(LABELS), toy(tmp_path, pairs)
    prepared = task.prepare(data, CFG, seed=0)
    shapes = {name: (x.shape, x.dtype) for name, x in prepared.validation.examples[0].items()}
    assert shapes == {name: (x.shape, x.dtype) for name, x in task.example(data).items()}
    assert ("types" in shapes) == pairs and prepared.test is None
    assert prepared.facts["training_examples_of_each_label"] == "a 3, b 3, c 3"
    assert prepared.facts["training_examples_truncated_to_12_tokens"] == prepared.train.truncated > 0
    np.testing.assert_array_equal(prepared.validation.reference, [0, 1, 2] * 3)


def test_labels_are_stated_once():
    """The task's labels decide the number of outputs; a number that the model states itself is compared."""
    source, tokenizer = Table(("train.csv",)), tokenizers.Bytes()
    data = LabelledText(source, tokenizer, length=16)

    def outputs(task, **stated):
        return Experiment(bert.Config(**SMALL, heads=("classification",), **stated), data, task).model.num_labels

    assert [outputs(Classification(LABELS)), outputs(Classification()), outputs(Classification(()))] == [3, 2, 1]
    assert outputs(Classification(), num_labels=4) == 4  # kept, and refused by `prepare`
    tagging = Experiment(
        bert.Config(**SMALL, heads=("tokens",)),
        TaggedWords(Conll("train.conll", "validation.conll"), tokenizer, length=16),
        Tagging(("O", "B-X", "I-X")),
    )
    assert tagging.model.num_labels == 3
    pictures = ImageClassification(("ant", "bee", "cow"))
    assert Experiment(vit.Config(), images.ImageSet(image_sources.Digits()), pictures).model.num_classes == 3


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (Classification(), {}, r"model.num_labels is 3, but the task has 2 labels; give --model.num-labels 2"),
        (Classification(()), {}, r"model.num_labels is 3, but the task has 1 labels; give --model.num-labels 1"),
        (Classification(LABELS), {"heads": ("mlm",)}, r"heads are mlm; this task needs --model.heads classification"),
        (
            Classification(LABELS),
            {"vocab_size": 9},
            r"ids up to \d+, but model.vocab_size is 9; give --model.vocab-size",
        ),
    ],
)
def test_a_model_that_does_not_fit(tmp_path, task, changes, message):
    cfg = bert.Config(**(SMALL | {"num_labels": 3, "heads": ("classification",)} | changes))
    with pytest.raises(InputError, match=message):
        task.prepare(toy(tmp_path), cfg, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a",)}, r"task.labels = \('a',\): give two or more different names"),
        ({"labels": ("a", "a")}, r"give two or more different names"),
    ],
)
def test_contradictions(fields, message):
    with pytest.raises(InputError, match=message):
        Classification(**fields)


def test_predictions_do_not_depend_on_their_company(params, capsys):
    task, tokenizer = Classification(LABELS), toy_tokenizer()
    lines = ["the cat sat\n", "the cat\ta mat", "every other cat sat " * 9]
    answers = list(task.predict(params, CFG, tokenizer, lines, top=2))
    assert "1 of 3 inputs truncated to the model's 16 tokens" in capsys.readouterr().err
    assert [a["text"] for a in answers] == ["the cat sat", "the cat", lines[2]] and answers[1]["text_b"] == "a mat"
    for line, answer in zip(lines, answers, strict=True):
        assert json.loads(json.dumps(answer)) == answer
        assert len(answer["top"]) == 2 and answer["top"][0]["label"] == answer["label"] in LABELS
        assert answer["probability"] == answer["top"][0]["probability"] >= answer["top"][1]["probability"]
        (alone,) = task.predict(params, CFG, tokenizer, [line], top=2)
        assert alone["label"] == answer["label"] and alone["probability"] == pytest.approx(
            answer["probability"], abs=1e-5
        )
    text = task.describe(answers[1])
    assert text.endswith(": the cat | a mat") and text.startswith(
        f"{answers[1]['label']} {answers[1]['probability']:.1%}, "
    )


def test_a_prediction_is_the_evaluation_of_the_same_pair(params, tmp_path):
    task = Classification(LABELS)
    prepared = task.prepare(toy(tmp_path, pairs=True), CFG, seed=0)
    _, outputs = task.evaluate(params, CFG, prepared.validation.examples.stacked([0]))
    odds_C = np.exp(np.asarray(outputs["logits"][0], np.float64))
    (answer,) = task.predict(params, CFG, prepared.tokenizer, ["the cat sat \ta mat"], top=3)
    wanted = dict(zip(LABELS, odds_C / odds_C.sum(), strict=True))
    assert {best["label"]: best["probability"] for best in answer["top"]} == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("line", ["", "  \n", "text\t", "\ttext"])
def test_a_line_without_text_ends_nothing(params, line):
    found, good = Classification(LABELS).predict(params, CFG, toy_tokenizer(), [line, ("the cat\tsat",)], top=1)
    assert "a text, or two texts with a TAB between" in found["error"]
    assert good["text"] == "the cat\tsat" and "text_b" not in good and good["label"] in LABELS
