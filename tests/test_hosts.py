"""Several hosts on this machine: real processes that talk over 127.0.0.1, stopped, killed and misled for real."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax import brought, restore, sharding
from transformer_jax.cli import process as cli_process
from transformer_jax.data import pipeline
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import Embedded, TextFiles
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Mesh, Train
from transformer_jax.hosts import meeting
from transformer_jax.models import gpt
from transformer_jax.runs import checkpoint, saved
from transformer_jax.train import loop
from transformer_jax.train import program as programs

ROOT = Path(__file__).resolve().parents[1]
STEPS = 16

MINE = '''"""A tiny run, slow enough to be interrupted."""
import os
import time

from transformer_jax.data import pipeline
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Optim

make = pipeline._make


def slowly(dataset, rows):
    time.sleep(float(os.environ.get("SECONDS_A_BATCH", "0")))
    if rows[-1] >= int(os.environ.get("BREAKS_AT_ROW", "1000000000")):
        raise OSError("the disk is gone")
    return make(dataset, rows)


pipeline._make = slowly


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=1, num_heads=2, dropout=0.1),
        data=TextCorpus(TextFiles(("text.txt",)), Bytes(), length=16),  # each process has its own folder to look in
        optim=Optim(peak_lr=1e-3),
        train=Train(steps=16, batch_size=8, log_every=1),
        evaluate=Evaluate(every=4),
        checkpoint=Checkpoint(every=4, keep=9),
        sample=Sample(max_new_tokens=0),
    )
'''


@dataclass
class Process:
    """One host and what it says."""

    popen: subprocess.Popen
    log: Path

    def ended(self, timeout: float = 300) -> tuple[int, str]:
        """Its exit code and its output, without Gloo's."""
        code = self.popen.wait(timeout)
        lines = self.log.read_text().splitlines(keepends=True)
        return code, "".join(line for line in lines if not line.startswith("[Gloo]"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(workdir, hosts, devices, ...) -> the processes of a training; what still runs at the end is killed."""
    folder = tmp_path_factory.mktemp("hosts")
    text = "a rose is a rose is a rose\n" * 60
    for name, content in (("copy", text), ("other", text[:-2] + ".\n")):
        (folder / name).mkdir()
        (folder / name / "text.txt").write_text(content)
    (folder / "mine.py").write_text(MINE)
    started: list[Process] = []

    def start(
        workdir, hosts: int, devices: int, *arguments, of_host=None, copies=None, timeout=5, **env
    ) -> list[Process]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        new = []
        for i in range(hosts):
            command = [sys.executable, "-m", "transformer_jax", "train", str(folder / "mine.py")]
            command += ["--workdir", str(folder / workdir), *arguments, *(of_host or {}).get(i, ())]
            if hosts > 1:
                command += ["--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", str(hosts)]
                command += ["--hosts.index", str(i), "--hosts.timeout", str(timeout)]
            settings = {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
            mine = {name: value for name, (who, value) in env.items() if who in (i, "all")}
            log = folder / f"{len(started)}.log"
            with log.open("w") as out:
                popen = subprocess.Popen(
                    command,
                    cwd=folder / (copies or ["copy"] * hosts)[i],
                    env=os.environ | settings | mine,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            started.append(Process(popen, log))
            new.append(started[-1])
        return new

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()


def rows(folder: Path, what: str = "loss") -> dict[int, float]:
    """step -> training loss, or another number, as logged so far."""
    path = folder / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return {int(row["step"]): row[what] for row in found if what in row}


def wait_for(what, processes: list[Process], timeout: float = 300) -> None:
    ends = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < ends, processes[0].log.read_text()
        assert all(process.popen.poll() is None for process in processes), processes[0].log.read_text()
        time.sleep(0.05)


def folder_of(process: Process, name: str) -> Path:
    return process.log.parent / name


def run_here(folder: Path, workdir: str) -> Experiment:
    """Trains the same in this process, on its eight devices."""
    make = pipeline._make
    try:
        module, _ = brought.read(str(folder / "mine.py"))
        experiment = module.experiment()
    finally:
        pipeline._make = make
    data = dataclasses.replace(experiment.data, source=TextFiles((str(folder / "copy" / "text.txt"),)))
    experiment = dataclasses.replace(experiment, data=data)
    loop.run(experiment, folder / workdir, load=restore.load)
    return experiment


def kill(processes: list[Process], which: int, workdir: Path) -> tuple[list[tuple[int, str]], float]:
    """Kills a host after the checkpoint of step 4: what all say, and the seconds until the last of them has ended."""
    wait_for(lambda: saved.latest_step(workdir / "checkpoints") == 4 and max(rows(workdir)) > 5, processes)
    processes[which].popen.kill()
    since = time.monotonic()
    said = [process.ended() for process in processes]
    return said, time.monotonic() - since


@pytest.fixture(scope="module")
def told(start):
    """What two hosts print, of which one is killed, and that are started again and stopped; the rows that they had when
    they were killed; and the same run in this process."""
    hosts = start("two", 2, 2, SECONDS_A_BATCH=("all", "0.2"))
    folder = hosts[0].log.parent
    killed, seconds = kill(hosts, 1, folder / "two")
    before = rows(folder / "two")
    experiment = run_here(folder, "one")

    hosts = start("two", 2, 2, SECONDS_A_BATCH=("all", "0.2"))
    wait_for(lambda: 9 in rows(folder / "two"), hosts)
    hosts[1].popen.send_signal(signal.SIGTERM)
    stopped = [process.ended() for process in hosts]
    return {"folder": folder, "experiment": experiment, "killed": killed, "seconds": seconds, "before": before} | {
        "stopped": stopped
    }


def assert_equal_states(experiment: Experiment, folder: Path, one: str, other: str, step: int) -> None:
    """Parameters, moments and all else that two runs have saved, to the bit."""
    target = programs.make(experiment, sharding.make_mesh()).state
    states = [checkpoint.restore_state(folder / name / "checkpoints" / str(step), target) for name in (one, other)]
    assert states[0][1]["rows"] == states[1][1]["rows"] == step * experiment.train.batch_size
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), states[0][0], states[1][0])


def test_two_hosts_train_as_one(told):
    folder = told["folder"]
    for what in ("loss", "validation/bits_per_byte"):
        one, two = rows(folder / "one", what), rows(folder / "two", what)
        assert two and list(two) == list(one)[: len(two)]
        np.testing.assert_allclose(list(two.values()), list(one.values())[: len(two)], rtol=1e-6)
    assert list(rows(folder / "two")) == list(range(1, max(rows(folder / "two")) + 1))


def test_a_checkpoint_of_two_hosts_loads_on_one(told):
    one, two = (restore.load(told["folder"] / name / "checkpoints" / "8") for name in ("one", "two"))
    assert one.step == two.step == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, two.params)


def test_when_a_host_is_killed_the_others_end_and_name_it(told):
    (code, said), (killed, _) = told["killed"]
    assert killed == -signal.SIGKILL
    assert code == 3, said
    assert f"error: host 1 ({socket.gethostname()}) is gone: no sign of life for 5 s" in said.splitlines()[-1]
    assert told["seconds"] < 60


def test_a_signal_to_one_host_saves_on_all_at_one_step(told):
    last = max(rows(told["folder"] / "two"))
    assert [code for code, _ in told["stopped"]] == [128 + signal.SIGTERM] * 2, told["stopped"]
    said = told["stopped"][0][1]
    assert f"SIGTERM: saved at step {last} of {STEPS}" in said and "to go on: " in said
    assert 9 <= last < STEPS
    assert saved.latest_step(told["folder"] / "two" / "checkpoints") == last


def test_a_killed_run_goes_on_to_the_bit(told):
    """The steps after the checkpoint that were computed before the kill, and again after it."""
    assert f"resume from step 4 of {STEPS}" in told["stopped"][0][1]
    two, repeated = rows(told["folder"] / "two"), {step for step in told["before"] if step > 4}
    assert len(repeated) >= 2
    assert {step: two[step] for step in repeated} == {step: told["before"][step] for step in repeated}


def test_hosts_that_differ_say_so_before_anything_is_written(start, tmp_path):
    """In the package's source and the experiment, and in their copies of the data: one line on every host."""
    package = Path(transformer_jax.__file__).parent
    shutil.copytree(package, tmp_path / "transformer_jax")
    with (tmp_path / "transformer_jax" / "losses.py").open("a") as file:
        file.write("# mended on this machine only\n")
    code = start("code", 2, 2, of_host={1: ["--seed", "1"]}, PYTHONPATH=(1, str(tmp_path)))
    copies = start("copies", 2, 2, copies=["copy", "other"])
    here = socket.gethostname()
    for exit_code, said in (process.ended() for process in code):
        line = said.splitlines()[-1]
        assert exit_code == 2 and line.startswith(
            f"error: host 1 ({here}) differs from host 0 ({here}) in what is to be run: seed is 1 there, 0 on host 0; "
            f"transformer_jax is {transformer_jax.__version__}, source "
        ), said
    for exit_code, said in (process.ended() for process in copies):
        line = said.splitlines()[-1]
        assert exit_code == 2 and line.startswith(f"error: host 1 ({here}) differs from host 0 ({here}) in the data: ")
        assert "hash of the whole text is " in line
    assert not folder_of(code[0], "code").exists() and not folder_of(code[0], "copies").exists()


SIGNALLED = """
import os, sys, time
from transformer_jax import hosts

hosts.start(hosts.Hosts(sys.argv[1], 2, int(sys.argv[2])))
with hosts.together(timeout=5):
    hosts.gather("the start", "")
    if sys.argv[2] == "1":
        os.kill(os.getpid(), int(sys.argv[3]))
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_signal_outside_training_ends_all_with_a_line(number):
    """Also within the first second, before any sign of life."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE, "text": True}
    hosts = [
        subprocess.Popen([sys.executable, "-c", SIGNALLED, address, str(i), str(int(number))], **settings)
        for i in range(2)
    ]
    said = [process.communicate()[1].splitlines()[-1:] for process in hosts]  # none sleeps for ever
    codes = [process.returncode for process in hosts]
    here = socket.gethostname()
    if number == signal.SIGKILL:
        gone = f"error: host 1 ({here}) is gone: no sign of life for 5 s; host 0 ({here}) ends with it"
        assert (codes, said) == ([3, -number], [[gone], []])
        return
    assert codes == [3, 128 + number]
    why = "SIGTERM outside training: no step to save"
    assert said == [[f"error: host 1 ({here}) failed: {why}; host 0 ({here}) ends with it"], [f"error: {why}"]]


# ---- Arriving


def meet(count: int, wait: float, *others: tuple[int, int]) -> list:
    """The names that host 0 of `count` hears, or its error, and those of others, (index, count) each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: list = [None] * (1 + len(others))

    def one(place: int, index: int, theirs: int) -> None:
        try:
            found[place] = meeting._meet("127.0.0.1", port, theirs, index, wait, bind="127.0.0.1")
        except InputError as error:
            found[place] = str(error)

    arguments = [(0, 0, count), *((i + 1, *other) for i, other in enumerate(others))]
    threads = [threading.Thread(target=one, args=a) for a in arguments]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # in this order
    for thread in threads:
        thread.join()
    return found


def test_all_learn_the_names_of_all():
    assert meet(3, 20, (2, 3), (1, 3)) == [[socket.gethostname()] * 3] * 3


def test_whoever_is_missing_is_named_on_every_host_that_came():
    here, gone = meet(4, 1, (2, 4))
    assert here == gone and here.startswith("hosts 1, 3 of 4 did not arrive at host 0 (")
    with pytest.raises(InputError, match=r"host 1 of 2: host 0 does not answer at 127.0.0.1:1 for 1 s"):
        meeting._meet("127.0.0.1", 1, 2, 1, 1, bind="")


def test_two_hosts_with_one_number_and_another_count_are_refused():
    _, good, twice, other, beyond = meet(3, 1, (1, 3), (1, 3), (2, 4), (3, 3))
    assert "hosts 2 of 3" not in good and good.startswith("host 2 of 3 did not arrive")
    assert twice.startswith("--hosts.index 1 on ") and "is taken, by" in twice
    assert "was started with --hosts.count 4, host 0 (" in other and other.endswith("with 3")
    assert beyond.startswith("--hosts.index 3 on ") and ": give one from 1 to 2; host 0 is " in beyond


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 2, "index": 0}, "--hosts.coordinator must be given too"),
        ({"coordinator": "a:1"}, "--hosts.count and --hosts.index must be given too"),
        ({"coordinator": "somewhere", "count": 2, "index": 0}, "--hosts.coordinator 'somewhere' is not ADDRESS:PORT"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "--hosts.index 2: the 2 hosts have the numbers 0 to 1"),
    ],
)
def test_bad_flags_are_named(given, message):
    with pytest.raises(InputError, match=message):
        meeting.start(meeting.Hosts(**given))


def test_a_process_without_a_cluster_is_alone(monkeypatch):
    meeting.start(meeting.Hosts())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(InputError, match="one pod of an indexed Kubernetes job; give --hosts.coordinator"):
        meeting.start(meeting.Hosts())
    meeting.start(meeting.Hosts(count=1))


def test_clusters_are_detected_by_jax(monkeypatch):
    slurm = {"JOB_ID": "4096", "STEP_NODELIST": "node[07-08]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    coordinator, count, index, devices = meeting._cluster(1) or ()
    assert (coordinator.partition(":")[0], count, index, devices) == ("node07", 2, 1, [0])
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert meeting._cluster(1) is None, "one task is a process alone"


def test_processes_on_one_machine_share_its_cores():
    tiny = Experiment(
        model=gpt.Config(vocab_size=257, max_length=8, width=8, num_layers=1, num_heads=2),
        data=TextCorpus(Embedded(), Bytes(), length=8),
        train=Train(batch_size=8),
        mesh=Mesh(data=-1, tensor=2),
    )
    assert cli_process.num_cpu_devices(tiny, 4, processes=1) == 4
    assert cli_process.num_cpu_devices(tiny, 3, processes=2) == 2, "8 rows do not divide over 3 x 2 / 2"
    assert cli_process.num_cpu_devices(tiny, 1, processes=2) == 1, "a tensor axis across both"


# ---- Slow: more layouts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "devices", "mesh"),
    [
        (2, 1, {"data": 2}),
        (2, 4, {"data": 8}),
        (4, 1, {"data": 4}),
        (4, 2, {"data": 8}),
        (4, 4, {"data": 4, "sequence": 4}),
        (2, 2, {"fsdp": 4}),
        (2, 1, {"tensor": 2}),
        (2, 1, {"sequence": 2}),
    ],
)
def test_any_mesh_over_any_hosts_trains_as_one(start, told, hosts, devices, mesh):
    """Where the mesh's axis crosses hosts, these read the same rows and hold parts of one length or one kernel."""
    sizes = [word for axis, size in ({"data": 1} | mesh).items() for word in (f"--mesh.{axis}", str(size))]
    workdir = f"{hosts}x{devices}-" + "-".join(mesh)
    processes = start(workdir, hosts, devices, *sizes, "--sample.max-new-tokens", "4")
    for code, said in [process.ended() for process in processes]:
        assert code == 0, said
    one, several = rows(told["folder"] / "one"), rows(told["folder"] / workdir)
    assert list(one) == list(several)
    np.testing.assert_allclose(list(several.values()), list(one.values()), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "devices", "which"), [(2, 2, 1), (4, 2, 2), (4, 2, 0)])
def test_a_host_killed_by_the_defaults(start, told, hosts, devices, which, capsys):
    """With `--hosts.timeout` as it is: named within 60 s; and what was killed ends as what was not, to the bit."""
    folder, here = told["folder"], socket.gethostname()
    for name in ("through", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    through = start("through", hosts, devices)
    assert [process.ended()[0] for process in through] == [0] * hosts
    results = [json.loads((folder / name / "results.json").read_text()) for name in ("one", "through")]
    np.testing.assert_allclose(*[list(found["report"].values()) for found in results], rtol=1e-6)
    assert results[1]["devices"] == f"{hosts * devices} x cpu"
    timeout = meeting.Hosts.timeout
    slowly = start("killed", hosts, devices, timeout=timeout, SECONDS_A_BATCH=("all", "0.2"))
    said, seconds = kill(slowly, which, folder / "killed")
    with capsys.disabled():
        print(f"\nhost {which} of {hosts} x {devices} devices killed: the others have ended after {seconds:.1f} s")
    assert seconds < 60
    for i, (code, lines) in enumerate(said):
        if i != which:
            assert code == 3 and f"error: host {which} ({here}) is gone" in lines, lines
    again = [process.ended() for process in start("killed", hosts, devices)]
    assert [code for code, _ in again] == [0] * hosts, again
    assert "resume from step 4" in again[0][1]
    assert rows(folder / "killed") == rows(folder / "through")
    assert_equal_states(told["experiment"], folder, "killed", "through", STEPS)


@pytest.mark.slow
def test_when_the_disk_of_a_host_breaks_the_others_say_so(start):
    processes = start("broken", 2, 2, BREAKS_AT_ROW=(1, "30"))
    here = socket.gethostname()
    (code, said), (code_of_1, said_by_1) = (process.ended() for process in processes)
    assert (code, code_of_1) == (3, 1)
    assert said_by_1.splitlines()[-1].endswith("OSError: the disk is gone"), said_by_1
    assert f"error: host 1 ({here}) failed: OSError: the disk is gone; host 0 ({here}) ends" in said.splitlines()[-1], (
        said
    )


@pytest.mark.slow
def test_a_checkpoint_restores_on_any_devices_and_processes():
    """The matrix of docs/scaling.md."""
    done = subprocess.run([sys.executable, "-m", "tools.drills.elastic"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
