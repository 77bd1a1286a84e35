"""What the gathered masked-LM loss saves: a training step with it against one whose logits are made for every position.

    tools/run tools.bench.mlm [--rounds 5] [--model.num-layers 2 ...]

Both steps train BERT-base at T 128 on the same batches, interleaved, and must give the same loss. The gathered one is
the step that `train` runs: its vocabulary projection sees the 20 masked positions of each row. The other makes logits
for all 128, in tiles (`losses.linear_cross_entropy`), with weight 0 where no token is masked.
"""

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tools import bench
from tools.bench import step as bench_step
from transformer_jax import losses, models
from transformer_jax.cli import process
from transformer_jax.data import corpus
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Train
from transformer_jax.models import bert
from transformer_jax.tasks import MaskedLM, encoder


@dataclasses.dataclass(frozen=True)
class EveryPosition(MaskedLM):
    """The same loss from the logits of every position."""

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        family = models.family(model_cfg)
        x_BTD = encoder.hidden(params, model_cfg, batch, key=key)
        kernel_EV, bias_V = family.mlm_kernel(params, model_cfg)
        at_BPT = jax.nn.one_hot(batch["positions"], x_BTD.shape[1]) * batch["weights"][..., None]
        weights_BT = jnp.sum(at_BPT, axis=1)
        labels_BT = jnp.sum(at_BPT * batch["labels"][..., None], axis=1).astype(jnp.int32)
        h_BTE = family.mlm_states(params, model_cfg, x_BTD)
        total, weight, _ = losses.linear_cross_entropy(h_BTE, kernel_EV, labels_BT, weights_BT, bias_V=bias_V)
        return total, weight, {"loss": (total, weight)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools.bench.mlm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns; default 5")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="steps timed in a turn; default 2")
    options, overrides = parser.parse_known_args(arguments)
    default = Experiment(
        model=bert.Config(heads=("mlm",), scan_layers=False, dropout=0.0),
        data=corpus.TextCorpus(length=128),
        task=MaskedLM(),
        train=Train(batch_size=4),
    )
    try:
        experiment = bench.override(default, overrides)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    process.keep_freed_memory(experiment)
    process.use_cpu_cores(experiment)
    load = os.getloadavg()[0]
    tasks = {"gathered": MaskedLM(), "every position": EveryPosition()}
    sides = {name: bench_step.prepare(dataclasses.replace(experiment, task=task), []) for name, task in tasks.items()}
    first = {name: facts["first_loss"] for name, (_, facts, _) in sides.items()}
    if abs(first["gathered"] - first["every position"]) > 1e-4:
        raise SystemExit(f"error: the two first losses differ: {first}")
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, (run, _, _) in sides.items():
            turns[name].append(statistics.median(run(options.steps + 1)[1:]))
    ratios = [a / b for a, b in zip(*turns.values(), strict=True)]
    facts = bench.machine()
    print(
        f"{facts['processor']}, {facts['cores']} cores, {facts['devices']}, jax {facts['jax']}, load average {load:.1f}"
    )
    temp = "temp_size_in_bytes"
    for name, (_, _, compiled) in sides.items():
        memory = getattr(compiled.memory_analysis(), temp) / 2**20
        print(f"{name:16} {1e3 * statistics.median(turns[name]):9.1f} ms a step, {memory:,.0f} MiB temporary a device")
    print(f"gathered / every position {statistics.median(ratios):.3f} (median of {options.rounds} rounds)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
