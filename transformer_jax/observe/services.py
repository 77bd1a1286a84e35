"""The services that `--log` names."""

import importlib.util

from transformer_jax.contracts import Observer
from transformer_jax.errors import InputError, nearest
from transformer_jax.observe.sending import Sending

SERVICES = {"wandb": "WandB", "mlflow": "MLflow", "trackio": "Trackio"}  # package, module and extra -> observer


def named(text: str) -> tuple[Observer, ...]:
    """The observers of the services in `text`, "wandb" or "wandb,mlflow": one that passes a run on to all of them.

    Raises: `InputError` for a name that is none, and for a service whose package is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in SERVICES:
            raise InputError(f"--log {text}: {name!r} is none of {', '.join(SERVICES)}{nearest(name, SERVICES)}")
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of this name, such as W&B makes, is no package
            raise InputError(f"--log {text} needs the package {name}; pip install 'transformer-jax[{name}]'")
    return (Sending(*names),) if names else ()
