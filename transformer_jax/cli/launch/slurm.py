"""A SLURM job: writes the sbatch file of a training, and submits it.

    transformer-jax launch slurm --nodes 4 --gpus-per-node 8 --time 24:00:00 mlm.bert_base --workdir /nfs/a

What follows the options is what `transformer-jax train` takes. One process per GPU, which is what JAX expects of SLURM
(each process uses the GPU of its local number); without GPUs one per node. JAX reads SLURM's variables. Ninety seconds
before the time limit, or when the job is preempted, SIGTERM makes all processes save at the same step; a requeued job
resumes there. --workdir must be on a file system that all nodes share.

--dry-run prints the file and submits nothing. Options: https://slurm.schedmd.com/sbatch.html
"""

import argparse
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from transformer_jax.cli.launch import words


def script(options: argparse.Namespace, train: Sequence[str]) -> str:
    """The sbatch file that runs `train EXPERIMENT ...` with the `options` of the command line."""
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={options.name}",
        f"#SBATCH --nodes={options.nodes}",
        f"#SBATCH --ntasks-per-node={options.gpus_per_node or 1}",
        f"#SBATCH --time={options.time}",
        "#SBATCH --output=%x-%j.log",
        "#SBATCH --signal=TERM@90",  # SLURM signals all tasks, which save and end
        "#SBATCH --requeue",
    ]
    if options.gpus_per_node:
        lines.append(f"#SBATCH --gpus-per-node={options.gpus_per_node}")
    lines += [f"#SBATCH {extra}" for extra in options.sbatch]
    command = shlex.join([".venv/bin/python", "-m", "transformer_jax", "train", *train])
    # --kill-on-bad-exit: SLURM ends processes that the hosts' own watch cannot end.
    lines += ["", "set -eu", f"cd -- {shlex.quote(options.folder)}", f"srun --kill-on-bad-exit=1 --label {command}"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Runs `launch slurm` and returns its exit code."""
    parser = words.Parser("slurm", __doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=0, help="0: train on CPUs, one process a node")
    parser.add_argument("--time", default="24:00:00", help="limit of the job")
    parser.add_argument("--name", default="transformer_jax")
    parser.add_argument("--folder", default=".", help="on all nodes; it holds .venv")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="another #SBATCH line's option")
    parser.add_argument("--dry-run", action="store_true", help="print the file and submit nothing")
    options, train = parser.parse_known_args(arguments)
    if options.nodes < 1 or options.gpus_per_node < 0:
        parser.error(f"--nodes {options.nodes} --gpus-per-node {options.gpus_per_node}: there must be nodes")
    words.check(parser, options, train)
    made = script(options, train)
    if options.dry_run:
        print(made, end="")
        return 0
    if shutil.which("sbatch") is None:
        parser.error("sbatch is not on the PATH; run this on a login node, or use --dry-run")
    return subprocess.run(["sbatch"], input=made, text=True).returncode
