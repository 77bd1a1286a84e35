"""Examples of labelled text: which tokens, in which order, how a pair is cut, what a label becomes."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data import tokenizers
from transformer_jax.data.tables import Table, TfdsTable
from transformer_jax.errors import InputError
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.classification.labelled import LabelledText

TFDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tfds"

SENTENCE = "the cat sat on a mat and so did every other cat of this town while it rained"
WORDS = SENTENCE.split()


def write(path: Path, count: int = 30, label=lambda i: ("no", "yes")[i % 2]) -> str:
    rng = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join(rng.choice(WORDS, i % 11 + 1)),
            "other": " ".join(rng.choice(WORDS, i % 7 + 1)),
            "label": label(i),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def data(path: str, length: int = 12, pairs: bool = False) -> LabelledText:
    source = Table((path,), (path,), (path,), text_b="other" if pairs else "")
    return LabelledText(source, tokenizers.TrainWordPiece(200), length)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("pairs") / "a.jsonl")
    return labelled.prepare(data(path, pairs=True), ("no", "yes"), seed=7), read(path)


# ---- Examples ------------------------------------------------------------------------------------------------------


def test_an_example_is_its_text_between_cls_and_sep(tmp_path):
    path = write(tmp_path / "a.jsonl")
    made = labelled.prepare(data(path), ("no", "yes"), seed=0)
    special, records = made.tokenizer.special, read(path)
    for i, record in enumerate(records):
        example, ids = made.test[i], made.tokenizer.encode(record["text"])
        wanted = [special.cls, *ids[:10], special.sep]
        assert example["tokens"].tolist() == wanted + [0] * (12 - len(wanted)) and example["lengths"] == len(wanted)
        assert set(example) == {"tokens", "lengths", "labels", "weights"} and example["weights"] == 1
        assert example["labels"] == ("no", "yes").index(record["label"]) and example["labels"].dtype == np.int32
    assert made.test.truncated == sum(len(made.tokenizer.encode(r["text"])) > 10 for r in records) > 0


def test_a_pair_is_told_apart_by_types(pairs):
    made, records = pairs
    special = made.tokenizer.special
    cut = 0
    for i, record in enumerate(records):
        example = made.validation[i]
        a, b = (made.tokenizer.encode(record[name]).tolist() for name in ("text", "other"))
        cut += len(a) + len(b) > 9
        while len(a) + len(b) > 9:  # BERT's run_classifier.py
            (a if len(a) > len(b) else b).pop()
        tokens = [special.cls, *a, special.sep, *b, special.sep]
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert example["tokens"].tolist() == tokens + [0] * (12 - len(tokens))
        assert example["types"].tolist() == types + [0] * (12 - len(types))
    assert made.validation.truncated == cut > 5


@pytest.mark.parametrize("between", [1, 2])
def test_pairs_are_cut_longest_first(between):
    special = labelled.Around(np.array([1]), np.full(between, 2), np.array([2]))
    for long_a, long_b, length in itertools.product(range(9), range(9), (8, 9, 11)):
        a, b = list(range(100, 100 + long_a)), list(range(200, 200 + long_b))
        framed = labelled.frame(np.array(a, np.int32), np.array(b, np.int32), special, length)
        too_long = long_a + long_b + 2 + between > length
        while len(a) + len(b) + 2 + between > length:
            (a if len(a) > len(b) else b).pop()
        assert framed.ids.tolist() == [1, *a, *[2] * between, *b, 2]
        assert framed[1:] == (1 + len(a) + between, too_long)


def test_training_is_a_function_of_seed_and_row(pairs, tmp_path):
    made, _ = pairs
    path = write(tmp_path / "a.jsonl")
    again = labelled.prepare(data(path, pairs=True), ("no", "yes"), seed=7, tokenizer=made.tokenizer)
    other = labelled.prepare(data(path, pairs=True), ("no", "yes"), seed=8, tokenizer=made.tokenizer)
    rows = [3, 44, 10_000]
    for name, array in made.train.stacked(rows).items():
        np.testing.assert_array_equal(array, again.train.stacked(rows)[name])
        np.testing.assert_array_equal(array, np.stack([made.train[row][name] for row in rows]))
    assert (made.train.stacked(range(30))["tokens"] != other.train.stacked(range(30))["tokens"]).any()
    for epoch in (range(30), range(30, 60)):  # each row once, in another order
        seen = made.train.stacked(epoch)["tokens"].tolist()
        assert sorted(seen) == sorted(made.test.stacked(range(30))["tokens"].tolist())
    assert made.train.stacked(range(30))["tokens"].tolist() != made.train.stacked(range(30, 60))["tokens"].tolist()


def test_roberta_puts_two_separators_between(tmp_path):
    documents = [("a", SENTENCE)]
    spec = tokenizers.TrainBPE(300, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    assert [len(part) for part in labelled.around(tokenizers.build(spec, documents))] == [1, 2, 1]
    assert [len(part) for part in labelled.around(tokenizers.build(tokenizers.TrainWordPiece(200), documents))] == [
        1,
        1,
        1,
    ]


# ---- Labels --------------------------------------------------------------------------------------------------------


def made_with(tmp_path, label, names):
    path = write(tmp_path / "a.jsonl", 12, label=label)
    return labelled.prepare(data(path), names, seed=0).test.stacked(range(12))["labels"]


def test_labels_are_names_or_their_numbers(tmp_path):
    assert made_with(tmp_path, lambda i: i % 3, ("a", "b", "c")).tolist() == [0, 1, 2] * 4
    assert made_with(tmp_path, lambda i: str(i % 2), ("1", "0")).tolist() == [1, 0] * 6  # here the numbers are names
    assert made_with(tmp_path, lambda i: f"{i % 2}.0", ("no", "yes")).tolist() == [0, 1] * 6  # as pandas writes them
    assert made_with(tmp_path, lambda i: float(i % 2), ("1", "0")).tolist() == [1, 0] * 6
    assert made_with(tmp_path, lambda i: i % 2 * 2 - 1.0, ("-1", "1")).tolist() == [0, 1] * 6
    values = made_with(tmp_path, lambda i: i / 4, ())
    assert values.dtype == np.float32 and values.tolist() == [i / 4 for i in range(12)]


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        (
            lambda i: "maybe" if i == 4 else "no",
            ("no", "yes"),
            r"a.jsonl:5: label 'maybe' is not in task.labels \(no, yes",
        ),
        (lambda i: i, ("no", "yes"), r"a.jsonl:3: label '2' is not in task.labels"),
        (lambda i: -1, ("no", "yes"), r"a.jsonl:1: label '-1' is not in task.labels"),
        (lambda i: 2, ("0", "1"), r"a.jsonl:1: label '2' is not in task.labels \(0, 1\)"),
        (lambda i: "good", (), r"a.jsonl:1: label 'good' is not a number"),
        (lambda i: "nan", (), r"a.jsonl:1: label 'nan' is not a number"),
    ],
)
def test_labels_outside_their_set(tmp_path, label, names, message, capfd):
    with pytest.raises(InputError, match=message):
        made_with(tmp_path, label, names)
    assert "learning" not in "".join(capfd.readouterr()), "it is said before a tokenizer is learned"


# ---- Refused -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_special_tokens(tmp_path):
    source = Table((write(tmp_path / "a.jsonl"),))
    with pytest.raises(InputError, match=r"the tokenizer has no tokens for the beginning and the end"):
        labelled.prepare(LabelledText(source, tokenizers.Bytes(), 16), ("no", "yes"), seed=0)


def test_settings_out_of_range(tmp_path):
    with pytest.raises(InputError, match=r"data.length = 7 must be at least 8"):
        LabelledText(Table(("a",)), tokenizers.Bytes(), 7)
    with pytest.raises(InputError, match=r"seed = -1 must be between"):
        labelled.prepare(data(write(tmp_path / "a.jsonl")), ("no", "yes"), seed=-1)


@pytest.mark.skipif(not TFDS.exists(), reason="SST-2 is not in ../shared/data/tfds")
def test_sst2():
    source = TfdsTable("sst2_sentences", test="test", data_dir=str(TFDS))
    made = labelled.prepare(LabelledText(source, tokenizers.TrainWordPiece(4000), 32), ("negative", "positive"), seed=0)
    batch = made.test.stacked(range(len(made.test)))
    assert batch["tokens"].shape == (1821, 32) and batch["labels"].mean() == pytest.approx(909 / 1821)
    ids = batch["tokens"][0][1 : batch["lengths"][0] - 1]
    assert made.tokenizer.decode(ids) == "if you love motown music, you ' ll love this documentary"
    assert 0 < made.test.truncated < 600
