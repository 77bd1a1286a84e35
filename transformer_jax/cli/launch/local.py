"""N processes on this machine, or one on each of several by ssh: the smallest way to many hosts.

    transformer-jax launch local 2 causal_lm.stdlib --workdir runs/a
    transformer-jax launch local --ssh node1,node2 --folder /home/me/jax causal_lm.stdlib --workdir /nfs/a

What follows the number or the options is what `transformer-jax train` takes. Host 0 is the first machine; the
others must reach it at --port. When one process fails, the others end by themselves (transformer_jax/hosts); Ctrl-C
stops them all at one step. The exit code is the first that is not 0.

--dry-run prints the commands, one a line, and starts nothing.
"""

import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from transformer_jax.cli.launch import words


def commands(
    hosts: Sequence[str], coordinator: str, train: Sequence[str], *, python: str, folder: str
) -> list[list[str]]:
    """The command of each process; by ssh where a host is named.

    Args:
      hosts: one for each process; "" for this machine.
      coordinator: HOST:PORT of the first process.
      train: the arguments of `train`.
      python: the interpreter.
      folder: the checkout, the same path on all machines.
    """
    made = []
    for index, host in enumerate(hosts):
        command = [python, "-m", "transformer_jax", "train", *train]
        command += ["--hosts.coordinator", coordinator, "--hosts.count", str(len(hosts)), "--hosts.index", str(index)]
        # -tt allocates a terminal, so that the remote process ends with the connection.
        made.append(["ssh", "-tt", host, f"cd -- {shlex.quote(folder)} && {shlex.join(command)}"] if host else command)
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs `launch local` and returns its exit code."""
    parser = words.Parser("local", __doc__)
    parser.add_argument("--ssh", metavar="HOST,HOST", default="", help="one process on each of these machines")
    parser.add_argument("--folder", default=".", help="the same path on all machines; it holds .venv")
    parser.add_argument("--python", default="", help="the interpreter; with --ssh .venv/bin/python unless told")
    parser.add_argument("--port", type=int, default=0, help="of host 0; by default a free one, with --ssh 8476")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    options, train = parser.parse_known_args(arguments)
    if options.ssh:
        hosts = options.ssh.split(",")
        address, port, python = hosts[0].rpartition("@")[2], options.port or 8476, options.python or ".venv/bin/python"
    else:
        if not train or not train[0].isdecimal() or int(train[0]) < 1:
            parser.error("give the number of processes, or --ssh HOST,HOST")
        hosts, train = [""] * int(train[0]), train[1:]
        address, port, python = "127.0.0.1", options.port or _free_port(), options.python or sys.executable
    words.check(parser, options, train)
    made = commands(hosts, f"{address}:{port}", train, python=python, folder=options.folder)
    if options.dry_run:
        print("\n".join(map(shlex.join, made)))
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes receive Ctrl-C as well, save and end
    processes = [subprocess.Popen(command, preexec_fn=_take_interrupts) for command in made]
    codes = [process.wait() for process in processes]
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
