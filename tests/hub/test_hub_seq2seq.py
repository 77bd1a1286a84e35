"""Encoder-decoders that Transformers wrote give Transformers' encoder states and decoder logits; exports come back to
the bit; published forms of the files are understood, and what is broken is refused in one line that names it.

The fixtures in tests/data/hf/seq2seq are made by tools/fixtures/make_hf_seq2seq.py, which also checks that Transformers
loads our exports.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformer_jax import hub
from transformer_jax.data import tokenizers
from transformer_jax.decoding import beam, decode
from transformer_jax.errors import InputError
from transformer_jax.models import seq2seq

FIXTURES = Path(__file__).parents[1] / "data" / "hf" / "seq2seq"
NAMES = ("t5", "t5_v1_1", "mt5", "bart", "mbart", "marian")


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def snapshot(folder, name, change=lambda tensors: tensors, *, drop=(), **settings):
    """A copy of a fixture with other tensors and settings."""
    shutil.copytree(FIXTURES / name, folder)
    save_file(dict(change(load_file(folder / "model.safetensors"))), folder / "model.safetensors")
    given = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({k: v for k, v in given.items() if k not in drop}))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_states_and_logits_are_transformers(name):
    """Within 2e-5, sources' padding included."""
    config, params, tokenizer = hub.load(FIXTURES / name)
    assert tokenizer is None
    with np.load(FIXTURES / name / "expected.npz") as file:
        expected = dict(file)

    @jax.jit
    def run(params):
        states = seq2seq.encode(params, config, expected["source"], lengths=expected["lengths"])
        source_lengths = expected["lengths"]
        return states, seq2seq.apply(
            params, config, expected["source"], expected["target"], source_lengths=source_lengths
        )

    states, logits = run(params)
    real = np.arange(expected["source"].shape[1]) < expected["lengths"][:, None]
    np.testing.assert_allclose(states[real], expected["states"][real], rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_beam_search_is_transformers(name):
    """4 beams, length penalties 0.6 and 1.0, on 50 padded sources: the same tokens, the same scores."""
    config, params, _ = hub.load(FIXTURES / name)
    with np.load(FIXTURES / name / "expected.npz") as file:
        expected = dict(file)
    source, lengths = expected["beam_source"], expected["beam_lengths"]
    said = json.loads(str(expected["beam_settings"]))
    settings = beam.Beam(
        width=4,
        max_new_tokens=said["max_new_tokens"],
        stop_ids=(config.eos_id,),
        forced_first=said.get("forced_bos_token_id"),
        forced_last=said.get("forced_eos_token_id"),
        suppress_ids=[i for ids in said.get("bad_words_ids", []) for i in ids],
    )
    prompts = decode.left_pad([[config.decoder_start_id]] * len(source))

    @jax.jit
    def run(params):
        x_BSD = seq2seq.encode(params, config, source, lengths=lengths)
        cache = seq2seq.init_cache(params, config, x_BSD, lengths, settings.max_new_tokens)
        both = [dataclasses.replace(settings, length_penalty=penalty) for penalty in (0.6, 1.0)]
        return [beam.search(seq2seq, params, config, cache, prompts, one) for one in both]

    for key, made in zip(("beam_06", "beam_10"), run(params), strict=True):
        tokens_BM, length_B = np.asarray(made.tokens_BKM)[:, 0], np.asarray(made.length_BK)[:, 0]
        tokens_BM = np.where(np.arange(tokens_BM.shape[1]) < length_B[:, None], tokens_BM, -1)
        np.testing.assert_array_equal(tokens_BM, expected[key])
        np.testing.assert_allclose(made.score_BK[:, 0], expected[f"{key}_scores"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_comes_back_to_the_bit(tmp_path, name):
    config, params, _ = hub.load(FIXTURES / name)
    hub.export(tmp_path / "new", config, params)
    again, back, _ = hub.load(tmp_path / "new")
    assert again == config
    assert_equal(back, params)
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "new", FIXTURES / name))
    assert ours.keys() == theirs.keys()
    assert_equal(ours, theirs)


def test_what_the_formats_say():
    configs = {name: hub.load(FIXTURES / name)[0] for name in NAMES}
    assert {name for name, c in configs.items() if c.scale_head} == {"t5"}
    assert {name for name, c in configs.items() if not c.tie_embeddings} == {"t5_v1_1"}
    assert {name for name, c in configs.items() if c.logits_bias} == {"bart", "mbart", "marian"}
    assert {name for name, c in configs.items() if c.norm_order == "post"} == {"bart", "marian"}
    ids = {name: (c.pad_id, c.eos_id, c.decoder_start_id) for name, c in configs.items()}
    t5s, barts = dict.fromkeys(("t5", "t5_v1_1", "mt5"), (0, 1, 0)), {"bart": (1, 2, 2), "mbart": (1, 2, 7)}
    assert ids == t5s | barts | {"marian": (39, 0, 39)}


def test_a_trained_model_says_its_tokens_and_not_how_it_was_drawn(tmp_path):
    """A Marian that was trained here: another initializer and dropout, ids in the file."""
    config, params, _ = hub.load(FIXTURES / "marian")
    trained = dataclasses.replace(config, initializer="xavier", attention_dropout=0.3, scan_layers=False)
    hub.export(tmp_path / "new", trained, params)
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (written["pad_token_id"], written["eos_token_id"], written["decoder_start_token_id"]) == (39, 0, 39)
    assert written["architectures"] == ["MarianMTModel"] and hub.load(tmp_path / "new")[0] == dataclasses.replace(
        config, attention_dropout=0.3
    )


# ---- Published forms ----------------------------------------------------------------------------------------------


def test_the_published_t5_file(tmp_path):
    """Copies of the table, a bias that nothing reads, and no word of what came later."""
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

    def change(tensors):
        names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        return tensors | dict.fromkeys(names, tensors["shared.weight"]) | {unread: np.ones((12, 2), np.float32)}

    later = ("is_gated_act", "dense_act_fn", "scale_decoder_outputs", "feed_forward_proj", "tie_word_embeddings")
    drop = (*later, "num_decoder_layers", "classifier_dropout")
    extra = {"task_specific_params": {"summarization": {"num_beams": 4}}, "output_past": True}
    config, params, _ = hub.load(snapshot(tmp_path / "t5", "t5", change, drop=drop, **extra))
    assert dataclasses.replace(config, num_decoder_layers=2) == hub.load(FIXTURES / "t5")[0]
    assert_equal(params, hub.load(FIXTURES / "t5")[1])
    # v1.1 as it is published: not tied, therefore not scaled.
    old = snapshot(tmp_path / "v1_1", "t5_v1_1", drop=("scale_decoder_outputs",), tie_word_embeddings=False)
    assert hub.load(old)[0] == hub.load(FIXTURES / "t5_v1_1")[0]


def test_the_published_bart_and_marian_files(tmp_path):
    old = {"add_bias_logits": False, "num_hidden_layers": 2, "num_beams": 4, "early_stopping": True}

    def bart(tensors):
        names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
        return tensors | dict.fromkeys(names, tensors["model.shared.weight"])

    said = {"add_final_layer_norm": False, "normalize_before": False, "normalize_embedding": True}
    folder = snapshot(
        tmp_path / "bart", "bart", bart, **old, **said, static_position_embeddings=False, classif_dropout=0.1
    )
    assert_equal(hub.load(folder)[:2], hub.load(FIXTURES / "bart")[:2])

    def marian(tensors):
        stored = {f"model.{side}.embed_positions.weight": np.zeros((20, 16)) for side in ("encoder", "decoder")}
        return bart(tensors) | stored

    said |= {"normalize_embedding": False, "bad_words_ids": [[39]], "static_position_embeddings": True}
    folder = snapshot(tmp_path / "marian", "marian", marian, **old, **said)
    assert_equal(hub.load(folder)[:2], hub.load(FIXTURES / "marian")[:2])


def test_a_trunk_alone_has_no_bias_of_the_logits(tmp_path):
    """facebook/bart-base is one: the model without its head, and without "model." before the names."""

    def trunk(tensors):
        return {k.removeprefix("model."): x for k, x in tensors.items() if k != "final_logits_bias"}

    config, params, _ = hub.load(snapshot(tmp_path / "trunk", "bart", trunk, architectures=["BartModel"]))
    assert config == dataclasses.replace(hub.load(FIXTURES / "bart")[0], logits_bias=False)
    assert "head" not in params


@pytest.mark.parametrize("name", ["marian", "mbart"])
def test_a_folder_with_its_sentencepiece_models(tmp_path, name):
    """The weights are too small for the vocabularies of the tokenizers' fixtures, which the error says; so they are
    made larger."""
    folder, pieces = snapshot(tmp_path / name, name), FIXTURES.parents[1] / "tokenizers" / name
    for file in pieces.iterdir():
        if file.name not in ("config.json", "expected.json"):
            shutil.copy(file, folder)
    with pytest.raises(InputError, match="the tokenizer has ids up to"):
        hub.load(folder)

    def grown(tensors):
        rows = 200 - len(tensors["model.shared.weight"])
        table, bias = tensors["model.shared.weight"], tensors["final_logits_bias"]
        table, bias = np.pad(table, ((0, rows), (0, 0))), np.pad(bias, ((0, 0), (0, rows)))
        return tensors | {"model.shared.weight": table, "final_logits_bias": bias}

    tensors = grown(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors")
    settings = {"vocab_size": 200, "decoder_vocab_size": 200, "pad_token_id": 1, "eos_token_id": 2}
    if name == "marian":
        settings |= {"eos_token_id": 0, "pad_token_id": tokenizers.load(folder).special.pad}
    else:
        del settings["decoder_vocab_size"]
    given = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(given))
    config, params, tokenizer = hub.load(folder)
    assert (tokenizer.target is tokenizer) == (name == "mbart")
    hub.export(tmp_path / "new", config, params, tokenizer)
    assert hub.load(tmp_path / "new")[2].fingerprint == tokenizer.fingerprint


# ---- What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("marian", {"decoder_vocab_size": 50}, '"decoder_vocab_size" 50 is not "vocab_size" 40'),
        ("marian", {"share_encoder_decoder_embeddings": False}, '"share_encoder_decoder_embeddings" is False'),
        ("marian", {"normalize_before": True}, '"normalize_before" is True; only False is supported'),
        ("bart", {"decoder_attention_heads": 4}, '"encoder_attention_heads" 2 and "decoder_attention_heads" 4 differ'),
        ("bart", {"eos_token_id": [2, 3]}, '"eos_token_id" is .2, 3.; it must be one token id'),
        ("bart", {"pad_token_id": 40}, "model.pad_id is 40; it must be below 40"),
        ("mbart", {"window": 3}, '"window": 3 is an unknown setting'),
        ("t5", {"feed_forward_proj": "gated-mish"}, '"feed_forward_proj" is .mish.'),
        ("t5", {"scale_decoder_outputs": 1}, '"scale_decoder_outputs" is 1; it must be true or false'),
        ("t5", {"d_kv": 5}, "tensor encoder.block.0.layer.0.SelfAttention.q.weight has shape"),
        ("t5", {"num_decoder_layers": 3}, "lacks decoder.block.2"),
        ("t5_v1_1", {"scale_decoder_outputs": True}, "lm_head.weight differs from shared.weight"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, name, settings, says):
    with pytest.raises(InputError, match=says) as error:
        hub.load(snapshot(tmp_path / "bad", name, **settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("t5", {"tie_embeddings": False}, "cannot express tie_embeddings=False"),
        ("t5_v1_1", {"activation": "gelu"}, "cannot express|supported are"),
        ("bart", {"position_offset": 0}, "bart cannot express position_offset=0"),
        ("marian", {"norm_order": "pre"}, "marian cannot express norm_order='pre'"),
        ("marian", {"position": "sinusoidal"}, "no supported .* is a seq2seq with position='sinusoidal'"),
    ],
)
def test_what_has_no_hugging_face_form(tmp_path, name, change, says):
    config = dataclasses.replace(hub.load(FIXTURES / name)[0], **change)
    with pytest.raises(InputError, match=says):
        hub.export(tmp_path / "new", config, {})
    assert not (tmp_path / "new").exists()
