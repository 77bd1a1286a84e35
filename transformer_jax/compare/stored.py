"""What a run's folder says of the run, read with limits: it may be a stranger's, damaged, or of a run in progress.

Nothing of it is imported or built: config.json is read as JSON, so a user's own types need not be there.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import files, observe
from transformer_jax.errors import InputError
from transformer_jax.observe.report import recorded
from transformer_jax.runs import records
from transformer_jax.runs import workdir as workdirs

SETS = ("validation", "test", "given")
TEXT_BYTES = 2**28
MOST_CURVES, MOST_POINTS = 200, 2000


@dataclass(frozen=True)
class Run:
    """A run as its folder describes it.

    Attributes:
      name: the folder, as it was given.
      folder: where it is.
      settings: {"optim.peak_lr": 0.001, ...}, every stored field of the experiment.
      code: {file: digest} of the user's own files, and of the package as "transformer_jax".
      facts: the other entries of results.json, such as the step and the devices; {} where the run has not ended.
      curves: {"loss": (step, value) by step, "validation/loss_nats_per_token": ...} of metrics.jsonl, thinned.
      passed: {"seconds": (step, total) by step, "tokens": ...}, of steps alone; without what the rows do not have.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    code: Mapping[str, str]
    facts: Mapping[str, Any]
    curves: Mapping[str, list[tuple[float, float]]]
    passed: Mapping[str, list[tuple[float, float]]] = field(default_factory=dict)


def read(name: str, folder: Path) -> Run:
    """The run in `folder`, called `name`.

    Raises:
      InputError: there is no run, or one of its files is not what a run writes.
    """
    try:
        tree = files.read_json(folder / "config.json", inside=folder)
    except FileNotFoundError:
        raise InputError(f"{folder} has no config.json, so it is no run; give the folder of a run") from None
    if not isinstance(tree, dict) or "type" not in tree:
        raise InputError(f"{folder / 'config.json'} is not of a run; give the folder of a run")
    results = workdirs.read_results(folder)
    code = {path.name: _digest(path, folder) for path in sorted(folder.glob("code/*.py"))}
    if isinstance(source := results.get("source"), str):
        code["transformer_jax"] = source[:60]
    facts: dict[str, Any] = {
        key: results[key] for key in ("step", "best_step", "devices", "jax", "data") if key in results
    }
    return Run(name, folder, recorded.flat(tree), code, facts, *_curves(folder))


def _digest(path: Path, folder: Path) -> str:
    return hashlib.sha256(files.read(path, files.JSON_BYTES, inside=folder)).hexdigest()[:12]


Curves = dict[str, list[tuple[float, float]]]


def _curves(folder: Path) -> tuple[Curves, Curves]:
    """The training loss, and each number of an evaluation, by step; and what has passed by each step, `Run.passed`."""
    curves, passed = _Thinned(), _Thinned()
    totals: dict[str, float] = {}
    last = 0.0
    for row in observe.rows(folder / "metrics.jsonl"):
        step = float(row["step"]) if abs(row["step"]) < 1e15 else math.inf
        numbers = {key: float(x) for key, x in row.items() if _is_number(x) and len(key) <= 200}
        for key, value in numbers.items():
            if key == "loss" or key.startswith(("validation/", "test/")):
                curves.add(key, step, value)
        if "seconds_per_step" in numbers and last < step < math.inf:
            seconds, last = numbers["seconds_per_step"] * (step - last), step
            rates = {key.removesuffix("_per_second"): x for key, x in numbers.items() if key.endswith("_per_second")}
            for key, rate in (("seconds", 1.0), *rates.items()):
                totals[key] = totals.get(key, 0.0) + rate * seconds
                passed.add(key, step, totals[key])
    return curves.points, passed.points


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


class _Thinned:
    """Points by name; of a long series every second, fourth, ... is kept."""

    def __init__(self) -> None:
        self.points: Curves = {}
        self.every: dict[str, tuple[int, int]] = {}  # (points seen, of how many one is kept)

    def add(self, key: str, step: float, value: float) -> None:
        if key not in self.points and len(self.points) == MOST_CURVES:
            return
        points = self.points.setdefault(key, [])
        seen, stride = self.every.get(key, (0, 1))
        if seen % stride == 0:
            points.append((step, value))
        if len(points) == MOST_POINTS:
            del points[1::2]
            stride *= 2
        self.every[key] = seen + 1, stride


def examples(run: Run, of: str) -> dict[str, Any]:
    """{name: float64 [examples, 2] or texts}: the records of a `run`'s evaluation on the set `of`; {} without one."""
    return records.read(run.folder / records.name(of), run.folder)


def translations(run: Run, of: str) -> dict[str, list[str]]:
    """{"sources", "references", "hypotheses": lines} of a `run`'s evaluation on the set `of`; {} where it has none."""
    found = {}
    for kind in ("sources", "references", "hypotheses"):
        try:
            data = files.read(run.folder / f"{of}.{kind}.txt", TEXT_BYTES, inside=run.folder)
        except FileNotFoundError:
            return {}
        found[kind] = data.decode("utf-8", "replace").split("\n")[:-1]
    if len({len(lines) for lines in found.values()}) != 1:
        raise InputError(f"{run.folder}/{of}.*.txt have not one line each for every text; evaluate the run again")
    return found


def same_examples(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Why the records `a` and `b` are not of the same examples; "" where nothing shows that they are not."""
    counts = [len(next(iter(columns.values()))) for columns in (a, b)]
    if counts[0] != counts[1]:
        return f"{counts[0]:,} examples in one and {counts[1]:,} in the other"
    for key in ("label", "examples", "references", "sources"):
        if key in a and key in b:
            other = next((at for at, pair in enumerate(zip(a[key], b[key], strict=True)) if pair[0] != pair[1]), None)
            if other is not None:
                return f"example {other + 1} is {a[key][other]!r:.60} in one and {b[key][other]!r:.60} in the other"
    if "loss" in a and "loss" in b and (apart := np.flatnonzero(a["loss"][:, 1] != b["loss"][:, 1])).size:
        at = int(apart[0])
        return f"example {at + 1} weighs {a['loss'][at, 1]:g} in one and {b['loss'][at, 1]:g} in the other"
    return ""
