"""The families, one file each: a frozen `Config` and pure functions of `(params, cfg, ...)`."""

from types import ModuleType
from typing import Any

from transformer_jax.models import bert, gpt, seq2seq, vit

FAMILIES: dict[str, ModuleType] = {"gpt": gpt, "bert": bert, "seq2seq": seq2seq, "vit": vit}


def family(cfg: Any) -> ModuleType:
    """The module that a config belongs to. Errors: `TypeError` for a value that is no family's Config."""
    for module in FAMILIES.values():
        if type(cfg) is module.Config:
            return module
    raise TypeError(f"{type(cfg).__name__} is not the Config of a family; there are {', '.join(FAMILIES)}")
