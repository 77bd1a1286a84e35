"""What a user brings: an experiment file, the types that it defines, and the text that is kept with a run.

    module, name = read("mine.py")                 # or a dotted module
    types = types_of([module])                     # {"mine.py:Config": <class Config>, ...}
    code = code_of(experiment)                     # {"mine.py": its text}: kept in WORKDIR/code

A type of the user's is named by its file and its class, "mine.py:Config". Nothing is imported because a file of a run
names it: the caller brings the types.
"""

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_jax.errors import InputError, nearest

PACKAGE = __name__.partition(".")[0]


def read(target: str) -> tuple[ModuleType, str]:
    """The module that `a.b.c` or `path/to/b/c.py` names, and a short name for its runs, "b-c".

    A file is read with its own folder on the path, so it can import its neighbours.

    Raises:
      InputError: when there is no such module or file, or another file of that name was read before.
    """
    if target.endswith(".py"):
        return _read_file(target), f"{Path(target).resolve().parent.name}-{Path(target).stem}"
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{target}.".startswith(f"{error.name}."):
            raise  # the experiment was found; something that it imports was not
        raise InputError(
            f"no experiment module {target!r} here; give one such as experiments.causal_lm.stdlib, from the folder "
            "that holds it, or the path of a file that ends in .py"
        ) from None
    return module, "-".join(target.split(".")[-2:])


def _read_file(target: str) -> ModuleType:
    path = Path(target).resolve()
    if not path.is_file():
        raise InputError(f"no such experiment file: {target}")
    # Under a name of its own: another module may have the file's, now or later.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if (known := sys.modules.get(name)) is not None:
        return known
    _refuse_strangers(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _refuse_strangers(path: Path) -> None:
    """Raises `InputError` where a file imports a neighbour and another folder's module of that name is loaded already:
    it would be taken in the neighbour's place."""
    seen, left = {path}, [path]
    while left:
        try:
            tree = ast.parse(left.pop().read_bytes())
        except SyntaxError:
            return  # its own message is better
        for node in ast.walk(tree):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {n.partition(".")[0] for n in named}:
                neighbour, known = path.parent / f"{name}.py", _file(sys.modules.get(name))
                if not neighbour.is_file() or neighbour in seen:
                    continue
                if known is not None and known != neighbour.resolve():
                    raise InputError(
                        f"{path} imports its neighbour {name}, but {known} was imported as {name} before; give one of "
                        "them another name, or use a process for each"
                    )
                seen.add(neighbour)
                left.append(neighbour)


def _file(module: ModuleType | None) -> Path | None:
    """The file that a module was read from."""
    file = None if module is None else getattr(module, "__file__", None)
    return None if file is None else Path(file).resolve()


def _is_brought(module: ModuleType) -> bool:
    """Whether a module is a user's: neither ours, nor Python's, nor an installed library."""
    file = _file(module)
    if file is None or module.__name__.partition(".")[0] in (PACKAGE, *sys.stdlib_module_names):
        return module.__name__ == "__main__"
    return not {"site-packages", "dist-packages"} & set(file.parts)


# ---------------------------------------------------------------------------------------------------------------- types


def is_foreign(cls: type) -> bool:
    """Whether a type is not the package's own."""
    return cls.__module__.partition(".")[0] != PACKAGE


def name_of(cls: type) -> str:
    """The name of a user's type in config.json: its file and its class, "mine.py:Config"."""
    file = _file(sys.modules.get(cls.__module__))
    return f"{'__main__' if file is None else file.name}:{cls.__qualname__}"


def types_of(given: Any) -> dict[str, type]:
    """{name: type} of the dataclasses in what a caller brings: a module, a class, or several of them.

    A module brings the dataclasses that it defines, and those of its neighbours that it imported.

    Raises:
      InputError: for two types of one name.
    """
    found: dict[str, type] = {}
    for cls in _classes(given):
        name = name_of(cls)
        if found.setdefault(name, cls) is not cls:
            raise InputError(
                f"two types are called {name}: of {_file(sys.modules[found[name].__module__])} and of "
                f"{_file(sys.modules[cls.__module__])}; rename one of the files, or bring one of them alone"
            )
    return found


def _classes(given: Any) -> Iterable[type]:
    if isinstance(given, ModuleType):
        for module in _with_neighbours(given):
            yield from (
                value
                for value in vars(module).values()
                if isinstance(value, type) and value.__module__ == module.__name__ and dataclasses.is_dataclass(value)
            )
    elif isinstance(given, type):
        yield given
    else:
        for part in given.values() if isinstance(given, Mapping) else given:
            yield from _classes(part)


def _with_neighbours(module: ModuleType) -> list[ModuleType]:
    """A module, and the modules of the same folder that are loaded beside it."""
    file = _file(module)
    if file is None or not _is_brought(module):
        return [module]
    beside = [
        other
        for other in list(sys.modules.values())
        if isinstance(other, ModuleType)
        and other is not module
        and _is_brought(other)
        and (theirs := _file(other)) is not None
        and theirs.parent == file.parent
        and theirs != file
    ]
    return [module, *beside]


def types_in(value: Any) -> list[type]:
    """The user's types in an experiment, with those that their files define."""
    names = {cls.__module__ for cls in map(type, _dataclasses_in(value)) if is_foreign(cls)}
    return list(types_of([sys.modules[name] for name in sorted(names & set(sys.modules))]).values())


def look_up(name: str, types: Mapping[str, type], where: str) -> type:
    """The type of this name among those that were brought.

    Raises:
      InputError: where it is not there; the message names the type, its file and the flag.
    """
    if name in types:
        return types[name]
    file = name.partition(":")[0]
    if of_file := [known for known in types if known.startswith(f"{file}:")]:
        raise InputError(f"{where}: {file} as it was brought defines no {name}{nearest(name, of_file)}")
    raise InputError(
        f"{where}: type {name!r} is defined in {file}, which is not part of {PACKAGE} and is never imported because a "
        f"run names it; bring it: --with path/to/{file} (in Python, load(path, types=...))"
    )


# ----------------------------------------------------------------------------------------------------------------- code


def code_of(value: Any) -> dict[str, str]:
    """{file name: text} of the files that define the foreign types in an experiment, and of their neighbours."""
    files: dict[str, Path] = {}
    for cls in {type(part) for part in _dataclasses_in(value)}:
        module = sys.modules.get(cls.__module__)
        if module is not None and is_foreign(cls):
            for near in _with_neighbours(module):
                if (file := _file(near)) is not None and file.is_file():
                    files[file.name] = file
    return {name: path.read_text(encoding="utf-8") for name, path in sorted(files.items())}


def digests(code: Mapping[str, str]) -> dict[str, str]:
    """{file name: SHA-256 of its text}."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in code.items()}


def changed(stored: Mapping[str, str], code: Mapping[str, str]) -> list[str]:
    """The names of the files in `stored`, {file: digest}, whose text in `code` is another one."""
    here = digests(code)
    return [name for name, digest in stored.items() if name in here and here[name] != digest]


def _dataclasses_in(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for f in dataclasses.fields(value):
            if f.metadata.get("stored", True):
                yield from _dataclasses_in(getattr(value, f.name))
    elif isinstance(value, tuple):
        for part in value:
            yield from _dataclasses_in(part)
