"""The id of a run, which its folder and each of its steps state, so that a step of another run is known as one."""

import json
import uuid
from pathlib import Path

import jax

from transformer_jax import files, hosts
from transformer_jax.errors import InputError
from transformer_jax.runs import store

NAME = "run.json"


def run_id(workdir: Path) -> str:
    """The id of the run in `workdir`, 32 hexadecimal digits: made at the first call, and the same ever after.

    Every process calls it; process 0, which holds the workdir's lock, makes and reads WORKDIR/run.json.
    """
    made = None
    if jax.process_index() == 0 and (made := stored(workdir)) is None:
        made = uuid.uuid4().hex
        text = json.dumps({"run": made}) + "\n"
        if store.remote(workdir):
            store.put(workdir / NAME, text.encode(), generation=0)
        else:
            files.write(workdir / NAME, text)
    return str(hosts.first("the run's id", made))


def stored(workdir: Path) -> str | None:
    """The id of the run in `workdir`; None where it has none: a run of an earlier version, or no run.

    Raises:
      InputError: the file holds no id.
    """
    path = workdir / NAME
    try:
        given = files.read_json(path, inside=workdir)
    except FileNotFoundError:
        return None
    run = given.get("run") if isinstance(given, dict) else None
    if not isinstance(run, str) or len(run) != 32 or not set(run) <= set("0123456789abcdef"):
        raise InputError(f'{path} does not hold {{"run": 32 hexadecimal digits}}; delete it, and another is made')
    return run
