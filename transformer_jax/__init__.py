"""Transformers as pure JAX functions over a frozen config and a tree of parameters.

    import jax, transformer_jax
    from transformer_jax.models import gpt

    cfg = gpt.Config(vocab_size=50257)
    params = gpt.init(jax.random.key(0), cfg)
    logits_BTV = gpt.apply(params, cfg, tokens_BT)

    loaded = transformer_jax.load("runs/a")       # a workdir, one checkpoint step, or a Hugging Face folder

Importing the package costs nothing: each name below is imported when it is first used.
"""

from transformer_jax import interrupts

interrupts.install_in("-m", "transformer-jax")

import importlib  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from transformer_jax import moved  # noqa: E402

__version__ = "0.1.0"

_ROOMS = {
    name: f"transformer_jax.{name}"
    for name in (
        *("data", "decoding", "errors", "experiment", "hub", "losses", "metrics", "models", "nn", "objectives"),
        *("observe", "optim", "restore", "runs", "sharding", "tasks", "train"),
    )
} | {
    "decode": "transformer_jax.decoding.decode",
    "beam": "transformer_jax.decoding.beam",
    "translate": "transformer_jax.decoding.translate",
}

__all__ = [*_ROOMS, "__version__", "load"]

if TYPE_CHECKING:
    from transformer_jax.restore import load as load


def __getattr__(name: str):
    if name == "load":
        return importlib.import_module("transformer_jax.restore").load
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    raise AttributeError(f"module 'transformer_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)


moved.install()
