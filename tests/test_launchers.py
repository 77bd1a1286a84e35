"""The launchers' dry runs: the exact commands and manifests."""

import json
import re
import shlex

import pytest

from transformer_jax.cli.launch import gke, local, slurm, tpu_vm
from transformer_jax.errors import InputError

TRAIN = ["experiments.causal_lm.gpt2_small", "--workdir", "/data/a", "--train.steps", "9", "--mesh.fsdp", "-1"]


def printed(capsys, main, *arguments: str) -> str:
    assert main([*arguments, "--dry-run", *TRAIN]) == 0
    return capsys.readouterr().out


def test_local_processes(capsys):
    lines = printed(capsys, local.main, "--python", "python", "--port", "8476", "2").splitlines()
    start = f"python -m transformer_jax train {shlex.join(TRAIN)} --hosts.coordinator 127.0.0.1:8476 --hosts.count 2"
    assert lines == [f"{start} --hosts.index {i}" for i in range(2)]


def test_ssh(capsys):
    lines = printed(capsys, local.main, "--ssh", "me@node1,me@node2", "--folder", "/home/me/my checkout").splitlines()
    assert len(lines) == 2
    for i, line in enumerate(lines):
        ssh, terminal, host, command = shlex.split(line)
        assert (ssh, terminal, host) == ("ssh", "-tt", f"me@node{i + 1}")
        assert shlex.split(command)[:8] == [
            *("cd", "--", "/home/me/my checkout", "&&", ".venv/bin/python", "-m", "transformer_jax", "train")
        ]
        assert command.endswith(f"--hosts.coordinator node1:8476 --hosts.count 2 --hosts.index {i}")


def test_tpu_vm(capsys):
    words = shlex.split(printed(capsys, tpu_vm.main, "my-pod", "--zone", "us-east5-a", "--project", "mine"))
    assert words == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-pod", "--zone", "us-east5-a", "--project", "mine"),
        *("--worker=all", "--command"),
        f"cd -- transformer_jax && .venv/bin/python -m transformer_jax train {shlex.join(TRAIN)}",
    ]


def test_slurm(capsys):
    made = printed(capsys, slurm.main, "--nodes", "4", "--gpus-per-node", "8", "--sbatch=--partition=gpu")
    assert made.splitlines() == [
        "#!/bin/bash",
        "#SBATCH --job-name=transformer_jax",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --time=24:00:00",
        "#SBATCH --output=%x-%j.log",
        "#SBATCH --signal=TERM@90",
        "#SBATCH --requeue",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=gpu",
        "",
        "set -eu",
        "cd -- .",
        f"srun --kill-on-bad-exit=1 --label .venv/bin/python -m transformer_jax train {shlex.join(TRAIN)}",
    ]


def test_jobset_on_gpus(capsys):
    made = json.loads(
        printed(capsys, gke.main, "a", "--image", "me/jax", "--gpus", "8", "--hosts", "4", "--claim", "c")
    )
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (workers,) = made["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (workers["name"], job["completionMode"], job["parallelism"], job["completions"]) == (
        "workers",
        "Indexed",
        4,
        4,
    )
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert job["template"]["spec"]["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]
    shell, flag, line = container["command"]
    assert (shell, flag) == ("sh", "-c") and line.startswith(
        f"exec python -m transformer_jax train {shlex.join(TRAIN)}"
    )
    assert line.endswith(
        '--hosts.coordinator a-workers-0-0.a:8476 --hosts.count 4 --hosts.index "$JOB_COMPLETION_INDEX"'
    )


def test_jobset_on_tpus_leaves_it_to_jax(capsys):
    made = json.loads(
        printed(capsys, gke.main, "a", "--image", "me/jax", "--tpu", "v5e:4x4", "--hosts", "4", "--slices", "2")
    )
    (workers,) = made["spec"]["replicatedJobs"]
    pod = workers["template"]["spec"]["template"]["spec"]
    assert workers["replicas"] == 2
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}} and "--hosts." not in container["command"][2]


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (local.main, ["experiments.a"], "give the number of processes"),
        (local.main, ["2"], "give an experiment"),
        (tpu_vm.main, ["my-pod", "--zone", "z", "--workdir", "a"], "give an experiment"),
        (slurm.main, ["--nodes", "0", "experiments.a"], "--nodes 0 --gpus-per-node 0: there must be nodes"),
        (gke.main, ["a", "--image", "i", "--hosts", "2", "e"], "give --tpu KIND:TOPOLOGY or --gpus N"),
        (gke.main, ["a", "--image", "i", "--hosts", "2", "--tpu", "v9:2", "e"], "--tpu v9:2 is not KIND:TOPOLOGY"),
        (
            gke.main,
            ["a", "--image", "i", "--hosts", "3", "--tpu", "v5e:4x4", "e"],
            "16 chips, 4 on a machine: give --hosts 4",
        ),
        (gke.main, ["Run_1", "--image", "i", "--hosts", "2", "--gpus", "8", "e"], "name Run_1: Kubernetes takes"),
        (gke.main, ["a", "--image", "i", "--hosts", "0", "--gpus", "8", "e"], "--hosts 0: there must be machines"),
        (gke.main, ["a", "--image", "i", "--hosts", "2", "--gpus", "8", "--slices", "2", "e"], "only TPUs have slices"),
    ],
)
def test_bad_input_is_refused(main, arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(arguments)


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (slurm.main, ["--name", "a\n#SBATCH --account=other", "e"]),
        (slurm.main, ["--time", "1:00\nrm -rf /", "e"]),
        (slurm.main, ["--sbatch=--wrap=x\n#", "e"]),
        (slurm.main, ["--folder", "a\nb", "e"]),
        (slurm.main, ["e", "--workdir", "a\n#SBATCH --account=other"]),
        (local.main, ["--ssh=-oProxyCommand=touch /tmp/x", "e"]),
        (local.main, ["--ssh", "node1,-oProxyCommand=x", "e"]),
        (tpu_vm.main, ["--zone", "z", "--", "--flags-file=x", "e"]),
        (tpu_vm.main, ["a", "--zone=--flags-file=x", "e"]),
        (tpu_vm.main, ["a", "--zone", "z", "--project=--flags-file=x", "e"]),
        (gke.main, ["a", "--image=-x", "--hosts", "2", "--gpus", "8", "e"]),
        (gke.main, ["a", "--image", "i", "--claim", "a\nb", "--hosts", "2", "--gpus", "8", "e"]),
    ],
)
def test_no_word_becomes_a_line_or_an_option(capsys, main, arguments):
    with pytest.raises(InputError, match="is not allowed|control character"):
        main(["--dry-run", *arguments])
    assert capsys.readouterr().out == ""


def test_a_refused_name_is_quoted_on_one_line():
    with pytest.raises(InputError, match=r"name a\\n#SBATCH --x: Kubernetes takes") as raised:
        gke.main(["--dry-run", "a\n#SBATCH --x", "--image", "i", "--hosts", "2", "--gpus", "8", "e"])
    assert "\n" not in str(raised.value)
