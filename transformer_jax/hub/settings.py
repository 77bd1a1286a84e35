"""The settings of a Hugging Face config.json, read strictly.

A setting is read into our config, or must have the one value that we support, or is known not to change the function.
(Null values and names with a leading underscore never do.) Any other setting is refused, because a model that ignored
it could load and compute wrong results.

Published files also hold notes of people and training scripts: "language": "english", "save_step": 58. An unknown
setting is printed and ignored as a note if its name is about training (`_NOTES`) or its value consists of strings,
unless its name mentions a part of the model (`_PARTS`).
"""

import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from transformer_jax.errors import InputError

# In a table of defaults: a size that config.json must state, and one that it may omit.
REQUIRED = object()
OPTIONAL = object()

# Settings of Transformers that do not change the function: provenance; training and numerics; labels and summaries for
# heads that are not supported; outputs; special tokens and generation.
_DESCRIPTIVE = """
    architectures finetuning_task is_llama_config model_type tokenizer_class transformers.js_config transformers_version
    unsloth_fixed
    dtype gradient_checkpointing pretraining_tp problem_type reorder_and_upcast_attn torch_dtype torchscript
    id2label label2id num_labels summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj
    keys_to_ignore_at_inference output_attentions output_hidden_states output_past output_scores return_dict
    return_dict_in_generate use_cache use_return_dict
    bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length min_length model_max_length n_ctx no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences pad_token_id prefix remove_invalid_values repetition_penalty sep_token_id suppress_tokens
    task_specific_params temperature top_k top_p typical_p
    cache_implementation eos_token_ids n_special predict_special_tokens use_bfloat16 xla_device
"""
DESCRIPTIVE = frozenset(_DESCRIPTIVE.split())

# Words in the names of notes on training and provenance, and in the names of settings that may change the function.
_NOTES = re.compile(
    r"(^|_)(steps?|seed|epochs?|batch|lr|learning|optimizer|warmup|train|training|finetuned?|eval|save|logging|loss"
    r"|metrics?|accuracy|f1|date|time|author|version|license|tags?|dataset|corpus|task|language|lang|name|seq|doc)(_|$)"
)
_PARTS = re.compile(
    "act|norm|pos|att|mlp|ffn|embed|rope|rotary|scal|quant|type|mode|pool|rout|expert|layer|head|mask|bias|tie|window"
    "|impl|order|kind|arch|drop|alibi|proj|conv|state|kernel|share|width|dim|hidden|adapter|lora|prun|gat"
)

# Settings of every model type that change the function, with the value that does not.
NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "is_decoder": False,  # a decoder-only model runs as one either way; True marks half of an encoder-decoder
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# The name to write, if a function has several.
THEIR_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}


def read(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], neutral: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The values of the settings in `defaults`, each from the file or by default.

    Args:
      settings: the object in config.json.
      defaults: {setting: its default, REQUIRED or OPTIONAL}.
      neutral: {setting: the only supported value}, in addition to `NEUTRAL`.
      where: names the file in messages.

    Raises:
      InputError: a required setting is missing, or a setting is unknown, of the wrong type, or has an unsupported
        value.
    """
    values = {}
    for name, default in defaults.items():
        value = settings.get(name)
        if default is REQUIRED or default is OPTIONAL:
            if value is None and default is REQUIRED:
                raise InputError(f'{where} lacks "{name}"; is it the config.json of this model type?')
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f'{where}: "{name}" is {value!r}; it must be a positive integer')
        elif value is None:
            value = default
        elif type(value) is int and type(default) is float:
            value = float(value)
        elif type(value) is not type(default):
            raise InputError(f'{where}: "{name}" is {value!r}; it must be of type {type(default).__name__}')
        if isinstance(value, float) and not 0 <= value < math.inf:
            raise InputError(f'{where}: "{name}" is {value!r}; it must be a finite number, not below 0')
        values[name] = value
    accepted = {**NEUTRAL, **neutral}
    for name, value in settings.items():
        if name in defaults or name in DESCRIPTIVE or name.startswith("_") or value is None:
            continue
        if name not in accepted and is_note(name, value):
            print(f'{where}: "{name}": {value!r} is ignored as a note', file=sys.stderr)
            continue
        if name not in accepted:
            raise InputError(
                f'{where}: "{name}": {value!r} is an unknown setting; remove it if it does not change the model'
            )
        if value != accepted[name]:
            raise InputError(f'{where}: "{name}" is {value!r}; only {accepted[name]!r} is supported')
    return values


def is_note(name: str, value: Any) -> bool:
    """Whether an unknown setting is a note, which does not change the function.

    Args:
      name: the name of the setting.
      value: the value of the setting.
    """
    if _PARTS.search(name.lower()):
        return False
    return bool(_NOTES.search(name.lower())) or _is_strings(value)


def _is_strings(value: Any) -> bool:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(isinstance(one, str) for one in held)


def model_type(given: Mapping[str, Any], known: Collection[str]) -> str | None:
    """The model type of a config.json, None if it has none.

    Files from before "model_type" are recognised by their "architectures" ("BertForMaskedLM").

    Args:
      given: the object in config.json.
      known: the types to choose from.
    """
    if given.get("model_type") is not None:
        return given["model_type"] if isinstance(given["model_type"], str) else None
    architectures = given.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if found := [one for one in known if str(name).lower().startswith(one.replace("-", ""))]:
            return max(found, key=len)
    return None


def token_id(settings: Mapping[str, Any], name: str, where: str, *, default: int | None = None) -> int | None:
    """The id of a special token in a setting.

    Args:
      settings: the object in config.json.
      name: the name of the setting.
      where: names the file in messages.
      default: the id if the setting is absent or null.

    Raises:
      InputError: not an id.
    """
    value = settings.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise InputError(f'{where}: "{name}" is {value!r}; it must be one token id')
    return default if value is None else value


def activation(name: Any, setting: str, where: str) -> Activation:
    """Our name of an activation function.

    Args:
      name: their name.
      setting: names the setting in messages.
      where: names the file in messages.

    Raises:
      InputError: an unknown function.
    """
    if name not in ACTIVATIONS:
        raise InputError(f'{where}: "{setting}" is {name!r}; supported are {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS[name]


def num_labels(config: Any) -> int:
    """The number of labels of a config's classification head; 0 if it has none.

    Args:
      config: the config of any family.
    """
    if hasattr(config, "num_classes"):
        return config.num_classes
    return config.num_labels if {"classification", "tokens"} & set(getattr(config, "heads", ())) else 0


def label_names(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of the labels in order; LABEL_0, LABEL_1, ... if config.json does not name them.

    As in Transformers, if "num_labels" differs from the number of names, the names are replaced by LABEL_0, ...

    Args:
      given: the object in config.json.
      where: names the file in messages.

    Raises:
      InputError: broken settings.
    """
    names, count = given.get("id2label"), given.get("num_labels")
    if count is not None and (type(count) is not int or count < 1):
        raise InputError(f'{where}: "num_labels" is {count!r}; it must be a positive integer')
    if names is None:
        return tuple(f"LABEL_{i}" for i in range(count or 2))
    numbers = [str(i) for i in range(len(names))] if isinstance(names, dict) else []
    plain = isinstance(names, dict) and all(isinstance(name, str | int | float) for name in names.values())
    if not numbers or names.keys() != set(numbers) or not plain:
        raise InputError(f'{where}: "id2label" is {names!r}; it must name the labels 0, 1, ... in strings')
    if count not in (None, len(names)):
        return tuple(f"LABEL_{i}" for i in range(count))
    return tuple(str(names[number]) for number in numbers)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names of labels with the number of each that stands there before: COCO's unused classes are all "N/A".

    Args:
      names: in order.
    """
    return tuple(f"{name} {i}" if name in names[:i] else name for i, name in enumerate(names))


def write_labels(names: Sequence[str]) -> dict[str, Any]:
    """The settings that name the labels.

    Args:
      names: the names of the labels, in order.
    """
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
