"""Counts the collectives of a compiled train step, per family and mesh.

    python tools/targets/collectives.py                       # every family on every mesh, as a table
    python tools/targets/collectives.py gpt --mesh fsdp8      # some of them
    python tools/targets/collectives.py --check               # compare with tests/data/collectives.json: exit code 0, 1
    python tools/targets/collectives.py --write               # store them there, under the version of jax

The models are small, the meshes have 8 CPU devices, and the program is the one that a run compiles (`train.program`).
A row is a kind of collective along some mesh axes: how often it runs in a step, and the bytes of its values on one
device (the result of an all-gather, the operand of a reduce-scatter). XLA's CPU compiler has no reduce-scatter: it
uses an all-reduce and a slice, which sends twice as much.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script must set the path and the number of devices before JAX is imported
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"] = "cpu", "8"

import jax

from tools.targets import hlo
from transformer_jax import sharding, tasks
from transformer_jax.data import corpus, image_sources, images, tokenizers
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.experiment import Ema, Experiment, Train
from transformer_jax.models import bert, gpt, seq2seq, vit
from transformer_jax.nn import params
from transformer_jax.optim import Optim
from transformer_jax.tasks.translation import bitext, parallel
from transformer_jax.train import program as programs

EXPECTED = Path(__file__).resolve().parents[2] / "tests" / "data" / "collectives.json"
QUICK = {"xla_backend_optimization_level": 0}
ROWS, LENGTH, VOCABULARY = 8, 16, 80

# Sizes of data, fsdp, sequence, tensor.
MESHES = {
    "data8": (8, 1, 1, 1),
    "fsdp8": (1, 8, 1, 1),
    "data2-fsdp2-tensor2": (2, 2, 1, 2),
    "fsdp2-tensor4": (1, 2, 1, 4),
    "data2-sequence2-tensor2": (2, 1, 2, 2),
    "fsdp2-sequence4": (1, 2, 4, 1),
}


def experiments() -> dict[str, Experiment]:
    """A small experiment of each family: two layers, four heads, 8 rows of 16 tokens, with EMA and clipping."""
    size: Any = {"width": 32, "num_layers": 2, "num_heads": 4}
    text: Any = {"vocab_size": VOCABULARY, "max_length": LENGTH}
    # Adam divides a gradient by its size. A gradient that is only rounding error (biases of keys have no effect) would
    # become a full step in a random direction. This eps keeps such steps small.
    common: Any = {
        "optim": Optim(peak_lr=1e-3, eps=1e-4, clip_norm=1.0),
        "train": Train(steps=10, batch_size=ROWS),
        "ema": Ema(0.9),
    }
    pairs = parallel.ParallelText(bitext.Lines(("a", "b"), ("a", "b")), tokenizers.Bytes(), LENGTH, LENGTH)
    return {
        "gpt": Experiment(gpt.Config(**text, **size), corpus.TextCorpus(length=LENGTH), tasks.CausalLM(), **common),
        "bert": Experiment(
            bert.Config(**text, **size),
            corpus.TextCorpus(length=LENGTH),
            tasks.MaskedLM(pairs="next_sentence"),
            **common,
        ),
        "seq2seq": Experiment(
            seq2seq.Config(**text, **size, pad_id=0, eos_id=1, decoder_start_id=0), pairs, tasks.Translation(), **common
        ),
        "vit": Experiment(
            vit.Config(image_size=16, patch_size=4, num_classes=10, pool="mean", **size),
            images.ImageSet(image_sources.Digits()),
            tasks.ImageClassification(preprocess=Preprocess(size=16)),
            **common,
        ),
    }


def compile_step(experiment: Experiment, sizes: tuple[int, ...]) -> tuple[programs.Program, jax.stages.Compiled]:
    """(program, its compiled train step) for the first devices of this process.

    XLA's backend optimisations are off, because the collectives are decided before.

    Args:
      experiment: to compile.
      sizes: of the mesh axes.
    """
    mesh = mesh_of(sizes)
    program = programs.make(experiment, mesh)
    with jax.set_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))
        return program, program.step.lower(program.state, program.batch, key).compile(QUICK)


def mesh_of(sizes: tuple[int, ...]) -> jax.sharding.Mesh:
    """The mesh of these `sizes` over the first devices."""
    return sharding.make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])


def rows(compiled: jax.stages.Compiled, sizes: tuple[int, ...]) -> dict[str, list[int]]:
    """{"all-reduce data+fsdp": [times, bytes], ...} of one step.

    Args:
      compiled: the train step.
      sizes: of the mesh axes.
    """
    sums = hlo.totals(hlo.collectives(compiled.as_text() or ""), dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    return {f"{kind} {'+'.join(axes)}": [total.times, total.bytes] for (kind, axes), total in sums.items() if axes}


def differences(expected: dict[str, list[int]] | None, found: dict[str, list[int]]) -> list[str]:
    """A line for each row that differs from the expectation; none without an expectation.

    Args:
      expected: of `rows`; None: there is no expectation.
      found: of `rows`.
    """
    if expected is None:
        return []
    return [
        f"{name}: {found.get(name, 'none')} where {expected.get(name, 'none')} is expected (times, bytes)"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="What a train step sends between devices, per family and mesh.")
    parser.add_argument("families", nargs="*", help="gpt, bert, seq2seq, vit; default: all")
    parser.add_argument("--mesh", action="append", choices=MESHES, help="default: all")
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed expectation of this jax version"
    )
    parser.add_argument("--write", action="store_true", help="make what is found the expectation")
    args = parser.parse_args(argv)
    made = experiments()
    if unknown := sorted({*args.families} - {*made}):
        parser.error(f"no family {unknown[0]!r}; there are {', '.join(made)}")
    known = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    expected = known.setdefault(jax.__version__, {})
    failed = False
    for family in args.families or made:
        for mesh in args.mesh or MESHES:
            program, compiled = compile_step(made[family], MESHES[mesh])
            found = rows(compiled, MESHES[mesh])
            parameters = 4 * params.count(program.declaration)
            print(f"{family} {mesh}: parameters are {parameters:,} bytes")
            for name, (times, size) in found.items():
                print(f"  {name:<30} {times:>4} times {size:>10,} bytes  {size / parameters:6.2f} of the parameters")
            if args.check:
                for line in differences(expected.get(f"{family} {mesh}", {}), found):
                    failed = True
                    print(f"  not as expected: {line}")
            expected[f"{family} {mesh}"] = found
    if args.write:
        EXPECTED.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
