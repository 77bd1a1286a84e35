"""Whisper as Transformers computes it: encoder, logits, greedy and beam search on 20 waves, with and without times,
windows of a longer wave; exports come back to the bit; files that are broken are refused in a line.

The fixture is made by tools/fixtures/make_hf_whisper.py, which also checks that Transformers loads our exports.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.sound.waves_of_tests import utterances
from transformer_jax import hub
from transformer_jax.data import waves
from transformer_jax.decoding.beam import Beam
from transformer_jax.errors import InputError
from transformer_jax.models import whisper
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks.transcription import windows
from transformer_jax.tasks.transcription.windows import Wanted

FOLDER = Path(__file__).parents[1] / "data" / "hf" / "whisper"
EXPECTED = dict(np.load(FOLDER / "expected.npz"))
WAVES = utterances(20, 30_000)


@pytest.fixture(scope="module")
def loaded():
    return hub.load(FOLDER)


def test_states_and_logits_are_transformers(loaded):
    """Within 2e-5."""
    config, params, _ = loaded

    @jax.jit
    def run(params, x, target):
        states = whisper.encode(params, config, x)
        return states, whisper.apply(params, config, x, target)

    states, logits = run(params, EXPECTED["features"].astype(np.float32) / 32, EXPECTED["target"])
    np.testing.assert_allclose(states, EXPECTED["states"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits, EXPECTED["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "width"), [("greedy", 1), ("beam", 5), ("timed", 1), pytest.param("timed_beam", 5, marks=pytest.mark.slow)]
)
def test_what_is_written_is_transformers(loaded, name, width):
    """From 20 waves: features, encoder, prompt, suppressed tokens, the rules of times, search."""
    config, params, tokenizer = loaded
    task = hub.task(FOLDER, config)
    known = windows.special(tokenizer, config)
    timed = name.startswith("timed")
    stopping = "first" if width == 1 else "bound"
    beam = Beam(
        width,
        max_new_tokens=16,
        early_stopping=stopping,
        suppress_ids=task.beam.suppress_ids,
        begin_suppress_ids=task.beam.begin_suppress_ids,
        stop_ids=task.beam.stop_ids,
    )
    mesh = windows.sharding.make_mesh(devices=jax.local_devices()[:1])
    lengths = np.full(len(WAVES), len(WAVES[0]), np.int32)
    given = np.stack([np.pad(wave, (0, config.window - len(wave))) for wave in WAVES])
    with jax.set_mesh(mesh):
        x = windows._encode(whisper, params, config, given, lengths, mesh)
        prompts = [windows.prompt(known, Wanted("en", timestamps=timed), "en")] * len(WAVES)
        first = known.no_timestamps + 1 if timed else None
        made = windows._texts(whisper, params, config, x, prompts, beam, first, mesh)
        if name == "greedy":
            spoken = windows._spoken(whisper, params, config, x, known, mesh)
            assert [known.languages[code] for code in spoken] == EXPECTED["languages"].tolist()
    for row, (tokens, wanted) in enumerate(zip(made, EXPECTED[name].tolist(), strict=True)):
        assert tokens == [token for token in wanted if token not in (-1, config.eos_id)], row


def test_a_long_wave_is_read_window_by_window(loaded):
    """The segments that Transformers finds in 7 seconds; its last one may end after the wave, ours does not."""
    config, params, tokenizer = loaded
    task = hub.task(FOLDER, config)
    beam, wanted = dataclasses.replace(task.beam, max_new_tokens=16), Wanted("en", timestamps=True)
    (made,) = windows.transcripts(whisper, params, config, tokenizer, utterances(1, 7 * 16_000), beam, wanted)
    times = np.minimum(EXPECTED["long_times"], 7.0)
    np.testing.assert_allclose([(start, end) for start, end, _ in made.segments], times, atol=0.021)
    words = [token for token in EXPECTED["long"].tolist() if token < config.eos_id]
    assert made.text == tokenizer.decode(words).strip()


def test_an_export_comes_back_to_the_bit(loaded, tmp_path):
    config, params, tokenizer = loaded
    task = hub.task(FOLDER, config)
    hub.export(tmp_path / "out", config, params, tokenizer, **task.snapshot_settings())
    again, params_again, tokenizer_again = hub.load(tmp_path / "out")
    assert again == config and tokenizer_again.fingerprint == tokenizer.fingerprint
    assert hub.task(tmp_path / "out", again) == task
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    stored = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert stored["lang_to_id"] == {"<|de|>": 33, "<|en|>": 32, "<|fr|>": 34}  # what we do not read is kept
    features = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert features["feature_extractor_type"] == "WhisperFeatureExtractor" and features["chunk_length"] == 2


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("preprocessor_config.json", {"hop_length": 128}, '"hop_length" is 128; only 160'),
        ("preprocessor_config.json", {"feature_size": 128}, '"feature_size" is 128; only 80'),
        ("config.json", {"encoder_ffn_dim": 20}, '"encoder_ffn_dim" 20 and "decoder_ffn_dim" 24 differ'),
        ("config.json", {"scale_embedding": True}, '"scale_embedding" is True; only False'),
        ("config.json", {"max_target_positions": 20}, "embed_positions.weight has shape"),
        ("config.json", {"attention_kind": "new"}, "\"attention_kind\": 'new' is an unknown setting"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, file, change, message):
    shutil.copytree(FOLDER, tmp_path / "in")
    path = tmp_path / "in" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        hub.load(tmp_path / "in")


def test_the_first_tokens(loaded):
    config, _, tokenizer = loaded
    known = windows.special(tokenizer, config)
    assert windows.prompt(known, Wanted(), "de") == [31, 33, 36, 40]
    assert windows.prompt(known, Wanted(translate=True, timestamps=True), "de") == [31, 33, 35]
    assert windows.prompt(known, Wanted(), "") == [31, 40]
    with pytest.raises(InputError, match="language 'xx' is not one of the model's: de, en, fr"):
        windows.prompt(known, Wanted(), "xx")
    with pytest.raises(InputError, match="translate needs a language"):
        windows.prompt(known, Wanted(translate=True), "")


def test_files_are_answered_and_the_others_named(loaded, tmp_path):
    config, params, tokenizer = loaded
    task = hub.task(FOLDER, config)
    waves.write(tmp_path / "a.wav", WAVES[0])
    (tmp_path / "b.wav").write_bytes(b"RIFF, but not sound")
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]
    made = list(task.predict(params, config, tokenizer, paths, top=1, timestamps=True))
    assert made[0]["language"] == "fr" and made[0]["segments"][0]["text"] and 1.87 < made[0]["seconds"] < 1.88
    assert "cannot be read as sound" in made[1]["error"] and "c.wav" in made[2]["sound"] and made[2]["error"]
    assert task.describe(made[0]).startswith("[0.")
    assert [one.query for one in task.read([str(tmp_path)], task.predict_options(task.default_sample()))] == paths[:2]


def test_sizes_that_contradict_each_other():
    with pytest.raises(InputError, match="model.width is 3"):
        whisper.Config(vocab_size=9, width=3, num_heads=1)
    with pytest.raises(InputError, match="model.max_frames is 0"):
        whisper.Config(vocab_size=9, max_frames=0)
    with pytest.raises(InputError, match="model.eos_id is 9; it must be below 9"):
        whisper.Config(vocab_size=9, eos_id=9)


def test_the_encoders_positions_begin_as_sinusoids(loaded):
    config, params, _ = loaded
    made = params_lib.flatten(whisper.init(jax.random.key(0), config))["encoder/position/embedding"]
    np.testing.assert_allclose(made, params["encoder"]["position"]["embedding"], rtol=0, atol=5e-6)
