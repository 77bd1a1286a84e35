"""Hugging Face snapshot folders in and out, without torch or Transformers.

    config, params, tokenizer = hub.load("path/to/snapshot")
    hub.export("path/to/new/folder", config, params, tokenizer)

A snapshot is a folder with config.json, the weights as safetensors (one file, or shards and an index) and a tokenizer,
or preprocessor_config.json where a model sees images. How a model type names its tensors and settings stands in one
module beside its family (`models.FORMATS`); `mapping` carries parameters across, `weights` reads and writes the files,
`settings` reads config.json strictly, `search` generation_config.json, and `preprocessor` preprocessor_config.json.
"""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import contracts, models
from transformer_jax.data import tokenizers
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.data.tokenizers.subwords import OWN_SWITCH
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.hub import mapping, preprocessor, search, weights
from transformer_jax.hub import settings as hub_settings

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "source.spm"),
    *("bytes.json", "characters.json"),
)
UNREAD_TOKENIZER_FILE = "tokenizer.model"  # Llama's, a BPE of SentencePiece
TORCH_DTYPES = ("float32", "bfloat16", "float16")


def is_snapshot(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like a Hugging Face snapshot: its config.json says a model type."""
    try:
        return hub_settings.model_type(weights.read_json(Path(path) / "config.json"), models.FORMATS) is not None
    except InputError:
        return False


def load(path: str | os.PathLike[str], *, dtype: Any = None) -> tuple[Any, Any, tokenizers.Tokenizer | None]:
    """(config, params, tokenizer) of a snapshot folder; the tokenizer is None where the folder has none.

    The parameters are NumPy arrays on the host, in `dtype` (float32 unless told; bfloat16 and float16 checkpoints are
    converted): placing them on devices is the caller's choice. One copy of them is in memory.

    Errors: `InputError` for a folder that is no whole snapshot, a model type or setting that is not supported, and any
    tensor that is missing, left over, or of another shape or type than config.json makes it.
    """
    folder = Path(path)
    given, format, where = _read_settings(folder)
    with weights.open_tensors(folder) as tensors:
        config = format.read_config(given, tensors.keys(), where)
        declaration = models.family(config).declare(config)
        params = mapping.read_params(
            declaration, format.table(config), tensors, np.dtype(jnp.float32 if dtype is None else dtype), str(folder)
        )
    return config, params, _load_tokenizer(folder, config.vocab_size) if hasattr(config, "vocab_size") else None


def labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of what the head of a snapshot folder tells apart, in the order of its logits: for classification of
    texts, tokens and images. () where there is no such head, and for regression to one number.

    Errors: `InputError` as of `load`, and for logits that mean something else: labels of which several may hold, and
    regression to several numbers.
    """
    given, format, where = _read_settings(Path(path))
    with weights.open_tensors(Path(path)) as tensors:
        config = format.read_config(given, tensors.keys(), where)
    count = _num_labels(config)
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
    """What a snapshot's images are to go through before the model: its preprocessor_config.json (`preprocessor`); None
    where there is none. Errors: `InputError` for settings that `data.preprocess.Preprocess` does not say."""
    return preprocessor.read(Path(path))


def task(path: str | os.PathLike[str], config: Any) -> Any:
    """What the model of a snapshot folder is for, as its format says: a task, or None where there is none of ours."""
    _, format, _ = _read_settings(Path(path))
    return format.task(Path(path), config)


def _num_labels(config: Any) -> int:
    """How many labels a config's head tells apart; 0 where it has no such head."""
    if hasattr(config, "num_classes"):
        return config.num_classes
    return config.num_labels if {"classification", "tokens"} & set(getattr(config, "heads", ())) else 0


def generation(path: str | os.PathLike[str], config: Any) -> Beam:
    """The search by which a snapshot folder's encoder-decoder is decoded: its generation_config.json, or the same keys
    of an old config.json (`search`). What changes Transformers' search and is not computed here is named on stderr.

    Arguments: config, `load`'s, for what the settings leave open. Errors: `InputError` for settings that make no sense.
    """
    return search.read(Path(path), config, weights.read_json(Path(path) / "config.json"))


def sampling(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How a snapshot folder's decoder chooses tokens, as its settings say (`search.sampling`)."""
    return search.sampling(Path(path), weights.read_json(Path(path) / "config.json"))


def stop_ids(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The tokens that end a text, as a snapshot folder's settings say: several in models that converse."""
    return search.stop_ids(Path(path), weights.read_json(Path(path) / "config.json"))


def _read_settings(folder: Path) -> tuple[dict[str, Any], Any, str]:
    """(the object in config.json, the format of its model type, where it is)."""
    where = str(folder / "config.json")
    given = weights.read_json(folder / "config.json")
    model_type = hub_settings.model_type(given, models.FORMATS)
    format = models.format_of(str(model_type))
    if format is None:
        said = given.get("model_type")
        raise InputError(f'{where}: "model_type" is {said!r}; supported are {", ".join(models.FORMATS)}')
    return given | {"model_type": model_type}, format, where


def _load_tokenizer(folder: Path, vocab_size: int) -> tokenizers.Tokenizer | None:
    held = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not held and (folder / UNREAD_TOKENIZER_FILE).exists():
        raise InputError(
            f"{folder} holds its tokenizer only as {UNREAD_TOKENIZER_FILE}, which is not read; save it as "
            f"tokenizer.json with Transformers' AutoTokenizer, or remove {UNREAD_TOKENIZER_FILE} to load the weights "
            "alone"
        )
    if not held:
        return None
    tokenizer = tokenizers.load(folder)
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{folder}: the tokenizer makes ids up to {tokenizer.vocab_size - 1}, but the model's embedding has "
            f"{vocab_size} rows; use the tokenizer that belongs to these weights"
        )
    return tokenizer


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
) -> None:
    """Writes a snapshot folder that `load` and Transformers read: config.json, safetensors in the dtype of `params`
    (in shards of at most `shard_bytes`), the tokenizer's files. `labels` names the labels of a classifier, in order;
    `beam`, the search of an encoder-decoder, becomes generation_config.json, which `generation` reads back;
    `stop_ids`, of a decoder, are the tokens that end a text where there are several;
    `preprocess`, of a model of images, becomes preprocessor_config.json, which `preprocessing` reads back.

    The files are written beside `folder` and renamed when complete and on disk, so it is there whole or not at all.
    `load` gives the same parameters to the bit, and the same config but for how it is trained and computed
    (`contracts.TRAINING`, `contracts.LAUNCH`).

    Errors: `InputError` where something is there already, and for a config that no supported model type expresses.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; nothing is overwritten, so name another")
    format = _format_of(config)
    settings = _written(format, config, tokenizer)
    declaration = models.family(config).declare(config)
    names = mapping.tensor_names(declaration, format.table(config))
    _check_says(config, format.read_config(settings, names, "config.json"), settings["model_type"])
    tensors = mapping.write_params(declaration, format.table(config), params)
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    if len(dtypes) != 1 or dtypes[0] not in TORCH_DTYPES:
        raise InputError(
            f"parameters to export are {', '.join(dtypes)}; they must all be one of {', '.join(TORCH_DTYPES)}"
        )
    if labels:
        settings |= _label_settings(config, labels)
    settings |= _token_settings(settings, config, tokenizer) | {"torch_dtype": dtypes[0]}
    if len(stop_ids) > 1:
        settings["eos_token_id"] = list(stop_ids)
    if beam is not None and not settings.get("is_encoder_decoder"):
        raise InputError(f"a beam is given to export, but {settings['model_type']} is no encoder-decoder; leave it out")
    if preprocess is not None:
        _check_preprocess(preprocess, config)
    languages = None if tokenizer is None else tokenizer.languages
    generated = None if beam is None else search.write(beam, config, languages)

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot make a folder in {folder.parent} ({error.strerror}); name another place") from None
    try:
        partial.chmod(folder.parent.stat().st_mode & 0o777)
        (partial / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if preprocess is not None:
            processor = preprocessor.write(preprocess, settings["model_type"])
            (partial / preprocessor.FILE).write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
        weights.write_tensors(partial, tensors, shard_bytes)
        if tokenizer is not None:
            tokenizer.save(partial)
            _settle_tokenizer(partial / "tokenizer_config.json", getattr(config, "num_types", 0) > 1)
            if settings.get("is_encoder_decoder"):
                _end_sources(partial / "tokenizer.json", tokenizer)
            _say_if_read_otherwise(partial, tokenizer, settings["model_type"])
        if generated is not None:  # beside what was read and is not computed here
            kept = weights.read_json(partial / search.FILE) if (partial / search.FILE).exists() else {}
            said = {key: value for key, value in kept.items() if key not in search.WRITTEN} | generated
            (partial / search.FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        for file in partial.iterdir():
            _to_disk(file)
        _to_disk(partial)
        partial.rename(folder)
        _to_disk(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _label_settings(config: Any, labels: Sequence[str]) -> dict[str, Any]:
    count = _num_labels(config)
    if count == 0:
        raise InputError(f"{len(labels)} labels are given to export, but the model has no head that tells labels apart")
    if len(labels) != count or len(set(labels)) != len(labels):
        raise InputError(f"the labels to export are {', '.join(labels)}; the model's head needs {count}, each once")
    return hub_settings.write_labels(labels)


def _check_preprocess(preprocess: Preprocess, config: Any) -> None:
    if not hasattr(config, "image_size"):
        raise InputError("preprocessing of images is given to export, but the model takes none; leave it out")
    if (preprocess.size, len(preprocess.mean)) != (config.image_size, config.channels):
        raise InputError(
            f"preprocessing to export makes images of {preprocess.size} pixels and {len(preprocess.mean)} channels; "
            f"the model takes {config.image_size} and {config.channels}"
        )


def _token_settings(settings: dict[str, Any], config: Any, tokenizer: tokenizers.Tokenizer | None) -> dict[str, Any]:
    """The ids of special tokens: the config's where it has them, which must be the tokenizer's, or else those. Where
    padding's id counts in the function (RoBERTa's positions), it must be right."""
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
    elif settings.get("pad_token_id", pad_id) != pad_id:
        raise InputError(
            f"the positions of this {settings['model_type']} are those of padding with id {settings['pad_token_id']}, "
            f"but the tokenizer's padding has id {pad_id}, so Transformers would count them otherwise; it has no "
            "Hugging Face form"
        )
    begins = next((id for id in (getattr(tokenizer, "named_bos_id", None), tokenizer.bos_id) if id is not None), eos_id)
    return {"bos_token_id": begins, "eos_token_id": eos_id, "pad_token_id": pad_id}


def _settle_tokenizer(path: Path, types: bool) -> None:
    """tokenizer_config.json for Transformers: it makes token types, which are the model's, only where this file asks
    for them; how special tokens in the texts of a run were read is the run's own."""
    if not path.exists():
        return
    settings = weights.read_json(path)
    settings.pop(OWN_SWITCH, None)
    if types:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _end_sources(path: Path, tokenizer: Any) -> None:
    """Lets Transformers put the end of text after a source, as we do, where the tokenizer's file adds nothing."""
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


def _say_if_read_otherwise(folder: Path, tokenizer: Any, model_type: str) -> None:
    """Says on stderr where Transformers, for this model type, makes another tokenizer of the files."""
    again = tokenizers.load(folder)
    if not isinstance(again, tokenizers.SubwordTokenizer):
        return
    kept = ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")
    ours, theirs = (json.loads(one._inner.to_str()) for one in (tokenizer, again))
    if any(ours[part] != theirs[part] for part in kept):
        made = again.settings.get("tokenizer_class", "another tokenizer")
        print(
            f"for the model type {model_type} Transformers makes {made} of the exported tokenizer, which reads texts "
            "otherwise than it did here",
            file=sys.stderr,
        )


def _format_of(config: Any) -> Any:
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


def _check_says(config: Any, read_back: Any, model_type: str) -> None:
    """Refuses a config of which config.json would lose something: what is written must read back as the same."""
    unsaid = contracts.decided_by(config, "launch", "training")
    for field in dataclasses.fields(config):
        name = field.metadata.get("means", field.name)
        ours, theirs = getattr(config, name), getattr(read_back, name)
        if field.name not in unsaid and ours != theirs:
            raise InputError(
                f"the model type {model_type} cannot say {field.name}={ours!r} (it means {theirs!r}), so this config "
                "has no Hugging Face form"
            )


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
