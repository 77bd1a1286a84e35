"""The process of a service: reads calls from stdin, a JSON list a line, and makes them.

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
    """Serves until stdin ends; a run that ends without a word, such as one that is killed, ends with no results."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole job; the run says itself when it ends
    os.nice(10)  # the processors are the run's
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is the run's
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
        os._exit(FAILED)  # without the hooks of a service that has failed


if __name__ == "__main__":
    main(sys.argv[1])
