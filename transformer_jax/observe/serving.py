"""The process of a service: reads calls from stdin, a JSON list per line, and makes them.

python -m transformer_jax.observe.serving wandb
"""

import importlib
import json
import logging
import os
import signal
import sys
from pathlib import Path

from transformer_jax.contracts import RunFacts
from transformer_jax.observe.observing import call, dropped
from transformer_jax.observe.sending import FAILED
from transformer_jax.observe.services import SERVICES


def main(name: str) -> None:
    """Serves the observer of the service `name` until stdin ends. A killed run sends no `end`: {} are its results."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a scheduler signals the whole job, but only the run decides when to end
    os.nice(10)  # the run has priority
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # only the run prints on stdout
    logging.disable(logging.INFO)
    observer = getattr(importlib.import_module(f"transformer_jax.observe.{name}"), SERVICES[name])()
    method = ""
    try:
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            if method == "start":
                facts = arguments[0]
                arguments = [RunFacts(**facts | {"folder": Path(facts["folder"])})]
            call(observer, method, arguments)
        if method not in ("", "end"):
            call(observer, "end", [{}])
    except Exception as error:
        print(dropped(observer, error), file=sys.stderr, flush=True)
        os._exit(FAILED)  # skips the exit hooks of the failed service, which could block


if __name__ == "__main__":
    main(sys.argv[1])
