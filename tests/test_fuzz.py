"""The fuzzer on a few inputs of every kind, and that it sees what it is there to see."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tools.drills import fuzz
from transformer_jax import hub, restore
from transformer_jax.errors import InputError
from transformer_jax.runs import manifest


@pytest.fixture(scope="module")
def watch():
    return fuzz.Watch()


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_bad_files_are_refused_or_read_and_nothing_else(name, watch, tmp_path):
    kind, good = fuzz.KINDS[name], tmp_path / "good"
    good.mkdir()
    kind.make(good)
    kind.read(good)
    outcomes = {
        number: fuzz.attack(kind, good, number, 1, tmp_path, watch) for number in range(5 if name == "bomb" else 12)
    }
    assert set(outcomes.values()) <= {"refused", "read"}, outcomes
    assert "refused" in outcomes.values()


def refuses(folder):
    raise InputError("no")


READERS = {
    "KeyError at test_fuzz.py": lambda folder: dict[str, int]()["gone"],
    "open /": lambda folder: Path("/nonsense/elsewhere").read_bytes(),
    "open ": lambda folder: (folder / "left_behind").write_text(""),
    "os.system": lambda folder: os.system("true"),
    "os.remove": lambda folder: os.remove(folder / "a.json"),
    "exec <code object": lambda folder: exec(compile("1", "input", "exec")),
    "pickle.find_class": lambda folder: pickle.loads(b"cos\ngetcwd\n."),
    "TimeoutError": lambda folder: signal.raise_signal(signal.SIGALRM),
    "refused": refuses,
    "read": lambda folder: None,
}


@pytest.mark.parametrize("outcome", READERS)
def test_it_sees(outcome, watch, tmp_path):
    def make(folder):
        (folder / "a.json").write_text('{"a": [1, 2]}')

    (tmp_path / "good").mkdir()
    make(tmp_path / "good")
    kind = fuzz.Kind(make, READERS[outcome], ("a.json",))
    before = signal.signal(signal.SIGALRM, fuzz._too_slow)
    found = fuzz.attack(kind, tmp_path / "good", 0, 0, tmp_path, watch)
    signal.signal(signal.SIGALRM, before)
    assert found.startswith(outcome) and not (tmp_path / "input").exists()


def test_an_input_is_a_function_of_seed_and_number(tmp_path):
    def made(seed, number):
        path = tmp_path / "config.json"
        shutil.copy(fuzz.DATA / "hf/gpt2/config.json", path)
        fuzz.mutate(path, np.random.default_rng([seed, number]))
        return path.read_bytes()

    assert made(0, 3) == made(0, 3)
    assert len({made(seed, number) for seed in (0, 1) for number in range(10)}) == 20


# ---- What it has found


def test_a_manifest_that_lists_half_a_character(tmp_path):
    name = "\ud800"
    (tmp_path / manifest.NAME).write_bytes(manifest.render(manifest.Manifest({name: manifest.File(1, "a")})))
    with pytest.raises(manifest.Damaged, match=r"lists '\\ud800', which is not a file in this folder"):
        manifest.verify(tmp_path)


def test_brackets_in_brackets_a_billion_layers_and_ids_beyond_memory(tmp_path):
    snapshot = shutil.copytree(fuzz.DATA / "hf/gpt2", tmp_path / "gpt2")
    tokenizer = json.loads((snapshot / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["O"] = 2**31
    (snapshot / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"288 tokens have ids up to 2,147,483,648; ids must number the tokens"):
        restore.load(snapshot)
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps(config | {"n_layer": 2**31}))
    with pytest.raises(InputError, match=r"its config.json has 2,147,483,648 layers, but there are \d+ tensors"):
        restore.load(snapshot)
    (snapshot / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config.json"):
        hub.load(snapshot)
