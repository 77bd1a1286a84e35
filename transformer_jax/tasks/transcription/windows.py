"""From recordings of any length to text, window by window, in batches of windows.

    made = windows.transcripts(whisper, params, cfg, tokenizer, [samples_W], beam, wanted)
    made[0].text

A recording that fits into a window is read at once. A longer one is read with times: each window begins where the last
finished segment of the one before ended (Radford et al. 2022, section 3.8), without the text before as a prompt and
without a second try at higher temperatures. Each window has features of its own, as in training. Windows of different
recordings share a batch.

B windows of a batch, W samples of a window, S frames of the encoder, T first tokens, M new tokens at most.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax import sharding
from transformer_jax.contracts import Progress, no_progress
from transformer_jax.decoding import beam as beam_search
from transformer_jax.decoding import timestamps
from transformer_jax.decoding.beam import Beam
from transformer_jax.decoding.decode import Prompts
from transformer_jax.errors import InputError

ROWS = 16  # the most windows of a batch
RATE = 16_000  # samples a second


@dataclass(frozen=True)
class Wanted:
    """What is written of a recording."""

    language: str = ""
    """The language that is spoken: "de"; "auto": the most probable one; "": the model knows one language alone."""
    translate: bool = False
    """Write English, whatever is spoken."""
    timestamps: bool = False
    """Write the times of the segments."""


class Special(NamedTuple):
    """Ids of Whisper's special tokens.

    Attributes:
      start: the first token of the decoder.
      end: the end of text; smaller ids are text.
      transcribe: asks for the language that is spoken; None: the model has no tasks.
      translate: asks for English.
      no_timestamps: asks for a text without times; the next id is <|0.00|>.
      languages: {"de": id, ...}.
    """

    start: int
    end: int
    transcribe: int | None
    translate: int | None
    no_timestamps: int
    languages: Mapping[str, int]


class Transcript(NamedTuple):
    """The text of a recording.

    Attributes:
      text: all of it.
      segments: (start, end, text) of each part, in seconds; () where times were not asked for.
      language: as it was given or found; "": the model has none.
    """

    text: str
    segments: tuple[tuple[float, float, str], ...]
    language: str


def special(tokenizer: Any, cfg: Any) -> Special:
    """The special tokens of a tokenizer.

    Args:
      tokenizer: Whisper's, or one with the same spellings.
      cfg: the model's config.

    Raises:
      InputError: the tokenizer or the config lacks one that is always needed.
    """
    spelled = set(tokenizer.special_spellings)

    def id_of(name: str) -> int | None:
        if f"<|{name}|>" not in spelled:
            return None
        ids = tokenizer.encode_prompt(f"<|{name}|>")
        return int(ids[0]) if len(ids) == 1 else None

    codes = sorted(name for s in spelled if 2 <= len(name := s.removeprefix("<|").removesuffix("|>")) <= 3)
    languages = {code: id for code in codes if code.isalpha() and (id := id_of(code)) is not None}
    no_timestamps, end = id_of("notimestamps"), cfg.eos_id
    if no_timestamps is None or cfg.decoder_start_id is None or end is None:
        raise InputError(
            "transcription needs a tokenizer with <|notimestamps|> and a model with decoder_start_id and eos_id; use "
            "those of a Whisper folder"
        )
    return Special(cfg.decoder_start_id, end, id_of("transcribe"), id_of("translate"), no_timestamps, languages)


def prompt(known: Special, wanted: Wanted, language: str) -> list[int]:
    """The decoder's first tokens.

    Args:
      known: the special tokens.
      wanted: what is written.
      language: the one that is spoken; "": none.

    Raises:
      InputError: a language or a task that the model does not have.
    """
    times = [] if wanted.timestamps else [known.no_timestamps]
    if not language:
        if wanted.translate:
            raise InputError("translate needs a language: the model's tokenizer must have some, or give --language")
        return [known.start, *times]
    task = known.translate if wanted.translate else known.transcribe
    if language not in known.languages or task is None:
        raise InputError(
            f"language {language!r} is not one of the model's: {', '.join(known.languages) or 'it has none'}"
        )
    return [known.start, known.languages[language], task, *times]


def transcripts(
    family: Any,
    params: Any,
    cfg: Any,
    tokenizer: Any,
    recordings: Sequence[np.ndarray],
    beam: Beam,
    wanted: Wanted,
    *,
    mesh: Mesh | None = None,
    progress: Progress = no_progress,
) -> list[Transcript]:
    """The transcript of each recording.

    Args:
      family: the family of the model, with `features`, `encode` and the functions that beam search needs.
      params: its parameter tree.
      cfg: its Config.
      tokenizer: with Whisper's special tokens.
      recordings: int16 [W] at 16,000 samples a second, each of at least one sample.
      beam: the search; without stop_ids the end of text stops it.
      wanted: what is written.
      mesh: the devices; None: all of this process.
      progress: called with (windows done, windows known of).

    Raises:
      InputError: the model has no such language or task.
    """
    known = special(tokenizer, cfg)
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[: len(recordings)])
    params = jax.device_put(family.for_decoding(params, cfg), NamedSharding(mesh, PartitionSpec()))
    beam = dataclasses.replace(beam, nbest=1, stop_ids=beam.stop_ids or (known.end,))
    if wanted.language not in ("", "auto"):
        prompt(known, wanted, wanted.language)
    at = [0] * len(recordings)  # the sample at which the next window of each begins
    languages = [wanted.language] * len(recordings)
    made: list[list[tuple[float, float, str]]] = [[] for _ in recordings]
    done = 0
    while waiting := [i for i, samples_W in enumerate(recordings) if at[i] < len(samples_W)]:
        # Windows with times and windows without are different searches.
        timed = wanted.timestamps or len(recordings[waiting[0]]) > cfg.window
        chosen = [i for i in waiting if (wanted.timestamps or len(recordings[i]) > cfg.window) == timed][:ROWS]
        asked = dataclasses.replace(wanted, timestamps=timed)
        parts = [recordings[i][at[i] : at[i] + cfg.window] for i in chosen]
        waves_BW, lengths_B = _batch(parts, cfg.window, mesh)
        with jax.set_mesh(mesh):
            x_BSD = _encode(family, params, cfg, waves_BW, lengths_B, mesh)
            if any(languages[i] == "auto" for i in chosen):
                spoken = _spoken(family, params, cfg, x_BSD, known, mesh)
                for i, language in zip(chosen, spoken, strict=False):
                    languages[i] = language if languages[i] == "auto" else languages[i]
            prompts = [prompt(known, asked, languages[i]) for i in chosen]
            found = _texts(family, params, cfg, x_BSD, prompts, beam, known.no_timestamps + 1 if timed else None, mesh)
        for i, part, tokens in zip(chosen, parts, found, strict=False):
            seconds, start = len(part) / RATE, at[i] / RATE
            segments, end = timestamps.segments(tokens, first=known.no_timestamps + 1, seconds=seconds)
            for one in segments:
                text = tokenizer.decode([token for token in one.tokens if token < known.end])
                made[i].append((start + min(one.start, seconds), start + min(one.end, seconds), text))
            at[i] += round(end * RATE)
        done += len(chosen)
        progress(done, done + sum(-(-(len(r) - begin) // cfg.window) for r, begin in zip(recordings, at, strict=True)))
    return [
        Transcript(
            "".join(text for _, _, text in segments).strip(),
            tuple((start, end, text.strip()) for start, end, text in segments) if wanted.timestamps else (),
            language,
        )
        for segments, language in zip(made, languages, strict=True)
    ]


def _batch(parts: Sequence[np.ndarray], window: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """(int16 [B, W], their lengths), sharded by rows; B is one of few sizes, and surplus rows repeat the last one."""
    rows = mesh.size << max(0, -(-len(parts) // mesh.size) - 1).bit_length()
    waves_BW, lengths_B = np.zeros((rows, window), np.int16), np.zeros(rows, np.int32)
    for row in range(rows):
        part = parts[min(row, len(parts) - 1)]
        waves_BW[row, : len(part)], lengths_B[row] = part, len(part)
    by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.device_put((waves_BW, lengths_B), by_rows)


def _by_rows(f: Callable[..., Any], mesh: Mesh, arrays: int) -> Callable[..., Any]:
    """`f(params, *arrays)` on each device's rows, without communication."""
    rows = PartitionSpec(mesh.axis_names)
    # check_vma is off: the initial state of a search is replicated, and its final state differs between devices.
    return jax.shard_map(f, mesh=mesh, in_specs=(PartitionSpec(), *[rows] * arrays), out_specs=rows, check_vma=False)


@functools.partial(jax.jit, static_argnames=("family", "cfg", "mesh"))
def _encode(family: Any, params: Any, cfg: Any, waves_BW: Any, lengths_B: Any, mesh: Mesh) -> jax.Array:
    def one(params: Any, waves_BW: jax.Array, lengths_B: jax.Array) -> jax.Array:
        return family.encode(params, cfg, family.features(cfg, waves_BW, lengths=lengths_B))

    return _by_rows(one, mesh, 2)(params, waves_BW, lengths_B)


def _spoken(family: Any, params: Any, cfg: Any, x_BSD: jax.Array, known: Special, mesh: Mesh) -> list[str]:
    """The most probable language of each window; "" where the model has none."""
    if not known.languages:
        return [""] * len(x_BSD)
    codes, ids = zip(*known.languages.items(), strict=True)
    found_B = _most_probable(family, params, cfg, x_BSD, known.start, ids, mesh)
    return [codes[i] for i in np.asarray(found_B)]


@functools.partial(jax.jit, static_argnames=("family", "cfg", "start", "ids", "mesh"))
def _most_probable(
    family: Any, params: Any, cfg: Any, x_BSD: jax.Array, start: int, ids: tuple[int, ...], mesh: Mesh
) -> jax.Array:
    """The number of the most probable one of `ids` after the start token, int32 [B]."""

    def one(params: Any, x_BSD: jax.Array) -> jax.Array:
        cache = family.init_cache(params, cfg, x_BSD, None, 1)
        logits_BV, _ = family.prefill(params, cfg, jnp.full((len(x_BSD), 1), start, jnp.int32), cache)
        return jnp.argmax(logits_BV[:, jnp.array(ids)], axis=-1)

    return _by_rows(one, mesh, 1)(params, x_BSD)


def _texts(
    family: Any,
    params: Any,
    cfg: Any,
    x_BSD: jax.Array,
    prompts: Sequence[Sequence[int]],
    beam: Beam,
    first_timestamp: int | None,
    mesh: Mesh,
) -> list[list[int]]:
    """The new tokens of each window, without the end of text."""
    T = len(prompts[0])
    most = min(beam.max_new_tokens, cfg.max_length - T)
    if most < 1:
        raise InputError(f"the decoder's {T} first tokens fill the model's max_length of {cfg.max_length}")
    settings = dataclasses.replace(
        beam,
        max_new_tokens=most,
        min_new_tokens=min(beam.min_new_tokens, most),
        first_timestamp=first_timestamp,
    )
    prompt_BT = np.array([prompts[min(row, len(prompts) - 1)] for row in range(len(x_BSD))], np.int32)
    prompt_BT = jax.device_put(prompt_BT, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    tokens_BM, length_B = map(np.asarray, _search(family, params, cfg, x_BSD, prompt_BT, settings, mesh))
    rows = [tokens[:length].tolist() for tokens, length in zip(tokens_BM, length_B, strict=True)]
    return [row[:-1] if row and row[-1] in settings.stop_ids else row for row in rows]


@functools.partial(jax.jit, static_argnames=("family", "cfg", "settings", "mesh"))
def _search(family: Any, params: Any, cfg: Any, x_BSD: Any, prompt_BT: Any, settings: Beam, mesh: Mesh) -> Any:
    def one(params: Any, x_BSD: jax.Array, prompt_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        slots = prompt_BT.shape[1] + settings.max_new_tokens - 1
        cache = family.init_cache(params, cfg, x_BSD, None, slots)
        prompts = Prompts(prompt_BT, jnp.zeros(len(x_BSD), jnp.int32))
        found = beam_search.search(family, params, cfg, cache, prompts, settings)
        return found.tokens_BKM[:, 0], found.length_BK[:, 0]

    return _by_rows(one, mesh, 2)(params, x_BSD, prompt_BT)
