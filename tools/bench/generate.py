"""How fast text is made on this machine: greedy tokens per second, alone or against Transformers' `generate`.

    tools/run tools.bench.generate gpt-4x128
    tools/run tools.bench.generate gpt2-124m --against transformers --torch-python ~/torch/bin/python --json out.json

Both sides continue the same random prompts with the same random weights, which ours writes as a Hugging Face snapshot
and Transformers reads. A call is timed whole, prompt included, after one untimed call; compiling is reported apart. For
each batch size the sides take turns, `--rounds` times; the ratio is the median of the rounds' own ratios, whose two
calls were neighbours in time. CPUs are one device of all cores, as `predict` has them: each of several would read all
the weights for its rows of a batch. "same tokens" is the share of new tokens on which the sides agree: after a near-tie
is decided the other way, a row goes its own way, so it may be below 1 for a right program.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tools import bench
from transformer_jax import hub, sharding
from transformer_jax.decoding import decode
from transformer_jax.errors import InputError
from transformer_jax.models import gpt

SHAPES = {
    "gpt-4x128": gpt.Config(vocab_size=65, max_length=256, width=128, num_layers=4, num_heads=4, scan_layers=False),
    "gpt-6x384": gpt.Config(vocab_size=65, max_length=256, width=384, num_layers=6, num_heads=6, scan_layers=False),
    "gpt2-124m": gpt.Config(vocab_size=50257, scan_layers=False),
}

Continue = Callable[[np.ndarray], tuple[float, np.ndarray]]  # prompts [B, T] -> seconds, new tokens [B, M]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.bench.generate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shape", help=", ".join(SHAPES))
    parser.add_argument("--against", choices=["transformers"], help="time Transformers' generate, in turns with ours")
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable, help="an interpreter that has it")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], metavar="B", help="default 1 16")
    parser.add_argument("--prompt-tokens", type=int, default=32, metavar="T", help="default 32")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="M", help="default 128")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns; default 7")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    options = parser.parse_args(arguments)
    try:
        if options.shape not in SHAPES:
            raise InputError(f"no shape {options.shape!r}; there are {', '.join(SHAPES)}")
        if min(options.rounds, options.prompt_tokens, options.new_tokens, *options.batch_sizes) < 1:
            raise InputError("--rounds, --prompt-tokens, --new-tokens and --batch-sizes are 1 or more")
        cfg, T, M = SHAPES[options.shape], options.prompt_tokens, options.new_tokens
        most = cfg.max_length + 1  # the last token is made and never read
        if most < T + M:
            raise InputError(f"{T} + {M} tokens are more than the {most} of {options.shape}'s context")
        if options.json and not Path(options.json).resolve().parent.is_dir():
            raise InputError(f"--json {options.json}: no such folder")
        with contextlib.ExitStack() as stack:
            result = measure(options, stack)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The numbers; a process of the other side lives until the stack is closed."""
    load = os.getloadavg()[0]
    cfg, M = SHAPES[options.shape], options.new_tokens
    params = jax.jit(gpt.init, static_argnums=1)(jax.random.key(0), cfg)
    ours = make_ours(cfg, params, M)
    theirs, their_facts = start_theirs(options, cfg, params, stack) if options.against else (None, {})
    rows = []
    for B in options.batch_sizes:
        shape = (options.rounds + 1, B, options.prompt_tokens)
        prompts = np.random.default_rng(B).integers(0, cfg.vocab_size, shape, dtype=np.int32)
        first, _ = ours(prompts[0])
        if theirs:
            theirs(prompts[0])
        rounds = [(ours(p), theirs(p) if theirs else None) for p in prompts[1:]]
        seconds = [mine[0] for mine, _ in rounds]
        row = {
            "batch_size": B,
            "tokens_per_second": B * M / statistics.median(seconds),
            "seconds": seconds,
            "first_call_seconds": first,
        }
        pairs = [(mine, other) for mine, other in rounds if other is not None]
        if pairs:
            row |= {
                "their_tokens_per_second": B * M / statistics.median(other[0] for _, other in pairs),
                "their_seconds": [other[0] for _, other in pairs],
                "ratio": statistics.median(other[0] / mine[0] for mine, other in pairs),
                "same_tokens": float(np.mean([mine[1] == other[1] for mine, other in pairs])),
            }
        rows.append(row)
    return {
        "shape": options.shape,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": M,
        "machine": bench.machine(),
        "load_average_before": load,
        "against": their_facts,
        "batches": rows,
    }


def make_ours(cfg: gpt.Config, params: Any, new_tokens: int) -> Continue:
    """Our side: one compiled program per batch size, over parameters laid out for decoding once.

    The rows of a batch are spread over the devices, as far as they divide.
    """
    sampling = decode.Sampling(new_tokens, temperature=0.0)
    generate = jax.jit(decode.generate, static_argnames=("model", "cfg", "sampling"))
    params = gpt.for_decoding(params, cfg)

    @functools.cache
    def placed(num_devices: int) -> tuple[jax.sharding.Mesh, Any]:
        mesh = sharding.make_mesh(data=num_devices, devices=jax.devices()[:num_devices])
        return mesh, jax.device_put(params, jax.NamedSharding(mesh, jax.P()))

    def run(tokens_BT: np.ndarray) -> tuple[float, np.ndarray]:
        B, T = tokens_BT.shape
        mesh, own_params = placed(math.gcd(B, jax.device_count()))
        began = time.perf_counter()
        with jax.set_mesh(mesh):
            cache = gpt.init_cache(cfg, B, T + new_tokens - 1)
            keys_B = decode.row_keys(jax.random.key(0), B)
            state = generate(gpt, own_params, cfg, cache, decode.left_pad(tokens_BT), keys_B, sampling)
            made = np.asarray(state.tokens_BM)
        return time.perf_counter() - began, made

    return run


def start_theirs(
    options: argparse.Namespace, cfg: gpt.Config, params: Any, stack: contextlib.ExitStack
) -> tuple[Continue, dict[str, Any]]:
    """Transformers' side, reading the weights from a snapshot. Errors: `InputError` when it does not start."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "snapshot"
    hub.export(folder, cfg, params)
    worker = [options.torch_python, str(Path(__file__).with_name("generate_torch.py")), str(folder)]
    try:
        process = subprocess.Popen(worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise InputError(f"--torch-python {options.torch_python}: {error.strerror}") from None
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdin is not None and process.stdout is not None
    to, answers = process.stdin, process.stdout
    ready = answers.readline()
    if not ready:
        raise InputError(f"{options.torch_python} has no working torch and transformers; give --torch-python PATH")

    def run(tokens_BT: np.ndarray) -> tuple[float, np.ndarray]:
        to.write(json.dumps({"tokens": tokens_BT.tolist(), "new": options.new_tokens}) + "\n")
        to.flush()
        answer = json.loads(answers.readline())
        return answer["seconds"], np.array(answer["tokens"])

    return run, json.loads(ready)


def table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    facts, theirs = result["machine"], result["against"]
    busy = " (BUSY with other work: not to be quoted)" if result["load_average_before"] > 0.5 else ""
    lines = [
        f"{result['shape']}, greedy, {result['prompt_tokens']} prompt tokens, {result['new_tokens']} new ones",
        f"{facts['processor']}, {facts['cores']} cores; {facts['devices']}; "
        + f"python {facts['python']}, jax {facts['jax']}"
        + "".join(f", {name} {theirs[name]}" for name in ("torch", "transformers") if name in theirs)
        + f"; load {result['load_average_before']:.1f}{busy}",
    ]
    for row in result["batches"]:
        line = f"batch {row['batch_size']:3}: {row['tokens_per_second']:10,.0f} tokens/s"
        if theirs:
            line += f"   Transformers {row['their_tokens_per_second']:10,.0f} tokens/s   {row['ratio']:5.2f} times"
            line += f"   same tokens {row['same_tokens']:.3f}"
        lines.append(line + f"   (first call {row['first_call_seconds']:.1f} s)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
