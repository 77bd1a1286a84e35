"""The settings of a Hugging Face config.json, read strictly.

Every setting is either read into our config, required to have the one value that our functions compute with, or known
not to change the function (what is null or begins with an underscore never does). Any other is refused: a setting
skipped because nobody knew it gives a model that loads and is wrong.

Published files also hold what people and training scripts noted: "language": "english", "save_step": 58. A setting that
nothing here knows is taken for such a note, and printed, where its name is one of training (`_NOTES`) or its value is
made of strings, unless the name also speaks of the model's parts (`_PARTS`).
"""

import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from transformer_jax.errors import InputError

# In a table of defaults: a size that config.json must state, and one that it may leave to be derived.
REQUIRED = object()
OPTIONAL = object()

# What Transformers writes about a model besides its function: provenance; training and numerics; labels and summaries
# for heads that are not here; outputs; special tokens and generation.
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
"""
DESCRIPTIVE = frozenset(_DESCRIPTIVE.split())

# Words in the names of notes about training and provenance, and words in the names of what may change the function.
_NOTES = re.compile(
    r"(^|_)(steps?|seed|epochs?|batch|lr|learning|optimizer|warmup|train|training|finetuned?|eval|save|logging|loss"
    r"|metrics?|accuracy|f1|date|time|author|version|license|tags?|dataset|corpus|task|language|lang|name|seq|doc)(_|$)"
)
_PARTS = re.compile(
    "act|norm|pos|att|mlp|ffn|embed|rope|rotary|scal|quant|type|mode|pool|rout|expert|layer|head|mask|bias|tie|window"
    "|impl|order|kind|arch|drop|alibi|proj|conv|state|kernel|share|width|dim|hidden|adapter|lora|prun|gat"
)

# Settings of every model type that do change the function, with the value that leaves it as it is.
NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "is_decoder": False,  # a decoder-only model runs as one either way; True marks half of an encoder-decoder
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Of the names for one function, the one to write.
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


def read(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], neutral: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The values of the settings in `defaults`, each as given or by default.

    Arguments: `neutral`, {setting: the one value accepted} on top of `NEUTRAL`; `where`, the file, for messages.
    Errors: `InputError` for a required setting that is absent, one of the wrong type, one that must have another value,
    and one that nothing here knows.
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
            print(f'{where}: "{name}": {value!r} is taken for a note, which changes nothing', file=sys.stderr)
            continue
        if name not in accepted:
            raise InputError(
                f'{where}: "{name}": {value!r} is not a setting known here, so whether it changes the model cannot be '
                "told; remove it if it does not"
            )
        if value != accepted[name]:
            raise InputError(f'{where}: "{name}" is {value!r}; only {accepted[name]!r} is supported')
    return values


def is_note(name: str, value: Any) -> bool:
    """Whether an unknown setting is a note of people or of a training script, which cannot change the function."""
    if _PARTS.search(name.lower()):
        return False
    return bool(_NOTES.search(name.lower())) or _is_strings(value)


def _is_strings(value: Any) -> bool:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(isinstance(one, str) for one in held)


def model_type(given: Mapping[str, Any], known: Collection[str]) -> str | None:
    """The model type of a config.json's object: as it says, or in a file from before there was "model_type", by its
    "architectures" ("BertForMaskedLM"), or by the settings that one type alone had then. None where nothing says it.

    Args:
      known: the types to choose from.
    """
    if given.get("model_type") is not None:
        return given["model_type"] if isinstance(given["model_type"], str) else None
    architectures = given.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if found := [one for one in known if str(name).lower().startswith(one.replace("-", ""))]:
            return max(found, key=len)
    signs = {"gpt2": ("n_embd", "n_head"), "t5": ("d_kv", "d_ff"), "bert": ("type_vocab_size", "hidden_act")}
    return next((one for one, names in signs.items() if one in known and all(n in given for n in names)), None)


def token_id(settings: Mapping[str, Any], name: str, where: str, *, default: int | None = None) -> int | None:
    """The id of a special token. Errors: `InputError` for a value that is none."""
    value = settings.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise InputError(f'{where}: "{name}" is {value!r}; it must be one token id')
    return default if value is None else value


def activation(name: Any, setting: str, where: str) -> Activation:
    """Our name of an activation function."""
    if name not in ACTIVATIONS:
        raise InputError(f'{where}: "{setting}" is {name!r}; the activations known are {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS[name]


def label_names(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The labels in the order of their numbers; LABEL_0, LABEL_1, ... where config.json does not name them.

    As in Transformers, a "num_labels" that differs from the number of names counts, and the names, which are then those
    that a file has by default, do not.
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


def write_labels(names: Sequence[str]) -> dict[str, Any]:
    """The settings that name the labels."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
