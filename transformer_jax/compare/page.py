"""A comparison as an HTML page in one file: the tables of the terminal, and the runs' curves over each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_jax import compare, pages
from transformer_jax.compare import terminal
from transformer_jax.observe.report.recorded import interval

MOST_CURVES = 12  # the most evaluation curves that are drawn
MOST_LOSSES, MOST_UNITS = 3, 2  # the most losses, and units such as tokens or seconds, that losses are drawn against


def of_runs(runs: Sequence[compare.Run], pairs: Sequence[tuple[compare.Run, compare.Run, list[compare.Paired]]]) -> str:
    """The page of runs that are compared with the first.

    Args:
      runs: two or more.
      pairs: (the first run, another, their `compare.paired`).
    """
    sections = [pages.section("What differs", *_differences(runs))]
    for a, b, sets in pairs:
        parts = [part for of in sets for part in _set(a, b, of)]
        sections.append(pages.section(f"{b.name} against {a.name}", *parts))
    return pages.page(
        "Runs compared", [*sections, pages.section("Curves", *curves(runs))], lead=" and ".join(r.name for r in runs)
    )


def of_trials(name: str, runs: Sequence[compare.Run]) -> str:
    """The page of a folder of runs.

    Args:
      name: the name of the folder.
      runs: in it.
    """
    metric, highest = compare.chosen_by(runs)
    varied = list(compare.differences(runs)["config"])
    runs = compare.ordered(runs, metric, highest)
    rows = [[run.name, *(run.settings.get(key) for key in varied), compare.best(run, metric, highest)] for run in runs]
    made = pages.table(f"The best {metric} of each run", ["run", *varied, metric], [[*map(_cell, row)] for row in rows])
    across = pages.parallel("Settings and results", [*varied, metric], {str(row[0]): row[1:] for row in rows})
    sections = [pages.section("Runs", made, *([across] if varied else [])), pages.section("Curves", *curves(runs))]
    return pages.page(name, sections)


def curves(runs: Sequence[compare.Run]) -> list[Any]:
    """A figure for the training loss and each number of an evaluation, with a line for each of the `runs`: by step, and
    of the losses also by what has passed, such as tokens and seconds."""
    names = list(dict.fromkeys(name for run in runs for name in run.curves))
    ends = {end for name in names for end in interval(name, names) or ()}
    names = [name for name in names if name not in ends and not name.startswith("test/")]
    figures = [
        pages.curves(name, [pages.Line(run.name, run.curves.get(name, [])) for run in runs], x="step")
        for name in names[:MOST_CURVES]
    ]
    units = list(dict.fromkeys(unit for run in runs for unit in run.passed))
    for name in [name for name in names if name.rpartition("/")[2].startswith("loss")][:MOST_LOSSES]:
        for unit in units[:MOST_UNITS]:
            lines = [pages.Line(run.name, _by(run, name, unit)) for run in runs]
            figures.append(pages.curves(f"{name} by {unit}", lines, x=f"{unit} of training"))
    return [pages.grid(*figures)] if figures else [pages.note("No run has written a row of metrics yet.")]


def _by(run: compare.Run, name: str, unit: str) -> list[tuple[float, float]]:
    """A curve by what had passed at each of its steps; [] where that is not known."""
    points, passed = run.curves.get(name, []), run.passed.get(unit, [])
    if not points or not passed:
        return []
    steps, sums = [0.0, *(step for step, _ in passed)], [0.0, *(total for _, total in passed)]
    totals = np.interp([step for step, _ in points], steps, sums)
    return [(total, value) for total, (_, value) in zip(totals.tolist(), points, strict=True)]


def _differences(runs: Sequence[compare.Run]) -> list[Any]:
    found = {part: rows for part, rows in compare.differences(runs).items() if rows}
    return [
        pages.table(part, ["", *(run.name for run in runs)], [[name, *map(_cell, row)] for name, row in rows.items()])
        for part, rows in found.items()
    ] or ["Settings, code and data are alike."]


def _cell(value: Any) -> Any:
    """A number as it is, any other value in words."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else terminal.plain(value)


def _set(a: compare.Run, b: compare.Run, of: compare.Paired) -> list[Any]:
    if of.why_not:
        return [pages.note(f"{of.set} set: not compared, {of.why_not}")]
    header = ["number", a.name, b.name, "difference", "95 % interval", "p", "over", ""]
    rows = [[name, *terminal.difference(found)] for name, found in of.differences.items()]
    parts = [pages.table(f"The {of.set} set, paired bootstrap", header, rows)]
    parts += [pages.note(f"{name}: not compared, {why}") for name, why in of.uncompared.items()]
    for name, found in of.disagreements.items():
        names = list(dict.fromkeys(key for one in found for key in one.texts))
        texts = [[one.example, one.a, one.b, *(_texts(one.texts.get(key)) for key in names)] for one in found]
        if texts:
            caption = f"{of.set} set: where {name} differs most"
            parts.append(pages.table(caption, ["example", a.name, b.name, *names], texts))
    return parts


def _texts(value: Any) -> str:
    return " | ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
