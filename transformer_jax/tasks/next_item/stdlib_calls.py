"""A data set on every machine: which function does a function of the standard library call next?"""

import ast
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformer_jax.data import interactions, source_files, sources
from transformer_jax.data.interactions import Event
from transformer_jax.errors import InputError


@dataclass(frozen=True)
class StdlibCalls(interactions.Source):
    """Functions of the running Python's standard library as users, the names that they call as items, in their order.

    `self.sock.recv(n)` is a call of "recv". Tests are excluded.
    """

    def of_files(self, files: tuple[str, ...]) -> interactions.Table:
        return interactions.Table(files)

    def events(self, skipped: Counter[str]) -> Iterator[Event]:
        """The calls; the user is the function's file and line.

        Args:
          skipped: counts the files that this Python cannot parse.
        """
        root = Path(sysconfig.get_path("stdlib"))
        found = False
        for name, path in _files(root):
            try:
                tree = ast.parse(path.read_text("utf-8"))
            except (SyntaxError, ValueError):
                skipped["files that do not parse"] += 1
                continue
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    for number, call in enumerate(calls(function)):
                        found = True
                        yield Event(f"{name}:{function.lineno}", call, float(number))
        if not found:
            raise InputError(f"no Python files under {root}: this Python has no sources of its standard library")


def calls(function: ast.AST) -> list[str]:
    """The names that a function calls, in the order of their position in the text.

    Args:
      function: its syntax tree; functions inside it are part of it.
    """
    made = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    made.sort(key=lambda call: (call.lineno, call.col_offset))
    names = [getattr(call.func, "id", getattr(call.func, "attr", None)) for call in made]
    return [name for name in names if name is not None]


def _files(root: Path) -> list[tuple[str, Path]]:
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in sources.NOT_EMBEDDED and not f.startswith(("config-", ".")))
        paths = [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
        files += [(path.relative_to(root).as_posix(), path) for path in paths if source_files.is_utf8(path)]
    return files
