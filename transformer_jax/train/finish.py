"""The end of a run: the last evaluation and save, the test set by the best step, a sample, results.json."""

import signal
import time
from collections.abc import Mapping
from typing import Any

import jax

import transformer_jax
from transformer_jax import extras, hosts, observe
from transformer_jax.nn import params as params_lib
from transformer_jax.observe import banner
from transformer_jax.runs import checkpoint, fingerprint, launch, records, saved
from transformer_jax.runs import workdir as workdirs
from transformer_jax.train import sampling, steps
from transformer_jax.train.folder import Results
from transformer_jax.train.setup import Run


def last_numbers(run: Run) -> tuple[dict[str, Any], int | None]:
    """Evaluates and saves the last step of `run`, and evaluates the best step that is kept on the test set.

    Returns:
      The numbers of the test set, {} where there is none or a signal ended the run; and the best step, None where no
      evaluation gave a finite number, or its files are damaged.
    """
    if run.complete and (run.step >= run.last_step or not run.report):
        steps.validate(run)
    # If a resumed run finds this step saved, the older steps are deleted that should have been deleted with it.
    steps.save(run)
    while run.writer.wait():
        steps.save(run)
    if run.report and run.complete:
        scores = _score(run, run.evaluated(), run.prepared.validation, "validation")
        if scores:
            run.observing.evaluation(run.step, "validation", scores)
        run.report = {**run.report, **scores}
    kept = hosts.first("the steps that are kept", saved.steps(run.folder.path / "checkpoints"))
    best_step = run.best.among(kept).step
    if run.prepared.test is None or run.stop.number:
        return {}, best_step
    best_step, params = _best_parameters(run, best_step)
    test, run.outputs = run.evaluator.numbers(params, run.prepared.test, keep=run.folder.local / records.name("test"))
    test |= _score(run, params, run.prepared.test, "test")  # type: ignore[arg-type]
    if not run.stop.number:  # after a signal the numbers may lack scores; the resumed run evaluates the set again
        run.observing.evaluation(run.step, "test", test)
    return dict(test), best_step


def _best_parameters(run: Run, best_step: int | None) -> tuple[int | None, Any]:
    """The best step and its parameters; those of the last step where there is no other, or its files are damaged."""
    if best_step in (None, run.step):  # None: no evaluation gave a finite number
        return best_step, run.evaluated()
    folder = run.folder.path / "checkpoints" / str(best_step)
    damage = saved.damage_of(folder, items=[saved.weights(folder)], together=True)
    if damage:
        banner(7, f"step {best_step:,}, the best on validation, is damaged; step {run.step:,} is used: {damage}")
        return None, run.evaluated()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.state.params)
    return best_step, params_lib.join(checkpoint.restore_params(folder, shapes, verify=False)[0], run.state.base)


def _score(run: Run, params: Any, examples: Any, name: str) -> dict[str, float | str]:
    """The numbers of the text that the model generates for a set; {} after a signal."""
    log = lambda line: banner(7, run.folder.with_workdir(line))  # noqa: E731
    tokenizer, folder = run.prepared.tokenizer, run.folder.local
    return run.evaluator.scores(params, tokenizer, examples, folder, name, log=log, stop=run.stop)


def stopped(run: Run) -> Results:
    """The results of a `run` that a signal ended; its state is saved."""
    name = signal.Signals(run.stop.number).name
    banner(7, f"{name}: saved at step {run.step:,} of {run.last_step:,}")
    banner(7, run.meter.goodput_in_words(time.perf_counter() - run.began))
    _plot(run)
    return Results(run.step, {}, run.stop.number)


def finish(run: Run, test: Mapping[str, Any], best_step: int | None) -> Results:
    """Draws figures, prints a sample and the numbers, and writes results.json.

    Args:
      run: complete.
      test: the numbers of the test set.
      best_step: the step that they are of; None: the last one.
    """
    folder, prepared, experiment = run.folder.local, run.prepared, run.experiment
    _plot(run)
    _pictures(run)
    text = sampling.sample(run)
    if text:
        banner(8, "a sample:")
        print(text, flush=True)
    seconds = time.perf_counter() - run.began
    results = {
        "step": run.step,
        "report": dict(run.report),
        "best_step": best_step,
        "test": dict(test),
        "stopped_by_patience": experiment.evaluate.patience if run.step < run.last_step else 0,
        "facts": dict(prepared.facts),
        "sample": text,
        "parameters": params_lib.count(run.program.declaration),
        "skipped_steps": int(run.state.skipped),
        "seconds": seconds,
        "seconds_to_first_step": run.to_first_step,
        "seconds_compiling": run.compile_seconds,
        "goodput": run.meter.goodput(seconds),
        "seconds_by_activity": dict(run.meter.spent),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "source": f"{transformer_jax.__version__}, {fingerprint.source_hash()[:12]}",
        "data": fingerprint.identity(prepared),
        "command": launch.command(),
    }
    if jax.process_index() == 0:
        workdirs.write_json(folder / "results.json", results)
    run.observing.end(results)
    if run.step < run.last_step:
        banner(8, f"stopped: {experiment.evaluate.patience} evaluations without a better {run.metric}")
    banner(8, f"done in {observe.duration(seconds)}: {observe.describe(dict(run.report), run.metric)}")
    if test:
        by = f"step {run.step:,}" if best_step is None else f"step {best_step:,}, the best on validation"
        banner(8, f"test set, by {by}: {observe.describe(dict(test), run.metric)}")
    for label, value in {**run.report, **test}.items():
        if isinstance(value, str):
            banner(8, f"{label.replace('_', ' ')}: {value}")
    banner(8, run.meter.goodput_in_words(seconds))
    banner(8, f"all numbers: {run.folder.path / 'results.json'}")
    return Results(run.step, run.report, test=test)


def _plot(run: Run) -> None:
    if jax.process_index() == 0:
        try:
            observe.plot_loss(observe.rows(run.folder.local / "metrics.jsonl"), run.folder.local / "loss.png")
        except extras.Missing as missing:
            banner(8, f"not written: {missing}")


def _pictures(run: Run) -> None:
    """Draws the task's figures of the test set, or of the validation set where there is none."""
    test = run.prepared.test
    pictured, name = (run.prepared.validation, "validation") if test is None else (test, "test")
    if jax.process_index() == 0:
        try:
            for path in run.experiment.task.pictures(run.outputs, pictured, run.folder.local, name):
                banner(8, run.folder.with_workdir(f"picture: {path}"))
        except extras.Missing as missing:
            banner(8, f"not written: {missing}")
