"""The exceptions that end a command with one line: what a user can mend, and what stopped a run."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message names the value, where it came from and the fix, in one line.

    The command line prints the message and exits with code 2; no traceback, nothing written.
    """


class RunError(RuntimeError):
    """A run cannot go on: the message says what happened, what is on the disk and what to do, in one line.

    The command line prints the message and exits with code 1. What was saved before is as it was.
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """The words "; the nearest is NAME" for a misspelt name, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f"; the nearest is {close[0]}" if close else ""
