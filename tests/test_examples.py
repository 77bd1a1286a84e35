"""The examples do what they say, from another folder: a user's own model, task, data, optimiser, observer and loop."""

import dataclasses
import importlib
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax.cli.main import main
from transformer_jax.data import sources
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib

ROOT = Path(__file__).resolve().parents[1]
OWN = (ROOT / "examples" / "own_model.py").read_text(encoding="utf-8")
OWN_LOSS = (ROOT / "examples" / "own_loss.py").read_text(encoding="utf-8")
PARTS = ("model", "data", "task", "optimizer", "observer", "experiment")
STOPPING = """
import dataclasses, os, signal
from own_model import experiment as whole

class Stop:
    def row(self, row):
        if row["step"] == 20:
            os.kill(os.getpid(), signal.SIGTERM)

def experiment():
    return dataclasses.replace(whole(), observers=(Stop(),))
"""
SHORT = ("--data.path", "series.csv", "--train.steps", "40", "--evaluate.every", "16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that is not the checkout, with the example, a neighbour that imports it, and a series."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_model.py").write_text(OWN, encoding="utf-8")
    (folder / "stopping.py").write_text(STOPPING, encoding="utf-8")
    noise = random.Random(0)
    rows = (f"{t},{math.sin(t / 5) + 0.5 * math.sin(t / 13) + noise.gauss(0, 0.05):.5f}\n" for t in range(3000))
    (folder / "series.csv").write_text("time,value\n" + "".join(rows))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def on_one_device(folder):
    """A run in a process of its own, on one device."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "transformer_jax", "train", "own_model.py", *SHORT, "--workdir", "runs/one"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def on_eight(folder):
    """The same run here, on eight devices."""
    mesh = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    assert main(["train", "own_model.py", *SHORT, *mesh, "--workdir", "runs/eight"]) == 0
    return mesh


def parameters(workdir):
    loaded = transformer_jax.load(workdir, types=sys.modules["own_model"])
    return {name: np.asarray(leaf) for name, leaf in params_lib.flatten(loaded.params).items()}


def test_a_file_of_ones_own_trains(on_one_device, folder):
    assert on_one_device.count("ding: 0.") == 3 and "share of last value 0.3" in on_one_device
    assert (folder / "runs/one/code/own_model.py").read_text(encoding="utf-8") == OWN
    results = json.loads((folder / "runs/one/results.json").read_text())
    assert results["report"].keys() == {"mean_squared_error", "share_of_last_value"}


def test_stopped_and_resumed_is_uninterrupted_to_the_bit(on_eight, folder, capsys):
    """The file that stops is another one, which imports the first as its neighbour: observers are not what a run is."""
    assert main(["train", "stopping.py", *SHORT, *on_eight, "--workdir", "runs/stopped"]) == 143
    assert "SIGTERM: saved at step 2" in capsys.readouterr().out
    assert main(["train", "own_model.py", *SHORT, *on_eight, "--workdir", "runs/stopped"]) == 0
    assert "resume from step 2" in capsys.readouterr().out
    whole, stopped = parameters("runs/eight"), parameters("runs/stopped")
    assert whole.keys() == stopped.keys()
    for name, leaf in whole.items():
        np.testing.assert_array_equal(leaf, stopped[name], name)


def test_eight_devices_train_as_one(on_one_device, on_eight):
    one, eight = parameters("runs/one"), parameters("runs/eight")
    for name, leaf in one.items():
        np.testing.assert_allclose(leaf, eight[name], atol=1e-5, err_msg=name)


def test_the_other_commands_take_the_file(on_eight, folder, capsys):
    assert main(["evaluate", "runs/eight", "--with", "own_model.py"]) == 0
    stored = json.loads(Path("runs/eight/evaluation.json").read_text())["report"]
    assert stored == json.loads(Path("runs/eight/results.json").read_text())["report"]
    assert main(["predict", "runs/eight", "0.1 0.4 0.8 1.1", "--json", "--with", "own_model.py"]) == 0
    assert abs(json.loads(capsys.readouterr().out.splitlines()[-1])["next"] - 1.1) < 0.2
    assert main(["inspect", "runs/eight", "--with=own_model.py"]) == 0
    assert "6,272 parameters, all there" in capsys.readouterr().out
    assert main(["convert", "average", "runs/eight", "runs/mean", "--last", "1", "--with", "own_model.py"]) == 0
    assert Path("runs/mean/code/own_model.py").read_text(encoding="utf-8") == OWN
    assert main(["train", "own_model.py", "--help"]) == 0
    assert "--optim.peak-lr FLOAT" in capsys.readouterr().out
    assert main(["train", "own_model.py", "--data.colum", "x"]) == 2
    assert "the nearest is --data.column" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict", "inspect", "convert", "load"])
def test_nothing_of_a_file_runs_that_was_not_brought(command, on_eight, folder, capsys, tmp_path):
    canary = tmp_path / "canary"
    spoilt = OWN + f"\nopen({str(canary)!r}, 'w').close()\n"
    for file in (folder / "own_model.py", folder / "runs/eight/code/own_model.py"):
        file.write_text(spoilt, encoding="utf-8")
    try:
        if command == "load":
            with pytest.raises(InputError, match=r"own_model.py:Config.*--with path/to/own_model.py"):
                transformer_jax.load("runs/eight")
        else:
            arguments = {"predict": ["runs/eight", "1 2"], "convert": ["hf", "runs/eight", str(tmp_path / "hf")]}
            assert main([command, *arguments.get(command, ["runs/eight"])]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "'own_model.py:Config' is defined in own_model.py" in line and "--with path/to/own_model.py" in line
        assert not canary.exists() and not (tmp_path / "hf").exists()
    finally:
        for file in (folder / "own_model.py", folder / "runs/eight/code/own_model.py"):
            file.write_text(OWN, encoding="utf-8")


BAD = {  # what is put in place of a part of the example: the one line that names what is missing
    "no declare": ("def declare(", "def declared(", "has no function declare(cfg)"),
    "not frozen": (
        "@dataclass(frozen=True)\nclass Config",
        "@dataclass\nclass Config",
        "Config, which is no frozen dataclass",
    ),
    "no loss": ("    def loss(", "    def lost(", "task is a NextValue, which has no loss"),
    "no schedule": ("    def schedule(self", "    def scheduled(self", "optim is a AdaBelief, which has no schedule"),
    "loss returns one number": (
        'return *sums["squared"], sums',
        'return sums["squared"][0]',
        "task NextValue.loss returned",
    ),
    "no transformation": ("return optax.adabelief(self.schedule(total_updates))", "return 3", "make returned a int"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_names_what_is_missing(name, folder, tmp_path, capsys):
    old, new, message = BAD[name]
    assert old in OWN
    (tmp_path / "bad.py").write_text(OWN.replace(old, new), encoding="utf-8")
    assert main(["train", str(tmp_path / "bad.py"), *SHORT, "--workdir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / "run").exists()


def test_two_types_of_one_name(on_eight, folder, tmp_path, capsys):
    (tmp_path / "own_model.py").write_text(OWN, encoding="utf-8")
    both = ["--with", "own_model.py", "--with", str(tmp_path / "own_model.py")]
    assert main(["inspect", "runs/eight", *both]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "two types are called own_model.py:" in line and str(tmp_path) in line


def test_a_loop_of_ones_own_goes_on_to_the_bit(tmp_path, monkeypatch, capsys):
    """Three steps and three more are six, on eight devices; the numbers are those of the whole validation set."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    own_loop = importlib.import_module("own_loop")

    (tmp_path / "text.txt").write_text("the cat sat on the mat; the dog sat on the cat\n" * 200)
    data = dataclasses.replace(own_loop.EXPERIMENT.data, source=sources.TextFiles((str(tmp_path / "text.txt"),)))
    experiment = dataclasses.replace(own_loop.EXPERIMENT, data=data)
    whole = own_loop.main(tmp_path / "whole", 6, experiment, every=3)
    own_loop.main(tmp_path / "parts", 3, experiment, every=3)
    assert own_loop.main(tmp_path / "parts", 6, experiment, every=3) == whole
    assert capsys.readouterr().out.count("bits per byte") == 4
    one, two = (transformer_jax.load(tmp_path / name / "6").params for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_page_quotes_each_part_of_the_examples():
    page = (ROOT / "docs/your_own.md").read_text()
    assert '--8<-- "examples/own_loop.py"' in page and '--8<-- "examples/own_loss.py:loss"' in page
    assert [f'--8<-- "examples/own_model.py:{part}"' in page for part in PARTS] == [True] * len(PARTS)
    assert len([line for line in OWN.splitlines() if "--8<--" not in line]) <= 165
    assert len((ROOT / "examples/own_loop.py").read_text().splitlines()) <= 60


def test_a_loss_of_ones_own(tmp_path, monkeypatch, capsys):
    """Without its exponent it is CausalLM's; with it the run trains, and reports plain bits per byte."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    own_loss = importlib.import_module("own_loss")
    cfg = gpt.Config(vocab_size=257, max_length=8, width=8, num_layers=1, num_heads=1)
    params = gpt.init(jax.random.key(0), cfg)
    tokens_BT = np.arange(16).reshape(2, 8)
    batch = {"inputs": tokens_BT, "targets": tokens_BT + 1, "weights": np.float32(tokens_BT % 5 > 0)}
    plain = own_loss.CausalLM().loss(params, cfg, batch)
    np.testing.assert_allclose(own_loss.FocalLM(gamma=0.0).loss(params, cfg, batch)[:2], plain[:2], rtol=1e-5)
    focal, _, sums = own_loss.FocalLM(gamma=2.0).loss(params, cfg, batch)
    assert 0.9 < focal / sums["loss"][0] < 1  # at the start p is about 1 / 257
    with pytest.raises(InputError, match=r"task.gamma = 0.5"):
        own_loss.FocalLM(gamma=0.5)

    (tmp_path / "text.txt").write_text("the cat sat on the mat; the dog sat on the cat\n" * 100)
    text = OWN_LOSS.replace("TextCorpus(", f"TextCorpus(TextFiles(({str(tmp_path / 'text.txt')!r},)), ")
    text = text.replace("import TextCorpus", "import TextCorpus\nfrom transformer_jax.data.sources import TextFiles")
    (tmp_path / "own_loss.py").write_text(text, encoding="utf-8")
    small = ("--model.width", "8", "--model.num-layers", "1", "--model.num-heads", "1", "--data.length", "16")
    run = (
        "--train.steps",
        "2",
        "--task.gamma",
        "2",
        "--sample.max-new-tokens",
        "0",
        "--workdir",
        str(tmp_path / "run"),
    )
    assert main(["train", str(tmp_path / "own_loss.py"), *small, *run]) == 0
    assert "bits per byte" in capsys.readouterr().out
