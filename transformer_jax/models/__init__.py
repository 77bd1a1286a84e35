"""What ships, by name: the types that a config.json may name, the families among them, and the Hugging Face formats.

Nothing is imported before it is asked for. A family is the module that its frozen `Config` is defined in, with pure
functions of `(params, cfg, ...)`. What a user brings needs no entry here: `family` finds a module by its Config, and a
type of the user's is named by its file (`brought`).
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_jax.contracts import Family
from transformer_jax.errors import InputError

# A type's name in config.json, "gpt.Config", begins with a name of this table. The table has its module.
# The names stay as they are when a module moves.
MODULES = {
    "contracts": "contracts",
    "experiment": "experiment",
    "gpt": "models.gpt",
    "bert": "models.bert",
    "seq2seq": "models.seq2seq",
    "vit": "models.vit",
    "dual": "models.dual",
    "eomt": "models.eomt",
    "detr": "models.detr",
    "speech": "models.speech",
    "whisper": "models.whisper",
    "wav2vec2": "models.wav2vec2",
    "fastspeech": "models.fastspeech",
    "spectrogram": "models.spectrogram",
    "positions": "nn.positions",
    "optim": "optim",
    "adapters": "adapters",
    "compress": "compress",
    "low_rank": "compress.low_rank",
    "causal_lm": "tasks.causal_lm",
    "masked_lm": "tasks.masked_lm",
    "denoising": "tasks.denoising",
    "translation": "tasks.translation",
    "classification": "tasks.classification",
    "tagging": "tasks.tagging",
    "span_qa": "tasks.span_qa",
    "image_classification": "tasks.image_classification",
    "contrastive": "tasks.contrastive",
    "detection": "tasks.detection",
    "scenes": "tasks.detection.scenes",
    "segmentation": "tasks.segmentation",
    "panoptic": "tasks.panoptic",
    "segments": "tasks.panoptic.segments",
    "mask_sets": "losses.mask_sets",
    "masks": "data.masks",
    "sets": "losses.sets",
    "boxes": "data.boxes",
    "box_files": "data.box_files",
    "next_item": "tasks.next_item",
    "speech_recognition": "tasks.speech_recognition",
    "speech_synthesis": "tasks.speech_synthesis",
    "audio_classification": "tasks.audio_classification",
    "sounds": "tasks.audio_classification.sounds",
    "commands": "tasks.audio_classification.commands",
    "beam": "decoding.beam",
    "masking": "objectives.masking",
    "spans": "objectives.spans",
    "geometry": "augment.geometry",
    "colour": "augment.colour",
    "mixing": "augment.mixing",
    "randaugment": "augment.randaugment",
    "corpus": "data.corpus",
    "sources": "data.sources",
    "fasta": "data.fasta",
    "cleaning": "data.cleaning",
    "tokenizers": "data.tokenizers",
    "tables": "data.tables",
    "images": "data.images",
    "image_sources": "data.image_sources",
    "image_records": "data.image_records",
    "preprocess": "data.preprocess",
    "utterances": "tasks.speech_recognition.utterances",
    "recordings": "tasks.speech_recognition.recordings",
    "spoken": "tasks.speech_recognition.spoken",
    "augment_speech": "augment.speech",
    "paired": "tasks.contrastive.paired",
    "icons": "tasks.contrastive.icons",
    "masked_image": "tasks.masked_image",
    "text_to_image": "tasks.text_to_image",
    "captioned": "tasks.text_to_image.captioned",
    "picture_tokenizer": "tasks.text_to_image.tokenizer",
    "stdlib_functions": "tasks.contrastive.stdlib_functions",
    "interactions": "data.interactions",
    "histories": "tasks.next_item.histories",
    "stdlib_calls": "tasks.next_item.stdlib_calls",
    "labelled": "tasks.classification.labelled",
    "stdlib_topics": "tasks.classification.stdlib_topics",
    "peptides": "tasks.classification.peptides",
    "tagged": "tasks.tagging.tagged",
    "questions": "tasks.span_qa.questions",
    "parallel": "tasks.translation.parallel",
    "bitext": "tasks.translation.bitext",
    "mixture": "tasks.translation.mixture",
    "cldr": "tasks.translation.cldr",
    "chat": "tasks.chat",
    "chats": "tasks.chat.packed",
    "cldr_dates": "tasks.chat.cldr",
    "conversations": "data.conversations",
    "preferences": "tasks.preferences",
    "distillation": "tasks.distillation",
    "few_shot": "tasks.few_shot",
    "pairs": "tasks.preferences.pairs",
    "cldr_replies": "tasks.preferences.cldr",
    "chat_templates": "data.chat_templates",
    "transcription": "tasks.transcription",
}
# Names that old config.json files hold for types that have another name today.
RENAMED = {
    "experiment.Sample": "causal_lm.Sample",
    "experiment.Predict": "contracts.Predict",
    "optim.Optim": "optim.AdamW",
    "adamw.AdamW": "optim.AdamW",
}
RENAMED_FIELDS = {"optim.Optim": {"schedule": "lr_schedule"}}
# Settings that were removed, with the one value of an old config.json that means what is computed today.
REMOVED_FIELDS: dict[str, dict[str, Any]] = {
    "corpus.TextCorpus": {"eval_stride": 0},
    "causal_lm.CausalLM": {"z_loss": 0.0},
    "classification.Classification": {"class_weights": []},
    "images.ImageSet": {"repeats": 1},
    "geometry.Erase": {"ratio": [0.3, 1 / 0.3]},
    "optim.Adafactor": {"eps": 1e-30},
    "stdlib_topics.StdlibTopics": {"lines": 10},
    "cldr.Cldr": {"seed": 0},
    "tokenizers.TrainBPE": {"train_bytes": 1 << 30},
    "tokenizers.TrainWordPiece": {"train_bytes": 1 << 30},
    "tokenizers.TrainUnigram": {"train_bytes": 1 << 30},
}

FAMILIES = tuple(name for name, path in MODULES.items() if path.startswith("models."))

# model_type of a Hugging Face config.json -> the module that reads and writes it.
FORMATS = {
    "imagegpt": "gpt.imagegpt",  # before gpt2, which can hold the same weights but not their codes of pictures
    "gpt2": "gpt.gpt2",
    "llama": "gpt.llama",
    "qwen2": "gpt.llama",
    "qwen3": "gpt.llama",
    "mistral": "gpt.llama",
    "gemma": "gpt.gemma",
    "gemma2": "gpt.gemma",
    "deberta-v2": "bert.deberta",
    "esm": "bert.esm",
    "albert": "bert.albert",
    "mpnet": "bert.mpnet",
    "roberta": "bert.roberta",
    "xlm-roberta": "bert.roberta",
    "camembert": "bert.roberta",
    "distilbert": "bert.distilbert",
    "modernbert": "bert.modernbert",
    "electra": "bert.electra",
    "bert": "bert.bert",
    "t5": "seq2seq.t5",
    "mt5": "seq2seq.t5",
    "bart": "seq2seq.bart",
    "mbart": "seq2seq.bart",
    "marian": "seq2seq.marian",
    "vit": "vit.vit",
    "yolos": "vit.yolos",
    "eomt": "eomt.eomt",
    "detr": "detr.detr",
    "resnet": "detr.resnets",
    "deit": "vit.deit",
    "dinov2": "vit.dinov2",
    "dinov2_with_registers": "vit.dinov2",
    "clip": "dual.clip",
    "siglip": "dual.siglip",
    "sentence-transformers": "dual.sentences",
    "whisper": "whisper.whisper",
    "wav2vec2": "wav2vec2.wav2vec2",
    "audio-spectrogram-transformer": "spectrogram.audio_spectrogram_transformer",
}


def __getattr__(name: str) -> ModuleType:
    if name in FAMILIES:
        return importlib.import_module(f"transformer_jax.models.{name}")
    raise AttributeError(f"module 'transformer_jax.models' has no attribute {name!r}; it has {', '.join(FAMILIES)}")


def family(cfg: Any) -> Any:
    """The module that the type of `cfg` is defined in. Its optional parts are read by `hook`.

    Raises:
      InputError: `cfg` is no family's Config.
    """
    cls = type(cfg)
    module = sys.modules.get(cls.__module__)
    if module is None or not callable(vars(module).get("declare")):
        raise InputError(
            f"model is a {cls.__qualname__}, but {cls.__module__}, which defines it, has no function declare(cfg) that "
            "gives the tree of its parameters; define one beside the Config"
        )
    return module


def hook(cfg: Any, name: str) -> Any:
    """The part `name` of the family of `cfg`, or the default of `contracts.Family` where it does not define it."""
    return vars(family(cfg)).get(name, getattr(Family, name))


def require(cfg: Any, by: str, functions: tuple[str, ...], settings: tuple[str, ...] = ()) -> None:
    """Checks that a model has what a task needs.

    Args:
      cfg: the model's config.
      by: the task, for the message.
      functions: the functions of the family's module, by name.
      settings: the settings of the Config.

    Raises:
      InputError: with what is missing.
    """
    lacking = [f"{function}()" for function in functions if not callable(vars(family(cfg)).get(function))]
    lacking += [f"Config.{setting}" for setting in settings if not hasattr(cfg, setting)]
    if lacking:
        raise InputError(f"{by} needs a model with {', '.join(lacking)}, which {name(cfg)} does not define")


def name(cfg: Any) -> str:
    """The family of `cfg` in one word: "gpt", or the name of the user's file."""
    module = family(cfg)
    file = getattr(module, "__file__", None)
    if module.__name__.startswith("transformer_jax.") or file is None:  # None: of a notebook
        return module.__name__.rpartition(".")[2]
    return Path(file).parent.name if Path(file).name == "__init__.py" else Path(file).stem


# ---------------------------------------------------------------------------------------------------------------- types


def type_name(cls: type) -> str:
    """The name of `cls`, one of the package's own types, in config.json.

    Raises:
      KeyError: it has none.
    """
    path = cls.__module__.removeprefix("transformer_jax.")
    names = {path: name for name, path in MODULES.items()}
    return f"{names.get(path) or names[path.rpartition('.')[0]]}.{cls.__name__}"


def type_of(name: str) -> type | None:
    """The package's type that a config.json calls `name`; None where there is none."""
    module, _, cls = RENAMED.get(name, name).partition(".")
    if module not in MODULES or not cls.isidentifier():
        return None
    found = vars(importlib.import_module(f"transformer_jax.{MODULES[module]}")).get(cls)
    is_ours = isinstance(found, type) and found.__module__.startswith("transformer_jax.")
    return found if is_ours and "__dataclass_fields__" in vars(found) else None


# -------------------------------------------------------------------------------------------------------------- formats


def formats() -> list[ModuleType]:
    """The modules of all formats, in the order in which they are asked whether they hold a config."""
    return [importlib.import_module(f"transformer_jax.models.{path}") for path in dict.fromkeys(FORMATS.values())]


def format_of(model_type: str) -> ModuleType | None:
    """The module that reads the model type `model_type`; None where it is not supported."""
    return importlib.import_module(f"transformer_jax.models.{FORMATS[model_type]}") if model_type in FORMATS else None
