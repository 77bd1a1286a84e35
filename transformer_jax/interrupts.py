"""Ctrl-C in a program of ours: one line and exit code 130, whenever it comes.

Python raises KeyboardInterrupt between two instructions, whatever they are. In the middle of an import that is either
lost, because an extension module in C clears it and the program runs on, or it is shown as a traceback through other
people's code. A `__del__` loses it as well. In these places the process is ended at once; elsewhere the exception is
raised, and `cli.main` ends the command after open files are closed.

Importing the library installs nothing, except in the programs `transformer-jax`, `python -m transformer_jax` and
`python -m experiments...`, first of all. What comes in the 40 ms before that is Python's own to report.
"""

import contextlib
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # not from typing: what is imported here is imported before Ctrl-C is handled
    from types import FrameType

LINE = "interrupted; a run goes on from its newest checkpoint when its command is given again"
CODE = 128 + signal.SIGINT

came = False  # whether Ctrl-C was pressed: what raised KeyboardInterrupt may have become another exception


def install_in(*programs: str) -> None:
    """Handles Ctrl-C in this process, unless it is ignored, as in a background job, or has another handler.

    Args:
      *programs: the names of the programs to handle it in. Python calls a program "-m" while it looks for the module
        to run.
    """
    name = os.path.basename("".join(sys.argv[:1]))
    if name in programs and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
        sys.unraisablehook = _unraisable


def ended(code: int | None = None) -> int:
    """The exit code of a command that has ended with `code`; None: by Ctrl-C, which is printed. From here on Ctrl-C is
    ignored.

    After a Ctrl-C the process ends here: threads that still compute would crash as Python takes itself down.
    """
    ours = signal.getsignal(signal.SIGINT) is _interrupted
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code is None:
        print(LINE, file=sys.stderr)
    if ours and came:
        _leave(CODE if code is None else code)
    return CODE if code is None else code


def _interrupted(number: int, frame: "FrameType | None") -> None:
    global came
    came = True
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _say_and_leave()
        frame = frame.f_back
    raise KeyboardInterrupt


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _say_and_leave()
    sys.__unraisablehook__(unraisable)


def _say_and_leave() -> None:
    os.write(2, f"{LINE}\n".encode())
    _leave(CODE)


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a closed pipe, or a write that was interrupted
            stream.flush()
    os._exit(code)
