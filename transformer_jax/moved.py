"""Former names of modules, from version 0.1: importing one returns the present module, with a warning.

Version 0.3 will remove this file.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any

_TASKS = {
    "bitext": "translation",
    "cldr": "translation",
    "labelled": "classification",
    "masked": "masked_lm",
    "parallel": "translation",
    "questions": "span_qa",
    "stdlib_topics": "classification",
    "tagged": "tagging",
}
MOVED = {
    **{f"data.{name}": f"tasks.{task}.{name}" for name, task in _TASKS.items()},
    **{f"train.{name}": f"runs.{name}" for name in ("checkpoint", "lock", "manifest", "store", "workdir", "writer")},
    **{name: f"decoding.{name}" for name in ("beam", "decode", "translate")},
    **{f"nn.attention_{platform}": f"kernels.{platform}_attention" for platform in ("cpu", "tpu")},
    **{"data.denoising": "tasks.denoising.corrupted", "train.observe": "observe", "launch": "cli.process"},
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, old = name.partition(".")
        return importlib.machinery.ModuleSpec(name, self) if package == "transformer_jax" and old in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        name = f"transformer_jax.{MOVED[module.__name__.partition('.')[2]]}"
        warnings.warn(f"{module.__name__} is {name} now; change the import", FutureWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(name)


def install() -> None:
    """Makes the former names importable. The finder is asked last, so that present names are not slower."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
