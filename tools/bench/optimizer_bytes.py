"""Bytes of optimiser state on one device: every optimiser on an experiment's model, beside AdamW.

    python tools/bench/optimizer_bytes.py                                    # GPT-2 124M, on one device and on eight
    python tools/bench/optimizer_bytes.py experiments.causal_lm.stdlib

Nothing is allocated: the shapes are divided by their shardings. The vocabulary is filled up to a multiple of 64, so
that it divides over a mesh.
"""

import argparse
import dataclasses
import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the repository's packages, and eight devices, before JAX is imported
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"] = "cpu", "8"

import jax

from tools.targets import collectives
from transformer_jax import models, optim
from transformer_jax.nn import params
from transformer_jax.optim import shardings

MESHES = {"one device": (1, 1, 1, 1), **{name: collectives.MESHES[name] for name in ("fsdp8", "data2-fsdp2-tensor2")}}
OPTIMIZERS = (
    optim.AdamW(),
    optim.Adafactor(),
    optim.Lamb(),
    optim.Lion(),
    optim.Muon(),
    optim.ScheduleFree(),
    optim.Sgd(),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="?", default="experiments.causal_lm.gpt2_small", help="an experiment's module")
    model = importlib.import_module(parser.parse_args().module).experiment().model
    model = dataclasses.replace(model, vocab_size=-(-model.vocab_size // 64) * 64)
    declaration = models.family(model).declare(model)
    print(f"{params.count(declaration):,} parameters; bytes of optimiser state on a device (share of AdamW's)\n")
    print("| optimiser |" + "".join(f" {name} |" for name in MESHES))
    print("|---|" + "---|" * len(MESHES))
    sizes = {type(o).__name__: [on_a_device(o, declaration, mesh) for mesh in MESHES.values()] for o in OPTIMIZERS}
    for name, counts in sizes.items():
        shares = zip(counts, sizes["AdamW"], strict=True)
        print(f"| {name} |" + "".join(f" {count:,} ({count / adamw:.2f}) |" for count, adamw in shares))
    return 0


def on_a_device(optimizer: Any, declaration: Any, mesh: tuple[int, ...]) -> int:
    """Bytes of the optimiser's state that each device of a mesh holds."""
    state = jax.eval_shape(optim.make(optimizer, 1000, declaration).init, params.abstract(declaration))
    places = shardings.of_state(state, declaration, collectives.mesh_of(mesh))
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
    return sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in leaves)


if __name__ == "__main__":
    sys.exit(main())
