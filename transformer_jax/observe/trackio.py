"""Trackio, https://github.com/gradio-app/trackio: `pip install transformer-jax[trackio]`, `--log trackio`.

Trackio's environment variables apply: TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL, ... TRACKIO_PROJECT, the name
of the project, is read by this module.
"""

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from transformer_jax.contracts import RunFacts
from transformer_jax.observe.scalars import Scalars


class Trackio(Scalars):
    """Logs a run to Trackio, which identifies a run by its name: here the workdir's name and the run's id."""

    def start(self, run: RunFacts) -> None:
        import trackio

        self.run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", "transformer_jax"),
            name=f"{PurePath(run.workdir).name}-{run.run_id}",
            resume="allow",
            config=dict(run.config),
            embed=False,
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def end(self, results: Mapping[str, Any]) -> None:
        import trackio

        trackio.finish()
