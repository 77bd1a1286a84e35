"""A run of two hosts in an object store: two real processes, and a bucket in the memory of this one."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.drills import bucket
from transformer_jax.runs import store

if importlib.util.find_spec("gcsfs") is None:
    pytest.skip("needs gcsfs: tools/install gcs", allow_module_level=True)
if sys.version_info[:3] in store.CRASHING:
    pytest.skip("this Python crashes after uploads that failed: CPython issue 111211", allow_module_level=True)
ROOT = Path(__file__).resolve().parents[2]


def start(server, folder, steps: int):
    command = [sys.executable, "-m", "transformer_jax", "launch", "local", "2", "tools.drills.jobs", "gpt", "--workdir"]
    command += ["gs://drill/run", "--train.steps", str(steps), "--checkpoint.every", "10", "--checkpoint.keep", "2"]
    command += ["--evaluate.every", "0", "--hosts.timeout", "10", "--mesh.fsdp", "2", "--mesh.data", "1"]
    settings = server.environment | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONUNBUFFERED": "1"}
    log = folder / f"{steps}-{time.monotonic()}.log"
    with log.open("w") as out:
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | settings, stdout=out, stderr=out, start_new_session=True
        ), log


def there(server) -> dict[str, list[str]]:
    """The names below each step."""
    found: dict[str, list[str]] = {}
    for name in sorted(server.objects):
        _, _, rest = name.partition("run/checkpoints/")
        if rest:
            found.setdefault(rest.partition("/")[0], []).append(rest.partition("/")[2])
    return found


@pytest.mark.slow
def test_two_hosts_write_one_step_each_its_part_and_go_on_after_a_kill(tmp_path):
    with bucket.serve("drill") as server:
        try:
            first, log = start(server, tmp_path, 10**6)
            ends = time.monotonic() + 300
            while "manifest.json" not in there(server).get("20", []):
                assert first.poll() is None and time.monotonic() < ends, log.read_text()[-2000:]
                time.sleep(0.01)
        finally:
            os.killpg(first.pid, signal.SIGKILL)  # both hosts, and what started them
            first.wait()
        saved = max(int(step) for step, names in there(server).items() if "manifest.json" in names)
        names = json.loads(server.objects[f"run/checkpoints/{saved}/manifest.json"].data)["files"].keys()
        for host in (0, 1):  # both had a part of the arrays to write
            assert any(re.match(rf"params/ocdbt\.process_{host}/", name) for name in names), sorted(names)

        again, log = start(server, tmp_path, saved + 15)
        assert again.wait(300) == 0, log.read_text()[-3000:]
        said = log.read_text()
        assert f"resume from step {saved:,} of {saved + 15:,}" in said and "its lock is taken over" in said
        steps = there(server)  # and neither a step that the kill left, nor the digests of one
        assert sorted(map(int, steps)) == [saved + 10, saved + 15]
        assert all("manifest.json" in names for names in steps.values())
        assert not any(name.startswith("run/lock") for name in server.objects)
        assert json.loads(server.objects["run/results.json"].data)["step"] == saved + 15
        # One process reads what two have written, all of it checked.
        words = [sys.executable, "-m", "transformer_jax", "inspect", "gs://drill/run", "--verify"]
        done = subprocess.run(words, cwd=ROOT, env=os.environ | server.environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.count("as they were written") == 2, done.stdout + done.stderr
