"""Puts the recipes of experiments/ into the wheel, as transformer_jax/recipes. All else is in pyproject.toml."""

import re
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

# How a recipe is named and run: in a checkout, and where the package is installed.
FORMS = (
    (r"\b(?:tools/run|python -m) experiments\.", "transformer-jax train "),
    (r"`experiments\.", "`"),
    (r"\bfrom experiments\b", "from transformer_jax.recipes"),
)


class BuildWithRecipes(build_py):
    """Builds the package and its recipes."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # a checkout's recipes are read where they are
        for source in sorted(Path("experiments").rglob("*.py")):
            text = source.read_text(encoding="utf-8")
            for here, installed in FORMS:
                text = re.sub(here, installed, text)
            target = Path(self.build_lib, "transformer_jax", "recipes", source.relative_to("experiments"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")


setuptools.setup(cmdclass={"build_py": BuildWithRecipes})
