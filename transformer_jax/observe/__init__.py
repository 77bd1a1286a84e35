"""What is reported of a run while it trains: on the terminal, in metrics.jsonl, to TensorBoard and to other services.

    with observe.start(observers, facts, primary=jax.process_index() == 0) as observing:
        observing.row({"step": 1, "loss": 3.2})
        observing.evaluation(100, "validation", {"loss": 2.9})
        observing.save(100)
        observing.end(results)

`contracts.Observer` states the events of a run; docs/logging.md shows how to write an observer.
"""

from transformer_jax.observe.json_lines import JsonLines, read_rows, rows
from transformer_jax.observe.meter import Meter, peak_flops
from transformer_jax.observe.observing import DEFAULT, Observing, start
from transformer_jax.observe.plot import plot_loss
from transformer_jax.observe.scalars import Scalars
from transformer_jax.observe.sending import Sending
from transformer_jax.observe.services import SERVICES, named
from transformer_jax.observe.tensorboard import TensorBoard
from transformer_jax.observe.terminal import Terminal, banner, counting, describe, duration, table

__all__ = [
    "DEFAULT",
    "SERVICES",
    "JsonLines",
    "Meter",
    "Observing",
    "Scalars",
    "Sending",
    "TensorBoard",
    "Terminal",
    "banner",
    "counting",
    "describe",
    "duration",
    "named",
    "peak_flops",
    "plot_loss",
    "read_rows",
    "rows",
    "start",
    "table",
]
