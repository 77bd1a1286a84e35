"""`evaluate`: the numbers of a run, or of a Hugging Face folder, on a validation set, a test set or files given."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer_jax import config_json, overrides
from transformer_jax.cli import process
from transformer_jax.cli.arguments import PROGRAM, of_base, path, positional, verified, with_types
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, compute_dtype, computed_in


def main(arguments: list[str]) -> int:
    """Evaluate a run on its whole validation set, and on its test set where it has one; or on files given.

        transformer-jax evaluate PATH [--data FILE ...] [--with FILE] [--base DIR] [--FIELD VALUE ...]

    Of a run, the newest checkpoint is evaluated; with a test set the best one, which was evaluated on it. The numbers
    are printed and stored in WORKDIR/evaluation.json, with figures in the same folder. Fields of the run's experiment
    can be overridden, such as other text or a larger batch:

        transformer-jax evaluate runs/a
        transformer-jax evaluate runs/a --evaluate.batch-size 64

    --data names files, or a folder of images, to evaluate on instead; they are read as the run's own were, and those
    need not be there. A translator takes two files, or tables. PATH may then be a Hugging Face folder too, or its name
    on the Hub; of this nothing is stored.

        transformer-jax evaluate runs/sst2 --data reviews.csv --data.source.text review --data.source.label stars
        transformer-jax evaluate downloads/bert-finetuned-ner --data test.conll
        transformer-jax evaluate hf://dslim/bert-base-NER --data test.conll

    A translator's text is written to WORKDIR/validation.hypotheses.txt and WORKDIR/test.hypotheses.txt, or
    given.hypotheses.txt:

        transformer-jax evaluate runs/de --task.beam.width 1 --data other.en other.de
    """
    types, arguments = with_types(arguments)
    where, rest = positional(main, arguments, 1)
    verify, rest = verified(rest)
    base, rest = of_base(rest)
    files, given = _files(rest)
    folder, loaded = path(where, verify=verify), None
    from transformer_jax import hub, restore
    from transformer_jax.runs import store

    if not store.remote(folder) and hub.is_snapshot(folder):
        loaded = restore.load(folder)
        stored = _experiment(loaded, where)
    else:
        stored = config_json.load(folder / "config.json", types)
    if files:
        stored = _reading(stored, files)
    asked = overrides.override(stored, given, description="", program=f"{PROGRAM} evaluate {where}")
    _refuse_other_model(stored, asked)
    if loaded is None:  # otherwise JAX has started
        process.keep_freed_memory(asked)
        process.use_cpu_cores(asked)
    process.keep_compilations()
    from transformer_jax import observe, sharding
    from transformer_jax.runs import records
    from transformer_jax.runs import workdir as workdirs

    mesh = sharding.make_mesh(**dataclasses.asdict(asked.mesh))
    if loaded is None or mesh.size > 1:
        loaded = restore.load(workdirs.chosen(folder), sharding=mesh, verify=verify, types=types, base=base)
    model = _model(loaded.config, stored, asked)
    prepared = asked.task.prepare(asked.data, model, seed=asked.seed, workdir_tokenizer=loaded.tokenizer)
    load = functools.partial(restore.load, verify=verify, types=types)
    evaluator = _evaluator(asked, model, mesh, prepared.tokenizer, load)
    sets = {"given" if files else "validation": prepared.validation}
    sets |= {} if prepared.test is None else {"test": prepared.test}
    of = where if loaded.step is None else f"step {loaded.step:,}"
    reports = {}
    with _kept(folder, stores=loaded.step is not None) as (local, publish):
        log = lambda line: print(line.replace(str(local), str(folder)))  # noqa: E731
        for name, examples in sets.items():
            keep = local / records.name(name) if publish else None
            numbers, outputs = evaluator.numbers(loaded.params, examples, keep=keep)
            scores = evaluator.scores(loaded.params, prepared.tokenizer, examples, local, name, log=log)
            reports[name] = {**numbers, **scores}
            what = ", ".join(files) or f"{name} set"
            print(f"{of}, {what}, {len(examples.examples):,} examples\n{observe.table(reports[name])}")
            if publish:
                for picture in asked.task.pictures(outputs, examples, local, name):
                    log(f"picture: {picture}")
        if publish:
            first = next(iter(reports))
            made = {"step": loaded.step, "report": reports.pop(first), **reports, "overrides": rest}
            workdirs.write_json(local / "evaluation.json", made)
            publish()
    return 0


def _evaluator(asked: Experiment, model: Any, mesh: Any, tokenizer: Any, load: Callable[..., Any]) -> Any:
    """The evaluator of an experiment, with the further models that its task reads."""
    from transformer_jax.train import evaluate as evaluation
    from transformer_jax.train import further as further_lib

    size = asked.evaluate.batch_size or asked.train.batch_size // asked.train.accumulate
    frozen: dict[str, Any] = {}
    tokenizers: dict[str, Any] = {}
    if further_lib.evaluate_reads(asked, model, mesh):
        frozen, tokenizers = further_lib.load(asked, model, mesh, load)
    further_lib.check_tokenizers(tokenizers, tokenizer)
    return evaluation.make(asked.task, asked.data, model, mesh, batch_size=size, frozen=frozen)


def _files(arguments: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The files that --data names, and the other arguments."""
    if "--data" not in arguments:
        return (), arguments
    at = arguments.index("--data") + 1
    end = next((i for i in range(at, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    if at == end:
        raise InputError("--data names no file; give the files to evaluate on: --data FILE ...")
    return tuple(arguments[at:end]), arguments[: at - 1] + arguments[end:]


def _reading(experiment: Experiment, files: tuple[str, ...]) -> Experiment:
    """The experiment with data of these files alone."""
    source: Any = getattr(experiment.data, "source", None)
    if not hasattr(source, "of_files"):
        raise InputError(
            f"--data: {type(source or experiment.data).__name__} has no of_files, so it reads no other files"
        )
    changed = {"source": source.of_files(files)} | (
        {"store": (), "rates": ()} if hasattr(experiment.data, "store") else {}
    )
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **changed))


def _experiment(loaded: Any, where: str) -> Experiment:
    """What a Hugging Face folder is evaluated as: its task on the task's own data, or on files that are given."""
    from transformer_jax.data import tokenizers
    from transformer_jax.runs.workdir import kind

    if loaded.task is None:
        raise InputError(f"{where}: no task here is for {kind(loaded)}, so there is nothing to evaluate")
    if loaded.tokenizer is None and loaded.task.reads_text:
        raise InputError(f"{where} has no tokenizer, so a text means nothing to it; add its tokenizer.json")
    data = loaded.task.default_data(tokenizers.TokenizerFile(where), loaded.config)
    return Experiment(model=loaded.config, data=data, task=loaded.task)


@contextlib.contextmanager
def _kept(folder: Path, *, stores: bool) -> Iterator[tuple[Path, Callable[[], None] | None]]:
    """A folder to write into, and what uploads it; None where nothing is kept: a Hugging Face folder is not ours, and a
    folder on a disk that is read-only keeps nothing."""
    from transformer_jax.runs import mirror, store

    if stores and not store.remote(folder):
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            stores = False
            print(f"{folder} cannot be written ({error.strerror}): the numbers are printed and not stored there")
    if stores:
        with mirror.local_mirror(folder) as (local, publish):
            yield local, publish
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere), None


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
