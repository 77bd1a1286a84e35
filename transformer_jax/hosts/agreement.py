"""What hosts exchange: values that are compared, host 0's value for all, and the key-value store beneath.

Values go through the store of JAX's coordination service on host 0, which needs neither devices nor the main thread.
JAX makes it public nowhere (the client of `jax._src.distributed`), so `put`, `get` and `listed` are all that touch it.
"""

import hashlib
import importlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax

from transformer_jax.errors import InputError

AGREE = 24 * 3600.0  # seconds that hosts wait for each other while all are alive: one may still tokenise its data

_names: list[str] = []  # the machines by host
_uses: Counter[str] = Counter()


def alone() -> bool:
    """Whether this process is the only one. Does not make a backend."""
    return not jax.distributed.is_initialized()


def who(index: int) -> str:
    """ "host 2 (node-17)" for the host of number `index`."""
    return f"host {index} ({_names[index]})" if index < len(_names) else f"host {index}"


def names() -> list[str]:
    """The machines by host, once they have met; empty where this process is alone."""
    return list(_names)


def have_met(machines: list[str]) -> None:
    """Sets the names of the `machines`, by host, which `names` returns from now on."""
    _names[:] = machines


def agree(what: str, facts: Mapping[str, Any], *, wait: float = AGREE) -> None:
    """Returns once every host has called it with the same facts.

    Args:
      what: a few words for the message.
      facts: JSON values by name.
      wait: seconds to wait for the other hosts.

    Raises:
      InputError: on every host, naming the hosts that differ from host 0 and their facts, or the hosts that did not
        call it within `wait` seconds.
    """
    if alone():
        return
    mine, folder = json.dumps(facts, sort_keys=True, default=str), unique(f"{what}, in full")
    put(f"{folder}/{jax.process_index()}", mine)  # read only where the digests differ
    digests = gather(what, hashlib.sha256(mine.encode()).hexdigest(), wait=wait)
    others = [i for i, digest in enumerate(digests) if digest != digests[0]]
    if not others:
        return
    ours, theirs = (json.loads(get(f"{folder}/{i}") or "{}") for i in (0, others[0]))
    differ = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    shown = "; ".join(f"{name} is {_short(theirs, name)} there, {_short(ours, name)} on host 0" for name in differ[:3])
    more = f" (and {len(differ) - 3} more)" if differ[3:] else ""
    too = f"; so do hosts {', '.join(map(str, others[1:20]))}" if others[1:] else ""
    raise InputError(f"{who(others[0])} differs from {who(0)} in {what}: {shown}{more}{too}")


def first(what: str, value: Any, *, wait: float = AGREE) -> Any:
    """Host 0's value, on every host.

    Args:
      what: a few words for the message.
      value: a JSON value; only host 0's is used.
      wait: seconds to wait for host 0.

    Raises:
      InputError: it has not arrived within `wait` seconds.
    """
    if alone():
        return value
    key = unique(what)
    if jax.process_index() == 0:
        put(key, json.dumps(value))
    ends, pause = time.monotonic() + wait, 0.01
    while (stored := get(key)) is None:
        if time.monotonic() > ends:
            raise InputError(f"{who(0)} did not come to {what} in {wait:.0f} s, where {who(jax.process_index())} waits")
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
    return json.loads(stored)


def gather(what: str, value: str, *, wait: float = AGREE) -> list[str]:
    """Every host's value, in the order of the hosts, on every host; a barrier, therefore.

    Args:
      what: a few words for the message.
      value: this host's, a short text.
      wait: seconds to wait for the others.

    Raises:
      InputError: hosts have not arrived within `wait` seconds; it names them.
    """
    if alone():
        return [value]
    folder = unique(what)
    put(f"{folder}/{jax.process_index()}", value)
    ends, pause = time.monotonic() + wait, 0.01
    while len(found := listed(folder)) < jax.process_count():
        if time.monotonic() > ends:
            missing = ", ".join([who(i) for i in range(jax.process_count()) if i not in found][:20])
            raise InputError(f"{missing} did not come to {what} in {wait:.0f} s, where the others wait")
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
    return [found[i] for i in range(jax.process_count())]


def _short(facts: Mapping[str, Any], name: str) -> str:
    text = str(facts[name]) if name in facts else "missing"
    return text if len(text) <= 60 else text[:57] + "..."


# ----------------------------------------------------------------------------------------------------------- the store


def unique(what: str) -> str:
    """A key for each use of the name `what`: all hosts use it equally often."""
    _uses[what] += 1
    return f"{what.replace('/', '.')} {_uses[what]}"


def put(key: str, value: str, *, once: bool = False) -> bool:
    """Sets a value in the store; returns whether it was set.

    Args:
      key: its name.
      value: a text.
      once: set it only where there is none.
    """
    try:
        _client().key_value_set(f"transformer_jax/{key}", value, allow_overwrite=not once)
    except Exception as error:
        if once and "ALREADY_EXISTS" in str(error):
            return False
        raise
    return True


def get(key: str) -> str | None:
    """The value of `key`, or None where there is none."""
    try:
        return _client().key_value_try_get(f"transformer_jax/{key}")
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def listed(folder: str) -> dict[int, str]:
    """The values of `folder`/0, `folder`/1, ...: of each host that has set its own."""
    found = _client().key_value_dir_get(f"transformer_jax/{folder}/")
    return {int(key.rpartition("/")[2]): value for key, value in found}


def _client() -> Any:
    # By name: it is private, and a type checker knows nothing of it.
    return importlib.import_module("jax._src.distributed").global_state.client
