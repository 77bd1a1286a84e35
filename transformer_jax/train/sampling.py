"""What the model of a run makes: the task's sample, and pictures that it draws at each evaluation."""

import contextlib

import jax
import numpy as np

from transformer_jax import extras
from transformer_jax.contracts import Task
from transformer_jax.train import state as state_lib
from transformer_jax.train.setup import Run


def sample(run: Run) -> str:
    """The task's sample by the parameters of now, which the observers receive. Only host 0 computes it; "" elsewhere.

    Args:
      run: in progress.
    """
    params = state_lib.on_this_host(run.evaluated(), run.program.declaration)
    if jax.process_index() != 0:
        return ""
    task, options = run.experiment.task, run.experiment.sample
    arguments = (params, run.program.model, run.prepared.tokenizer, options)
    with _no_mesh():
        text = "".join(task.sample(*arguments, seed=run.experiment.seed))
    run.observing.sample(run.step, text)
    return text


def draw(run: Run) -> None:
    """Has the task of `run` draw into WORKDIR/drawn, where it draws."""
    task, folder = run.experiment.task, run.folder.local / "drawn"
    if type(task).drawn is Task.drawn:
        return
    params = state_lib.on_this_host(run.evaluated(), run.program.declaration)
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        arguments = (run.program.model, run.prepared.tokenizer, run.prepared.validation, run.experiment.sample, folder)
        with _no_mesh():
            try:
                for path in task.drawn(params, *arguments, f"{run.step:07d}"):
                    run.observing.print_line(f"drawn: {path.relative_to(run.folder.local)}")
            except extras.Missing as missing:
                run.observing.print_line(f"not drawn: {missing}")


def _no_mesh() -> contextlib.AbstractContextManager[object]:
    """No mesh in a context that has the run's: the parameters may be on one device of it, and a sample is one row."""
    return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
