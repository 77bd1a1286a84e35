"""A run's folder: what may be taken up again in it, the name of the run, and its small JSON files."""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax

from transformer_jax import brought, config_json, files, hosts, models
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.runs import identity, lock, saved, store
from transformer_jax.runs.identity import run_id

__all__ = [
    "check",
    "chosen",
    "kind",
    "read_results",
    "refuse_changed",
    "refuse_unshared",
    "run_id",
    "seen",
    "stored_experiment",
    "write_json",
]


def stored_experiment(workdir: Path, types: Any = ()) -> Experiment | None:
    """The experiment of the run in this folder; None where there is none, and where no step of it was saved yet: a run
    that ended before its first checkpoint may be given other settings.

    Args:
      workdir: the folder.
      types: the user's types that it may name.
    Raises:
      InputError: for a broken one, and for a type that was not brought.
    """
    config = workdir / "config.json"
    if not config.exists():
        return None
    begun = saved.numbered(workdir / "checkpoints") or (workdir / "results.json").exists()
    return config_json.load(config, types) if begun or not _of_a_run(config) else None


def _of_a_run(config: Path) -> bool:
    tree = files.read_json(config, inside=config.parent)
    return isinstance(tree, dict) and tree.get("type") == models.type_name(Experiment)


def check(workdir: Path, experiment: Experiment, types: Any = ()) -> list[str]:
    """The differences from what the folder holds, all of which are allowed; none for a new folder.

    Args:
      workdir: the folder.
      experiment: what is to be run in it.
      types: the user's types that the stored one may name.

    Raises:
      InputError: the folder holds another experiment, or something that is not a run.
    """
    if (stored := stored_experiment(workdir, [brought.types_in(experiment), types])) is not None:
        return config_json.refuse_other(stored, experiment, workdir)
    if (workdir / "config.json").exists():
        return []
    begun = {
        lock.NAME,
        identity.NAME,
        f"{identity.NAME}.part",
        "config.json.part",
    }  # left by a run that was killed while it wrote its first files
    left = lambda name: name in begun or name.startswith(f"{lock.NAME}.")  # noqa: E731
    if workdir.exists() and not all(left(path.name) for path in workdir.iterdir()):
        raise InputError(f"{workdir} is not empty and has no config.json, so it is not a run; give another --workdir")
    return []


def seen(workdir: Path) -> dict[str, str]:
    """What `workdir` holds of a run: digests of its settings and results, and the names of its steps.

    A trainer looks before it decides whether the run is new, and again when it holds the lock (`refuse_changed`):
    another may have begun, or resumed, the run in between.

    Raises:
      InputError: it is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; give a folder to --workdir")
    found = {}
    for name in ("config.json", identity.NAME, "results.json"):
        with contextlib.suppress(FileNotFoundError):
            found[name] = hashlib.sha256(files.read(workdir / name, files.JSON_BYTES, inside=workdir)).hexdigest()
    return found | {"checkpoints": " ".join(map(str, saved.numbered(workdir / "checkpoints")))}


def refuse_changed(workdir: Path, before: dict[str, str]) -> None:
    """Compares `workdir` with what `seen` found `before`: call it when its lock is held.

    Raises:
      InputError: the folder has changed.
    """
    now = seen(workdir)
    changed = [name for name in now.keys() | before.keys() if now.get(name) != before.get(name)]
    if changed:
        raise InputError(
            f"another run has written {', '.join(sorted(changed))} in {workdir} while this one was starting; give the "
            "command again to go on with that run, or give another --workdir"
        )


def refuse_unshared(workdir: Path) -> None:
    """Waits until this host sees in `workdir` what host 0 has written; call it once host 0 has.

    A network file system may answer for a minute that a file is missing which it was asked for before.

    Raises:
      InputError: it does not see it after a minute.
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
    """results.json of `workdir`, or an empty dict where the run has not ended.

    Raises:
      InputError: it is not what a run writes; the file may be a stranger's.
    """
    path = workdir / "results.json"
    try:
        results = files.read_json(path, inside=workdir)
    except FileNotFoundError:
        return {}
    whole, table = (int, type(None)), (dict,)
    kinds = {"step": whole, "best_step": whole, "stopped_by_patience": whole, "report": table, "test": table}
    wrong = not isinstance(results, dict) or next(
        (name for name, kind in kinds.items() if name in results and type(results[name]) not in kind), None
    )
    if not wrong:
        numbers = [*results.get("report", {}).items(), *results.get("test", {}).items()]
        wrong = next((name for name, x in numbers if not isinstance(x, int | float | str)), None)
    if wrong:
        what = "is no table" if wrong is True else f"has a wrong value of {str(wrong)[:80]!r}"
        raise InputError(f"{path} {what}, so no run has written it; move it away, and evaluate the run")
    return results


def chosen(path: Path) -> Path:
    """The checkpoint that a run's numbers are of: with a test set the best one, else `path`, whose newest counts."""
    done = read_results(path)
    best = path / "checkpoints" / str(done.get("best_step"))  # `read_results` checks that it is an integer or None
    return best if done.get("test") and best.is_dir() else path


def kind(loaded: Any) -> str:
    """The model `loaded` in words: "a bert with the heads pooler, choice"."""
    family, trunk = models.name(loaded.config), models.hook(loaded.config, "TRUNK")
    heads = () if trunk is None else tuple(name for name in loaded.family.declare(loaded.config) if name not in trunk)
    return f"a {family} with the heads {', '.join(heads)}" if heads else f"a {family} without heads"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as JSON, so that the file is whole or as it was, after a power failure too."""
    files.write(path, json.dumps(value, indent=2) + "\n")
