"""The services that `--log` names."""

import importlib.util

from transformer_jax.contracts import Observer
from transformer_jax.errors import InputError, nearest
from transformer_jax.observe.sending import Sending

SERVICES = {"wandb": "WandB", "mlflow": "MLflow", "trackio": "Trackio"}
"""{name of the package, the module and the extra: name of the observer}."""


def named(text: str) -> tuple[Observer, ...]:
    """One observer that passes a run on to several services; () for an empty text.

    Args:
      text: "wandb" or "wandb,mlflow".

    Raises:
      InputError: an unknown service, or one whose package is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in SERVICES:
            raise InputError(f"--log {text}: {name!r} is none of {', '.join(SERVICES)}{nearest(name, SERVICES)}")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # W&B creates a folder wandb/, which is found but is not a package
            raise InputError(f"--log {text} needs the package {name}; pip install 'transformer-jax[{name}]'")
    return (Sending(*names),) if names else ()
