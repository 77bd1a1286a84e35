"""Writes a snapshot folder: `export` checks that a folder can express the model, then writes its files."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from transformer_jax import compress, contracts, files, models
from transformer_jax.data import tokenizers
from transformer_jax.data.preprocess import Preprocess, sides
from transformer_jax.data.tokenizers.batch import around
from transformer_jax.data.tokenizers.subwords import OWN_SWITCH
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.hub import card, eight_bits, mapping, modules, preprocessor, search, weights
from transformer_jax.hub import settings as hub_settings

TORCH_DTYPES = ("float32", "bfloat16", "float16")


def export(
    folder: str | os.PathLike[str],
    config: Any,
    params: Any,
    tokenizer: tokenizers.Tokenizer | None = None,
    *,
    labels: Sequence[str] = (),
    beam: Beam | None = None,
    preprocess: Preprocess | None = None,
    stop_ids: Sequence[int] = (),
    shard_bytes: int = 5_000_000_000,
    readme: Callable[[dict[str, Any]], str] | None = None,
) -> None:
    """Writes a snapshot folder that `load` and Transformers read.

    The files are written beside `folder`, synced and renamed, so the folder is complete or absent. `load` returns the
    same parameters bit by bit, and the same config except for `contracts.TRAINING` and `contracts.LAUNCH` fields.

    Args:
      folder: a new or empty folder.
      config: the config of the model.
      params: its parameters; their dtype is the dtype of the tensors, also of kernels of eight bits (`compress`).
      tokenizer: its tokenizer; None: no tokenizer files are written.
      labels: the names of a classifier's labels, in order.
      beam: an encoder-decoder's search, written as generation_config.json.
      preprocess: the preprocessing of images, written as preprocessor_config.json.
      stop_ids: a decoder's tokens that end a text, if there are several.
      shard_bytes: the largest size of a safetensors file, in bytes.
      readme: config.json's object with the whole folder's `model_type` -> README.md's text (`card`); None: no file.

    Raises:
      InputError: the folder is not empty, or no supported model type expresses the config.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; nothing is overwritten, so name another")
    format = format_of(config)
    settings = _written(format, config, tokenizer)
    declaration = models.family(config).declare(config)
    names = mapping.tensor_names(declaration, format.table(config))
    extractor = format.write_extractor(config) if hasattr(format, "write_extractor") else None
    _check_says(config, _read_back(format, settings, names, extractor), settings["model_type"])
    wide = compress.unpack(params)
    tensors, dtype = mapping.write_params(declaration, format.table(config), wide), _dtype(wide)
    if labels:
        settings |= _label_settings(config, labels)
    own = _with_tokens(settings, config, tokenizer) | {"torch_dtype": dtype}
    if compress.is_quantized(params):
        tensors, own["quantization_config"] = eight_bits.write(format.table(config), declaration, params, tensors)
    if len(stop_ids) > 1:
        own["eos_token_id"] = list(stop_ids)
    if beam is not None and not settings.get("is_encoder_decoder"):
        raise InputError(
            f"a beam is given to export, but {settings['model_type']} is not an encoder-decoder; leave it out"
        )
    processor = next(iter(getattr(format, "IMAGE_PROCESSORS", {})), "")
    if preprocess is not None:
        _check_preprocess(preprocess, config, processor)
    languages = None if tokenizer is None else tokenizer.languages
    generated = None if beam is None else search.write(beam, config, languages)

    with new_folder(folder) as partial:
        if settings["model_type"] == modules.MODEL_TYPE:
            tensors = modules.write(partial, settings, tensors)
        _write_json(partial / "config.json", own)
        if readme is not None:
            (partial / card.FILE).write_text(readme(own | {"model_type": settings["model_type"]}), encoding="utf-8")
        if (features := preprocessor.write(preprocess, processor) if preprocess else extractor) is not None:
            _write_json(partial / preprocessor.FILE, features)
        weights.write_tensors(partial, tensors, shard_bytes)
        if tokenizer is not None:
            _write_tokenizer(partial, format, config, tokenizer, settings)
        # The folder's own file is kept as it is if it states this search, and its unsupported settings in any case.
        if beam is not None and generated is not None and not search.states(partial, config, beam):
            kept = weights.read_json(partial / search.FILE) if (partial / search.FILE).exists() else {}
            merged = {key: value for key, value in kept.items() if key not in search.WRITTEN} | generated
            _write_json(partial / search.FILE, merged)


def _write_tokenizer(folder: Path, format: Any, config: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    if (own := getattr(format, "write_tokenizer", None)) is not None:
        own(folder, tokenizer)
        return
    if alien := getattr(tokenizer, "not_exported", ""):
        raise InputError(
            f"a Hugging Face folder of {settings['model_type']} has no file for {alien}; write the model alone: "
            "hub.export(folder, loaded.config, loaded.params)"
        )
    tokenizer.save(folder)
    _settle_tokenizer(folder / "tokenizer_config.json", getattr(config, "num_types", 0) > 1)
    if settings.get("is_encoder_decoder"):
        _end_sources(folder / "tokenizer.json", tokenizer)
    _warn_if_changed(folder, tokenizer, settings["model_type"])


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends, and is deleted if the block raises."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot make a folder in {folder.parent} ({error.strerror}); name another place") from None
    try:
        partial.chmod(folder.parent.stat().st_mode & 0o777)
        yield partial
        files.sync_tree(partial)
        partial.rename(folder)
        files.sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _dtype(params: Any) -> str:
    """The dtype of all parameters."""
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    if len(dtypes) != 1 or dtypes[0] not in TORCH_DTYPES:
        raise InputError(
            f"parameters to export are {', '.join(dtypes)}; they must all be one of {', '.join(TORCH_DTYPES)}"
        )
    return dtypes[0]


def _label_settings(config: Any, labels: Sequence[str]) -> dict[str, Any]:
    count = hub_settings.num_labels(config)
    if count == 0:
        raise InputError(f"{len(labels)} labels are given to export, but the model has no classification head")
    if len(labels) != count or len(set(labels)) != len(labels):
        raise InputError(f"the labels to export are {', '.join(labels)}; the model's head needs {count}, each once")
    return hub_settings.write_labels(labels)


def _check_preprocess(preprocess: Preprocess, config: Any, processor: str) -> None:
    if not processor or not hasattr(config, "image_size"):
        raise InputError("preprocessing of images is given to export, but the model takes no images; leave it out")
    fixed = getattr(config, "interpolate", "never") == "never"
    if len(preprocess.mean) != config.channels or (fixed and preprocess.sides != sides(config.image_size)):
        raise InputError(
            f"preprocessing to export makes images of {preprocess.size} pixels and {len(preprocess.mean)} channels; "
            f"the model takes {config.image_size} and {config.channels}"
        )


def _token_settings(settings: dict[str, Any], config: Any, tokenizer: tokenizers.Tokenizer | None) -> dict[str, Any]:
    """The ids of special tokens: the config's, which must agree with the tokenizer's, or else the tokenizer's.

    RoBERTa computes positions from the padding's id, so there it must be the same.
    """
    if not hasattr(config, "vocab_size"):
        return {}
    if tokenizer is None:
        return {name: settings.get(name) for name in ("bos_token_id", "eos_token_id")}
    pad_id, eos_id = tokenizer.special.pad, tokenizer.eos_id
    if hasattr(config, "eos_id"):
        for name, ours, theirs in (("pad_id", config.pad_id, pad_id), ("eos_id", config.eos_id, eos_id)):
            if None not in (ours, theirs) and ours != theirs:
                raise InputError(
                    f"model.{name} is {ours}, but that of the tokenizer to export is {theirs}; set one to the other"
                )
        pad_id = pad_id if config.pad_id is None else config.pad_id
        eos_id = eos_id if config.eos_id is None else config.eos_id
    elif settings.get("pad_token_id") not in (None, pad_id):
        raise InputError(
            f"this {settings['model_type']} counts positions from a padding id of {settings['pad_token_id']}, but the "
            f"tokenizer's padding has id {pad_id}, so Transformers would compute other positions; it cannot be exported"
        )
    begins = next((id for id in (getattr(tokenizer, "named_bos_id", None), tokenizer.bos_id) if id is not None), eos_id)
    return {"bos_token_id": begins, "eos_token_id": eos_id, "pad_token_id": pad_id}


def _settle_tokenizer(path: Path, types: bool) -> None:
    """Adapts tokenizer_config.json to Transformers, which makes token types only if this file asks for them.

    The setting for special tokens in documents is only for a run, so it is removed.
    """
    if not path.exists():
        return
    settings = weights.read_json(path)
    settings.pop(OWN_SWITCH, None)
    if types:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _end_sources(path: Path, tokenizer: Any) -> None:
    """Makes Transformers add the end of text to a source, as we do, if the tokenizer's file adds no special token."""
    described: dict[str, Any] = weights.read_json(path) if path.exists() else {"post_processor": "none"}
    if described.get("post_processor") is not None or tokenizer.eos_id is None or tokenizer.languages is not None:
        return
    eos = tokenizer.decode([tokenizer.eos_id])
    parts = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}]
    pair = [*parts, {"Sequence": {"id": "B", "type_id": 0}}, parts[1]]
    special = {eos: {"id": eos, "ids": [tokenizer.eos_id], "tokens": [eos]}}
    template = {"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": special}
    described["post_processor"] = template
    path.write_text(json.dumps(described, ensure_ascii=False) + "\n", encoding="utf-8")


def _warn_if_changed(folder: Path, tokenizer: Any, model_type: str) -> None:
    """Warns on stderr if Transformers, for this model type, builds another tokenizer from the files."""
    again = tokenizers.load(folder)
    if not isinstance(again, tokenizers.SubwordTokenizer):
        return
    kept = ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
    ours, theirs = (json.loads(one._inner.to_str()) for one in (tokenizer, again))
    if any(ours[part] != theirs[part] for part in kept):
        made = again.settings.get("tokenizer_class", "another tokenizer")
        print(
            f"for the model type {model_type}, Transformers makes {made} of the exported tokenizer, which encodes "
            "texts differently",
            file=sys.stderr,
        )


def _with_tokens(settings: dict[str, Any], config: Any, tokenizer: tokenizers.Tokenizer | None) -> dict[str, Any]:
    """The object of config.json with the ids of the special tokens, of two towers also in that of the text tower.

    CLIP's text is read at the first `eos_token_id`, which is the token that ends every text.
    """
    own = settings["transformer"] if settings["model_type"] == modules.MODEL_TYPE else settings
    tokens = _token_settings(own, config, tokenizer)
    if "text_config" not in own:
        return own | tokens
    known = {name: id for name, id in tokens.items() if id is not None}
    ends = [] if tokenizer is None else around(tokenizer)[1]
    text = own["text_config"] | known | ({"eos_token_id": int(ends[-1])} if len(ends) else {})
    return own | tokens | {"text_config": text}


def format_of(config: Any) -> Any:
    """The module of the Hugging Face format that a model of `config` is written in.

    Raises:
      InputError: no format expresses it.
    """
    for format in models.formats():
        if format.holds(config):
            return format
    position = getattr(config, "position", None)
    family = type(config).__module__.rpartition(".")[2]
    raise InputError(f"no supported Hugging Face model type is a {family} with position={position!r}")


def _written(format: Any, config: Any, tokenizer: tokenizers.Tokenizer | None) -> dict[str, Any]:
    """The object of config.json, under the model type that goes with the tokenizer."""
    for_tokenizer = getattr(format, "for_tokenizer", contracts.Format.for_tokenizer)
    return for_tokenizer(format.write_config(config), getattr(tokenizer, "tokenizer_class", ""))


def _read_back(format: Any, settings: dict[str, Any], names: set[str], extractor: dict[str, Any] | None) -> Any:
    """The config that is read from the objects of config.json and, for sound, of preprocessor_config.json."""
    config = format.read_config(settings, names, "config.json")
    return config if extractor is None else format.read_extractor(config, extractor, preprocessor.FILE)


def _check_says(config: Any, read_back: Any, model_type: str) -> None:
    """Refuses a config that config.json cannot express: reading it back must give the same config."""
    unsaid = contracts.decided_by(config, "launch", "training")
    for field in dataclasses.fields(config):
        name = field.metadata.get("means", field.name)
        ours, theirs = getattr(config, name), getattr(read_back, name)
        if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
            _check_says(ours, theirs, model_type)
        elif field.name not in unsaid and ours != theirs:
            raise InputError(
                f"the model type {model_type} cannot express {field.name}={ours!r} (it means {theirs!r}), so this "
                "config cannot be exported"
            )
