"""Generation settings of Hugging Face folders as searches of ours, and back.

What Transformers 5.23 makes of the files was checked once by hand: models loaded from our exports have the settings of
`test_an_exported_search_comes_back`; and with all of the third but its groups, which Transformers no longer has,
`generate` without arguments found the 3 best of 6 beams that our search finds, of 20 sources (scores to 1e-6).
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import transformer_jax
from transformer_jax import hub
from transformer_jax.data.tokenizers import Languages
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.hub import search
from transformer_jax.tasks.causal_lm import Sample

FIXTURES = Path(__file__).parents[1] / "data" / "hf"
SEQ2SEQ = FIXTURES / "seq2seq"
BART = {"num_beams": 4, "early_stopping": True, "max_length": 14, "min_length": 5, "no_repeat_ngram_size": 3}


def folder_of(tmp_path, name, generation=None, **config):
    """A snapshot's settings without its weights."""
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(SEQ2SEQ / name / "config.json", folder)
    given = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(given))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def marian():
    return hub.load(SEQ2SEQ / "marian")


def read(tmp_path, generation, config):
    shutil.rmtree(tmp_path / "marian", ignore_errors=True)
    return hub.generation(folder_of(tmp_path, "marian", generation), config)


def test_the_keys_of_an_old_config_json(tmp_path, capsys):
    config = hub.load(SEQ2SEQ / "bart")[0]
    folder = folder_of(tmp_path, "bart", **BART, forced_bos_token_id=0, top_k=50, task_specific_params={"a": {}})
    assert hub.generation(folder, config) == Beam(
        width=4,
        max_new_tokens=13,
        stop_ids=(2,),
        early_stopping="first",
        min_new_tokens=4,
        no_repeat_ngram=3,
        forced_first=0,
        forced_last=2,
    )
    assert not capsys.readouterr().err


def test_generation_config_json_counts_alone(tmp_path, marian):
    config = marian[0]
    said = {
        "num_beams": 6,
        "max_length": 18,
        "bad_words_ids": [[39], [0]],
        "suppress_tokens": [3],
        "eos_token_id": [0, 5],
    }
    folder = folder_of(tmp_path, "marian", said | {"length_penalty": 2, "early_stopping": "never"}, num_beams=9)
    assert hub.generation(folder, config) == Beam(  # 0 ends the text, which bad_words_ids leave out
        width=6, max_new_tokens=17, stop_ids=(0, 5), length_penalty=2.0, early_stopping="never", suppress_ids=(39, 3)
    )


def test_nothing_said_is_greedy_up_to_the_models_length(tmp_path, marian):
    config = marian[0]
    greedy = Beam(width=1, max_new_tokens=20, stop_ids=(0,), early_stopping="first")
    assert config.max_length == 20 and read(tmp_path, {}, config) == greedy
    several = read(tmp_path, {"max_new_tokens": 7, "max_length": 3, "min_new_tokens": 2, "min_length": 2}, config)
    assert (several.max_new_tokens, several.min_new_tokens) == (7, 2)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"do_sample": True, "temperature": 0.7}, "do_sample True"),
        ({"repetition_penalty": 1.3, "renormalize_logits": True}, "repetition_penalty 1.3, renormalize_logits True"),
        ({"bad_words_ids": [[3, 4], [5]]}, r"bad_words_ids [3, 4] (several tokens)"),
        ({"forced_eos_token_id": [0, 2]}, "forced_eos_token_id [0, 2]"),
        ({"decoder_start_token_id": 3}, "decoder_start_token_id 3 (config.json has 39)"),
    ],
)
def test_what_is_not_computed_is_named(tmp_path, marian, capsys, said, names):
    read(tmp_path, said, marian[0])
    err = capsys.readouterr().err
    assert err.endswith(f"supported by Transformers, ignored here: {names}\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    "said",
    [
        {"do_sample": False, "temperature": 0.7, "top_k": 5, "repetition_penalty": 1.0, "guidance_scale": 1},
        {"renormalize_logits": False, "use_cache": True, "bos_token_id": 1, "encoder_no_repeat_ngram_size": 0},
    ],
)
def test_what_changes_no_search_is_not(tmp_path, marian, capsys, said):
    read(tmp_path, said, marian[0])
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"num_beams": "4"}, "\"num_beams\" is '4'; it must be an integer"),
        ({"num_beams": True}, '"num_beams" is True; it must be an integer'),
        ({"num_beams": 0}, "width is 0; it must be at least 1"),
        ({"length_penalty": [1]}, "it must be a number"),
        ({"early_stopping": "often"}, "must be true, false or"),
        ({"eos_token_id": [0, "x"]}, "must be a token id or a list of them"),
        ({"bad_words_ids": [3]}, "must be a list of lists"),
        ({"num_return_sequences": 2}, "nbest is 2; it must be between 1 and the width, 1"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, marian, said, says):
    with pytest.raises(InputError, match=says) as error:
        read(tmp_path, said, marian[0])
    assert "generation_config.json: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "beam",
    [
        Beam(stop_ids=(0,), max_new_tokens=20),
        Beam(width=1, early_stopping="first", stop_ids=(0,), max_new_tokens=5),
        Beam(
            width=6, max_new_tokens=17, stop_ids=(0, 5), length_penalty=0.6, early_stopping="never", nbest=3,
            min_new_tokens=2, no_repeat_ngram=2, suppress_ids=(39,), forced_first=3, forced_last=0, groups=2,
            diversity_penalty=0.5,
        ),
    ],
)  # fmt: skip
def test_an_exported_search_comes_back(tmp_path, marian, capsys, beam):
    config, params, _ = marian
    hub.export(tmp_path / "new", config, params, beam=beam)
    assert hub.generation(tmp_path / "new", config) == beam
    assert not capsys.readouterr().err
    written = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert (written["num_beams"], written["max_length"]) == (beam.width, beam.max_new_tokens + 1)
    assert (written["pad_token_id"], written["decoder_start_token_id"]) == (39, 39)


def test_what_a_search_leaves_open_is_said(tmp_path, marian):
    """As a run's `task.beam` does, which the tokenizer and the model complete."""
    config = dataclasses.replace(marian[0], vocab_size=400)
    hub.export(tmp_path / "new", marian[0], marian[1], beam=Beam(max_new_tokens=1024))
    assert hub.generation(tmp_path / "new", marian[0]) == Beam(max_new_tokens=20, stop_ids=(0,))
    leading, trailing = (search.write(Beam(), config, Languages(4, 5, leads)) for leads in (True, False))
    assert (leading["forced_bos_token_id"], leading["decoder_start_token_id"]) == (5, 39)
    assert ("forced_bos_token_id" in trailing, trailing["decoder_start_token_id"]) == (False, 5)


def test_what_transformers_cannot_be_told(tmp_path, marian, capsys):
    config, params, _ = marian
    hub.export(tmp_path / "gnmt", config, params, beam=Beam(length_convention="gnmt", length_penalty=0.6))
    assert "cannot express length_convention 'gnmt': Transformers divides sums by n^0.6" in capsys.readouterr().err
    hub.export(tmp_path / "one", config, params, beam=Beam(width=1))
    assert "cannot express early_stopping 'bound' of one beam: Transformers decodes greedily" in capsys.readouterr().err
    config, params, _ = hub.load(FIXTURES / "gpt2")
    with pytest.raises(InputError, match="gpt2 is not an encoder-decoder"):
        hub.export(tmp_path / "gpt2", config, params, beam=Beam())
    assert not (tmp_path / "gpt2").exists()


def test_an_export_without_a_search_has_no_settings(tmp_path, marian):
    hub.export(tmp_path / "new", dataclasses.replace(marian[0]), marian[1])
    assert not (tmp_path / "new" / "generation_config.json").exists()


def test_several_tokens_may_end_a_text(tmp_path):
    folder = folder_of(tmp_path, "t5", {"eos_token_id": [7, 5, 7]})
    assert hub.stop_ids(folder) == (7, 5)
    (folder / "generation_config.json").write_text("{}")
    assert hub.stop_ids(folder) == (1,)  # config.json's


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({}, {}),
        ({"eos_token_id": 2, "max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1},
            {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1},
        ),
        ({"temperature": 0.6, "repetition_penalty": 1.3}, {"temperature": 0.0, "repetition_penalty": 1.3}),
        ({"do_sample": False}, {"temperature": 0.0}),
    ],
)
def test_a_decoder_chooses_tokens_as_its_folder_says(tmp_path, said, asked):
    """With what is stated, the rest is Transformers' default: greedy, or a draw from 50 tokens."""
    folder = shutil.copytree(FIXTURES / "qwen2", tmp_path / "q")
    (folder / "generation_config.json").write_text(json.dumps(said))
    sample = transformer_jax.load(folder).task.default_sample()
    assert sample == dataclasses.replace(Sample(), **asked)


def test_what_a_decoder_is_told_and_cannot_do_is_named(tmp_path, capsys):
    folder = shutil.copytree(FIXTURES / "qwen2", tmp_path / "q")
    said = {"num_beams": 4, "no_repeat_ngram_size": 3, "typical_p": 0.9, "do_sample": "yes"}
    (folder / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="\"do_sample\" is 'yes'; it must be true or false"):
        hub.sampling(folder)
    said = capsys.readouterr().err
    assert all(name in said for name in ("num_beams 4", "no_repeat_ngram_size 3", "typical_p 0.9"))
