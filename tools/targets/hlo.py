"""What a compiled program sends between devices, read from its HLO text: XLA's own, of the CPU, GPU or TPU compiler.

    for c in hlo.collectives(compiled.as_text()):
        print(c.kind, c.bytes, "x", c.count, "over", hlo.axes(c, dict(mesh.shape)), "at", c.where)

    hlo.totals(...)     {("all-reduce", ("data",)): Total(times=3, bytes=27_000), ...} of one run of the program

What stands in a loop counts as often as the loop turns; a loop with collectives whose turns are not known is an error.
Of an asynchronous pair (`all-gather-start`, `all-gather-done`) the start counts. A branch counts as if it were taken.
Only text is read: no devices, no JAX.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Collective:
    """One instruction that sends, as one device sees it.

    Fields:
      kind: one of `KINDS`.
      bytes: of the whole value, once: of all-gather the result, of reduce-scatter the operand, else either.
      count: how often a run of the program executes it.
      groups: the partitions that take part together; of collective-permute the (source, target) pairs.
      where: the JAX operation that it comes from ("jit(step)/.../dot_general"), "" where the compiler does not say.
      shape: of the result, as written: "f32[4,64]".
    """

    kind: str
    bytes: int
    count: int
    groups: Groups
    where: str
    shape: str

    @property
    def group(self) -> int:
        """Devices that take part together; 2 of a collective-permute."""
        return max(len(group) for group in self.groups)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one execution, by the ring algorithms (they are optimal: Patarasu and Yuan
        2009, "Bandwidth optimal all-reduce algorithms")."""
        share = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclass(frozen=True)
class Total:
    """Of one kind of collective: executions, and the sum of their values' bytes."""

    times: int
    bytes: int


@dataclass(frozen=True)
class Instruction:
    """One line of a module; `rest` is its operands and attributes, as written."""

    name: str
    shape: str
    opcode: str
    rest: str


@dataclass(frozen=True)
class Program:
    """A module: {"name": instructions} of every computation, and the name of the one that runs."""

    computations: Mapping[str, list[Instruction]]
    entry: str


def program(text: str) -> Program:
    """A compiled module (`compiled.as_text()`). Errors: `ValueError` for a text without an ENTRY."""
    return Program(*_computations(text))


def collectives(text: str, *, partitions: int | None = None) -> list[Collective]:
    """The collectives of a compiled module (`compiled.as_text()`), those of its loops and called computations included.

    Arguments: partitions, the number of devices, where the text does not say it.
    Errors: `ValueError` for a loop with collectives whose turns are not known, and for replica groups in a form that
      is not known here.
    """
    if partitions is None:
        said = re.search(r"num_partitions=(\d+)", text)
        partitions = int(said[1]) if said else 1
    module = program(text)
    return list(_walk(module, module.entry, partitions))


def axes(collective: Collective, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes that a collective goes along, for a mesh with these sizes, in its order of devices."""
    names = list(sizes)

    def coordinates(partition: int) -> list[int]:
        place = []
        for name in reversed(names):
            partition, at = divmod(partition, sizes[name])
            place.append(at)
        return place[::-1]

    moved = set()
    for group in collective.groups:
        first = coordinates(group[0])
        for other in map(coordinates, group[1:]):
            moved |= {name for name, a, b in zip(names, first, other, strict=True) if a != b}
    return tuple(name for name in names if name in moved)


def totals(found: Iterable[Collective], sizes: Mapping[str, int]) -> dict[tuple[str, tuple[str, ...]], Total]:
    """Executions and bytes by kind and mesh axes, in one run of the program."""
    sums: dict[tuple[str, tuple[str, ...]], Total] = {}
    for c in found:
        at = (c.kind, axes(c, sizes))
        before = sums.get(at, Total(0, 0))
        sums[at] = Total(before.times + c.count, before.bytes + c.count * c.bytes)
    return dict(sorted(sums.items()))


def operations(text: str) -> Counter[tuple[str, str]]:
    """How often a module has each operation, by opcode and shape with its layout, fusions' insides included."""
    return Counter((one.opcode, one.shape) for body in program(text).computations.values() for one in body)


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape as written; of a tuple all its parts. Layout and tiling are left out."""
    total = 0
    for kind, dims in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]", shape):
        width = re.search(r"\d+", kind)  # f32, bf16, f8e4m3fn; a token has none
        bits = 8 if kind == "pred" else int(width[0]) if width else 0
        total += -(-math.prod(int(d.removeprefix("<=")) for d in dims.split(",") if d) * bits // 8)
    return total


# ---------------------------------------------------------------------------------------------------------- the program


def _walk(module: Program, name: str, partitions: int) -> Iterator[Collective]:
    for one in module.computations[name]:
        kind = one.opcode.removesuffix("-start")
        if kind in KINDS:
            yield _collective(one, kind, partitions, name)
        elif one.opcode == "while":
            inside = list(_walk(module, body(one), partitions))
            if inside:
                count = turns(module, one)
                yield from (dataclasses.replace(c, count=c.count * count) for c in inside)
        elif one.opcode not in ("async-update", "async-done"):  # what they name is their start's
            for name_called in called(one):
                yield from _walk(module, name_called, partitions)


def _collective(one: Instruction, kind: str, partitions: int, inside: str) -> Collective:
    shape = one.shape
    if one.opcode.endswith("-start") and kind in ("all-gather", "reduce-scatter", "collective-permute"):
        shape = _parts(shape)[1]  # (operands, results, ...)
    if kind == "collective-permute":
        groups = _listed(re.search(r"source_target_pairs=\{(.*?)\}\}", one.rest)[1] + "}")  # type: ignore[index]
    else:
        groups = _groups(one.rest, partitions)
    size = shape_bytes(shape)
    if kind == "reduce-scatter":
        size *= len(groups[0])
    elif kind == "all-reduce" and inside.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # the TPU's: a fusion of an all-reduce with the slice that is kept of it
    where = re.search(r'op_name="([^"]*)"', one.rest)
    return Collective(kind, size, 1, groups, where[1] if where else "", re.sub(r"\{[^}]*\}", "", shape))


def body(loop: Instruction) -> str:
    """The name of what a loop runs."""
    return _attribute(loop, "body")


def turns(module: Program, loop: Instruction) -> int:
    """How often a loop turns: as the compiler knows it, or the constant that its condition compares with.

    Errors: `ValueError` where neither says it.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = module.computations[_attribute(loop, "condition")]
    constants = [re.match(r"(\d+)\)", one.rest) for one in condition if one.opcode == "constant"]
    counts = [int(found[1]) for found in constants if found]
    if len(counts) != 1:
        raise ValueError(f"loop {loop.name}: its condition does not say how often it turns")
    return counts[0]


def called(one: Instruction) -> list[str]:
    """The computations that an instruction runs: fusions, calls, asynchronous ones, branches."""
    single = re.findall(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", one.rest)
    several = re.findall(r"\b(?:calls|branch_computations|called_computations)=\{([^}]*)\}", one.rest)
    return single + [name.strip().lstrip("%") for names in several for name in names.split(",") if name.strip()]


def _attribute(one: Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", one.rest)
    if not found:
        raise ValueError(f"{one.opcode} {one.name} has no {name}=")
    return found[1]


# --------------------------------------------------------------------------------------------------------------- groups


def _groups(rest: str, partitions: int) -> Groups:
    """replica_groups in the three forms that XLA writes: listed, as a permuted range, and as axes of a mesh."""
    at = rest.find("replica_groups=")
    written = rest[at + len("replica_groups=") :] if at >= 0 else "{}"
    if written.startswith("{}"):
        return (tuple(range(partitions)),)
    if listed := re.match(r"\{(\{.*?\})\}", written):
        return _listed(listed[1])
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", written):
        shape, dims = _numbers(iota[1]), _numbers(iota[2])
        order = _numbers(iota[3]) if iota[3] else tuple(range(len(dims)))
        return _rows(_transposed(dims, order), shape[-1])
    if mesh := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\) )?\s*\{([^}]*)\}", written):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        together = re.findall(r"'([^']+)'", mesh[3])
        if ":" not in mesh[3] and set(together) <= set(sizes):  # with a colon: a part of an axis
            names = list(sizes)
            order = tuple(names.index(n) for n in names if n not in together) + tuple(map(names.index, together))
            places = _transposed(tuple(sizes.values()), order)
            ids = _device_ids(mesh[2], len(places))
            return _rows([ids[place] for place in places], math.prod(sizes[n] for n in together))
    raise ValueError(f"replica groups in a form that is not known here: {written[:80]}")


def _device_ids(written: str | None, count: int) -> list[int]:
    """The devices of a mesh in its order: a permuted range "[2,4]T(1,0)", listed, or none: as they are counted."""
    if written is None:
        return list(range(count))
    if re.fullmatch(r"[\d,]+", written):
        return list(_numbers(written))
    if permuted := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", written):
        dims = _numbers(permuted[1])
        return _transposed(dims, _numbers(permuted[2]) if permuted[2] else tuple(range(len(dims))))
    raise ValueError(f"a mesh's devices in a form that is not known here: {written[:80]}")


def _transposed(dims: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """0, 1, 2, ... laid out as `dims`, its dimensions put in another order, and read off in a row."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    ranges = [range(dims[i]) for i in order]
    return [sum(at * strides[i] for at, i in zip(place, order, strict=True)) for place in itertools.product(*ranges)]


def _rows(flat: list[int], size: int) -> Groups:
    return tuple(tuple(flat[i : i + size]) for i in range(0, len(flat), size))


def _listed(written: str) -> Groups:
    return tuple(_numbers(group) for group in re.findall(r"\{([\d,]*)\}", written))


def _numbers(written: str) -> tuple[int, ...]:
    return tuple(int(n) for n in written.split(",") if n)


# ----------------------------------------------------------------------------------------------------------------- text


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """{"name": its instructions} of every computation, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (one := _instruction(line)):
            current.append(one)
    if not entry:
        raise ValueError("this is no HLO text: it has no ENTRY")
    return found, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    value = line[head.end() :]
    end = _closing(value) if value.startswith("(") else value.find(" ")
    opcode = re.match(r" *([\w\-]+)\(", value[end:])
    return Instruction(head[1], value[:end], opcode[1], value[end + opcode.end() :]) if opcode else None


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with has closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"a parenthesis is left open: {text[:80]}")


def _parts(shape: str) -> list[str]:
    """The parts of a tuple's shape."""
    parts, depth, begin = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(shape[begin:i])
            begin = i + 1
    return parts
