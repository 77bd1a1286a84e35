"""Golden fixtures of encoder-decoders for `transformer_jax.hub`, made by Transformers; and the check the other way.

Runs where torch and Transformers are installed (the library needs neither), from the project root:

    python tools/make_hf_seq2seq_fixtures.py                       # rewrites tests/data/hf/seq2seq/<name>/
    python tools/make_hf_seq2seq_fixtures.py --check-export DIR    # Transformers loads DIR/<name>

A fixture is a snapshot folder as `save_pretrained` writes it (tiny, float32, random weights) plus `expected.npz`:

    source, lengths, target     four padded sources, and the decoder's inputs
    states, logits              what Transformers makes of them
    beam_source, beam_lengths   50 random sources
    beam_06, beam_10            what `generate` with 4 beams makes of them at length penalty 0.6 and 1.0: tokens after
                                the start token, eos included, padded with -1
    beam_06_scores, ...         their scores
    beam_settings               the rest of the search, in JSON: max_new_tokens, forced and suppressed ids

Every parameter is redrawn, norms, biases and the buffer of the logits' bias included, at a scale that keeps logits near
1: a swapped, transposed or forgotten leaf then shows in them.

The exports for `--check-export` come from an environment with the library:

    from pathlib import Path
    from transformer_jax import hub
    for folder in Path("tests/data/hf/seq2seq").iterdir():
        hub.export(f"DIR/{folder.name}", *hub.load(folder))
"""

import argparse
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import torch
import transformers

FIXTURES = pathlib.Path("tests/data/hf/seq2seq")
VOCAB, ROWS, SOURCE, TARGET, SOURCES, NEW_TOKENS = 40, 4, 11, 8, 50, 14
T5: dict[str, Any] = dict(
    vocab_size=VOCAB,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_layers=2,
    num_decoder_layers=2,  # `generate` of this version of Transformers needs as many as the encoder has
    num_heads=2,
    relative_attention_num_buckets=12,
    relative_attention_max_distance=9,  # less than the lengths
    n_positions=20,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
)
BART: dict[str, Any] = dict(
    vocab_size=VOCAB,
    d_model=16,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=20,
    init_std=0.03,  # not the default
)
MARIAN: dict[str, Any] = dict(
    activation_function="swish", scale_embedding=True, pad_token_id=39, eos_token_id=0, decoder_start_token_id=39
)
# (class, its config, what beam search is told)
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config(**T5), {}),
    "t5_v1_1": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        {},
    ),
    "mt5": (transformers.MT5ForConditionalGeneration, transformers.MT5Config(**T5), {}),
    "bart": (
        transformers.BartForConditionalGeneration,
        transformers.BartConfig(**BART),
        dict(forced_bos_token_id=0, forced_eos_token_id=2),
    ),
    "mbart": (
        transformers.MBartForConditionalGeneration,
        transformers.MBartConfig(**BART, scale_embedding=True, decoder_start_token_id=7),
        dict(forced_bos_token_id=9),
    ),
    "marian": (
        transformers.MarianMTModel,
        transformers.MarianConfig(**BART, **MARIAN),
        dict(bad_words_ids=[[39]], forced_eos_token_id=0),
    ),
}


# Of the first forty, the seeds whose hypotheses end, differ, and change with the penalty most.
SEEDS = {"t5": 24, "t5_v1_1": 4, "mt5": 35, "bart": 24, "mbart": 3, "marian": 11}


def redraw(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter anew: matrices at 1/sqrt(fan in), tables at 1/sqrt(D) or T5's 1, norm scales around 1."""
    rng = np.random.default_rng(seed)
    is_t5 = "t5" in model.config.model_type
    for name, p in [*model.named_parameters(), ("final_logits_bias", getattr(model, "final_logits_bias", None))]:
        if p is None or (not p.requires_grad and "embed_positions" in name):  # Marian's sinusoids
            continue
        if name == "final_logits_bias":
            draw = rng.normal(0, 0.3, p.shape)
            draw[0, model.config.eos_token_id] = 0.3  # so that hypotheses end, but not at once
        elif p.ndim == 2:
            scale = 1.2 * p.shape[1] ** -0.5
            if is_t5 and name == "shared.weight" and getattr(model.config, "scale_decoder_outputs", False):
                scale = 1.2  # the states are scaled down before the head
            if "relative_attention_bias" in name:
                scale = 0.5
            if name.endswith("SelfAttention.q.weight") or name.endswith("EncDecAttention.q.weight"):
                scale *= model.config.d_kv**-0.5
            if name.endswith(("encoder_attn.out_proj.weight", "EncDecAttention.o.weight")):
                scale *= 4  # so that hypotheses depend on their source
            draw = rng.normal(0, scale, p.shape)
        elif name.endswith("bias"):
            draw = rng.normal(0, 0.3, p.shape)
        else:
            draw = rng.uniform(0.5, 1.5, p.shape)
        p.data.copy_(torch.from_numpy(draw.astype(np.float32)))


def make_sources(config: Any, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, SOURCE + 1, rows)
    lengths[:2] = SOURCE, 5
    real = np.arange(SOURCE) < lengths[:, None]
    return np.where(real, rng.integers(4, VOCAB - 1, (rows, SOURCE)), config.pad_token_id), lengths


def tensors_of(source: np.ndarray, lengths: np.ndarray) -> dict[str, torch.Tensor]:
    mask = np.arange(SOURCE) < lengths[:, None]
    given = {"input_ids": source, "attention_mask": mask}
    return {name: torch.from_numpy(value.astype(np.int64)) for name, value in given.items()}


def outputs_of(model: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder's states and the decoder's logits."""
    target = torch.from_numpy(given["target"].astype(np.int64))
    with torch.no_grad():
        made = model(**tensors_of(given["source"], given["lengths"]), decoder_input_ids=target, use_cache=False)
    return {"states": made.encoder_last_hidden_state.numpy(), "logits": made.logits.numpy()}


def search(model: Any, source: np.ndarray, lengths: np.ndarray, penalty: float, settings: dict[str, Any]) -> Any:
    """(tokens after the start token, padded with -1; scores) of 4 beams."""
    config = model.config
    generation = transformers.GenerationConfig(
        num_beams=4,
        length_penalty=penalty,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        early_stopping=False,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    model.generation_config = transformers.GenerationConfig()  # nothing of the model's own
    with torch.no_grad():
        made = model.generate(**tensors_of(source, lengths), generation_config=generation)
    tokens = np.full((len(source), NEW_TOKENS), -1, np.int32)
    for row, sequence in zip(tokens, made.sequences.numpy()[:, 1:], strict=True):
        ends = np.flatnonzero(sequence == config.eos_token_id)
        count = ends[0] + 1 if len(ends) else len(sequence)
        row[:count] = sequence[:count]
    return tokens, made.sequences_scores.numpy()


def make(name: str, seed: int) -> None:
    kind, config, settings = MODELS[name]
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    if name == "t5_v1_1":  # this version of Transformers ties what v1.1 does not
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, config.d_model))
    redraw(model, seed)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    source, lengths = make_sources(config, ROWS, seed)
    target = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, TARGET))
    arrays: dict[str, Any] = {"source": source, "lengths": lengths, "target": target}
    arrays |= outputs_of(model, arrays)
    arrays["beam_source"], arrays["beam_lengths"] = make_sources(config, SOURCES, 100 + seed)
    for key, penalty in (("beam_06", 0.6), ("beam_10", 1.0)):
        found = search(model, arrays["beam_source"], arrays["beam_lengths"], penalty, settings)
        arrays[key], arrays[f"{key}_scores"] = found
    arrays["beam_settings"] = np.array(json.dumps({"max_new_tokens": NEW_TOKENS, **settings}))
    arrays["versions"] = np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for key in ("source", "lengths", "target", "beam_source", "beam_lengths"):
        arrays[key] = arrays[key].astype(np.int32)
    np.savez_compressed(folder / "expected.npz", **arrays)
    size = sum(f.stat().st_size for f in folder.iterdir())
    ended = [(arrays[key] == config.eos_token_id).any(1).mean() for key in ("beam_06", "beam_10")]
    words = [(arrays[key] >= 0).sum(1).mean() for key in ("beam_06", "beam_10")]
    differ = (arrays["beam_06"] != arrays["beam_10"]).any(1).sum()
    deviations = ", ".join(f"{key} {arrays[key].std():.2f}" for key in ("states", "logits"))
    print(f"{name}: {size / 1000:.0f} kB, {deviations}; ended {ended}, lengths {words}, {differ} differ by the penalty")


def check_export(folder: pathlib.Path) -> None:
    """Transformers loads each export without a missing or unexpected tensor and computes what the fixture says."""
    for name, (kind, _, _) in MODELS.items():
        kind = transformers.T5ForConditionalGeneration if name == "mt5" else kind  # written as what it is besides
        with np.load(FIXTURES / name / "expected.npz") as file:
            expected = dict(file)
        model, report = kind.from_pretrained(
            folder / name, attn_implementation="eager", output_loading_info=True, local_files_only=True
        )
        wrong = {k: v for k, v in report.items() if v}
        assert not wrong, f"{name}: {wrong}"
        assert model.config.architectures == [kind.__name__], model.config.architectures
        found = outputs_of(model.eval(), expected)
        differences = {key: np.abs(value - expected[key]).max() for key, value in found.items()}
        assert max(differences.values()) == 0, f"{name}: {differences}"
        print(f"{name}: loaded whole; states and logits equal to the bit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check-export", type=pathlib.Path, metavar="DIR", help="holds one export per fixture")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    if arguments.check_export:
        check_export(arguments.check_export)
    else:
        for name, seed in SEEDS.items():
            make(name, seed)
