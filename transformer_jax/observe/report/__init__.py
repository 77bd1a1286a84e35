"""The page of a run, WORKDIR/report.html, and what it needs that no other file records.

launches.jsonl    each start of the run: when, the command, the commit of the code, the machine, the data, and what
                  the command changed of the recipe
samples.jsonl     {"step": 500, "text": ...}: the task's sample at the end and, with `evaluate.sample`, after each
                  evaluation
report.html       the page, in one file, written when the run ends
"""

import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from transformer_jax import files
from transformer_jax.contracts import Observer, RunFacts
from transformer_jax.observe import json_lines
from transformer_jax.observe.report import recorded
from transformer_jax.observe.report.contents import render
from transformer_jax.observe.report.recorded import LAUNCHES, PAGE, SAMPLES
from transformer_jax.runs import fingerprint, launch, versions

__all__ = ["PAGE", "RunPage", "made", "render"]


class RunPage(Observer):
    """Records launches and samples, and writes the page when the run ends, also after a signal or an error."""

    def start(self, run: RunFacts) -> None:
        self.run = run
        self.sampled = _trimmed(run.folder / SAMPLES, run.first_step)
        line = {
            "step": run.first_step,
            "at": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
            "steps": run.steps,
            "command": launch.command(),
            "devices": run.devices,
            "processes": jax.process_count(),
            "parameters": run.parameters,
            "changed": changed_fields(run.recipe, run.config),
            "data": dict(run.data),
        } | _process()
        _append(run.folder / LAUNCHES, line)

    def sample(self, step: int, text: str) -> None:
        if text and step not in self.sampled:
            _append(self.run.folder / SAMPLES, {"step": step, "text": text})
            self.sampled.add(step)

    def end(self, results: Mapping[str, Any]) -> None:
        path = Path(self.run.workdir) if self.run.folder == Path(self.run.workdir) else self.run.folder
        run = recorded.read(self.run.folder, path)
        run.name, run.owner = self.run.workdir, ""
        files.write(self.run.folder / PAGE, render(run))


def made(path: Path) -> str:
    """The page of the run at `path`, a folder or a URL, as it is now.

    Raises:
      InputError: there is no run.
    """
    with recorded.local(path) as folder:
        return render(recorded.read(folder, path))


def changed_fields(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[list[Any]] | None:
    """[field, value in `recipe`, value in `config`] of each field that differs; None for an unknown recipe, {}."""
    if not recipe:
        return None
    old, new = recorded.flat(recipe), recorded.flat(config)
    names = dict.fromkeys([*new, *old])
    return [[name, old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)]


@functools.cache
def _process() -> dict[str, Any]:
    """The code and the machine of this process."""
    commit, changed = launch.commit()
    source = fingerprint.source_hash()[:12]
    code = {"commit": commit, "commit_changed": changed, "source": source, "versions": versions.here()}
    return code | {"machine": launch.machine()}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with files.appending(path) as file:
        file.write(json.dumps(row, default=str) + "\n")


def _trimmed(path: Path, step: int) -> set[float]:
    """Removes the samples after `step`, which a killed run wrote; returns the steps of those that stay."""
    if not path.exists():
        return set()
    json_lines.remove_after(path, step)
    return {row["step"] for row in json_lines.rows(path)}
