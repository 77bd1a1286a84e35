"""The special tokens of a folder, and the reading and writing of its files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.contracts import Special
from transformer_jax.errors import InputError

__all__ = ["SPELLINGS", "Special", "content", "read_bytes", "read_json", "read_settings", "usual", "write_json"]

MOST_BYTES = 2**26  # the largest file that is read; the largest known tokenizer.json has half of that

# The usual spellings: BERT's, then RoBERTa's. The settings of a folder override them.
SPELLINGS = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}


def usual(inner: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """{"cls": "[CLS]", ...}: the special tokens in the settings, or else the usual spellings in the vocabulary.

    Args:
      inner: the library's tokenizer.
      settings: the settings of tokenizer_config.json ("mask_token": ...).
    """
    roles: dict[str, str] = {}
    for role in ("bos", "eos", *SPELLINGS):
        if named := content(settings.get(f"{role}_token"), f"{settings.get('where')}: {role}_token"):
            roles[role] = named
        elif f"{role}_token" not in settings:
            found = next((s for s in SPELLINGS.get(role, ()) if inner.token_to_id(s) is not None), None)
            roles |= {role: found} if found else {}
    return roles


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in special_tokens_map.json, overridden by tokenizer_config.json; both files may be absent.

    Args:
      folder: the folder of the tokenizer.
    """
    named = [folder / "special_tokens_map.json", folder / "tokenizer_config.json"]
    return {key: value for file in named if file.is_file() for key, value in read_json(file).items()}


def content(token: Any, what: str) -> str | None:
    """The spelling of a token; None for None.

    Args:
      token: "[MASK]" or {"content": "[MASK]", ...}.
      what: names the token in the message.

    Raises:
      InputError: neither of these.
    """
    spelled = token.get("content") if isinstance(token, dict) else token
    if spelled is not None and not isinstance(spelled, str):
        raise InputError(f"{what} is {spelled!r}, not a token")
    return spelled


def read_bytes(path: Path) -> bytes:
    """The bytes of a file in a tokenizer's folder.

    Args:
      path: the path of a regular file of at most MOST_BYTES.
    """
    return files.read(path, MOST_BYTES, inside=path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a tokenizer's folder.

    Args:
      path: the path of a regular file of at most MOST_BYTES.

    Raises:
      InputError: not a JSON object.
    """
    read = files.read_json(path, MOST_BYTES, inside=path.parent)
    if not isinstance(read, dict):
        raise InputError(f"{path}: not a JSON object")
    return read


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object into a file; its folder is made.

    Args:
      path: the path of the file.
      value: the object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
