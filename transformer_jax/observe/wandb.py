"""Weights & Biases, https://wandb.ai: `pip install transformer-jax[wandb]`, `--log wandb`.

W&B's environment variables apply: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_DIR, ...
"""

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from transformer_jax.contracts import RunFacts
from transformer_jax.observe.scalars import Scalars


class WandB(Scalars):
    """Logs a run to W&B, under the run's id."""

    def start(self, run: RunFacts) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "transformer_jax"),
            name=os.environ.get("WANDB_NAME", PurePath(run.workdir).name),
            id=run.run_id,
            resume="allow",
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        print(f"wandb: {PurePath(self.run.dir).parent if self.run.offline else self.run.url}")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def end(self, results: Mapping[str, Any]) -> None:
        self.run.finish(exit_code=0 if results else 1)
