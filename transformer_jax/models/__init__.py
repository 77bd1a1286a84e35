"""What ships, by name: the families, and the Hugging Face formats. Nothing is imported before it is asked for.

A family is the module that its frozen `Config` is defined in, with pure functions of `(params, cfg, ...)`. A family of
the user's own needs no entry here: `family` finds it by its Config.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

FAMILIES = ("gpt", "bert", "seq2seq", "vit")

# model_type of a Hugging Face config.json -> the module that reads and writes it.
FORMATS = {
    "gpt2": "gpt.gpt2",
    "llama": "gpt.llama",
    "qwen2": "gpt.llama",
    "qwen3": "gpt.llama",
    "albert": "bert.albert",
    "roberta": "bert.roberta",
    "electra": "bert.electra",
    "bert": "bert.bert",
    "t5": "seq2seq.t5",
    "mt5": "seq2seq.t5",
    "bart": "seq2seq.bart",
    "mbart": "seq2seq.bart",
    "marian": "seq2seq.marian",
    "vit": "vit.vit",
    "deit": "vit.deit",
}


def __getattr__(name: str) -> ModuleType:
    if name in FAMILIES:
        return importlib.import_module(f"transformer_jax.models.{name}")
    raise AttributeError(f"module 'transformer_jax.models' has no attribute {name!r}; it has {', '.join(FAMILIES)}")


def family(cfg: Any) -> ModuleType:
    """The module that a config's type is defined in. Errors: `TypeError` for what is no family's Config."""
    module = sys.modules.get(type(cfg).__module__)
    if module is None or not hasattr(module, "declare"):
        raise TypeError(
            f"{type(cfg).__module__}.{type(cfg).__name__} is no model's config: its module has no function "
            "declare(cfg) that gives the tree of parameters"
        )
    return module


def formats() -> list[ModuleType]:
    """The modules of all formats, in the order in which they are asked whether they hold a config."""
    return [importlib.import_module(f"transformer_jax.models.{path}") for path in dict.fromkeys(FORMATS.values())]


def format_of(model_type: str) -> ModuleType | None:
    """The module that reads this model type; None where it is not supported."""
    return importlib.import_module(f"transformer_jax.models.{FORMATS[model_type]}") if model_type in FORMATS else None
