"""Contrastive learning: data, loss, accumulation, retrieval, prediction, and the icons."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tools.targets import collectives
from transformer_jax import tasks
from transformer_jax.data import corpus, tokenizers
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Experiment, Train
from transformer_jax.models import bert, dual, vit
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.tasks.contrastive import embedding, icons, paired, retrieval
from transformer_jax.train import program as programs

SIZE: Any = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
IMAGE = vit.Config(image_size=8, patch_size=4, num_classes=0, pool="mean", **SIZE)
TEXT = bert.Config(vocab_size=300, max_length=8, num_types=0, heads=(), dropout=0.0, pooling="mean", **SIZE)
COLOURS = {"red": (220, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 220), "white": (255, 255, 255)}


@pytest.fixture
def captions(tmp_path):
    """Four pictures of one colour each, and a table with their captions."""
    rows = [{"file": f"{name}.png", "caption": f"a {name} square", "wrong": "a round hole"} for name in COLOURS]
    for name, colour in COLOURS.items():
        Image.fromarray(np.full((10, 12, 3), colour, np.uint8)).save(tmp_path / f"{name}.png")
    table = tmp_path / "captions.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paired.Table((str(table),), (str(table),), "file", "caption", negative=("wrong",), pictures=str(tmp_path))


def experiment(source, **changes):
    return Experiment(
        model=dual.Config(left=IMAGE if source.images else TEXT, right=TEXT if source.images else None, width=16),
        data=paired.Paired(source, tokenizers.TrainWordPiece(60), length=8),
        task=tasks.Contrastive(preprocess=Preprocess(size=8, resize=8), sizes=(8, 16)),
        optim=Optim(peak_lr=1e-3, clip_norm=1.0),
        train=Train(steps=10, batch_size=8),
        checkpoint=Checkpoint(best_metric="recall_at_1_left_to_right", best="highest"),
        **changes,
    )


def test_examples(captions):
    made = experiment(captions)
    prepared = made.task.prepare(made.data, made.model, seed=0)
    rows, example = prepared.validation.examples.stacked([0, 3]), made.task.example(made.data)
    assert {name: (x.shape[1:], x.dtype) for name, x in rows.items()} == {
        name: (x.shape, x.dtype) for name, x in example.items()
    }
    np.testing.assert_array_equal(rows["left"][:, 0, 0], [COLOURS["red"], COLOURS["white"]])
    tokenizer = prepared.tokenizer
    cls, sep = tokenizer.special.cls, tokenizer.special.sep
    assert rows["right_lengths"][0] == len(tokenizer.encode("a red square")) + 2
    assert rows["right"][0, 0] == cls and rows["right"][0, rows["right_lengths"][0] - 1] == sep
    assert tokenizer.decode(rows["negatives"][0, 0, 1 : rows["negatives_lengths"][0, 0] - 1]) == "a round hole"
    on_demand = dataclasses.replace(made.data, memory=0)
    again = made.task.prepare(on_demand, made.model, seed=0).validation.examples.stacked([0, 3])
    np.testing.assert_array_equal(again["left"], rows["left"])


@dataclasses.dataclass(frozen=True)
class OwnPairs:
    """The data of a user's own file: no type of the package."""

    source: Any
    tokenizer: Any
    length: int = 8
    memory: int = 10**6


def test_own_data(captions):
    """Data of any type serve, by what they have; data without pairs are refused by what they lack."""
    made = experiment(captions)
    own = dataclasses.replace(made, data=OwnPairs(made.data.source, made.data.tokenizer))
    wanted, found = (one.task.prepare(one.data, one.model, seed=0) for one in (made, own))
    for name, x in wanted.train.stacked([0, 5]).items():
        np.testing.assert_array_equal(found.train.stacked([0, 5])[name], x)
    with pytest.raises(InputError, match=r"task Contrastive needs data with source, .*; TextCorpus has no memory"):
        made.task.check(made.model, corpus.TextCorpus(length=8))


def step_of(made, sizes):
    """(mean loss, parameters after one step) on a mesh, from the same parameters and pairs."""
    mesh = collectives.mesh_of(sizes)
    program = programs.make(made, mesh)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: rng.normal(0, 0.2, p.shape).astype(np.float32), params_lib.abstract(program.declaration)
    )
    batch = {
        name: rng.integers(1, 8 if "lengths" in name else 60, x.shape).astype(x.dtype)
        for name, x in program.batch.items()
    }
    batch["weights"] = np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32)
    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, program.batch)
        compiled = program.step.lower(program.state, program.batch, jax.random.key(0)).compile(collectives.QUICK)
        state, metrics = compiled(program.create(params), jax.device_put(batch, places), jax.random.key(0))
    return float(metrics["loss"]), params_lib.flatten(state.params)


def test_four_devices_in_two_parts_train_as_one_device(captions):
    """A batch in micro-batches, sharded over data, fsdp and tensor, is the batch: `accumulate` changes no number."""
    made = experiment(captions)
    expected = step_of(made, (1, 1, 1, 1))
    parts = dataclasses.replace(made, train=dataclasses.replace(made.train, accumulate=2))
    found = step_of(parts, (2, 2, 1, 2))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, wanted in expected[1].items():
        np.testing.assert_allclose(found[1][name], wanted, rtol=1e-5, atol=2e-5, err_msg=name)


# ---- Retrieval -----------------------------------------------------------------------------------------------------


def test_ranks():
    left = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    right = np.array([[1, 0.1], [1, 0], [1, 0.9]], np.float32)
    ids = np.arange(3)
    np.testing.assert_array_equal(retrieval.ranks(left, right, ids, ids), [2, 3, 1])
    scores = retrieval.retrieval(left, right, ids, ids)
    assert scores["recall_at_1_left_to_right"] == pytest.approx(1 / 3) and scores["recall_at_5_left_to_right"] == 1
    assert scores["mrr_left_to_right"] == pytest.approx((1 / 2 + 1 / 3 + 1) / 3)
    assert scores["chance_at_1"] == pytest.approx(1 / 3)


def test_several_captions_of_one_picture():
    """A picture is asked once; each of its captions is right, and the best one counts (Karpathy's protocol)."""
    left = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    right = np.array([[-1, 0], [1, 0], [0, 1]], np.float32)
    np.testing.assert_array_equal(retrieval.ranks(left, right, np.array([0, 0, 2]), np.arange(3)), [1, 1])
    np.testing.assert_array_equal(retrieval.ranks(right, left, np.arange(3), np.array([0, 0, 2])), [2, 1, 1])


def test_equal_embeddings_find_nothing():
    same, ids = np.ones((50, 4), np.float32), np.arange(50)
    assert retrieval.retrieval(same, same, ids, ids)["recall_at_10_left_to_right"] == 0
    assert (retrieval.ranks(same * np.nan, same, ids, ids) == 50).all()


def test_zero_shot_probe_and_similarity():
    axes = {"a cat": [1, 0, 0.2], "the cat": [1, 0, -0.2], "a dog": [0, 2, 0], "the dog": [0, 1, 0]}
    embed = lambda texts: np.array([axes[text] for text in texts], np.float32)  # noqa: E731
    classes = retrieval.class_embeddings(embed, ["cat", "dog"], ["a {}", "the {}"])
    np.testing.assert_allclose(classes, [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    pictures = np.array([[3, 1, 0], [0.1, 1, 0]], np.float32)
    np.testing.assert_array_equal(retrieval.nearest(pictures, classes, 1)[0], [[0], [1]])
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((60, 3)), np.arange(60) % 2
    rows[:, 0] += 4 * labels
    assert retrieval.linear_probe(rows[:40], labels[:40], rows[40:], labels[40:]) > 0.9
    scores = retrieval.similarity(pictures, np.array([[3, 1, 0], [1, -1, 0]]), np.array([5.0, 0.5]))
    assert scores == pytest.approx({"pearson": 1, "spearman": 1})


# ---- Prediction ----------------------------------------------------------------------------------------------------


def test_predict_embeds_and_searches(captions, tmp_path):
    made = experiment(captions)
    prepared = made.task.prepare(made.data, made.model, seed=0)
    params = dual.init(jax.random.key(0), made.model)
    model, given = (params, made.model, prepared.tokenizer), ["a red square", str(tmp_path / "red.png"), "gone.png"]
    text, picture, missing = made.task.predict(*model, given, top=2)
    assert len(text["embedding"]) == 16 and picture["image"].endswith("red.png") and "gone.png" in missing["error"]
    (found,) = made.task.predict(*model, given[1:2], top=2, search=str(tmp_path))
    assert found["found"][0]["item"].endswith("red.png") and found["found"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert made.task.describe(found).splitlines()[1].endswith("red.png")
    loaded = type("Loaded", (), dict(zip(("params", "config", "tokenizer"), model, strict=True)))
    options = dataclasses.replace(made.task.predict_options(made.sample), npy=str(tmp_path / "rows.npy"))
    lines = list(made.task.respond(loaded, [paired_input(x) for x in (given[0], "", given[1])], options))
    rows = np.load(tmp_path / "rows.npy")
    np.testing.assert_allclose(rows[[0, 2]], [text["embedding"], picture["embedding"]], atol=1e-5)
    assert np.isnan(rows[1]).all() and len(lines) == 3
    with pytest.raises(InputError, match="--search nowhere does not exist"):
        next(made.task.predict(*model, given, top=2, search="nowhere"))


def paired_input(text):
    from transformer_jax.data import inputs

    return inputs.text(text, "an argument")


def test_texts_do_not_depend_on_their_batch(captions):
    made = experiment(captions)
    prepared = made.task.prepare(made.data, made.model, seed=0)
    params = dual.init(jax.random.key(0), made.model)
    embedder = embedding.Embedder(params, made.model, prepared.tokenizer, made.task.preprocess)
    texts = ["a red square", "blue", "a"] * 12
    together = embedder.texts(texts, "right")
    np.testing.assert_allclose(together[35], embedder.texts(["a"], "right")[0], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": tasks.Contrastive(preprocess=Preprocess(size=8, resize=8), sizes=(32,))}, "task.sizes = .32,."),
        ({"task": tasks.Contrastive(preprocess=Preprocess(size=16, resize=16))}, "model.left.image_size and channels"),
        (
            {
                "model": dual.Config(
                    left=IMAGE, right=dataclasses.replace(TEXT, pooling="padded", max_length=16), width=16
                )
            },
            "the text tower reads the padding too: give it the length of its texts in prediction, 16",
        ),
        (
            {"model": dual.Config(left=TEXT, width=16)},
            "left sides of the data are pictures, but model.left reads texts",
        ),
    ],
)
def test_what_contradicts_is_refused(captions, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(experiment(captions), **changes)


def test_a_tower_of_pictures_reads_no_texts():
    with pytest.raises(InputError, match=r"model.left, which reads both sides, needs .*Config.vocab_size"):
        dual.Config(left=IMAGE, width=16)


def test_a_table_without_a_caption_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("left,right\nhello,\n")
    with pytest.raises(InputError, match=r"t.csv:2: an empty text"):
        paired.Table((str(tmp_path / "t.csv"),)).pairs("train")


def test_nested_columns_are_split_like_plain_ones(tmp_path):
    """By the left text, not by the name of its column."""
    texts = [(f"question {i // 2}", f"answer {i}") for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"left": a, "right": b}) + "\n" for a, b in texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"p": {"l": a, "r": b}}) + "\n" for a, b in texts))
    plain, nested = (
        paired.Table((str(tmp_path / "a.jsonl"),)),
        paired.Table((str(tmp_path / "b.jsonl"),), (), "p.l", "p.r"),
    )
    sides: list[paired.Side] = ["train", "validation"]
    for side in sides:
        held = [pair[:2] for pair in plain.pairs(side).held]
        assert held == [pair[:2] for pair in nested.pairs(side).held] and 0 < len(held) < 200
    assert not {p.left for p in plain.pairs("train").held} & {p.left for p in plain.pairs("validation").held}


# ---- Icons ---------------------------------------------------------------------------------------------------------


def test_icons_are_held_out_by_stem():
    source = icons.Icons()
    train, held = source.pairs("train"), source.pairs("validation")
    stems = [{icons.stem(pair.where.partition(":")[2]) for pair in pairs.held} for pairs in (train, held)]
    assert not stems[0] & stems[1] and len(stems[1]) == len(held.held) == 710
    assert len(train.held) > 13_000 and len({pair.right for pair in held.held}) == 710
    assert icons.stem("arrow-left-bold-outline") == "arrow-left" and icons.stem("battery-20") == "battery"
    picture = held.held[0].left
    assert picture.shape == (32, 32) and picture.max() == 255 and (picture > 0).mean() > 0.02
    assert source.baselines(train, held)["baseline_recall_at_1_words_of_20_nearest"] > 0.2
