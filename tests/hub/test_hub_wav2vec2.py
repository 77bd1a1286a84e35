"""wav2vec 2.0 as Transformers computes it, both orders of norms, padded; exports come back to the bit; its letters; its
data go through the task SpeechRecognition.

The fixtures are made by tools/fixtures/make_hf_wav2vec2.py, which also checks that Transformers loads our exports.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.sound.waves_of_tests import utterances
from transformer_jax import hub
from transformer_jax.data import tokenizers, waves
from transformer_jax.errors import InputError
from transformer_jax.models import wav2vec2

FIXTURES = Path(__file__).parents[1] / "data" / "hf" / "wav2vec2"
LENGTHS = np.array([[2400], [1777], [900]], np.int32)
NAMES = ("base", "large")


@pytest.mark.parametrize("name", NAMES)
def test_states_and_logits_are_transformers(name):
    """Within 2e-5, from int16 samples on; the frames that padding gives "large" are not compared."""
    config, params, _ = hub.load(FIXTURES / name)
    expected = dict(np.load(FIXTURES / name / "expected.npz"))
    given = np.stack([np.pad(w[: n[0]], (0, 2400 - n[0])) for w, n in zip(utterances(3, 2400), LENGTHS, strict=True)])

    @jax.jit
    def run(params, given, lengths):
        x = wav2vec2.features(config, given, 0 * lengths, lengths)
        states = wav2vec2.hidden(params, config, x, 0 * lengths, lengths)
        return states, wav2vec2.logits(params, config, x, 0 * lengths, lengths)

    states, logits = run(params, given, LENGTHS)
    steps = wav2vec2.steps(config, LENGTHS) if name == "large" else np.full((3, 1), 59)
    assert wav2vec2.steps(config, 2400) == 59 == logits.shape[1]
    real = np.arange(59) < steps
    np.testing.assert_allclose(states[real], expected["states"][real], rtol=0, atol=2e-5)
    np.testing.assert_allclose(logits[real], expected["logits"][real], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_comes_back_to_the_bit(name, tmp_path):
    config, params, tokenizer = hub.load(FIXTURES / name)
    hub.export(tmp_path / "out", config, params, tokenizer)
    again, params_again, tokenizer_again = hub.load(tmp_path / "out")
    assert again == config and tokenizer_again.fingerprint == tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    stated = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert stated["do_normalize"] is True and stated["return_attention_mask"] is (name == "large")


def test_old_names_of_the_weight_norm_are_read(tmp_path):
    shutil.copytree(FIXTURES / "base", tmp_path / "in")
    conv = "wav2vec2.encoder.pos_conv_embed.conv"
    names = {f"{conv}.parametrizations.weight.original{i}": f"{conv}.weight_{'gv'[i]}" for i in (0, 1)}
    tensors = {names.get(name, name): x for name, x in load_file(tmp_path / "in/model.safetensors").items()}
    save_file(tensors, tmp_path / "in/model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, hub.load(tmp_path / "in")[1], hub.load(FIXTURES / "base")[1])


def test_letters(tmp_path):
    tokenizer = tokenizers.load(FIXTURES / "base")
    expected = np.load(FIXTURES / "base/expected.npz")["text_ids"]
    np.testing.assert_array_equal(tokenizer.encode("TEN NOTES"), expected)  # S is unknown
    assert tokenizer.decode([0, *expected, 1]) == "TEN NOTE" and tokenizer.special.pad == 0
    shutil.copytree(FIXTURES / "base", tmp_path / "in")
    (tmp_path / "in/vocab.json").write_text('{"<pad>": 0, "A": 1}')
    with pytest.raises(InputError, match=r"lacks the token between words, '\|'"):
        tokenizers.load(tmp_path / "in")
    (tmp_path / "in/vocab.json").write_text('{"<pad>": 0, "|": 0}')
    with pytest.raises(InputError, match="an id of its own"):
        tokenizers.load(tmp_path / "in")


def test_a_folder_recognises_files(tmp_path):
    config, params, tokenizer = hub.load(FIXTURES / "large")
    task = hub.task(FIXTURES / "large", config)
    waves.write(tmp_path / "a.wav", utterances(1, 2400)[0])
    (made,) = task.predict(params, config, tokenizer, [str(tmp_path / "a.wav")], top=1)
    assert set(made["text"]) <= set(" ETAOIN") and made["text"]


@pytest.mark.parametrize(
    ("change", "drop", "message"),
    [
        ({"add_adapter": True}, (), '"add_adapter" is True; only False'),
        ({"conv_kernel": [10, 4]}, (), "one of each for each convolution"),
        ({"num_conv_pos_embedding_groups": 3}, (), "position_groups 3 does not divide model.width 16"),
        ({}, ("lm_head.weight", "lm_head.bias"), "has no CTC head"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, change, drop, message):
    shutil.copytree(FIXTURES / "base", tmp_path / "in")
    path = tmp_path / "in/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    tensors = load_file(tmp_path / "in/model.safetensors")
    save_file({name: x for name, x in tensors.items() if name not in drop}, tmp_path / "in/model.safetensors")
    with pytest.raises(InputError, match=message):
        hub.load(tmp_path / "in")
