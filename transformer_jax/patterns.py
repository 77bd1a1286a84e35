"""Untrusted regular expressions: those that may take exponential time are refused before they are used.

A backtracking engine tries every way to divide a text among repetitions. If a repetition contains another one, as in
(a+)+, the number of ways is exponential.
"""

import re
from dataclasses import dataclass

from transformer_jax.errors import InputError

MOST = 4  # unbounded repetitions in an expression for an engine without a limit of its own: n^4 steps, n < 100

_QUANTIFIER = re.compile(r"([*+?]|\{\d*,?\d*\})[?+]?")


@dataclass
class _Group:
    endless: bool = False  # has * or +
    varied: bool = False  # has a repetition of more than one length, or branches


def refuse_exploding(pattern: str, where: str, *, limited: bool = False) -> None:
    """Raises `InputError` for an expression with a repetition within a repetition.

    Args:
      pattern: the expression.
      where: its origin, for messages.
      limited: whether the engine stops after a number of steps (Oniguruma, which has nested sets). Then only unbounded
        repetitions in unbounded ones are refused; otherwise also "a?" and "a|b" in them, and more than `MOST`.
    """
    open_groups, closed, i, endless = [_Group()], None, 0, 0
    while i < len(pattern):
        if closed is None or not (found := _QUANTIFIER.match(pattern, i)):
            i, closed = _next(pattern, i, open_groups, limited)
            continue
        text = found[1]
        least, most = _times(text)
        inner = closed.endless if limited else closed.varied
        if most > 1 and inner and not (limited and most < 10):
            raise InputError(f"{where}: {pattern[:80]!r} repeats what repeats, which may take for ever; write it flat")
        open_groups[-1].endless |= closed.endless or most == INFINITE
        open_groups[-1].varied |= closed.varied or least != most
        endless += most == INFINITE
        i, closed = found.end(), None
    if endless > MOST and not limited:
        raise InputError(
            f"{where}: {pattern[:80]!r} has {endless} repetitions; with more than {MOST} it may take for ever"
        )


INFINITE = 2**31


def _times(text: str) -> tuple[int, int]:
    """The least and the most times that a quantifier repeats."""
    if text in "*+?":
        return (text == "+") * 1, 1 if text == "?" else INFINITE
    first, comma, last = text[1:-1].partition(",")
    least = int(first or 0)
    return least, (int(last) if last else INFINITE) if comma else least


def _next(pattern: str, i: int, open_groups: list[_Group], sets_in_sets: bool) -> tuple[int, _Group | None]:
    """The end of the item at i, and the atom that ends there, which a quantifier may repeat, or None."""
    match pattern[i]:
        case "\\":
            braced = re.compile(r"\\[a-zA-Z]\{[^}]*\}").match(pattern, i)
            return braced.end() if braced else i + 2, _Group()
        case "[":
            return _set_end(pattern, i, sets_in_sets), _Group()
        case "(":
            open_groups.append(_Group())
            return i + (2 if pattern[i + 1 : i + 2] == "?" else 1), None
        case ")":
            closed = open_groups.pop() if len(open_groups) > 1 else _Group()
            open_groups[-1].endless |= closed.endless
            open_groups[-1].varied |= closed.varied
            return i + 1, closed
        case "|":
            open_groups[-1].varied = True
            return i + 1, None
    return i + 1, _Group()


def _set_end(pattern: str, i: int, sets_in_sets: bool) -> int:
    """The end of the set that begins at i."""
    depth, i = 1, i + 1
    i += pattern[i : i + 1] == "^"
    i += pattern[i : i + 1] == "]"  # as the first character it is a literal
    while i < len(pattern) and depth:
        letter = pattern[i]
        depth += (letter == "[" and sets_in_sets) - (letter == "]")
        i += 2 if letter == "\\" else 1
    return i
