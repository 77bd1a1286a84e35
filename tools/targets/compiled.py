"""Compiles a training step by a target's own compiler, without the chips: its memory and its collectives.

    c = compiled.compile_step(experiment, targets.parse("tpu:v5e:16x16"))
    c.total, c.sent        # bytes on one device; bytes that a device sends along each mesh axis

It takes half a minute to a few minutes on two cores, whatever the depth, if layers are scanned.
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

# libtpu's messages of the memory that a program needs and the memory of the chip.
REFUSALS = (r"Used ([\d.]+\w) of ([\d.]+\w)", r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)")


class TooLarge(InputError):
    """The compiler refuses a program that needs more memory than the chip has."""


@dataclass(frozen=True)
class Step:
    """A compiled training step on one device.

    Attributes:
      arguments: bytes, by `memory_analysis()`.
      temporaries: bytes, by `memory_analysis()`; on TPUs, not all of them exist at the same time.
      outputs: bytes, by `memory_analysis()`.
      aliased: bytes, by `memory_analysis()`.
      total: bytes of memory that the step needs, arguments included and donated buffers counted once. By this number
        the compiler refuses a step.
      sent: {"data": bytes, ...} sent in a step along a mesh axis; "data+fsdp" for collectives along both.
      collectives: {"all-gather fsdp": (times, bytes)} of a step.
      seconds: of compilation.
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
    """The needed and the available memory in a compiler's message, as text.

    Args:
      refusal: the message.
    """
    found = next(filter(None, (re.search(form, refusal) for form in REFUSALS)), None)
    return f"{found[1]}iB of {found[2]}iB" if found else "more than there is"


def compile_step(experiment: Experiment, target: Target) -> Step:
    """The compiled training step of an experiment.

    Args:
      experiment: to compile.
      target: the chips.

    Raises:
      TooLarge: the step does not fit into memory.
      InputError: the mesh does not suit the target, or the compiler is not installed.
    """
    mesh = target.mesh(**dataclasses.asdict(experiment.mesh))
    program = programs.make(experiment, mesh, platform=target.platform)
    key = jax.eval_shape(lambda: jax.random.key(0))
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = program.step.lower(program.state, program.batch, key, *program.frozen)
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
        # JAX 0.10 does not report the total. Its peak excludes the gaps between buffers, at most one percent.
        total=getattr(memory, "total_allocation_bytes", memory.peak_memory_in_bytes),
        sent=sent,
        collectives=totals,
        seconds=took,
        text=text,
    )
