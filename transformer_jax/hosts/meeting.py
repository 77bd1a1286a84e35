"""How hosts find each other: what the cluster or the command line says, a meeting, then `jax.distributed`.

`jax.distributed.initialize` waits for all processes too, but aborts with a stack trace where one is missing, and says
neither which nor why. So all say hello to host 0 first, on the very port that its coordination service will have: who
is missing, two with one number, and different counts are one line on every host that came.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import time
import warnings
from dataclasses import dataclass
from typing import Any

import jax

from transformer_jax.errors import InputError, first_line
from transformer_jax.hosts import agreement
from transformer_jax.hosts.watch import EXIT

# Seconds after which JAX itself aborts when heartbeats are missing. The watch is quicker and reports it in one line;
# this is for a process whose Python is stuck. All may be frozen together for a while without missing each other.
HEARTBEAT = 300


@dataclass(frozen=True)
class Hosts:
    """The processes that train together. TPU pods, SLURM, Open MPI and Kubernetes tell by themselves."""

    coordinator: str = ""
    """ADDRESS:PORT of host 0, which all others can reach; empty: as the cluster says."""
    count: int = 0
    """Processes in all; 0: as the cluster says; 1: this one alone, whatever the cluster says."""
    index: int = -1
    """The number of this process, from 0; -1: as the cluster says."""
    wait: int = 300
    """Seconds to wait for all to arrive."""
    timeout: int = 30
    """Seconds without a sign of life after which a host counts as failed, and the others end."""


def start(options: Hosts) -> None:
    """Connects this process to the others, if `options` name any; call it before JAX has a backend.

    Raises:
      InputError: some flags are missing; or not all hosts arrive within `options.wait` seconds, which every host that
        did arrive raises, naming the others.
    """
    if options.count == 1:
        return
    given = {"coordinator": options.coordinator != "", "count": options.count > 1, "index": options.index >= 0}
    device_ids = None
    if all(given.values()):
        coordinator, count, index = options.coordinator, options.count, options.index
    elif any(given.values()):
        missing = [f"--hosts.{name}" for name, there in given.items() if not there]
        raise InputError(f"{' and '.join(missing)} must be given too: ADDRESS:PORT of host 0, hosts in all, this one")
    else:
        found = _cluster(options.wait)
        if found is None:
            return
        coordinator, count, index, device_ids = found
    address, _, port = coordinator.rpartition(":")
    if not (address and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InputError(f"--hosts.coordinator {coordinator!r} is not ADDRESS:PORT, such as 10.0.0.1:8476")
    if not 0 <= index < count:
        raise InputError(f"--hosts.index {index}: the {count} hosts have the numbers 0 to {count - 1}")
    local = address == "localhost" or address.startswith("127.")
    agreement.have_met(_meet(address, int(port), count, index, options.wait, bind=address if local else ""))
    if jax.config.values["jax_cpu_collectives_implementation"] is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's preemption service would catch SIGTERM, and a process that is not training yet would not end. The training
    # loop catches SIGTERM itself (train/stop.py).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=options.wait,
            heartbeat_timeout_seconds=max(HEARTBEAT, 4 * options.timeout),
            coordinator_bind_address=f"{address}:{port}" if local else None,
        )
    except RuntimeError as error:
        raise InputError(f"host {index} of {count} cannot start: {first_line(error)}") from error
    _explain_abort(address, int(port), index)


def _cluster(wait: int) -> tuple[str, int, int, list[int] | None] | None:
    """(coordinator, count, index, devices of this process) as JAX's own detection has them; None for one process.

    JAX has this in `jax.distributed.initialize` alone, where one process is an error, and so is a cluster of one.
    """
    # By name: the modules are private, and checkers know nothing of them.
    environments = importlib.import_module("jax._src.clusters").ClusterEnv
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns in a pod without the package kubernetes; see below
        try:
            found = environments.auto_detect_unset_distributed_params(None, None, None, None, None, wait)
        except Exception as error:  # whatever a metadata server or an API of a cluster answers
            raise InputError(
                "this seems to be one of several hosts, but JAX cannot find the others "
                f"({first_line(error)}); give --hosts.coordinator, --hosts.count and --hosts.index, or "
                "--hosts.count 1 to run alone"
            ) from error
    if found[0] is None and "JOB_COMPLETION_INDEX" in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        raise InputError(
            "this is one pod of an indexed Kubernetes job; give --hosts.coordinator, --hosts.count and --hosts.index, "
            'or install "jax[k8s]", by which JAX finds the others; --hosts.count 1 runs alone'
        )
    coordinator, count, index, device_ids = found
    if coordinator is None or count is None or index is None or count == 1:
        return None
    return coordinator, count, index, None if device_ids is None else list(device_ids)


def _meet(address: str, port: int, count: int, index: int, wait: float, *, bind: str) -> list[str]:
    """The machines' names by host, once all have connected to host 0.

    One line of JSON each way: {"index", "count", "name"}, and {"names": [...]} or {"refused": why}.
    """
    name = socket.gethostname()
    if index == 0:
        return _receive(port, count, name, wait, bind)
    ends = time.monotonic() + wait
    while True:
        try:
            with socket.create_connection((address, port), max(ends - time.monotonic(), 1.0)) as connection:
                connection.sendall(json.dumps({"index": index, "count": count, "name": name}).encode() + b"\n")
                connection.settimeout(max(ends - time.monotonic(), 0) + 10)  # host 0 says by itself when it is too late
                answer = json.loads(connection.makefile("rb").readline(1 << 20))
                break
        except (OSError, ValueError) as error:
            if time.monotonic() > ends:
                raise InputError(
                    f"host {index} of {count}: host 0 does not answer at {address}:{port} for {wait:.0f} s "
                    f"({first_line(error)}); is it started, and can this machine reach it?"
                ) from None
            time.sleep(0.2)
    if "refused" in answer:
        raise InputError(answer["refused"])
    return answer["names"]


def _receive(port: int, count: int, name: str, wait: float, bind: str) -> list[str]:
    """Host 0's side of the meeting."""
    names: dict[int, str] = {0: name}
    connections = []

    def answer(connection: socket.socket, value: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(value).encode() + b"\n")

    ends = time.monotonic() + wait
    both = not bind and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server((bind, port), family=family, dualstack_ipv6=both, backlog=count)
    except OSError as error:
        raise InputError(
            f"host 0 cannot listen at port {port} ({error.strerror}); give another --hosts.coordinator"
        ) from None
    with listener, contextlib.ExitStack() as opened:
        while len(names) < count and time.monotonic() < ends:
            listener.settimeout(max(ends - time.monotonic(), 0.01))
            try:
                connection, _ = listener.accept()
                opened.enter_context(connection)
                connection.settimeout(5)
                hello = json.loads(connection.makefile("rb").readline(1 << 10))
                index, theirs, machine = int(hello["index"]), int(hello["count"]), str(hello["name"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # the time is over, or it was none of us
            if theirs != count:
                why = f"host {index} ({machine}) was started with --hosts.count {theirs}, host 0 ({name}) with {count}"
                answer(connection, {"refused": why})
            elif not 0 < index < count:
                where = f"--hosts.index {index} on {machine}"
                answer(connection, {"refused": f"{where}: give one from 1 to {count - 1}; host 0 is {name}"})
            elif index in names:
                answer(connection, {"refused": f"--hosts.index {index} on {machine} is taken, by {names[index]}"})
            else:
                names[index] = machine
                connections.append(connection)
        missing = [str(i) for i in range(count) if i not in names]
        if not missing:
            answers: dict[str, Any] = {"names": [names[i] for i in range(count)]}
        else:
            who = f"host{'s' * (len(missing) > 1)} {', '.join(missing[:20])}{', ...' * (len(missing) > 20)}"
            answers = {"refused": f"{who} of {count} did not arrive at host 0 ({name}, port {port}) in {wait:.0f} s"}
        for connection in connections:
            answer(connection, answers)
    if missing:
        raise InputError(answers["refused"])
    return answers["names"]


_abort_handler: Any = None  # kept alive: C has a pointer to it


def _explain_abort(address: str, port: int, index: int) -> None:
    """Adds a line to what JAX prints when host 0, and with it the coordination service, goes away without a word.

    JAX's client then logs a C++ stack trace and aborts, faster than the watch could notice; its callback for this
    cannot be used from Python (it ends in std::bad_cast, jax 0.10 and 0.12). So SIGABRT gets a handler, of C's kind:
    Python's own run on the main thread only.
    """
    if index == 0:
        return
    if os.name != "posix":
        return

    def handler(number: int) -> None:
        try:
            socket.create_connection((address, port), 2).close()
        except OSError as error:
            line = f"error: {agreement.who(0)} is gone: {address}:{port} does not answer ({first_line(error)})\n"
            os.write(2, line.encode())
            os._exit(EXIT)
        os._exit(128 + number)

    global _abort_handler
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, _abort_handler)
