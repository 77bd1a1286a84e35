"""The exceptions that end a command with one line: errors that the user can correct, and reasons that stop a run."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message names the value, where it came from and the fix, in one line.

    The command line prints the message and exits with code 2; no traceback, nothing written.
    """


class RunError(RuntimeError):
    """A run cannot continue: the message states what happened, what is on the disk and what to do, in one line.

    The command line prints the message and exits with code 1. Files that were saved before are unchanged.
    """


def first_line(error: BaseException) -> str:
    """What `error` says, on one line; the name of its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; the nearest is NAME" for a misspelt `name` that is similar to one of `names`; otherwise ""."""
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f"; the nearest is {close[0]}" if close else ""
