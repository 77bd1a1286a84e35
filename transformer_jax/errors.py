"""The one exception for what a user can mend, and a hint for its message."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message names the value, where it came from and the fix, in one line.

    The command line prints the message and exits with code 2; no traceback, nothing written.
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """The words "; the nearest is NAME" for a misspelt name, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f"; the nearest is {close[0]}" if close else ""
