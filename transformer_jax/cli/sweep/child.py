"""The process of one run of a sweep: `train`, which gets SIGTERM, and saves, when the sweep is killed.

python -m transformer_jax.cli.sweep.child PARENT train ...
"""

import ctypes
import os
import signal
import sys


def main() -> int:
    """Runs the command as `transformer-jax` does; PARENT is the process number of the sweep."""
    parent, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        return 1
    sys.argv = ["transformer-jax", *arguments]
    sys.orig_argv[:] = sys.argv  # what results.json states as the command
    from transformer_jax.cli.main import main as command

    return command(arguments)


if __name__ == "__main__":
    sys.exit(main())
