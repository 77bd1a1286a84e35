"""A run in an object store: a bucket in this process's memory, which fails on cue, in place of Google Cloud Storage."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tools.drills import bucket
from transformer_jax import restore
from transformer_jax.cli.main import main
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError, RunError
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.observe import report
from transformer_jax.optim import Optim
from transformer_jax.runs import lock, manifest, mirror, owners, saved, store, store_lock, writer
from transformer_jax.train import loop
from transformer_jax.train import state as state_lib

# Read when gcsfs is imported, which nothing before this file does; it would ask a second service, and wait for it.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
fsspec = pytest.importorskip("fsspec")
retry = pytest.importorskip("gcsfs.retry", reason="needs gcsfs: tools/install gcs")
if sys.version_info[:3] in store.CRASHING:
    pytest.skip("this Python crashes after uploads that failed: CPython issue 111211", allow_module_level=True)


@pytest.fixture(scope="module")
def server():
    with bucket.serve("drill") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        for protocol in ("gs", "gcs"):  # fsspec reads its environment when it is imported, which it may be already
            settings = {**fsspec.config.conf.get(protocol, {}), "token": "anon"}
            patch.setitem(fsspec.config.conf, protocol, settings)
        patch.setattr(
            retry, "random", types.SimpleNamespace(random=lambda: -0.95)
        )  # its first pause: 0.05 s, not 1 to 2
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


TRANSIENT = (
    bucket.Fault("POST", "manifest.json", status=503),
    bucket.Fault("POST", "metrics.jsonl", status=429),
    bucket.Fault("POST", "manifest.json", status=500, skip=1, done=True),  # it is written, and the answer is lost
    bucket.Fault("POST", "/lock", done=True),
    bucket.Fault("POST", "checkpoints/.*/params", status=503),
    bucket.Fault("GET", "checkpoints", status=502, skip=20),
    bucket.Fault("GET", "checkpoints", skip=60),
    bucket.Fault("DELETE", "checkpoints/2/", status=504, skip=3),
)


@pytest.fixture(scope="module")
def run(tiny, server) -> str:
    """A finished run in the store, through errors that pass: stopped at step 4 and taken up again."""
    where = "gs://drill/runs/a"
    faults = [dataclasses.replace(fault) for fault in TRANSIENT]
    server.faults += faults
    train(tiny, where, steps=4)
    assert train(tiny, where).step == 6
    server.faults.clear()
    assert [fault for fault in faults if not fault.struck] == []
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
    assert saved.steps(store.path(run) / "checkpoints") == [4, 6]  # older ones are deleted, whole
    assert not any(name.startswith("checkpoints/2/") for name in names)


def test_the_page_of_a_run_in_a_store(run, server):
    rows = [json.loads(line) for line in server.objects["runs/a/launches.jsonl"].data.splitlines()]
    assert [row["step"] for row in rows] == [0, 4], "the resumed run adds to what the first one wrote"
    assert b"Complete at step 6 of 6" in server.objects["runs/a/report.html"].data
    page = report.made(store.path(run))
    assert "Complete at step 6 of 6" in page and "Saved steps: 4, 6." in page and f"Run {run}" in page
    assert main(["report", run]) == 0 and server.objects["runs/a/report.html"].data.decode() == page


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
        with pytest.raises(saved.Damaged, match="is not as it was written"):
            restore.load(f"{run}/checkpoints/6")
    finally:
        server.put(name, good)


def test_a_prefix_without_a_manifest_is_no_step(run, server):
    server.put("runs/a/checkpoints/8/params/d/0", b"half")
    try:
        assert saved.steps(store.path(run) / "checkpoints") == [4, 6] and restore.load(run).step == 6
    finally:
        del server.objects["runs/a/checkpoints/8/params/d/0"]


def test_two_trainers_cannot_write_one_run(tiny, run, server, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.5)
    before = dict(server.objects)
    with store_lock.hold(store.path(run), print), pytest.raises(InputError, match=r"alive \d+ s ago \(.*lock\)"):
        train(tiny, run, steps=8)
    assert server.objects == before


# --------------------------------------------------------------------------------------------------------------- saves


def toy(name, **options):
    """A writer into gs://drill/NAME/checkpoints, which keeps one step."""
    folder = store.path(f"gs://drill/{name}/checkpoints")
    return writer.Writer(folder, family="toy", config={"type": "toy"}, keep=1, say=lambda line: None, **options)


def save(name, step, **options):
    made = state_lib.create({"a": jnp.arange(6.0) + step, "b": jnp.full((2, 3), step)}, optax.identity())
    with toy(name, **options) as w:
        w.save(made.replace(step=jnp.int32(step)), rows=step)


CHANGES = "POST|PUT|DELETE"


@pytest.mark.parametrize(
    ("method", "name", "skip", "done", "left"),
    [
        (CHANGES, "checkpoints/2/", 0, False, [1]),
        (CHANGES, "checkpoints/2/params", 2, True, [1]),
        ("POST", "2/manifest.json", 0, False, [1]),
        ("POST", "2/manifest.json", 0, True, [1, 2]),
        ("DELETE", "1/manifest.json", 0, False, [1, 2]),
        ("DELETE", "1/manifest.json", 0, True, [2]),
        ("DELETE", "1/params", 1, True, [2]),
    ],
)
def test_cut_off_anywhere_in_a_save_no_step_is_half_there(server, monkeypatch, method, name, skip, done, left):
    """From that request on, with or without what it changes, the store refuses: so it looks when a process is killed
    between two requests. The steps that are there are whole, and the next run cleans and goes on."""
    monkeypatch.setattr(writer, "PAUSES", ())
    where = f"cut/{method[:4]}-{name.replace('/', '-')}-{done}"
    folder = store.path(f"gs://drill/{where}/checkpoints")
    save(where, 1)
    cut = bucket.Fault(method, name, status=403, skip=skip, done=done)
    rest = bucket.Fault(CHANGES, "checkpoints/", status=403, times=10**9)
    cut.act = lambda: server.faults.append(rest)
    server.faults.append(cut)
    with pytest.raises(RunError) as caught:
        save(where, 2)
    server.faults.clear()
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert saved.steps(folder) == left
    for step in left:
        saved.check_files(folder / str(step))
    save(where, 3, resumed=left[-1])
    assert saved.steps(folder) == [3]
    assert {n.split("/")[3] for n in server.objects if n.startswith(where)} == {"3"}, "nothing is left behind"


def test_a_damaged_newer_step_is_set_aside(server):
    save("aside", 1)
    save("aside", 2)
    contents = {n: x.data for n, x in server.objects.items() if n.startswith("aside/checkpoints/2/")}
    with toy("aside", resumed=1):
        pass
    for name, data in contents.items():
        assert name not in server.objects and server.objects[name.replace("/2/", "/2.damaged/")].data == data
    assert saved.steps(store.path("gs://drill/aside/checkpoints")) == []


def test_what_a_manifest_lists_is_what_is_there(server, monkeypatch):
    """An object that came, or went, while the others were digested: no manifest is written over it."""
    monkeypatch.setattr(writer, "PAUSES", ())
    digest = manifest.digest

    def late(folder, names):
        made = digest(folder, names)
        server.put("late/checkpoints/1/params/late", b"an upload that outlived its process")
        return made

    monkeypatch.setattr(manifest, "digest", late)
    with pytest.raises(RunError, match="params/late is not in the manifest"):
        save("late", 1)
    assert saved.steps(store.path("gs://drill/late/checkpoints")) == []


def test_who_lost_the_lock_saves_no_more(server):
    answers = iter([None, lock.Lost("taken over")])  # it is lost while the arrays are on their way

    def is_owner():
        if (answer := next(answers)) is not None:
            raise answer

    with pytest.raises(lock.Lost, match="taken over"):
        save("lost", 1, is_owner=is_owner)
    assert saved.steps(store.path("gs://drill/lost/checkpoints")) == []


# ----------------------------------------------------------------------------------------------------------- the lock


def owned(name, **facts):
    """The lock of another machine's process, written now."""
    owner = {"host": "elsewhere", "pid": 1, "started": "long ago", "machine": "another", **facts}
    return store.put(store.path(f"gs://drill/{name}") / lock.NAME, json.dumps(owner).encode())


def test_a_lock_without_a_sign_of_life_is_taken_over(server, monkeypatch):
    path, said = store.path("gs://drill/locked"), []
    owned("locked")
    monkeypatch.setattr(server, "clock", lambda: time.time() + lock.STALE + 1)
    began = time.monotonic()
    with store_lock.hold(path, said.append) as check:
        check()
        assert time.monotonic() - began < 5, "its age, by the store's clock, says it all"
        assert said == [f"{path}/lock: process 1 on elsewhere, started long ago is gone; its lock is taken over"]
        owned("locked", pid=2)
        with pytest.raises(lock.Lost, match=r"was taken over by process 2 on elsewhere.* saves no more"):
            check()
    assert json.loads(store.get(path / lock.NAME)[0])["pid"] == 2, "another's lock is not deleted"


def test_a_dead_process_of_this_machine_is_known_at_once(server):
    """Though nobody has reaped it, and though another process had its number since."""
    path, said = store.path("gs://drill/dead"), []
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    machine, born = owners._machine(), owners._born(process.pid)
    assert machine and born
    for ended in (True, False):
        if ended:
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        owner = {"pid": process.pid if ended else os.getpid(), "machine": machine, "born": born}
        owned("dead", **owner)
        began = time.monotonic()
        with store_lock.hold(path, said.append):
            assert time.monotonic() - began < 5
        assert "is gone" in said.pop() and not said
    process.communicate()


def test_of_two_that_take_over_one_wins(server, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 1.0)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    path, ends, found = store.path("gs://drill/contended"), threading.Event(), []
    owned("contended")

    def take():
        try:
            with store_lock.hold(path, lambda line: None):
                found.append("held")
                ends.wait(10)
        except InputError as error:
            found.append(str(error))
            ends.set()

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held, refused = sorted(found, key=len)
    assert held == "held" and re.search(r"contended is being written by process \d+ on .* alive", refused)
    assert "elsewhere" not in refused  # who took it over, not who had it before
    assert not store.there(path / lock.NAME)


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_request_without_an_answer_is_made_again_and_then_told(server, monkeypatch):
    monkeypatch.setattr(store, "TIMEOUT", 0.3)
    slow = bucket.Fault("GET", "silent/object", act=lambda: time.sleep(0.5), times=1)
    server.faults.append(slow)
    store.put(store.path("gs://drill/silent") / "object", b"x")
    assert store.get(store.path("gs://drill/silent") / "object")[0] == b"x" and slow.struck == 1
    slow.times = 10
    with pytest.raises(store.Failed, match="does not answer .3 times no answer in 0 s.; see the network"):
        store.get(store.path("gs://drill/silent") / "object")


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


def test_what_is_not_allowed_is_said_with_the_role_that_is_missing(server, monkeypatch):
    path = store.path("gs://drill/closed")
    server.faults.append(bucket.Fault(".*", "closed|prefix=closed", status=403, times=10**9))
    with pytest.raises(InputError, match="closed cannot be read: the store refuses it .*Storage Object User"):
        store.path("gs://drill/closed")
    with pytest.raises(store.Failed, match="cannot write .*Storage Object User"):
        store.put(path / "object", b"x")
    server.faults.clear()
    monkeypatch.setattr(server, "bucket", "deleted meanwhile")
    with pytest.raises(store.Failed, match="there is no bucket 'drill'"):
        store.put(path / "object", b"x")


def test_only_whole_files_are_uploaded(server):
    with mirror.local_mirror(store.path("gs://drill/near")) as (folder, publish):
        (folder / "numbers.json").write_text("{}")
        (folder / "more.json.part").write_text("{")
        publish()
        publish()
    assert [name for method, name in server.log if method == "POST" and "near/" in name] == ["near/numbers.json"]


def test_local_paths_stay_what_they_are(tmp_path):
    assert store.path("runs/a") == Path("runs/a") and not store.remote(tmp_path)
    assert store.absolute(Path("runs/a")) == Path(os.getcwd()) / "runs/a"
    with mirror.local_mirror(tmp_path) as (folder, publish):
        assert folder == tmp_path and publish() is None
