"""Every experiment on disk at full size, by the compilers of chips that are not here: does its step compile and fit?

    tools/run tools.targets.fit --json docs/fit.json             # all, on both targets: an hour and a half of two cores
    tools/run tools.targets.fit experiments/vit/digits.py --target tpu   # some of the files, one kind of chips
    tools/run tools.targets.fit experiments/vit/digits.py --layers 2     # whether it compiles, sooner

Each step is compiled for eight chips with 16 GB, the smallest TPUs in use, and for eight GPUs with 80 GB: with the
experiment's batch, and accumulating no more than it must there. Where that does not fit, the nearest mesh that does
takes its place (`preflight.candidates`), on more chips if need be. Experiments whose steps are the same but for the
data share a row. H200s run the H100's programs, with more memory.
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
TRIES = 60  # meshes by arithmetic, before it is said that none fits
MISSES = 3  # of the arithmetic by its compiler, likewise


@dataclass(frozen=True)
class Step:
    """A training step, and the experiments whose step it is, as `file:variant`."""

    names: tuple[str, ...]
    experiment: Experiment


@dataclass(frozen=True)
class Fit:
    """How a step runs on chips.

    Fields:
      target: which, and how many.
      changes: on the experiment's command line, "" where there are none.
      total: bytes of a device by its compiler.
      seconds: that compiling took.
    """

    target: Target
    changes: str
    total: int
    seconds: float


def files() -> list[Path]:
    """Every experiment's file."""
    return sorted(path for path in (ROOT / "experiments").rglob("*.py") if path.name != "__init__.py")


def steps(paths: list[Path]) -> list[Step]:
    """The steps of all variants in these files, each once."""
    found: dict[Any, tuple[list[str], Experiment]] = {}
    for path in paths:
        for variant, recipe in process.variants(brought.read(str(path))[0]).items():
            experiment = recipe()
            name = f"{path.relative_to(ROOT / 'experiments').with_suffix('')}:{variant}"
            found.setdefault(_same(experiment), ([], experiment))[0].append(name)
    return [Step(tuple(names), experiment) for names, experiment in found.values()]


def on_one_chip(experiment: Experiment) -> programs.Program:
    """Its program, to read."""
    mesh = targets.parse(KINDS["tpu"]).resized(1).abstract_mesh()
    return programs.make(dataclasses.replace(experiment, mesh=Mesh()), mesh, platform="tpu")


def _same(experiment: Experiment) -> str:
    """What two experiments with the same step have in common."""
    program, train = on_one_chip(experiment), experiment.train
    batch = jax.tree.map(lambda x: (x.shape, str(x.dtype)), program.batch)
    kinds = (type(experiment.task), type(experiment.optim))
    return repr((program.model, batch, train.accumulate, experiment.ema, kinds, experiment.mesh))


def arrangements(experiment: Experiment, target: Target) -> Iterator[tuple[Experiment, Target]]:
    """Ways to run it, the plainest first: on all of the chips or, for a batch that does not divide, on fewer; without
    accumulation or with ever more of it, up to the experiment's own; then other meshes."""
    rows, chips = experiment.train.batch_size, target.num_chips
    while rows % chips:
        chips //= 2
    target = target if chips == target.num_chips else target.resized(chips)
    for accumulate in range(1, experiment.train.accumulate + 1):
        if rows % (target.num_devices * accumulate) == 0:
            yield with_accumulation(experiment, accumulate), target
    yield from preflight.candidates(with_accumulation(experiment, 1), target)


def with_accumulation(experiment: Experiment, accumulate: int) -> Experiment:
    """The experiment with its batch in so many parts."""
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, accumulate=accumulate))


def with_layers(experiment: Experiment, layers: int) -> Experiment:
    """The experiment with each of its model's stacks so deep."""
    changes = dict.fromkeys(footprint.depths(experiment.model), layers)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changes))


def fit(experiment: Experiment, target: Target) -> Fit:
    """The first arrangement that fits, by arithmetic and then by the compiler. Errors: `InputError` if none does."""
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
    """A row of the table, as JSON holds it."""
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
    """The rows as Markdown."""
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
    """The rows of an earlier run. Errors: `InputError` for a file that is none of ours."""
    if file is None or not file.exists():
        return []
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        if all(one["names"] and {"parameters", "batch_size", "fits"} <= one.keys() for one in rows):
            return rows
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise InputError(f"--json {file}: not what this tool wrote; delete it, or give another name")


def main(arguments: list[str]) -> int:
    """Compiles, and prints a line for each. Exit code 1 where one does not fit, 2 without a compiler."""
    targets.without_chips()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="of experiments; default: all")
    parser.add_argument("--target", choices=KINDS, action="append", help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows that are there are kept, the rest added")
    parser.add_argument("--layers", type=int, metavar="N", help="each stack of layers so deep, and not its own depth")
    options = parser.parse_args(arguments)
    if options.layers is not None and options.layers < 1:
        print(f"fit: --layers {options.layers}: give 1 or more", file=sys.stderr)
        return 2
    if options.layers and options.json:
        print("fit: --layers with --json: the file's rows are those of whole models; leave one out", file=sys.stderr)
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
