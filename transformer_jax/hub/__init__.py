"""Reads and writes Hugging Face snapshot folders, without torch or Transformers.

    config, params, tokenizer = hub.load("path/to/snapshot")
    hub.export("path/to/new/folder", config, params, tokenizer)

A snapshot is a folder with config.json, the weights as safetensors (one file, or shards and an index), and a tokenizer
or, for images, preprocessor_config.json. Each model type has a module beside its family (`models.FORMATS`), which names
its tensors and settings. Here, `mapping` converts parameters, `weights` reads and writes the files, `settings` reads
config.json strictly, `search` generation_config.json, and `preprocessor` preprocessor_config.json.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from transformer_jax import models
from transformer_jax.data import tokenizers
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.hub import eight_bits, mapping, modules, preprocessor, search, weights
from transformer_jax.hub import settings as hub_settings
from transformer_jax.hub.writing import export as export

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model"),
    *("source.spm", "bytes.json", "characters.json", "items.json"),
)
UNREAD_TOKENIZER_FILE = "tokenizer.model"  # Llama's, a BPE of SentencePiece


def is_snapshot(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like a Hugging Face snapshot: its config.json has a model type.

    Args:
      path: the path of the folder.
    """
    try:
        return _model_type(weights.read_json(Path(path) / "config.json")) is not None
    except InputError:
        return False


def load(path: str | os.PathLike[str], *, dtype: Any = None) -> tuple[Any, Any, tokenizers.Tokenizer | None]:
    """(config, params, tokenizer) of a snapshot folder; the tokenizer is None if the folder has none.

    The parameters are NumPy arrays on the host, in memory once. The caller places them on devices.

    Args:
      path: the path of the folder.
      dtype: the dtype of the parameters, which are converted; None: float32.

    Raises:
      InputError: an incomplete snapshot, an unsupported model type or setting, or a tensor that is missing, unexpected,
        or of another shape or type than config.json implies.
    """
    return read(path, dtype=dtype)[:3]


def read(
    path: str | os.PathLike[str], *, dtype: Any = None, chosen: Callable[[str], bool] = lambda path: True
) -> tuple[Any, Any, tokenizers.Tokenizer | None, int]:
    """As `load`, and the bytes of tensors that were read.

    Args:
      path: the path of the folder.
      dtype: the dtype of the parameters, which are converted; None: float32.
      chosen: path of a parameter -> whether to read it.
    """
    folder = Path(path)
    given, format, where = _read_settings(folder)
    quantization = weights.read_json(folder / "config.json").get("quantization_config")
    with weights.open_tensors(folder) as stored, modules.tensors(folder) as further:
        tensors = {**eight_bits.read(quantization, stored, where), **further}
        config = _with_extractor(format, format.read_config(given, tensors.keys(), where), folder)
        table, declaration = format.table(config), models.family(config).declare(config)
        dtype = np.dtype(jnp.float32 if dtype is None else dtype)
        params, bytes_read = mapping.read_params(declaration, table, tensors, dtype, str(folder), chosen=chosen)
    own = getattr(format, "read_tokenizer", None)
    if own is not None:
        return config, params, own(folder, config), bytes_read
    tokenizer = _load_tokenizer(folder, config.vocab_size) if hasattr(config, "vocab_size") else None
    return config, params, tokenizer, bytes_read


def labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the labels of a snapshot's classification head, in the order of its logits.

    () if there is no such head, and for regression to one number.

    Args:
      path: the path of the folder.

    Raises:
      InputError: as `load`, and for multi-label classification or regression to several numbers.
    """
    given, format, where = _read_settings(Path(path))
    with weights.open_tensors(Path(path)) as tensors:
        config = format.read_config(given, tensors.keys(), where)
    count = hub_settings.num_labels(config)
    if count == 0:
        return ()
    kind = given.get("problem_type") or "single_label_classification"
    if "tokens" not in getattr(config, "heads", ()) and count == 1 and kind != "multi_label_classification":
        return ()
    if kind != "single_label_classification":
        raise InputError(
            f'{where}: "problem_type" is {kind!r} with {count} labels; supported are one label of several, and '
            "regression to one number"
        )
    return hub_settings.label_names(given, where)


def preprocessing(path: str | os.PathLike[str]) -> Preprocess | None:
    """The preprocessing of a snapshot's images, from its preprocessor_config.json; None if there is no such file.

    Args:
      path: the path of the folder.

    Raises:
      InputError: settings that `data.preprocess.Preprocess` cannot express.
    """
    return preprocessor.read(Path(path), _processors())


def task(path: str | os.PathLike[str], config: Any) -> Any:
    """The task of a snapshot's model; None if the package has no such task.

    Args:
      path: the path of the folder.
      config: the config of its model.
    """
    _, format, _ = _read_settings(Path(path))
    return format.task(Path(path), config)


def generation(path: str | os.PathLike[str], config: Any) -> Beam:
    """The beam search of a snapshot's encoder-decoder, from generation_config.json, or config.json in old folders.

    Settings that are not supported are named on stderr.

    Args:
      path: the path of the folder.
      config: the config of its model, for defaults.

    Raises:
      InputError: a setting of the wrong type, or out of range.
    """
    return search.read(Path(path), config, weights.read_json(Path(path) / "config.json"))


def sampling(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The sampling settings of a snapshot's decoder (`search.sampling`).

    Args:
      path: the path of the folder.
    """
    return search.sampling(Path(path), weights.read_json(Path(path) / "config.json"))


def stop_ids(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The ids of the tokens that end a text, by a snapshot's settings. Chat models have several.

    Args:
      path: the path of the folder.
    """
    return search.stop_ids(Path(path), weights.read_json(Path(path) / "config.json"))


def _model_type(given: Mapping[str, Any]) -> str | None:
    """The model type of a config.json; None if it has none and no format recognises its settings."""
    found = hub_settings.model_type(given, models.FORMATS)
    if found is not None or given.get("model_type") is not None:
        return found

    def has(sign: str | tuple[str, Any]) -> bool:
        return sign in given if isinstance(sign, str) else given.get(sign[0]) == sign[1]

    signs = {format.MODEL_TYPES[0]: getattr(format, "SIGNS", ()) for format in models.formats()}
    return next((name for name, held in signs.items() if held and all(map(has, held))), None)


def _processors() -> dict[str, Mapping[str, Any]]:
    """{image processor: its defaults} of all formats."""
    return {name: one for format in models.formats() for name, one in getattr(format, "IMAGE_PROCESSORS", {}).items()}


def _read_settings(folder: Path) -> tuple[dict[str, Any], Any, str]:
    """(the object in config.json, the format of its model type, the path of the file)."""
    where = str(folder / "config.json")
    given = weights.read_json(folder / "config.json")
    model_type = _model_type(given)
    if (whole := modules.read(folder, given | {"model_type": model_type})) is not None:
        model_type, given = whole["model_type"], whole
    format = models.format_of(str(model_type))
    if format is None:
        named = given.get("model_type")
        raise InputError(f'{where}: "model_type" is {named!r}; supported are {", ".join(models.FORMATS)}')
    given = {name: value for name, value in given.items() if name != "quantization_config"}  # `eight_bits` reads it
    return given | {"model_type": model_type}, format, where


def _with_extractor(format: Any, config: Any, folder: Path) -> Any:
    """The config with what the folder says of the features of sound, where the format reads any."""
    path = folder / preprocessor.FILE
    if not hasattr(format, "read_extractor") or not path.exists():
        return config
    return format.read_extractor(config, weights.read_json(path), str(path))


def _load_tokenizer(folder: Path, vocab_size: int) -> tokenizers.Tokenizer | None:
    held = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not held and (folder / UNREAD_TOKENIZER_FILE).exists():
        raise InputError(
            f"{folder} has its tokenizer only as {UNREAD_TOKENIZER_FILE}, which is not supported; save it as "
            f"tokenizer.json with Transformers' AutoTokenizer, or remove {UNREAD_TOKENIZER_FILE} to load only the "
            "weights"
        )
    if not held:
        return None
    tokenizer = tokenizers.load(folder)
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model's embedding has "
            f"{vocab_size} rows; use the tokenizer of these weights"
        )
    return tokenizer
