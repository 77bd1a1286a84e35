"""How long a compiled step takes by its compiler's own estimate, operation by operation: what libtpu writes beside each
instruction of its schedule, as cycles.

    e = estimate.estimate(compiled.as_text(), clock=1.75e9, peak=459e12)
    e.milliseconds     {"products": 37.6, "norms": 2.1, ...}      by kind of operation, in one step on one device
    e.attention        milliseconds of our kernels, which carry no cycles: their FLOPs at half of the chip's peak
    e.unknown          {"all-reduce": 26, ...}                    instructions that carry no estimate, and count nothing

What stands in a loop counts as often as the loop turns. What runs beside other work (asynchronous copies and
collectives) carries no cycles: the sum is of what the core itself does. GPUs' and CPUs' compilers write no cycles at
all; of their programs the kernels can be counted.
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
NEVER = 2**62  # written where the compiler has no estimate
HALF = 0.5  # of the peak, at which the attention kernels' FLOPs are counted


@dataclass(frozen=True)
class Operation:
    """One kind of instruction of a step, with all its executions.

    Fields:
      kind: "products", "norms", "attention", "loss", "optimizer", "layout copies", "collectives" or "elementwise".
      milliseconds: of all executions together.
      times: executions in a step.
      shape: of the result, as written.
      where: the operation in the program that it comes from, "" where the compiler does not say.
    """

    kind: str
    milliseconds: float
    times: int
    shape: str
    where: str


@dataclass(frozen=True)
class Estimate:
    """A step on one device, by the compiler; see above."""

    operations: tuple[Operation, ...]
    attention: float
    attention_flops: float
    unknown: dict[str, int]
    kernels: dict[str, int]

    @property
    def milliseconds(self) -> dict[str, float]:
        """By kind, the largest first."""
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
    """Reads a compiled module. Arguments: `compiled.as_text()`; cycles a second; FLOP/s of a device at most."""
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
            said = re.search(r'"flops":"?(\d+)', one.rest)
            flops += times * int(said[1]) if said else 0
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
    """What an instruction is for, by the operations that are fused in it and the scope that they come from."""
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
    """Each instruction that the device runs by itself, and how often in a run of the program."""
    for one in program.computations[name]:
        if one.opcode == "while":
            yield from _executed(program, hlo.body(one), times * hlo.turns(program, one))
        elif one.opcode in ("call", "conditional", "async-start"):
            for called in hlo.called(one):
                yield from _executed(program, called, times)
        else:
            yield one, times


def _inside(program: hlo.Program, one: hlo.Instruction) -> set[str]:
    """The opcodes that run as one with this instruction."""
    found = {one.opcode}
    if one.opcode == "fusion":
        for called in hlo.called(one):
            for inner in program.computations[called]:
                found |= _inside(program, inner)
    return found
