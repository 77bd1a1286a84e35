"""config.json: an experiment is written, read, and compared with the one of a run that is resumed.

The package's own types have short names, "gpt.Config" (`models.MODULES`). A user's type is named by its file,
"mine.py:Config", and looked up among the types that the caller provides (`brought`). Nothing is imported by name.
"""

import contextlib
import dataclasses
import json
import types as python_types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from transformer_jax import brought, contracts, files, models
from transformer_jax.errors import InputError, nearest
from transformer_jax.experiment import Experiment

# ---------------------------------------------------------------------------------------------------------------- write


def to_json(value: Any, where: str = "the experiment") -> Any:
    """A dataclass as JSON values: an object with "type" and every stored field; tuples become lists.

    Args:
      value: the dataclass.
      where: its name in messages.

    Raises:
      InputError: a value that JSON cannot hold, or a type that could not be looked up later.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        stored = _stored(value)
        if "type" in [f.name for f in stored]:
            raise InputError(f"{where} has a field called type, by which config.json names classes; rename the field")
        fields = {f.name: to_json(getattr(value, f.name), f"{where}.{f.name}") for f in stored}
        return {"type": _name(type(value))} | fields
    if isinstance(value, tuple):
        return [to_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise InputError(
        f"{where} is a {type(value).__name__}, which a config.json cannot hold; use numbers, texts (a Literal in place "
        "of an enum), tuples and frozen dataclasses of these"
    )


def _stored(value: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that config.json stores: the constructor's, except those marked `NOT_STORED`."""
    return [f for f in dataclasses.fields(value) if f.init and f.metadata.get("stored", True)]


def _name(cls: type) -> str:
    if brought.is_foreign(cls):
        if "<locals>" in cls.__qualname__:
            raise InputError(
                f"{cls.__module__}.{cls.__qualname__} is defined inside a function, so no config.json can name it; "
                "define it at the top of its file"
            )
        return brought.name_of(cls)
    try:
        return models.type_name(cls)
    except KeyError:
        raise InputError(
            f"{cls.__module__}.{cls.__name__} has no name in models.MODULES; add its module there"
        ) from None


def save(experiment: Experiment, path: Path) -> None:
    """Writes `experiment` into the file `path`, which is whole or as it was before."""
    files.write(path, json.dumps(to_json(experiment), indent=2) + "\n")


# ----------------------------------------------------------------------------------------------------------------- read


def load(path: Path, types: Any = ()) -> Experiment:
    """The experiment in a config.json.

    Args:
      path: the file.
      types: the user's types: a module, classes, or several of either.

    Raises:
      InputError: the file does not exist, is not JSON, or is not an experiment.
    """
    try:
        tree = files.read_json(path, inside=path.parent)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist, so {path.parent} is not a workdir; give the folder of a run"
        ) from None
    return from_json(tree, where=str(path), types=types)


def from_json(tree: Any, *, where: str = "config.json", types: Any = ()) -> Experiment:
    """The experiment that `to_json` wrote. Absent fields take their defaults, so that old files can be read.

    Args:
      tree: the JSON value.
      where: its origin, for messages.
      types: as for `load`.

    Raises:
      InputError: an unknown type or field, a missing field, a value of another type, or a value that a dataclass
        refuses; the message names `where`, the path and the value.
    """
    if isinstance(tree, dict):
        tree = {"order": 1} | tree  # a file without "order" is from a version that had only rule 1
    try:
        return _Reader(brought.types_of(types)).value(tree, Experiment, where)
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply to be an experiment") from None


def refuse_unreadable(experiment: Experiment) -> None:
    """Raises `InputError` if a run of `experiment` could not be resumed, because config.json cannot hold it.

    It cannot where reading returns another value, such as for one that is not of its field's type.
    """
    where = "the experiment"
    again = from_json(to_json(experiment, where), where=where, types=brought.types_in(experiment))
    for path, read, given, _ in differences(again, experiment):
        raise InputError(f"{path} is {given!r}, but config.json would give {read!r} back; state the type of the field")


@dataclasses.dataclass(frozen=True)
class _Reader:
    types: Mapping[str, type]

    def value(self, tree: Any, annotation: Any, where: str) -> Any:
        """`tree` as a value of `annotation`: a dataclass, a contract, a union, a tuple, a Literal, a scalar or None."""
        is_union = get_origin(annotation) in (typing.Union, python_types.UnionType)
        options = get_args(annotation) if is_union else (annotation,)
        if isinstance(tree, dict):
            return self._dataclass(tree, options, where)
        for option in options:
            if get_origin(option) is Literal and any(tree == a and type(tree) is type(a) for a in get_args(option)):
                return tree
            if (option is tuple or get_origin(option) is tuple) and isinstance(tree, list):
                of = get_args(option) or (Any, ...)
                each = of[:1] * len(tree) if of[1:] == (...,) else of
                if len(each) == len(tree):
                    pairs = enumerate(zip(tree, each, strict=True))
                    return tuple(self.value(v, a, f"{where}[{i}]") for i, (v, a) in pairs)
            if option is Any:
                return tuple(self.value(v, Any, where) for v in tree) if isinstance(tree, list) else tree
            if option is float and type(tree) in (int, float):
                with contextlib.suppress(OverflowError):
                    return float(tree)
            if option in (int, str, bool, type(None)) and type(tree) is option:
                return tree
        raise InputError(f"{where}: {json.dumps(tree)[:80]} is not {_describe(annotation)}")

    def _dataclass(self, tree: dict[str, Any], options: tuple[Any, ...], where: str) -> Any:
        cls = self._type(tree.get("type"), options, where)
        renamed = models.RENAMED_FIELDS.get(tree["type"], {})
        tree = {renamed.get(key, key): value for key, value in tree.items()}
        for key, meant in models.REMOVED_FIELDS.get(tree["type"], {}).items():
            if (value := tree.pop(key, meant)) != meant:
                raise InputError(
                    f"{where}.{key} is {json.dumps(value)[:80]}: {tree['type']} has no such setting any more, and is "
                    f"what it was with {json.dumps(meant)}; use the version of the package that wrote the file"
                )
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in _stored(cls)}
        for key in sorted(tree.keys() - fields.keys() - {"type"}):
            raise InputError(f"{where}.{key}: {tree['type']} has no such field{nearest(key, fields)}")
        for f in fields.values():
            if f.name not in tree and f.default is f.default_factory is dataclasses.MISSING:
                raise InputError(f"{where}: {tree['type']} needs the field {f.name!r}")
        values = {k: self.value(v, hints[k], f"{where}.{k}") for k, v in tree.items() if k != "type"}
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except Exception as error:  # a user's class may raise anything, as may ours for a part of another type
            message = " ".join(str(error).split())[:300]
            raise InputError(
                f"{where}: {tree['type']} refuses these values: {type(error).__name__}: {message}"
            ) from error

    def _type(self, name: Any, options: tuple[Any, ...], where: str) -> type:
        """The type of this name, which must be one of the options, or satisfy an option that is a contract."""
        allowed = [o for o in options if dataclasses.is_dataclass(o)]
        open_to_all = any(o is Any or getattr(o, "_is_protocol", False) for o in options)
        names = [_name(typing.cast(type, o)) for o in allowed]
        if not isinstance(name, str) or not (open_to_all or name in names):
            raise InputError(
                f"{where}: type {name!r} is not one of {', '.join(names) or 'the plain values expected here'}"
            )
        cls = brought.look_up(name, self.types, where) if ":" in name else models.type_of(name)
        if cls is None:
            raise InputError(f"{where}: type {name!r} is not one of the package's own; nothing is imported for it")
        for contract in options:
            if getattr(contract, "_is_protocol", False) and (lacking := contracts.missing(cls, contract)):
                raise InputError(f"{where}: {name} has no {', no '.join(lacking)}, so it is no {contract.__name__}")
        return cls


def _describe(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


# ------------------------------------------------------------------------------------------------ the same workdir


def refuse_other(stored: Experiment, wanted: Experiment, workdir: Path) -> list[str]:
    """The fields that differ from the workdir's stored experiment, as lines "train.steps: 20 -> 40".

    Only fields that are marked `contracts.LAUNCH` may differ.

    Args:
      stored: the experiment in the workdir.
      wanted: the one to run.
      workdir: for messages.

    Raises:
      InputError: a field without the mark differs.
    """
    changed = []
    for path, old, new, may_change in differences(stored, wanted):
        if not may_change:
            raise InputError(
                f"{workdir} holds another experiment: {path} is {_brief(old)} there and {_brief(new)} here; "
                f"give another --workdir, or start from its parameters with --init-from {workdir}"
            )
        changed.append(f"{path}: {_brief(old)} -> {_brief(new)}")
    return changed


def differences(old: Any, new: Any, path: str = "", free: bool = False) -> Iterator[tuple[str, Any, Any, bool]]:
    """(path, old value, new value, whether a resume may change it) of each stored field that differs.

    Args:
      old: a dataclass, or any value.
      new: the same.
      path: the path of the values, for recursion.
      free: whether a resume may change the whole value.
    """
    if not dataclasses.is_dataclass(new) or type(old) is not type(new):
        if old != new:
            yield path, old, new, free
        return
    for f in _stored(new):
        may_change = free or f.metadata.get("decided") == "launch"
        yield from differences(
            getattr(old, f.name), getattr(new, f.name), f"{path}.{f.name}" if path else f.name, may_change
        )


def _brief(value: Any) -> str:
    return _name(type(value)) if dataclasses.is_dataclass(value) else json.dumps(to_json(value))
