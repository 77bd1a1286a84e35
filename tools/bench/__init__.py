"""How fast a training step is on this machine, and how fast that is compared with what the machine can do.

    tools/run tools.bench gpt-4x128                                   # nanoGPT's CPU configuration
    tools/run tools.bench experiments.causal_lm.stdlib --json out.json
    tools/run tools.bench gpt-6x384 --train.batch-size 32             # any field of the experiment, as for `train`
    tools/run tools.bench gpt-4x128 --against torch --torch-python ~/torch/bin/python [--nanogpt ~/nanoGPT]
    tools/run tools.bench bert-base --against torch --torch-python ~/torch/bin/python     # Transformers' BERT
    tools/run tools.bench vit-s16 --against torch --torch-python ~/torch/bin/python       # Transformers' ViT
    tools/run tools.bench transformer-tiny --against torch --torch-python ~/torch/bin/python [--full-rows]
    tools/run tools.bench gpt-4x128 --profile                         # where the time goes, by operation
    tools/run tools.bench gpt2-124m --target tpu:v5p:2x2x1 --train.batch-size 64    # compiled, for other chips
    tools/run tools.bench llama3-8b --target tpu:v5p:4x4x4

What is timed is the step that `train` runs: same mesh, same optimiser, state donated, one step dispatched ahead of the
one waited for. The batches, of random tokens or images, are on the devices already: the input pipeline is not timed.

Shared and throttled machines drift by tens of percent, so everything is interleaved: a block of our steps, a
block of plain matrix products, a block of the other side's steps, and again, for `--rounds` rounds. The first step of
a block is dropped (the other side has just had the caches). Medians are over all steps; the ratio is the median of the
rounds' own ratios, whose two blocks were neighbours in time. CPU time (all threads of the process, the system's part
included) hardly changes with what else the machine does, so it compares two versions of the code on a busy one.

The ratio is of the time per token, or image, that is trained on. Of parallel text each side makes its own batches of
the same pairs, with as many slots: ours packed into rows, PyTorch's padded, of pairs of about the same length. With
`--full-rows` there is one pair in each row, so that both sides compute the same shapes. Images are bytes on our side,
normalised within the step as in `train`, and on PyTorch's normalised floats.

FLOPs are the model's mathematics (PaLM, appendix B: nothing recomputed, the masked half of attention counted), and the
machine's rate is that of one large product per device in the compute dtype, all devices at once.
`tools/bench/train_torch.py` is the other side, in a process and an interpreter of its own.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tools import targets
from tools.bench import operations
from tools.bench import step as bench_step
from tools.bench import target as bench_target
from transformer_jax import brought, config_json, optim, overrides
from transformer_jax import experiment as experiments
from transformer_jax.cli import process
from transformer_jax.data import corpus, image_sources, images, tables, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Experiment, Mesh, Train
from transformer_jax.models import bert, gpt, seq2seq, vit
from transformer_jax.tasks import Classification, ImageClassification, Translation
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.translation import bitext, parallel


def transformer(rows: int, **sizes: Any) -> Experiment:
    """The encoder-decoder of Vaswani et al. 2017, rows of 128 tokens a side."""
    ids: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "decoder_start_id": 0}
    return Experiment(
        model=seq2seq.Config(max_length=128, scan_layers=False, **ids, **sizes),
        data=parallel.ParallelText(
            bitext.Lines(("unread.en", "unread.de"), ("unread.en", "unread.de")), tokenizers.Bytes()
        ),
        task=Translation(label_smoothing=0.1),
        train=Train(batch_size=rows),
    )


def nanogpt_char(num_layers: int, num_heads: int, width: int, length: int, batch: int) -> Experiment:
    """nanoGPT's character model (config/train_shakespeare_char.py) in this size, without dropout."""
    model = gpt.Config(
        vocab_size=65, max_length=length, width=width, num_layers=num_layers, num_heads=num_heads,
        activation="gelu", bias=False, scan_layers=False,
    )  # fmt: skip
    return Experiment(
        model=model,
        data=corpus.TextCorpus(length=length),
        optim=optim.Optim(peak_lr=1e-3, warmup_steps=100, beta2=0.99),
        train=Train(batch_size=batch),
    )


SHAPES: dict[str, Callable[[], Experiment]] = {
    "gpt-4x128": lambda: nanogpt_char(4, 4, 128, 64, 12),
    "gpt-6x384": lambda: nanogpt_char(6, 6, 384, 256, 16),
    "bert-base": lambda: Experiment(  # fine-tuning: dropout on, one label a text
        model=bert.Config(heads=("classification",), scan_layers=False),
        data=labelled.LabelledText(tables.Table(("unread.tsv",)), tokenizers.Bytes(), length=128),
        task=Classification(),
        train=Train(batch_size=8),
        checkpoint=Checkpoint(best_metric="accuracy", best="highest"),
    ),
    "vit-s16": lambda: Experiment(  # images as they are: neither augmentation nor dropout
        model=vit.Config(**vit.SIZES["S"], scan_layers=False),
        data=images.ImageSet(image_sources.Folder("unread")),
        task=ImageClassification(),
        train=Train(batch_size=8),
        checkpoint=Checkpoint(best_metric="accuracy", best="highest"),
    ),
    "transformer-tiny": lambda: transformer(  # as Multi30k's
        32, vocab_size=10_000, width=256, num_layers=4, num_heads=4, mlp_width=1024
    ),
    "transformer-base": lambda: transformer(16, vocab_size=37_000),
    "gpt2-124m": lambda: Experiment(
        model=gpt.Config(vocab_size=50257), data=corpus.TextCorpus(length=1024), train=Train(batch_size=16)
    ),
    "llama3-8b": lambda: Experiment(  # a row of 8,192 tokens on each of 64 chips
        model=gpt.Config(
            vocab_size=128_256,
            max_length=8192,
            width=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            mlp_width=14_336,
            position="rotary",
            rope_theta=5e5,
            norm="rms",
            activation="silu",
            gated=True,
            bias=False,
            tie_embeddings=False,
            remat="full",
        ),
        data=corpus.TextCorpus(length=8192),
        train=Train(batch_size=64),
        mesh=Mesh(data=1, fsdp=64),
    ),
}

KINDS = {gpt.Config: "gpt", bert.Config: "bert", seq2seq.Config: "seq2seq", vit.Config: "vit"}  # for the torch side


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "shape",
        nargs="?",
        default="",
        help=f"{', '.join(SHAPES)}, or an experiment: MODULE[:VARIANT] or FILE[:VARIANT]",
    )
    parser.add_argument("--against", choices=["torch"], help="time PyTorch on the same shape, in turns with ours")
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter that has torch; default: this one")
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT whose model.py is the PyTorch side")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="CPU devices; default: one a core, if the batch divides"
    )
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="turns; default 10")
    parser.add_argument("--block-seconds", type=float, default=1.0, metavar="S", help="length of a block; default 1")
    parser.add_argument("--full-rows", action="store_true", help="of parallel text, one pair in a row, none packed")
    parser.add_argument("--profile", action="store_true", help="trace some steps, print the time by operation, and end")
    parser.add_argument(
        "--target", default="here", help="chips to compile for (tpu:v5p:2x2x1, cuda:h200:1x8); default: run here"
    )
    parser.add_argument("--compare", nargs=2, metavar="FILE", help="two files that --target --json wrote")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    options, overrides = parser.parse_known_args(arguments)
    try:
        if options.compare:
            print(bench_target.compare(*options.compare))
            return 0
        if options.target not in ("here", "cpu"):
            targets.without_chips()
        experiment = override(named(options.shape), overrides)
        if options.rounds < 1:
            raise InputError(f"--rounds {options.rounds}: give 1 or more")
        if options.json and not Path(options.json).resolve().parent.is_dir():
            raise InputError(f"--json {options.json}: no such folder")
        if options.target not in ("here", "cpu"):
            result = bench_target.measure(options.shape, experiment, bench_target.parse(options.target))
            print(bench_target.table(result))
            if options.json:
                Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            return 0
        process.keep_freed_memory(experiment)
        if options.devices is not None:
            jax.config.update("jax_num_cpu_devices", options.devices)
        else:
            process.use_cpu_cores(experiment)
        rows = pairs(experiment, options.full_rows)
        if options.profile:
            run, _, compiled = bench_step.prepare(experiment, rows)
            print(operations.report(run, compiled))
            return 0
        with contextlib.ExitStack() as stack:
            torch = None
            if options.against:
                torch = start_torch(experiment, rows, options.torch_python, options.nanogpt)
                stack.callback(torch.kill)  # whatever happens here; it has ended by itself after a measurement
            measured = measure(experiment, rows, torch, options.rounds, options.block_seconds)
            result = {"shape": options.shape, **measured}
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def named(shape: str) -> Experiment:
    """The experiment that a named shape or an experiment's module or file stands for."""
    if shape in SHAPES:
        return SHAPES[shape]()
    if "." not in shape and "/" not in shape:
        raise InputError(f"no shape {shape!r}; there are {', '.join(SHAPES)}; or give an experiment's module or file")
    target, _, variant = shape.partition(":")
    recipes = process.variants(brought.read(target)[0])
    if (variant or "experiment") not in recipes:
        raise InputError(f"{target} has no {variant or 'experiment'!r}; it has {', '.join(recipes) or 'none'}")
    return recipes[variant or "experiment"]()


def pairs(experiment: Experiment, full_rows: bool) -> list[bench_step.Row]:
    """What is in the rows of all batches where the text is parallel; elsewhere nothing needs to be known of them."""
    data = experiment.data
    if not isinstance(data, parallel.ParallelText):
        return []
    rows = bench_step.BATCHES * experiment.train.batch_size
    if full_rows:
        return [[(data.source_length, data.target_length)]] * rows
    return bench_step.pairs_in_rows(rows, data.source_length, data.target_length)


def override(experiment: Experiment, arguments: list[str]) -> Experiment:
    """With the fields that the rest of the command line names replaced."""
    return overrides.override(experiment, arguments, description="", program="tools.bench")


# ------------------------------------------------------------------------------------------------------ PyTorch's side


def start_torch(
    experiment: Experiment, rows: list[bench_step.Row], python: str | None, nanogpt: str | None
) -> subprocess.Popen[str]:
    """The process that trains the same model in PyTorch; it prints its facts as one line of JSON when it is ready.

    Errors: `InputError` when there is no torch, or the experiment is not one that nanoGPT's model covers.
    """
    if python is None:
        if importlib.util.find_spec("torch") is None:
            raise InputError(f"{sys.executable} has no torch; give --torch-python PATH of an interpreter that has")
        python = sys.executable
    model, cfg = experiment.model, experiment.optim
    kind = KINDS[type(model)]
    if not isinstance(cfg, optim.AdamW):
        raise InputError(f"optim is {type(cfg).__name__}; the torch side has AdamW alone")
    if nanogpt and kind != "gpt":
        raise InputError(f"--nanogpt {nanogpt}: nanoGPT's model is a GPT, and this experiment's a {kind}; leave it out")
    if nanogpt and not (Path(nanogpt) / "model.py").is_file():
        raise InputError(f"--nanogpt {nanogpt}: no model.py there; give the folder of a nanoGPT checkout")
    same: tuple[str, ...] = ("max_length", "width", "num_layers", "num_heads", "bias", "dropout", "activation", "dtype")
    same += {
        "gpt": ("vocab_size",),
        "bert": ("vocab_size", "heads", "num_labels"),
        "seq2seq": ("vocab_size", "mlp_width"),
        "vit": ("image_size", "patch_size", "channels", "num_classes", "norm_eps"),
    }[kind]
    if kind == "bert" and not isinstance(experiment.task, Classification):
        raise InputError("of the encoder's tasks the torch side has classification alone; give the shape bert-base")
    if kind == "seq2seq" and not isinstance(experiment.task, Translation):
        raise InputError("of encoder-decoders the torch side has translation alone; give the shape transformer-tiny")
    if kind == "vit" and experiment.task != ImageClassification(experiment.task.labels, experiment.task.preprocess):
        raise InputError("the torch side has softmax cross-entropy and images as they are; give the shape vit-s16")
    free: tuple[str, ...]
    free = ("init_std", "scan_layers", "remat", "attention")  # these do not change what is computed
    free += {"seq2seq": ("pad_id", "eos_id", "decoder_start_id"), "vit": ("initializer",)}.get(kind, ())
    for field in dataclasses.fields(model):
        if field.name not in same + free and getattr(model, field.name) != field.default:
            raise InputError(f"model.{field.name} {getattr(model, field.name)!r} has no counterpart on the torch side")
    has = ("gelu",) if nanogpt else ("relu", "gelu") if kind == "seq2seq" else ("gelu", "gelu_tanh")
    if model.activation not in has:
        raise InputError(
            f"model.activation {model.activation!r} is not on the torch side; give --model.activation {has[0]}"
        )
    if experiment.train.accumulate > 1 or experiment.ema.decay:
        raise InputError("train.accumulate and ema.decay have no counterpart on the torch side")
    wanted = {name: getattr(model, name) for name in same} | {
        "kind": kind,
        "dtype": experiments.compute_dtype(experiment.precision),
        "length": length(experiment),
        "batch_size": experiment.train.batch_size,
        "peak_lr": cfg.peak_lr,
        "betas": [cfg.beta1, cfg.beta2],
        "weight_decay": cfg.weight_decay,
        "clip_norm": cfg.clip_norm,
        "pairs": [pair for row in rows for pair in row],
        "label_smoothing": getattr(experiment.task, "label_smoothing", 0.0),
        "nanogpt": str(Path(nanogpt).resolve()) if nanogpt else None,
    }
    worker = Path(__file__).with_name("train_torch.py")
    return subprocess.Popen(
        [python, str(worker), json.dumps(wanted)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def length(experiment: Experiment) -> int:
    """Tokens of a row; of an image, its patches and what the model puts before them."""
    return getattr(experiment.data, "length", experiment.model.max_length)


def ask(process: subprocess.Popen[str], question: int | None = None) -> Any:
    """The next line of JSON from the torch process, after asking for that many steps."""
    assert process.stdin is not None and process.stdout is not None
    if question is not None:
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise InputError(f"the torch process ended with code {process.wait()}; its message is above")
    return json.loads(line)


# ---------------------------------------------------------------------------------------------------------- the turns


def measure(
    experiment: Experiment,
    rows: list[bench_step.Row],
    torch: subprocess.Popen[str] | None,
    rounds: int,
    block_seconds: float,
) -> dict[str, Any]:
    """Everything interleaved; the numbers as a tree that JSON can hold."""
    theirs = ask(torch) if torch is not None else None
    run, ours, _ = bench_step.prepare(experiment, rows)
    if theirs is not None and theirs["parameters"] != ours["parameters"]:
        raise InputError(f"parameters differ: {ours['parameters']:,} here, {theirs['parameters']:,} in torch")
    unit = experiment.task.unit
    product, product_flops = bench_step.prepare_matmul(experiments.compute_dtype(experiment.precision))

    def steps_per_block(block: bench_step.Block) -> int:
        return max(3, round(block_seconds / statistics.median(block(3))))

    steps, products = steps_per_block(run), steps_per_block(product)
    blocks: dict[str, list[list[float]]] = {"ours": [], "matmul": [], "torch": []}
    per_unit: dict[str, list[list[float]]] = {"ours": [], "torch": []}
    spent: dict[str, list[tuple[float, float]]] = {"ours": [], "torch": []}
    load = os.getloadavg()[0]
    for _ in range(rounds):
        cpu, faults = bench_step.spent()
        blocks["ours"].append(run(steps + 1)[1:])
        per_unit["ours"].append([seconds / ours[f"{unit}_per_step"] for seconds in blocks["ours"][-1]])
        cpu_now, faults_now = bench_step.spent()
        spent["ours"].append((cpu_now - cpu, faults_now - faults))
        blocks["matmul"].append(product(products + 1)[1:])
        if torch is not None:
            turn = ask(torch, steps + 1)
            blocks["torch"].append(turn["seconds"][1:])
            per_unit["torch"].append([s / n for s, n in zip(turn["seconds"][1:], turn["sizes"][1:], strict=True)])
            spent["torch"].append((turn["cpu_seconds"], turn["page_faults"]))
    rate = product_flops / statistics.median(list(itertools.chain(*blocks["matmul"])))
    ours |= bench_step.peak_memory()
    sides = {"ours": ours} | ({"torch": theirs} if theirs is not None else {})
    for name, side in sides.items():
        seconds = np.array(list(itertools.chain(*blocks[name])))
        p10, median, p90 = np.percentile(seconds, [10, 50, 90]).tolist()
        units_per_second = 1 / statistics.median(itertools.chain(*per_unit[name]))
        flops_per_second = ours["flops_per_step"] / ours[f"{unit}_per_step"] * units_per_second
        side |= {
            "steps_timed": len(seconds),
            "step_ms": {"median": 1e3 * median, "p10": 1e3 * p10, "p90": 1e3 * p90},
            "cpu_ms_per_step": 1e3 * statistics.median(cpu for cpu, _ in spent[name]) / (steps + 1),
            "page_faults_per_step": statistics.median(faults for _, faults in spent[name]) / (steps + 1),
            f"{unit}_per_second": units_per_second,
            "flops_per_second": flops_per_second,
            "share_of_matmul_rate": flops_per_second / rate,
        }
    result: dict[str, Any] = {
        "model": config_json.to_json(experiment.model),
        "batch_size": experiment.train.batch_size,
        "length": length(experiment),
        "unit": unit,
        "machine": machine(),
        "load_average_before": load,
        "matmul_flops_per_second": rate,
        "compilation_cache": jax.config.values["jax_compilation_cache_dir"] or "no compilation cache",
        "matmul_dtype": experiments.compute_dtype(experiment.precision),
        "ours": ours,
    }
    if torch is not None and theirs is not None:
        result["torch"] = theirs | ask(torch, 0)  # 0: the end
        torch.wait()
        turns = zip(per_unit["ours"], per_unit["torch"], strict=True)
        ratios = [statistics.median(a) / statistics.median(b) for a, b in turns]
        p10, median, p90 = np.percentile(ratios, [10, 50, 90]).tolist()
        result["ours_over_torch"] = {"median": median, "p10": p10, "p90": p90, "rounds": rounds}
    return result


def machine() -> dict[str, Any]:
    """The hardware and the versions that the numbers belong to."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    devices = jax.devices()
    return {
        "processor": processor or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "optax")},
    }


def table(result: dict[str, Any]) -> str:
    """The numbers for people."""
    facts, ours, theirs, unit = result["machine"], result["ours"], result.get("torch"), result["unit"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "jax", "jaxlib"))
    busy = (
        " (BUSY with other work: times and ratios are not to be quoted)" if result["load_average_before"] > 0.5 else ""
    )
    lines = [
        f"{result['shape']}: batch {result['batch_size']}, length {result['length']}, "
        f"{ours['parameters']:,} parameters, {ours['flops_per_step'] / 1e9:,.2f} GFLOP a step (PaLM, appendix B)",
        f"{facts['processor']}, {facts['cores']} cores; {facts['devices']}; {versions}; "
        f"load average {result['load_average_before']:.1f}" + busy,
        f"{result['matmul_dtype']} products on all devices: {result['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s",
        "",
        f"{'':16}{'step, median':>14}{'p10':>10}{'p90':>10}{'CPU ms':>10}"
        f"{unit + '/s':>12}{'GFLOP/s':>10}{'of matmul':>11}",
    ]
    sides = [("transformer_jax", ours)] + ([(theirs["name"], theirs)] if theirs else [])
    for name, side in sides:
        ms = side["step_ms"]
        lines.append(
            f"{name:16}{ms['median']:11.2f} ms{ms['p10']:10.2f}{ms['p90']:10.2f}{side['cpu_ms_per_step']:10.2f}"
            f"{side[f'{unit}_per_second']:12,.{0 if unit == 'tokens' else 1}f}"
            f"{side['flops_per_second'] / 1e9:10,.0f}{side['share_of_matmul_rate']:11.1%}"
        )
    if theirs:
        ratio = result["ours_over_torch"]
        lines.append(
            f"{'ours / theirs':16}{ratio['median']:11.3f}   {ratio['p10']:10.3f}{ratio['p90']:10.3f}   "
            f"(of {ratio['rounds']} rounds; {theirs['versions']}, {theirs['threads']} threads)"
        )
    peak = ours.get("peak_device_bytes") or ours["peak_resident_bytes"]
    compiled = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in ours["compiled_bytes_per_device"].items())
    lines += [
        "",
        f"tracing {ours['seconds_tracing']:.2f} s, compiling {ours['seconds_compiling']:.2f} s "
        f"({result['compilation_cache']}), first step done after {ours['seconds_to_first_step']:.2f} s, imports apart",
        f"memory: peak {'resident' if 'peak_resident_bytes' in ours else 'of a device'} {peak / 2**20:,.0f} MiB"
        + (f" (torch {theirs['peak_resident_bytes'] / 2**20:,.0f})" if theirs else "")
        + f", {ours['page_faults_per_step']:,.0f} page faults a step"
        + (f" ({theirs['page_faults_per_step']:,.0f})" if theirs else "")
        + f"; by the compiler, MiB a device: {compiled}",
    ]
    return "\n".join(lines)
