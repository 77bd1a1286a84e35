"""CLIP and SigLIP folders, in and out, against Transformers' results on random weights (make_hf_dual.py)."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import weights
from transformer_jax.models import dual
from transformer_jax.nn import params as params_lib

FIXTURES = Path(__file__).resolve().parents[1] / "data" / "hf" / "dual"
NAMES = ["clip", "clip-old", "siglip", "siglip-projected"]


def expected(name):
    with np.load(FIXTURES / name / "expected.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_and_logits_are_transformers(name):
    """Padded texts included: CLIP's are read at the end of the text, SigLIP's at the end of the padding."""
    loaded, wanted = transformer_jax.load(FIXTURES / name), expected(name)
    left = dual.left(loaded.params, loaded.config, wanted["images"])
    right = dual.right(loaded.params, loaded.config, wanted["tokens"], lengths=wanted["lengths"])
    np.testing.assert_allclose(left, wanted["left"], atol=2e-5)
    np.testing.assert_allclose(right, wanted["right"], atol=2e-5)
    logits = dual.logits(loaded.params, loaded.config, left, right)
    np.testing.assert_allclose(logits, wanted["logits"], atol=2e-5)
    assert loaded.task.objective == ("softmax" if name.startswith("clip") else "sigmoid")
    assert loaded.task.preprocess.size == 24 and loaded.task.preprocess.resample == "bicubic"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_goes_out_as_it_came(name, tmp_path):
    config, params, _ = hub.load(FIXTURES / name)
    preprocess = hub.preprocessing(FIXTURES / name)
    hub.export(tmp_path / "out", config, params, preprocess=preprocess)
    again, same, _ = hub.load(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["text_config"]["eos_token_id"] == 39  # where Transformers reads CLIP's text
    assert again == config and hub.preprocessing(tmp_path / "out") == preprocess
    jax.tree.map(np.testing.assert_array_equal, same, params)
    with weights.open_tensors(FIXTURES / name) as theirs, weights.open_tensors(tmp_path / "out") as ours:
        assert set(ours) == set(theirs)
        for tensor in theirs:
            assert ours[tensor].get_shape() == theirs[tensor].get_shape(), tensor


def test_a_config_of_2021(tmp_path):
    """Settings in "text_config_dict" replace those of "text_config"; the rest is Transformers' defaults."""
    given = json.loads((FIXTURES / "clip" / "config.json").read_text())
    new, _, where = given, None, "config.json"
    old = {**new, "text_config": {"model_type": "clip_text_model"}, "text_config_dict": new["text_config"]}
    old |= {"vision_config": None, "vision_config_dict": new["vision_config"]}
    shutil.copytree(FIXTURES / "clip", tmp_path / "old")
    (tmp_path / "old" / where).write_text(json.dumps(old))
    assert hub.load(tmp_path / "old")[0] == hub.load(FIXTURES / "clip")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["text_config"].update(use_rope=True), '"use_rope": True is an unknown setting'),
        (lambda s: s["vision_config"].update(hidden_act="mish"), "\"hidden_act\" is 'mish'"),
        (lambda s: s["vision_config"].update(image_size=32), "vision_model.embeddings.position_embedding.weight has"),
    ],
)
def test_a_wrong_setting_is_refused(change, message, tmp_path):
    shutil.copytree(FIXTURES / "clip", tmp_path / "clip")
    given = json.loads((tmp_path / "clip" / "config.json").read_text())
    change(given)
    (tmp_path / "clip" / "config.json").write_text(json.dumps(given))
    with pytest.raises(InputError, match=message):
        hub.load(tmp_path / "clip")


def test_what_clip_cannot_express_is_refused(tmp_path):
    config, params, _ = hub.load(FIXTURES / "clip")
    with pytest.raises(InputError, match="cannot express"):
        changed = dual.Config(**{**vars(config), "logit_bias": True})
        hub.export(tmp_path / "out", changed, params)
    assert params_lib.count(dual.declare(config)) > 1000


# ---- sentence-transformers -----------------------------------------------------------------------------------------

SENTENCES = ["the cat sat on the mat", "the mat", "a", "the cat the cat the cat the cat the cat the cat"]


@pytest.mark.parametrize("name", ["sentences-mean", "sentences-first", "sentences-last", "sentences-dense"])
def test_embeddings_of_sentences(name, tmp_path):
    """Pooling, normalisation and the longest text are those of the folder, which goes out and comes back."""
    loaded = transformer_jax.load(FIXTURES / name)
    wanted = expected(name)["embeddings"]

    def embedded(loaded):
        made = loaded.task.predict(loaded.params, loaded.config, loaded.tokenizer, SENTENCES, top=1)
        return np.array([one["embedding"] for one in made])

    np.testing.assert_allclose(embedded(loaded), wanted, atol=1e-5)
    assert loaded.config.max_length == 10 and loaded.config.normalize == (name != "sentences-first")
    hub.export(tmp_path / "out", loaded.config, loaded.params, loaded.tokenizer)
    again = transformer_jax.load(tmp_path / "out")
    assert again.config == loaded.config
    np.testing.assert_allclose(embedded(again), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "the pooling is 'max'"),
        ("1_Pooling/config.json", {"pooling_mode": None, "pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("modules.json", "1_Pooling", "modules.json has the modules Transformer, Pooling, Normalize, Pooling"),
        ("modules.json", "../other", "names '../other', which is no folder beside it"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            "every text follows 'query: '",
        ),
    ],
)
def test_modules_that_are_not_computed_are_refused(file, change, message, tmp_path):
    shutil.copytree(FIXTURES / "sentences-mean", tmp_path / "one")
    path = tmp_path / "one" / file
    given = json.loads(path.read_text())
    given = given + [{"type": "x.Pooling", "path": change}] if isinstance(given, list) else given | change
    path.write_text(json.dumps(given))
    with pytest.raises(InputError, match=message):
        transformer_jax.load(tmp_path / "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.ReLU"}, "activation 'torch.nn.modules.activation.ReLU'"),
        ({"in_features": 17}, "maps 17 to 12 features, and the pooled states have 16"),
        ({"out_features": 11}, r"tensor dense.linear.weight has shape \(12, 16\), but its config.json implies"),
    ],
)
def test_dense_layers_that_are_not_computed_are_refused(change, message, tmp_path):
    shutil.copytree(FIXTURES / "sentences-dense", tmp_path / "one")
    path = tmp_path / "one" / "2_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        transformer_jax.load(tmp_path / "one")


def test_a_pooling_file_of_2020(tmp_path):
    shutil.copytree(FIXTURES / "sentences-mean", tmp_path / "one")
    old = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (tmp_path / "one" / "1_Pooling" / "config.json").write_text(json.dumps(old))
    (tmp_path / "one" / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": false}')
    config = transformer_jax.load(tmp_path / "one").config
    assert config.left.pooling == "mean" and config.max_length == 7
    (tmp_path / "one" / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    transformer_jax.load(tmp_path / "one")  # the tokenizer does it too
    (tmp_path / "one" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(InputError, match="only the tokenizer may make lower case"):
        transformer_jax.load(tmp_path / "one")
