"""The audio spectrogram transformer as Transformers computes it, from samples on; exports come back to the bit.

The fixtures are made by tools/fixtures/make_hf_spectrogram.py, which also checks that Transformers loads our exports.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.sound.waves_of_tests import utterances
from transformer_jax import hub
from transformer_jax.data import waves
from transformer_jax.errors import InputError
from transformer_jax.models import spectrogram

FIXTURES = Path(__file__).parents[1] / "data" / "hf" / "spectrogram"
LENGTHS = np.array([6000, 4000, 2777], np.int32)
NAMES = ("classifier", "model")


@pytest.mark.parametrize("name", NAMES)
def test_features_states_and_logits_are_transformers(name):
    """Within 2e-5, from int16 samples on: a sound that is too long, one with a last frame of padding, a short one."""
    config, params, _ = hub.load(FIXTURES / name)
    expected = dict(np.load(FIXTURES / name / "expected.npz"))
    given = np.stack([np.pad(w[:n], (0, 6000 - n)) for w, n in zip(utterances(3, 6000), LENGTHS, strict=True)])

    @jax.jit
    def run(params, given, lengths):
        x = spectrogram.features(config, given, lengths)
        states = spectrogram.hidden(params, config, x)
        return x, states, spectrogram.apply(params, config, x) if config.num_classes else None

    features, states, logits = run(params, given, LENGTHS)
    np.testing.assert_allclose(features, expected["features"], rtol=0, atol=2e-4)  # nats, in float32
    wide = spectrogram.sound.fbank(given[2:, :4240] / 32768, num_mels=12)[0]  # in float64
    wide[15:] = 0
    scaled = (wide - config.mean) / (2 * config.std)
    np.testing.assert_allclose(scaled, expected["features"][2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(states, expected["states"], rtol=0, atol=2e-5)
    if name == "classifier":
        np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_comes_back_to_the_bit(name, tmp_path):
    config, params, _ = hub.load(FIXTURES / name)
    labels = hub.labels(FIXTURES / name)
    hub.export(tmp_path / name, config, params, labels=labels)
    again, params_again, _ = hub.load(tmp_path / name)
    assert again == config and hub.labels(tmp_path / name) == labels
    jax.tree.map(np.testing.assert_array_equal, params, params_again)


def test_a_folder_classifies_files(tmp_path):
    config, params, _ = hub.load(FIXTURES / "classifier")
    task = hub.task(FIXTURES / "classifier", config)
    assert task.labels == ("crane", "lantern", "teapot") and hub.task(FIXTURES / "model", config) is not None
    for i, (wave, n) in enumerate(zip(utterances(3, 6000), LENGTHS, strict=True)):
        waves.write(tmp_path / f"{i}.wav", wave[:n])
    (tmp_path / "3.wav").write_bytes(b"no sound")
    found = list(task.predict(params, config, None, [str(path) for path in sorted(tmp_path.iterdir())], top=3))
    logits = np.load(FIXTURES / "classifier/expected.npz")["logits"]
    wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for i, answer in enumerate(found[:3]):
        assert answer["label"] == task.labels[wanted[i].argmax()]
        assert sorted(one["probability"] for one in answer["top"]) == pytest.approx(sorted(wanted[i]), abs=1e-4)
    assert found[0]["seconds_unread"] == pytest.approx((6000 - 4240) / 16_000) and "seconds_unread" not in found[1]
    assert "cannot be read as sound" in found[3]["error"]


def test_positions_of_another_length():
    """Shorter: the middle ones; longer: linear, and the special tokens and rows of bins stay."""
    cfg = spectrogram.Config(num_classes=0, width=8, num_layers=1, num_heads=1, num_mels=26, max_frames=46)
    params = spectrogram.init(jax.random.key(0), cfg)
    table = np.asarray(params["embed"]["position"]["embedding"])
    grid = table[2:].reshape(2, 4, 8)

    def positions(frames):
        made = spectrogram.resized(params, cfg, dataclasses.replace(cfg, max_frames=frames), print)
        return np.asarray(made["embed"]["position"]["embedding"])

    np.testing.assert_array_equal(positions(46), table)
    np.testing.assert_array_equal(positions(26), np.concatenate([table[:2], grid[:, 1:3].reshape(-1, 8)]))
    longer = positions(86)[2:].reshape(2, 8, 8)
    np.testing.assert_allclose(longer[:, 2], 0.75 * grid[:, 1] + 0.25 * grid[:, 0], atol=1e-6)  # at half-pixel centres


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"patch_size": [4, 2]}, "only square patches"),
        ("config.json", {"frequency_stride": 0}, "mel_stride"),
        ("config.json", {"window": 3}, "unknown setting"),
        ("config.json", {"num_mel_bins": 13}, "shape"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "only 16000"),
        ("preprocessor_config.json", {"num_mel_bins": 13}, "only 12"),
        ("preprocessor_config.json", {"std": 0.0}, "the second above 0"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, file, change, message):
    shutil.copytree(FIXTURES / "classifier", tmp_path / "in")
    path = tmp_path / "in" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if "num_mel_bins" in change and file == "config.json":
        (tmp_path / "in/preprocessor_config.json").unlink()
        tensors = load_file(tmp_path / "in/model.safetensors")
        name = "audio_spectrogram_transformer.embeddings.position_embeddings"
        save_file(tensors | {name: tensors[name][:, :-1].copy()}, tmp_path / "in/model.safetensors")
    with pytest.raises(InputError, match=message):
        hub.load(tmp_path / "in")
