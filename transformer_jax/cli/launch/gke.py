"""A Kubernetes JobSet: prints the manifest of a training on TPU slices or GPU nodes, and applies it.

    transformer-jax launch gke NAME --image IMAGE --tpu v5e:4x4 --hosts 4 mlm.bert_base --workdir /data/a
    transformer-jax launch gke NAME --image IMAGE --gpus 8 --hosts 4 mlm.bert_base --workdir /data/a

What follows the options is what `transformer-jax train` takes; the image has the package in the environment of its
`python`. --claim names the PersistentVolumeClaim that every pod mounts at /data, for --workdir. On TPUs GKE gives each
pod its number and JAX reads it; on GPUs a pod's completion index is its number, and pod 0 is the coordinator. A pod
that ends with another code than 0 or 2 restarts the whole set, which resumes from its newest checkpoint.

--dry-run prints the manifest (JSON, which is YAML) and applies nothing. It needs the JobSet controller:
https://jobset.sigs.k8s.io, https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
"""

import argparse
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from transformer_jax.chips import CHIPS
from transformer_jax.cli.launch import words

PORT = 8476
TPUS = {chip.name: chip.gke for chip in CHIPS.values() if chip.gke}  # name for --tpu: label of the node pool


def manifest(options: argparse.Namespace, train: Sequence[str]) -> dict[str, Any]:
    """The JobSet, as a tree, that runs `train EXPERIMENT ...` with the `options` of the command line."""
    command = ["python", "-m", "transformer_jax", "train", *train]
    selector: dict[str, str] = {}
    if options.tpu:
        kind, _, topology = options.tpu.partition(":")
        chips = math.prod(map(int, topology.split("x"))) // options.hosts
        selector = {"cloud.google.com/gke-tpu-accelerator": TPUS[kind], "cloud.google.com/gke-tpu-topology": topology}
        devices, run = {"google.com/tpu": chips}, ["sh", "-c", f"exec {shlex.join(command)}"]
    else:
        # The pods of a JobSet are SET-JOB-JOBINDEX-PODINDEX.SET to each other.
        where = ["--hosts.coordinator", f"{options.name}-workers-0-0.{options.name}:{PORT}", "--hosts.count"]
        line = shlex.join([*command, *where, str(options.hosts), "--hosts.index"])
        devices, run = {"nvidia.com/gpu": options.gpus}, ["sh", "-c", f'exec {line} "$JOB_COMPLETION_INDEX"']
    container: dict[str, Any] = {
        "name": "train",
        "image": options.image,
        "command": run,
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": devices},
    }
    pod: dict[str, Any] = {"restartPolicy": "Never", "nodeSelector": selector, "containers": [container]}
    pod["terminationGracePeriodSeconds"] = 120  # time to save, between SIGTERM and SIGKILL
    if options.claim:
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": options.claim}}]
    bad_input = {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]}}
    job = {
        "parallelism": options.hosts,
        "completions": options.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [bad_input]},
        "template": {"spec": pod},
    }
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if options.tpu else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name, "annotations": exclusive},
        "spec": {
            "failurePolicy": {
                "maxRestarts": options.restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "workers", "replicas": options.slices, "template": {"spec": job}}],
        },
    }


def main(arguments: Sequence[str]) -> int:
    """Runs `launch gke` and returns its exit code."""
    parser = words.Parser("gke", __doc__)
    parser.add_argument("name", help="of the JobSet")
    parser.add_argument("--image", required=True, help="with the package, the experiments and their environment")
    parser.add_argument("--tpu", default="", metavar="KIND:TOPOLOGY", help=f"{', '.join(TPUS)}, such as v5p:4x4x4")
    parser.add_argument("--gpus", type=int, default=0, help="NVIDIA GPUs of a node, one process a node")
    parser.add_argument("--hosts", type=int, required=True, help="machines, of one slice")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices, joined by the data-centre network")
    parser.add_argument("--claim", default="", help="PersistentVolumeClaim mounted at /data")
    parser.add_argument("--restarts", type=int, default=10, help="times that the set is started again")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest and apply nothing")
    options, train = parser.parse_known_args(arguments)
    kind, _, topology = options.tpu.partition(":")
    if bool(options.tpu) == bool(options.gpus):
        parser.error("give --tpu KIND:TOPOLOGY or --gpus N, one of them")
    if options.tpu and (kind not in TPUS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", topology)):
        parser.error(f"--tpu {options.tpu} is not KIND:TOPOLOGY with a kind of {', '.join(TPUS)}, such as v5p:4x4x4")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", options.name):
        parser.error(f"name {options.name}: Kubernetes takes small letters, digits and -, such as run-1")
    if options.hosts < 1:
        parser.error(f"--hosts {options.hosts}: there must be machines")
    if options.tpu:
        count, of_one = math.prod(map(int, topology.split("x"))), math.prod(CHIPS[kind].machine((2, 2)))
        if options.hosts > 1 and options.hosts * of_one != count:
            hosts = max(count // of_one, 1)
            parser.error(f"--tpu {options.tpu} is {count} chips, {of_one} on a machine: give --hosts {hosts}")
    if options.gpus and options.slices > 1:
        parser.error(f"--slices {options.slices}: only TPUs have slices; give more --hosts")
    words.check(parser, options, train)
    made = json.dumps(manifest(options, train), indent=2)
    if options.dry_run:
        print(made)
        return 0
    if shutil.which("kubectl") is None:
        parser.error("kubectl is not on the PATH; install it, or use --dry-run")
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=made, text=True).returncode
