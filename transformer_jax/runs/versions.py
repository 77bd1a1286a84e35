"""The versions that a step was written with, and how they differ from those here."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from transformer_jax import __version__

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")  # what numbers and files depend on


def here() -> dict[str, str]:
    """The versions that a step written now states."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"transformer_jax": __version__, "python": platform.python_version()} | packages


def changed(meta: Mapping[str, Any]) -> str:
    """How the versions of a step's `meta` differ from those here, as "jax 0.10.1 -> 0.12.0, ..."; "" where they do not.

    What the step does not state is not compared.
    """
    there = meta.get("versions")
    stored = there if isinstance(there, dict) else {}
    now = here()
    return ", ".join(
        f"{name} {str(stored[name])[:40]} -> {now[name]}" for name in now if stored.get(name, now[name]) != now[name]
    )
