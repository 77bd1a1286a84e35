"""Folders of compressed-tensors: the integers come back, and what is not computed is refused.

That Transformers 5.24 with compressed-tensors 0.20 reads what is written here was checked by hand: BERT's and Llama's
logits differ from ours by 6e-6 at most.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from transformer_jax import hub
from transformer_jax.compress import Int8
from transformer_jax.errors import InputError
from transformer_jax.nn import params as params_lib

HF = Path(__file__).parents[1] / "data" / "hf"


def test_the_integers_come_back(tmp_path):
    config, params, _ = hub.load(HF / "llama")
    small = Int8("blocks/").apply(params)
    hub.export(tmp_path / "llama", config, small)
    tensors = load_file(tmp_path / "llama" / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    key = small["blocks"]["attention"]["key"]
    np.testing.assert_array_equal(tensors[name], np.asarray(key["kernel"][1]).T)
    np.testing.assert_array_equal(tensors[f"{name}_scale"], np.asarray(key["scale"][1])[:, None])
    assert tensors[name].dtype == np.int8 and tensors["lm_head.weight"].dtype == np.float32
    stated = json.loads((tmp_path / "llama" / "config.json").read_text())["quantization_config"]
    assert stated["format"] == "int-quantized" and stated["ignore"] == ["lm_head"]
    again = Int8("blocks/").apply(hub.load(tmp_path / "llama")[1])
    for path, leaf in params_lib.flatten(small).items():
        np.testing.assert_allclose(params_lib.flatten(again)[path], leaf, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "read is compressed-tensors in the format int-quantized"),
        ({"format": "pack-quantized"}, "read is compressed-tensors in the format int-quantized"),
        ({"weights": {"num_bits": 4}}, "'num_bits': 4"),
        ({"weights": {"strategy": "tensor"}}, "'strategy': 'tensor'"),
        ({"input_activations": {"num_bits": 8}}, "has 'input_activations'"),
    ],
)
def test_another_quantization_is_refused(change, words, tmp_path):
    config, params, _ = hub.load(HF / "llama")
    hub.export(tmp_path / "llama", config, Int8("attention/key/").apply(params))
    path = tmp_path / "llama" / "config.json"
    settings = json.loads(path.read_text())
    stated = settings["quantization_config"]
    group = stated["config_groups"]["group_0"]
    group["weights"] |= change.get("weights", {})
    group |= {k: v for k, v in change.items() if k == "input_activations"}
    stated |= {k: v for k, v in change.items() if k in stated}
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError) as error:
        hub.load(tmp_path / "llama")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_kernel_that_is_no_linear_is_refused(tmp_path):
    config, params, _ = hub.load(HF / "gpt2")
    with pytest.raises(InputError, match="in a Linear alone, and transformer.h.0.attn.c_attn.weight"):
        hub.export(tmp_path / "gpt2", config, Int8("attention/").apply(params))
    assert not (tmp_path / "gpt2").exists()
