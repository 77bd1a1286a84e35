"""A comparison as text: what differs, the numbers with their intervals, and the examples of most disagreement.

Everything that comes from a run's folder is printed without control characters, which could move the cursor.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformer_jax import compare
from transformer_jax.compare import bootstrap

WIDEST = 44  # the most characters of a table's cell


def plain(value: Any) -> str:
    """A `value` on one line: texts as they are, others as JSON; control characters become U+FFFD."""
    text = value if isinstance(value, str) else "-" if value is None else json.dumps(value, ensure_ascii=False)
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table whose columns are aligned: the first to the left, the others to the right.

    Args:
      header: the names of the columns.
      rows: their cells.
    """
    cells = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    return ["  " + "  ".join(row).rstrip() for row in aligned]


def number(value: float) -> str:
    """Five significant digits of `value`."""
    return f"{value:.5g}"


def difference(found: compare.Difference) -> list[str]:
    """The cells of the difference `found`: both values, b - a, its interval, p-value and examples, and the verdict."""
    interval = f"[{found.low:+.4g}, {found.high:+.4g}]"
    few = f"fewer than {bootstrap.LEAST}"
    verdict = few if found.examples < bootstrap.LEAST else "differs" if found.claimed else "no difference shown"
    values = [number(found.a), number(found.b), f"{found.b - found.a:+.4g}", interval, f"{found.p:.3f}"]
    return [*values, f"{found.examples:,} {found.unit}", verdict]


def differences(runs: Sequence[compare.Run]) -> list[str]:
    """What is not alike in the settings, the code and the data of the `runs`."""
    lines = []
    for part, rows in compare.differences(runs).items():
        if rows:
            lines += [
                f"{part}:",
                *table([""] + [run.name for run in runs], [[name, *row] for name, row in rows.items()]),
            ]
    return lines or ["config, code and data: no difference"]


def paired(a: compare.Run, b: compare.Run, sets: Sequence[compare.Paired]) -> list[str]:
    """The numbers of two runs on each set, and where they disagree.

    Args:
      a: the first run.
      b: the second.
      sets: the result of `compare.paired`.
    """
    lines = []
    for of in sets:
        if of.why_not:
            lines += ["", f"{of.set} set: not compared, {plain(of.why_not)}"]
            continue
        header = ["", a.name, b.name, "difference", "95 % interval", "p", "over", ""]
        rows = [[name, *difference(found)] for name, found in of.differences.items()]
        lines += ["", f"{of.set} set, paired bootstrap:", *table(header, rows)]
        lines += [f"{plain(name)}: not compared, {why}" for name, why in of.uncompared.items()]
        for name, found in of.disagreements.items():
            if found:
                lines.append(f"where {plain(name)} differs most:")
                lines += [f"  {line}" for one in found for line in _example(one)]
    return lines


def _example(one: compare.Disagreement) -> list[str]:
    lines = [f"example {one.example:,}: {number(one.a)} against {number(one.b)}"]
    for name, text in one.texts.items():
        both = text if isinstance(text, tuple) else (text,)
        lines += [f"    {plain(name)}: {' | '.join(plain(part) for part in both)}"]
    return lines


def trials(runs: Sequence[compare.Run]) -> list[str]:
    """The `runs` of a sweep, the best first, with the settings in which they differ."""
    metric, highest = compare.chosen_by(runs)
    varied = [name for name in compare.differences(runs)["config"] if name != "workdir"]
    rows = [
        [
            run.name,
            *(run.settings.get(name) for name in varied),
            number(compare.best(run, metric, highest)),
            _state(run),
        ]
        for run in compare.ordered(runs, metric, highest)
    ]
    return table(["run", *varied, f"best {metric}", "step"], rows)


def _state(run: compare.Run) -> str:
    last = max((points[-1][0] for points in run.curves.values() if points), default=0)
    return f"{last:,.0f}" + ("" if run.facts else ", not done")
