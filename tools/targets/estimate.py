"""The time of a compiled step by its compiler's own estimate: libtpu writes cycles beside each instruction.

    e = estimate.estimate(compiled.as_text(), clock=1.75e9, peak=459e12)
    e.milliseconds     {"products": 37.6, "norms": 2.1, ...}      by kind of operation, in one step on one device
    e.attention        milliseconds of our kernels, which have no cycles: their FLOPs at half of the chip's peak
    e.unknown          {"all-reduce": 26, ...}                    instructions without an estimate, which do not count

An instruction in a loop counts once per iteration. Asynchronous copies and collectives have no cycles, so the sum is
the time of the core itself. The compilers of GPUs and CPUs write no cycles; only the kernels of their programs can be
counted.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tools.targets import hlo

SILENT = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "opt-barrier", "partition-id", "after-all"}
MOVES = {
    *("fusion", "copy", "transpose", "bitcast", "reshape", "slice", "concatenate", "dynamic-slice", "pad"),
    *("parameter", "constant", "tuple", "get-tuple-element", "convert", "copy-start", "copy-done", "slice-start"),
}
NEVER = 2**62  # the compiler writes a larger number if it has no estimate
HALF = 0.5  # share of the peak at which the FLOPs of attention kernels are counted


@dataclass(frozen=True)
class Operation:
    """All executions of one kind of instruction in a step.

    Attributes:
      kind: "products", "norms", "attention", "loss", "optimizer", "layout copies", "collectives" or "elementwise".
      milliseconds: of all executions together.
      times: executions in a step.
      shape: of the result, as written.
      where: the JAX operation that it comes from; "": unknown.
    """

    kind: str
    milliseconds: float
    times: int
    shape: str
    where: str


@dataclass(frozen=True)
class Estimate:
    """The compiler's estimate of a step on one device (see the module)."""

    operations: tuple[Operation, ...]
    attention: float
    attention_flops: float
    unknown: dict[str, int]
    kernels: dict[str, int]

    @property
    def milliseconds(self) -> dict[str, float]:
        """{kind: milliseconds}, the largest first."""
        sums: dict[str, float] = defaultdict(float)
        for one in self.operations:
            sums[one.kind] += one.milliseconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @property
    def outside(self) -> float:
        """Milliseconds outside the attention kernels."""
        return sum(one.milliseconds for one in self.operations)

    @property
    def total(self) -> float:
        """Milliseconds with the attention kernels."""
        return self.outside + self.attention


def estimate(text: str, *, clock: float, peak: float) -> Estimate:
    """The estimate in a compiled module.

    Args:
      text: `compiled.as_text()`.
      clock: cycles per second.
      peak: FLOP/s of a device.
    """
    program = hlo.program(text)
    sums: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0])
    unknown: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    flops = 0.0
    for one, times in _executed(program, program.entry, 1):
        target = re.search(r'custom_call_target="([^"]*)"', one.rest)
        if target and target[1] not in ("AllocateBuffer", "AssumeGatherIndicesInBound"):
            kernels[target[1]] += times
        if target and target[1] == "tpu_custom_call":
            counted = re.search(r'"flops":"?(\d+)', one.rest)
            flops += times * int(counted[1]) if counted else 0
            continue
        cycles = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        if cycles is None or int(cycles[1]) > NEVER:
            if one.opcode not in SILENT:
                unknown[one.opcode] += times
            continue
        where = re.search(r'op_name="([^"]*)"', one.rest)
        place = where[1] if where else ""
        entry = sums[kind(program, one, place), re.sub(r"\{[^}]*\}", "", one.shape), place]
        entry[0] += 1e3 * int(cycles[1]) * times / clock
        entry[1] += times
    found = [Operation(key[0], ms, int(times), *key[1:]) for key, (ms, times) in sums.items()]
    found.sort(key=lambda one: -one.milliseconds)
    seconds = flops / (HALF * peak)
    return Estimate(tuple(found), 1e3 * seconds, flops, dict(unknown.most_common()), dict(kernels.most_common()))


def kind(program: hlo.Program, one: hlo.Instruction, where: str) -> str:
    """The kind of an instruction, by its fused operations and their scope.

    Args:
      program: the module.
      one: the instruction.
      where: the JAX operation that it comes from.
    """
    inside = _inside(program, one)
    if re.match(r"all-|reduce-scatter|collective|ragged", one.opcode):
        return "collectives"
    if inside & {"convolution", "dot"}:
        return "attention" if "(attention)" in where or "/attention/" in where else "products"
    if inside <= MOVES:
        return "layout copies"
    for scope, name in (("norm", "norms"), ("attention", "attention"), ("loss", "loss"), ("optimizer", "optimizer")):
        if re.search(rf"[/(]{scope}[/)]", where):
            return name
    return "elementwise"


def _executed(program: hlo.Program, name: str, times: int) -> Iterator[tuple[hlo.Instruction, int]]:
    """Yields (instruction, executions in a run of the program) for each instruction outside of fusions."""
    for one in program.computations[name]:
        if one.opcode == "while":
            yield from _executed(program, hlo.body(one), times * hlo.trip_count(program, one))
        elif one.opcode in ("call", "conditional", "async-start"):
            for called in hlo.called(one):
                yield from _executed(program, called, times)
        else:
            yield one, times


def _inside(program: hlo.Program, one: hlo.Instruction) -> set[str]:
    """The opcodes of an instruction and of what is fused in it."""
    found = {one.opcode}
    if one.opcode == "fusion":
        for called in hlo.called(one):
            for inner in program.computations[called]:
                found |= _inside(program, inner)
    return found
