"""The settings of a Hugging Face config.json, read strictly.

Every setting is either read into our config, required to have the one value that our functions compute with, or known
not to change the function (what is null or begins with an underscore never does). Any other is refused: a setting
skipped because nobody knew it gives a model that loads and is wrong.
"""

import math
from collections.abc import Mapping, Sequence
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
        if name not in accepted:
            raise InputError(
                f'{where}: "{name}": {value!r} is not a setting known here, so whether it changes the model cannot be '
                "told; remove it if it does not"
            )
        if value != accepted[name]:
            raise InputError(f'{where}: "{name}" is {value!r}; only {accepted[name]!r} is supported')
    return values


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
    """The labels in the order of their numbers; LABEL_0, LABEL_1, ... where config.json does not name them."""
    names, count = given.get("id2label"), given.get("num_labels", 2)
    if names is None:
        if type(count) is not int or count < 1:
            raise InputError(f'{where}: "num_labels" is {count!r}; it must be a positive integer')
        return tuple(f"LABEL_{i}" for i in range(count))
    numbers = [str(i) for i in range(len(names))] if isinstance(names, dict) else []
    if not numbers or names.keys() != set(numbers) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f'{where}: "id2label" is {names!r}; it must name the labels 0, 1, ... in strings')
    return tuple(names[number] for number in numbers)


def write_labels(names: Sequence[str]) -> dict[str, Any]:
    """The settings that name the labels."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
