"""The recipes that come with the package, by their short names: `causal_lm.stdlib`.

A wheel holds them as `transformer_jax.recipes`; a checkout has them beside the package, in `experiments`.
"""

import ast
import sys
from pathlib import Path

from transformer_jax.errors import InputError, nearest

PACKAGE = Path(__file__).resolve().parent


def folder() -> Path | None:
    """The folder of the recipes; None where this copy of the package has none."""
    beside = PACKAGE.parent / "experiments"
    return next((found for found in (PACKAGE / "recipes", beside) if (found / "__init__.py").is_file()), None)


def names() -> list[str]:
    """The short names, sorted."""
    root = folder()
    files = [] if root is None else [path for path in root.glob("*/*.py") if path.stem != "__init__"]
    return sorted(f"{path.parent.name}.{path.stem}" for path in files)


def file(name: str) -> Path:
    """The file of the recipe `name`.

    Raises:
      InputError: where there is none of this name; the message names the nearest.
    """
    root, known = folder(), names()
    if root is None or name not in known:
        raise InputError(f"no recipe {name!r}{nearest(name, known)}; `transformer-jax recipes` lists all")
    return (root / name.replace(".", "/")).with_suffix(".py")


def summary(name: str) -> str:
    """The first line of the docstring of the recipe `name`."""
    text = ast.get_docstring(ast.parse(file(name).read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


def module(name: str) -> str:
    """The dotted module of the recipe `name`, which can be imported after this call."""
    root = file(name).parents[1]
    if root.parent == PACKAGE:
        return f"{PACKAGE.name}.{root.name}.{name}"
    if str(root.parent) not in sys.path:
        sys.path.append(str(root.parent))  # last: a checkout must not hide an installed library
    return f"{root.name}.{name}"
