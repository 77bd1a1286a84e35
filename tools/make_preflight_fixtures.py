"""Writes tests/data/preflight.json: what the real TPU and GPU compilers say of a step's memory.

    tools/install target-tpu target-gpu && tools/run tools.make_preflight_fixtures [PART OF A CASE ...]

A case is the arguments of `tools.preflight`. Those that match a part (none: all) are compiled anew, each in half a
minute to five on two cores, and written as soon as they are known. tests/test_preflight.py holds the analytic mode to
them; docs/scaling.md shows both.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jaxlib

from tools import compiled, preflight, targets
from transformer_jax.nn.stack import REMAT

PATH = Path(__file__).parent.parent / "tests" / "data" / "preflight.json"

GPT = "experiments.causal_lm.gpt2_small xl"
BERT = "experiments.mlm.bert_base large --data.length 512"
BIG = "experiments.translation.wmt14_big"
VIT = "experiments.vit.imagenet_b16 huge"

SLICE = "--target tpu:v5e:16x16 --mesh.data -1 --mesh.fsdp 16"
TPUS = "--target tpu:v5p:2x2x1 --mesh.data -1 --mesh.fsdp 4"
GPUS = "--target cuda:h100:1x4 --mesh.data -1 --mesh.fsdp 4"
HOST = "--target cuda:h100:1x8 --mesh.data -1 --mesh.fsdp 8"

# Full-size models: every family and policy on GPU and on TPU, some rows for each device; each family on a slice
# of 256. Those that cost least come first.
CASES = (
    *(f"{VIT} {GPUS} --model.remat {remat} --train.batch-size 64" for remat in REMAT),
    *(f"{BERT} {GPUS} --model.remat {remat} --train.batch-size 32" for remat in REMAT),
    *(f"{GPT} {GPUS} --model.remat {remat} --train.batch-size 8" for remat in REMAT),
    *(f"{BIG} {HOST} --model.remat {remat} --train.batch-size 128" for remat in REMAT),
    *(f"{BIG} {TPUS} --model.remat {remat} --train.batch-size 64" for remat in REMAT),
    *(f"{VIT} {TPUS} --model.remat {remat} --train.batch-size 64" for remat in REMAT),
    *(f"{BERT} {TPUS} --model.remat {remat} --train.batch-size 32" for remat in REMAT),
    *(f"{GPT} {TPUS} --model.remat {remat} --train.batch-size 8" for remat in REMAT),
    f"{BIG} {SLICE} --model.remat none --train.batch-size 2048",
    f"{VIT} {SLICE} --model.remat dots",
    f"{BERT} {SLICE} --model.remat none",
    f"{GPT} {SLICE} --model.remat dots",
)

# Other sizes, meshes and chips, compiled when the arithmetic was done: nothing in it was chosen by them.
HELD_OUT = (
    "experiments.causal_lm.gpt2_small --target cuda:h100:1x8 --model.remat dots --train.batch-size 128 "
    "--train.accumulate 2",
    "experiments.causal_lm.gpt2_small --target tpu:v5p:2x2x1 --mesh.fsdp 2 --mesh.tensor 2 --model.remat none "
    "--train.batch-size 32 --train.accumulate 1 --model.vocab-size 50304",
    "experiments.mlm.bert_base --data.length 512 --target tpu:v5e:2x2 --model.remat none --train.batch-size 32",
    "experiments.vit.imagenet_b16 --target cuda:h100:1x4 --model.remat full --train.batch-size 256",
    "experiments.translation.wmt14_base --target tpu:v5p:2x2x1 --model.remat dots --train.batch-size 128",
)


def main(parts: list[str]) -> None:
    targets.without_chips()
    for case in (*CASES, *HELD_OUT):
        if not all(part in case for part in parts):
            continue
        request = preflight.read(case.split())
        step = compiled.compile_step(request.experiment, request.target)
        said = {name: value for name, value in dataclasses.asdict(step).items() if name != "text"}
        made = {"versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__}, **said}
        stored = json.loads(PATH.read_text()) if PATH.exists() else {}
        stored[case] = made
        PATH.write_text(
            json.dumps({name: stored[name] for name in (*CASES, *HELD_OUT) if name in stored}, indent=1) + "\n"
        )
        print(f"{case}: {step.total / 1e9:.2f} GB, compiled in {step.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
