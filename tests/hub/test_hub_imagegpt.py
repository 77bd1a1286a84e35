"""Image GPT's folders: Transformers' logits and colours, both ways, and what is refused.

The fixture is made by tools/fixtures/make_hf_imagegpt.py.
"""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax import hub
from transformer_jax.__main__ import main
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.tasks.contrastive import paired
from transformer_jax.tasks.text_to_image import captioned, codes

FIXTURE = Path(__file__).parents[1] / "data" / "hf" / "imagegpt"


def test_logits_and_colours_are_those_of_transformers(tmp_path, capsys):
    with np.load(FIXTURE / "expected.npz") as file:
        expected = dict(file)
    loaded = transformer_jax.load(FIXTURE)
    apply = jax.jit(gpt.apply, static_argnums=1)
    np.testing.assert_allclose(apply(loaded.params, loaded.config, expected["tokens"]), expected["logits"], atol=2e-5)
    spec = loaded.task.default_data(None, loaded.config).tokenizer
    pictures = paired.stacked([expected["picture"]], captioned.preprocess(spec))
    np.testing.assert_array_equal(codes.encode(pictures, loaded.tokenizer.codebook)[0], expected["ids"])

    assert main(["convert", "hf", str(FIXTURE), str(tmp_path / "run")]) == 0
    assert main(["convert", "hf", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    again = transformer_jax.load(tmp_path / "back")
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, loaded.params)) and again.config == loaded.config
    assert again.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == "imagegpt"
    out = tmp_path / "out.png"
    assert main(["predict", str(tmp_path / "run"), "anything", "--out", str(out), "--count", "2"]) == 0
    assert out.exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"tie_word_embeddings": True}, "Image GPT has a head of its own"),
        ("config.json", {"n_positions": 15}, "tensor transformer.wpe.weight has shape (16, 24)"),
        ("preprocessor_config.json", {"clusters": [[0, 0, 0]]}, '"clusters" must be 16 colours of three numbers'),
        ("preprocessor_config.json", {"clusters": "none"}, '"clusters" must be 16 colours of three numbers'),
        ("config.json", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_refused_folders(tmp_path, file, change, message):
    shutil.copytree(FIXTURE, tmp_path / "gpt")
    path = tmp_path / "gpt" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=re.escape(message)):
        hub.load(tmp_path / "gpt")


def test_codes_of_patches_have_no_folder(tmp_path):
    """GPT-2's tensors could be written, but not what their ids mean."""
    loaded = transformer_jax.load(FIXTURE)
    config = gpt.Config(vocab_size=17, max_length=16, width=16, num_layers=1, num_heads=1)
    with pytest.raises(InputError, match=r"folder of gpt2 has no file for codes of pictures; write the model alone"):
        hub.export(tmp_path / "out", config, gpt.init(jax.random.key(0), config), loaded.tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_head_of_fewer_outputs_is_not_tied():
    with pytest.raises(
        InputError, match=r"model.num_outputs is 4; it must be at most model.vocab_size = 5, with a head"
    ):
        gpt.Config(vocab_size=5, num_outputs=4)
