"""One trainer a workdir: a living owner is named, a dead one is taken over, and a frozen one finds out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transformer_jax.errors import InputError, RunError
from transformer_jax.runs import lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from transformer_jax.runs import lock
with lock.hold(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock of tmp_path / "run"."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error, lock.hold(folder, print):
        pass
    return str(error.value)


def test_the_owner_is_named_and_a_dead_one_taken_over(tmp_path, other):
    path = tmp_path / "run" / "lock"
    owner = json.loads(path.read_text())
    assert owner["pid"] == other.pid
    message = refused(tmp_path / "run")
    assert f"is being written by process {other.pid} on {owner['host']}, started {owner['started']}, alive " in message
    assert json.loads(path.read_text()) == owner, "a refusal changes nothing"
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    said: list[str] = []
    with lock.hold(tmp_path / "run", said.append) as check:
        check()
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert "by this very process" in refused(tmp_path / "run")
    owner_text = f"process {other.pid} on {owner['host']}, started {owner['started']}"
    assert said == [f"{path}: {owner_text} is gone; its lock is taken over"]
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left"


def elsewhere(folder: Path, age: float) -> Path:
    """A lock of another machine, touched so many seconds ago."""
    folder.mkdir()
    path = folder / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "today", "run": "x"}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_another_machine_is_known_by_its_signs_of_life(tmp_path, monkeypatch):
    said: list[str] = []
    elsewhere(tmp_path / "old", age=100)
    with lock.hold(tmp_path / "old", said.append):
        pass
    assert len(said) == 1 and "process 7 on elsewhere, started today is gone; its lock is taken over" in said[0]

    elsewhere(tmp_path / "young", age=0)
    signs = iter([time.time(), time.time() + 1])
    monkeypatch.setattr(lock, "_touched", lambda path: next(signs, time.time()))  # it gives a sign meanwhile
    assert "is being written by process 7 on elsewhere" in refused(tmp_path / "young")
    monkeypatch.undo()
    monkeypatch.setattr(lock, "STALE", 1.0)
    said.clear()
    elsewhere(tmp_path / "silent", age=0)
    with lock.hold(tmp_path / "silent", said.append):
        pass
    assert "waiting for up to 1 s" in said[0] and "is taken over" in said[1]


def test_who_was_frozen_and_taken_over_saves_no_more(tmp_path):
    with lock.hold(tmp_path, print) as check:
        (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "today", "run": "x"}))
        with pytest.raises(RunError, match="was taken over by process 7 on elsewhere"):
            check()
    assert (tmp_path / "lock").exists(), "and it does not take the other's lock away"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(tmp_path / "file")
