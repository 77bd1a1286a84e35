"""sweep: what is tried, how a sweep that was killed goes on, which runs end early, and what is refused before any run.

The runs are processes of tests/fake_trainer.py; the slow test trains.
"""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from transformer_jax.cli.main import main
from transformer_jax.cli.sweep import plan, running
from transformer_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
FAKE = (sys.executable, str(ROOT / "tests/fake_trainer.py"))
STDLIB = ["sweep", "causal_lm.stdlib", "--train.steps", "8"]


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(running, "CHILD", FAKE)
    monkeypatch.setattr(running, "PLAIN", FAKE)
    monkeypatch.setattr(running, "POLL", 0.01)


def states(folder):
    return [run["state"] for run in json.loads((folder / "sweep.json").read_text())["runs"]]


def evaluations(folder):
    return [
        [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*/metrics.jsonl"))
    ]


def test_a_grid_a_list_and_their_arguments(tmp_path):
    asked = plan.parse(["e", "--over", "optim.peak_lr", "1", "2", "--over", "task.labels", "a b", "c", "--seed", "3"])
    assert asked.train == ["e", "--seed", "3"] and plan.runs(asked) == [
        ["--optim.peak-lr", "1", "--task.labels", "a", "b"],
        ["--optim.peak-lr", "1", "--task.labels", "c"],
        ["--optim.peak-lr", "2", "--task.labels", "a", "b"],
        ["--optim.peak-lr", "2", "--task.labels", "c"],
    ]
    path = tmp_path / "l.jsonl"
    path.write_text('{"model.scan_layers": false, "seed": 1}\n\n{"task.labels": ["a", "b"], "model.tie": true}\n')
    assert plan.runs(plan.parse(["e", "--list", str(path)])) == [
        ["--model.no-scan-layers", "--seed", "1"],
        ["--task.labels", "a", "b", "--model.tie"],
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("e", "needs fields to change"),
        ("e --over", "takes a field and its values"),
        ("e --over a 1 --over a 2", "given twice"),
        ("e --over a 1 --list f", "--list states every run"),
        ("e --between a 1 2", "--optuna 20"),
        ("e --between a 2 1 --optuna 3", "the smaller"),
        ("e --between a 0 1 log --optuna 3", "for log above 0"),
        ("e --between a x 1 --optuna 3", "'x' is no number"),
        ("e --between a 1 2 cubic --optuna 3", "log or int"),
        ("e --over a 1 --median 0", "not a whole number"),
        ("e --over a 1 --workdir", "--workdir takes one value"),
        ("e --over a 1 --at-once none", "not a whole number"),
        ("e --over a 1 --by srun'", "is no command"),
    ],
)
def test_options_that_make_no_sweep_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        plan.parse(given.split())


@pytest.mark.parametrize("line", ["[1]", "{", '{"a": {"b": 1}}', '{"a": null}', "{}"])
def test_a_bad_list_is_refused(tmp_path, line):
    path = tmp_path / "l.jsonl"
    path.write_text(f'{{"seed": 1}}\n{line}\n')
    with pytest.raises(InputError, match="line 2"):
        plan.runs(plan.parse(["e", "--list", str(path)]))


def test_the_median_rule():
    others = [[(1, 5.0), (2, 4.0)], [(1, 3.0), (2, 2.0)], [(1, 4.0), (2, 3.0)], [(1, 9.0)]]
    below = lambda mine, least=3, highest=False: running.below_median(mine, others, least, highest)  # noqa: E731
    assert below([(2, 3.1)]) and not below([(2, 3.0)]) and below([(2, 2.9)], highest=True)
    assert not below([(2, 9.0)], least=4), "only three have reached step 2"
    assert not below([(2, 9.0)], least=0) and not below([])
    assert below([(1, 4.6)], least=4) and not below([(1, 4.4)], least=4)


def test_a_field_that_is_none_and_a_folder_that_is_no_sweep_are_refused_before_any_run(tmp_path, capsys):
    folder = tmp_path / "s"
    for words, message in (
        (["--over", "optim.peak-lrr", "1e-3"], "unknown override --optim.peak-lrr"),
        (["--over", "seed", "1", "x"], "seed"),
        (["--over", "train.batch-size", "8", "0"], "batch_size"),
    ):
        assert main([*STDLIB, *words, "--workdir", str(folder)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    assert main([*STDLIB, "--over", "seed", "1", "--workdir", str(folder)]) == 2
    assert "it is no sweep" in capsys.readouterr().err
    assert main([*STDLIB, "--over", "seed", "1", "--workdir", "gs://b/s"]) == 2 and "machine" in capsys.readouterr().err
    grid = [*STDLIB, "--over", "seed", *map(str, range(40)), "--over", "optim.peak-lr", *map(str, range(1, 40))]
    assert main(grid) == 2 and "1,560 runs" in capsys.readouterr().err
    assert main(["sweep", "--over", "seed", "1"]) == 2 and "needs an experiment" in capsys.readouterr().err


def test_print_gives_the_commands(capsys):
    assert main([*STDLIB, "--over", "optim.peak-lr", "1e-3", "3e-3", "--print", "--workdir", "runs/s"]) == 0
    first = "transformer-jax train causal_lm.stdlib --train.steps 8 --optim.peak-lr 1e-3 --workdir runs/s/000"
    assert capsys.readouterr().out.splitlines()[0] == first


SCRIPT = """
import sys
from transformer_jax.cli.main import main
from transformer_jax.cli.sweep import running
running.CHILD = {fake!r}
sys.exit(main({arguments!r}))
"""


def test_a_sweep_of_six_runs_killed_in_the_middle_goes_on(tmp_path, capsys):
    folder = tmp_path / "s"
    arguments = [*STDLIB, "--over", "optim.peak-lr", "0.5", "0.1", "0.3", "--over", "seed", "0", "1"]
    arguments += ["--workdir", str(folder)]
    script = SCRIPT.format(fake=FAKE, arguments=arguments)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    ends = time.monotonic() + 60
    while not (folder / "002/metrics.jsonl").exists() and time.monotonic() < ends:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):  # the run that was left behind; the real one ends with its sweep
        if (folder / "002/results.json").exists():
            break
        time.sleep(0.02)
    assert states(folder)[:4] == ["done", "done", "running", "waiting"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert states(folder) == ["done"] * 6 and evaluations(folder) == [list(range(1, 9))] * 6
    table = [line.split() for line in printed.splitlines() if line.startswith("  0")]
    assert [row[0] for row in table] == ["002", "003", "004", "005", "000", "001"] and table[0][1:3] == ["0.1", "0.1"]
    stamps = [path.stat().st_mtime_ns for path in sorted(folder.glob("*/results.json"))]
    assert main(arguments) == 0, "a sweep that is done does nothing"
    assert stamps == [path.stat().st_mtime_ns for path in sorted(folder.glob("*/results.json"))]
    assert main([*arguments, "--train.log-every", "5"]) == 2 and "holds another sweep" in capsys.readouterr().err
    stored = json.loads((folder / "sweep.json").read_text())
    stored["runs"][5]["arguments"] += ["--with", "evil.py"]
    (folder / "sweep.json").write_text(json.dumps(stored))
    assert main(arguments) == 2 and "not what a sweep writes" in capsys.readouterr().err


def test_a_run_ends_early_and_a_failed_one_is_tried_again(tmp_path, capsys):
    folder = tmp_path / "s"
    arguments = ["sweep", "causal_lm.stdlib", "--train.steps", "30", "--median", "2", "--workdir", str(folder)]
    path = tmp_path / "l.jsonl"
    fields = [
        {"optim.peak_lr": 0.1},
        {"optim.peak_lr": 0.2},
        {"optim.peak_lr": 1.9},
        {"optim.peak_lr": 0.1, "seed": 13},
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in fields))
    arguments += ["--list", str(path)]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert states(folder) == ["done", "done", "ended early", "failed"] and "failed: 003" in err
    assert "error: a run that fails" in out and len(evaluations(folder)[2]) < 30
    assert main(arguments) == 1 and states(folder) == ["done", "done", "ended early", "failed"]


def test_runs_at_the_same_time_by_a_launcher(tmp_path, capsys):
    """Three slots for five runs, and one run fails; each run is started by the command, which is given its slot."""
    folder, book = tmp_path / "s", tmp_path / "book"
    arguments = [
        *STDLIB,
        "--over",
        "optim.peak-lr",
        "0.5",
        "0.1",
        "--over",
        "seed",
        "0",
        "13",
        "2",
        "--workdir",
        str(folder),
    ]
    command = f"""sh -c 'echo {{slot}} + >> {book}; "$@"; code=$?; echo {{slot}} - >> {book}; exit $code' launcher"""
    assert main([*arguments, "--at-once", "3", "--by", command]) == 1
    assert states(folder) == ["done", "failed", "done"] * 2 and "error: a run that fails" in capsys.readouterr().out
    training, most = set(), 0
    for slot, sign in map(str.split, book.read_text().splitlines()):
        assert (slot in training) == (sign == "-"), "a slot is one run's"
        training ^= {slot}
        most = max(most, len(training))
    assert most == 3 and book.read_text().count("+") == 6
    assert main([*arguments, "--at-once", "2"]) == 1, "only what has failed is tried again, here without the launcher"
    assert states(folder) == ["done", "failed", "done"] * 2 and book.read_text().count("+") == 6
    assert main([*arguments, "--by", "no-such-launcher"]) == 2
    assert "no-such-launcher cannot be started" in capsys.readouterr().err


class FakeTrial:
    def __init__(self, number):
        self.number = number

    def suggest_float(self, name, low, high, log):
        assert (name, low, high, log) == ("--optim.peak-lr", 0.1, 1.0, True)
        return [0.5, 0.9, 0.2, 0.4][self.number]

    def suggest_categorical(self, name, values):
        return values[self.number % 2]


def fake_optuna(journal):
    """A module that stores what it is told, like a study in a journal."""

    class Study:
        def ask(self):
            journal["asked"] += 1
            return FakeTrial(journal["asked"] - 1)

        def tell(self, number, value, state, skip_if_finished):
            assert skip_if_finished
            journal["told"].setdefault(number, (state, value))

    def create_study(study_name, storage, sampler, direction, load_if_exists):
        assert load_if_exists and direction == "minimize"
        return Study()

    module = types.ModuleType("optuna")
    kept = lambda **k: types.SimpleNamespace(**k)  # noqa: E731
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.logging = kept(set_verbosity=lambda level: None, WARNING=30)  # type: ignore[attr-defined]
    module.trial = kept(TrialState=kept(FAIL="fail", PRUNED="pruned", COMPLETE="complete"))  # type: ignore[attr-defined]
    module.samplers = kept(TPESampler=lambda seed: seed)  # type: ignore[attr-defined]
    module.storages = kept(JournalStorage=lambda backend: backend)  # type: ignore[attr-defined]
    module.create_study = create_study  # type: ignore[attr-defined]
    backend = types.ModuleType("optuna.storages.journal")
    backend.JournalFileBackend = lambda path: path  # type: ignore[attr-defined]
    return {
        "optuna": module,
        "optuna.storages": types.ModuleType("optuna.storages"),
        "optuna.storages.journal": backend,
    }


def test_a_study_chooses_and_goes_on(tmp_path, monkeypatch, capsys):
    folder, journal = tmp_path / "s", {"asked": 0, "told": {}}
    for name, module in fake_optuna(journal).items():
        monkeypatch.setitem(sys.modules, name, module)
    arguments = [*STDLIB, "--optuna", "4", "--between", "optim.peak-lr", "0.1", "1", "log", "--over", "seed", "13", "1"]
    arguments += ["--workdir", str(folder)]
    real = running.start

    def killed(words, *args):
        if "0.2" in words:
            raise KeyboardInterrupt
        return real(words, *args)

    monkeypatch.setattr(running, "start", killed)
    assert main(arguments) == 130
    assert states(folder) == ["failed", "done", "running"]
    assert journal["told"] == {0: ("fail", None), 1: ("complete", pytest.approx(0.9))}
    monkeypatch.setattr(running, "start", real)
    assert main(arguments) == 1
    assert states(folder) == ["failed", "done", "failed", "done"] and journal["asked"] == 4
    assert journal["told"][3] == ("complete", pytest.approx(0.4))
    assert main([*arguments, "--print"]) == 2 and "its commands are not known" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_sweep_with_optuna_is_killed_and_goes_on(tmp_path):
    """As a user's: processes of their own, Optuna's own journal, the run of the killed sweep saves and resumes."""
    pytest.importorskip("optuna")
    (tmp_path / "w.txt").write_text("the cat sat on the mat and saw the rat. " * 200)
    words = "--model.width 16 --model.num-layers 1 --model.mlp-width 32 --data.length 32 --train.batch-size 8"
    words += " --model.vocab-size 257 --train.steps 300 --train.log-every 10 --evaluate.every 50 --optim.warmup-steps 1"
    (tmp_path / "mine.py").write_text(MINE.format(text=str(tmp_path / "w.txt")))
    folder = tmp_path / "s"
    arguments = [
        "sweep",
        "mine.py",
        *words.split(),
        "--optuna",
        "3",
        "--between",
        "optim.peak-lr",
        "1e-3",
        "1e-2",
        "log",
    ]
    command = [sys.executable, "-m", "transformer_jax", *arguments, "--workdir", str(folder)]
    where = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    process = subprocess.Popen(command, **where)  # type: ignore[call-overload]
    ends = time.monotonic() + 200
    while not running.curve(folder / "001", "loss_nats_per_token", False) and time.monotonic() < ends:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert states(folder) == ["done", "running"]
    done = subprocess.run(command, **where, capture_output=True, text=True)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert states(folder) == ["done"] * 3
    steps = [row for row in evaluations(folder)[1] if row % 50 == 0]
    rates = {tuple(run["arguments"]) for run in json.loads((folder / "sweep.json").read_text())["runs"]}
    assert len(rates) == 3, "a resumed study goes on drawing, and does not begin again"
    assert (
        sorted(set(steps)) == [50, 100, 150, 200, 250, 300] and "resume from step" in (folder / "001.log").read_text()
    )


MINE = """
from transformer_jax import experiment as experiments, models
from transformer_jax.data import corpus, sources, tokenizers

def experiment():
    model = models.gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=1, num_heads=2, mlp_width=32)
    data = corpus.TextCorpus(sources.TextFiles(("{text}",)), tokenizers.Bytes(), length=32)
    return experiments.Experiment(model, data)
"""
