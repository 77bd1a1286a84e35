"""Marian (Junczys-Dowmunt et al. 2018) as Hugging Face stores it: `model_type: marian`, the opus-mt models.

BART's tensors without the norm of the embeddings; positions are sinusoids, which some files store all the same.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub.mapping import Table
from transformer_jax.models import seq2seq
from transformer_jax.models.seq2seq import bart
from transformer_jax.tasks.translation import Translation

MODEL_TYPES = ("marian",)

NEUTRAL = {
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "share_encoder_decoder_embeddings": True,
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "normalize_before": False,
    "normalize_embedding": False,
    "static_position_embeddings": True,
}


def table(cfg: seq2seq.Config) -> Table:
    """Where each leaf lives."""
    return bart.table(cfg)._replace(buffers=r"(model\.)?(encoder|decoder)\.embed_positions\.weight")


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> seq2seq.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `seq2seq` does not
    compute."""
    known = {name: value for name, value in given.items() if name != "decoder_vocab_size"}
    if given.get("decoder_vocab_size") not in (None, given.get("vocab_size")):
        raise InputError(
            f'{where}: "decoder_vocab_size" {given["decoder_vocab_size"]} is not "vocab_size" '
            f"{given.get('vocab_size')}; one vocabulary for source and target is supported"
        )
    fields = bart.read_fields(known, names, NEUTRAL, where)
    return seq2seq.Config(**fields, norm_order="post", position="sinusoidal_halves")


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, seq2seq.Config) and cfg.position == "sinusoidal_halves"


def write_config(cfg: seq2seq.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that Marian has."""
    return bart.write_fields(cfg, "marian", "Marian")


def task(folder: Path, cfg: seq2seq.Config) -> Translation:
    """Text to text, by the search that the folder states."""
    return Translation(beam=hub.generation(folder, cfg), extra_tokens=cfg.max_length)
