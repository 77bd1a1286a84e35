"""Encoders on the command line: a snapshot predicts, becomes a workdir that predicts the same, and comes back."""

import csv
import io
import json

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax import hub
from transformer_jax.__main__ import main
from transformer_jax.data import tokenizers
from transformer_jax.models import bert

TEXT = [("words", "the theory of the thing is nothing in the other list of strings " * 9)]
TOKENIZER = tokenizers.build(tokenizers.TrainBPE(262, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")), TEXT)
MODEL = {"vocab_size": 262, "max_length": 32, "width": 16, "num_layers": 1, "num_heads": 2, "init_std": 0.3}
KINDS = {
    "masks": (("mlm",), (), "the <mask> of the list"),
    "labels": (("classification",), ("bad", "good", "both"), "the list\tof strings"),
    "entities": (("tokens",), ("O", "B-X", "I-X"), "the list of strings"),
    "answers": (("span",), (), "what is it\tthe list of strings"),
    "nothing": (("choice",), (), "the list"),
}


def without_numbers(tree):
    """Probabilities differ in their last digits with the number of rows computed together."""
    if isinstance(tree, dict):
        return {name: without_numbers(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_numbers(value) for value in tree]
    return round(tree, 5) if isinstance(tree, float) else tree


@pytest.fixture
def snapshot(request, tmp_path):
    """A Hugging Face folder of random weights with this head."""
    heads, labels, _ = KINDS[request.param]
    config = bert.Config(**MODEL, heads=heads, num_labels=len(labels) or 2)
    hub.export(tmp_path / "hf", config, bert.init(jax.random.key(0), config), TOKENIZER, labels=labels)
    return tmp_path / "hf"


@pytest.mark.parametrize(("snapshot", "kind"), [(k, k) for k in list(KINDS)[:-1]], indirect=["snapshot"])
def test_a_snapshot_predicts_and_converts_there_and_back(snapshot, kind, tmp_path, capsys, monkeypatch):
    _, labels, text = KINDS[kind]

    def predict(path, *arguments):
        capsys.readouterr()
        assert main(["predict", str(path), *arguments]) == 0
        return capsys.readouterr().out

    answer = json.loads(predict(snapshot, text, "--json", "--top", "2"))
    assert main(["convert", "hf", str(snapshot), str(tmp_path / "run")]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{text}\n\n".encode())))
    lines = predict(tmp_path / "run", "--json", "--top", "2").splitlines()
    assert json.loads(lines[0]) == answer, "from stdin"
    assert json.loads(lines[1])["error"] == "the input is empty", "an answer for each input"
    (tmp_path / "in.txt").write_text(f"{text}\n{text}\n")
    lines = predict(tmp_path / "run", "--file", str(tmp_path / "in.txt"), "--json", "--top", "2").splitlines()
    assert [without_numbers(json.loads(line)) for line in lines] == [without_numbers(answer)] * 2
    (tmp_path / "in.txt").write_text(f"{text}\x0c{text}\r\n", newline="")
    assert len(predict(tmp_path / "run", "--file", str(tmp_path / "in.txt"), "--json").splitlines()) == 1, "a line"
    assert predict(tmp_path / "run", text).strip(), "text for people"
    assert main(["convert", "hf", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert hub.labels(tmp_path / "back") == hub.labels(snapshot) == labels
    ours, back = transformer_jax.load(snapshot), transformer_jax.load(tmp_path / "back")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours.params, back.params)


@pytest.mark.parametrize("snapshot", ["nothing"], indirect=True)
def test_heads_that_nothing_predicts_with(snapshot, tmp_path, capsys):
    loaded = transformer_jax.load(snapshot)
    assert loaded.task is None and loaded.config.heads == ("pooler", "choice"), "it loads all the same"
    for command in (["predict", str(snapshot), "a"], ["convert", "hf", str(snapshot), str(tmp_path / "run")]):
        assert main(command) == 2
        assert "heads pooler, choice" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("snapshot", ["labels"], indirect=True)
def test_bad_inputs(snapshot, tmp_path, capsys, monkeypatch):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    for arguments, message in (
        (["--file", str(tmp_path / "none.txt")], "cannot be read (No such file"),
        (["--file", str(tmp_path / "latin.txt")], "latin.txt:1: not UTF-8 at byte 3"),
        (["a text", "--file", "x"], "give one of them"),
        ([], "no input: give a text, --file, or lines on stdin"),
        (["a text", "--topp", "3"], "unknown override --topp; the nearest is --top"),
    ):
        assert main(["predict", str(snapshot), *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("snapshot", ["labels"], indirect=True)
def test_a_table_has_one_answer_for_each_row(snapshot, tmp_path, capsys):
    """The header, ids and halves of quoted records are no texts; the other columns are kept."""
    (tmp_path / "new.csv").write_bytes(b'\xef\xbb\xbfid,review\r\n1,"good, or\r\nnot"\r\n2,\r\n3,the fox\r\n')
    new, out = str(tmp_path / "new.csv"), tmp_path / "out.csv"
    assert main(["predict", str(snapshot), "--file", new]) == 2
    assert "is a table; choose the column of the input with --text: 'id', 'review'" in capsys.readouterr().err
    assert main(["predict", str(snapshot), "--file", new, "--text", "review", "--out", str(out)]) == 0
    assert "1 of 3 inputs have no answer; the first: " in (err := capsys.readouterr().err) and "new.csv:4" in err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2", "3"] and rows[0]["review"] == "good, or\nnot"
    (tmp_path / "new.csv").write_text("id,review\n1,\n2, \n")
    assert main(["predict", str(snapshot), "--file", new, "--text", "review", "--out", str(out)]) == 2
    assert "none of 2 inputs has an answer" in capsys.readouterr().err
    assert out.read_text().splitlines()[1:] == ["1,,the input is empty", "2, ,the input is empty"]
    assert [bool(row["label"]) for row in rows] == [True, False, True] and rows[1]["error"] == "the input is empty"
    assert main(["predict", str(snapshot), "", "the fox", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [list(json.loads(line))[:2] for line in lines] == [["input", "error"], ["text", "label"]]
    for arguments, message in (
        (["a", "--text", "review"], "--text and --text-b name columns of a table; name it with --file"),
        (["a", "--out", "answers.txt"], "--out answers.txt: the name must end in .csv or .jsonl"),
        (["caf\udce9"], "input 'caf'... is not UTF-8 at byte 3"),
    ):
        assert main(["predict", str(snapshot), *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("snapshot", ["labels"], indirect=True)
def test_evaluating_files_given(snapshot, tmp_path, capsys, monkeypatch):
    """A snapshot and its workdir give the same numbers, as counted by hand from `predict`; no other file is there."""
    monkeypatch.chdir(tmp_path)
    texts = ["the list", "of strings", "the theory of nothing", "in the other"]
    stars = ["good", "bad", "good", "both"]
    rows = "".join(f"{text},{star}\n" for text, star in zip(texts, stars, strict=True))
    (tmp_path / "new.csv").write_text(f"review,stars\n{rows}")
    assert main(["predict", "hf", *texts, "--json"]) == 0
    answers = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    right = sum(a == b for a, b in zip(answers, stars, strict=True)) / 4
    assert main(["convert", "hf", "hf", "run"]) == 0
    columns = ["--data.source.text", "review", "--data.source.label", "stars"]
    printed = []
    for path in ("hf", "run"):
        capsys.readouterr()
        assert main(["evaluate", path, "--data", "new.csv", *columns]) == 0
        printed.append([line for line in capsys.readouterr().out.splitlines() if not line.startswith("picture")])
    of, run = printed
    assert (of[0], run[0]) == ("hf, new.csv, 4 examples", "step 0, new.csv, 4 examples")
    assert of[1:] == run[1:] and f"accuracy {right:.4f}" in [" ".join(line.split()) for line in of]
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["report"]["accuracy"] == right
    assert sorted(path.name for path in (tmp_path / "hf").iterdir() if "evaluation" in path.name) == []
    for arguments, message in (
        (["hf", "--data", "none.csv"], "no such file or folder: none.csv"),
        (["hf", "--data"], "--data names no file"),
        (["hf", "--data", "new.csv"], "no column 'text'; there are 'review', 'stars'"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
