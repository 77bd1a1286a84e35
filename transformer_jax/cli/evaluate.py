"""`evaluate`: the numbers of a run on its validation set and its test set."""

import dataclasses
from typing import Any

from transformer_jax import config_json, overrides
from transformer_jax.cli import process
from transformer_jax.cli.arguments import PROGRAM, path, positional, verified, with_types
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, compute_dtype, computed_in


def main(arguments: list[str]) -> int:
    """Evaluate a run on its whole validation set, and on its test set where it has one.

        transformer-jax evaluate WORKDIR [--with FILE] [--FIELD VALUE ...]

    The newest checkpoint is evaluated; of a run with a test set the best one, which was evaluated on it. The numbers
    are printed and stored in WORKDIR/evaluation.json, with figures in the same folder. Fields of the run's experiment
    can be overridden, such as other text or a larger batch:

        transformer-jax evaluate runs/a
        transformer-jax evaluate runs/a --evaluate.batch-size 64

    A translator's text is written to WORKDIR/validation.hypotheses.txt and WORKDIR/test.hypotheses.txt:

        transformer-jax evaluate runs/de --task.beam.width 1 --data.source.test other.en other.de
    """
    types, arguments = with_types(arguments)
    workdir, rest = positional(main, arguments, 1)
    verify, rest = verified(rest)
    folder = path(workdir)
    stored = config_json.load(folder / "config.json", types)
    asked = overrides.override(stored, rest, description="", program=f"{PROGRAM} evaluate {workdir}")
    _refuse_other_model(stored, asked)
    process.keep_freed_memory(asked)
    process.use_cpu_cores(asked)
    process.keep_compilations()
    from transformer_jax import observe, restore, sharding
    from transformer_jax.runs import store
    from transformer_jax.runs import workdir as workdirs
    from transformer_jax.train import evaluate as evaluation

    mesh = sharding.make_mesh(**dataclasses.asdict(asked.mesh))
    loaded = restore.load(workdirs.chosen(folder), sharding=mesh, verify=verify, types=types)
    model = _model(loaded.config, stored, asked)
    prepared = asked.task.prepare(asked.data, model, seed=asked.seed, workdir_tokenizer=loaded.tokenizer)
    size = asked.evaluate.batch_size or asked.train.batch_size // asked.train.accumulate
    evaluator = evaluation.make(asked.task, asked.data, model, mesh, batch_size=size)
    reports = {}
    with store.near(folder) as (near, publish):
        log = lambda line: print(line.replace(str(near), str(folder)))  # noqa: E731
        for name, examples in {"validation": prepared.validation, "test": prepared.test}.items():
            if examples is None:
                continue
            numbers, outputs = evaluator.numbers(loaded.params, examples)
            scores = evaluator.scores(loaded.params, prepared.tokenizer, examples, near, name, log=log)
            reports[name] = {**numbers, **scores}
            count = len(examples.examples)
            print(f"step {loaded.step:,}, {name} set, {count:,} examples\n{observe.table(reports[name])}")
            for picture in asked.task.pictures(outputs, examples, near, name):
                log(f"picture: {picture}")
        stored_numbers = {"step": loaded.step, "report": reports.pop("validation"), **reports, "overrides": rest}
        workdirs.write_json(near / "evaluation.json", stored_numbers)
        publish()
    return 0


def _refuse_other_model(stored: Experiment, asked: Experiment) -> None:
    """Raises `InputError` for an override of a field of the model that decides what its parameters mean."""
    for field, old, new, may_change in config_json.differences(stored.model, asked.model, "model"):
        if not may_change:
            raise InputError(f"{field} is {old} in this run, and its parameters are of that; {new} cannot be evaluated")


def _model(config: Any, stored: Experiment, asked: Experiment) -> Any:
    """The checkpoint's config with the overrides of fields that decide only how it is computed."""
    changed = {path.split(".")[1] for path, *_ in config_json.differences(stored.model, asked.model, "model")}
    config = dataclasses.replace(config, **{name: getattr(asked.model, name) for name in changed})
    return computed_in(config, compute_dtype(asked.precision))
