"""Whether this tree compiles the same train step as another checkout: for changes that must not change what is run.

    git worktree add ../before e22dce9
    python tools/bench/same_step.py ../before                       # the five shapes of tools/bench that fit a CPU
    python tools/bench/same_step.py ../before gpt-4x128             # some of them
    python tools/bench/same_step.py ../before --pairs 30            # the time of those that differ, too

The optimised program of each shape is compiled by both trees, one after the other, and compared without its metadata
(source lines and scopes) and with its instructions numbered in the order of the text. Exit code 1 where one differs.

Times are of two processes, one for each tree, that run blocks of steps in turns, two blocks a pair, in random order:
the median ratio of the pairs, this tree's time / the other's, with its 95 % interval by the bootstrap.
"""

import argparse
import contextlib
import difflib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

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


TIME = """
import sys
from tools import bench
try:
    from tools.bench import step
except ImportError:  # before tools/ had folders
    from tools import bench_step as step
experiment = bench.SHAPES[sys.argv[1]]()
run, *_ = step.prepare(experiment, bench.pairs(experiment, False))
print(sum(run(4)[1:]) / 3, flush=True)
for line in sys.stdin:
    print(sum(run(int(line) + 1)[1:]), flush=True)
"""
BLOCK = 1.0  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the other tree")
    parser.add_argument("shapes", nargs="*", default=CPU_SHAPES, help=", ".join(CPU_SHAPES))
    parser.add_argument("--pairs", type=int, default=0, help="blocks of steps of each tree, of the shapes that differ")
    arguments = parser.parse_args()
    here, differ = Path(__file__).resolve().parents[2], False
    for shape in arguments.shapes:
        ours, theirs = (normal(compiled(tree, shape)) for tree in (here, arguments.checkout.resolve()))
        differ |= ours != theirs
        lines = len(ours.splitlines())
        print(f"{shape}: {'differs' if ours != theirs else 'the same'}, {lines:,} lines", flush=True)
        diff = difflib.unified_diff(theirs.splitlines(), ours.splitlines(), str(arguments.checkout), "here", n=0)
        print("\n".join(line[:200] for line, _ in zip(diff, range(20), strict=False)))
        if arguments.pairs and ours != theirs:
            ratios = timed((here, arguments.checkout.resolve()), shape, arguments.pairs)
            chosen = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
            low, high = np.percentile(np.median(chosen, axis=1), (2.5, 97.5))
            print(f"{shape}: time {np.median(ratios):.3f} [{low:.3f}, {high:.3f}] of the other's, {len(ratios)} pairs")
    return int(differ)


def compiled(tree: Path, shape: str) -> str:
    """The text of the optimised program that a tree compiles for two CPU devices."""
    command = [sys.executable, "-c", COMPILE, shape]
    return subprocess.run(
        command, cwd=tree, env=os.environ | settings(tree), check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def settings(tree: Path) -> dict[str, str]:
    """The environment of a process that imports from `tree` and has two CPU devices."""
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(tree)}


def timed(trees: tuple[Path, Path], shape: str, pairs: int) -> list[float]:
    """The ratio of each pair of blocks: seconds of the first tree's steps / of the second's."""
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", TIME, shape],
                    cwd=tree,
                    env=os.environ | settings(tree),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            for tree in trees
        ]
        steps = max(3, round(BLOCK / max(float(child.stdout.readline()) for child in children if child.stdout)))
        ratios = []
        for _ in range(pairs):
            seconds = {}
            for i in random.sample((0, 1), 2):
                child = children[i]
                assert child.stdin is not None and child.stdout is not None
                child.stdin.write(f"{steps}\n")
                child.stdin.flush()
                seconds[i] = float(child.stdout.readline())
            ratios.append(seconds[0] / seconds[1])
        return ratios


def normal(program: str) -> str:
    """The program without metadata, its instructions and computations numbered as they appear."""
    program = re.sub(r", metadata=\{[^}]*\}", "", program)
    program = re.sub(r"(?ms)^(FileNames|FunctionNames|FileLocations|StackFrames)\n.*?\n\n", "", program)
    numbers: dict[str, str] = {}
    return re.sub(r"%[\w.\-]+", lambda m: numbers.setdefault(m[0], f"%{len(numbers)}"), program)


if __name__ == "__main__":
    sys.exit(main())
