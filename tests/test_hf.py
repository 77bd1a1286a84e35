"""hf://: models, tokenizers and files of data sets by their names, from a server on the loopback."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants

import transformer_jax
from tests import loopback_hub
from transformer_jax import config_json, hf
from transformer_jax import hub as hub_folders
from transformer_jax.__main__ import main
from transformer_jax.data import corpus, inputs, source_files, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.train import folder as folders
from transformer_jax.train import start

SNAPSHOT = Path(__file__).parent / "data" / "hf" / "gpt2"
FILES = {path.name: path.read_bytes() for path in SNAPSHOT.iterdir()}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that has `org/gpt2`, whose cache is a new folder."""
    with loopback_hub.client(monkeypatch, tmp_path / "hub") as hub:
        hub.commit("org/gpt2", FILES | {"README.md": b"# gpt2", "onnx/model.onnx": bytes(20_000), "tf_model.h5": b"h5"})
        yield hub


def refused(name: str) -> str:
    """The message of `hf.local`, which must be one line that begins with the name."""
    with pytest.raises(InputError) as refusal:
        hf.local(name)
    line = str(refusal.value)
    assert line.startswith(name) and "\n" not in line
    return line


# ---- Names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("model", "org/name", None, "")),
        ("hf://models/org/name/", ("model", "org/name", None, "")),
        ("hf://org/na.me@v1.0/last/step", ("model", "org/na.me", "v1.0", "last/step")),
        ("hf://org/name@refs/pr/3/a.txt", ("model", "org/name", "refs/pr/3", "a.txt")),
        ("hf://org/name@a%2Fb/c", ("model", "org/name", "a/b", "c")),
        ("hf://datasets/org/name@main/data/*.csv", ("dataset", "org/name", "main", "data/*.csv")),
    ],
)
def test_a_name_has_parts_as_huggingface_hub_reads_them(text, parts):
    from huggingface_hub import utils

    found = hf.parse(text)
    assert found == parts and hf.parse(str(found)) == found
    theirs = utils.parse_hf_uri(text)
    assert (theirs.type, theirs.id, theirs.revision, theirs.path_in_repo) == parts


@pytest.mark.parametrize(
    "text", ["hf://gpt2", "hf://", "hf://datasets/name", "hf://org/name/../x", "hf://a/b@", "hf://a//b"]
)
def test_what_is_no_name_is_refused(text):
    assert "is not the name of anything on the Hub" in refused(text)


# ---- Downloads


def test_a_model_by_its_name_is_the_one_in_the_folder(hub):
    loaded, wanted = transformer_jax.load("hf://org/gpt2"), transformer_jax.load(SNAPSHOT)
    assert loaded.config == wanted.config and loaded.tokenizer.fingerprint == wanted.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted.params)
    here = hf.local("hf://org/gpt2")
    held = {path.name for path in here.rglob("*")}
    assert held == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert len(hub.asked("GET", "model.safetensors")) == 1  # the second time it is in the cache
    before = len(hub.requests)
    assert hf.local(f"hf://org/gpt2@{here.name}") == here  # at a commit, the Hub is not even asked
    assert len(hub.requests) == before


def test_the_tokenizer_alone_is_downloaded(hub):
    spec = tokenizers.TokenizerFile("hf://org/gpt2@main")
    assert spec.build(()).fingerprint == tokenizers.load(SNAPSHOT).fingerprint
    assert not hub.asked("GET", "model.safetensors")


def test_torch_files_are_downloaded_where_there_are_no_safetensors(hub):
    hub.commit("org/old", {"config.json": b"{}", "pytorch_model.bin": b"a"})
    hub.commit("org/new", {"config.json": b"{}", "pytorch_model.bin": b"a", "model.safetensors": b"b"})
    assert {path.name for path in hf.local("hf://org/old").iterdir()} == {"config.json", "pytorch_model.bin"}
    assert {path.name for path in hf.local("hf://org/new").iterdir()} == {"config.json", "model.safetensors"}


def test_files_of_a_data_set(hub):
    hub.commit("datasets/org/d", {"a/x.csv": b"1", "a/y.csv": b"2", "z.txt": b"3"})
    pattern = hf.local("hf://datasets/org/d/a/*.csv")
    assert {path.name: path.read_text() for path in pattern.parent.glob(pattern.name)} == {"x.csv": "1", "y.csv": "2"}
    assert not hub.asked("GET", "z.txt")
    assert hf.local("hf://datasets/org/d/z.txt").read_text() == "3"
    assert "datasets/org/d has no nope.txt at commit" in refused("hf://datasets/org/d/nope.txt")


def test_sources_and_inputs_read_files_of_data_sets(hub):
    hub.commit(
        "datasets/org/d", {"a/x.csv": b"text,label\none,1\n", "a/y.tsv": b"text\tlabel\ntwo\t2\n", "b.txt": b"b\n"}
    )
    source = sources.TextFiles(("hf://datasets/org/d/b.txt",), validation=("hf://datasets/org/d/b.txt",))
    assert [text for _, text in source.documents("train")] == ["b\n"]
    found = source_files.find_files(("hf://datasets/org/d/a",), "train")
    assert [(name, path.suffix) for name, path in found] == [("x.csv", ".csv"), ("y.tsv", ".tsv")]
    assert [one.query for one in inputs.lines("hf://datasets/org/d/b.txt")] == ["b"]
    assert [one.query for one in inputs.table("hf://datasets/org/d/a/y.tsv", ("text",))] == ["two"]


def test_a_download_that_was_cut_goes_on_where_it_ended(hub):
    hub.cut["model.safetensors"] = [1000, 1]
    assert (hf.local("hf://org/gpt2") / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [headers.get("range") for headers in hub.asked("GET", "model.safetensors")]
    assert ranges == [None, "bytes=1000-"]


def test_a_download_that_is_cut_again_and_again(hub):
    hub.cut["model.safetensors"] = [0, 100]
    assert "the download broke off" in refused("hf://org/gpt2")
    hub.cut.clear()
    hf.local("hf://org/gpt2")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])  # its SHA-256 is stated, and Git's SHA-1
def test_a_wrong_digest(hub, file):
    hub.damaged.add(file)
    with pytest.raises(InputError, match=f"{file} does not have the digest that the server states.*deleted"):
        transformer_jax.load("hf://org/gpt2")
    hub.damaged.clear()
    assert (hf.local("hf://org/gpt2") / file).read_bytes() == FILES[file]


def test_a_damaged_cache(hub):
    blob = (hf.local("hf://org/gpt2") / "model.safetensors").resolve()
    blob.write_bytes(bytes(len(FILES["model.safetensors"])))
    hf.local("hf://org/gpt2", verify=False)
    with pytest.raises(InputError, match="deleted from the cache"):
        hf.local("hf://org/gpt2")


# ---- What cannot be had


def test_an_unknown_repository_or_revision(hub):
    assert f"{hub.url} has no repository org/none, or it is private" in refused("hf://org/none")
    assert "org/gpt2 has no branch, tag or commit 'v9'" in refused("hf://org/gpt2@v9")


def test_a_private_and_a_gated_repository_need_a_token(hub, monkeypatch):
    hub.private.add("org/gpt2")
    assert "or it is private; check the name, or log in" in refused("hf://org/gpt2")
    hub.private.clear()
    hub.gated.add("org/gpt2")
    assert f"is gated; accept its terms at {hub.url}/org/gpt2" in refused("hf://org/gpt2")
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    hf.local("hf://org/gpt2")


def test_a_file_that_is_listed_and_missing(hub):
    hub.missing.add("model.safetensors")
    assert f"{hub.url} lists model.safetensors but does not have it" in refused("hf://org/gpt2")


def test_a_server_that_is_down_or_away(hub, monkeypatch):
    hub.down = True
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    assert "answers with status 503" in refused("hf://org/gpt2")
    loopback_hub.point(monkeypatch, "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refused("hf://org/gpt2")


def test_offline(hub, monkeypatch):
    cached = hf.local("hf://org/gpt2")
    before = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hf.local("hf://org/gpt2") == cached and hf.pin("hf://org/gpt2") == f"hf://org/gpt2@{cached.name}"
    assert "not in the cache" in refused("hf://org/other") and "HF_HUB_OFFLINE is set" in refused("hf://org/other")
    assert len(hub.requests) == before


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'transformer-jax[hub]'" in refused("hf://org/gpt2")


def test_a_folder_that_is_no_model(hub):
    hub.commit("org/empty", {"README.md": b"nothing"})
    assert "org/empty has no file of a model at commit" in refused("hf://org/empty")
    hub.commit("org/odd", {"config.json": b"{}"})
    with pytest.raises(InputError, match="hf://org/odd is neither a workdir"):
        transformer_jax.load("hf://org/odd")


def test_nothing_of_huggingface_hub_is_printed(hub, capfd, caplog):
    caplog.set_level(logging.WARNING)
    hub.cut["model.safetensors"] = [1000, 1]
    hf.pin("hf://org/gpt2")
    hf.local("hf://org/gpt2")
    assert capfd.readouterr() == ("", "") and not caplog.records


# ---- Pinned commits


@dataclasses.dataclass(frozen=True)
class Part:
    files: tuple[str, ...]
    other: int = 3


@dataclasses.dataclass(frozen=True)
class Whole:
    part: Part
    init_from: str = ""


def test_every_name_in_an_experiment_is_pinned():
    value = Whole(Part(("a.csv", "hf://datasets/org/d/b.csv")), "hf://org/name@v1")
    pinned = hf.pinned(value, None, lambda name: f"{name} pinned")
    assert pinned == Whole(Part(("a.csv", "hf://datasets/org/d/b.csv pinned")), "hf://org/name@v1 pinned")
    nothing = Whole(Part(("a.csv",)))
    assert hf.pinned(nothing) is nothing


def test_a_name_without_a_revision_keeps_the_stored_commit():
    stored = f"hf://org/name@{COMMIT}"
    new = lambda name: "new"  # noqa: E731
    assert hf.pinned("hf://org/name", stored, new) == stored
    for other in ("hf://org/name@main", "hf://org/other", "hf://datasets/org/name", "hf://org/name/part"):
        assert hf.pinned(other, stored, new) == "new"
    assert hf.pin(stored) == stored


def test_a_run_goes_on_from_the_commit_that_it_began_with(hub, tmp_path):
    (tmp_path / "text.txt").write_text("a rose is a rose\n" * 100)
    experiment = Experiment(
        model=gpt.Config(vocab_size=100, max_length=32, width=16, num_layers=1, num_heads=2),
        data=corpus.TextCorpus(
            sources.TextFiles((str(tmp_path / "text.txt"),)), tokenizers.TokenizerFile("hf://org/gpt2"), length=8
        ),
        train=Train(steps=1, batch_size=8),
        init_from="hf://org/gpt2",
    )
    first = hub.branches["org/gpt2", "main"]
    run, pinned = tmp_path / "run", f"hf://org/gpt2@{first}"
    with contextlib.ExitStack() as stack:
        begun = folders.enter(experiment, run, stack).experiment
    assert begun.init_from == begun.data.tokenizer.path == pinned
    run.mkdir()
    adopted = start.adopt(begun, hub_folders.load(SNAPSHOT)[0], lambda line: None)
    config_json.save(adopted, run / "config.json")
    (run / "results.json").write_text("{}")
    moved = hub.commit("org/gpt2", {"config.json": b"{}"})
    with contextlib.ExitStack() as stack:
        resumed = folders.enter(experiment, run, stack).experiment
        assert resumed.init_from == resumed.data.tokenizer.path == pinned
    other = dataclasses.replace(experiment, init_from="hf://org/gpt2@main")
    with contextlib.ExitStack() as stack:
        assert folders.enter(other, tmp_path / "new", stack).experiment.init_from == f"hf://org/gpt2@{moved}"


# ---- Commands


def test_commands_take_names(hub, tmp_path, capsys):
    assert main(["inspect", "hf://org/gpt2"]) == 0
    assert "all there" in capsys.readouterr().out
    assert main(["convert", "hf", "hf://org/gpt2", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["init_from"] == f"hf://org/gpt2@{hub.branches['org/gpt2', 'main']}"
    for command in (["inspect"], ["predict"], ["evaluate"], ["convert", "hf"]):
        assert main([*command, "hf://org/none", *([str(tmp_path / "new")] if command[1:] else [])]) == 2
        assert capsys.readouterr().err.startswith(f"error: hf://org/none: {hub.url} has no repository org/none")
