"""Hugging Face's generation settings: generation_config.json, or the same keys of config.json in old folders.

    num_beams                          width; 1 is greedy: early_stopping "first"
    max_length, max_new_tokens         max_new_tokens; max_length counts the decoder's start token too
    min_length, min_new_tokens         min_new_tokens, likewise
    early_stopping true, false, never  "first", "bound", "never"
    eos_token_id                       stop_ids: one or several
    forced_bos_token_id, forced_eos_token_id             forced_first, forced_last
    suppress_tokens, bad_words_ids (of one token each)   suppress_ids
    begin_suppress_tokens              begin_suppress_ids
    length_penalty, no_repeat_ngram_size, num_return_sequences, num_beam_groups, diversity_penalty   likewise

A decoder has do_sample, temperature, top_k, top_p, min_p, repetition_penalty and max_new_tokens (`sampling`).

As in Transformers, config.json is ignored if there is a generation_config.json, and "task_specific_params" always are.
Unlike Transformers, the default length is the model's max_length, not 20 tokens.
"""

import functools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.data.tokenizers import Languages
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.hub import weights

FILE = "generation_config.json"

STOPPING = {True: "first", False: "bound", "never": "never"}
# Settings that change the result of a beam search and are not supported, with their value for "off". None, 0, False
# and empty values mean "off" as well.
NOT_COMPUTED = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty")),
    **dict.fromkeys(("sequence_bias", "force_words_ids", "constraints", "penalty_alpha", "renormalize_logits")),
    **dict.fromkeys(("stop_strings", "max_time", "watermarking_config", "token_healing", "dola_layers")),
}


def read(folder: Path, config: Any, given: Mapping[str, Any]) -> Beam:
    """The beam search of a snapshot's settings. Settings that are not supported are named on stderr.

    Args:
      folder: the folder of the snapshot.
      config: an encoder-decoder's.
      given: the object in config.json.

    Raises:
      InputError: a setting of the wrong type, or out of range.
    """
    settings, where = _settings(folder, given)
    beam, ignored = _search(settings, where, config)
    _warn(ignored, where)
    return beam


def states(folder: Path, config: Any, beam: Beam) -> bool:
    """Whether the generation_config.json of a folder states this search.

    Args:
      folder: the folder of the snapshot.
      config: an encoder-decoder's.
      beam: the search.
    """
    return (folder / FILE).exists() and _search(*_settings(folder, {}), config)[0] == beam


def _search(settings: Mapping[str, Any], where: Path, config: Any) -> tuple[Beam, list[str]]:
    """The search of the settings, and those that are not supported."""
    ignored = _ignored(settings, NOT_COMPUTED)
    number = functools.partial(_number, settings, where=where)
    width = number("num_beams", 1)
    stopping = settings.get("early_stopping", False)
    if not (isinstance(stopping, bool) or stopping == "never"):
        raise InputError(f'{where}: "early_stopping" is {stopping!r}; it must be true, false or "never"')
    stop_ids = token_ids(settings, "eos_token_id", where) or ((config.eos_id,) if config.eos_id is not None else ())
    start = settings.get("decoder_start_token_id", config.decoder_start_id)
    if start != config.decoder_start_id:
        ignored.append(f"decoder_start_token_id {start} (config.json has {config.decoder_start_id})")
    forced_last = token_ids(settings, "forced_eos_token_id", where)
    if len(forced_last) > 1:
        ignored.append(f"forced_eos_token_id {list(forced_last)}")
    suppressed, sequences = _suppressed(settings, stop_ids, where)
    ignored += [f"bad_words_ids {ids} (several tokens)" for ids in sequences]

    longest = config.max_length
    if "max_length" in settings:
        longest = max(number("max_length", 0) - 1, 1)
    longest = number("max_new_tokens", longest)
    shortest = max(number("min_length", 0) - 1, number("min_new_tokens", 0), 0)
    try:
        beam = Beam(
            width=width,
            max_new_tokens=longest,
            stop_ids=stop_ids,
            length_penalty=number("length_penalty", 1.0),
            early_stopping="first" if width == 1 else STOPPING[stopping],  # type: ignore[arg-type]
            nbest=number("num_return_sequences", 1),
            min_new_tokens=min(shortest, longest),
            no_repeat_ngram=number("no_repeat_ngram_size", 0),
            suppress_ids=suppressed,
            begin_suppress_ids=token_ids(settings, "begin_suppress_tokens", where),
            forced_first=next(iter(token_ids(settings, "forced_bos_token_id", where)), None),
            forced_last=forced_last[0] if len(forced_last) == 1 else None,
            groups=number("num_beam_groups", 1),
            diversity_penalty=number("diversity_penalty", 0.0),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return beam, ignored


def _settings(folder: Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """(the generation settings of a folder that are not null, the file that they are from)."""
    where = folder / (FILE if (folder / FILE).exists() else "config.json")
    stored = given if where.name == "config.json" else weights.read_json(where)
    return {name: value for name, value in stored.items() if value is not None}, where


def _ignored(settings: Mapping[str, Any], off: Mapping[str, Any]) -> list[str]:
    """The settings that are on and not supported."""
    return [f"{name} {value!r}" for name, value in settings.items() if name in off and value and value != off[name]]


def _warn(ignored: list[str], where: Path) -> None:
    if ignored:
        print(f"{where}: supported by Transformers, ignored here: {', '.join(ignored)}", file=sys.stderr)


# The settings that `write` may write. An export keeps the other settings of the folder.
WRITTEN = (
    *("num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "length_penalty", "early_stopping"),
    *("num_return_sequences", "no_repeat_ngram_size", "suppress_tokens", "bad_words_ids", "begin_suppress_tokens"),
    *(
        "forced_bos_token_id",
        "forced_eos_token_id",
        "num_beam_groups",
        "diversity_penalty",
        "eos_token_id",
        "pad_token_id",
    ),
    "decoder_start_token_id",
)
# If a folder has any of these settings, it says how its decoder samples.
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# Settings that change a decoder's text and are not supported, with their value for "off".
NOT_SAMPLED = {
    **{name: off for name, off in NOT_COMPUTED.items() if name not in SAMPLING},
    **{"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "top_h": 1.0},
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id")),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff")),
}


def sampling(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's temperature, top_k, top_p, min_p, repetition_penalty and max_new_tokens in a snapshot's settings.

    {} if the folder states none of them. If it states one, the others have Transformers' defaults: greedy without
    do_sample, otherwise top_k 50. Settings that are not supported are named on stderr.

    Args:
      folder: the folder of the snapshot.
      given: the object in config.json.

    Raises:
      InputError: a setting of the wrong type.
    """
    settings, where = _settings(folder, given)
    _warn(_ignored(settings, NOT_SAMPLED), where)
    number = functools.partial(_number, settings, where=where)
    made: dict[str, Any] = {}
    if where.name == FILE and settings.get("max_new_tokens") is not None:
        made["max_new_tokens"] = number("max_new_tokens", 0)
    if where.name != FILE or not any(name in settings for name in SAMPLING):
        return made
    draws = settings.get("do_sample", False)
    if not isinstance(draws, bool):
        raise InputError(f'{where}: "do_sample" is {draws!r}; it must be true or false')
    made |= {"repetition_penalty": number("repetition_penalty", 1.0), "temperature": 0.0}
    if draws:
        made |= {
            name: number(name, default) for name, default in (("temperature", 1.0), ("top_p", 1.0), ("min_p", 0.0))
        }
        made["top_k"] = number("top_k", 50)
    return made


def write(beam: Beam, config: Any, languages: Languages | None = None) -> dict[str, Any]:
    """The object of generation_config.json for an encoder-decoder's beam search, as `read` and Transformers read it.

    The lengths are limited by the model's max_length. The "gnmt" length convention and searches of width 1 that are not
    greedy cannot be expressed and are named on stderr.

    Args:
      beam: the search.
      config: the config of the model; its end of text is used if `beam` has no stop_ids.
      languages: mBART's, for the first token of a target; None: another tokenizer.
    """
    lost = []
    if beam.length_convention != "hf" and beam.length_penalty:
        lost.append(
            f"length_convention {beam.length_convention!r}: Transformers divides sums by n^{beam.length_penalty}"
        )
    if beam.width == 1 and beam.early_stopping != "first":
        lost.append(f"early_stopping {beam.early_stopping!r} of one beam: Transformers decodes greedily")
    if lost:
        print(f"{FILE} cannot express {'; '.join(lost)}", file=sys.stderr)
    eos: Any = list(beam.stop_ids) if len(beam.stop_ids) > 1 else next(iter(beam.stop_ids), config.eos_id)
    start, first = config.decoder_start_id, beam.forced_first
    if languages is not None and languages.leading and first is None:
        first = languages.target
    elif languages is not None and not languages.leading and languages.target is not None:
        start = languages.target
    settings = {
        "num_beams": beam.width,
        "max_length": min(beam.max_new_tokens, config.max_length) + 1,
        "min_length": beam.min_new_tokens + 1 if beam.min_new_tokens else None,
        "length_penalty": beam.length_penalty,
        "early_stopping": {ours: theirs for theirs, ours in STOPPING.items()}[beam.early_stopping],
        "num_return_sequences": beam.nbest if beam.nbest > 1 else None,
        "no_repeat_ngram_size": beam.no_repeat_ngram or None,
        "suppress_tokens": list(beam.suppress_ids) or None,
        "begin_suppress_tokens": list(beam.begin_suppress_ids) or None,
        "forced_bos_token_id": first,
        "forced_eos_token_id": beam.forced_last,
        "num_beam_groups": beam.groups if beam.groups > 1 else None,
        "diversity_penalty": beam.diversity_penalty or None,
        "eos_token_id": eos,
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": start,
    }
    if beam.width == 1:  # Transformers warns of these settings if there is one beam
        del settings["length_penalty"], settings["early_stopping"]
    return {name: value for name, value in settings.items() if value is not None}


def stop_ids(folder: Path, given: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of the tokens that end a text, from generation_config.json, or else from config.json.

    Instruction-tuned models have several: the end of a turn and the end of the text.

    Args:
      folder: the folder of the snapshot.
      given: the object in config.json.

    Raises:
      InputError: not ids.
    """
    if (folder / FILE).exists() and (ids := token_ids(weights.read_json(folder / FILE), "eos_token_id", folder / FILE)):
        return ids
    return token_ids(given, "eos_token_id", folder / "config.json")


def token_ids(settings: Mapping[str, Any], name: str, where: Path) -> tuple[int, ...]:
    """The ids in a setting that is one id or a list of them; () if it is absent.

    Args:
      settings: the settings of the file.
      name: the name of the setting.
      where: the file.

    Raises:
      InputError: not ids.
    """
    value = settings.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(id) is int and id >= 0 for id in ids):
        raise InputError(f'{where}: "{name}" is {value!r}; it must be a token id or a list of them')
    return tuple(dict.fromkeys(ids))


def _number(settings: Mapping[str, Any], name: str, default: Any, *, where: Path) -> Any:
    """A number of the default's type, int or float."""
    value = settings.get(name, default)
    if type(value) is int and type(default) is float:
        value = float(value)
    if type(value) is not type(default) or not math.isfinite(value):
        kind = "a number" if type(default) is float else "an integer"
        raise InputError(f'{where}: "{name}" is {value!r}; it must be {kind}')
    return value


def _suppressed(
    settings: Mapping[str, Any], stop_ids: tuple[int, ...], where: Path
) -> tuple[tuple[int, ...], list[list[int]]]:
    """(tokens that are never chosen, sequences of several tokens, which cannot be forbidden here)."""
    words = settings.get("bad_words_ids", [])
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        raise InputError(f'{where}: "bad_words_ids" is {words!r}; it must be a list of lists of token ids')
    single = [word[0] for word in words if len(word) == 1]
    ids = token_ids({"bad_words_ids": single}, "bad_words_ids", where)
    ids = tuple(id for id in ids if id not in stop_ids)  # Transformers never suppresses the end of text
    return tuple(dict.fromkeys((*ids, *token_ids(settings, "suppress_tokens", where)))), [
        w for w in words if len(w) > 1
    ]
