"""A run's folder: what may be taken up again in it, and its small JSON files."""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax

from transformer_jax import config_json, hosts
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.runs import lock, manifest, store


def stored_experiment(workdir: Path) -> Experiment | None:
    """The experiment of the run in this folder; None where there is none. Errors: `InputError` for a broken one."""
    return config_json.load(workdir / "config.json") if (workdir / "config.json").exists() else None


def check(workdir: Path, experiment: Experiment) -> list[str]:
    """The differences from what the folder holds, all of which are allowed; none for a new folder.

    Errors: `InputError` when the folder holds another experiment, or something that is not a run.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; give a folder to --workdir")
    if (stored := stored_experiment(workdir)) is not None:
        return config_json.refuse_other(stored, experiment, workdir)
    begun = {lock.NAME, "config.json.part"}  # of a run that was killed as it wrote its first file
    if workdir.exists() and any(path.name not in begun for path in workdir.iterdir()):
        raise InputError(f"{workdir} is not empty and has no config.json, so it is not a run; give another --workdir")
    return []


def refuse_unshared(workdir: Path) -> None:
    """Errors: `InputError` where this host cannot see what host 0 has written; call it when that is so.

    A network file system may answer for a minute that a file is missing which it was asked for before.
    """
    ends = time.monotonic() + 60
    while not (workdir / "config.json").exists():
        if time.monotonic() > ends:
            raise InputError(
                f"{store.absolute(workdir)} on {hosts.who(jax.process_index())} is not the folder of host 0, which has "
                "written config.json there; give a --workdir on a file system that all hosts share"
            )
        time.sleep(0.5)


def read_results(workdir: Path) -> dict[str, Any]:
    """results.json, or an empty dict where a run has not come to its end."""
    try:
        return json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def chosen(path: Path) -> Path:
    """The checkpoint that a run's numbers are of: with a test set the best one, else `path`, whose newest counts."""
    done = read_results(path)
    best = path / "checkpoints" / str(done.get("best_step"))
    return best if done.get("test") and best.is_dir() else path


def kind(loaded: Any) -> str:
    """A loaded model in words: "a bert with the heads pooler, choice"."""
    family, heads = loaded.family.__name__.rpartition(".")[2], getattr(loaded.config, "heads", ())
    return f"a {family} with the heads {', '.join(heads)}" if heads else f"a {family} without heads"


def write_json(path: Path, value: Any) -> None:
    """Writes beside the target, syncs and renames, so that the file is whole or as it was, after a power cut too."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    manifest.sync_folder(path.parent)
