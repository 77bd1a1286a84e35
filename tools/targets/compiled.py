"""A training step as the real compiler of a target makes it, without the chips: its memory, and what it sends.

    c = compiled.compile_step(experiment, targets.parse("tpu:v5e:16x16"))
    c.total, c.sent        # bytes on one device; bytes that a device sends along each mesh axis

Takes half a minute to some minutes on two cores, whatever the depth where layers are scanned.
"""

import dataclasses
import re
import time
from dataclasses import dataclass

import jax

from tools.targets import Target, hlo
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.train import program as programs

# How libtpu says what it needs and what there is.
REFUSALS = (r"Used ([\d.]+\w) of ([\d.]+\w)", r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)")


class TooLarge(InputError):
    """The compiler refuses a program that does not fit into the chip's memory."""


@dataclass(frozen=True)
class Step:
    """What the compiler says of a training step, for one device.

    Fields:
      arguments, temporaries, outputs, aliased: bytes, of `memory_analysis()`. On TPUs the temporaries are more than are
        there at once.
      total: bytes of the device's memory that the step needs, its arguments included, and by which the compiler refuses
        a step: what its buffers take, the donated counted once.
      sent: {"data": bytes, ...}, sent in a step along a mesh axis; "data+fsdp" where a collective goes along both.
      collectives: {"all-gather fsdp": (times, bytes)} of a step.
      seconds: that compiling took.
      text: the compiled module.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    total: int
    sent: dict[str, float]
    collectives: dict[str, tuple[int, int]]
    seconds: float
    text: str


def needed(refusal: str) -> str:
    """What a compiler's refusal says is needed, and of how much."""
    said = next(filter(None, (re.search(form, refusal) for form in REFUSALS)), None)
    return f"{said[1]}iB of {said[2]}iB" if said else "more than there is"


def compile_step(experiment: Experiment, target: Target) -> Step:
    """Compiles the step. Errors: `TooLarge` with the compiler's own sum, `InputError` for a mesh that does not fit the
    target or a compiler that is not installed."""
    mesh = target.mesh(**dataclasses.asdict(experiment.mesh))
    program = programs.make(experiment, mesh, platform=target.platform)
    key = jax.eval_shape(lambda: jax.random.key(0))
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = program.step.lower(program.state, program.batch, key)
        try:
            step = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLarge(f"the compiler refuses it: {needed(str(error))} of a {target.chip.name}'s memory") from None
    memory = step.memory_analysis()
    took, text = time.perf_counter() - began, step.as_text()
    found, sizes = hlo.collectives(text, partitions=mesh.size), dict(mesh.shape)
    sent: dict[str, float] = {}
    for one in found:
        axis = "+".join(hlo.axes(one, sizes))
        sent[axis] = sent.get(axis, 0.0) + one.count * one.sent
    totals = {f"{kind} {'+'.join(axes)}": (t.times, t.bytes) for (kind, axes), t in hlo.totals(found, sizes).items()}
    return Step(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        # Up to JAX 0.10 the buffers' sum is not told; their peak leaves out the gaps between them, a hundredth at most.
        total=getattr(memory, "total_allocation_bytes", memory.peak_memory_in_bytes),
        sent=sent,
        collectives=totals,
        seconds=took,
        text=text,
    )
