"""Pre-flight: arithmetic that equals what the real compilers said, rooflines by hand, refusals that help."""

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import jax
import pytest

from tools import preflight, targets
from tools.fixtures import make_preflight
from tools.targets import compiled, footprint, roofline
from transformer_jax import chips, kernels, models
from transformer_jax.experiment import Experiment, Mesh
from transformer_jax.nn import params as params_lib
from transformer_jax.train import program as programs

COMPILED = json.loads(make_preflight.PATH.read_text())
SMALL = "experiments.causal_lm.gpt2_small"


def experiment(case: str) -> Experiment:
    return preflight.read(shlex.split(case)).experiment


# ------------------------------------------------------------------------------------------------------------- memory


def _marked(case: str) -> Any:
    """The first case of each family on GPUs and on TPUs always; tracing all of them takes half a minute."""

    def kind(case: str) -> tuple[str, str]:
        return case.split()[0], case.partition("--target ")[2].partition(":")[0]

    first = case == next(other for other in COMPILED if kind(other) == kind(case))
    return pytest.param(case, marks=[] if first else [pytest.mark.slow])


@pytest.mark.parametrize("case", [_marked(case) for case in COMPILED])
def test_arithmetic_equals_the_compilers_total_within_a_tenth_or_a_quarter_of_a_gigabyte(case):
    request, step = preflight.read(case.split()), COMPILED[case]
    need = footprint.footprint(request.experiment, request.target)
    # A quarter of a GB is the working memory of kernels that the arithmetic leaves out, which counts in small steps.
    assert need.total == pytest.approx(step["total"], rel=0.10, abs=0.25e9)
    # What a step is given is declared, so it is exact, up to how the compilers pad small arrays.
    assert need.params + need.moments + need.ema + need.batch == pytest.approx(step["arguments"], rel=0.02)


def test_the_cases_are_of_every_family_and_policy():
    cases, others = make_preflight.CASES, make_preflight.HELD_OUT
    found = {(case.split()[0], case.partition("--model.remat ")[2].split()[0]) for case in cases}
    families = {"gpt", "bert", "seq2seq", "vit"}  # the others are of the blocks of these
    assert families <= set(models.FAMILIES) and len(found) == len(families) * 3 and COMPILED.keys() == {*cases, *others}


def test_state_is_divided_as_it_is_laid_out():
    target = targets.parse("cuda:h100:1x8")
    plain = experiment(f"{SMALL} --target {target.name} --train.accumulate 2 --ema.decay 0.99")
    count = params_lib.count(models.family(plain.model).declare(plain.model))
    whole = footprint.footprint(plain, target)
    assert (whole.params, whole.ema) == (4 * count, 4 * count)
    assert whole.moments == 8 * count + 4  # and the count of updates
    assert whole.gradients == 8 * count  # the sum over micro-batches, and one's
    shared = footprint.footprint(dataclasses.replace(plain, mesh=Mesh(1, 8, 1, 1)), target)
    assert whole.params / 8 <= shared.params < whole.params / 7.9  # biases and scales of norms are whole everywhere


def test_activations_follow_the_rows_of_a_device_and_its_heads():
    one = experiment(f"{SMALL} --target cuda:h100:1x8 --train.accumulate 1 --train.batch-size 16 --model.remat none")
    target = targets.parse("cuda:h100:1x8")
    two = dataclasses.replace(one, train=dataclasses.replace(one.train, batch_size=32))
    kept, twice = footprint.saved(one, target), footprint.saved(two, target)
    assert twice.stacked == pytest.approx(2 * kept.stacked, rel=1e-3)  # biases are there once
    even = dataclasses.replace(one, model=dataclasses.replace(one.model, vocab_size=50304))
    cut = footprint.saved(dataclasses.replace(even, mesh=Mesh(1, 4, 1, 2)), target)
    # Twice the rows and half the heads: what has no heads or features of the MLP is twice as much, the rest as before.
    assert kept.stacked < cut.stacked < 2 * kept.stacked


@pytest.mark.parametrize(("target", "single"), [("tpu:v5p:2x2x1", "tpu:v5p:1x1x1"), ("cuda:h100:1x4", "cuda:h100:1x1")])
def test_four_devices_hold_what_one_does_with_a_quarter_of_the_rows_dropout_too(target, single):
    small = "experiments.mlm.bert_base --data.length 128 --model.num-layers 2 --model.remat none --model.dropout 0.1"
    four = preflight.read(f"{small} --target {target} --mesh.fsdp 4 --train.batch-size 32".split())
    one = preflight.read(f"{small} --target {single} --train.batch-size 8".split())
    kept, alone = (footprint.saved(r.experiment, r.target) for r in (four, one))
    assert kept.stacked == pytest.approx(alone.stacked, rel=1e-3)


def test_unrolled_layers_keep_what_scanned_ones_do():
    target = targets.parse("cuda:h100:1x1")
    scanned = experiment(f"{SMALL} --target {target.name} --train.accumulate 1 --train.batch-size 2")
    model = dataclasses.replace(scanned.model, scan_layers=False)
    unrolled = dataclasses.replace(scanned, model=model)
    kept, need = footprint.saved(unrolled, target), footprint.footprint(unrolled, target)
    assert kept.total == pytest.approx(footprint.saved(scanned, target).total, rel=0.02)
    assert need.block == pytest.approx(footprint.footprint(scanned, target).block, rel=0.02) and need.block > 0


def test_each_policy_keeps_less_and_the_same_with_or_without_cudnn_here():
    target = targets.parse("cuda:h100:1x1")
    base = experiment(f"{SMALL} --target {target.name} --train.accumulate 1 --train.batch-size 2")
    kept = {}
    for remat in ("none", "dots", "full"):
        model = dataclasses.replace(base.model, remat=remat)
        kept[remat] = footprint.saved(dataclasses.replace(base, model=model), target).stacked
    assert kept["full"] < kept["dots"] < kept["none"]
    L, B, T, D = 12, 2, 1024, 768
    assert kept["full"] == 2 * L * B * T * D  # each block's input, in bfloat16
    assert kept["none"] < 4 * L * B * 12 * T * T  # cuDNN keeps no scores


# ---------------------------------------------------------------------------------------------------------- rooflines


def rooflines(case: str, **mesh: int) -> roofline.Estimate:
    request = preflight.read(case.split())
    made = dataclasses.replace(request.experiment, mesh=Mesh(**mesh))
    abstract = request.target.abstract_mesh(**mesh)
    program = programs.make(made, abstract, platform=request.target.platform)
    return roofline.estimate(made, program, request.target, abstract, saved=1e9)


def test_rooflines_by_hand():
    case = f"{SMALL} --target tpu:v5e:4x4 --train.accumulate 1 --train.batch-size 64"
    plain = rooflines(case, data=16)
    count = 124_439_808
    tokens = 64 * 1024 / 16
    kernels = count - (50257 + 1024) * 768 - 12 * (4 * 768 + 4 * 768 + 768 + 2 * 2 * 768 + 768) - 2 * 768 + 50257 * 768
    assert plain.flops == pytest.approx(tokens * (6 * kernels + 12 * 12 * 768 * 1024), rel=2e-3)
    assert plain.compute == plain.flops / 197e12
    # Gradients, summed once: 2 (n - 1) / n of 2 bytes a parameter, over both axes. 4 x 4 chips do not wrap
    # around: one link each.
    assert plain.sent["data"].bytes == pytest.approx(2 * 15 / 16 * 2 * count)
    assert plain.sent["data"].seconds == pytest.approx(plain.sent["data"].bytes / (2 * 50e9))
    assert plain.best == max(plain.compute, plain.memory, plain.links) and plain.worst > plain.best
    assert plain.mfu(plain.compute) == pytest.approx(1.0)
    full = rooflines(f"{case} --model.remat full", data=16)
    assert full.executed == pytest.approx(4 / 3 * plain.flops) and full.flops == plain.flops


def test_a_mesh_axis_takes_the_axes_of_the_torus_that_multiply_to_it():
    target = targets.parse("tpu:v5p:4x4x8")
    sizes = dict(zip(("data", "fsdp", "sequence", "tensor"), (4, 4, 1, 8), strict=True))
    assert roofline.routes(target, sizes) == {"tensor": 2, "fsdp": 2, "data": 2}
    assert roofline.routes(target, {**sizes, "data": 16, "fsdp": 1}) == {"tensor": 2, "data": 4}
    assert roofline.routes(target, {**sizes, "data": 64, "tensor": 2, "fsdp": 1}) == {"tensor": 0, "data": 0}
    assert roofline.routes(targets.parse("tpu:v5p:2x2x2"), {**sizes, "data": 1, "fsdp": 8, "tensor": 1}) == {"fsdp": 3}


def test_what_leaves_a_host_goes_over_its_network():
    target = targets.parse("cuda:h100:4x8")
    sizes = dict(zip(("data", "fsdp", "sequence", "tensor"), (4, 8, 1, 1), strict=True))
    inside = roofline.crossing(target, sizes, "fsdp", 7e9, {})
    assert inside.seconds == 7e9 / 450e9 and "switch" in inside.where
    # One GPU of each of four hosts: everything it sends goes over its own adapter.
    across = roofline.crossing(target, sizes, "data", 3e9, {})
    assert across.seconds == pytest.approx(3e9 / 50e9) and "4 hosts" in across.where


# -------------------------------------------------------------------------------------------- refusals and other input


def test_what_does_not_fit_is_refused_with_the_nearest_mesh_that_does(capsys):
    case = f"{SMALL} xl --target tpu:v5e:2x2 --mesh.fsdp 1 --train.batch-size 4"
    assert preflight.main([*case.split(), "--analytic"]) == 2
    shown = capsys.readouterr()
    assert not shown.out and len(shown.err.splitlines()) == 1
    assert "does not fit tpu:v5e:2x2" in shown.err and "the nearest that fits is --mesh.fsdp 4 (" in shown.err
    assert preflight.main([*case.replace("--mesh.fsdp 1", "--mesh.fsdp 4").split(), "--analytic"]) == 0
    printed = capsys.readouterr().out
    for words in ("1,557.6 M parameters", "activations kept", "GB a link", "nothing overlapped", "chip-hours", "MFU"):
        assert words in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"{SMALL}", "--target is missing"),
        (f"{SMALL} --target tpu:v9:4x4", "no chip tpu:v9"),
        (f"{SMALL} --target tpu:v5p:4x4", "not a shape of v5p; give 3 sizes"),
        (f"{SMALL} --target v5p:2x2x1", "write the maker first, tpu:v5p:2x2x1"),
        (f"{SMALL} --target cuda:h100:2x9", "a host has up to 8 h100"),
        (f"{SMALL} --target cuda:h100:8", "not a shape of h100; give 2 sizes"),
        (f"{SMALL} nano --target cuda:h100:1x8", "no variant 'nano'; it has experiment, text"),
        (f"{SMALL} --target cuda:h100:1x8 --mesh.fdsp 8", "the nearest is --mesh.fsdp"),
        (f"{SMALL} --target cuda:h100:1x8 --mesh.fsdp 3", "do not multiply to the 8 devices"),
        (f"{SMALL} --target cuda:h100:1x8 --analytic --mesh.tensor 8", "does not divide"),
        ("--target cuda:h100:1x8", "give an experiment first"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    assert preflight.main(arguments.split()) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and said in shown.err


def test_targets_read_back_and_grow():
    for name in ("tpu:v5p:4x4x4", "tpu:v5e:16x16", "cuda:h100:4x8", "tpu:v7:2x2x1"):
        assert targets.parse(name).name == name
    assert targets.parse("tpu:v7:2x2x1").num_devices == 8  # two devices a chip
    assert targets.parse("tpu:v5p:4x4x4").resized(512).shape == (8, 8, 8)
    assert targets.parse("tpu:v5e:4x4").resized(32).shape == (8, 4)
    assert targets.parse("cuda:h100:1x4").resized(16).shape == (2, 8)
    mesh = targets.parse("tpu:v5p:4x4x4").abstract_mesh(fsdp=8)
    assert dict(mesh.shape) == {"data": 8, "fsdp": 8, "sequence": 1, "tensor": 1}
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernels.target_platform() == "tpu"


@pytest.mark.parametrize(
    ("name", "wrap", "machine"),
    [
        ("v5p:4x4x4", (True, True, True), (2, 2, 1)),
        ("v5p:8x8x12", (True, True, True), (2, 2, 1)),
        ("v5p:2x4x4", (False, False, False), (2, 2, 1)),
        ("v5p:1x1x1", (False, False, False), (1, 1, 1)),
        ("v7:4x4x8", (True, True, True), (2, 2, 1)),
        ("v5e:16x16", (True, True, False), (2, 2, 1)),
        ("v6e:8x16", (False, True, False), (2, 2, 1)),
        ("v5e:8x8", (False, False, False), (2, 2, 1)),
    ],
)
def test_slices_wrap_around_as_they_are_built(name, wrap, machine):
    target = targets.parse(f"tpu:{name}")
    assert target.chip.wrap(target.shape) == wrap and target.chip.machine(target.shape) == machine


def test_every_chip_says_where_its_figures_are_published():
    folder = Path(targets.__file__).parent / "gpus"
    for chip in chips.CHIPS.values():
        assert chip.sources and all(source.startswith("https://") for source in chip.sources)
        assert chip.flops > 1e14 and 1e10 < chip.memory < 1e12 and math.isfinite(chip.bandwidth)
        assert chip.maker == "tpu" or (folder / f"{chip.name}.txtpb").is_file()


# --------------------------------------------------------------------------------------------------- the real compilers


def test_a_refusal_is_read_in_either_form():
    long = "Ran out of memory in memory space hbm. Used 17.23G of 15.75G hbm. Exceeded hbm capacity by 1.48G."
    short = "the total memory required for HLO temporaries (15.78G) exceeds available HBM (15.75G). HLO module"
    assert compiled.needed(long) == "17.23GiB of 15.75GiB" and compiled.needed(short) == "15.78GiB of 15.75GiB"
    assert compiled.needed("RESOURCE_EXHAUSTED") == "more than there is"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), [("tpu:v5e:2x2", "libtpu"), ("cuda:h100:1x4", "jax_cuda13_plugin")])
def test_the_compiler_agrees_today(name, module):
    pytest.importorskip(module, reason="the compiler is not installed: tools/install target-tpu target-gpu")
    targets.without_chips()
    small = f"{SMALL} --target {name} --mesh.fsdp 4 --model.num-layers 4 --model.remat dots --train.accumulate 1"
    request = preflight.read(f"{small} --train.batch-size 16".split())
    step = compiled.compile_step(request.experiment, request.target)
    assert footprint.footprint(request.experiment, request.target).total == pytest.approx(step.total, rel=0.10)
    assert step.sent["fsdp"] > 0 and "data" not in step.sent


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5p:4x4x4", "tpu:v5e:16x16"])
def test_fsdp_gathers_weights_on_a_torus(target):
    """A slice that is described without its links sums whole weights over all chips, which sends twice the bytes."""
    pytest.importorskip("libtpu", reason="the compiler is not installed: tools/install target-tpu")
    targets.without_chips()
    shape = "--model.num-layers 2 --model.width 1024 --model.num-heads 8 --model.remat full"
    mesh = "--mesh.data 1 --mesh.fsdp -1 --train.accumulate 1 --train.batch-size 256"
    request = preflight.read(f"{SMALL} --target {target} {mesh} {shape}".split())
    step = compiled.compile_step(request.experiment, request.target)
    weights = 2 * 12 * 1024**2 * 2  # bytes in bfloat16 of the blocks
    gathered = sum(nbytes for name, (_, nbytes) in step.collectives.items() if name.startswith("all-gather"))
    summed = sum(nbytes for name, (_, nbytes) in step.collectives.items() if name.startswith("all-reduce"))
    assert gathered >= 2 * weights and gathered > 2 * summed, step.collectives  # forward, and again on the way back
