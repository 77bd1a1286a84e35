"""The tokens that mean something to a model: which they are, and where a folder says so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax import files
from transformer_jax.contracts import Special
from transformer_jax.errors import InputError

__all__ = ["SPELLINGS", "Special", "content", "read_bytes", "read_json", "read_settings", "usual", "write_json"]

MOST_BYTES = 2**26  # of a file; the largest tokenizer.json that we know of has half of that

# How they are usually spelled: BERT's, then RoBERTa's. A folder that names its own is believed.
SPELLINGS = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}


def usual(inner: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """{"cls": "[CLS]", ...}: what `settings` ("mask_token": ...) name, else the usual spellings in the vocabulary."""
    roles: dict[str, str] = {}
    for role in ("bos", "eos", *SPELLINGS):
        if named := content(settings.get(f"{role}_token"), f"{settings.get('where')}: {role}_token"):
            roles[role] = named
        elif f"{role}_token" not in settings:
            found = next((s for s in SPELLINGS.get(role, ()) if inner.token_to_id(s) is not None), None)
            roles |= {role: found} if found else {}
    return roles


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder, over what its special_tokens_map.json says; both may be absent."""
    named = [folder / "special_tokens_map.json", folder / "tokenizer_config.json"]
    return {key: value for file in named if file.is_file() for key, value in read_json(file).items()}


def content(token: Any, what: str) -> str | None:
    """The spelling of a token written as "[MASK]" or as {"content": "[MASK]", ...}."""
    spelled = token.get("content") if isinstance(token, dict) else token
    if spelled is not None and not isinstance(spelled, str):
        raise InputError(f"{what} is {spelled!r}, not a token")
    return spelled


def read_bytes(path: Path) -> bytes:
    """A file of a tokenizer's folder, which may be a stranger's."""
    return files.read(path, MOST_BYTES, inside=path.parent)


def read_json(path: Path) -> dict[str, Any]:
    read = files.read_json(path, MOST_BYTES, inside=path.parent)
    if not isinstance(read, dict):
        raise InputError(f"{path}: not a JSON object")
    return read


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
