"""The collectives of a compiled program, read from its HLO text, as the CPU, GPU and TPU compilers write it.

    for c in hlo.collectives(compiled.as_text()):
        print(c.kind, c.bytes, "x", c.count, "over", hlo.axes(c, dict(mesh.shape)), "at", c.where)

    hlo.totals(...)     {("all-reduce", ("data",)): Total(times=3, bytes=27_000), ...} of one run of the program

A collective in a loop counts once per iteration; a loop with collectives and an unknown trip count is an error. Of an
asynchronous pair (`all-gather-start`, `all-gather-done`), the start counts. Every branch counts as taken. Only text is
read, without devices or JAX.
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
    """One collective instruction on one device.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole value: the result of an all-gather, the operand of a reduce-scatter, else either.
      count: executions in a run of the program.
      groups: the partitions that communicate with each other; of collective-permute, the (source, target) pairs.
      where: the JAX operation that it comes from ("jit(step)/.../dot_general"); "": unknown.
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
        """The number of devices in a group; 2 for a collective-permute."""
        return max(len(group) for group in self.groups)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one execution, by the ring algorithms (Patarasu and Yuan 2009: optimal)."""
        share = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclass(frozen=True)
class Total:
    """The executions of one kind of collective, and the sum of their bytes."""

    times: int
    bytes: int


@dataclass(frozen=True)
class Instruction:
    """One line of a module; `rest` has its operands and attributes, as written."""

    name: str
    shape: str
    opcode: str
    rest: str


@dataclass(frozen=True)
class Program:
    """A module: {"name": instructions} of every computation, and the name of the entry."""

    computations: Mapping[str, list[Instruction]]
    entry: str


def program(text: str) -> Program:
    """The program of a compiled module.

    Args:
      text: `compiled.as_text()`.

    Raises:
      ValueError: it has no ENTRY.
    """
    return Program(*_computations(text))


def collectives(text: str, *, partitions: int | None = None) -> list[Collective]:
    """The collectives of a compiled module, including those in loops and called computations.

    Args:
      text: `compiled.as_text()`.
      partitions: the number of devices; None: as the text says.

    Raises:
      ValueError: a loop with collectives has an unknown trip count, or replica groups are in an unknown form.
    """
    if partitions is None:
        found = re.search(r"num_partitions=(\d+)", text)
        partitions = int(found[1]) if found else 1
    module = program(text)
    return list(_walk(module, module.entry, partitions))


def axes(collective: Collective, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which a collective communicates.

    Args:
      collective: of the program.
      sizes: {axis: size} of the mesh, in its order.
    """
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
    """{(kind, mesh axes): executions and bytes} in one run of the program.

    Args:
      found: of `collectives`.
      sizes: {axis: size} of the mesh, in its order.
    """
    sums: dict[tuple[str, tuple[str, ...]], Total] = {}
    for c in found:
        at = (c.kind, axes(c, sizes))
        before = sums.get(at, Total(0, 0))
        sums[at] = Total(before.times + c.count, before.bytes + c.count * c.bytes)
    return dict(sorted(sums.items()))


def operations(text: str) -> Counter[tuple[str, str]]:
    """The number of instructions by (opcode, shape with its layout), those inside of fusions included.

    Args:
      text: `compiled.as_text()`.
    """
    return Counter((one.opcode, one.shape) for body in program(text).computations.values() for one in body)


def shape_bytes(shape: str) -> int:
    """The bytes of an HLO shape, or of all parts of a tuple, without tiling.

    Args:
      shape: as written.
    """
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
                count = trip_count(module, one)
                yield from (dataclasses.replace(c, count=c.count * count) for c in inside)
        elif one.opcode not in ("async-update", "async-done"):  # they name the computation of their start
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
        kind = "reduce-scatter"  # on TPUs it is a fusion of an all-reduce and a slice
    where = re.search(r'op_name="([^"]*)"', one.rest)
    return Collective(kind, size, 1, groups, where[1] if where else "", re.sub(r"\{[^}]*\}", "", shape))


def body(loop: Instruction) -> str:
    """The name of the computation that `loop` runs."""
    return _attribute(loop, "body")


def trip_count(module: Program, loop: Instruction) -> int:
    """The number of iterations of a loop, from its known trip count or from the constant in its condition.

    Args:
      module: of the loop.
      loop: a while instruction.

    Raises:
      ValueError: it has neither.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = module.computations[_attribute(loop, "condition")]
    constants = [re.match(r"(\d+)\)", one.rest) for one in condition if one.opcode == "constant"]
    counts = [int(found[1]) for found in constants if found]
    if len(counts) != 1:
        raise ValueError(f"loop {loop.name}: its trip count is unknown")
    return counts[0]


def called(one: Instruction) -> list[str]:
    """The names of the computations that instruction `one` runs: of a fusion, call, asynchronous start or branch."""
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
        if ":" not in mesh[3] and set(together) <= set(sizes):  # a colon would mean a part of an axis
            names = list(sizes)
            order = tuple(names.index(n) for n in names if n not in together) + tuple(map(names.index, together))
            places = _transposed(tuple(sizes.values()), order)
            ids = _device_ids(mesh[2], len(places))
            return _rows([ids[place] for place in places], math.prod(sizes[n] for n in together))
    raise ValueError(f"replica groups in an unknown form: {written[:80]}")


def _device_ids(written: str | None, count: int) -> list[int]:
    """The devices of a mesh in its order: a permuted range "[2,4]T(1,0)", a list, or None: 0, 1, 2, ..."""
    if written is None:
        return list(range(count))
    if re.fullmatch(r"[\d,]+", written):
        return list(_numbers(written))
    if permuted := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", written):
        dims = _numbers(permuted[1])
        return _transposed(dims, _numbers(permuted[2]) if permuted[2] else tuple(range(len(dims))))
    raise ValueError(f"the devices of a mesh in an unknown form: {written[:80]}")


def _transposed(dims: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """0, 1, 2, ... reshaped to `dims`, transposed by `order` and flattened."""
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
        raise ValueError("this is not HLO text: it has no ENTRY")
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
    """The position after the parenthesis that closes the one at the beginning of `text`."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


def _parts(shape: str) -> list[str]:
    """The parts of a tuple's shape."""
    parts, depth, begin = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(shape[begin:i])
            begin = i + 1
    return parts
