"""All workers of a Cloud TPU slice: one ssh command that runs the same training on every machine of it.

    python -m tools.launch.tpu_vm NAME --zone us-east5-a experiments.causal_lm.gpt2_small --workdir /mnt/shared/a

What follows the options is what `python -m transformer_jax train` takes. JAX finds the workers and their numbers by
itself, so there are no --hosts flags. --workdir must be on a disk that all workers mount (Filestore, or a bucket by
Cloud Storage FUSE). The checkout and its environment (`tools/install tpu`) must be on every worker in --folder.

--dry-run prints the command and runs nothing. It needs gcloud:
https://cloud.google.com/tpu/docs/managing-tpus-tpu-vm
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tools.launch import words


def command(options: argparse.Namespace, train: Sequence[str]) -> list[str]:
    """The gcloud command."""
    there = shlex.join([".venv/bin/python", "-m", "transformer_jax", "train", *train])
    project = ["--project", options.project] if options.project else []
    return [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", options.name, "--zone", options.zone, *project),
        *("--worker=all", "--command", f"cd -- {shlex.quote(options.folder)} && {there}"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", help="of the TPU")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="by default gcloud's own")
    parser.add_argument("--folder", default="transformer_jax", help="the checkout on every worker")
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


if __name__ == "__main__":
    sys.exit(main())
