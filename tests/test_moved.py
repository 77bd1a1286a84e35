"""Files that users wrote before the rooms were drawn still run, and are told the new names."""

import importlib

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
