"""Whether this tree compiles the same train step as another checkout: for changes that must not change what is run.

    git worktree add ../before e22dce9
    python tools/bench/same_step.py ../before                       # the five shapes of tools/bench that fit a CPU
    python tools/bench/same_step.py ../before gpt-4x128             # some of them

The optimised program of each shape is compiled by both trees, one after the other, and compared without its metadata
(source lines and scopes) and with its instructions numbered in the order of the text. Exit code 1 where one differs.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

CPU_SHAPES = ("gpt-4x128", "gpt-6x384", "bert-base", "vit-s16", "transformer-tiny")

COMPILE = """
import sys
import jax
from tools import bench
from transformer_jax import sharding
from transformer_jax.train import program
mesh = sharding.make_mesh()
made = program.make(bench.SHAPES[sys.argv[1]](), mesh)
with jax.set_mesh(mesh):
    print(made.step.lower(made.state, made.batch, jax.random.key(0)).compile().as_text())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the other tree")
    parser.add_argument("shapes", nargs="*", default=CPU_SHAPES, help=", ".join(CPU_SHAPES))
    arguments = parser.parse_args()
    here, differ = Path(__file__).resolve().parents[2], False
    for shape in arguments.shapes:
        ours, theirs = (normal(compiled(tree, shape)) for tree in (here, arguments.checkout.resolve()))
        differ |= ours != theirs
        lines = len(ours.splitlines())
        print(f"{shape}: {'differs' if ours != theirs else 'the same'}, {lines:,} lines", flush=True)
        diff = difflib.unified_diff(theirs.splitlines(), ours.splitlines(), str(arguments.checkout), "here", n=0)
        print("\n".join(line[:200] for line, _ in zip(diff, range(20), strict=False)), end="")
    return int(differ)


def compiled(tree: Path, shape: str) -> str:
    """The text of the optimised program that a tree compiles for two CPU devices."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", COMPILE, shape]
    return subprocess.run(
        command, cwd=tree, env=os.environ | settings, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def normal(program: str) -> str:
    """The program without metadata, its instructions and computations numbered as they appear."""
    program = re.sub(r", metadata=\{[^}]*\}", "", program)
    program = re.sub(r"(?ms)^(FileNames|FunctionNames|FileLocations|StackFrames)\n.*?\n\n", "", program)
    numbers: dict[str, str] = {}
    return re.sub(r"%[\w.\-]+", lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), program)


if __name__ == "__main__":
    sys.exit(main())
