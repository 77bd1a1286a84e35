"""Many processes, one program: how they find each other, agree, and end together.

    hosts.start(hosts.Hosts())                    # before JAX has a backend; one process alone does nothing
    with hosts.together():                        # a host that fails in here ends all hosts, and each prints which one
        hosts.agree("the experiment", facts)      # the same on every host, or an error that names who differs in what
        value = hosts.first("the history", value) # what host 0 has

A host is one process of `jax.distributed`: one a machine, or one a GPU. Each runs the same program on its own part of
every global array (JAX's multi-controller model), so a host that dies, or decides something by itself, leaves the
others waiting for ever inside a collective. `jax.distributed` itself aborts with a stack trace of C++ when a host is
missing, and does not name the host. Three modules are added to it:

    meeting.py     before `jax.distributed.initialize`, on the same port: host 0 waits for all and says who is missing
    agreement.py   values compared, and host 0's value taken, wherever hosts could decide differently
    watch.py       a thread of each host that gives a sign of life every second, and ends its process as soon as another
                   has failed, or has given none for `Hosts.timeout` seconds
"""

from transformer_jax.hosts.agreement import agree, alone, first, gather, get, listed, names, put, unique, who
from transformer_jax.hosts.meeting import Hosts, start
from transformer_jax.hosts.watch import EXIT, together

__all__ = [
    "EXIT",
    "Hosts",
    "agree",
    "alone",
    "first",
    "gather",
    "get",
    "listed",
    "names",
    "put",
    "start",
    "together",
    "unique",
    "who",
]
