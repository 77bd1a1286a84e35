"""modules.json: the folder of a sentence-transformers model, a Transformer with the modules that make one vector of it.

    config.json, model.safetensors, tokenizer files          the Transformer, as Hugging Face stores it
    modules.json                                             the modules in order, each with its folder
    1_Pooling/config.json, 2_Dense/config.json, ...          their settings
    2_Dense/model.safetensors                                the parameters of a dense layer

`read` makes one object of these settings, which a format reads like a config.json.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.errors import InputError
from transformer_jax.hub import weights

FILE = "modules.json"
MODEL_TYPE = "sentence-transformers"
SETTINGS = "config_sentence_transformers.json"
LENGTHS = ("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")
DENSE = "dense."
"""Begins the names of the dense layer's tensors in a table."""
TYPES = {
    "Transformer": "sentence_transformers.models.Transformer",
    "Pooling": "sentence_transformers.models.Pooling",
    "Dense": "sentence_transformers.models.Dense",
    "Normalize": "sentence_transformers.models.Normalize",
}


def read(folder: Path, transformer: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"model_type", "transformer", "modules": [{"type", ...its settings}], "max_seq_length"}; None: no such folder.

    Args:
      folder: the folder of the snapshot.
      transformer: the object in its config.json.

    Raises:
      InputError: a broken modules.json, or a module's folder outside of it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    listed = files.read_json(path, inside=folder)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InputError(f"{path} is no list of modules")
    found = []
    for one in listed:
        kind, inside = str(one.get("type")).rpartition(".")[2], str(one.get("path", ""))
        if inside and Path(inside).name != inside:
            raise InputError(f"{path} names {inside!r}, which is no folder beside it")
        settings = folder / inside / "config.json"
        held = weights.read_json(settings) if inside and settings.exists() else {}
        found.append({"type": kind} | held)
    _refuse_changed_texts(folder)
    lengths = [
        value
        for name, key in LENGTHS
        if (folder / name).exists() and type(value := weights.read_json(folder / name).get(key)) is int
    ]
    return {
        "model_type": MODEL_TYPE,
        "transformer": dict(transformer),
        "modules": found,
        "max_seq_length": lengths[0] if lengths else None,
    }


def _refuse_changed_texts(folder: Path) -> None:
    """Refuses a folder whose texts are changed before they are tokenised: our texts would have other embeddings.

    Raises:
      InputError: a prompt before every text, or lower case that is not the tokenizer's own.
    """
    bert, tokenizer, general = (
        weights.read_json(folder / name) if (folder / name).exists() else {}
        for name in (LENGTHS[0][0], LENGTHS[1][0], SETTINGS)
    )
    if bert.get("do_lower_case") and not tokenizer.get("do_lower_case"):
        raise InputError(f'{folder / LENGTHS[0][0]}: "do_lower_case" is true; only the tokenizer may make lower case')
    name, prompts = general.get("default_prompt_name"), general.get("prompts") or {}
    if name and prompts.get(name):
        raise InputError(
            f'{folder / SETTINGS}: "default_prompt_name" is {name!r}, so every text follows {prompts[name]!r}; this is '
            "not supported: set it to null, and write the prompt into the texts"
        )


@contextlib.contextmanager
def tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """A context with {name: slice} of the dense layer's tensors, as of `weights.open_tensors`; {} where there is none.

    Args:
      folder: the folder of the snapshot.
    """
    listed = files.read_json(folder / FILE, inside=folder) if (folder / FILE).exists() else []
    names = [str(one.get("path")) for one in listed if str(one.get("type")).endswith(".Dense")]
    if not names:
        yield {}
        return
    with weights.open_tensors(folder / names[0]) as found:
        yield {f"{DENSE}{name}": tensor for name, tensor in found.items()}


def write(folder: Path, settings: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Writes modules.json and the folders of the modules; returns the tensors that are left, the Transformer's.

    Args:
      folder: the folder of the snapshot.
      settings: an object such as `read` returns.
      made: {name: (bytes, function that makes the tensor)}, of the Transformer and of the dense layer.
    """
    dense = {name.removeprefix(DENSE): tensor for name, tensor in made.items() if name.startswith(DENSE)}
    listed = []
    for number, module in enumerate(settings["modules"]):
        kind = module["type"]
        name = f"{number}_{kind}" if number else ""
        listed.append({"idx": number, "name": str(number), "path": name, "type": TYPES[kind]})
        if number:
            (folder / name).mkdir()
            own = {key: value for key, value in module.items() if key != "type"}
            (folder / name / "config.json").write_text(json.dumps(own, indent=2) + "\n", "utf-8")
        if kind == "Dense":
            weights.write_tensors(folder / name, dense, sum(size for size, _ in dense.values()))
    (folder / FILE).write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
    lengths = {"max_seq_length": settings["max_seq_length"], "do_lower_case": False}
    (folder / LENGTHS[0][0]).write_text(json.dumps(lengths, indent=2) + "\n", "utf-8")
    return {name: tensor for name, tensor in made.items() if not name.startswith(DENSE)}
