"""compare: intervals and p-values are those of a plain float64 bootstrap and of sacreBLEU; bad folders are refused."""

import json

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from transformer_jax import tasks
from transformer_jax.cli.main import main
from transformer_jax.compare import bootstrap, stored
from transformer_jax.compare import page as compare_page
from transformer_jax.contracts import Evaluation
from transformer_jax.errors import InputError
from transformer_jax.runs import records
from transformer_jax.tasks import tagging


def naive(a_E2, b_E2, samples, seed):
    """The same bootstrap, one resample and one example at a time."""

    def mean(rows):
        weight = sum(w for _, w in rows)
        return sum(s for s, _ in rows) / weight if weight else 0.0

    rng, found = np.random.default_rng(seed), []
    seen = mean(b_E2.tolist()) - mean(a_E2.tolist())
    for _ in range(samples):
        rows = rng.integers(len(a_E2), size=len(a_E2))
        found.append(mean([b_E2[i].tolist() for i in rows]) - mean([a_E2[i].tolist() for i in rows]))
    p = (1 + sum(abs(x - seen) >= abs(seen) for x in found)) / (samples + 1)
    return seen, np.percentile(found, (2.5, 97.5)), p


def some(rng, count, shift=0.0):
    weights = rng.integers(1, 9, count)
    return np.stack([rng.normal(3 + shift, 1, count) * weights, weights], 1)


def test_a_ratio_is_that_of_a_plain_bootstrap(monkeypatch):
    rng = np.random.default_rng(0)
    a_E2 = some(rng, 60)
    b_E2 = np.stack([a_E2[:, 0] + rng.normal(0.2, 1, 60), a_E2[:, 1]], 1)
    seen, (low, high), p = naive(a_E2, b_E2, 300, 5)
    for at_once in (2**22, 60 * 7):  # in one part, and in parts of seven resamples
        monkeypatch.setattr(bootstrap, "AT_ONCE", at_once)
        found = bootstrap.ratio(a_E2, b_E2, samples=300, seed=5)
        np.testing.assert_allclose((found.b - found.a, found.low, found.high), (seen, low, high), rtol=1e-9)
        assert found.p == p and 0.01 < p < 0.99 and found.examples == 60


def test_a_difference_is_claimed_where_there_is_one_and_not_between_equals():
    rng = np.random.default_rng(1)
    a_E2 = some(rng, 100)
    assert bootstrap.ratio(a_E2, a_E2 + [1.0, 0.0]).claimed
    claimed = sum(bootstrap.ratio(some(rng, 100), some(rng, 100), samples=200).claimed for _ in range(100))
    assert claimed <= 10, "runs that differ by chance alone"
    assert not any(bootstrap.ratio(a_E2, a_E2.copy(), samples=50, seed=seed).claimed for seed in range(100))
    assert bootstrap.ratio(a_E2, a_E2.copy()).p == 1.0
    assert bootstrap.ratio(a_E2[:5], a_E2[:5] + [1.0, 0.0]).p < 0.05
    assert not bootstrap.ratio(a_E2[:5], a_E2[:5] + [1.0, 0.0]).claimed, "five examples are too few"
    no_entity = np.zeros((3, 2))
    assert bootstrap.ratio(no_entity, no_entity).a == 0.0
    for bad in (a_E2[:5], np.full_like(a_E2, np.nan)):
        with pytest.raises(ValueError, match="examples|finite"):
            bootstrap.ratio(a_E2, bad)


def translations():
    rng = np.random.default_rng(2)
    words = ["the", "a", "red", "blue", "dog", "cat", "house", "sees", "runs", "on", "in", "under"]
    references = [" ".join(rng.choice(words, 8)) for _ in range(40)]
    worse = lambda share: [  # noqa: E731
        " ".join(rng.choice(words) if rng.random() < share else word for word in text.split()) for text in references
    ]
    return references, worse(0.30), worse(0.24)


def test_texts_have_the_p_values_of_sacrebleu():
    references, a, b = translations()
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        _, scores = PairedTest([("a", a), ("b", b)], {name: metric}, [references], test_type="bs")()
        (wanted,) = (values for key, values in scores.items() if key != "System")
        found = bootstrap.texts(name, a, b, references)
        assert found.p == wanted[1].p_value and (found.a, found.b) == pytest.approx((wanted[0].score, wanted[1].score))
        assert found.low < found.b - found.a < found.high
        assert bootstrap.texts(name, a, list(a), references).p == 1.0, "sacreBLEU's test claims a difference here"


@pytest.fixture
def runs(tmp_path):
    """Two folders as runs leave them: a loss, an accuracy and translations of the same examples."""
    references, a, b = translations()
    rng = np.random.default_rng(3)
    for name, lines, shift, rate in (("a", a, 0.0, 0.1), ("b", b, 0.5, 0.2)):
        folder = tmp_path / name
        (folder / "code").mkdir(parents=True)
        (folder / "code/mine.py").write_text(f"x = {rate}")
        config = {"type": "Experiment", "optim": {"type": "optim.Optim", "peak_lr": rate}, "seed": 0}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "results.json").write_text(json.dumps({"step": 9, "report": {}, "devices": "1 x cpu"}))
        rows = [{"step": i, "loss": 1 / (i + rate)} for i in range(1, 10)] + [{"step": 9, "validation/loss": shift}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        loss_E = np.random.default_rng(4).normal(3, 1, 40) + shift
        right_E = rng.random(40) < 0.5
        columns = {"loss": loss_E, "accuracy": right_E, "label": ["\x1b[2Jcat"] * 40, "predicted": [name] * 40}
        records.write(folder / records.name("test"), columns)
        for kind, texts in (("sources", references), ("references", references), ("hypotheses", lines)):
            (folder / f"test.{kind}.txt").write_text("".join(f"{text}\n" for text in texts))
    return tmp_path


def test_the_command_prints_what_differs_and_by_how_much(runs, capsys):
    a, b, page = str(runs / "a"), str(runs / "b"), runs / "c.html"
    assert main(["compare", a, b, "--html", str(page)]) == 0
    text = capsys.readouterr().out
    assert "optim.peak_lr" in text and "mine.py" in text and "seed" not in text and "\x1b" not in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert "+0.5" in rows["loss"] and rows["loss"].endswith("differs") and "bleu" in rows and "chrf" in rows
    assert "where loss differs most:" in text and "predicted: a | b" in text
    html = page.read_text()
    assert "optim.peak_lr" in html and "<svg" in html and "<script" not in html and "\x1b" not in html
    assert main(["compare", a, a]) == 0
    text = capsys.readouterr().out
    assert "no difference" in text and " differs" not in text.replace("differs most", "")
    assert main(["compare", str(runs), "--html", str(page)]) == 0
    assert "Settings and results" in page.read_text() and "a: optim.peak_lr 0.1" in page.read_text()
    listed = capsys.readouterr().out.splitlines()
    assert "optim.peak_lr" in listed[0] and listed[1].split()[:3] == ["a", "0.1", "0"] and listed[2].split()[0] == "b"


def test_other_examples_are_not_compared(runs, capsys):
    (runs / "b/test.references.txt").write_text("x\n" * 40)
    path = runs / "b" / records.name("test")
    path.write_text(path.read_text().replace("cat", "dog", 3))
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 0
    assert "not compared, example 1 is" in capsys.readouterr().out
    path.write_text("\n".join(path.read_text().splitlines()[:7]) + "\n")
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 0
    assert "not compared, 40 examples in one and 7 in the other" in capsys.readouterr().out


def test_a_number_that_is_not_finite_is_uncompared_alone(runs, capsys):
    path = runs / "b" / records.name("test")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["loss"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 0
    printed = capsys.readouterr().out
    assert "loss: not compared, a number that is not finite" in printed
    assert printed.startswith("run 1: ") and "accuracy" in printed and "bleu" in printed


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[1]", "is not of a run"),
        ("config.json", '{"a": ' * 5000, "nested too deep"),
        ("results.json", '{"step": "x"}', "wrong value of 'step'"),
        ("test.examples.jsonl", '{"loss": 1}\n{"lo', "line 2, cannot be read as JSON"),
        ("test.examples.jsonl", '{"loss": 1}\n{"x": 1}\n', "line 2, has not the names"),
        ("test.examples.jsonl", '{"loss": [1, 2, 3]}\n', "is no number, pair of numbers or text"),
        ("test.examples.jsonl", '{"loss": ' + "9" * 400 + "}\n", "is no number"),
        ("test.examples.jsonl", '{"loss": 1}\n{"loss": "a"}\n', "a text in some lines"),
        ("test.hypotheses.txt", "one\n", "not one line each"),
    ],
)
def test_a_bad_folder_is_one_line(runs, capsys, file, content, message):
    (runs / "b" / file).write_text(content)
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and len(error) < 500


def test_no_run_no_records_and_links_are_refused(runs, tmp_path, capsys):
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"loss": 1}\n')
    for arguments, message in (
        (["compare"], "an argument is missing"),
        (["compare", str(runs / "a")], "is one run"),
        (["compare", str(runs / "none"), str(runs / "a")], "is no folder"),
        (["compare", str(runs / "a/code"), str(runs / "a")], "has no config.json"),
        (["compare", str(runs / "a/code")], "holds none"),
        (["compare", str(runs / "a"), str(runs / "b"), "--htm", "x"], "no option --htm"),
        (["compare", str(runs / "a"), str(runs / "b"), "--html"], "--html names no file"),
    ):
        assert main(arguments) == 2 and message in capsys.readouterr().err
    path = runs / "b" / records.name("test")
    path.unlink()
    path.symlink_to(outside)
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 2 and "is a link" in capsys.readouterr().err
    path.unlink()
    for kind in ("sources", "references", "hypotheses"):
        (runs / f"b/test.{kind}.txt").unlink()
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 2
    assert "have no evaluation with examples in common" in capsys.readouterr().err


def test_a_long_metrics_file_is_thinned_and_its_bad_values_are_uncompared(runs):
    path = runs / "a/metrics.jsonl"
    lines = [f'{{"step": {i}, "loss": {"NaN" if i % 7 == 0 else i}}}' for i in range(1, 9000)]
    path.write_text("\n".join([*lines, "no row", '{"step": "x"}', '{"step": 1, "loss": true, "validation/x": "y"}']))
    curve = stored.read("a", runs / "a").curves["loss"]
    assert len(curve) < stored.MOST_POINTS and curve[0][0] == 1 and curve[-1][0] > 8000
    assert all(np.isfinite(value) for _, value in curve) and "validation/x" not in stored.read("a", runs / "a").curves


def test_curves_by_what_has_passed(runs):
    """A step takes half a second, then a whole one, at 100 tokens a second; the rows are 10 steps apart."""
    rows = [{"step": 10, "loss": 3.0, "seconds_per_step": 0.5}, {"step": 20, "loss": 2.0, "seconds_per_step": 1.0}]
    lines = [json.dumps(row | {"tokens_per_second": 100.0}) for row in rows] + ['{"step": 15, "validation/loss": 2.5}']
    (runs / "a/metrics.jsonl").write_text("\n".join(lines))
    run = stored.read("a", runs / "a")
    assert run.passed == {"seconds": [(10, 5.0), (20, 15.0)], "tokens": [(10, 500.0), (20, 1500.0)]}
    text = "".join(compare_page.curves([run]))
    assert "a: from 3 at 5 to 2 at 15" in text and "a: from 3 at 500 to 2 at 1,500" in text
    assert "a: 2.5 at 10." in text and "a: 2.5 at 1,000." in text


def test_what_is_stored_of_an_example(tmp_path):
    path = tmp_path / "r.jsonl"
    columns = {"loss": np.array([0.1234567891, np.inf]), "right": [True, False], "f1": np.array([[2.0, 3], [0, 0]])}
    records.write(
        path, {**columns, "label": ["x" * 999, "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]}
    )
    assert json.loads(path.read_text().splitlines()[0])["loss"] == 0.1234568
    found = records.read(path, tmp_path)
    assert np.isnan(found["loss"][1, 0]) and found["right"].tolist() == [[1, 1], [0, 1]]
    assert found["f1"].tolist() == [[2, 3], [0, 0]] and len(found["label"][0]) == records.MAX_TEXT + 3
    records.write(tmp_path / "none", {})
    assert not (tmp_path / "none").exists() and records.read(tmp_path / "none", tmp_path) == {}
    with pytest.raises(InputError, match="not of one length"):
        records.write(path, {"a": [1], "b": [1, 2]})


def share(pairs):
    """The number of a run: the sum of the sums over that of the weights."""
    pairs_E2 = np.array([pair if np.ndim(pair) else (pair, 1) for pair in pairs], float)
    return pairs_E2[:, 0].sum() / pairs_E2[:, 1].sum()


def test_the_records_of_a_task_add_up_to_its_report():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 3)), rng.integers(3, size=30)
    nats = float(-np.mean([np.log(np.exp(x)[k] / np.exp(x).sum()) for x, k in zip(logits, labels, strict=True)]))

    task = tasks.Classification(labels=("a", "b", "c"))
    held = Evaluation(range(30), labels)
    made, report = task.records({"logits": logits}, held), task.report({"loss": (nats, 1)}, {"logits": logits}, held)
    assert share(made["accuracy"]) == pytest.approx(report["accuracy"]) and share(made["loss"]) == pytest.approx(nats)
    assert [made["label"][0], made["predicted"][0]] == ["abc"[labels[0]], "abc"[logits[0].argmax()]]

    images = tasks.ImageClassification(labels=("a", "b", "c"))
    weights = (np.arange(30) % 5 > 0).astype(float)  # a fifth could not be decoded
    outputs, held = {"logits": logits, "labels": labels, "weights": weights}, Evaluation(range(30), ("a", "b", "c"))
    made, report = images.records(outputs, held), images.report({"loss": (nats, 1)}, outputs, held)
    assert share(made["accuracy"]) == pytest.approx(report["accuracy"])
    broken = {**outputs, "logits": np.full((30, 3), np.nan)}
    assert np.isnan(np.asarray(images.records(broken, held)["loss"])[weights > 0, 0]).all()

    tags = tasks.Tagging(labels=("O", "B-X", "I-X"))
    wanted = [rng.integers(3, size=n) for n in (4, 7, 1, 5)]
    first = [np.arange(len(tags_W)) for tags_W in wanted]
    outputs, held = {"tags": rng.integers(3, size=(4, 7))}, Evaluation(range(4), tagging.Reference(wanted, first))
    made, report = tags.records(outputs, held), tags.report({"loss": (1, 1)}, outputs, held)
    for name in ("entity_f1", "token_accuracy"):
        assert share(made[name]) == pytest.approx(report[name])
