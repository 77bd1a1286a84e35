"""The loop on a tiny experiment: what it writes, that it goes on to the bit, and what ends it."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax import config_json, restore
from transformer_jax.contracts import Observer
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.runs import lock, records, versions
from transformer_jax.tasks.causal_lm import CausalLM
from transformer_jax.train import loop
from transformer_jax.train import steps as steps_lib

STEPS = 6


SCORES: list[float] = []  # what `Scripted` reports, one after the other


@dataclasses.dataclass(frozen=True)
class Scripted(CausalLM):
    """A task of the user's own, whose numbers are known."""

    def report(self, sums, outputs, evaluation):
        return super().report(sums, outputs, evaluation) | {"score": SCORES.pop(0)}


class WithATestSet(Scripted):
    """With a test set, and a best step that is spoilt before the end."""

    def prepare(self, *args, **options):
        prepared = super().prepare(*args, **options)
        return dataclasses.replace(prepared, test=prepared.validation)

    def score(self, params, model, tokenizer, examples, folder, name, **options):  # after the last save
        if name == "validation":
            file = max((folder / "checkpoints/1/ema").rglob("d/*"), key=lambda path: path.stat().st_size)
            file.write_bytes(file.read_bytes()[:-1])
        return {}


class Begins(Observer):
    """Keeps the id and the first step of each start; fails at the first row."""

    def __init__(self):
        self.begun = []

    def start(self, run):
        self.begun.append((run.run_id, run.first_step))

    def row(self, row):
        raise ConnectionError("no route to the service")

    def end(self, results):
        raise AssertionError("a dropped observer is called")


class Hears(Observer):
    """Calls a function with each row of training and of evaluation."""

    def __init__(self, on_row):
        self.on_row = on_row

    def row(self, row):
        self.on_row(row)

    def evaluation(self, step, name, report):
        self.on_row({"step": step} | {f"{name}/{key}": value for key, value in report.items()})


def heard(experiment, on_row):
    return dataclasses.replace(experiment, observers=(Hears(on_row),))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Experiment:
    text = tmp_path_factory.mktemp("text") / "words.txt"
    words = np.random.default_rng(0).choice(["to", "be", "or", "not", "that", "is", "the"], 2000)
    text.write_text(" ".join(words))
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2, dropout=0.2),
        data=corpus.TextCorpus(sources.TextFiles((str(text),)), tokenizers.Bytes(), length=16),
        optim=Optim(peak_lr=1e-2, decay_steps=STEPS),
        train=Train(steps=STEPS, batch_size=16, accumulate=2, log_every=1),
        evaluate=Evaluate(every=4, sample=True),
        checkpoint=Checkpoint(every=2),
        sample=Sample(max_new_tokens=0),
        ema=Ema(decay=0.9),
    )


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """The workdir of the run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    recipe = dataclasses.replace(tiny, seed=7)
    with pytest.MonkeyPatch.context() as patch:
        meshes = lambda: "a sample" if jax.sharding.get_abstract_mesh().empty else "in the mesh of the run"  # noqa: E731
        patch.setattr(type(tiny.task), "sample", lambda *arguments, seed: iter([meshes()]))
        assert loop.run(tiny, folder, load=restore.load, recipe=recipe).step == STEPS
    return folder


def leaves(workdir: Path) -> dict[str, np.ndarray]:
    """Parameters, average and moments of the newest step, as they are stored."""
    import orbax.checkpoint as ocp

    step = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name)).absolute()
    found: dict[str, np.ndarray] = {}
    for item in ("params", "ema", "optimizer"):
        tree = ocp.StandardCheckpointer().restore(step / item)
        found |= {f"{item}/{name}": np.asarray(x) for name, x in params_lib.flatten(tree).items()}
    return found


def test_the_folder_explains_itself(tiny, whole):
    names = {path.name.partition(".tfevents")[0] for path in whole.iterdir()}
    assert names == {
        *("run.json", "validation.examples.jsonl"),
        *("config.json", "tokenizer", "metrics.jsonl", "events.out", "checkpoints", "loss.png", "results.json"),
        *("launches.jsonl", "samples.jsonl", "report.html"),
    }
    assert config_json.load(whole / "config.json") == tiny
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "validation/bits_per_byte" in row] == [4, 6]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(np.log(257), abs=0.1)
    assert losses[-1] < losses[0] - 0.3
    results = json.loads((whole / "results.json").read_text())
    assert results["step"] == STEPS and results["report"] == {
        name.removeprefix("validation/"): value for name, value in rows[-1].items() if name != "step"
    }
    loss_N2 = records.read(whole / "validation.examples.jsonl", whole)["loss"]  # of each batch
    assert len(loss_N2) > 1 and results["source"] and results["data"]
    assert loss_N2[:, 0].sum() / loss_N2[:, 1].sum() == pytest.approx(
        results["report"]["loss_nats_per_token"], rel=1e-6
    )
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert samples == [{"step": step, "text": "a sample"} for step in (4, STEPS)]
    (launch,) = map(json.loads, (whole / "launches.jsonl").read_text().splitlines())
    assert launch["changed"] == [["seed", 7, tiny.seed]] and launch["parameters"] == results["parameters"]
    assert f"Complete at step {STEPS} of {STEPS}" in (whole / "report.html").read_text()
    assert results["seconds_to_first_step"] > 0 and results["seconds_compiling"] > 0


def test_stopped_by_sigterm_and_taken_up_gives_the_same_bits(tiny, whole, tmp_path, capsys):
    """With dropout, accumulation, averaging and validation; stopped twice, each time away from a regular save."""

    def stop_at(step, number=signal.SIGTERM):
        def on_row(row):
            if row["step"] == step and "loss" in row:
                os.kill(os.getpid(), number)

        return on_row

    folder = tmp_path / "run"
    first = loop.run(heard(tiny, stop_at(2)), folder, load=restore.load)
    assert first.signal == signal.SIGTERM and 2 <= first.step < STEPS and not first.report
    assert not (folder / "results.json").exists()
    assert "goodput " in capsys.readouterr().out
    run_id = json.loads((folder / "run.json").read_text())["run"]
    begins = Begins()
    stopping = heard(tiny, stop_at(first.step + 1, signal.SIGUSR1)).observers
    second = loop.run(dataclasses.replace(tiny, observers=(begins, *stopping)), folder, load=restore.load)
    assert second.signal == signal.SIGUSR1
    assert first.step < second.step < STEPS
    third = loop.run(dataclasses.replace(tiny, observers=(begins,)), folder, load=restore.load)
    assert begins.begun == [(run_id, first.step), (run_id, second.step)], "one id"
    assert capsys.readouterr().err.count("observer Begins is dropped and the run goes on without it: ") == 2
    assert (third.step, third.signal) == (STEPS, 0)

    expected, found = leaves(whole), leaves(folder)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)

    def curve(workdir):
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return {
            (row["step"], name): value
            for row in rows
            for name, value in row.items()
            if name in ("loss", "grad_norm", "validation/bits_per_byte")
        }

    assert curve(folder) == curve(whole), "with the evaluation at step 4, which the signal cut short"


def test_another_seed_is_another_run(tiny, whole, tmp_path):
    """The comparison to the bit above can fail."""
    loop.run(dataclasses.replace(tiny, seed=1), tmp_path / "run", load=restore.load)
    name = "params/blocks/mlp/up/kernel"
    assert (leaves(tmp_path / "run")[name] != leaves(whole)[name]).any()


def test_a_complete_run_says_so_and_how_to_go_on(tiny, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    results = loop.run(tiny, whole, load=restore.load)
    out = capsys.readouterr().out
    assert "already complete at step 6" in out and "--train.steps 12" in out
    assert results.step == STEPS and results.report["bits_per_byte"] > 0
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_more_steps_go_on_and_are_said(tiny, whole, tmp_path, capsys):
    import shutil

    folder = shutil.copytree(whole, tmp_path / "run")
    more = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, steps=STEPS + 1, batch_size=32))
    results = loop.run(more, folder, load=restore.load)
    out = capsys.readouterr().out
    assert "train.steps: 6 -> 7" in out and "train.batch_size: 16 -> 32" in out and "resume from step 6 of 7" in out
    assert results.step == STEPS + 1
    # 6 batches of 16 rows, then one of 32: the pipeline counts rows, not batches.
    meta = json.loads((folder / "checkpoints/7/meta/metadata").read_text())
    assert meta["rows"] == 6 * 16 + 32


def test_a_damaged_step_is_passed_over_and_the_run_ends_with_the_same_bits(tiny, whole, tmp_path, capsys):
    import shutil

    folder = shutil.copytree(whole, tmp_path / "run")
    spoilt = max((folder / "checkpoints/6/optimizer").rglob("d/*"), key=lambda path: path.stat().st_size)
    spoilt.write_bytes(bytes(255 - byte for byte in spoilt.read_bytes()))
    (folder / "results.json").unlink()
    (folder / "checkpoints/8.part").mkdir()
    loop.run(tiny, folder, load=restore.load)
    out = capsys.readouterr().out
    assert f"step 6 is not used: {spoilt} is not as it was written" in out
    assert "resume from step 4 of 6" in out and "8.part: left by an interrupted save; removed" in out
    assert "goodput " in out and not (folder / "lock").exists()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "6", "6.damaged"]
    shutil.rmtree(folder / "checkpoints/6.damaged")
    expected, found = leaves(whole), leaves(folder)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


def test_a_workdir_of_a_living_run_is_refused(tiny, whole, tmp_path):
    import shutil

    folder = shutil.copytree(whole, tmp_path / "run")
    more = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, steps=STEPS + 1))
    with lock.hold(folder, print), pytest.raises(InputError, match="is being written by this very process"):
        loop.run(more, folder, load=restore.load)


def test_another_experiment_is_refused_and_nothing_written(tiny, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    other = dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, peak_lr=1e-3))
    with pytest.raises(InputError, match=r"another experiment: optim.peak_lr is 0.01 there and 0.001 here"):
        loop.run(other, whole, load=restore.load)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_folder_without_a_checkpoint_pins_nothing(tiny, tmp_path):
    """Of a run that ended before its first one, neither the settings nor the tokenizer count."""
    folder = tmp_path / "run"
    folder.mkdir()
    config_json.save(dataclasses.replace(tiny, seed=3), folder / "config.json")
    tokenizers.build(tokenizers.Characters(), [("a", "abc")]).save(folder / "tokenizer")
    once = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, steps=1))
    assert loop.run(once, folder, load=restore.load).step == 1
    loaded = restore.load(folder)
    assert config_json.load(folder / "config.json").seed == 0 and loaded.tokenizer.vocab_size == 257
    for text in ("{}", "[]", '{"model_type": "gpt2"}'):  # another program's file is not taken for a run's
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other/config.json").write_text(text)
        with pytest.raises(InputError, match=r"config.json"):
            loop.run(once, tmp_path / "other", load=restore.load)
        assert (tmp_path / "other/config.json").read_text() == text


def test_init_from_starts_from_those_parameters(tiny, whole, tmp_path):
    """With a learning rate of nearly nothing the parameters after one step are those of the run it starts from."""
    still = dataclasses.replace(
        tiny,
        init_from=str(whole),
        optim=Optim(peak_lr=1e-12, lr_schedule="constant"),
        train=dataclasses.replace(tiny.train, steps=1),
        ema=Ema(decay=0.0),
    )
    loop.run(still, tmp_path / "run", load=restore.load)
    start, end = restore.load(whole), restore.load(tmp_path / "run")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), start.params, end.params)


def test_init_from_brings_its_architecture_and_says_so(tiny, whole, tmp_path, capsys):
    other = dataclasses.replace(
        tiny,
        init_from=str(whole),
        model=dataclasses.replace(tiny.model, mlp_width=48, num_layers=3, dropout=0.0),
        train=dataclasses.replace(tiny.train, steps=1),
    )
    loop.run(other, tmp_path / "run", load=restore.load)
    said = capsys.readouterr().out
    assert f"model.num_layers is 1 as in {whole}, not 3" in said and "model.mlp_width is 64 as in" in said
    config = restore.load(tmp_path / "run").config
    assert (config.num_layers, config.mlp_features, config.dropout) == (1, 64, 0.0), "what a run decides stays its own"
    longer = dataclasses.replace(other, train=dataclasses.replace(tiny.train, steps=2))
    assert loop.run(longer, tmp_path / "run", load=restore.load).step == 2, "it goes on although it states 3 layers"


def test_patience_ends_the_run_and_survives_a_resume(tiny, tmp_path, capsys, monkeypatch):
    """Evaluations 3, 5 and, as the run goes on, 4, 5: the second is best, and with patience 2 the fourth ends it,
    though a signal comes while it is made."""
    still = dataclasses.replace(
        tiny,
        optim=Optim(peak_lr=1e-12, lr_schedule="constant", weight_decay=0.0),
        train=dataclasses.replace(tiny.train, steps=9),
        evaluate=Evaluate(every=1, patience=2),
        ema=Ema(decay=0.0),
        checkpoint=Checkpoint(best_metric="score", best="highest"),
    )
    # 0: only asked for the names, at the beginning
    SCORES[:] = [0.0, 3.0, 5.0, 0.0, 4.0, 5.0, 0.0, 5.0, 1.0]
    first = dataclasses.replace(still, task=Scripted(), train=dataclasses.replace(still.train, steps=2))
    results = loop.run(first, tmp_path / "run", load=restore.load)
    assert results.step == 2 and results.report["score"] == 5.0
    patient = dataclasses.replace(still, task=Scripted())

    def on_row(row):
        if row["step"] == 4 and "validation/perplexity_per_token" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = loop.run(heard(patient, on_row), tmp_path / "run", load=restore.load)
    assert (stopped.step, stopped.signal) == (4, signal.SIGTERM)
    results = loop.run(patient, tmp_path / "run", load=restore.load)
    assert results.step == 4, "step 2 was the best; steps 3 and 4 were not better"
    assert results.report["score"] == 5.0
    done = json.loads((tmp_path / "run/results.json").read_text())
    assert (done["best_step"], done["stopped_by_patience"]) == (2, 2)
    assert (tmp_path / "run/checkpoints/2").is_dir(), "the best is kept"
    loop.run(patient, tmp_path / "run", load=restore.load)
    assert "to go on, wait for longer: --evaluate.patience 0" in capsys.readouterr().out


def test_a_damaged_best_step_gives_way_to_the_newest_for_the_test_set(tiny, tmp_path, capsys, monkeypatch):
    """Step 1 is the best and is spoilt before the end."""
    SCORES[:] = [0.0, 5.0, 1.0, 2.0]  # for the names; validation at steps 1 and 2; the test set
    short = dataclasses.replace(
        tiny,
        task=WithATestSet(),
        train=dataclasses.replace(tiny.train, steps=2),
        evaluate=Evaluate(every=1),
        checkpoint=Checkpoint(best_metric="score", best="highest"),
    )

    results = loop.run(short, tmp_path / "run", load=restore.load)
    assert results.step == 2 and results.test["score"] == 2.0
    out = capsys.readouterr().out
    assert "step 1, the best on validation, is damaged; step 2 is used: " in out and "test set, by step 2: " in out
    assert json.loads((tmp_path / "run/results.json").read_text())["best_step"] is None
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["test/score"]) for row in rows if "test/score" in row] == [(2, 2.0)]


def test_a_metric_that_is_not_reported_is_refused_before_anything_is_written(tiny, tmp_path):
    wrong = dataclasses.replace(tiny, checkpoint=Checkpoint(best_metric="accuracy", best="highest"))
    with pytest.raises(InputError, match=r"best_metric is 'accuracy'; this task reports loss_nats_per_token, "):
        loop.run(wrong, tmp_path / "run", load=restore.load)
    assert not (tmp_path / "run").exists()


def test_what_changed_since_the_last_step_is_said(tiny, whole, tmp_path, capsys, monkeypatch):
    """The text, and the versions."""
    run = shutil.copytree(whole, tmp_path / "run")
    longer = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, steps=STEPS + 1))
    text = Path(tiny.data.source.paths[0])
    before = text.read_text()
    here = versions.here() | {"python": "4.0.0"}
    monkeypatch.setattr(versions, "here", lambda: here)
    try:
        text.write_text(before.replace("to", "TO"))
        assert loop.run(longer, run, load=restore.load).step == STEPS + 1
    finally:
        text.write_text(before)
    out = capsys.readouterr().out
    assert f"the data have changed since step {STEPS} was written" in out
    assert f"step {STEPS} was written with other versions: python 3." in out and "-> 4.0.0" in out


@pytest.mark.parametrize(
    ("left", "line"),
    [
        (400.0, ""),
        (1000.0, "on this machine the run takes about 17:20; --train.steps 240 takes eight minutes"),
        (9000.0, "on this machine the run takes about 2:30:40; --train.steps 240 takes eight minutes"),
    ],
)
def test_a_long_run_on_a_cpu_says_how_to_shorten_it(left, line):
    assert steps_lib.long_run(20, 40.0, 2.0, left) == line
