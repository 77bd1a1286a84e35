"""Where a step's time goes: the profiler's record of each operation, summed by kind and by the line of the model.

`report` traces a few steps with `jax.profiler` and reads the operations back from the trace. XLA names an operation
after what it fused ("multiply_add_fusion.3"), which says little; the compiled program's text says from which part of
the model it came, and whether from its forward or its backward pass, and that is what the second table shows.

An operation's time is the median of its calls, so that a call that the machine interrupted does not count. The tables
add the operations of all devices up: with d of them side by side, divide by d to compare with a step's time. A traced
step is slower than an untraced one where operations are short.
"""

import re
import statistics
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

STEPS = 5

# The kind of an operation, by its name: the first pattern that fits.
KINDS = {
    "communication": r"all-reduce|all-gather|reduce-scatter|collective|all-to-all",
    "matrix products": r"dot|ynn_fusion|onednn|gemm|cublas|convolution",
    "attention kernels": r"cudnn|flash",
    "copies and transposes": r"copy|transpose|bitcast_fusion|concatenate|slice|pad",
    "reductions (fused)": r"reduce",
    "gather and scatter": r"gather|scatter|select-and",
    "elementwise (fused)": r"fusion|wrapped|multiply|add|convert|broadcast|exponential",
}


class Cost(NamedTuple):
    """Milliseconds and calls, both per step."""

    milliseconds: float = 0.0
    calls: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.milliseconds + other.milliseconds, self.calls + other.calls)


def report(run: Callable[[int], Any], compiled: jax.stages.Compiled, top: int = 25) -> str:
    """Two tables of milliseconds per step: by kind, and the `top` places in the model that cost most.

    Arguments: a function that runs so many steps; the compiled program that it runs.
    """
    run(2)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(STEPS)
        traces = sorted(Path(folder).rglob("*.xplane.pb"))
        with warnings.catch_warnings():
            # Python 3.12 deprecates how jaxlib makes the type of `stats`; as an error that would end the process.
            warnings.simplefilter("ignore", DeprecationWarning)
            operations = [op for trace in traces for op in read(jax.profiler.ProfileData.from_file(str(trace)))]
    program = compiled.as_text() or ""
    places = dict(re.findall(r'%(\S+) = .*?op_name="([^"]*)"', program))
    calls: dict[str, list[float]] = defaultdict(list)
    for name, milliseconds in operations:
        calls[name].append(milliseconds)
    by_kind: dict[str, Cost] = defaultdict(Cost)
    by_place: dict[str, Cost] = defaultdict(Cost)
    for name, times in calls.items():
        per_step = len(times) / STEPS
        cost = Cost(per_step * statistics.median(times), per_step)
        by_kind[kind(name)] += cost
        by_place[f"{re.sub(r'[.0-9]+$', '', name)}  {place(places.get(name, ''))}"] += cost
    total = sum(cost.milliseconds for cost in by_kind.values())
    heading = f"{'ms/step':>9}{'share':>8}{'calls':>8}  "
    lines = [
        f"{STEPS} steps traced: {total:,.2f} ms of operations a step, on {jax.device_count()} devices together",
        *("", heading + "kind", *rows(by_kind, total)),
        *("", heading + "operation, and where it comes from", *rows(by_place, total)[:top]),
    ]
    return "\n".join(lines)


def read(profile: Any) -> Iterable[tuple[str, float]]:
    """(name in the compiled program, milliseconds) of each operation; time inside another counts for the inner one."""
    for plane in profile.planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and event.duration_ns > 0:
                    events.append((event.start_ns, -event.duration_ns, str(stats["hlo_op"])))
            open_: list[list[Any]] = []  # [end, name, what is left to itself], outermost first
            for start, negative, name in sorted(events):
                while open_ and open_[-1][0] <= start:
                    _, done, left = open_.pop()
                    yield done, left / 1e6
                if open_:
                    open_[-1][2] += negative
                open_.append([start - negative, name, -negative])
            yield from ((name, left / 1e6) for _, name, left in open_)


def kind(name: str) -> str:
    return next((k for k, pattern in KINDS.items() if re.search(pattern, name)), "other")


def place(op_name: str) -> str:
    """ "jit(step)/transpose(jvp(zD,DF->zF))/dot_general" -> "backward zD,DF->zF dot_general"."""
    parts = op_name.split("/")[1:]
    direction = "backward" if any("transpose(" in part for part in parts) else "forward" if "jvp" in op_name else ""
    inner = [re.sub(r"^(?:\w+\()*|\)+$", "", part) for part in parts]
    return " ".join(filter(None, [direction, *inner[-3:]]))


def rows(costs: Mapping[str, Cost], total: float) -> list[str]:
    """A line for each, the most costly first."""
    return [
        f"{cost.milliseconds:9.3f}{cost.milliseconds / total:8.1%}{cost.calls:8.0f}  {name}"
        for name, cost in sorted(costs.items(), key=lambda item: -item[1].milliseconds)
    ]
