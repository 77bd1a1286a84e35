"""Image GPT (Chen et al. 2020) as Hugging Face stores it: `model_type: imagegpt`.

GPT-2 with a norm that subtracts no mean, a head of its own, and a vocabulary of colours and one more token, which
begins every picture and is never predicted. The colours are "clusters" in preprocessor_config.json, of pixels in
[-1, 1].
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.errors import InputError
from transformer_jax.hub import preprocessor, weights
from transformer_jax.hub.mapping import Table
from transformer_jax.models import gpt
from transformer_jax.models.gpt import gpt2
from transformer_jax.tasks.text_to_image import TextToImage
from transformer_jax.tasks.text_to_image.codes import Codebook
from transformer_jax.tasks.text_to_image.tokenizer import PictureTokenizer

MODEL_TYPES = ("imagegpt",)
# Transformers' defaults for what a config.json may leave out.
DEFAULTS = {
    **{"vocab_size": 513, "n_positions": 1024, "n_embd": 512, "n_layer": 24, "n_head": 8},
    **{"activation_function": "quick_gelu", "tie_word_embeddings": False},
}


def table(cfg: gpt.Config) -> Table:
    """Where each leaf is stored: as in GPT-2, without its biases of norms and its tied head."""
    return gpt2.TABLE._replace(tied={})


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> gpt.Config:
    """The config of a config.json's object. Errors: `InputError` for what `gpt` does not compute."""
    given = {**DEFAULTS, **given}
    if given["tie_word_embeddings"]:
        raise InputError(f'{where}: "tie_word_embeddings" is true; Image GPT has a head of its own, so set it to false')
    cfg = gpt2.read_config(given, names, where)
    return dataclasses.replace(cfg, norm="rms", num_outputs=cfg.vocab_size - 1)


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, gpt.Config) and cfg.position == "learned" and cfg.num_outputs == cfg.vocab_size - 1


def write_config(cfg: gpt.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that Image GPT has."""
    return gpt2.write_config(cfg) | {"model_type": "imagegpt", "architectures": ["ImageGPTForCausalImageModeling"]}


def task(folder: Path, cfg: gpt.Config) -> TextToImage:
    """Pictures without captions."""
    return TextToImage(num_codes=cfg.vocab_size - 1, caption_length=0)


def read_tokenizer(folder: Path, cfg: gpt.Config) -> PictureTokenizer | None:
    """The colours of the folder as codes of patches of one pixel; None where it has none.

    Args:
      folder: the snapshot.
      cfg: its model.

    Raises:
      InputError: another number of colours, or of pixels, than the model has.
    """
    path = folder / preprocessor.FILE
    clusters = weights.read_json(path).get("clusters") if path.exists() else None
    if clusters is None:
        return None
    try:
        colours_KC = np.array(clusters, np.float32)
    except (TypeError, ValueError):
        colours_KC = np.zeros(0, np.float32)
    size = round(cfg.max_length**0.5)
    if colours_KC.shape != (cfg.vocab_size - 1, 3) or size**2 != cfg.max_length or not np.isfinite(colours_KC).all():
        raise InputError(
            f'{path}: "clusters" must be {cfg.vocab_size - 1} colours of three numbers for this model, whose pictures '
            f"are squares of {cfg.max_length} pixels; restore the file"
        )
    return PictureTokenizer(None, Codebook((colours_KC + 1) / 2, patch=1, size=size))


def write_tokenizer(folder: Path, tokenizer: PictureTokenizer) -> None:
    """Writes the colours as the settings of Transformers' image processor.

    Args:
      folder: the folder of the snapshot.
      tokenizer: the tokenizer of the model.

    Raises:
      InputError: its codes are not colours.
    """
    book = getattr(tokenizer, "codebook", None)
    if book is None or (book.patch, book.channels) != (1, 3):
        raise InputError("Image GPT's codes are colours of one pixel; this model has codes of another kind")
    settings = {
        **{"image_processor_type": "ImageGPTImageProcessor", "do_color_quantize": True, "do_normalize": True},
        **{"do_resize": True, "resample": 2, "size": {"height": book.size, "width": book.size}},
        "clusters": (book.patches_KP.astype(np.float64) * 2 - 1).tolist(),
    }
    (folder / preprocessor.FILE).write_text(json.dumps(settings) + "\n", encoding="utf-8")
