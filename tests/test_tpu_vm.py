"""The commands of docs/tpu_vm.md, in their order, with a stub in place of gcloud and a bucket in memory.

A slice is two folders, one for each worker. What gcloud would run on them by ssh is run here, with the variables of a
SLURM step, by which JAX finds the workers as it does on TPUs.
"""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.drills import bucket
from transformer_jax.cli.launch import tpu_vm
from transformer_jax.runs import store

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/tpu_vm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:bash|console)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for b in BLOCKS for line in b.replace("\\\n", " ").splitlines() if line.strip()]

GCLOUD = """#!{python}
import os, shutil, subprocess, sys
from pathlib import Path

words, slices = sys.argv[1:], Path({slices!r})
if words[:3] == ["storage", "buckets", "create"]:
    sys.exit(words[3] != "gs://my-bucket")
assert words[:3] == ["compute", "tpus", "tpu-vm"], words
action, name = words[3], words[4]
assert words[words.index("--zone") + 1] == "us-east5-a", words
if action == "create":
    for worker in "01":
        (slices / name / worker).mkdir(parents=True)
elif action == "delete":
    shutil.rmtree(slices / name)
elif action == "scp":
    target, _, folder = words[5].partition(":")
    for worker in "01":
        shutil.copy(name, slices / target / worker / folder)
else:
    assert action == "ssh" and "--worker=all" in words, words
    started = []
    for worker in "01":
        step = {{"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}}
        step |= {{"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": worker, "SLURM_LOCALID": worker}}
        command = ["bash", "-c", words[words.index("--command") + 1]]
        started.append(subprocess.Popen(command, cwd=slices / name / worker, env=os.environ | step))
    codes = [process.wait() for process in started]
    sys.exit(next((code for code in codes if code), 0))
"""
# `python3 -m venv .venv`, whose pip installs nothing: its python has the packages of this one.
PYTHON3 = """#!/bin/bash
mkdir -p "$3/bin"
printf '#!/bin/bash\\necho $$ >>{pids}\\nexec {python} "$@"\\n' >"$3/bin/python"
printf '#!/bin/bash\\necho "$@" >>{installed}\\n' >"$3/bin/pip"
chmod +x "$3"/bin/*
"""
MINE = '''"""A tiny run."""
from transformer_jax.data.corpus import TextCorpus
from transformer_jax.data.sources import TextFiles
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.experiment import Checkpoint, Experiment, Sample, Train
from transformer_jax.models import gpt


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=1, num_heads=2),
        data=TextCorpus(TextFiles(({text!r},)), Bytes(), length=16),
        train=Train(steps=1_000_000, batch_size=8, log_every=10),
        checkpoint=Checkpoint(every=10),
        sample=Sample(max_new_tokens=8),
    )
'''


def command(beginning: str) -> list[str]:
    """The first command of the page that begins so, as words."""
    return shlex.split(next(line for line in COMMANDS if line.startswith(beginning)))


def test_the_page_launches_what_the_launcher_makes(capsys):
    assert len(COMMANDS) >= 9 and PAGE.count("transformer-jax launch tpu-vm") == 2
    program, launch, kind, *words = command("transformer-jax launch tpu-vm")
    assert (program, launch, kind) == ("transformer-jax", "launch", "tpu-vm")
    assert tpu_vm.main([*words, "--dry-run"]) == 0
    printed = shlex.split(capsys.readouterr().out)
    train = words[words.index("--folder") + 2 :]
    assert printed[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-slice"]
    assert printed[-1] == f"cd -- train && .venv/bin/python -m transformer_jax train {shlex.join(train)}"


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """A folder with gcloud, python3 and transformer-jax first on the PATH; (folder, file with the trainers' ids)."""
    bin_folder, pids = tmp_path / "bin", tmp_path / "pids"
    bin_folder.mkdir()
    names = {"python": sys.executable, "slices": str(tmp_path / "slices"), "pids": pids}
    program = f'#!/bin/bash\nexec {sys.executable} -m transformer_jax "$@"\n'
    stubs = {"gcloud": GCLOUD.format(**names), "transformer-jax": program}
    stubs["python3"] = PYTHON3.format(**names, installed=tmp_path / "installed")
    for name, text in stubs.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    (tmp_path / "text.txt").write_text("a rose is a rose is a rose\n" * 60)
    (tmp_path / "mine.py").write_text(MINE.replace("{text!r}", repr(str(tmp_path / "text.txt"))))
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path, pids


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs: pip install 'transformer-jax[gcs]'")
@pytest.mark.skipif(sys.version_info[:3] in store.CRASHING, reason="CPython issue 111211")
def test_from_create_to_the_laptop(laptop):
    folder, pids = laptop
    launch = command("transformer-jax launch tpu-vm")
    launch = [*launch[: launch.index("--folder") + 2], "mine.py", "--workdir", "gs://my-bucket/gpt2"]
    with bucket.serve("my-bucket") as server:
        environment = os.environ | server.environment

        def run(*words: str) -> str:
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            return done.stdout

        def make_slice() -> None:
            for beginning in ("gcloud compute tpus tpu-vm create", "gcloud storage", "gcloud compute tpus tpu-vm ssh"):
                run(*command(beginning))
            run(*command("gcloud compute tpus tpu-vm scp"))

        make_slice()
        assert (folder / "installed").read_text() == 2 * "install transformer-jax[tpu,gcs]\n"
        with (folder / "log").open("w") as log:
            training = subprocess.Popen([*launch, "--hosts.timeout", "20"], env=environment, stdout=log, stderr=log)
        ends = time.monotonic() + 300
        while "gpt2/checkpoints/20/manifest.json" not in server.objects:
            assert training.poll() is None and time.monotonic() < ends, (folder / "log").read_text()[-3000:]
            time.sleep(0.05)
        for pid in pids.read_text().split()[-2:]:  # the slice is preempted: every machine gets SIGTERM
            os.kill(int(pid), signal.SIGTERM)
        assert training.wait(120) == 143, (folder / "log").read_text()[-3000:]
        saved = int(re.findall(r"SIGTERM: saved at step ([\d,]+)", (folder / "log").read_text())[0].replace(",", ""))
        run(*command("gcloud compute tpus tpu-vm delete"))

        make_slice()
        said = run(*launch, "--train.steps", str(saved + 10))
        assert f"resume from step {saved:,} of {saved + 10:,}" in said
        run(*command("gcloud compute tpus tpu-vm delete"))

        assert "as they were written" in run(*command("transformer-jax inspect"))
        words = command("transformer-jax evaluate")
        assert "bits per byte" in run(*words[: words.index("--data.source.paths")])
        assert run(*command("transformer-jax predict")).strip()
        assert json.loads(server.objects["gpt2/results.json"].data)["step"] == saved + 10
