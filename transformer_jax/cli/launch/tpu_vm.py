"""All workers of a Cloud TPU slice: one ssh command that runs the same training on every machine of it.

    transformer-jax launch tpu-vm NAME --zone us-east5-a causal_lm.gpt2_small --workdir gs://BUCKET/a

What follows the options is what `transformer-jax train` takes. JAX finds the workers and their numbers by itself, so
there are no --hosts flags. --workdir must be where all workers can write: gs://BUCKET/RUN, or a disk that all mount.
Every worker must have the folder --folder, with .venv in it (pip install 'transformer-jax[tpu,gcs]') and the
experiment, if that is a file.

--dry-run prints the command and runs nothing. It needs gcloud:
https://cloud.google.com/tpu/docs/managing-tpus-tpu-vm
"""

import argparse
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from transformer_jax.cli.launch import words


def command(options: argparse.Namespace, train: Sequence[str]) -> list[str]:
    """The gcloud command that runs `train EXPERIMENT ...` with the `options` of the command line."""
    there = shlex.join([".venv/bin/python", "-m", "transformer_jax", "train", *train])
    project = ["--project", options.project] if options.project else []
    return [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", options.name, "--zone", options.zone, *project),
        *("--worker=all", "--command", f"cd -- {shlex.quote(options.folder)} && {there}"),
    ]


def main(arguments: Sequence[str]) -> int:
    """Runs `launch tpu-vm` and returns its exit code."""
    parser = words.Parser("tpu-vm", __doc__)
    parser.add_argument("name", help="of the TPU")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="by default gcloud's own")
    parser.add_argument("--folder", default="transformer_jax", help="on every worker; it holds .venv")
    parser.add_argument("--dry-run", action="store_true", help="print the command and run nothing")
    options, train = parser.parse_known_args(arguments)
    words.check(parser, options, train)
    made = command(options, train)
    if options.dry_run:
        print(shlex.join(made))
        return 0
    if shutil.which("gcloud") is None:
        parser.error("gcloud is not on the PATH; install the Google Cloud CLI, or use --dry-run")
    return subprocess.run(made).returncode
