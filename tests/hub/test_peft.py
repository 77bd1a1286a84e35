"""PEFT's adapters give PEFT's logits, come back as they were, and are refused where they would change nothing.

The fixtures in tests/data/hf/peft are of tools/fixtures/make_peft.py, which also checks that PEFT loads our exports.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformer_jax import restore
from transformer_jax.errors import InputError
from transformer_jax.hub import peft
from transformer_jax.nn import params as params_lib

HF = Path(__file__).parents[1] / "data" / "hf"
FIXTURES = HF / "peft"


def base(name: str) -> Path:
    return HF / peft.base_of(FIXTURES / name)


def logits(name, model, given) -> np.ndarray:
    """The logits that the fixture's class computes."""
    apply = jax.jit(model.family.apply, static_argnums=1)
    if "pixel_values" in given:
        return apply(model.params, model.config, given["pixel_values"].transpose(0, 2, 3, 1))
    inputs = [given[name].astype(np.int32) for name in ("input_ids", "decoder_input_ids") if name in given]
    out = apply(model.params, model.config, *inputs)
    return out if name != "bert" else model.family.classify(model.params, model.config, out)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
def test_logits_are_those_of_peft_and_come_back(name, tmp_path):
    model = restore.load(FIXTURES / name, base=base(name))
    with np.load(FIXTURES / name / "expected.npz", allow_pickle=False) as file:
        expected = dict(file)
    found = logits(name, model, expected)
    np.testing.assert_allclose(found, expected["logits"], atol=1e-5)
    peft.write(tmp_path / "again", model.config, model.params, base="", rule=model.adapter)
    again = restore.load(tmp_path / "again", base=base(name))
    for path, leaf in params_lib.flatten(model.params).items():
        if path.endswith("lora_b") or path.endswith("lora_scale"):
            continue  # the scale is in B
        np.testing.assert_array_equal(leaf, params_lib.flatten(again.params)[path], err_msg=path)
    for path, leaf in params_lib.flatten(model.params).items():
        if path.endswith("lora_b"):
            at, other = path.removesuffix("b"), params_lib.flatten(again.params)
            scale, theirs = (
                np.asarray(tree[f"{at}scale"])[..., None, None] for tree in (params_lib.flatten(model.params), other)
            )
            np.testing.assert_allclose(scale * leaf, theirs * np.asarray(other[path]), rtol=1e-5, atol=1e-6)


# ---- Eight ways to be wrong, and some more ---------------------------------------------------------------------------


def settings(**changes):
    def change(config, tensors):
        config |= changes
        return config, tensors

    return change


def tensors(change):
    return lambda config, found: (config, change(found))


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(settings(lora_alhpa=4), 'there is no setting "lora_alhpa"', id="a key misspelt"),
        pytest.param(settings(target_modules=["qeury"]), "names no module of this base", id="a module not found"),
        pytest.param(
            settings(target_modules=["query", "valeu"]), "has 'valeu', which this base has not", id="one of two"
        ),
        pytest.param(settings(target_modules=[]), "changes nothing", id="no module"),
        pytest.param(settings(bias="all"), "\"bias\" is 'all'; supported is 'none'", id="a bias mode"),
        pytest.param(settings(peft_type="IA3"), "\"peft_type\" is 'IA3'", id="another method"),
        pytest.param(
            settings(init_lora_weights="pissa"), "\"init_lora_weights\" is 'pissa'", id="another base's kernels"
        ),
        pytest.param(
            settings(r=4), "the base implies [4, 16]; is this another base, or another rank?", id="another rank"
        ),
        pytest.param(settings(modules_to_save=["score"]), "has 'score', of which", id="a saved module not found"),
        pytest.param(settings(modules_to_save=None), "classifier.bias is unexpected", id="a saved module not named"),
        pytest.param(
            tensors(lambda found: {k: v for k, v in found.items() if "lora" in k}),
            "of which adapter_model.safetensors has no tensor",
            id="a head that is not there",
        ),
        pytest.param(
            tensors(lambda found: {k: v for k, v in found.items() if k != f"{QUERY}.lora_B.weight"}),
            "has no bert.encoder.layer.0.attention.self.query.lora_B.weight",
            id="A without B",
        ),
        pytest.param(
            tensors(lambda found: {k: v.T.copy() if k == f"{QUERY}.lora_A.weight" else v for k, v in found.items()}),
            "it is transposed",
            id="transposed",
        ),
        pytest.param(
            tensors(
                lambda found: found | {f"{QUERY.replace('query', 'qery')}.lora_A.weight": np.ones((2, 32), np.float32)}
            ),
            "qery.lora_A.weight is of no module",
            id="a tensor misspelt",
        ),
        pytest.param(
            lambda config, found: (
                config | {"target_modules": "all-linear"},
                {k: v for k, v in found.items() if "lora" not in k},
            ),
            "no module of this base has a lora_A",
            id="all modules, and none is there",
        ),
        pytest.param(tensors(lambda found: {k[5:]: v for k, v in found.items()}), "does not begin with", id="a prefix"),
    ],
)
def test_what_would_change_nothing_is_refused(change, words, tmp_path):
    folder = shutil.copytree(FIXTURES / "bert", tmp_path / "bert")
    config = json.loads((folder / peft.CONFIG).read_text())
    config, found = change(config, load_file(folder / peft.TENSORS))
    (folder / peft.CONFIG).write_text(json.dumps(config))
    save_file(found, folder / peft.TENSORS)
    with pytest.raises(InputError) as error:
        restore.load(folder, base=base("bert"))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_adapter_that_was_never_trained_is_refused(tmp_path):
    folder = shutil.copytree(FIXTURES / "gpt2", tmp_path / "gpt2")
    found = load_file(folder / peft.TENSORS)
    save_file({k: 0 * v if "lora_B" in k else v for k, v in found.items()}, folder / peft.TENSORS)
    with pytest.raises(InputError, match="every lora_B is zero, so this adapter changes nothing"):
        restore.load(folder, base=base("gpt2"))


@pytest.mark.parametrize(
    ("other", "words"), [("llama", "names no module of this base"), ("gpt2_sharded", "is this another base")]
)
def test_another_base_is_refused(other, words):
    with pytest.raises(InputError, match=words):
        restore.load(FIXTURES / "gpt2", base=HF / other)


def test_a_base_that_is_not_here_is_named(tmp_path):
    folder = shutil.copytree(FIXTURES / "gpt2", tmp_path / "adapter")
    with pytest.raises(InputError, match="its base, gpt2, is not here: name its folder, --base DIR, or base="):
        restore.load(folder)
    shutil.copytree(HF / "gpt2", tmp_path / "gpt2")
    assert restore.load(folder).adapter is not None
