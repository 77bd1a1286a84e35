"""How fast a set of sentences is translated: beam 4, against Transformers' `generate` and CTranslate2 in float32.

    tools/run tools.bench.translate marian --sources ../shared/data/translation/multi30k/test_2016_flickr.en
        --torch-python ~/torch/bin/python [--json out.json]

All sides translate the same sentences with the same weights, which ours writes as a Marian snapshot, all sorted by
length, each with the batch size that is best for it of those tried once. Then they take turns, `--rounds` times; the
ratio is the median of the rounds' own ratios, whose calls were neighbours in time. A call is timed whole, from ids to
ids, after one untimed call of the same shapes; compiling is reported apart.

The weights are random, and random weights end no sentence where a translation would. So no side may end one: the stop
token's bias forbids it, and every side makes as many new tokens as the source has. The sources' lengths are rounded to
multiples of `STEP` (the last words dropped or repeated), and a batch holds one length for those sides whose limit is
a batch's. All sides then do the same work, which "same" checks: the share of sentences whose best hypothesis is ours,
token by token. What the search saves by stopping early, and what it pays for longer sentences, is in none of them.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tools import bench
from transformer_jax import hub
from transformer_jax.decoding import translate
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.models import seq2seq

BASE: dict[str, Any] = {"max_length": 512, "position": "sinusoidal_halves", "logits_bias": True, "eos_id": 0}
SHAPES = {
    # Vaswani et al. 2017, base, with Marian's order of the sinusoids; and the opus-mt models of Helsinki-NLP.
    "base": seq2seq.Config(vocab_size=37000, **BASE, pad_id=36999, decoder_start_id=36999, scan_layers=False),
    "marian": seq2seq.Config(
        vocab_size=58101, **BASE, pad_id=58100, decoder_start_id=58100, activation="silu", scan_layers=False
    ),
    "tiny": seq2seq.Config(
        vocab_size=900, **BASE, pad_id=899, decoder_start_id=899, width=32, num_layers=1, num_heads=2, scan_layers=False
    ),
}
STOP, WIDTH, LENGTH_PENALTY, EXTRA, STEP = 0, 4, 0.6, 0, 4
OUR_BATCHES, THEIR_BATCHES = (256, 512, 1024), (8, 16, 32, 64)  # padded source tokens on each device; sentences


class Call(NamedTuple):
    """One translation of all sentences."""

    seconds: float
    cpu_seconds: float
    tokens: list[list[int]]


Side = Callable[[Any], Call]  # (batch size) -> the call


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.bench.translate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shape", help=", ".join(SHAPES))
    parser.add_argument("--sources", required=True, metavar="FILE", help="sentences, one a line")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="how many of them; default 200")
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter with torch, transformers, ctranslate2")
    parser.add_argument("--against", nargs="+", default=["transformers", "ctranslate2"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns; default 3")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    options = parser.parse_args(arguments)
    try:
        if options.shape not in SHAPES:
            raise InputError(f"no shape {options.shape!r}; there are {', '.join(SHAPES)}")
        if min(options.rounds, options.count) < 1:
            raise InputError("--rounds and --count are 1 or more")
        if options.json and not Path(options.json).resolve().parent.is_dir():
            raise InputError(f"--json {options.json}: no such folder")
        sources = read(options.sources, options.count, SHAPES[options.shape].vocab_size)
        with contextlib.ExitStack() as stack:
            result = measure(options, sources, stack)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def read(path: str, count: int, vocab_size: int) -> list[list[int]]:
    """Sentences as ids: words and marks numbered as they come, and the stop token. Errors: `InputError`."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()[:count]
    except OSError as error:
        raise InputError(f"--sources {path}: {error.strerror}") from None
    numbers: dict[str, int] = {}
    ids = [[numbers.setdefault(word, len(numbers) + 1) for word in re.findall(r"\w+|[^\w\s]", line)] for line in lines]
    sizes = [max(STEP, STEP * round((len(sentence) + 1) / STEP)) - 1 for sentence in ids]
    ids = [list(itertools.islice(itertools.cycle(s or [1]), size)) for s, size in zip(ids, sizes, strict=True)]
    return [[1 + (i - 1) % (vocab_size - 2) for i in sentence] + [STOP] for sentence in ids]


def make_params(cfg: seq2seq.Config) -> Any:
    """Random weights that give neither the stop token nor padding, with logits spread enough to have no near-ties."""
    params = jax.tree.map(np.array, jax.jit(seq2seq.init, static_argnums=1)(jax.random.key(0), cfg))
    params["decoder"]["blocks"]["mlp_norm"]["scale"][-1] = 3.0
    params["embed"]["token"]["embedding"][cfg.pad_id] = 0.0  # Marian's padding begins the target
    params["head"]["bias"][[STOP, cfg.pad_id]] = -1e4
    return params


def measure(
    options: argparse.Namespace, sources: Sequence[Sequence[int]], stack: contextlib.ExitStack
) -> dict[str, Any]:
    """The numbers; processes of the other sides live until the stack is closed."""
    load, cfg = os.getloadavg()[0], SHAPES[options.shape]
    params = make_params(cfg)
    sides: dict[str, tuple[Side, Sequence[Any]]] = {"transformer_jax": (ours(cfg, params, sources), OUR_BATCHES)}
    facts = {}
    if options.torch_python:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "snapshot"
        hub.export(folder, cfg, params)
        for name in options.against:
            side, facts[name] = start_theirs(options.torch_python, name, folder, sources, stack)
            workers = facts[name].get("workers", [None])
            sides[name] = side, list(itertools.product(THEIR_BATCHES, workers))
    result: dict[str, Any] = {name: {} for name in sides}
    for name, (side, sizes) in sides.items():
        first = [side(size) for size in sizes]
        tried = [side(size) for size in sizes] if name == "transformer_jax" else first
        seconds = [call.seconds for call in tried]
        best = sizes[int(np.argmin(seconds))]
        result[name] |= {"batch": best, "tried": dict(zip(map(str, sizes), seconds, strict=True))}
        result[name]["compile_seconds"] = first[sizes.index(best)].seconds - min(seconds)
    rounds = [{name: sides[name][0](result[name]["batch"]) for name in sides} for _ in range(options.rounds)]
    for name, row in result.items():
        calls = [calls[name] for calls in rounds]
        mine = [calls["transformer_jax"] for calls in rounds]
        row |= {
            "seconds": [call.seconds for call in calls],
            "cpu_seconds": [call.cpu_seconds for call in calls],
            "tokens": sum(map(len, calls[0].tokens)),
            "ratio": statistics.median(c.seconds / m.seconds for c, m in zip(calls, mine, strict=True)),
            "same": float(np.mean([a == b for a, b in zip(calls[0].tokens, mine[0].tokens, strict=True)])),
        }
    return {
        "shape": options.shape,
        "sentences": len(sources),
        "source_tokens": sum(map(len, sources)),
        "machine": bench.machine(),
        "load_average_before": load,
        "versions": {k: v for fact in facts.values() for k, v in fact.items() if k != "workers"},
        "sides": result,
    }


def ours(cfg: seq2seq.Config, params: Any, sources: Sequence[Sequence[int]]) -> Side:
    """Our side; the parameters are on the devices already."""
    params = jax.device_put(params)
    settings = Beam(WIDTH, cfg.max_length, (STOP,), length_penalty=LENGTH_PENALTY)

    def run(batch_tokens: int) -> Call:
        began, cpu_began = time.perf_counter(), time.process_time()
        found = translate.translate(
            seq2seq, params, cfg, sources, settings, extra_tokens=EXTRA, batch_tokens=batch_tokens
        )
        tokens = [row[0].tokens.tolist() for row in found]
        return Call(time.perf_counter() - began, time.process_time() - cpu_began, tokens)

    return run


def start_theirs(
    python: str, name: str, folder: Path, sources: Sequence[Sequence[int]], stack: contextlib.ExitStack
) -> tuple[Side, dict[str, Any]]:
    """Another side, reading the weights from a snapshot. Errors: `InputError` when it does not start."""
    worker = [python, str(Path(__file__).with_name("translate_torch.py")), name, str(folder)]
    try:
        process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise InputError(f"--torch-python {python}: {error.strerror}") from None
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdin is not None and process.stdout is not None
    to, answers = process.stdin, process.stdout
    ready = answers.readline()
    if not ready:
        raise InputError(f"{python} has no working {name}; give --torch-python PATH, or leave it out with --against")

    def run(size: tuple[int, str | None]) -> Call:
        beam = {"width": WIDTH, "length_penalty": LENGTH_PENALTY, "extra_tokens": EXTRA, "workers": size[1]}
        to.write(json.dumps({"sources": sources, "batch_size": size[0], "beam": beam}) + "\n")
        to.flush()
        answer = json.loads(answers.readline())
        return Call(answer["seconds"], answer["cpu_seconds"], answer["tokens"])

    return run, json.loads(ready)


def table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    facts, versions = result["machine"], result["versions"]
    busy = " (BUSY with other work: not to be quoted)" if result["load_average_before"] > 0.5 else ""
    lines = [
        f"{result['shape']}, beam {WIDTH}: {result['sentences']} sentences of {result['source_tokens']:,} tokens",
        f"{facts['processor']}, {facts['cores']} cores; {facts['devices']}; python {facts['python']}"
        + f", jax {facts['jax']}"
        + "".join(f", {name} {value}" for name, value in versions.items())
        + f"; load {result['load_average_before']:.1f}{busy}",
    ]
    for name, row in result["sides"].items():
        seconds, batch = statistics.median(row["seconds"]), row["batch"]
        batch = f"{batch} source tokens a device" if isinstance(batch, int) else f"{batch[0]} {batch[1] or ''}".strip()
        lines.append(
            f"{name:16} {result['sentences'] / seconds:8.1f} sentences/s {row['tokens'] / seconds:8,.0f} tokens/s"
            f"   {row['ratio']:5.2f} times our time   CPU {statistics.median(row['cpu_seconds']):6.1f} s"
            f"   same {row['same']:.3f}   batch {batch}   compiling {max(0.0, row['compile_seconds']):.0f} s"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    sys.exit(main())
