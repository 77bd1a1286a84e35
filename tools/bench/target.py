"""The part of tools/bench for chips that this machine does not have: a training step as their own compiler makes it.

    tools/run tools.bench gpt2-124m --target tpu:v5p:2x2x1 --train.batch-size 64 --model.no-scan-layers
    tools/run tools.bench experiments.mlm.bert_base --target cuda:h200:1x8 --json after.json
    tools/run tools.bench --compare before.json after.json

On TPUs the compiler writes into its program how many cycles it expects each operation to take
(tools/targets/estimate.py); with the chip's clock that is a time, and divided by what the same compiler expects of one
large product it says how good the program is, apart from how good the estimate is. GPUs' compiler writes no times:
there it is memory, FLOPs and kernels.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from tools import targets
from tools.targets import Target, compiled, estimate
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.nn import params as params_lib
from transformer_jax.train import program as programs

SIDE = 8192  # of the product whose rate the step's is compared with


def measure(shape: str, experiment: Experiment, target: Target) -> dict[str, Any]:
    """Compiles the step and a large product; numbers as JSON holds them, of one device.

    Errors: `InputError` without the compiler, and for a step that does not fit (`compiled.TooLarge`).
    """
    step = compiled.compile_step(experiment, target)
    program = programs.make(experiment, target.abstract_mesh(**dataclasses.asdict(experiment.mesh)), target.platform)
    flops = experiment.task.flops(program.model, experiment.data) * experiment.train.batch_size / target.num_devices
    result: dict[str, Any] = {
        "shape": shape,
        "target": target.name,
        "batch_size": experiment.train.batch_size,
        "scan_layers": experiment.model.scan_layers,
        "remat": experiment.model.remat,
        "parameters": params_lib.count(program.declaration),
        "flops": flops,
        "seconds_compiling": step.seconds,
        "bytes": {name: getattr(step, name) for name in ("arguments", "temporaries", "outputs", "aliased", "total")},
        "collectives": {name: {"times": n, "bytes": size} for name, (n, size) in step.collectives.items()},
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
    }
    peak = target.chip.flops / target.chip.devices
    if not target.chip.clock:
        return result | {"kernels": estimate.estimate(step.text, clock=1.0, peak=peak).kernels}
    found = estimate.estimate(step.text, clock=target.chip.clock, peak=peak)
    rate = product_rate(target)
    return result | {
        "kernels": found.kernels,
        "milliseconds": found.milliseconds,
        "outside_attention_ms": found.outside,
        "attention_ms": found.attention,
        "unknown": found.unknown,
        "product_flops_per_second": rate,
        "share_of_product_rate": flops / (1e-3 * found.total) / rate,
        "operations": [dataclasses.asdict(one) for one in found.operations[:40]],
    }


def product_rate(target: Target) -> float:
    """FLOP/s of one product of 8,192 x 8,192 bfloat16 matrices, by the same compiler's estimate."""
    x = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.bfloat16, sharding=SingleDeviceSharding(target.devices()[0]))
    text = jax.jit(jnp.matmul).lower(x, x).compile().as_text() or ""
    found = estimate.estimate(text, clock=target.chip.clock, peak=1.0)
    return 2 * SIDE**3 / (1e-3 * found.outside)


def table(result: dict[str, Any], top: int = 12) -> str:
    """The numbers for people."""
    size = {name: n / 1e9 for name, n in result["bytes"].items()}
    layers = "scanned" if result["scan_layers"] else "unrolled"
    kernels = ", ".join(f"{n} x {name}" for name, n in result["kernels"].items())
    sent = [f"{name} {c['times']} x, {c['bytes'] / 1e6:,.1f} MB" for name, c in result["collectives"].items()]
    lines = [
        f"{result['shape']} for {result['target']}: batch {result['batch_size']}, layers {layers}, remat "
        f"{result['remat']}, {result['parameters']:,} parameters, {result['flops'] / 1e12:,.2f} TFLOP each, a step",
        f"by its compiler, in {result['seconds_compiling']:.0f} s, jax {result['versions']['jax']}; nothing was run",
        f"memory of a device: {size['total']:.2f} GB, of which temporaries {size['temporaries']:.2f}, state and batch "
        f"{size['arguments']:.2f}",
        f"kernels: {kernels or 'none of its own'}",
        f"sent: {', '.join(sent) or 'nothing'}",
    ]
    if "milliseconds" not in result:
        return "\n".join(lines)
    total = result["outside_attention_ms"] + result["attention_ms"]
    lines += ["", f"{'ms':>9}{'share':>8}  kind"]
    kinds = {**result["milliseconds"], "attention kernels, their FLOPs at half the peak": result["attention_ms"]}
    lines += [f"{ms:9.2f}{ms / total:8.1%}  {name}" for name, ms in kinds.items()]
    lines += [
        f"{result['outside_attention_ms']:9.2f}          outside the attention kernels",
        f"{total:9.2f}          in all: {result['share_of_product_rate']:.1%} of the rate that the compiler expects of "
        f"one large product ({result['product_flops_per_second'] / 1e12:,.0f} TFLOP/s)",
        "",
        f"{'ms':>9}{'times':>7}  the operations that take longest",
    ]
    for one in result["operations"][:top]:
        lines.append(
            f"{one['milliseconds']:9.2f}{one['times']:7}  {one['kind']}: {one['shape'][:50]} {one['where'][-70:]}"
        )
    silent = ", ".join(f"{n} {name}" for name, n in list(result["unknown"].items())[:6])
    return "\n".join([*lines, "", f"without an estimate, counted as nothing: {silent}"])


def compare(first: str, second: str) -> str:
    """Two files of `--json` side by side. Errors: `InputError` for files that are none of ours."""
    sides = []
    for path in (first, second):
        try:
            sides.append(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"--compare {path}: cannot be read as JSON ({error})") from None
        if not isinstance(sides[-1], dict) or "bytes" not in sides[-1]:
            raise InputError(f"--compare {path}: not what tools.bench --target TARGET --json wrote")
    a, b = sides
    rows = {"memory, GB": [s["bytes"]["total"] / 1e9 for s in sides]}
    rows["temporaries, GB"] = [s["bytes"]["temporaries"] / 1e9 for s in sides]
    rows["compiling, s"] = [s["seconds_compiling"] for s in sides]
    if all("milliseconds" in s for s in sides):
        for name in {**a["milliseconds"], **b["milliseconds"]}:
            rows[f"{name}, ms"] = [s["milliseconds"].get(name, 0.0) for s in sides]
        rows["attention kernels, ms"] = [s["attention_ms"] for s in sides]
        rows["in all, ms"] = [s["outside_attention_ms"] + s["attention_ms"] for s in sides]
    lines = [f"A: {a['shape']} for {a['target']} ({first})", f"B: {b['shape']} for {b['target']} ({second})", ""]
    lines.append(f"{'':28}{'A':>10}{'B':>10}{'B / A':>8}")
    for name, (x, y) in rows.items():
        lines.append(f"{name:28}{x:10.2f}{y:10.2f}{y / x if x else float('nan'):8.2f}")
    return "\n".join(lines)


def parse(text: str) -> Target:
    """`targets.parse`, in which one NVLink domain may also be written `cuda:h200:1x1x8`, as the compiler does."""
    return targets.parse(text.replace(":1x1x", ":1x"))
