"""The command line of a dataclass: `--optim.peak-lr 3e-4`, typed from its annotations, explained by its docstrings."""

import contextlib
import dataclasses
import io
import itertools
import re
import typing
from dataclasses import dataclass
from typing import Any

from transformer_jax import brought
from transformer_jax.errors import InputError, nearest


def override(default: Any, arguments: list[str], *, description: str, program: str) -> Any:
    """A dataclass with the fields replaced that the arguments name.

    `--help` prints every field with its docstring and default, and exits. A field of a union type keeps the type of its
    default.

    Args:
      default: the dataclass.
      arguments: the arguments of the command line, ["--train.steps", "20"].
      description: the first text of `--help`.
      program: the name of the command in `--help`.

    Raises:
      InputError: an unknown field, with the nearest name, or a value of another type.
    """
    import tyro

    known = flags(default)
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag != "--help" and flag not in known:
            raise InputError(f"unknown override {flag}{nearest(flag, known)}; --help lists them all")
    errors = io.StringIO()
    try:
        with brought.ONE_THREAD, contextlib.redirect_stderr(errors):
            concrete = _concrete(default)
            cls: Any = tyro.conf.AvoidSubcommands[type(concrete)]  # type: ignore[misc]
            return _original(tyro.cli(cls, default=concrete, args=arguments, prog=program, description=description))
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro prints its message in a box, or below an underlined title if stdout is ASCII, and adds help below a rule.
        # The first paragraph is the message.
        lines = [line.strip(" │╭╮╰╯|") for line in errors.getvalue().splitlines()]
        paragraphs = itertools.groupby(lines[1:], key=lambda line: bool(line.strip("─-")))
        message = next((" ".join(paragraph) for is_text, paragraph in paragraphs if is_text), "")
        # The message of a dataclass's own check names the field already.
        message = re.sub(r"^Error parsing [a-z][\w.]*: ", "", message)
        raise InputError(re.sub(r"\s+", " ", message)) from None


def _concrete(value: Any) -> Any:
    """The same value in subclasses whose annotations are the concrete types of the fields in place of unions.

    tyro would make subcommands of a union, and distinguish its members only by their class name, which families share.
    """
    import tyro

    cls, fields = type(value), [f for f in dataclasses.fields(value) if f.init]
    hidden = {f.name for f in fields if not f.metadata.get("stored", True)}  # these have no flag
    children = {
        f.name: _concrete(child)
        for f in fields
        if dataclasses.is_dataclass(child := getattr(value, f.name)) and f.name not in hidden
    }
    if not children and not hidden:
        return value
    hints = typing.get_type_hints(cls, include_extras=True)
    extras = {name: getattr(hints[name], "__metadata__", ()) for name in children}
    annotations = {
        name: typing.Annotated[(type(child), *extras[name])] if extras[name] else type(child)
        for name, child in children.items()
    }
    fixed: Any = typing.Annotated[Any, tyro.conf.Fixed, tyro.conf.Suppress]
    annotations |= dict.fromkeys(hidden, fixed)
    body = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__annotations__": annotations,
        "_of": cls,
        **children,
        **{name: dataclasses.field(default=getattr(value, name), metadata={"stored": False}) for name in hidden},
    }
    subclass: Any = dataclass(frozen=True, kw_only=True)(type(cls.__name__, (cls,), body))
    plain = {f.name: getattr(value, f.name) for f in fields if f.name not in children}
    return subclass(**plain, **children)


def _original(value: Any) -> Any:
    """The inverse of `_concrete`."""
    values = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    made = {name: _original(child) if dataclasses.is_dataclass(child) else child for name, child in values.items()}
    return getattr(type(value), "_of", type(value))(**made)


def flags(value: Any, prefix: str = "--") -> set[str]:
    """The flags of the fields of `value`, after `prefix`: `--train.steps`; `--x` and `--no-x` for a bool."""
    names: set[str] = set()
    for f in dataclasses.fields(value):
        child, name = getattr(value, f.name), f.name.replace("_", "-")
        if not f.init or not f.metadata.get("stored", True):
            continue
        if f.metadata.get("flat"):
            names |= flags(child, prefix)
        elif dataclasses.is_dataclass(child):
            names |= flags(child, f"{prefix}{name}.")
        elif isinstance(child, tuple) and child and all(map(dataclasses.is_dataclass, child)):
            names |= {flag for i, item in enumerate(child) for flag in flags(item, f"{prefix}{name}.{i}.")}
        else:
            names |= {f"{prefix}{name}"} | ({f"{prefix}no-{name}"} if isinstance(child, bool) else set())
    return names
