"""`watch`: the page of a run, served while it trains."""

import os

from transformer_jax.cli.arguments import path, positional
from transformer_jax.errors import InputError

PORT = 8765


def main(arguments: list[str]) -> int:
    """Serve the page of a run on this machine, http://127.0.0.1:8765, and follow the run.

        transformer-jax watch RUN [--port N]

    RUN is a workdir, here or in a bucket. The browser loads the page again every ten seconds, of a bucket every thirty,
    until the run has ended. Only this machine is answered, nothing can be changed, and no other file is served. From
    another machine: `ssh -L 8765:127.0.0.1:8765 MACHINE`. Ctrl-C ends it; the run does not notice.

        transformer-jax watch runs/a
        transformer-jax watch gs://BUCKET/RUN --port 0
    """
    where, rest = positional(main, arguments, 1)
    port = rest[1] if len(rest) == 2 and rest[0] == "--port" else "" if rest else str(PORT)
    if not port.isdecimal():
        raise InputError(f"{' '.join(rest)}: the command is: transformer-jax watch RUN [--port N]")
    from transformer_jax.observe.report import live

    if hasattr(os, "nice"):
        os.nice(10)  # the run has priority
    with live.server(path(where), int(port)) as server:
        print(f"{where}: http://127.0.0.1:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0
