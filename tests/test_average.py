"""The mean of a run's last checkpoints: the arithmetic, and the workdir that holds it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax import config_json, restore
from transformer_jax import experiment as experiments
from transformer_jax.__main__ import main
from transformer_jax.cli import average
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import saved
from transformer_jax.runs.writer import Writer
from transformer_jax.train import state as state_lib

MODEL = gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2)
STEPS = (3, 7, 10, 12)


def drawn(step, model=MODEL):
    rng, shapes = np.random.default_rng(step), params_lib.abstract(gpt.declare(model))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A workdir with four checkpoints, each with other parameters and another moving average."""
    folder = tmp_path_factory.mktemp("average") / "run"
    folder.mkdir()
    (folder.parent / "text.txt").write_text("a rose is a rose is a rose\n" * 40)
    text = sources.TextFiles((str(folder.parent / "text.txt"),))
    experiment = experiments.Experiment(
        model=MODEL, data=corpus.TextCorpus(text, tokenizers.Bytes(), length=16), ema=experiments.Ema(decay=0.9)
    )
    config_json.save(experiment, folder / "config.json")
    tokenizers.ByteTokenizer().save(folder / "tokenizer")
    (folder / "metrics.jsonl").write_text("{}\n")
    write(folder, experiment, STEPS)
    return folder


def write(folder, experiment, steps):
    config = config_json.to_json(experiment)
    with Writer(folder / "checkpoints", family="gpt", config=config, keep=9) as writer:
        for step in steps:
            state = state_lib.create(drawn(step, experiment.model), optax.identity())
            state = dataclasses.replace(state, step=jnp.int32(step), ema=drawn(step + 100, experiment.model))
            writer.save(state, rows=8 * step, metric=1.0)


def refused(folder, run, **options) -> str:
    with pytest.raises(InputError) as error:
        average.create(folder, run, **options)
    assert "\n" not in str(error.value)
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(folder.name)] or folder == run
    return str(error.value)


@pytest.mark.parametrize("last", [1, 3, 4])
def test_the_mean_of_the_raw_parameters(run, tmp_path, last):
    assert average.create(tmp_path / "mean", run, last=last) == list(STEPS[-last:])
    loaded = restore.load(tmp_path / "mean")
    wanted = jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0, dtype=np.float64), *map(drawn, STEPS[-last:]))
    for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-7 if last > 1 else 0)
    assert (loaded.step, loaded.config) == (12, dataclasses.replace(MODEL, dtype="float32"))


def test_the_folder_says_what_it_is(run, tmp_path):
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    average.create(tmp_path / "mean", run, last=2)
    (step,) = (tmp_path / "mean" / "checkpoints").iterdir()
    meta, newest = saved.read_meta(step), saved.read_meta(run / "checkpoints" / "12")
    assert meta["averaged"] == [10, 12] and "averaged" not in newest
    assert (meta["step"], meta["rows"], meta["config"]) == (12, 96, newest["config"])
    assert not (step / "ema").exists()
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == [
        "checkpoints",
        "config.json",
        "run.json",
        "tokenizer",
    ]
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_every_command_takes_it(run, tmp_path, capsys):
    mean = tmp_path / "mean"
    assert main(["convert", "average", str(run), str(mean), "--last", "3"]) == 0
    assert f"{mean}: the mean of {run}'s steps 7, 10, 12; try: " in capsys.readouterr().out
    assert main(["evaluate", str(mean)]) == 0
    assert json.loads((mean / "evaluation.json").read_text())["step"] == 12
    assert main(["inspect", str(mean)]) == 0
    assert "step 12" in capsys.readouterr().out
    assert main(["convert", "hf", str(mean), str(tmp_path / "hf")]) == 0
    ours, theirs = restore.load(mean), restore.load(tmp_path / "hf")
    np.testing.assert_array_equal(
        ours.params["embed"]["token"]["embedding"], theirs.params["embed"]["token"]["embedding"]
    )


def test_what_cannot_be_averaged(run, tmp_path):
    said = refused(tmp_path / "mean", run, last=5)
    assert "holds 4 complete steps (3, 7, 10, 12), and --last is 5; give --last 4, or train with" in said
    assert "--last is 0; it must be at least 1" in refused(tmp_path / "mean", run, last=0)
    assert "is not a run's workdir" in refused(tmp_path / "mean", tmp_path, last=1)
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there exists; nothing is overwritten"):
        average.create(tmp_path / "there", run, last=1)
    assert not list((tmp_path / "there").iterdir())


def test_nothing_outside_of_the_run_is_copied(run, tmp_path):
    theirs = shutil.copytree(run, tmp_path / "theirs")
    (tmp_path / "secret").write_text("mine")
    (theirs / "tokenizer" / "added.json").symlink_to(tmp_path / "secret")
    assert "added.json is a link to" in refused(tmp_path / "mean", theirs, last=2)
    (theirs / "tokenizer" / "added.json").unlink()
    os.mkfifo(theirs / "tokenizer" / "pipe")
    assert "is a pipe" in refused(tmp_path / "mean", theirs, last=2)


def test_steps_of_another_model(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    experiment = config_json.load(run / "config.json")
    wider = dataclasses.replace(experiment, model=dataclasses.replace(MODEL, mlp_width=32))
    write(tmp_path / "run", wider, [14])
    said = refused(tmp_path / "mean", tmp_path / "run", last=2)
    assert "checkpoints/12/params: leaf blocks/mlp/down/kernel is float32[1,64,16] there, but the model wants" in said


def test_the_command_line_refuses_in_one_line(run, tmp_path, capsys):
    for arguments, says in (
        (["average", str(run), str(tmp_path / "new"), "--last", "9"], "--last is 9"),
        (["average", str(run), str(tmp_path / "new"), "--first", "9"], "--first"),
        (["average", str(run), str(run)], "exists; nothing is overwritten"),
        (["mean", str(run), str(tmp_path / "new")], "the kinds are hf"),
        (["hf", str(run), str(tmp_path / "new"), "more"], "unexpected argument 'more'"),
        (["average", str(run)], "an argument is missing"),
    ):
        assert main(["convert", *arguments]) == 2, arguments
        assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
