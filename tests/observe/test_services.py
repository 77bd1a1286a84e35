"""The services of `--log`, against fakes of their packages: what is sent, and that none of them can hold up a run.

tools/drills/check_integrations runs the real packages.
"""

import json
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from transformer_jax import contracts, observe
from transformer_jax.errors import InputError
from transformer_jax.observe import mlflow, sending, services, trackio, wandb


def facts(folder, **changes):
    known = {"workdir": "runs/mine", "run_id": "a1b2", "config": {"seed": 0, "train": {"steps": 9}}, "first_step": 0}
    return contracts.RunFacts(folder, **(known | {"steps": 9, "metric": "f1"} | changes))


def hear(observer, run, results):
    """A short run, as an observer hears it."""
    observer.start(run)
    observer.row({"step": 1.0, "loss": 2.5})
    observer.evaluation(1, "validation", {"f1": 0.5, "signature": "v2"})
    observer.end(results)


class Calls:
    """A stand-in for any object of a service: keeps the calls of all its methods, and answers as told."""

    def __init__(self, **answers):
        self.calls, self.answers = [], answers

    def __getattr__(self, name):
        def method(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self.answers.get(name)

        return method


# What the packages get -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("results", "code"), [({"step": 9}, 0), ({}, 1)])
def test_wandb(tmp_path, monkeypatch, results, code):
    run = Calls()
    run.offline, run.url = False, "https://wandb.ai/me/run"
    package = Calls(init=run)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    hear(wandb.WandB(), facts(tmp_path), results)
    (_, _, options) = next(call for call in package.calls if call[0] == "init")
    assert options["id"] == "a1b2" and options["resume"] == "allow"
    assert (options["project"], options["name"], options["config"]["seed"]) == ("theirs", "mine", 0)
    assert run.calls == [
        ("log", ({"train/loss": 2.5},), {"step": 1}),
        ("log", ({"validation/f1": 0.5},), {"step": 1}),
        ("finish", (), {"exit_code": code}),
    ]


def test_trackio(tmp_path, monkeypatch):
    run = Calls()
    package = Calls(init=run)
    monkeypatch.setitem(sys.modules, "trackio", package)
    hear(trackio.Trackio(), facts(tmp_path), {"step": 9})
    (name, _, options), (last, *_) = package.calls
    assert (name, options["name"], options["resume"], last) == ("init", "mine-a1b2", "allow", "finish")
    assert run.calls == [
        ("log", ({"train/loss": 2.5},), {"step": 1}),
        ("log", ({"validation/f1": 0.5},), {"step": 1}),
    ]


def with_id(name):
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))


@pytest.fixture
def mlflow_client(monkeypatch):
    client = Calls(create_experiment="7", search_runs=[], create_run=with_id("theirs"))
    package = types.ModuleType("mlflow")
    package.MlflowClient, package.get_tracking_uri = (lambda: client), lambda: "sqlite:///mlflow.db"
    package.entities = types.ModuleType("mlflow.entities")
    package.entities.Metric = lambda name, value, timestamp, step: (name, value, step)
    package.entities.Param = lambda name, value: (name, value)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", package.entities)
    return client


def test_mlflow_makes_a_run(tmp_path, mlflow_client):
    hear(mlflow.MLflow(), facts(tmp_path), {"step": 9})
    calls = {name: (arguments, options) for name, arguments, options in mlflow_client.calls}
    assert calls["search_runs"][0] == (["7"], "tags.`transformer_jax.run_id` = 'a1b2'")
    assert calls["create_run"][1]["tags"]["transformer_jax.run_id"] == "a1b2"
    assert [options for name, _, options in mlflow_client.calls if name == "log_batch"] == [
        {"params": [("seed", "0"), ("train.steps", "9")]},
        {"metrics": [("train/loss", 2.5, 1)]},
        {"metrics": [("validation/f1", 0.5, 1)]},
    ]
    assert calls["set_terminated"][0] == ("theirs", "FINISHED")


def test_mlflow_goes_on_with_the_run_of_that_id(tmp_path, mlflow_client):
    mlflow_client.answers["search_runs"] = [with_id("before")]
    hear(mlflow.MLflow(), facts(tmp_path, first_step=5), {})
    names = [name for name, *_ in mlflow_client.calls]
    assert "create_run" not in names and ("update_run", ("before",), {"status": "RUNNING"}) in mlflow_client.calls
    assert all("params" not in options for _, _, options in mlflow_client.calls), "MLflow refuses to change them"
    assert mlflow_client.calls[-1] == ("set_terminated", ("before", "KILLED"), {})


# Names -----------------------------------------------------------------------------------------------------------


def test_a_wrong_name_and_a_missing_package(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="'wandbb' is none of wandb, mlflow, trackio; the nearest is wandb"):
        observe.named("mlflow,wandbb") if services.importlib.util.find_spec("mlflow") else observe.named("wandbb")
    monkeypatch.setattr(services, "SERVICES", {"folder_alone": "It"})
    monkeypatch.syspath_prepend(tmp_path)
    for made in (False, True):  # a folder of that name, such as W&B's own, is no package
        if made:
            (tmp_path / "folder_alone").mkdir()
        with pytest.raises(
            InputError, match=r"--log folder_alone needs the package folder_alone; .*'transformer-jax\[folder_alone\]'"
        ):
            observe.named("folder_alone")
    assert observe.named("") == ()


# Processes -------------------------------------------------------------------------------------------------------

WANDB = """
import json, pathlib
class Settings:
    def __init__(self, **options): pass
class init:
    offline, url = False, "somewhere"
    def __init__(self, id, config, **options): self.log({"id": id, "config": config}, 0)
    def log(self, numbers, step):
        with pathlib.Path(__file__).with_name("heard").open("a") as file: print(json.dumps([step, numbers]), file=file)
    def finish(self, exit_code): self.log({"exit": exit_code}, 0)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package that the processes of services import."""
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def heard(folder):
    return [json.loads(line) for line in (folder / "heard").read_text().splitlines()]


def test_services_in_their_processes(tmp_path, package, capfd, monkeypatch):
    """One that works gets everything; one that fails is logged once, and the run does not notice."""
    monkeypatch.setattr(sending, "WAIT", 300.0)  # a busy machine starts a process slowly
    package("wandb", WANDB)
    package("trackio", "def init(*_, **__): raise ConnectionError('no\\nroute')")
    with observe.start(observe.named("wandb,trackio"), facts(tmp_path), primary=True) as observing:
        for step in (1, 2, 3):
            observing.row({"step": step, "loss": np.float32(0.5) if step < 3 else float("nan")})
        observing.evaluation(3, "validation", {"f1": np.float32(0.25)})
        observing.end({"step": 3, "folder": Path("a"), "score": np.float32(1.0)})
    assert json.dumps(heard(tmp_path)) == json.dumps(
        [
            [0, {"id": "a1b2", "config": {"seed": 0, "train": {"steps": 9}}}],
            *[[1, {"train/loss": 0.5}], [2, {"train/loss": 0.5}], [3, {"train/loss": float("nan")}]],
            *[[3, {"validation/f1": 0.25}], [0, {"exit": 0}]],
        ]
    )
    lines = capfd.readouterr().err.splitlines()
    line = "observer Trackio is dropped and the run goes on without it: ConnectionError: no route"
    assert lines.count(line) == 1 and sorted(lines) == sorted([line, "wandb: somewhere"])


def test_a_run_that_is_killed_has_ended(tmp_path, package):
    """The pipe closes; the service hears of an end without results."""
    package("wandb", WANDB)
    start = {"folder": str(tmp_path), "workdir": "w", "run_id": "a", "config": {}}
    start |= {"first_step": 0, "steps": 9, "metric": "f1"}
    lines = [["start", start], ["row", {"step": 1, "loss": 0.5}]]
    done = subprocess.run(
        [sys.executable, "-m", "transformer_jax.observe.serving", "wandb"],
        input="".join(json.dumps(line) + "\n" for line in lines),
        env=sending.environment(),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert heard(tmp_path)[1:] == [[1, {"train/loss": 0.5}], [0, {"exit": 1}]] and done.stdout == ""


def test_a_process_that_dies_is_logged_once(tmp_path, package, capfd):
    package("wandb", WANDB)
    with observe.start(observe.named("wandb"), facts(tmp_path), primary=True) as observing:
        (sender,) = next(one.senders for one in observing.optional if hasattr(one, "senders"))
        sender.process.kill()
        sender.process.wait()
        while sender.thread.is_alive():
            observing.row({"step": 1, "loss": 0.5})
        observing.row({"step": 2, "loss": 0.5})
    line = "wandb is dropped and the run goes on without it: its process ended with signal 9"
    assert capfd.readouterr().err.splitlines() == [line]


def test_a_service_that_hangs_costs_a_bounded_wait(tmp_path, package, capfd, monkeypatch):
    package("wandb", "import time; time.sleep(1000)")
    monkeypatch.setattr(sending, "QUEUE_SIZE", 0)
    monkeypatch.setattr(sending, "WAIT", 0.5)
    began = time.monotonic()
    with observe.start(observe.named("wandb"), facts(tmp_path), primary=True) as observing:
        for step in (1, 2, 3):
            observing.row({"step": step, "loss": 0.5})
        observing.end({"step": 3})
    assert time.monotonic() - began < 5.0
    assert capfd.readouterr().err.splitlines() == [
        "wandb is too slow: 4 rows and evaluations are missing there",  # the start is among them
        "wandb has not taken everything in time; the run ends without it",
    ]
