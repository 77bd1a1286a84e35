"""Estimates a run before you pay for it: its memory on chips that you do not have, the time of a step and of the run.

    tools/run tools.preflight experiments.causal_lm.gpt2_small --target tpu:v5p:4x4x4 --mesh.fsdp 8 [OVERRIDES]
    tools/run tools.preflight experiments.causal_lm.gpt2_small xl --target cuda:h100:1x8 --analytic

It prints parameters, FLOPs, memory of each device by kind and for each remat policy, traffic between devices, the time
of a step by rooflines, and the days of the run. A run that does not fit is refused (exit code 2) with the nearest mesh
that does. If the target's compiler is installed (tools/install target-tpu, or target-gpu), it compiles the step, which
takes minutes, and its memory decides. Otherwise, and with --analytic, arithmetic decides in seconds
(targets/footprint.py).
"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from tools import targets
from tools.targets import Target, compiled, footprint, roofline
from tools.targets.footprint import Footprint
from transformer_jax import brought, overrides
from transformer_jax.cli import process
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Mesh
from transformer_jax.nn import params as params_lib
from transformer_jax.nn.stack import REMAT
from transformer_jax.train import program as programs

USABLE = 0.92  # share of a chip's memory; the runtime, the program and gaps between arrays need the rest

KINDS = {  # {field of a Footprint: its name in the report}
    "params": "parameters",
    "moments": "moments",
    "ema": "average (EMA)",
    "batch": "batch",
    "gradients": "gradients",
    "weights": "kernels in the compute dtype",
    "activations": "activations kept",
    "head": "output matrix's gradient",
    "logits": "logits and loss",
    "block": "a block's working memory",
    "reused": "not at the same time",
}


@dataclass(frozen=True)
class Request:
    """A parsed command line.

    Attributes:
      name: of the experiment and its variant.
      experiment: to run.
      target: the chips.
      analytic: whether to use arithmetic even if the compiler is installed.
    """

    name: str
    experiment: Experiment
    target: Target
    analytic: bool


def read(arguments: list[str]) -> Request:
    """The request of a command line.

    Args:
      arguments: of the command line.

    Raises:
      InputError: an unknown experiment, variant, flag or target; the message names the nearest one.
    """
    import tyro

    if not arguments or arguments[0].startswith("-"):
        raise InputError("give an experiment first, such as experiments.causal_lm.gpt2_small --target tpu:v5p:4x4x4")
    module, _ = brought.read(arguments[0])
    recipes, rest = process.variants(module), arguments[1:]
    chosen = rest.pop(0) if rest and not rest[0].startswith("-") else "experiment"
    if chosen not in recipes:
        raise InputError(f"{arguments[0]} has no variant {chosen!r}; it has {', '.join(recipes) or 'no experiment()'}")
    default = recipes[chosen]()

    @dataclass(frozen=True)
    class Asked:
        target: str = ""
        """Chips: tpu:v5p:4x4x4, a slice, or cuda:h100:4x8, hosts x GPUs of a host."""
        analytic: bool = False
        """Use only arithmetic, which takes seconds; otherwise the target's compiler decides, if it is installed."""
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(
            default_factory=lambda: default, metadata={"flat": True}
        )

    asked = overrides.override(Asked(), rest, description=__doc__ or "", program=f"tools.preflight {arguments[0]}")
    if not asked.target:
        raise InputError("--target is missing; give chips, such as --target tpu:v5p:4x4x4 or --target cuda:h100:4x8")
    shown = arguments[0] if chosen == "experiment" else f"{arguments[0]} {chosen}"
    return Request(shown, asked.experiment, targets.parse(asked.target), asked.analytic)


# ---------------------------------------------------------------------------------------------------------- what fits


def capacity(target: Target) -> float:
    """The bytes of memory that a step may use on a device of `target`."""
    return USABLE * target.chip.memory / target.chip.devices


def candidates(experiment: Experiment, target: Target) -> Iterator[tuple[Experiment, Target]]:
    """Yields other ways to run an experiment, the nearest first.

    Parameters are sharded over more devices, more is recomputed, the tensor axis grows, the batch is split into more
    parts; then the same on twice as many chips, and so on.

    Args:
      experiment: to run.
      target: the chips.
    """
    policies = list(REMAT)
    worse = policies[policies.index(experiment.model.remat) :]
    for doubling in range(6):
        chips = target if doubling == 0 else target.resized(target.num_chips << doubling)
        now, n = experiment.mesh, chips.num_devices
        sizes = [2**i for i in range(int(math.log2(n)) + 1) if n % 2**i == 0]
        for accumulate in (1, 4, 16):
            train = dataclasses.replace(experiment.train, accumulate=experiment.train.accumulate * accumulate)
            for tensor in (size for size in sizes if now.tensor <= size <= 8):
                for remat in worse:
                    for fsdp in sizes:
                        if (
                            fsdp < now.fsdp
                            or n % (fsdp * tensor * now.sequence)
                            or experiment.train.batch_size % (n // (tensor * now.sequence) * train.accumulate)
                        ):
                            continue
                        mesh = Mesh(n // (fsdp * tensor * now.sequence), fsdp, now.sequence, tensor)
                        model = dataclasses.replace(experiment.model, remat=remat)
                        yield dataclasses.replace(experiment, mesh=mesh, model=model, train=train), chips


def nearest_that_fits(experiment: Experiment, target: Target, *, tries: int = 60) -> str:
    """The overrides of the first candidate that fits, by arithmetic; "": none fits.

    Args:
      experiment: to run.
      target: the chips.
      tries: the most candidates.
    """
    for count, (other, chips) in enumerate(candidates(experiment, target)):
        if count == tries:
            break
        try:
            need = footprint.footprint(other, chips).total
        except InputError:
            continue  # a dimension that does not divide
        if need <= capacity(chips):
            return f"{changes(experiment, target, other, chips)} ({need / 1e9:.1f} GB)"
    return ""


def changes(experiment: Experiment, target: Target, other: Experiment, chips: Target) -> str:
    """The flags that change one experiment into another.

    Args:
      experiment: as it is.
      target: its chips.
      other: as it should be.
      chips: those of `other`.
    """
    flags = [f"--target {chips.name}"] if chips != target else []
    flags += [f"--mesh.{axis} {size}" for axis, size in dataclasses.asdict(other.mesh).items() if size > 1]
    if other.model.remat != experiment.model.remat:
        flags.append(f"--model.remat {other.model.remat}")
    if other.train.accumulate != experiment.train.accumulate:
        flags.append(f"--train.accumulate {other.train.accumulate}")
    return " ".join(flags)


def refusal(request: Request, need: str) -> InputError:
    """The error for a run that does not fit.

    Args:
      request: of the run.
      need: the memory that it needs, as text.
    """
    other = nearest_that_fits(request.experiment, request.target)
    advice = f"the nearest that fits is {other}" if other else "no mesh of up to 32 times the chips was found to fit"
    return InputError(f"{request.name} does not fit {request.target.name}: {need}; {advice}")


# --------------------------------------------------------------------------------------------------------- the report


def report(request: Request) -> Iterator[str]:
    """Yields the lines of the report for a `request`.

    Raises:
      InputError: it cannot run, or does not fit.
    """
    experiment, target = request.experiment, request.target
    train, mesh = experiment.train, target.abstract_mesh(**dataclasses.asdict(experiment.mesh))
    program = programs.make(experiment, mesh, platform=target.platform)
    need = footprint.footprint(experiment, target)
    room = capacity(target)
    step = None
    if target.compiles() and not request.analytic:
        try:
            step = compiled.compile_step(experiment, target)
        except compiled.TooLarge as error:
            raise refusal(request, str(error)) from None
    total = step.total if step else need.total
    if total > room:
        raise refusal(
            request,
            f"a device needs {total / 1e9:.1f} GB, but {room / 1e9:.1f} of {room / USABLE / 1e9:.1f} GB are usable",
        )

    sizes = dict(mesh.shape)
    shape = ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"
    flops = experiment.task.flops(experiment.model, experiment.data) * train.batch_size
    yield f"{request.name} on {target.name}: {target.num_chips} chips, mesh {shape}"
    yield (
        f"{params_lib.count(program.declaration) / 1e6:,.1f} M parameters; {train.batch_size:,} examples and "
        f"{flops:.3g} FLOPs a step, {flops / target.num_devices:.3g} on each device; remat {experiment.model.remat}"
    )
    yield ""
    yield from _memory(request, need, step, room)
    yield ""
    yield from _time(request, program, mesh, need, step)


def _memory(request: Request, need: Footprint, step: compiled.Step | None, room: float) -> Iterator[str]:
    yield "memory of each device, GB (arithmetic)"
    for field_name, what in KINDS.items():
        size = getattr(need, field_name) / 1e9
        yield f"  {what:30}{-size if field_name == 'reused' else size:10.3f}"
    yield f"  {'all':30}{need.total / 1e9:10.3f}   of {room / 1e9:.1f} usable"
    if step:
        yield (
            f"  {'by the compiler':30}{step.total / 1e9:10.3f}   of which arguments {step.arguments / 1e9:.3f}; "
            f"compiled in {step.seconds:.0f} s; arithmetic / compiler {need.total / step.total:.2f}"
        )
    yield "  at each remat policy (activations kept, all)"
    for remat in REMAT:
        model = dataclasses.replace(request.experiment.model, remat=remat)
        other = footprint.footprint(dataclasses.replace(request.experiment, model=model), request.target)
        fits = "" if other.total <= room else "   does not fit"
        yield f"    {remat:28}{other.activations / 1e9:10.3f}{other.total / 1e9:10.3f}{fits}"


def _time(
    request: Request, program: programs.Program, mesh: Any, need: Footprint, step: compiled.Step | None
) -> Iterator[str]:
    experiment, target = request.experiment, request.target
    whose = "the compiler's collectives" if step else "by the shardings"
    estimate = roofline.estimate(
        experiment, program, target, mesh, saved=need.activations, sent=step.sent if step else None
    )
    yield f"sent by each device in a step ({whose})"
    for axis, sent in estimate.sent.items():
        yield (
            f"  {axis:14}{sent.bytes / 1e9:10.3f} GB   {sent.bytes / sent.links / 1e9:8.3f} GB a link   "
            f"{sent.seconds * 1e3:8.2f} ms over {sent.where}"
        )
    if not estimate.sent:
        yield "  nothing"
    yield ""
    yield "a step, by rooflines (estimated)"
    yield f"  compute       {estimate.compute * 1e3:10.2f} ms   {estimate.executed:.3g} FLOPs at {estimate.peak:.3g}/s"
    yield f"  memory        {estimate.memory * 1e3:10.2f} ms   {estimate.traffic / 1e9:.2f} GB at least"
    yield f"  interconnect  {estimate.links * 1e3:10.2f} ms"
    steps = experiment.train.steps
    for what, seconds in (("all overlapped", estimate.best), ("nothing overlapped", estimate.worst)):
        days = steps * seconds / 86_400
        yield (
            f"  {what:20}{seconds * 1e3:10.2f} ms, MFU {100 * estimate.mfu(seconds):.0f} %: {steps:,} steps are "
            f"{days:.2f} days, {days * 24 * target.num_chips:,.0f} chip-hours"
        )


def main(arguments: list[str]) -> int:
    """Prints the report for the command line `arguments` and returns the exit code."""
    targets.without_chips()
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        for line in report(read(arguments)):
            print(line, flush=True)
    except InputError as error:
        print(f"preflight: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
