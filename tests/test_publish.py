"""`convert hf RUN DST --card --push`: the model card, and the upload to a Hub on the loopback."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml

import transformer_jax
from tests import loopback_hub
from transformer_jax import config_json
from transformer_jax.__main__ import main
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.experiment import Experiment
from transformer_jax.hub import card
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.runs.writer import Writer
from transformer_jax.train import state as state_lib

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESULTS = {
    "step": 2,
    "report": {"loss_nats_per_token": 1.25, "bleu": 20.0, "bleu_low": 19.0, "bleu_high": 21.0, "bleu_signature": "a|b"},
    "best_step": 1,
    "test": {"loss_nats_per_token": 9.0},
    "facts": {"vocabulary": 1257},
    "parameters": 12345,
    "seconds": 90.0,
    "devices": "2 x cpu",
    "command": "transformer-jax train causal_lm.stdlib",
}


FILES = (f"hf://datasets/org/texts@{COMMIT}/a.txt", "/home/me/secret/b.txt")
EXPERIMENT = Experiment(
    model=gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2),
    data=corpus.TextCorpus(sources.TextFiles(FILES), tokenizers.Bytes(), length=16),
    init_from=f"hf://org/base@{COMMIT}",
)


def write_workdir(folder: Path, experiment: Experiment, *steps: int) -> Path:
    """What a run leaves behind, with other parameters at each step."""
    folder.mkdir()
    config_json.save(experiment, folder / "config.json")
    tokenizers.Bytes().build(()).save(folder / "tokenizer")
    shapes = params_lib.abstract(gpt.declare(experiment.model))
    with Writer(folder / "checkpoints", family="gpt", config=config_json.to_json(experiment), keep=5) as writer:
        for step in steps:
            random = np.random.default_rng(step)
            params = jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape, np.float32)), shapes)
            state = state_lib.create(params, optax.identity())
            writer.save(dataclasses.replace(state, step=jnp.int32(step)), rows=step)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with loopback_hub.client(monkeypatch, tmp_path / "hub") as hub:
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that began with a model of the Hub, on a data set of the Hub and a file of this machine."""
    folder = write_workdir(tmp_path_factory.mktemp("publish") / "run", EXPERIMENT, 1, 2)
    (folder / "results.json").write_text(json.dumps(RESULTS | {"test": {}}))
    return folder


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_card_states_what_the_run_stored(run, tmp_path):
    assert main(["convert", "hf", str(run), str(tmp_path / "out"), "--card", "--license", "apache-2.0"]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["license"] == "apache-2.0" and found["library_name"] == "transformers"
    assert found["pipeline_tag"] == "text-generation" and found["tags"] == ["jax", "transformer_jax"]
    assert found["base_model"] == "org/base" and found["datasets"] == ["org/texts"]
    assert found["metrics"] == ["loss_nats_per_token", "sacrebleu"]
    (result,) = found["model-index"][0]["results"]
    assert result["task"] == {"type": "text-generation"}
    assert result["dataset"] == {"name": "org/texts", "type": "org/texts", "split": "validation"}
    numbers = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert numbers == {"loss_nats_per_token": 1.25, "sacrebleu": 20.0}
    assert "| validation | bleu | 20.0000 | 19.0000 to 21.0000 |" in body and "- bleu signature: `a|b`" in body
    assert "transformer-jax train causal_lm.stdlib" in body and "12,345 parameters" in body and "jax 0." in body
    assert "GPT2LMHeadModel.from_pretrained" in body and "- Vocabulary: 1,257" in body
    assert f"https://huggingface.co/org/base/tree/{COMMIT}" in body
    assert "/home/me" not in text and "b.txt" in body


def test_the_numbers_are_of_the_exported_step(run, tmp_path):
    results = run / "results.json"
    before = results.read_text()
    try:
        results.write_text(json.dumps(RESULTS))  # the test set was evaluated at step 1, which is exported
        assert main(["convert", "hf", str(run), str(tmp_path / "best"), "--card"]) == 0
        text = (tmp_path / "best" / "README.md").read_text()
        assert "| test | loss nats per token | 9.0000 |" in text and "1.2500" not in text and "license" not in text
        results.write_text(json.dumps(RESULTS | {"step": 7, "test": {}}))
        assert main(["convert", "hf", str(run), str(tmp_path / "other"), "--card"]) == 0
        assert "This step was not evaluated." in (tmp_path / "other" / "README.md").read_text()
    finally:
        results.write_text(before)


def test_a_step_and_a_run_on_a_run_know_the_base_model(run, tmp_path):
    workdir = write_workdir(tmp_path / "second", dataclasses.replace(EXPERIMENT, init_from=str(run)), 1)
    assert main(["convert", "hf", str(workdir / "checkpoints" / "1"), str(tmp_path / "out"), "--card"]) == 0
    assert "\nbase_model: org/base\n" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own call of httpx2
def test_a_pushed_model_loads_by_its_name(hub, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    assert main(["convert", "hf", str(run), str(tmp_path / "out"), "--push", "org/mine"]) == 0
    assert f"{hub.url}/org/mine: pushed as commit" in capsys.readouterr().out
    assert hub.created["org/mine"].get("visibility", "") == "private" or hub.created["org/mine"].get("private")
    _, files = hub.files("org/mine", "main") or ("", {})
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert 'load("hf://org/mine")' in files["README.md"].decode()
    loaded, wanted = transformer_jax.load("hf://org/mine"), transformer_jax.load(run)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted.params)


def test_what_cannot_be_pushed_is_refused_before_anything_is_written(hub, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    command = ("convert", "hf", run, tmp_path / "out")
    assert "log in: hf auth login" in refused(capsys, *command, "--push", "org/mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_other")
    for push, why in (("mine", "names no organisation"), ("hf://org/mine", "is not the name of a model")):
        assert why in refused(capsys, *command, "--push", push)
    assert "is not an id of the Hub's" in refused(capsys, *command, "--card", "--license", "my own")
    assert "give --card" in refused(capsys, *command, "--license", "mit")
    assert not (tmp_path / "out").exists() and not hub.requests
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert f"--push org/mine: {hub.url} refuses it (status 401)" in refused(capsys, *command, "--push", "org/mine")


def test_a_damaged_export_is_not_pushed(hub, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    read = transformer_jax.hub.load

    def other(folder):
        config, params, tokenizer = read(folder)
        return config, jax.tree.map(lambda x: x + 1, params), tokenizer

    monkeypatch.setattr("transformer_jax.hub.load", other)
    assert "nothing was pushed" in refused(capsys, "convert", "hf", run, tmp_path / "out", "--push", "org/mine")
    assert not hub.requests


def test_the_card_of_sentence_embeddings_names_the_library_that_pools():
    made = card.Run(config_json.to_json(EXPERIMENT), {}, {}, 1, {})
    text = card.text("org/mine", {"model_type": "sentence-transformers", "architectures": ["BertModel"]}, made)
    assert "library_name: sentence-transformers" in text and 'SentenceTransformer("org/mine")' in text
    assert "BertModel" not in text.split("<details>")[0]


def test_names_in_settings_and_paths_of_this_machine():
    tree = {"a": ["hf://datasets/o/d/x", "/home/me/x.txt"], "b": {"c": "hf://o/m", "d": "runs/a", "e": 3}}
    assert list(card._names(tree, "")) == ["hf://datasets/o/d/x", "hf://o/m"]
    assert card._public(tree)["a"][1] == "x.txt" and card._public(tree)["b"] == tree["b"]
