"""`evaluate`: the numbers of a run on its validation set and its test set."""

import dataclasses

from transformer_jax import config_json, overrides
from transformer_jax.cli import launch
from transformer_jax.cli.arguments import PROGRAM, path, positional, verified, with_types


def main(arguments: list[str]) -> int:
    """Evaluate a run on its whole validation set, and on its test set where it has one.

        python -m transformer_jax evaluate WORKDIR [--with FILE] [--FIELD VALUE ...]

    The newest checkpoint is evaluated; of a run with a test set the best one, by which it was reported. Prints the
    numbers and stores them in WORKDIR/evaluation.json, pictures beside it. Fields of the run's experiment can be
    overridden, such as other text or a larger batch:

        python -m transformer_jax evaluate runs/a
        python -m transformer_jax evaluate runs/a --evaluate.batch-size 64

    A translator's text is written to WORKDIR/validation.hypotheses.txt and WORKDIR/test.hypotheses.txt:

        python -m transformer_jax evaluate runs/de --task.beam.width 1 --data.source.test other.en other.de
    """
    types, arguments = with_types(arguments)
    workdir, rest = positional(main, arguments, 1)
    verify, rest = verified(rest)
    folder = path(workdir)
    stored = config_json.load(folder / "config.json", types)
    asked = overrides.override(stored, rest, description="", program=f"{PROGRAM} evaluate {workdir}")
    launch.keep_freed_memory(asked)
    launch.use_cpu_cores(asked)
    launch.keep_compilations()
    from transformer_jax import observe, restore, sharding
    from transformer_jax.runs import store
    from transformer_jax.runs import workdir as workdirs
    from transformer_jax.train import evaluate as evaluation

    mesh = sharding.make_mesh(**dataclasses.asdict(asked.mesh))
    loaded = restore.load(workdirs.chosen(folder), sharding=mesh, verify=verify, types=types)
    prepared = asked.task.prepare(asked.data, loaded.config, seed=asked.seed, workdir_tokenizer=loaded.tokenizer)
    size = asked.evaluate.batch_size or asked.train.batch_size // asked.train.accumulate
    evaluator = evaluation.make(asked.task, asked.data, loaded.config, mesh, batch_size=size)
    reports = {}
    with store.near(folder) as (near, publish):
        log = lambda line: print(line.replace(str(near), str(folder)))  # noqa: E731
        for name, examples in {"validation": prepared.validation, "test": prepared.test}.items():
            if examples is None:
                continue
            numbers, outputs = evaluator.numbers(loaded.params, examples)
            scores = evaluator.scores(loaded.params, prepared.tokenizer, examples, near, name, say=log)
            reports[name] = {**numbers, **scores}
            count = len(examples.examples)
            print(f"step {loaded.step:,}, {name} set, {count:,} examples\n{observe.table(reports[name])}")
            for picture in asked.task.pictures(outputs, examples, near, name):
                log(f"picture: {picture}")
        stored_numbers = {"step": loaded.step, "report": reports.pop("validation"), **reports, "overrides": rest}
        workdirs.write_json(near / "evaluation.json", stored_numbers)
        publish()
    return 0
