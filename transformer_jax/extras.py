"""The packages that a plain install does not bring, and the extra that does: `pip install 'transformer-jax[vision]'`.

    def bleu(...):
        extras.need("sacrebleu", "BLEU")
        from sacrebleu.metrics import BLEU

Each is imported where it is used, after `need`. A test holds the package to both.
"""

import importlib.util

from transformer_jax.errors import InputError

# module -> (package, extra)
EXTRAS = {
    "tensorflow_datasets": ("tensorflow-datasets", "data"),
    "babel": ("Babel", "data"),
    "PIL": ("Pillow", "vision"),
    "pycocotools": ("pycocotools", "vision"),
    "qtawesome": ("qtawesome", "vision"),
    "soundfile": ("soundfile", "sound"),
    "sklearn": ("scikit-learn", "metrics"),
    "sacrebleu": ("sacrebleu", "metrics"),
    "rouge_score": ("rouge-score", "metrics"),
    "matplotlib": ("matplotlib", "plots"),
    "tensorboardX": ("tensorboardX", "logging"),
    "jinja2": ("Jinja2", "chat"),
    "lm_eval": ("lm_eval", "harness"),
    "gcsfs": ("gcsfs", "gcs"),
    "s3fs": ("s3fs", "s3"),
    "aiohttp": ("aiohttp", "http"),
    "pyarrow": ("pyarrow", "data"),
    "apache_beam": ("apache-beam", "beam"),
    "optuna": ("optuna", "sweep"),
    "huggingface_hub": ("huggingface_hub", "hub"),
}


class Missing(InputError):
    """A package that is not installed; the message names the extra that brings it."""


def need(module: str, what: str, *, extra: str = "") -> None:
    """Returns where a module of an optional package can be imported.

    Args:
      module: its top-level module, a key of `EXTRAS`.
      what: what needs it, the subject of the error's sentence.
      extra: the extra to name, where another than the package's own brings all that belongs to `what`.

    Raises:
      Missing: where it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        package, own = EXTRAS[module]
        raise Missing(f"{what}: {package} is not installed; pip install 'transformer-jax[{extra or own}]'")
