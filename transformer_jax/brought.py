"""The user's own code: an experiment file, the types that it defines, and its text, which is stored with a run.

    module, name = read("mine.py")                 # or a dotted module
    types = types_of([module])                     # {"mine.py:Config": <class Config>, ...}
    code = code_of(experiment)                     # {"mine.py": its text}, for WORKDIR/code

A user's type is named by its file and its class, "mine.py:Config". Nothing is imported because a file of a run names
it: the caller provides the types.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import sys
import threading
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_jax import shipped
from transformer_jax.errors import InputError, nearest

PACKAGE = __name__.partition(".")[0]
NO_FILE = "__main__"  # replaces the file's name for a type that was defined in a notebook

# Held while source files are read: sys.path and stderr are the process's, and Python 3.11's `ast` fails in two threads.
ONE_THREAD = threading.RLock()


def read(target: str) -> tuple[ModuleType, str]:
    """The module that `target` names, and a short name for its runs, "b-c".

    A file is read with its own folder on the path, so that it can import files beside it.

    Args:
      target: a recipe, "causal_lm.stdlib"; a file, "path/to/b/c.py"; or a dotted module.

    Raises:
      InputError: there is no such module or file, or it imports a file whose name another module has already.
    """
    if target.endswith(".py"):
        with ONE_THREAD:
            module = _read_file(target)
        return module, f"{Path(target).resolve().parent.name}-{Path(target).stem}"
    recipes = shipped.names()
    missing = InputError(
        f"no recipe and no module {target!r} here{nearest(target.removeprefix('experiments.'), recipes)}; "
        "`transformer-jax recipes` lists the recipes; a file of yours is named by its path, which ends in .py"
    )
    if not all(part.isidentifier() for part in target.split(".")):
        raise missing
    name = shipped.module(target) if target in recipes else target
    try:
        with _one_line(target):
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the experiment was found, but a module that it imports was not
        raise missing from None
    return module, "-".join(target.split(".")[-2:])


def _read_file(target: str) -> ModuleType:
    path = Path(target).resolve()
    if not path.is_file():
        raise InputError(f"no such experiment file: {target}")
    if (known := _loaded_from(path)) is not None:
        return known  # reading it twice would create two classes of each type
    _settle_neighbours(path)
    # The module's name includes a hash of the path, because another module may have the name of the file.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        with _one_line(target):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


@contextlib.contextmanager
def _one_line(target: str) -> Iterator[None]:
    """Reports an error of the file itself in one line. An exception of its own code keeps its traceback."""
    try:
        yield
    except SyntaxError as error:
        line = "" if error.lineno is None else f", line {error.lineno}, {(error.text or '').strip()[:80]!r}"
        raise InputError(f"{error.filename or target}{line}: {error.msg}") from None
    except SystemExit:
        raise InputError(
            f'{target} calls sys.exit while it is read; put what it runs below if __name__ == "__main__":'
        ) from None


def _loaded_from(path: Path) -> ModuleType | None:
    """The module that was read from this file. A running script does not count: it may not be complete yet."""
    modules = (m for m in list(sys.modules.values()) if isinstance(m, ModuleType) and m.__name__ != "__main__")
    return next((m for m in modules if str(getattr(m, "__file__", "")).endswith(path.name) and _file(m) == path), None)


def _settle_neighbours(path: Path) -> None:
    """Makes imports of files beside this one return the modules that were read from those files before.

    Raises:
      InputError: a module of the same name from another folder is loaded, which the import would return instead.
    """
    folder, seen, left = path.parent, {path}, [path]
    while left:
        try:
            tree = ast.parse(left.pop().read_bytes())
        except (SyntaxError, ValueError):
            return  # reading the file will report it
        for node in ast.walk(tree):
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {n.partition(".")[0] for n in named}:
                neighbour = folder / f"{name}.py"
                if strangers := _strangers(folder, name):
                    raise InputError(
                        f"{path} imports its neighbour {name}, but {strangers[0]} was imported as {name} before; give "
                        "one of them another name, or use a process for each"
                    )
                if not neighbour.is_file() or neighbour in seen:
                    continue
                if name not in sys.modules and (known := _loaded_from(neighbour)) is not None:
                    sys.modules[name] = known
                seen.add(neighbour)
                left.append(neighbour)


def _strangers(folder: Path, name: str) -> list[Path]:
    """The files of the loaded module or package `name` that are not in `folder`, if `folder` has one of this name."""
    file, package = (folder / f"{name}.py").resolve(), (folder / name).resolve()
    if not file.is_file() and not package.is_dir():
        return []
    # Python prefers an installed package to a folder without __init__.py.
    is_namespace = not file.is_file() and not (package / "__init__.py").is_file()
    return [
        known
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] == name
        and (known := _file(module)) is not None
        and known != file
        and not known.is_relative_to(package)
        and (not is_namespace or _is_brought(module))
    ]


def _file(module: ModuleType | None) -> Path | None:
    """The file that a module was read from; None where there is none."""
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return _resolved(file) if isinstance(file, str) else None


@functools.cache  # a program has thousands of modules
def _resolved(file: str) -> Path:
    return Path(file).resolve()


def _label(file: Path) -> str:
    """A file's name; for a package with that of its folder, "mine/__init__.py"."""
    return f"{file.parent.name}/{file.name}" if file.name == "__init__.py" else file.name


def _is_brought(module: ModuleType) -> bool:
    """Whether a module is the user's: not of this package, Python's library or an installed library."""
    name = module.__name__.partition(".")[0]
    if name == PACKAGE or name in sys.stdlib_module_names or (file := _file(module)) is None:
        return module.__name__ == "__main__"
    return not {"site-packages", "dist-packages"} & set(file.parts)


# ---------------------------------------------------------------------------------------------------------------- types


def is_foreign(cls: type) -> bool:
    """Whether `cls` is not a type of this package."""
    return cls.__module__.partition(".")[0] != PACKAGE


def name_of(cls: type) -> str:
    """The name of `cls`, a user's type, in config.json: its file and its class, "mine.py:Config"."""
    file = _file(sys.modules.get(cls.__module__))
    return f"{NO_FILE if file is None else _label(file)}:{cls.__qualname__}"


def types_of(given: Any) -> dict[str, type]:
    """{name: type} of the dataclasses in `given`: a module, a class, or several of either.

    A module provides the dataclasses that it defines, and those of the files beside it that it imported.

    Raises:
      InputError: two types have the same name.
    """
    found: dict[str, type] = {}
    modules, classes = _given(given)
    beside = [other for module in modules for other in _neighbours(module)]
    for cls in [*classes, *(cls for module in (*modules, *beside) for cls in _defined_in(module))]:
        known = found.setdefault(name_of(cls), cls)
        files = [_file(sys.modules.get(of.__module__)) for of in (known, cls)]
        if files[0] != files[1]:  # types of one file that was read under two names are accepted: the first one counts
            raise InputError(
                f"two types are called {name_of(cls)}: of {files[0]} and of {files[1]}; rename one of the files, or "
                "bring one of them alone"
            )
    return found


def _given(given: Any) -> tuple[list[ModuleType], list[type]]:
    """The modules and the classes in what a caller provides."""
    if isinstance(given, ModuleType):
        return [given], []
    if isinstance(given, type) and dataclasses.is_dataclass(given):
        return [], [given]
    if isinstance(given, type | str) or not isinstance(given, Iterable):
        raise InputError(f"types has {given!r}; give a module, a dataclass, or a list of these")
    parts = [_given(part) for part in (given.values() if isinstance(given, Mapping) else given)]
    return [module for modules, _ in parts for module in modules], [cls for _, classes in parts for cls in classes]


def _defined_in(module: ModuleType) -> list[type]:
    """The dataclasses that a module defines."""
    of = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__)
    return [cls for cls in of if dataclasses.is_dataclass(cls)]


def _neighbours(module: ModuleType) -> list[ModuleType]:
    """The loaded modules that a user's module can have imported from its own folder, or from its own package."""
    file = _file(module)
    if file is None or not _is_brought(module):
        return []
    package, is_inside, _ = module.__name__.partition(".")
    root = file.parents[module.__name__.count(".") + hasattr(module, "__path__")]
    found: dict[Path, ModuleType] = {}
    for name, other in list(sys.modules.items()):
        if (is_inside and name.partition(".")[0] != package) or not _is_brought(other):
            continue
        stem, other_file = root.joinpath(*name.split(".")), _file(other)
        candidates = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
        if other_file not in (None, file) and other_file in [candidate.resolve() for candidate in candidates]:
            found.setdefault(other_file, other)
    return list(found.values())


def types_in(value: Any) -> list[type]:
    """The user's types in `value`, an experiment, and all types that their files define."""
    classes = list(dict.fromkeys(type(part) for part in _dataclasses_in(value) if is_foreign(type(part))))
    names = sorted({cls.__module__ for cls in classes} & set(sys.modules))
    return list(types_of([*classes, *(sys.modules[name] for name in names)]).values())


def look_up(name: str, types: Mapping[str, type], where: str) -> type:
    """The type of this name among those that the caller provides.

    Args:
      name: "mine.py:Config".
      types: from `types_of`.
      where: the file that has the name, for messages.

    Raises:
      InputError: there is none; the message names the type, its file and the flag.
    """
    if name in types:
        return types[name]
    file, name = name.rpartition(":")[0], name[:200]
    if of_file := [known for known in types if known.rpartition(":")[0] == file]:
        raise InputError(f"{where}: {file} as it was brought defines no {name!r}{nearest(name, of_file)}")
    if file == NO_FILE:
        raise InputError(
            f"{where}: type {name!r} was defined in a notebook or a session, which has no file; bring the class: "
            "load(path, types=[...])"
        )
    is_plain = len(file) < 100 and file.isprintable() and file.endswith(".py") and not file.startswith(("/", "."))
    shown = file if is_plain else "FILE.py"
    raise InputError(
        f"{where}: type {name!r} is defined in {shown}, which is not part of {PACKAGE} and is never imported because a "
        f"run names it; bring it: --with path/to/{shown} (in Python, load(path, types=...)); the run keeps its text in "
        "WORKDIR/code"
    )


# ----------------------------------------------------------------------------------------------------------------- code


def code_of(value: Any) -> dict[str, str]:
    """{file name: text} of the files that define the user's types in `value`, and of the files that they import."""
    files: set[Path] = set()
    for cls in {type(part) for part in _dataclasses_in(value)}:
        module = sys.modules.get(cls.__module__)
        if module is not None and is_foreign(cls):
            files |= {file for each in (module, *_neighbours(module)) if (file := _file(each)) is not None}
    texts: dict[str, str] = {}
    for file in sorted(file for file in files if file.is_file()):
        with tokenize.open(file) as opened:  # reads with the encoding that the file states
            text = opened.read()
        name = _label(file)
        texts[name if name not in texts else f"{file.parent.name}/{name}"] = text
    return texts


def digests(code: Mapping[str, str]) -> dict[str, str]:
    """{file name: SHA-256 of its text} of `code`, from `code_of`."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in code.items()}


def changed(stored: Mapping[str, str], code: Mapping[str, str]) -> list[str]:
    """The names of the files whose text in `code`, {file: text}, differs from `stored`, {file: digest}."""
    current = digests(code)
    return [name for name, digest in stored.items() if name in current and current[name] != digest]


def _dataclasses_in(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for f in dataclasses.fields(value):
            if f.metadata.get("stored", True):
                yield from _dataclasses_in(getattr(value, f.name))
    elif isinstance(value, tuple):
        for part in value:
            yield from _dataclasses_in(part)
