"""What a run's folder holds, read for its page: nothing of it is believed, and all of it may be missing.

A folder may be a stranger's, half written, or of a run that trains. Each file is read by itself; what cannot be
read becomes a line in `Recorded.problems`, and the rest of the page is made without it.
"""

import contextlib
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.errors import InputError, first_line
from transformer_jax.observe import json_lines
from transformer_jax.observe.report.thinned import Series
from transformer_jax.runs import mirror, owners, saved, store
from transformer_jax.runs import workdir as workdirs

LAUNCHES, SAMPLES, PAGE = "launches.jsonl", "samples.jsonl", "report.html"
JSON = ("config.json", "results.json", "evaluation.json", "diagnosis.json", "lock")
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
PICTURE_BYTES = 2**21  # the largest picture that a page contains; a larger one is named only
MOST_PICTURES = 100
DRAWN, MOST_DRAWN = "drawn", 8
MOST_NAMES = 300  # the most series
MOST_ROWS = 200  # the most launches and samples that are kept: the newest
LARGEST = 1.7e308


@dataclass
class Recorded:
    """What is known of a run.

    Attributes:
      name: its path or URL.
      config: config.json; {} where it cannot be read. So with the other objects.
      results: results.json.
      evaluation: evaluation.json, what the command `evaluate` stored.
      diagnosis: diagnosis.json, of steps that were not finite.
      launches: the lines of launches.jsonl.
      samples: (step, text).
      series: {name: its numbers}, "loss" of training rows, "validation/accuracy" of evaluations.
      rows: how many metrics.jsonl has.
      last_step: the last step of the rows.
      pictures: (file name, bytes).
      drawn: the same, of pictures that the task drew during training, in their order.
      steps: the saved ones.
      owner: the process that trains, in words; "" where none does.
      problems: what is missing or cannot be read.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Mapping[str, Any] = field(default_factory=dict)
    launches: list[Mapping[str, Any]] = field(default_factory=list)
    samples: list[tuple[float, str]] = field(default_factory=list)
    series: dict[str, Series] = field(default_factory=dict)
    rows: int = 0
    last_step: float = 0.0
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    drawn: list[tuple[str, bytes]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    owner: str = ""
    problems: list[str] = field(default_factory=list)


@contextlib.contextmanager
def local(path: Path) -> Iterator[Path]:
    """A folder of this machine with the files of the run at `path` that a page needs: the run's own folder, or copies.

    Raises:
      InputError: there is no such folder.
    """
    if not store.remote(path):
        if not any((path / name).exists() for name in ("config.json", json_lines.NAME)):
            raise InputError(f"{path} holds no config.json, so it is no run; give the workdir of a run")
        yield path
        return
    wanted = {*JSON, json_lines.NAME, LAUNCHES, SAMPLES}
    there = [name for name in store.names(path) if name in wanted or name.lower().endswith(PICTURES)]
    if "config.json" not in there:
        raise InputError(f"{path} holds no config.json, so it is no run; give the workdir of a run")
    drawn = [f"{DRAWN}/{name}" for name in _spread(store.names(path / DRAWN))]
    with mirror.local_mirror(path, [*there[: MOST_PICTURES + len(wanted)], *drawn]) as (folder, _):
        yield folder


def read(folder: Path, path: Path) -> Recorded:
    """What is known of a run.

    Args:
      folder: from `local`.
      path: the path of the run, for its name and its saved steps.
    """
    run = Recorded(str(path))
    run.config = _object(run, folder, "config.json")
    try:
        run.results = workdirs.read_results(folder)
    except (InputError, OSError) as error:
        run.problems.append(first_line(error))
    optional = {name: _object(run, folder, name) for name in JSON[2:4] if (folder / name).exists()}
    run.evaluation, run.diagnosis = optional.get(JSON[2], {}), optional.get(JSON[3], {})
    _read_rows(run, folder / json_lines.NAME)
    run.launches = _lines(run, folder / LAUNCHES)
    texts = {row["step"]: row.get("text") for row in _lines(run, folder / SAMPLES)}  # the last of each step
    run.samples = [(step, text) for step, text in texts.items() if isinstance(text, str) and text]
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name != "loss.png")
    run.pictures = _pictures(run, found, folder)
    drawn = {path.name: path for path in (folder / DRAWN).iterdir()} if (folder / DRAWN).is_dir() else {}
    run.drawn = _pictures(run, [drawn[name] for name in _spread(list(drawn))], folder)
    with contextlib.suppress(OSError):
        run.steps = saved.steps(path / "checkpoints")
    run.owner = _owner(folder)
    return run


def _object(run: Recorded, folder: Path, name: str) -> Mapping[str, Any]:
    """The JSON object of a file; {} and a problem where there is none."""
    try:
        found = files.read_json(folder / name, inside=folder)
    except FileNotFoundError:
        run.problems.append(f"{name} is missing")
        return {}
    except (InputError, OSError) as error:
        run.problems.append(first_line(error))
        return {}
    if not isinstance(found, dict):
        run.problems.append(f"{name} holds no object, so it is not a run's")
        return {}
    return found


def _read_rows(run: Recorded, path: Path) -> None:
    """Reads metrics.jsonl, a row at a time."""
    no_number, no_room = 0, False
    try:
        for row in json_lines.rows(path):
            run.rows += 1
            step = as_number(row["step"])
            if not math.isfinite(step):
                no_number += 1
                continue
            run.last_step = step
            for name, value in row.items():
                if name == "step":
                    continue
                if type(value) is not float and value is not None and type(value) is not int:
                    no_number += 1
                    continue
                if (series := run.series.get(name)) is None:
                    if len(run.series) >= MOST_NAMES:
                        no_room = True
                        continue
                    series = run.series[name] = Series()
                series.add(step, value if type(value) is float else as_number(value))
    except (InputError, OSError) as error:
        run.problems.append(first_line(error))
    if not run.rows and not any(json_lines.NAME in problem for problem in run.problems):
        run.problems.append(f"{json_lines.NAME} is missing or has no rows")
    if no_number:
        run.problems.append(f"{json_lines.NAME}: {no_number:,} values are no numbers; they are left out")
    if no_room:
        run.problems.append(f"{json_lines.NAME}: names beyond the first {MOST_NAMES} are left out")


def as_number(value: Any) -> float:
    """`value` as a float; NaN for what is no number or has no place in one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        return math.nan
    return float(value)


def interval(name: str, numbers: Container[str]) -> tuple[str, str] | None:
    """The names of the ends of the interval of the number `name`; None where `numbers` has none.

    Those of "wer_new_texts" are "wer_low_new_texts" and "wer_high_new_texts".
    """
    parts = name.rsplit("_", 12)
    for at in range(len(parts), 0, -1):
        low, high = ("_".join([*parts[:at], end, *parts[at:]]) for end in ("low", "high"))
        if low in numbers and high in numbers:
            return low, high
    return None


def flat(tree: Any, name: str = "", depth: int = 12) -> dict[str, Any]:
    """{"model.num_layers": 2, ...} of nested objects.

    Args:
      tree: an object, or a value.
      name: the name of the value, for recursion.
      depth: what is nested deeper is a value, as lists are.
    """
    if not isinstance(tree, Mapping) or not depth:
        return {name: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{name}.{key}" if name else str(key), depth - 1)
    return found


def _lines(run: Recorded, path: Path) -> list[Mapping[str, Any]]:
    """The newest rows of a small file of lines."""
    kept: list[Mapping[str, Any]] = []
    try:
        for row in json_lines.rows(path):
            kept = [*kept[-MOST_ROWS + 1 :], row]
    except (InputError, OSError) as error:
        run.problems.append(first_line(error))
    return kept


def _pictures(run: Recorded, found: list[Path], folder: Path) -> list[tuple[str, bytes]]:
    """(name, bytes) of picture files; those that cannot be read are problems."""
    pictures = []
    for path in found[:MOST_PICTURES]:
        try:
            pictures.append((path.name, files.read(path, PICTURE_BYTES, inside=folder)))
        except (InputError, OSError) as error:
            run.problems.append(first_line(error))
    if len(found) > MOST_PICTURES:
        run.problems.append(f"{len(found) - MOST_PICTURES:,} further pictures are not shown")
    return pictures


def _spread(names: list[str]) -> list[str]:
    """At most `MOST_DRAWN` of the names of pictures, spread over their order, the last one among them."""
    names = sorted(name for name in names if name.lower().endswith(PICTURES))
    at = {round(i * (len(names) - 1) / max(1, MOST_DRAWN - 1)) for i in range(MOST_DRAWN)} if names else set()
    return [names[i] for i in sorted(at)]


def _owner(folder: Path) -> str:
    """The process that trains in the folder, in words; "" where none does, as far as that is known here."""
    try:
        owner = owners.read(files.read(folder / "lock", 4096, inside=folder))
    except (InputError, OSError):
        return ""
    return "" if owners.ended(owner) else owners.describe(owner)
