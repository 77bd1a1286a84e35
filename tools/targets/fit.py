"""Compiles every experiment at full size for chips that this machine does not have: does its step compile and fit?

    tools/run tools.targets.fit --json docs/fit.json             # all, on both targets: an hour and a half of two cores
    tools/run tools.targets.fit experiments/vit/digits.py --target tpu   # some of the files, one kind of chips
    tools/run tools.targets.fit experiments/vit/digits.py --layers 2     # a quick test of whether it compiles

Each step is compiled for eight TPUs with 16 GB, the smallest in use, and for eight GPUs with 80 GB, with the
experiment's batch and the least accumulation. If it does not fit, the nearest mesh that does is used
(`preflight.candidates`), if necessary on more chips. Experiments with the same step share a row. H200s run the H100's
programs, with more memory.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from tools import preflight, targets
from tools.targets import Target, compiled, footprint
from transformer_jax import brought
from transformer_jax.cli import process
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Mesh
from transformer_jax.nn import params as params_lib
from transformer_jax.train import program as programs

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"tpu": "tpu:v5e:2x4", "cuda": "cuda:h100:1x8"}
TRIES = 60  # meshes that are tried by arithmetic
MISSES = 3  # meshes that the compiler may refuse after the arithmetic allowed them


@dataclass(frozen=True)
class Step:
    """A training step, and the names `file:variant` of the experiments with this step."""

    names: tuple[str, ...]
    experiment: Experiment


@dataclass(frozen=True)
class Fit:
    """A step that fits its chips.

    Attributes:
      target: the chips.
      changes: overrides of the experiment; "": none.
      total: bytes on a device, by the compiler.
      seconds: of compilation.
    """

    target: Target
    changes: str
    total: int
    seconds: float


def files() -> list[Path]:
    """The files of all experiments."""
    return sorted(path for path in (ROOT / "experiments").rglob("*.py") if path.name != "__init__.py")


def steps(paths: list[Path]) -> list[Step]:
    """The distinct steps of all variants in the files.

    Args:
      paths: of experiments.
    """
    found: dict[Any, tuple[list[str], Experiment]] = {}
    for path in paths:
        for variant, recipe in process.variants(brought.read(str(path))[0]).items():
            experiment = recipe()
            name = f"{path.relative_to(ROOT / 'experiments').with_suffix('')}:{variant}"
            found.setdefault(_same(experiment), ([], experiment))[0].append(name)
    return [Step(tuple(names), experiment) for names, experiment in found.values()]


def on_one_chip(experiment: Experiment) -> programs.Program:
    """The program of an `experiment` on one chip."""
    mesh = targets.parse(KINDS["tpu"]).resized(1).abstract_mesh()
    return programs.make(dataclasses.replace(experiment, mesh=Mesh()), mesh, platform="tpu")


def _same(experiment: Experiment) -> str:
    """A text that is equal for experiments with the same step."""
    program, train = on_one_chip(experiment), experiment.train
    batch = jax.tree.map(lambda x: (x.shape, str(x.dtype)), program.batch)
    kinds = (type(experiment.task), type(experiment.optim))
    return repr((program.model, batch, train.accumulate, experiment.ema, kinds, experiment.mesh))


def arrangements(experiment: Experiment, target: Target) -> Iterator[tuple[Experiment, Target]]:
    """Yields ways to run an experiment, the simplest first.

    First on all chips, or on fewer if the batch does not divide, without accumulation, then with more of it up to the
    experiment's own; then on other meshes.

    Args:
      experiment: to run.
      target: the chips.
    """
    rows, chips = experiment.train.batch_size, target.num_chips
    while rows % chips:
        chips //= 2
    target = target if chips == target.num_chips else target.resized(chips)
    for accumulate in range(1, experiment.train.accumulate + 1):
        if rows % (target.num_devices * accumulate) == 0:
            yield with_accumulation(experiment, accumulate), target
    yield from preflight.candidates(with_accumulation(experiment, 1), target)


def with_accumulation(experiment: Experiment, accumulate: int) -> Experiment:
    """The `experiment` with its batch in `accumulate` parts."""
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, accumulate=accumulate))


def with_layers(experiment: Experiment, layers: int) -> Experiment:
    """The `experiment` with `layers` layers in each stack of its model."""
    changes = dict.fromkeys(footprint.depths(experiment.model), layers)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))


def fit(experiment: Experiment, target: Target) -> Fit:
    """The first arrangement that fits by arithmetic and by the compiler.

    Args:
      experiment: to run.
      target: the chips.

    Raises:
      InputError: none fits.
    """
    missed = 0
    for count, (other, chips) in enumerate(arrangements(experiment, target)):
        if count == TRIES or missed == MISSES:
            break
        try:
            if footprint.footprint(other, chips).total > preflight.capacity(chips):
                continue
        except InputError:
            continue  # a dimension that does not divide
        try:
            step = compiled.compile_step(other, chips)
        except compiled.TooLarge:
            missed += 1
            continue
        if step.total <= preflight.capacity(chips):
            return Fit(chips, preflight.changes(experiment, chips, other, chips), step.total, step.seconds)
        missed += 1
    raise InputError(f"nothing that was tried fits {target.name} ({count} arrangements, {missed} of them compiled)")


def row(step: Step, fits: dict[str, Fit]) -> dict[str, Any]:
    """A row of the table as JSON.

    Args:
      step: of the experiments.
      fits: {kind of chips: the fit}.
    """
    return {
        "names": step.names,
        "parameters": params_lib.count(on_one_chip(step.experiment).declaration),
        "batch_size": step.experiment.train.batch_size,
        "fits": {
            kind: {
                "target": one.target.name,
                "changes": one.changes,
                "bytes": one.total,
                "of": one.target.chip.memory / one.target.chip.devices,
                "seconds": one.seconds,
            }
            for kind, one in fits.items()
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The `rows` as a Markdown table."""
    lines = ["| experiment | parameters | batch | " + " | ".join(KINDS) + " |", "|---|---:|---:|" + "---|" * len(KINDS)]
    for one in rows:
        first, *more = one["names"]
        cells = []
        for kind in KINDS:
            found = one["fits"].get(kind)
            if found is None:
                cells.append("")
                continue
            changes = f" `{found['changes']}`" if found["changes"] else ""
            cells.append(f"`{found['target']}`{changes}: {found['bytes'] / 1e9:.2f} of {found['of'] / 1e9:.0f} GB")
        also = f" (also {', '.join(name.split(':')[1] for name in more)})" if more else ""
        cells = [f"{one['parameters'] / 1e6:,.1f} M", f"{one['batch_size']:,}", *cells]
        lines.append(f"| `{first.removesuffix(':experiment')}`{also} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(file: Path | None) -> list[dict[str, Any]]:
    """The rows of an earlier run. Refuses another kind of file."""
    if file is None or not file.exists():
        return []
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        if all(one["names"] and {"parameters", "batch_size", "fits"} <= one.keys() for one in rows):
            return rows
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise InputError(f"--json {file}: not written by this tool; delete it, or give another name")


def main(arguments: list[str]) -> int:
    """Compiles the steps and prints a line for each. The exit code is 1 if one does not fit, 2 without a compiler."""
    targets.without_chips()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="of experiments; default: all")
    parser.add_argument("--target", choices=KINDS, action="append", help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keeps the rows of this file and adds the others")
    parser.add_argument("--layers", type=int, metavar="N", help="layers in each stack, instead of its own depth")
    options = parser.parse_args(arguments)
    if options.layers is not None and options.layers < 1:
        print(f"fit: --layers {options.layers}: give 1 or more", file=sys.stderr)
        return 2
    if options.layers and options.json:
        print("fit: --layers with --json: the file holds rows of whole models; give only one of them", file=sys.stderr)
        return 2
    kinds = options.target or list(KINDS)
    for kind in kinds:
        target = targets.parse(KINDS[kind])
        if not target.compiles():
            extra, _ = targets.COMPILERS[kind]
            print(f"fit: the compiler for {target.name} is not installed; tools/install {extra}", file=sys.stderr)
            return 2
    try:
        rows = {one["names"][0]: one for one in _read(options.json)}
        found = steps([path.resolve() for path in options.files] or files())
        if options.layers:
            found = [Step(one.names, with_layers(one.experiment, options.layers)) for one in found]
    except InputError as error:
        print(f"fit: {error}", file=sys.stderr)
        return 2
    failed = False
    for step in found:
        fits = {}
        for kind in kinds:
            if kind in rows.get(step.names[0], {}).get("fits", {}):
                continue
            try:
                fits[kind] = fit(step.experiment, targets.parse(KINDS[kind]))
            except InputError as error:
                failed = True
                print(f"fit: {step.names[0]}: {error}", file=sys.stderr, flush=True)
        new = row(step, fits)
        new["fits"] = {**rows.get(step.names[0], {}).get("fits", {}), **new["fits"]}
        rows[step.names[0]] = new
        print(table([new]).splitlines()[-1], flush=True)
        if options.json:
            options.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    print(table(list(rows.values())))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
