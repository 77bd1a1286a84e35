"""A run in an object store: a bucket in this process's memory, which fails on cue, in place of Google Cloud Storage."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tools import bucket
from transformer_jax import restore
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError, RunError
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.train import checkpoint, lock, loop, store, store_lock, writer

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks a second service, and waits
pytest.importorskip("gcsfs", reason="needs gcsfs: tools/install gcs")
import fsspec


@pytest.fixture(scope="module")
def server():
    with bucket.serve("drill") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        for protocol in ("gs", "gcs"):  # fsspec reads its environment when it is imported, which it may be already
            settings = {**fsspec.config.conf.get(protocol, {}), "token": "anon"}
            patch.setitem(fsspec.config.conf, protocol, settings)
        yield server


@pytest.fixture(autouse=True)
def _no_faults_left(server):
    yield
    server.faults.clear()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Experiment:
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(["to", "be", "or", "not"], 1000)))
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=16, width=16, num_layers=1, num_heads=2, dropout=0.2),
        data=corpus.TextCorpus(sources.TextFiles((str(text),)), tokenizers.Bytes(), length=16),
        optim=Optim(peak_lr=1e-2, decay_steps=6),
        train=Train(steps=6, batch_size=16, log_every=1),
        evaluate=Evaluate(every=4),
        checkpoint=Checkpoint(every=2, keep=2),
        sample=Sample(max_new_tokens=0),
    )


def train(experiment, where, steps=6):
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=steps))
    return loop.run(experiment, where, load=restore.load)


def parameters(where) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in params_lib.flatten(restore.load(str(where)).params).items()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.fixture(scope="module")
def run(tiny, server) -> str:
    """A finished run in the store, stopped at step 4 and taken up again."""
    where = "gs://drill/runs/a"
    train(tiny, where, steps=4)
    assert train(tiny, where).step == 6
    return where


def test_it_is_the_run_on_a_disk_to_the_bit(tiny, run, server, tmp_path):
    train(tiny, tmp_path / "run")
    assert equal(parameters(run), parameters(tmp_path / "run"))
    names = {name.removeprefix("runs/a/") for name in server.objects if name.startswith("runs/a/")}
    for wanted in ("config.json", "results.json", "metrics.jsonl", "loss.png", "checkpoints/6/manifest.json"):
        assert wanted in names
    assert any(name.startswith("tokenizer/") for name in names) and "lock" not in names
    rows = [json.loads(line) for line in server.objects["runs/a/metrics.jsonl"].data.splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert checkpoint.steps(store.path(run) / "checkpoints") == [4, 6]  # older ones are deleted, whole
    assert not any(name.startswith("checkpoints/2/") for name in names)


def test_the_manifest_comes_last_and_goes_first(run, server):
    """Every object of a step is written before its manifest, which expects to be the first; deletion begins with it."""
    of_step = [(method, name) for method, name in server.log if "checkpoints/2/" in name]
    written = [name for method, name in of_step if method in ("POST", "PUT")]
    assert "manifest.json" in written[-1]
    deleted = [name for method, name in of_step if method == "DELETE"]
    assert "manifest.json" in deleted[0] or "manifest.json" in deleted[1]  # one more may clean what a try left


def test_damage_is_named_and_the_newest_good_step_is_used(run, server):
    name = next(n for n in sorted(server.objects) if n.startswith("runs/a/checkpoints/6/params/") and "/d/" in n)
    good = server.objects[name].data
    server.put(name, good[:-1] + bytes([good[-1] ^ 1]))
    try:
        with pytest.warns(UserWarning, match="is not as it was written"):
            assert restore.load(run).step == 4
        with pytest.raises(checkpoint.Damaged, match="is not as it was written"):
            restore.load(f"{run}/checkpoints/6")
    finally:
        server.put(name, good)


def test_a_prefix_without_a_manifest_is_no_step(run, server):
    server.put("runs/a/checkpoints/8/params/d/0", b"half")
    try:
        assert checkpoint.steps(store.path(run) / "checkpoints") == [4, 6] and restore.load(run).step == 6
    finally:
        del server.objects["runs/a/checkpoints/8/params/d/0"]


def test_a_write_that_fails_once_is_tried_again(tiny, server, tmp_path):
    server.faults += [
        bucket.Fault("POST", "manifest.json", status=503),
        bucket.Fault("POST", "metrics.jsonl", status=503),
        bucket.Fault("GET", "checkpoints", status=503, skip=3),
    ]
    assert train(tiny, "gs://drill/runs/b", steps=2).step == 2
    assert all(fault.struck for fault in server.faults)
    assert restore.load("gs://drill/runs/b").step == 2


@pytest.mark.parametrize(
    ("method", "name", "left"),
    [
        ("POST", "checkpoints/4/params", [2]),
        ("POST", "checkpoints/4/manifest", [2]),
        ("DELETE", "checkpoints/2/", [2, 4]),
    ],
)
def test_cut_off_at_any_point_of_a_save_no_step_is_half_there(tiny, server, monkeypatch, method, name, left):
    """From that request on the store refuses: the run ends in one line, and what is there is what a killed process
    leaves. The same command cleans it and goes on."""
    monkeypatch.setattr(writer, "PAUSES", (0.1,))
    where, keep_one = f"gs://drill/runs/{method}-{name.split('/')[-1]}", dataclasses.replace(tiny.checkpoint, keep=1)
    experiment = dataclasses.replace(tiny, checkpoint=keep_one)
    # What a save begins with, the deletion of what an earlier try may have left, is let pass.
    server.faults.append(bucket.Fault(method, name, status=403, times=10**6, skip=int(method == "DELETE")))
    with pytest.raises(RunError) as caught:
        train(experiment, where, steps=4)
    assert "\n" not in str(caught.value) and where in str(caught.value)
    server.faults.clear()
    assert checkpoint.steps(store.path(where) / "checkpoints") == left
    assert restore.load(where).step == left[-1]
    assert train(experiment, where, steps=6).step == 6
    assert checkpoint.steps(store.path(where) / "checkpoints") == [6]


def test_two_trainers_cannot_write_one_run(tiny, run, server, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.5)
    with contextlib.ExitStack() as held:
        held.enter_context(store_lock.hold(store.path(run), print))
        with pytest.raises((InputError, RunError), match="lock"):
            train(tiny, run, steps=8)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("gs://elsewhere/run", "no bucket 'elsewhere'"),
        ("s3://drill/run", "s3:// is not supported"),
        ("gs://drill", "name a folder"),
    ],
)
def test_bad_names_are_refused_in_one_line(where, said, server):
    with pytest.raises(InputError, match=said) as caught:
        store.path(where)
    assert "\n" not in str(caught.value)


def test_local_paths_stay_what_they_are(tmp_path):
    assert store.path("runs/a") == Path("runs/a") and not store.remote(tmp_path)
    assert store.absolute(Path("runs/a")) == Path(os.getcwd()) / "runs/a"
    with store.near(tmp_path) as (folder, publish):
        assert folder == tmp_path and publish() is None
