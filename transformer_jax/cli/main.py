"""Train transformers in JAX and use them.

    train EXPERIMENT [--workdir DIR] [--FIELD VALUE ...]   train, or go on; EXPERIMENT is a recipe or a file
    evaluate WORKDIR [--FIELD VALUE ...]                   the validation numbers of the newest checkpoint
    predict PATH [INPUT ...] [--FIELD VALUE ...]           continuation, translation, filled masks, label or answer
    inspect PATH [--verify]                                what a workdir, step or Hugging Face folder holds
    convert hf SRC DST                                     Hugging Face folder -> workdir, or the other way round
    convert average RUN DST [--last N]                     the mean of a run's last checkpoints, as a workdir
    recipes [copy NAME FILE]                               the recipes that ship, and a copy of one to edit
    launch KIND ... EXPERIMENT                             the same training on many machines
    doctor                                                 versions, devices, known-bad pairs, a short smoke step

For example:

    transformer-jax train causal_lm.stdlib --workdir runs/a --train.steps 200
    transformer-jax predict runs/a "def add("

A run with a model, task, data or optimiser of your own file needs that file again: --with mine.py, in every command.
A workdir may be in an object store, gs://BUCKET/RUN (docs/reliability.md).
`transformer-jax COMMAND --help` says more; `python -m transformer_jax` is the same program. Bad input is one line on
stderr and exit code 2, a run that cannot go on, such as on a full disk, one line and 1; a run ended by Ctrl-C, SIGUSR1
or SIGTERM exits with 130, 138 or 143 after its state is saved. What reads a checkpoint verifies its files first;
--no-verify skips that.
"""

import importlib
import os
import sys
from collections.abc import Sequence

# Before jaxlib is loaded: its CPU backend (0.10.1) prints pages of false alarms about the machine's features whenever a
# compiled program comes from the cache. What goes wrong for real is raised as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from transformer_jax import interrupts
from transformer_jax.errors import InputError, RunError

COMMANDS = ("train", "evaluate", "predict", "inspect", "convert", "recipes", "launch", "doctor")


def console() -> int:
    """The console script. Like `python -m transformer_jax`, it finds modules in the folder that it is run in."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file of the user's must not hide a library
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 something is wrong, 2 bad input, 130, 138, 143."""
    return interrupts.ended(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int | None:
    """The exit code; None after a Ctrl-C."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"unknown command {arguments[0]!r}; the commands are {', '.join(COMMANDS)}")
        return importlib.import_module(f"transformer_jax.cli.{arguments[0]}").main(arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return None
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # --help, or what a user's code says
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as error:
        if interrupts.came:  # and was made another exception, by a library that calls Python from C++
            return None
        from transformer_jax.runs import store

        told = store.explain(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
