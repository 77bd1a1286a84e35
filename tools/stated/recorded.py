"""Runs a module as `python -m MODULE ARGS` does, and writes which Python files of this checkout it imported.

python -m tools.stated.recorded FILE MODULE ARGS
"""

import runpy
import sys
from pathlib import Path

from transformer_jax import files

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Runs the module; FILE gets one path on each line, relative to the root."""
    out, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    sys.orig_argv[:] = ["python", "-m", module, *arguments]  # what a run stores as its command
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        loaded = [getattr(found, "__file__", None) for found in [*sys.modules.values()]]
        paths = {Path(path).resolve() for path in loaded if path and path.endswith(".py")}
        ours = {path.relative_to(ROOT) for path in paths if path.is_relative_to(ROOT)}
        counted = sorted(
            path.as_posix() for path in ours if path.parts[0] in ("transformer_jax", "experiments", "tools")
        )
        files.write(Path(out), "\n".join(path for path in counted if not path.startswith("tools/stated/")) + "\n")


if __name__ == "__main__":
    main()
