"""Passes the events of a run to its observers.

An error of the terminal or of metrics.jsonl ends the run, which needs them. An error of any other observer is logged in
one line and the observer is dropped; the run computes the same numbers without it.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_jax import extras
from transformer_jax.contracts import Observer, Report, Row, RunFacts
from transformer_jax.observe.json_lines import JsonLines
from transformer_jax.observe.report import RunPage
from transformer_jax.observe.tensorboard import TensorBoard
from transformer_jax.observe.terminal import Terminal

# The observers of every run. They are called before all others, except for the page of the run, which comes last.
DEFAULT = (JsonLines, Terminal, TensorBoard, RunPage)


def start(observers: Sequence[Observer], facts: RunFacts, *, primary: bool) -> "Observing":
    """Starts the observers of a run: those of `DEFAULT` and the given ones.

    Args:
      observers: values with any of the methods of `contracts.Observer`; a method that is absent does nothing.
      facts: passed to the `start` of each.
      primary: whether this is host 0; on other hosts no observer is called.

    Returns:
      A context manager; its exit calls `end` if it has not been called.

    Raises:
      OSError: metrics.jsonl cannot be written.
    """
    return Observing(observers if primary else (), facts, primary)


class Observing:
    """The observers of one run; `start` constructs it."""

    def __init__(self, observers: Sequence[Observer], facts: RunFacts, primary: bool) -> None:
        self.terminal = Terminal()
        self.required: list[Observer] = [JsonLines(), self.terminal] if primary else []
        self.optional: list[Observer] = [TensorBoard(), *observers, RunPage()] if primary else []
        self.ended = False
        self._call("start", facts)

    def __enter__(self) -> "Observing":
        return self

    def __exit__(self, *_: object) -> None:
        self.end({})

    def row(self, row: Row) -> None:
        """Passes on a row of training metrics."""
        self._call("row", row)

    def evaluation(self, step: int, name: str, report: Report) -> None:
        """Passes on the numbers of the set `name` after `step` steps."""
        self._call("evaluation", step, name, report)

    def sample(self, step: int, text: str) -> None:
        """Passes on the task's sample."""
        self._call("sample", step, text)

    def save(self, step: int) -> None:
        """Called before the checkpoint of `step` is written: puts the rows up to it on the disk."""
        self._call("save", step)

    def end(self, results: Mapping[str, Any]) -> None:
        """Ends the observers. `print_line` still prints; a second call does nothing."""
        if self.ended:
            return
        self.ended = True
        try:
            self._call_required("end", results)
        finally:
            self._call_optional("end", results)

    def print_line(self, line: str) -> None:
        """Prints a line on the terminal of host 0."""
        if self.required:
            self.terminal.print_line(line)

    def _call(self, method: str, *arguments: Any) -> None:
        self._call_required(method, *arguments)
        self._call_optional(method, *arguments)

    def _call_required(self, method: str, *arguments: Any) -> None:
        for observer in self.required:
            call(observer, method, arguments)

    def _call_optional(self, method: str, *arguments: Any) -> None:
        """Calls a method of the observers that the run does not need; drops those that raise."""
        for observer in list(self.optional):
            try:
                call(observer, method, arguments)
            except extras.Missing as missing:
                self.optional.remove(observer)
                self.print_line(f"not written: {missing}")
            except (Exception, SystemExit) as error:
                self.optional.remove(observer)
                print(dropped(observer, error), file=sys.stderr, flush=True)


def call(observer: Observer, method: str, arguments: Sequence[Any]) -> None:
    """Calls a method of an observer, if it has one of this name.

    Args:
      observer: any value.
      method: the name.
      arguments: the arguments of the method; mappings are copied, so that an observer may change them.
    """
    if hasattr(observer, method):
        getattr(observer, method)(*(dict(x) if isinstance(x, Mapping) else x for x in arguments))


def dropped(observer: object, error: BaseException) -> str:
    """The line that is logged when `observer` is dropped because of `error`."""
    message = " ".join(str(error).split())[:300]
    why = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"observer {type(observer).__name__} is dropped and the run goes on without it: {why}"
