"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Bad input: the message names the value, where it came from and the fix, in one line.

    The command line prints the message and exits with code 2; no traceback, nothing written.
    """
