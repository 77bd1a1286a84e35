"""The drills themselves: real processes, killed for real. docs/reliability.md has the commands of the long ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.drills import equal

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "drill", "tries"),
    [
        ("gpt", "kill", 5),
        ("gpt", "resume", 10),
        ("mlm", "resume", 10),
        ("translation", "resume", 10),
        ("vit", "resume", 10),
        ("gpt", "damage", 200),
        ("gpt", "disk", 20),
        ("gpt", "signal", 10),
        ("gpt", "store", 2),
        ("gpt", "readers", 200),
    ],
)
def test_a_drill(job, drill, tries):
    words = [sys.executable, "-m", "tools.drills", "tools.drills.jobs", job, "--drill", drill, "--tries", str(tries)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_runs_that_are_interrupted_report_what_the_whole_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))
    found = list(equal.attempts(equal.experiment("gpt"), tmp_path, range(3)))
    assert {one["kind"] for one in found} == {"kill", "SIGTERM", "disk"}
    assert [one["problem"] for one in found] == [None] * 3


def test_a_save_off_the_schedule_takes_no_others_room(tmp_path, monkeypatch):
    """SIGTERM in step 10 of 12, where every fourth is saved and two are kept."""
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))
    job = equal.experiment("gpt")
    with equal.prepared():
        seen = equal.train(job, tmp_path / "whole")
        steps = [i for i, what in enumerate(seen) if what.endswith("batch of a step")]
        assert equal.interrupt(job, tmp_path / "run", "SIGTERM", steps[9], instant := []) is False
        assert instant == ["batch of a step"]
        equal.train(job, tmp_path / "run")
    assert equal.reported(tmp_path / "run") == equal.reported(tmp_path / "whole")
