"""The tokenizer of a folder, with the ids that Transformers gives.

tokenizer_config.json or config.json names the class, or the model type implies it (`class_of`). A class of
`classes.CLASSES` is built from the settings and the vocabulary in tokenizer.json or in the file of the class. For any
other class, tokenizer.json is used unchanged. Then the added tokens follow, in Transformers' order: those of
tokenizer_config.json, or else of special_tokens_map.json, added_tokens.json and tokenizer.json; the special tokens; the
class's own.

A folder with only SentencePiece's file and a Unigram model encodes exactly as SentencePiece (`sentencepiece.Pieces`),
because the model was trained on those pieces. Transformers approximates its normaliser, or for mBART has none.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import hf
from transformer_jax.data.tokenizers import assembly, classes, items, languages, letters, marian, sentencepiece, special
from transformer_jax.data.tokenizers.classes import CLASSES, TokenizerClass
from transformer_jax.data.tokenizers.plain import ByteTokenizer, CharacterTokenizer
from transformer_jax.data.tokenizers.subwords import SETTINGS, SubwordTokenizer, reads_literally
from transformer_jax.errors import InputError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Tried in this order as the end-of-text token, if no setting names one.
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
# A tokenizer's folder contains at least one of these files, which hold a vocabulary.
KEYS = ("tokenizer.json", "vocab.txt", "vocab.json", *sentencepiece.FILES)
# The files of a tokenizer, and those that Transformers saves with it.
FILES = (
    *("tokenizer.json", SETTINGS, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("vocab.txt", *sentencepiece.FILES, "chat_template.jinja", "generation_config.json"),
)


def load(path: str | os.PathLike[str], spec: Any = None) -> Any:
    """The tokenizer in a folder or in a tokenizer.json.

    Args:
      path: a folder that `save` wrote, a Hugging Face snapshot, its name on the Hub (hf://org/name), or a
        tokenizer.json.
      spec: the spec of the experiment. If the folder holds none of the known files, `spec.read(folder)` reads it.

    Raises:
      InputError: no tokenizer, or a broken one.
    """
    given = hf.here(path, hf.TOKENIZER)
    if given.is_file():
        return read_folder(given.parent, given.name)
    if (given / "bytes.json").is_file():
        return ByteTokenizer()
    if (given / "characters.json").is_file():
        characters = special.read_json(given / "characters.json").get("characters")
        if not isinstance(characters, str) or not characters or len(set(characters)) != len(characters):
            raise InputError(f"{given / 'characters.json'}: `characters` must be a string of distinct characters")
        return CharacterTokenizer(characters)
    if (given / items.FILE).is_file():
        return items.read(given / items.FILE, special.read_json(given / items.FILE))
    if (given / marian.SOURCE).is_file() and not (given / "tokenizer.json").is_file():
        return marian.read_folder(given)
    if letters.is_folder(given):
        return letters.read_folder(given)
    if any((given / name).is_file() for name in KEYS):
        return read_folder(given)
    if given.is_dir() and callable(getattr(spec, "read", None)):
        return spec.read(given)
    held = "has neither tokenizer.json nor vocab.txt, vocab.json and merges.txt, or a SentencePiece model"
    raise InputError(f"no tokenizer at {given}: it {held if given.is_dir() else 'does not exist'}")


def read_folder(folder: Path, file: str = "tokenizer.json") -> SubwordTokenizer:
    """The tokenizer of a folder with Transformers' files.

    Args:
      folder: the folder.
      file: the name of its tokenizer.json.

    Raises:
      InputError: files that are broken or contradict each other, or a class that is not supported.
    """
    config = special.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    settings = special.read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    described = assembly.read_tokenizer_json(folder / file) if (folder / file).is_file() else None
    name = class_of(settings, config, described)
    if name in classes.UNREAD:
        raise InputError(
            f"{folder}: tokenizer_class {name} is written in Python and not supported; use another tokenizer"
        )
    if name is None and described is None:
        name = _guess(folder)
    if name is None and described is None and (folder / sentencepiece.FILES[-1]).is_file():
        raise InputError(
            f"{folder / sentencepiece.FILES[-1]}: no file names its tokenizer_class; set it in {folder / SETTINGS}, "
            "such as XLMRobertaTokenizer or MBartTokenizer"
        )
    made = CLASSES.get(name or "")
    settings = _merged(folder, settings, described) | {"where": str(folder / SETTINGS)}
    roles = _roles(settings, made, folder)
    spelled = {role: str(getattr(token, "content", token)) for role, token in roles.items()}
    model = None
    if made is None and described is not None:
        inner = assembly.library(folder / file)
    else:
        parts, model = assembly.parts(folder, described, made, spelled, settings)
        inner = assembly.build(made, parts, model, settings, spelled, folder)
        if described is not None and described.get("post_processor") is not None:
            inner.post_processor = assembly.beside_vocabulary(described).post_processor
    if name is None:  # no file names the special tokens, so the usual spellings are special
        spelled = special.usual(inner, settings)
    asked = described is None and {"add_bos_token", "add_eos_token"} & settings.keys()
    framed = inner.post_processor is not None and not asked
    assembly.add(inner, settings, roles, made)
    spoken = languages.find({**settings, "tokenizer_class": name}, inner, folder)
    if made is not None and made.frame is not None:
        inner.post_processor = made.frame(inner, settings, spelled)
    elif not framed:
        assembly.frame(inner, settings, spelled)
    return _finished(folder, file, name, inner, model, spelled, settings).replace(languages=spoken)


def class_of(settings: Mapping[str, Any], config: Mapping[str, Any], described: Mapping[str, Any] | None) -> str | None:
    """The name of Transformers' class for a folder; None if no file implies one.

    Args:
      settings: the object in tokenizer_config.json.
      config: the object in config.json.
      described: the object in tokenizer.json; None: there is none.
    """
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    named = classes.ALIASES.get(named := str(named).removesuffix("Fast"), named) if named else None
    model_type = config.get("model_type")
    usual = classes.BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if usual and usual != named and model_type in classes.MISNAMED:
        return usual
    if (
        named == "LlamaTokenizer"
        and described is not None
        and "ByteLevel" in json.dumps(described.get("pre_tokenizer"))
    ):
        return "TokenizersBackend"  # Llama 3's
    return named or usual


def _guess(folder: Path) -> str | None:
    """The class that the names of a folder's files imply."""
    if (folder / "vocab.txt").is_file():
        return "BertTokenizer"
    if (folder / "vocab.json").is_file():
        known = special.read_json(folder / "vocab.json")
        return "RobertaTokenizer" if {"<s>", "</s>", "<mask>"} <= known.keys() else "GPT2Tokenizer"
    return None


# ---- Settings ------------------------------------------------------------------------------------------------------


def _merged(folder: Path, settings: Mapping[str, Any], described: Mapping[str, Any] | None) -> dict[str, Any]:
    """tokenizer_config.json merged with the special and added tokens of the other files.

    "added" is {id: AddedToken}; "extra" lists the further special tokens.
    """
    made = {key: value for key, value in settings.items() if key != "tokenizer_class"}
    if described is not None:  # the post-processor of tokenizer.json decides
        made = {key: value for key, value in made.items() if key not in ("add_bos_token", "add_eos_token")}
    added: dict[int, Any] = {}
    if isinstance(listed := made.get("added_tokens_decoder"), dict):
        added = {int(id): assembly.token_of(token, folder) for id, token in listed.items()}
    else:
        if (folder / "special_tokens_map.json").is_file():
            made |= special.read_json(folder / "special_tokens_map.json")
        if (folder / "added_tokens.json").is_file():
            named = {_spelling(value) for key, value in made.items() if key.endswith("_token")}
            # As in Transformers, without those of special_tokens_map.json.
            named |= {_spelling(token) for token in _listed(settings)}
            for spelled, id in special.read_json(folder / "added_tokens.json").items():
                if type(id) is not int:
                    raise InputError(f"{folder / 'added_tokens.json'}: {spelled!r} has the id {id!r}, not a number")
                added[id] = assembly.token_of(
                    {"content": spelled, "normalized": spelled not in named, "special": spelled in named}, folder
                )
        for token in described.get("added_tokens") or () if described is not None else ():
            added[token["id"]] = assembly.token_of({key: value for key, value in token.items() if key != "id"}, folder)
    return made | {"added": added, "extra": _listed(made)}


def _listed(settings: Mapping[str, Any]) -> list[Any]:
    """The additional special tokens, under either of their keys, and those under their own keys ("image_token")."""
    listed = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    own = [
        v
        for k, v in settings.items()
        if k.endswith("_token") and k.removesuffix("_token") not in ROLES and isinstance(v, str)
    ]
    return [*own, *(listed.values() if isinstance(listed, dict) else listed)]


def _spelling(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _roles(settings: Mapping[str, Any], made: TokenizerClass | None, folder: Path) -> dict[str, Any]:
    """{"cls": AddedToken or spelling, ...} from the settings, or else from the class."""
    known = {str(token.content): token for token in settings["added"].values()}
    roles = {}
    for role in ROLES:
        default = made.roles.get(role) if made is not None else None
        token = settings.get(f"{role}_token", default)
        spelled = special.content(token, f"{folder}: {role}_token")
        if spelled:
            roles[role] = known.get(spelled) or (assembly.token_of(token, folder) if isinstance(token, dict) else token)
    return roles


def _finished(
    folder: Path,
    file: str,
    name: str | None,
    inner: Any,
    model: sentencepiece.Model | None,
    roles: Mapping[str, str],
    settings: Mapping[str, Any],
) -> SubwordTokenizer:
    ids = {role: inner.token_to_id(token) for role, token in roles.items()}
    found = special.Special(**{role: ids.get(role) for role in special.SPELLINGS})
    eos = roles.get("eos")
    if name is None and "eos_token" not in settings:
        eos = next((token for token in END_TOKENS if inner.token_to_id(token) is not None), None)
    if eos is not None and (inner.token_to_id(eos) is None or eos == "[SEP]"):  # [SEP] separates parts of a text
        eos = None
    pieces = None
    if model is not None and model.kind == sentencepiece.UNIGRAM:
        pieces = sentencepiece.Pieces(model, _ids(inner, model, found.unk), _before(name, settings))
    spaces = bool(classes.switch(settings, "clean_up_tokenization_spaces", False))
    stored = class_of(special.read_json(folder / SETTINGS), {}, None) if (folder / SETTINGS).is_file() else None
    kept = {one: folder / one for one in FILES if (folder / one).is_file()}
    if (folder / file).is_file():
        kept["tokenizer.json"] = folder / file
    kept |= {f"additional_chat_templates/{f.name}": f for f in folder.glob("additional_chat_templates/*.jinja")}
    return SubwordTokenizer(
        inner,
        eos,
        found,
        literal=reads_literally(settings),
        pieces_of=pieces,
        clean_up=spaces and type(inner.model).__name__ != "BPE",
        files={one: special.read_bytes(path) for one, path in kept.items()},
        bos=roles.get("bos"),
        settings={} if name in (None, stored) else {"tokenizer_class": name},
    )


def _ids(inner: Any, model: sentencepiece.Model, unknown: int | None) -> np.ndarray:
    """The ids of SentencePiece's pieces, int32."""
    ids = [inner.token_to_id(piece.spelling) for piece in model.pieces]
    other = model.unknown if unknown is None else unknown
    return np.array([other if id is None or at == model.unknown else id for at, id in enumerate(ids)], np.int32)


def _before(name: str | None, settings: Mapping[str, Any]) -> Any:
    """The normaliser of a class that runs before SentencePiece's; None: there is none."""
    from tokenizers import normalizers

    return normalizers.Sequence(classes.albert_steps(settings)) if name == "AlbertTokenizer" else None
