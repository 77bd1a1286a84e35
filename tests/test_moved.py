"""The names that README and older files of users import are there; those of moved modules with a warning."""

import importlib
import re
from pathlib import Path

import pytest

from transformer_jax import moved


@pytest.mark.parametrize(("old", "new"), moved.MOVED.items())
def test_an_old_name_is_the_module_of_today(old, new):
    with pytest.warns(FutureWarning, match=rf"transformer_jax\.{old} is transformer_jax\.{new} now; change the import"):
        found = importlib.import_module(f"transformer_jax.{old}")
    assert found is importlib.import_module(f"transformer_jax.{new}")


def test_another_name_is_no_module():
    with pytest.raises(ModuleNotFoundError, match="transformer_jax.data.nothing"):
        importlib.import_module("transformer_jax.data.nothing")


def test_what_readme_imports_is_there():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    imports = re.findall(r"^(?:from transformer_jax\S* )?import .*$", readme, re.MULTILINE)
    assert len(imports) >= 5
    for line in imports:
        exec(line, {})
