"""The command line, in this process: what a user can mend is one line, exit code 2, and nothing written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax import config_json
from transformer_jax.__main__ import main
from transformer_jax.cli import doctor, evaluate, process, recipes
from transformer_jax.cli.main import COMMANDS
from transformer_jax.data import corpus
from transformer_jax.experiment import Evaluate, Experiment, Mesh, Train
from transformer_jax.models import gpt
from transformer_jax.runs import manifest

ROOT = Path(__file__).resolve().parents[1]

MINE = '''"""A tiny run."""
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Optim


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=1, num_heads=2, dropout=0.1),
        data=TextCorpus(TextFiles(({text!r},)), Bytes(), length=16),
        optim=Optim(peak_lr=1e-2),
        train=Train(steps=4, batch_size=8, log_every=2),
        sample=Sample(prompt="a ", max_new_tokens=8),
    )
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """An experiment file of one's own and its text."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "text.txt").write_text("a rose is a rose is a rose\n" * 60)
    (folder / "mine.py").write_text(MINE.replace("{text!r}", repr(str(folder / "text.txt"))))
    return folder / "mine.py"


@pytest.fixture(scope="module")
def trained(mine, tmp_path_factory) -> Path:
    """Its workdir."""
    workdir = tmp_path_factory.mktemp("runs") / "a"
    assert main(["train", str(mine), "--workdir", str(workdir)]) == 0
    return workdir


def refused(capsys, *arguments: object) -> str:
    """The one line on stderr, progress aside, of a command that must exit with code 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    complaints = [line for line in lines if not line.startswith("tokenised ")]
    assert len(complaints) == 1 and complaints[0].startswith("error: "), lines
    return complaints[0]


# ---- Bad input to `train`


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--train.step", "9"], "unknown override --train.step; the nearest is --train.steps"),
        (["--model.num-layer=3"], "unknown override --model.num-layer; the nearest is --model.num-layers"),
        (["--steps", "9"], "unknown override --steps"),
        (["--train.steps", "many"], "error: Error parsing --train.steps: invalid literal"),
        (["--train.steps", "3.5"], "--train.steps"),
        (["--optim.lr-schedule", "cosin"], "--optim.lr-schedule"),
        (["--train.steps"], "--train.steps"),
        (["--train.steps", "0"], "train.steps = 0"),
        (["--train.batch-size", "9"], "9"),
        (["--model.num-heads", "3"], "error: model.num_heads 3 does not divide model.width 16"),
        (["--data.length", "64"], "data.length = 64 is longer than model.max_length = 32"),
        (["--model.vocab-size", "100"], "the tokenizer has ids up to 256, but model.vocab_size is 100"),
        (["--mesh.data", "3"], "do not multiply to the 8 devices"),
        (["--profile", "5"], "--profile '5' is not FIRST:LAST"),
        (["--sample.top-p", "2"], "top_p"),
        (["--init-from", "nowhere"], "nowhere does not exist"),
        (["--data.source.paths", "nowhere.txt"], "no such file or folder: nowhere.txt"),
        (["variant"], "has no variant 'variant'; it has experiment"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_overrides(mine, tmp_path, capsys, override, message):
    assert message in refused(capsys, "train", mine, *override, "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the corpus is empty"), ("too short", "tokens, and one window needs data.length + 1 = 17")],
    ids=["empty", "shorter than a window"],
)
def test_bad_corpora(mine, tmp_path, capsys, text, message):
    (tmp_path / "bad.txt").write_text(text)
    assert message in refused(
        capsys, "train", mine, "--data.source.paths", tmp_path / "bad.txt", "--workdir", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_no_experiment(tmp_path, capsys):
    assert "no recipe and no module 'experiments.nothing' here" in refused(capsys, "train", "experiments.nothing")
    assert "no such experiment file" in refused(capsys, "train", tmp_path / "nothing.py")
    assert "unknown command 'trian'" in refused(capsys, "trian")
    (tmp_path / "empty.py").write_text("")
    assert "it has no experiment()" in refused(capsys, "train", tmp_path / "empty.py")


def test_workdirs_that_are_not_ours(mine, trained, tmp_path, capsys):
    message = refused(capsys, "train", mine, "--workdir", trained, "--optim.peak-lr", "0.5")
    assert "another experiment: optim.peak_lr is 0.01 there and 0.5 here" in message
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, "train", mine, "--workdir", tmp_path / "file")
    assert "is not a run" in refused(capsys, "train", mine, "--workdir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- Bad input to the readers


def test_bad_checkpoints(trained, tmp_path, capsys):
    """A leaf of another shape, a leaf that is missing, no step at all, no run at all."""

    def with_model(name: str, **changes) -> Path:
        folder = Path(shutil.copytree(trained, tmp_path / name))
        meta = next(folder.glob("checkpoints/*/meta/metadata"))
        tree = json.loads(meta.read_text())
        tree["config"]["model"] |= changes
        meta.write_text(json.dumps(tree))
        step = meta.parents[1]  # as it was written, but not what its arrays are
        manifest.write(step / manifest.NAME, manifest.digest(step, manifest.names(step)))
        return folder

    assert "leaf blocks/mlp/down/kernel is" in refused(capsys, "inspect", with_model("wide", mlp_width=48))
    untied = refused(capsys, "predict", with_model("untied", tie_embeddings=False), "a")
    assert "leaf head/kernel is missing there" in untied
    bare = Path(shutil.copytree(trained, tmp_path / "bare"))
    shutil.rmtree(bare / "checkpoints")
    (bare / "checkpoints").mkdir()
    assert "no complete step" in refused(capsys, "predict", bare, "a")
    assert "is not a workdir" in refused(capsys, "evaluate", tmp_path)
    assert "neither a workdir" in refused(capsys, "inspect", tmp_path)
    assert "an argument is missing" in refused(capsys, "predict")
    assert "unexpected argument 'twice'" in refused(capsys, "inspect", trained, "twice")


def test_truncated_safetensors(trained, tmp_path, capsys):
    exported = tmp_path / "hf"
    assert main(["convert", "hf", str(trained), str(exported)]) == 0
    weights = exported / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    for command in (["inspect"], ["predict"], ["convert", "hf"]):
        assert "model.safetensors" in refused(
            capsys, *command, exported, *([tmp_path / "b"] if len(command) > 1 else [])
        )
    assert not (tmp_path / "b").exists()


# ---- Using a run


def test_predict_continues_and_is_deterministic(trained, capsys, monkeypatch):
    def predict(*arguments):
        capsys.readouterr()
        assert main(["predict", str(trained), *arguments]) == 0
        return capsys.readouterr()

    first = predict("a rose", "--max-new-tokens", "10").out
    assert first.startswith("a rose") and len(first.rstrip("\n").encode()) > len("a rose")
    assert predict("a rose", "--max-new-tokens", "10").out == first
    assert predict("a rose", "--max-new-tokens", "10", "--seed", "1", "--temperature", "5").out != first
    long = predict("a rose " * 20, "--max-new-tokens", "8")
    assert "the prompt's 140 tokens and 8 new ones exceed the model's 32: using the last 25" in long.err


def test_evaluate_gives_the_run_its_own_numbers(trained, capsys):
    assert main(["evaluate", str(trained), "--evaluate.batch-size", "16"]) == 0
    stored = json.loads((trained / "evaluation.json").read_text())
    report = json.loads((trained / "results.json").read_text())["report"]
    assert stored["step"] == 4 and stored["report"] == pytest.approx(report, rel=1e-5)
    assert "bits per byte" in capsys.readouterr().out


def test_convert_there_and_back(trained, tmp_path, capsys):
    assert main(["convert", "hf", str(trained), str(tmp_path / "hf")]) == 0
    assert main(["convert", "hf", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    import transformer_jax

    ours, back = transformer_jax.load(trained), transformer_jax.load(tmp_path / "back")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours.params, back.params)
    assert main(["predict", str(tmp_path / "back"), "a rose", "--max-new-tokens", "4"]) == 0
    assert "exists" in refused(capsys, "convert", "hf", trained, tmp_path / "hf")


def test_convert_takes_the_checkpoint_that_was_reported(trained, tmp_path):
    """As predict and evaluate do: of a run with a test set the best one, not the newest."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.copytree(run / "checkpoints/4", run / "checkpoints/9")  # the newest; the best is step 4
    (run / "results.json").write_text(json.dumps({"step": 9, "best_step": 4, "test": {"accuracy": 1.0}}))
    shutil.rmtree(run / "checkpoints/9/params")
    assert main(["convert", "hf", str(run), str(tmp_path / "hf")]) == 0


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EROFS, 1), (errno.EACCES, 2)])
def test_a_disk_that_cannot_be_written_is_one_line(monkeypatch, capsys, number, code):
    def full(arguments):
        raise OSError(number, os.strerror(number), "out/answers.csv")

    monkeypatch.setattr(recipes, "main", full)
    assert main(["recipes"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: out/answers.csv: {os.strerror(number)}; ")


def test_another_fault_of_the_system_keeps_its_traceback(monkeypatch):
    def broken(arguments):
        raise OSError(errno.ENOTCONN, "a fault of ours")

    monkeypatch.setattr(recipes, "main", broken)
    with pytest.raises(OSError, match="a fault of ours"):
        main(["recipes"])


def test_inspect(trained, capsys):
    assert main(["inspect", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "blocks/mlp/up/kernel" in out and "[1, 16, 64]" in out and "all there" in out and "in the folder: 4" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"transformer-jax {command}" in capsys.readouterr().out


def test_help_of_an_experiment_lists_every_field(mine, capsys):
    assert main(["train", str(mine), "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--workdir", "--profile", "--optim.peak-lr", "--data.source.paths", "--model.num-kv-heads"):
        assert flag in out
    assert "Optimiser steps of the whole run" in out


def test_sigterm_of_the_process_saves_and_says_how_to_go_on(mine, tmp_path):
    """In a process of its own: exit code 143, the command that it prints goes on to the end."""
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "transformer_jax", "train", str(mine), "--workdir", str(workdir)]
    command += ["--train.steps", "100000", "--train.log-every", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=600)[0]
    assert process.returncode == 143, out
    again = out.splitlines()[-1]
    assert again.startswith("to go on: ") and "-m transformer_jax train " in again and f"--workdir {workdir}" in again
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"SIGTERM: saved at step {saved}" in out.replace(",", "")


# ---- The process


def test_cpu_devices_divide_the_batch_and_fit_the_mesh():
    def count(cores, mesh=(), batch=12, accumulate=1, evaluated=0, width=16):
        model = gpt.Config(vocab_size=257, max_length=16, width=width, num_layers=1, num_heads=2)
        experiment = Experiment(
            model=model,
            data=corpus.TextCorpus(length=16),
            train=Train(batch_size=batch, accumulate=accumulate),
            evaluate=Evaluate(batch_size=evaluated),
            mesh=Mesh(*mesh),
        )
        return process.num_cpu_devices(experiment, cores)

    assert [count(1), count(2), count(4), count(5), count(16)] == [1, 2, 4, 4, 12]
    assert count(4, batch=7) == 1
    assert count(4, accumulate=6) == 2
    assert count(4, evaluated=6) == 3
    assert count(8, mesh=(-1, 1, 1, 2)) == 8
    assert count(2, mesh=(4, 1, 1, 2)) == 8
    assert [count(2, width=256), count(2, width=512)] == [2, 1], "4,500 parameters a token, and 17,000"


def test_doctor(capsys):
    assert doctor.known_bad("0.10.2", "0.10.2")[0].startswith("jax 0.10.2 miscompiles")
    assert "not of one release" in doctor.known_bad("0.12.0", "0.10.1")[0]
    assert doctor.known_bad(jax.__version__, jax.__version__) == []
    assert main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out


def test_config_json_is_the_experiment(trained):
    stored = config_json.load(trained / "config.json")
    assert stored.train.steps == 4 and stored.optim.peak_lr == 1e-2


def test_a_folder_that_cannot_be_written_is_evaluated_all_the_same(tmp_path, monkeypatch, capsys):
    def read_only(*, dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(evaluate.tempfile, "TemporaryFile", read_only)
    with evaluate._kept(tmp_path, stores=True) as (folder, publish):
        assert folder != tmp_path and publish is None
    assert "cannot be written (Read-only file system): the numbers are printed" in capsys.readouterr().out
