"""MLflow, https://mlflow.org: `pip install transformer-jax[mlflow]`, `--log mlflow`.

MLflow's environment variables apply: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...
"""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from transformer_jax.contracts import RunFacts
from transformer_jax.observe.scalars import Scalars

TAG = "transformer_jax.run_id"
PARAMS = 100  # MLflow's limit for one request
LONGEST = 500  # the most characters of a value: every version of MLflow accepts so many


class MLflow(Scalars):
    """Logs a run to MLflow. A resumed run is found by its tag and continued."""

    def start(self, run: RunFacts) -> None:
        import mlflow

        self.client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "transformer_jax")
        known = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if known is None else known.experiment_id
        found = self.client.search_runs([experiment], f"tags.`{TAG}` = '{run.run_id}'", max_results=1)
        self.run = found[0].info.run_id if found else self._create(experiment, run)
        self.client.update_run(self.run, status="RUNNING")
        print(f"mlflow: run {self.run} of experiment {name}, {mlflow.get_tracking_uri()}")

    def _create(self, experiment: str, run: RunFacts) -> str:
        """A new run with the config as its parameters, which cannot be changed later."""
        from mlflow.entities import Param

        tags = {TAG: run.run_id, "mlflow.source.name": run.workdir}
        made = self.client.create_run(experiment, tags=tags, run_name=PurePath(run.workdir).name).info.run_id
        params = [Param(name, str(value)[:LONGEST]) for name, value in _flat(run.config)]
        for first in range(0, len(params), PARAMS):
            self.client.log_batch(made, params=params[first : first + PARAMS])
        return made

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[Metric(name, x, now, step) for name, x in numbers.items()])

    def end(self, results: Mapping[str, Any]) -> None:
        self.client.set_terminated(self.run, "FINISHED" if results else "KILLED")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of a nested config."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
