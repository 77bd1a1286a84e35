"""The tokens that mean something to a model: which they are, and where a folder says so."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformer_jax.errors import InputError

# How they are usually spelled: BERT's, then RoBERTa's. A folder that names its own is believed.
SPELLINGS = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}


@dataclass(frozen=True)
class Special:
    """Ids of the special tokens; None where the tokenizer has none."""

    cls: int | None = None
    """Stands at the head of an example; its hidden state is the example's."""
    sep: int | None = None
    """Ends each part of an example."""
    pad: int | None = None
    mask: int | None = None
    unk: int | None = None

    def present(self) -> dict[str, int]:
        """{"cls": 2, ...} of those there are."""
        return {f.name: id for f in fields(self) if (id := getattr(self, f.name)) is not None}


def find(settings: dict[str, Any], inner: Any, where: object) -> Special:
    """What `settings` ("mask_token": ...) name, else the usual spellings that are in the vocabulary."""
    ids: dict[str, int | None] = {}
    for role, spellings in SPELLINGS.items():
        named = content(settings.get(f"{role}_token"), f"{where}: {role}_token")
        if named:
            ids[role] = inner.token_to_id(named)
            if ids[role] is None:
                raise InputError(
                    f"{where}: {role}_token {named!r} is not in the vocabulary; correct it or set it to null"
                )
        elif f"{role}_token" not in settings:
            ids[role] = next((id for s in spellings if (id := inner.token_to_id(s)) is not None), None)
    return Special(**ids)


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder, over what its special_tokens_map.json says; both may be absent."""
    files = [folder / "special_tokens_map.json", folder / "tokenizer_config.json"]
    return {key: value for file in files if file.is_file() for key, value in read_json(file).items()}


def content(token: Any, what: str) -> str | None:
    """The spelling of a token written as "[MASK]" or as {"content": "[MASK]", ...}."""
    spelled = token.get("content") if isinstance(token, dict) else token
    if spelled is not None and not isinstance(spelled, str):
        raise InputError(f"{what} is {spelled!r}, not a token")
    return spelled


def read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(read, dict):
        raise InputError(f"{path}: not a JSON object")
    return read


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
