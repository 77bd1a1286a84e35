"""The arguments of a command before its overrides: positional ones, --no-verify, --with."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_jax import brought, hf
from transformer_jax.errors import InputError

PROGRAM = "transformer-jax"


def positional(command: Callable[..., int], arguments: list[str], count: int, *, exactly: bool = False) -> list[Any]:
    """The first `count` arguments and, unless `exactly`, the list of the rest. `--help` prints the command's docstring.

    Args:
      command: the function of the command.
      arguments: the arguments of the command line.
      count: how many are positional.
      exactly: whether further arguments are an error.

    Raises:
      InputError: there are too few, or too many.
    """
    text = inspect.getdoc(command) or ""
    if {"-h", "--help"} & set(arguments):
        print(text)
        raise SystemExit(0)
    usage = next(line.strip() for line in text.splitlines() if line.strip().startswith(PROGRAM))
    given = arguments[:count]
    if len(given) < count or any(argument.startswith("--") for argument in given):
        raise InputError(f"an argument is missing; the command is: {usage}")
    if exactly and arguments[count:]:
        raise InputError(f"unexpected argument {arguments[count]!r}; the command is: {usage}")
    return given if exactly else [*given, arguments[count:]]


def verified(arguments: list[str]) -> tuple[bool, list[str]]:
    """(whether to verify checkpoints, the `arguments` without --no-verify)."""
    return "--no-verify" not in arguments, [argument for argument in arguments if argument != "--no-verify"]


def of_base(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(the folder that --base names, of the model that an adapter was trained on; the other `arguments`)."""
    if "--base" not in arguments:
        return None, arguments
    at = arguments.index("--base")
    if at + 1 == len(arguments) or arguments[at + 1].startswith("--"):
        raise InputError("--base names no folder; give that of the model that the adapter was trained on: --base DIR")
    return arguments[at + 1], arguments[:at] + arguments[at + 2 :]


def with_types(arguments: list[str]) -> tuple[list[Any], list[str]]:
    """(the modules that --with names, files or dotted modules; the other `arguments`)."""
    modules, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        flag, given, value = argument.partition("=")
        if flag != "--with":
            rest.append(argument)
            continue
        target = value if given else next(remaining, "")
        if not target or target.startswith("--"):
            raise InputError("--with needs a file or a dotted module that defines the run's own types: --with mine.py")
        modules.append(brought.read(target)[0])
    return modules, rest


def path(text: str, *, verify: bool = True) -> Path:
    """The path `text`, local or in an object store; of a name on the Hub, the downloaded folder.

    Args:
      text: from the command line.
      verify: the digests of downloaded files.
    """
    from transformer_jax.runs import store

    return hf.local(text, verify=verify) if hf.named(text) else store.path(text)


def is_run(config: Path) -> bool:
    """Whether `config`, a config.json, is of a run and not of a Hugging Face folder."""
    from transformer_jax import hub

    return config.exists() and ("://" in str(config) or not hub.is_snapshot(config.parent))
