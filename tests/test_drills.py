"""The drills themselves: real processes, killed for real. docs/reliability.md has the commands of the long ones."""

import dataclasses
import gc
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


# On a full disk the TensorBoard writer fails, and its file is left to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_runs_that_are_interrupted_report_what_the_whole_one_does(tmp_path, monkeypatch):
    """A kill and a full disk at drawn instants, and SIGTERM in step 7 of 8: its save takes no other's room (every
    third, two are kept)."""
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))
    job = equal.experiment("gpt")
    job = dataclasses.replace(
        job,
        train=dataclasses.replace(job.train, steps=8),
        evaluate=dataclasses.replace(job.evaluate, every=4),
        checkpoint=dataclasses.replace(job.checkpoint, every=3),
    )
    with equal.prepared():
        seen = equal.train(job, tmp_path / "whole")
        whole = equal.reported(tmp_path / "whole")
        found = [equal.attempt(job, tmp_path / f"run{i}", whole, seen, i) for i in (0, 2)]
        equal.interrupt(job, tmp_path / "stopped", "SIGTERM", ("batch of a step", 6), instant := [])
        equal.train(job, tmp_path / "stopped")
    assert [one["kind"] for one in found] == ["kill", "disk"]
    assert [one["problem"] for one in found] == [None] * 2
    assert instant == ["batch of a step"] and equal.reported(tmp_path / "stopped") == whole
    gc.collect()
