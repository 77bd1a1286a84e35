"""How hosts end together: a host that fails notifies the others, and one that stops responding is noticed.

Each host's thread sets a sign of life in the store of the coordination service (agreement.py) and looks whether
another host has failed; host 0's also compares the signs. The thread itself ends the process, because the main thread
may wait for ever in a collective that will never complete.
"""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

import jax

from transformer_jax.errors import InputError, RunError, first_line
from transformer_jax.hosts.agreement import alone, gather, get, listed, put, who

EXIT = 3  # the exit code of a process that ends because another process failed

# Errors of Gloo, NCCL and JAX's coordination service that another host's failure causes.
_DISCONNECTED = re.compile(r"gloo|nccl|connection|socket|unavailable|deadline|coordination|barrier", re.IGNORECASE)


@contextlib.contextmanager
def together(*, timeout: float = 30.0) -> Iterator[None]:
    """What runs inside ends on all hosts when it fails on one; leaving it waits for the others.

    The host that fails prints its own error and exits as it would alone (2 for an `InputError`, 130 for Ctrl-C, else
    1); the others print one line that names it and exit with `EXIT`. What all refuse alike, each says by itself. A
    process alone is left alone.

    SIGTERM and SIGUSR1 are such a failure too, except in the training loop, which takes them itself (train/stop.py): a
    process that died of them without a word would be missed only after `timeout`.

    Args:
      timeout: seconds without a sign of life after which a host counts as failed.
    """
    if alone():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_keep_watch, args=(timeout, ended), name="hosts", daemon=True)
    thread.start()
    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, _signalled) for s in (signal.SIGTERM, signal.SIGUSR1)} if main else {}
    try:
        yield
        gather("the end of the run", "")
    except BaseException as error:
        _fail(error, timeout)
    for number, handler in before.items():
        signal.signal(number, handler)
    ended.set()
    thread.join()


class _Signalled(BaseException):
    """A signal's number, raised on the main thread; nothing catches it as an error of its own."""


def _signalled(number: int, frame: Any) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # later signals are ignored, because the process may already be ending
    raise _Signalled(number)


def _keep_watch(timeout: float, ended: threading.Event) -> None:
    """Gives a sign of life and looks for bad news, until the run has ended.

    A host has failed when its sign stays the same for so many of *our* ticks: when all were frozen for a while, this
    thread with them, none counts as failed. All have met before, so a host that has given no sign at all counts too.
    """
    index, tick = jax.process_index(), _tick()
    limit = max(timeout / tick, 2)
    signs: dict[int, str] = {}
    silent: Counter[int] = Counter()
    beats = unanswered = 0
    while not ended.wait(tick):
        beats += 1
        try:
            put(f"alive/{index}", str(beats))
            news = get("failed")
            given = listed("alive") if index == 0 else {}
        except Exception as error:
            unanswered += 1
            if unanswered >= limit and not ended.is_set():
                _end(f"{who(0)} is gone: {first_line(error)}")
            continue
        unanswered = 0
        if news is not None:
            failed = json.loads(news)
            # What all refuse alike, each says by itself, and so does the one that failed.
            if ended.wait(timeout if failed["host"] == index else 3 * tick):
                return
            _end(f"{failed['message']}; {who(index)} ends with it")
        for i in range(jax.process_count() if index == 0 else 0):
            silent[i] = silent[i] + 1 if signs.get(i) == given.get(i) else 0
        signs = given
        if gone := sorted(i for i in silent if silent[i] >= limit):
            _publish(gone[0], f"{', '.join(map(who, gone[:20]))} is gone: no sign of life for {timeout:.0f} s")


def _tick() -> float:
    """Seconds between two signs: of some thousand hosts each tells host 0 something every few seconds."""
    return max(1.0, jax.process_count() / 256)


def _fail(error: BaseException, timeout: float) -> NoReturn:
    """Says what went wrong here, tells the others, and ends this process without waiting for them."""
    if isinstance(error, InputError):
        code, message = 2, str(error)
    elif isinstance(error, KeyboardInterrupt):
        code, message = 130, "interrupted"
    elif isinstance(error, _Signalled):
        code, message = 128 + error.args[0], f"{signal.Signals(error.args[0]).name} outside training: no step to save"
    elif isinstance(error, RunError):
        code, message = 1, str(error)
    else:
        if _DISCONNECTED.search(str(error)):
            # Most likely another host has failed: the watch ends this process as soon as it knows which.
            time.sleep(timeout + 10 * _tick())
        code, message = 1, f"{type(error).__name__}: {first_line(error)}"
        traceback.print_exception(error)
    _publish(jax.process_index(), f"{who(jax.process_index())} failed: {message}")
    print(f"error: {message}", file=sys.stderr)
    _leave(code)


def _publish(host: int, message: str) -> None:
    with contextlib.suppress(Exception):  # without host 0 there is no store to write to
        put("failed", json.dumps({"host": host, "message": message}), once=True)  # the first news are the cause


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    _leave(EXIT)


def _leave(code: int) -> NoReturn:
    """Exits at once: threads, collectives that never end and JAX's farewell, which waits for all, are left as they are.

    Host 0 holds the news for the others and stays until they have read them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):
        put(f"left/{jax.process_index()}", "")
        ends = time.monotonic() + 10 * _tick()
        while jax.process_index() == 0 and time.monotonic() < ends and len(listed("left")) < jax.process_count():
            time.sleep(0.1)
    os._exit(code)
