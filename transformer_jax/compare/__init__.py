"""Runs beside each other: what differs in their settings, code and data, then whether their numbers differ.

a, b = (compare.read(name, Path(name)) for name in ("runs/a", "runs/b"))
compare.differences([a, b])          # the settings, code and facts that are not alike
compare.paired(a, b)                 # each number on the same examples, with its interval and p-value
compare.trials(Path("runs/sweep"))   # the runs below a folder, by the number that chooses
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.compare import bootstrap
from transformer_jax.compare.bootstrap import Difference
from transformer_jax.compare.stored import SETS, Run, examples, read, same_examples, translations
from transformer_jax.errors import InputError

__all__ = [
    "Difference",
    "Disagreement",
    "Paired",
    "Run",
    "best",
    "chosen_by",
    "differences",
    "ordered",
    "paired",
    "read",
    "trials",
]

SHOWN = 5  # examples that are shown: those on which the runs differ most


class Disagreement(NamedTuple):
    """An example on which two runs differ.

    Attributes:
      example: its number, from 1.
      a: the number of the first run.
      b: the same of the second run.
      texts: {name: text or (text of a, text of b)}.
    """

    example: int
    a: float
    b: float
    texts: dict[str, Any]


class Paired(NamedTuple):
    """The numbers of two runs on one set.

    Attributes:
      set: "validation", "test" or "given".
      differences: {number: its difference}.
      disagreements: {number: the examples on which the runs differ most}.
      uncompared: {number: why it is not compared}.
      why_not: why nothing is compared; "" where it is.
    """

    set: str
    differences: dict[str, Difference]
    disagreements: dict[str, list[Disagreement]]
    uncompared: dict[str, str]
    why_not: str = ""


def differences(runs: Sequence[Run]) -> dict[str, dict[str, list[Any]]]:
    """{"config": {field: a value for each run}, "code": ..., "data and run": ...} of what is not alike; None: absent.

    Args:
      runs: two or more.
    """
    parts = {
        "config": [run.settings for run in runs],
        "code": [run.code for run in runs],
        "data and run": [run.facts for run in runs],
    }
    found: dict[str, dict[str, list[Any]]] = {}
    for part, tables in parts.items():
        names = list(dict.fromkeys(name for table in tables for name in table))
        rows = {name: [table.get(name) for table in tables] for name in names}
        found[part] = {name: values for name, values in rows.items() if any(v != values[0] for v in values)}
    return found


def paired(a: Run, b: Run) -> list[Paired]:
    """The numbers of `a` and `b` on each set that both were evaluated on; differences are b - a.

    Raises:
      InputError: no set has the examples of both, or their files are damaged.
    """
    found = [made for of in SETS if (made := _of_set(a, b, of)) is not None]
    if not found:
        raise InputError(
            f"{a.name} and {b.name} have no evaluation with examples in common; "
            f"evaluate both first: transformer-jax evaluate {a.folder}"
        )
    return found


def _of_set(a: Run, b: Run, of: str) -> Paired | None:
    """The numbers on one set; None where one of the runs has neither records nor texts of it."""
    rows_a, rows_b = examples(a, of), examples(b, of)
    texts_a, texts_b = translations(a, of), translations(b, of)
    made = Paired(of, {}, {}, {})
    if rows_a and rows_b:
        if why := same_examples(rows_a, rows_b):
            return made._replace(why_not=why)
        for name in (name for name in rows_a if name in rows_b):
            if not isinstance(rows_a[name], list) and not isinstance(rows_b[name], list):
                try:
                    found = bootstrap.ratio(rows_a[name], rows_b[name])
                except ValueError as error:
                    made.uncompared[name] = str(error)
                    continue
                made.differences[name] = found._replace(unit="batches" if "examples" in rows_a else found.unit)
                made.disagreements[name] = _disagreements(rows_a, rows_b, name)
    if texts_a and texts_b:
        if why := same_examples(texts_a, texts_b):
            return made._replace(why_not=why)
        for name in ("bleu", "chrf"):
            args = (texts_a["hypotheses"], texts_b["hypotheses"], texts_a["references"])
            made.differences[name] = bootstrap.texts(name, *args)
        made.disagreements["chrf"] = _translated(texts_a, texts_b)
    return made if made.differences or made.uncompared else None


def _disagreements(a: dict[str, Any], b: dict[str, Any], name: str) -> list[Disagreement]:
    shown = [key for key in a if isinstance(a[key], list) and isinstance(b.get(key), list)]
    mean = lambda columns, at: float(columns[name][at, 0] / (columns[name][at, 1] or 1.0))  # noqa: E731
    return [
        Disagreement(
            at + 1,
            mean(a, at),
            mean(b, at),
            {key: a[key][at] if a[key][at] == b[key][at] else (a[key][at], b[key][at]) for key in shown},
        )
        for at in bootstrap.furthest(a[name], b[name], SHOWN)
    ]


def _translated(a: dict[str, list[str]], b: dict[str, list[str]]) -> list[Disagreement]:
    """The texts whose chrF differs most, among those that are not the same."""
    scores_a, scores_b = (bootstrap.sentences(side["hypotheses"], side["references"]) for side in (a, b))
    return [
        Disagreement(
            at + 1,
            float(scores_a[at, 0]),
            float(scores_b[at, 0]),
            {
                "source": a["sources"][at],
                "label": a["references"][at],
                "predicted": (a["hypotheses"][at], b["hypotheses"][at]),
            },
        )
        for at in bootstrap.furthest(scores_a, scores_b, SHOWN)
    ]


def chosen_by(runs: Sequence[Run]) -> tuple[str, bool]:
    """(the curve by which runs are ordered, whether the highest is best): what chooses their checkpoint, or a loss.

    Args:
      runs: one or more.

    Raises:
      InputError: no number of an evaluation is in all runs.
    """
    shared = [name for name in runs[0].curves if "/" in name and all(name in run.curves for run in runs)]
    shared.sort(key=lambda name: (not name.startswith("validation/"), "loss" not in name and "nats" not in name))
    asked = str(runs[0].settings.get("checkpoint.best_metric") or "")
    name = next((name for name in shared if asked and name.partition("/")[2] == asked), shared[0] if shared else "")
    if not name:
        raise InputError(f"{', '.join(run.name for run in runs)[:200]} have no number of an evaluation in common yet")
    return name, bool(asked) and name.endswith(f"/{asked}") and runs[0].settings.get("checkpoint.best") == "highest"


def best(run: Run, metric: str, highest: bool) -> float:
    """The best value of a curve; NaN where the run has no such curve.

    Args:
      run: whose curve.
      metric: the curve's name.
      highest: whether a higher value is better.
    """
    values = [value for _, value in run.curves.get(metric, [])]
    return (max if highest else min)(values, default=math.nan)


def ordered(runs: Sequence[Run], metric: str, highest: bool) -> list[Run]:
    """The runs, the best first, those without a value last.

    Args:
      runs: in any order.
      metric: the name of a curve.
      highest: whether a higher value is better.
    """
    values = {run.name: best(run, metric, highest) for run in runs}
    return sorted(
        runs, key=lambda run: (math.isnan(values[run.name]), -values[run.name] if highest else values[run.name])
    )


def trials(folder: Path) -> list[Run]:
    """The runs in the folders below `folder`, by name.

    Raises:
      InputError: there are none.
    """
    below = sorted(path for path in folder.iterdir() if path.is_dir() and (path / "config.json").exists())
    if not below:
        raise InputError(f"{folder} is no run and holds none; give folders of runs, or the folder of a sweep")
    return [read(path.name, path) for path in below]
