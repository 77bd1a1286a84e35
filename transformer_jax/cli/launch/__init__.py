"""`launch`: starts one training on many machines, by the system that manages them."""

import importlib

from transformer_jax.cli.arguments import positional
from transformer_jax.errors import InputError, nearest

KINDS = {"tpu-vm": "tpu_vm", "gke": "gke", "slurm": "slurm", "local": "local"}


def main(arguments: list[str]) -> int:
    """Start one training on many machines.

        transformer-jax launch KIND ... EXPERIMENT [VARIANT] [--FIELD VALUE ...]

    tpu-vm: all workers of a Cloud TPU slice, by gcloud. gke: TPU slices or GPU nodes of a Kubernetes cluster, by a
    JobSet. slurm: the nodes of a cluster, by sbatch. local: processes on this machine, or machines by ssh. Each takes
    --dry-run, which prints what would be started, and has its own page:

        transformer-jax launch tpu-vm --help
    """
    if arguments[:1] in ([], ["-h"], ["--help"]):
        positional(main, arguments, 1)
    kind, *rest = arguments
    if kind not in KINDS:
        raise InputError(f"launch {kind!r}: the kinds are {', '.join(KINDS)}{nearest(kind, KINDS)}")
    return importlib.import_module(f"transformer_jax.cli.launch.{KINDS[kind]}").main(rest)
