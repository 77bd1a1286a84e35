"""The task's sample of a run: what the model predicts or generates, printed when training ends."""

import jax

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
    text = "".join(task.sample(*arguments, seed=run.experiment.seed))
    run.observing.sample(run.step, text)
    return text
