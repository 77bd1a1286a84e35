"""Train transformers in JAX and use them.

    train EXPERIMENT [--workdir DIR] [--FIELD VALUE ...]   train, or resume; EXPERIMENT is a recipe or a file
    sweep EXPERIMENT --over FIELD VALUE ...                the same with other values, one run after the other
    evaluate WORKDIR [--FIELD VALUE ...]                   the validation numbers of the newest checkpoint
    predict PATH [INPUT ...] [--FIELD VALUE ...]           continuation, translation, filled masks, label or answer
    compare RUN RUN ... [--html FILE]                      what differs, and whether the numbers do; or a folder of runs
    score PATH TASK.jsonl [--shots K ...]                  k-shot evaluation of a language model on a local task
    report RUN [--out FILE]                                a page with everything about a run, in one HTML file
    watch RUN [--port N]                                   the same page in the browser, while the run trains
    look RUN INPUT [--out FILE]                            what the model looks at, in one HTML file
    inspect PATH [--verify]                                what a workdir, step or Hugging Face folder holds
    convert hf SRC DST                                     Hugging Face folder -> workdir, or workdir -> folder
    convert average RUN DST [--last N]                     the mean of a run's last checkpoints, as a workdir
    prepare EXPERIMENT --out PATH [--shards I/N]           its text as a token store, on a disk or in a bucket
    recipes [copy NAME FILE]                               the recipes that ship, and a copy of one to edit
    launch KIND ... EXPERIMENT                             the same training on many machines
    doctor                                                 versions, devices, known-bad pairs, a short smoke step
    completion bash|zsh                                    what a shell needs to complete all of this

For example:

    transformer-jax train causal_lm.stdlib --workdir runs/a --train.steps 200
    transformer-jax predict runs/a "def add("

A run with a model, task, data or optimiser from your own file needs the file in every command: --with mine.py.
A workdir may be in an object store, gs://BUCKET/RUN (docs/reliability.md).
`transformer-jax COMMAND --help` describes a command; `python -m transformer_jax` is the same program. Bad input is
reported in one line on stderr with exit code 2; a run that cannot continue, for example on a full disk, in one line
with exit code 1; a run ended by Ctrl-C, SIGUSR1 or SIGTERM exits with 130, 138 or 143 after its state is saved. Every
command that reads a checkpoint verifies its files first, unless --no-verify is given.
"""

import importlib
import os
import sys
from collections.abc import Sequence

# This must be set before jaxlib is loaded. Its CPU backend (0.10.1) prints pages of false warnings about the machine's
# features when a compiled program is read from the cache; real errors are raised as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from transformer_jax import files, interrupts
from transformer_jax.errors import InputError, RunError

WORK = ("train", "evaluate", "predict", "score", "inspect", "convert", "prepare", "compare", "sweep")
PAGES = ("report", "watch", "look")
COMMANDS = (*WORK, *PAGES, "recipes", "launch", "doctor", "completion")


def console() -> int:
    """The console script. Like `python -m transformer_jax`, it finds modules in the folder that it is run in."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a user's file does not hide a library
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
      arguments: the command and its arguments; None: those of the process.

    Returns:
      0 done, 1 an error, 2 bad input, or 128 + the number of a signal.
    """
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
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # raised by --help, or by the user's code
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception as error:
        if interrupts.came:  # a library that calls Python from C++ raised this in place of KeyboardInterrupt
            return None
        if isinstance(error, OSError) and error.errno in files.DISK_ERRORS:
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror}; make room, or name another folder", file=sys.stderr)
            return 2 if isinstance(error, PermissionError) else 1
        from transformer_jax.runs import store

        explanation = store.explain(error)
        if explanation is None:
            raise
        print(f"error: {explanation}", file=sys.stderr)
        return 1
