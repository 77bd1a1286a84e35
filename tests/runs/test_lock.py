"""One trainer a workdir: a living owner is named, a dead one is taken over, and a frozen one finds out."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
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
    assert f"is being written by process {other.pid} on {owner['host']}, started {owner['started']} (" in message
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


def without_kernel(monkeypatch, *, links: bool = True) -> None:
    """As on a file system that has no locks, or neither locks nor hard links."""

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    if not links:
        monkeypatch.setattr(lock.os, "link", unsupported)


def test_without_locks_the_process_itself_is_looked_at(tmp_path, other, monkeypatch):
    without_kernel(monkeypatch)
    began = time.monotonic()
    assert f"is being written by process {other.pid}" in refused(tmp_path / "run")
    other.kill()
    other.wait()
    with lock.hold(tmp_path / "run", print) as check:
        check()
    assert time.monotonic() - began < 5, "neither answer waits"


def test_reading_the_lock_does_not_drop_it(tmp_path):
    """A POSIX record lock would end as this process closes the copy's source."""
    with lock.hold(tmp_path / "run", print) as check:
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert f"is being written by process {os.getpid()}" in done.stderr and "held" not in done.stdout
        check()


def test_the_lock_in_a_copy_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 1.0)
    said: list[str] = []
    with lock.hold(tmp_path / "run", print):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with lock.hold(tmp_path / "copy", said.append):
            pass
    assert "watching for 1 s" in said[0] and "is taken over" in said[1]


def elsewhere(folder: Path, age: float = 0.0) -> Path:
    """A lock of another machine, touched so many seconds ago by its clock."""
    folder.mkdir()
    path = folder / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "today", "run": "x"}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.mark.parametrize("slow", [-60, 60, 10**6])
def test_another_machine_is_known_by_its_signs_of_life(tmp_path, monkeypatch, slow):
    """Whatever its clock says: by seconds that it is slow."""
    monkeypatch.setattr(lock, "STALE", 0.8)
    said: list[str] = []
    elsewhere(tmp_path / "silent", slow)
    with lock.hold(tmp_path / "silent", said.append):
        pass
    assert "process 7 on elsewhere, started today; watching for" in said[0]
    assert "process 7 on elsewhere, started today is gone; its lock is taken over" in said[1]

    path, then = elsewhere(tmp_path / "alive", slow), time.time() - slow + 10
    beat = threading.Timer(0.3, os.utime, (path, (then, then)))
    beat.start()
    assert "is being written by process 7 on elsewhere" in refused(tmp_path / "alive")


CONTEND = """
import errno, os, sys, time
from pathlib import Path
from transformer_jax.errors import InputError
from transformer_jax.runs import lock, owners
folder, links = Path(sys.argv[1]), sys.argv[2] == "links"
def unsupported(*_):
    raise OSError(errno.ENOLCK, "No locks available")
if sys.argv[3] == "none":
    lock.fcntl.flock = unsupported
if not links:
    os.link = unsupported
lock.STALE, lock.HEARTBEAT = 1.0, 0.1
owners._machine = lambda: ""  # each is a machine of its own
wins = 0
ends = time.monotonic() + float(sys.argv[4])
while time.monotonic() < ends:
    try:
        with lock.hold(folder, lambda line: None) as check:
            check()
            inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails where another is inside
            time.sleep(0.02)
            check()
            os.close(inside)
            os.unlink(folder / "inside")
            wins += 1
    except InputError:
        time.sleep(0.01)
print(wins)
"""


@pytest.mark.parametrize(("links", "locks"), [("links", "all"), ("no links", "none")])
def test_of_several_who_succeed_a_dead_owner_one_has_the_folder(tmp_path, links, locks):
    elsewhere(tmp_path / "run")
    words = [sys.executable, "-c", CONTEND, str(tmp_path / "run"), links, locks, "2"]
    processes = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [errors for _, errors in outputs] == ["", "", ""]
    assert sum(int(wins) for wins, _ in outputs) > 0
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left"


def test_what_killed_processes_left_while_they_waited_is_removed(tmp_path, other):
    """That of a dead process of this machine; of another machine, what is hours older than our own file."""
    dead, old, young = ("d" * 32, "0" * 32, "1" * 32)
    for name in (dead, old, young, f"after-{old}", "old.txt"):
        owner = json.loads((tmp_path / "run" / "lock").read_text()) | {"born": "0"} if name == dead else {"pid": 7}
        (tmp_path / f"lock.{name}").write_text(json.dumps(owner))
        if "old" in name or old in name:
            os.utime(tmp_path / f"lock.{name}", (time.time() - 7200,) * 2)
    with lock.hold(tmp_path, print):
        assert sorted(path.name for path in tmp_path.glob("lock*")) == sorted(["lock", "lock.old.txt", f"lock.{young}"])


def test_who_was_frozen_and_taken_over_saves_no_more(tmp_path):
    with lock.hold(tmp_path, print) as check:
        (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "today", "run": "x"}))
        with pytest.raises(RunError, match="was taken over by process 7 on elsewhere"):
            check()
    assert (tmp_path / "lock").exists(), "and it does not take the other's lock away"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(tmp_path / "file")
