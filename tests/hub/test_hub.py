"""Snapshots that Transformers wrote give Transformers' logits; what is exported comes back to the bit; what is broken
is refused in one line that names it.

The fixtures in tests/data/hf are made by tools/fixtures/make_hf_decoders.py, which also checks that Transformers loads
our exports.
"""

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import mapping
from transformer_jax.models import gpt
from transformer_jax.models.gpt import gemma, gpt2, llama
from transformer_jax.nn import params as param_tree

FIXTURES = Path(__file__).parents[1] / "data" / "hf"
NAMES = ("gpt2", "gpt2_sharded", "llama", "llama3_rope", "qwen2", "qwen3", "mistral", "gemma", "gemma2")


def snapshot(tmp_path: Path, name: str = "gpt2", **settings) -> Path:
    """A copy of a fixture to break, with some settings of its config.json replaced."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def assert_equal(ours, theirs) -> None:
    for (path, x), y in zip(param_tree.flatten(ours).items(), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y), path


# ---- The function ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_transformers(name):
    config, params, tokenizer = hub.load(FIXTURES / name)
    with np.load(FIXTURES / name / "expected.npz", allow_pickle=False) as file:
        expected = dict(file)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}

    logits_BTV = jax.jit(gpt.apply, static_argnums=1)(params, config, expected["tokens"])
    assert 0.5 < expected["logits"].std() < 2, "the bound below means something at this scale only"
    np.testing.assert_allclose(logits_BTV, expected["logits"], rtol=0, atol=2e-5)

    cache = gpt.init_cache(config, *expected["tokens"].shape)
    last_BV, _ = jax.jit(gpt.prefill, static_argnums=1)(
        params, config, expected["tokens"], cache, start_B=expected["start"]
    )
    np.testing.assert_allclose(last_BV, expected["padded_last_logits"], rtol=0, atol=2e-5)

    assert tokenizer is not None
    np.testing.assert_array_equal(tokenizer.encode(str(expected["text"])), expected["text_ids"])


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_decoding_with_a_window_gives_the_same_logits(name):
    config, params, _ = hub.load(FIXTURES / name)
    with np.load(FIXTURES / name / "expected.npz", allow_pickle=False) as file:
        tokens, expected = file["tokens"][:, :12], file["logits"]
    _, cache = gpt.prefill(params, config, tokens[:, :4], gpt.init_cache(config, 2, 12))
    step = jax.jit(gpt.decode_step, static_argnums=1)
    assert config.window == 5
    for i in range(4, 12):
        logits_BV, cache = step(params, config, tokens[:, i], cache)
        np.testing.assert_allclose(logits_BV, expected[:, i], rtol=0, atol=2e-5)


def test_the_fixtures_cover_what_can_differ():
    configs = [hub.load(FIXTURES / name)[0] for name in NAMES]
    assert {c.tie_embeddings for c in configs} == {c.gated for c in configs} == {True, False}
    assert (
        any(c.rope_scaling for c in configs)
        and any(c.qk_norm for c in configs)
        and any(c.has_qkv_bias for c in configs)
    )
    assert any(c.kv_heads < c.num_heads for c in configs)
    assert any(c.head_width * c.num_heads != c.width for c in configs)
    scaling = next(c for c in configs if c.rope_scaling)
    wavelengths = 2 * np.pi * scaling.rope_theta ** (np.arange(0, scaling.head_width, 2) / scaling.head_width)
    kept, slowed = wavelengths < 64 / 4, wavelengths > 64 / 1
    assert kept.any() and slowed.any() and not (kept | slowed).all()


# The published sizes; Llama's from its model card, "1.23B", counted to the last parameter by Transformers.
GPT2_SIZES = {
    "gpt2": (768, 12, 12, 124_439_808),
    "gpt2-medium": (1024, 24, 16, 354_823_168),
    "gpt2-large": (1280, 36, 20, 774_030_080),
    "gpt2-xl": (1600, 48, 25, 1_557_611_200),
}
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GPT2_SIZES)
def test_published_parameter_counts_gpt2(name):
    width, layers, heads, count = GPT2_SIZES[name]
    settings = {  # as in the published file, with the settings of the years before `n_inner`
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": width, "n_head": heads,
        "n_layer": layers, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }  # fmt: skip
    config = gpt2.read_config(settings, (), "config.json")
    assert param_tree.count(gpt.declare(config)) == count


def test_published_parameter_count_llama():
    config = llama.read_config(LLAMA_3_2_1B, (), "config.json")
    assert param_tree.count(gpt.declare(config)) == 1_235_814_400
    assert config.rope_scaling is not None and config.rope_scaling.factor == 32.0 and config.rope_theta == 500_000.0


def test_published_parameter_count_gemma_2():
    """2B, as its config.json states it; 2.6 billion by Transformers' own count."""
    config = gemma.read_config(
        {
            "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
            "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
            "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
            "torch_dtype": "float32", "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
        },
        (),
        "config.json",
    )  # fmt: skip
    assert param_tree.count(gpt.declare(config)) == 2_614_341_888
    assert (config.window, config.global_every, config.score_cap, config.logit_cap) == (4096, 2, 50.0, 30.0)


# ---- Names, types and files that snapshots come in -------------------------------------------------------------------


def test_names_of_a_bare_trunk_and_old_buffers(tmp_path):
    folder = snapshot(tmp_path)

    def like_the_published_file(tensors):
        bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
        for layer in range(2):
            bare[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 48, 48), np.uint8))
            bare[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
        return bare

    change_tensors(folder, like_the_published_file)
    assert_equal(hub.load(folder)[1], hub.load(FIXTURES / "gpt2")[1])


def test_a_tied_head_may_be_stored_but_not_differ(tmp_path):
    folder = snapshot(tmp_path)
    change_tensors(folder, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"]})
    assert_equal(hub.load(folder)[1], hub.load(FIXTURES / "gpt2")[1])
    change_tensors(folder, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"] + 1})
    with pytest.raises(InputError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        hub.load(folder)


@pytest.mark.parametrize("stored", [jnp.bfloat16, np.float16])
def test_half_precision_checkpoints_load_as_float32_or_as_they_are(tmp_path, stored):
    folder = snapshot(tmp_path, "llama")
    change_tensors(folder, lambda t: {name: x.astype(stored) for name, x in t.items()})
    exact = hub.load(FIXTURES / "llama")[1]
    wide = hub.load(folder)[1]
    assert_equal(wide, jax.tree.map(lambda x: x.astype(stored).astype(np.float32), exact))
    narrow = hub.load(folder, dtype=stored)[1]
    assert_equal(narrow, jax.tree.map(lambda x: x.astype(stored), exact))


def test_settings_of_transformers_4_mean_the_same(tmp_path):
    folder = snapshot(tmp_path, "llama3_rope")
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    (folder / "config.json").write_text(json.dumps(config))
    assert hub.load(folder)[0] == hub.load(FIXTURES / "llama3_rope")[0]


def test_one_copy_of_the_parameters_in_memory(tmp_path):
    config = gpt.Config(vocab_size=1000, max_length=8, width=256, num_layers=6, num_heads=4)
    params = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), param_tree.abstract(gpt.declare(config)))
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    hub.export(tmp_path / "new", config, params, shard_bytes=2 * largest)
    tracemalloc.start()
    try:
        hub.load(tmp_path / "new")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert nbytes < peak < nbytes + largest, f"{peak:,} bytes for {nbytes:,} of parameters"


def test_is_snapshot(tmp_path):
    assert hub.is_snapshot(FIXTURES / "gpt2")
    assert not hub.is_snapshot(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {}}')  # a workdir's
    assert not hub.is_snapshot(tmp_path)


# ---- Export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shard_bytes", [20_000, 5_000_000_000], ids=["sharded", "single"])
def test_export_then_import_is_the_identity(tmp_path, name, shard_bytes):
    config, params, tokenizer = hub.load(FIXTURES / name)
    hub.export(tmp_path / "new", config, jax.device_put(params), tokenizer, shard_bytes=shard_bytes)
    config_again, params_again, tokenizer_again = hub.load(tmp_path / "new")
    assert config_again == config
    assert_equal(params_again, params)
    assert tokenizer_again.fingerprint == tokenizer.fingerprint and tokenizer_again.eos_id == tokenizer.eos_id
    assert (len(list((tmp_path / "new").glob("*.safetensors"))) > 1) == (shard_bytes == 20_000)
    assert [p.name for p in tmp_path.iterdir()] == ["new"], "the temporary folder is gone"


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("mistral", {"sliding_window": 0.5}, '"sliding_window" is 0.5'),
        ("mistral", {"sliding_window": -1}, '"sliding_window" is -1'),
        ("llama", {"sliding_window": 5}, "sliding_window"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma2", {"sliding_window": None}, '"sliding_window" is None'),
        ("gemma2", {"layer_types": ["full_attention"] * 3}, '"layer_types" is'),
        ("gemma2", {"hidden_act": "silu"}, "hidden_act"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "score_width is 0"),
    ],
)
def test_settings_of_mistral_and_gemma_that_are_not_computed(tmp_path, name, settings, says):
    with pytest.raises(InputError, match=says) as error:
        hub.load(snapshot(tmp_path, name, **settings))
    assert "\n" not in str(error.value)


def test_mistral_without_a_window_is_a_llama_and_gemmas_gelu_is_the_approximation(tmp_path):
    config, params, _ = hub.load(snapshot(tmp_path, "mistral", sliding_window=None))
    assert config.window == 0
    hub.export(tmp_path / "new", config, params)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "llama"
    assert hub.load(snapshot(tmp_path, "gemma", hidden_act="gelu"))[0].activation == "gelu_tanh"


@pytest.mark.parametrize("name", NAMES)
def test_export_writes_what_transformers_wrote(tmp_path, name):
    config, params, _ = hub.load(FIXTURES / name)
    hub.export(tmp_path / "new", config, params)
    theirs = {k: v for file in (FIXTURES / name).glob("*.safetensors") for k, v in load_file(file).items()}
    ours = load_file(tmp_path / "new" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for k in theirs:  # Gemma's norms, to which 1 was added, lose a bit
        np.testing.assert_allclose(
            ours[k], theirs[k], rtol=0, atol=6e-8 if name.startswith("gemma") and "norm" in k else 0
        )


def test_export_keeps_bfloat16_to_the_bit(tmp_path):
    config, params, _ = hub.load(FIXTURES / "gpt2", dtype=jnp.bfloat16)
    hub.export(tmp_path / "new", config, params)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_equal(hub.load(tmp_path / "new", dtype=jnp.bfloat16)[1], params)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bias": False}, "bias=False"),
        ({"norm": "rms"}, "norm='rms'"),
        ({"num_kv_heads": 2}, "num_kv_heads=2"),
        ({"position": "alibi"}, "position='alibi'"),
        ({"position": "rotary"}, "gated=False"),
    ],
)
def test_export_refuses_what_no_model_type_says(tmp_path, changes, says):
    config = gpt.Config(vocab_size=5, max_length=4, width=8, num_layers=1, num_heads=4, **changes)
    params = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), param_tree.abstract(gpt.declare(config)))
    with pytest.raises(InputError, match=says):
        hub.export(tmp_path / "new", config, params)
    assert list(tmp_path.iterdir()) == []


def test_export_forgets_only_how_a_run_computes(tmp_path):
    config, params, _ = hub.load(FIXTURES / "llama")
    run = dataclasses.replace(config, dropout=0.1, dtype="bfloat16", scan_layers=False, remat="full", attention="xla")
    hub.export(tmp_path / "new", run, params)
    assert hub.load(tmp_path / "new")[0] == config


def test_export_overwrites_nothing_and_leaves_nothing_behind(tmp_path, monkeypatch):
    config, params, _ = hub.load(FIXTURES / "gpt2")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        hub.export(tmp_path / "there", config, params)
    wrong = {**params, "final_norm": {"scale": params["final_norm"]["scale"]}}
    with pytest.raises(InputError, match="final_norm/bias"):
        hub.export(tmp_path / "new", config, wrong)

    def full_disk(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        hub.export(tmp_path / "new", config, params)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


# ---- What is broken --------------------------------------------------------------------------------------------------


def _without(name):
    return lambda t: {k: v for k, v in t.items() if k != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without("transformer.h.1.mlp.c_fc.bias"), r"lacks transformer\.h\.1\.mlp\.c_fc\.bias"),
        (
            lambda t: t | {"transformer.h.2.ln_1.bias": np.zeros(32, np.float32)},
            r"has the unexpected transformer\.h\.2\.ln_1\.bias",
        ),
        (lambda t: t | {"score.weight": np.zeros((2, 32), np.float32)}, r"has the unexpected score\.weight"),
        (lambda t: t | {"wpe.weight": t["transformer.wpe.weight"]}, r"transformer\.wpe\.weight is there twice"),
        (
            lambda t: t | {"transformer.h.0.attn.c_attn.weight": np.zeros((96, 32), np.float32)},
            r"c_attn\.weight has shape \(96, 32\), but its config\.json implies \(32, 96\)",
        ),
        (
            lambda t: t | {"transformer.ln_f.weight": np.ones(32, np.int64)},
            r"ln_f\.weight is of type I64",
        ),
    ],
    ids=["missing", "a_layer_too_many", "extra", "twice", "misshapen", "dtype"],
)
def test_wrong_tensors_are_named(tmp_path, change, says):
    folder = snapshot(tmp_path)
    change_tensors(folder, change)
    with pytest.raises(InputError, match=says) as error:
        hub.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cut",
    [
        lambda data: data[:-4],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: (1 << 40).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b'"dtype":"F32"', b'"dtype":"F64"'),
        lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[4,'),
        lambda data: data + b"more",
    ],
    ids=["end_cut", "header_cut", "empty", "header_length", "type_lies", "offset_lies", "longer"],
)
def test_a_broken_file_is_one_line(tmp_path, cut):
    folder = snapshot(tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    assert cut(whole) != whole
    file.write_bytes(cut(whole))
    with pytest.raises(InputError, match=r"model\.safetensors is not a complete safetensors file") as error:
        hub.load(folder)
    assert "\n" not in str(error.value)


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    folder = snapshot(tmp_path)
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n"
    )
    with pytest.raises(InputError, match="git lfs pull"):
        hub.load(folder)


def test_shards_and_their_index(tmp_path):
    folder = snapshot(tmp_path, "gpt2_sharded")
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())

    shard = folder / "model-00002-of-00004.safetensors"
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"model-00002-of-00004\.safetensors is missing"):
        hub.load(folder)
    (tmp_path / "elsewhere").rename(shard)

    name = "transformer.ln_f.bias"
    for weight_map, says in [
        ({k: v for k, v in index["weight_map"].items() if k != name}, f"{name} is in the file but not in the index"),
        (index["weight_map"] | {"ghost": shard.name}, "ghost is in the index but not in the file"),
        (index["weight_map"] | {name: "../elsewhere"}, "not a file in the same folder"),
        ({}, 'no "weight_map"'),
    ]:
        index_path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match=says):
            hub.load(folder)


def test_a_folder_without_weights(tmp_path):
    folder = snapshot(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"none of model\.safetensors, "):
        hub.load(folder)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("gpt2", {"model_type": "gptj"}, r"'gptj'; supported are \w+, gpt2, llama, qwen2, qwen3"),
        ("gpt2", {"model_type": ["gpt2"]}, "supported are"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, '"scale_attn_by_inverse_layer_idx" is True; only False'),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "mish"}, "'mish'; supported are"),
        ("gpt2", {"activation_function": ["gelu"]}, "activation_function"),
        ("gpt2", {"attn_pdrop": 0.0}, "one dropout rate"),
        ("gpt2", {"n_embd": "32"}, "\"n_embd\" is '32'; it must be a positive integer"),
        ("gpt2", {"n_layer": None}, 'lacks "n_layer"'),
        ("gpt2", {"n_layer": 3}, r"lacks transformer\.h\.2\.attn\.c_attn\.bias"),
        ("gpt2", {"n_head": 5}, "does not divide"),
        ("gpt2", {"vocab_size": 287}, r"wte\.weight has shape \(288, 32\)"),
        ("gpt2", {"brand_new_trick": 1}, '"brand_new_trick": 1 is an unknown setting'),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("gpt2", {"tie_word_embeddings": False}, r"lacks lm_head\.weight"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0}}, "low_freq_factor"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "only a part of each head",
        ),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}, "'big'; it must be a positive"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("qwen3", {"layer_types": 3}, '"layer_types" is 3'),
        ("qwen3", {"rms_norm_eps": float("nan")}, "it must be a finite number"),
        ("qwen3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "which may disagree"),
    ],
)
def test_settings_that_are_not_computed_are_refused(tmp_path, name, settings, says):
    with pytest.raises(InputError, match=says) as error:
        hub.load(snapshot(tmp_path, name, **settings))
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_snapshot(tmp_path):
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        hub.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        hub.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not an object"):
        hub.load(tmp_path)


def test_a_tokenizer_that_makes_ids_the_model_has_no_row_for(tmp_path):
    folder = snapshot(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 288, "content": "<pad>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="ids up to 288, but the model's embedding has 288 rows"):
        hub.load(folder)


# ---- Tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [gpt2, llama])
def test_a_leaf_has_one_row_and_a_table_that_lacks_it_is_refused(format):
    config, params, _ = hub.load(FIXTURES / ("gpt2_sharded" if format is gpt2 else "llama"))
    table = format.table(config)
    leaves = [row.leaf for row in table.rows]
    assert len(leaves) == len(set(leaves))
    short = table._replace(rows=[row for row in table.rows if row.leaf != "final_norm/scale"])
    with pytest.raises(InputError, match="no tensor for final_norm/scale"):
        mapping.write_params(gpt.declare(config), short, params)
    with pytest.raises(InputError, match="no tensor for final_norm/scale"):
        mapping.read_params(gpt.declare(config), short, dict.fromkeys("abc"), np.dtype(np.float32), "here")
    with pytest.raises(InputError, match="layers, but there are 0 tensors"):
        mapping.read_params(gpt.declare(config), table, {}, np.dtype(np.float32), "here")
