"""ViTs, DeiTs and DINOv2s that Transformers wrote give Transformers' hidden states, attention and logits, at their own
resolution and at another; exports come back to the bit; settings that we do not compute are refused in one line.

The fixtures in tests/data/hf/vision are made by tools/fixtures/make_hf_vit.py, which also checks that Transformers
loads our exports.
"""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import transformer_jax
from transformer_jax import hub
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.models import vit
from transformer_jax.models.vit import dinov2
from transformer_jax.nn import params as param_tree

FIXTURES = Path(__file__).parents[1] / "data" / "hf" / "vision"
LABELS = ("crane", "lantern", "teapot")
DINO = {"mlp_width": 64, "layer_scale": 1.0, "norm_eps": 1e-6, "interpolate": "bicubic"}
CASES = {  # what the tensors and settings of each say
    "ViTForImageClassification": {"num_classes": 3},
    "ViTModel": {"num_classes": 0, "pre_logits": 10, "qkv_bias": False, "channels": 1},
    "ViTModel-unpooled": {"num_classes": 0, "activation": "gelu_tanh"},
    "DeiTForImageClassification": {"num_classes": 3, "distillation": "token"},
    "DeiTForImageClassificationWithTeacher": {"num_classes": 3, "distillation": "head", "norm_eps": 1e-6},
    "DeiTModel": {"num_classes": 0, "distillation": "token", "pre_logits": 16},
    "Dinov2ForImageClassification": DINO
    | {"num_classes": 3, "pool": "both", "gated": True, "mlp_width": 48, "activation": "silu", "layer_scale": 0.5},
    "Dinov2Model": DINO | {"num_classes": 0},
    "Dinov2WithRegistersForImageClassification": DINO
    | {"num_classes": 3, "pool": "both", "num_registers": 2, "interpolate": "antialiased"},
}


def expected_of(name):
    with np.load(FIXTURES / name / "expected.npz", allow_pickle=False) as file:
        return dict(file)


def snapshot(tmp_path: Path, name: str, change=None, file="config.json", **settings) -> Path:
    """A copy of a fixture with its tensors changed and some settings of one of its files replaced (None: left out)."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    config = json.loads((folder / file).read_text()) | settings
    (folder / file).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    if change is not None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


def assert_equal(ours, theirs) -> None:
    for (path, x), y in zip(param_tree.flatten(ours).items(), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y), path


# ---- The function ----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=1)
def outputs(params, cfg, images):
    x_BTD = vit.hidden(params, cfg, images)
    found = {"hidden": x_BTD, "states": vit.hidden_states(params, cfg, images)}
    found |= {"weights": vit.attention_weights(params, cfg, images)}
    if cfg.pre_logits:
        found["pooled"] = vit.pooled(params, cfg, x_BTD)
    if cfg.distillation == "head":
        found["cls_logits"], found["distillation_logits"] = vit.distilled_logits(params, cfg, x_BTD)
    return found | ({"logits": vit.apply(params, cfg, images)} if cfg.num_classes else {})


@pytest.mark.parametrize("name", CASES)
def test_all_states_weights_and_logits_are_transformers(name):
    config, params, tokenizer = hub.load(FIXTURES / name)
    assert tokenizer is None
    wanted = {"mlp_width": 24, "norm_eps": 1e-12, "init_std": 0.03, "initializer": "normal"} | CASES[name]
    assert config == vit.Config(image_size=24, patch_size=8, width=16, num_layers=2, num_heads=2, **wanted)
    expected = expected_of(name)
    assert 0.5 < expected["hidden"].std() < 2, "the bound below means something at this scale only"
    found = outputs(params, config, expected["images"])
    interpolates = config.interpolate != "never"
    resized = (params, config) if interpolates else vit.resample_positions(params, config, 40)
    found["larger_hidden"] = jax.jit(vit.hidden, static_argnums=1)(*resized, expected["larger"])
    if config.num_classes:
        found["larger_logits"] = vit.head_logits(*resized, found["larger_hidden"])
    assert expected.keys() - found.keys() == {"images", "larger", "versions"} and found.keys() <= expected.keys()
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=2e-5, err_msg=key)


def test_positions_from_224_to_384_are_transformers():
    """And down to 160, on the table alone: 14 patches a side become 24, and 10."""
    with np.load(FIXTURES / "positions.npz", allow_pickle=False) as file:
        tables = dict(file)
    cfg = vit.Config(width=4, num_heads=1, num_layers=1, distillation="token")
    params = {"embed": {"position": {"embedding": jnp.asarray(tables["224"])}}}
    for size in (384, 160):
        resized, new = vit.resample_positions(params, cfg, size)
        assert new == dataclasses.replace(cfg, image_size=size)
        found = resized["embed"]["position"]["embedding"]
        np.testing.assert_allclose(found, tables[str(size)], rtol=0, atol=1e-5)
        plain = dataclasses.replace(cfg, distillation="none", interpolate="antialiased")
        found, _ = vit.resample_positions({"embed": {"position": {"embedding": tables["224"][1:]}}}, plain, size)
        expected = tables[f"antialiased_{size}"]
        np.testing.assert_allclose(found["embed"]["position"]["embedding"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "count"),  # Transformers' own counts, without the mask token
    [((384, 12, 6, False), 22_056_192), ((1536, 40, 24, True), 1_136_479_232)],
    ids=["dinov2-small", "dinov2-giant"],
)
def test_published_parameter_counts(sizes, count):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "use_swiglu_ffn")
    settings = {  # as in the published files
        "apply_layernorm": True, "architectures": ["Dinov2Model"], "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "image_size": 518,
        "initializer_range": 0.02, "layer_norm_eps": 1e-06, "layerscale_value": 1.0, "mlp_ratio": 4,
        "model_type": "dinov2", "num_channels": 3, "out_features": ["stage12"], "patch_size": 14, "qkv_bias": True,
        "reshape_hidden_states": True, "stage_names": ["stem", "stage1"], "torch_dtype": "float32",
        "transformers_version": "4.32.0.dev0",
    }  # fmt: skip
    config = dinov2.read_config(settings | dict(zip(names, sizes, strict=True)), (), "config.json")
    assert param_tree.count(vit.declare(config)) == count


# ---- Names, labels, there and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_an_export_comes_back_to_the_bit(name, tmp_path):
    config, params, _ = hub.load(FIXTURES / name)
    labels, preprocess = hub.labels(FIXTURES / name), hub.preprocessing(FIXTURES / name)
    assert labels == (LABELS if config.num_classes else ())
    hub.export(tmp_path / "out", config, params, labels=labels, preprocess=preprocess)
    back, returned, _ = hub.load(tmp_path / "out")
    assert back == config
    assert_equal(returned, params)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (FIXTURES / name, tmp_path / "out"))
    trunk = re.compile(r"^(vit|deit|dinov2|dinov2_with_registers)\.")
    theirs, ours = ({trunk.sub("", name): x.shape for name, x in one.items()} for one in (theirs, ours))
    assert ours == theirs
    assert hub.labels(tmp_path / "out") == labels and hub.preprocessing(tmp_path / "out") == preprocess
    said = json.loads((FIXTURES / name / "config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == said["architectures"]


def test_load_gives_a_model_ready_to_compute():
    loaded = transformer_jax.load(FIXTURES / "DeiTForImageClassificationWithTeacher")
    assert loaded.family is vit and loaded.tokenizer is None and loaded.step is None
    expected = expected_of("DeiTForImageClassificationWithTeacher")
    logits = jax.jit(vit.apply, static_argnums=1)(loaded.params, loaded.config, expected["images"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)


def test_what_nothing_reads_may_be_there(tmp_path):
    """A pooler beside a classifier, the mask token of pre-training, sides said twice, no labels' names."""

    def more(tensors):
        extra = {"vit.pooler.dense.weight": np.ones((16, 16), np.float32), "vit.pooler.dense.bias": np.ones(16)}
        return tensors | extra | {"vit.embeddings.mask_token": np.ones((1, 1, 16), np.float32)}

    folder = snapshot(tmp_path, "ViTForImageClassification", more, image_size=[24, 24], patch_size=[8, 8])
    config, params, _ = hub.load(folder)
    plain, same, _ = hub.load(FIXTURES / "ViTForImageClassification")
    assert config == plain
    assert_equal(params, same)


@pytest.mark.parametrize(
    ("name", "change", "settings", "message"),
    [
        ("ViTModel", None, {"patch_size": [8, 4]}, '"patch_size" is [8, 4]; only square patches are supported'),
        ("ViTModel", None, {"patch_size": 7}, "model.patch_size 7 does not divide model.image_size 24"),
        ("ViTModel", None, {"pooler_act": "relu"}, "\"pooler_act\" is 'relu'; only 'tanh' is supported"),
        ("ViTModel", None, {"use_swiglu_ffn": True}, '"use_swiglu_ffn": True is an unknown setting'),
        ("Dinov2Model", None, {"layerscale_value": 0.0}, '"layerscale_value" is 0.0; it must be above 0'),
        ("Dinov2Model", None, {"use_swiglu_ffn": True}, "lacks dinov2.encoder.layer.0.mlp.weights_in.bias"),
        ("ViTModel", None, {"num_channels": 3}, "has shape (16, 1, 8, 8), but its config.json implies (16, 3, 8, 8)"),
        (
            "DeiTModel",
            lambda t: {k: v for k, v in t.items() if not k.endswith("distillation_token")},
            {},
            "lacks deit.embeddings.distillation_token",
        ),
    ],
)
def test_what_is_not_computed_is_refused(name, change, settings, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        hub.load(snapshot(tmp_path, name, change, **settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "mean"}, "the model type vit cannot express pool='mean' (it means 'class')"),
        ({"position": "sincos2d"}, "cannot express position='sincos2d'"),
        ({"num_registers": 2}, "cannot express num_registers=2"),
        ({"layer_scale": 0.1}, "cannot express layer_scale=0.1"),
        ({"qk_norm": True}, "cannot express qk_norm=True"),
        ({"pre_logits": 8}, "cannot express pre_logits=8"),
        (DINO | {"mlp_width": 40, "pool": "both"}, "the model type dinov2 cannot express mlp_width=40"),
        (DINO | {"pool": "class"}, "the model type dinov2 cannot express pool='class' (it means 'both')"),
    ],
)
def test_what_the_format_cannot_say_is_not_exported(change, message, tmp_path):
    cfg = vit.Config(image_size=24, patch_size=8, width=16, num_layers=1, num_heads=2, **change)
    with pytest.raises(InputError, match=re.escape(message)):
        hub.export(tmp_path / "out", cfg, {})
    assert not (tmp_path / "out").exists()


# ---- Preprocessing ---------------------------------------------------------------------------------------------------

IMAGENET: Any = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # As published: google/vit-base-patch16-224 and facebook/deit-base-distilled-patch16-224, old and new
        (
            {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224},
            Preprocess(),
        ),
        (
            {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 256,
             "feature_extractor_type": "DeiTFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
             "image_std": [0.229, 0.224, 0.225], "resample": 3},
            Preprocess(resize=256, resample="bicubic", **IMAGENET),
        ),
        (
            {"image_processor_type": "ViTImageProcessorFast", "size": {"shortest_edge": 438}, "do_center_crop": True,
             "crop_size": {"height": 384, "width": 384}, "resample": 3, "do_convert_rgb": None},
            Preprocess(size=384, resize=438, fit="shortest", resample="bicubic"),
        ),
        ({"image_processor_type": "DeiTImageProcessor"}, Preprocess(resize=256, resample="bicubic")),
        ({"do_normalize": False}, Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3)),
        (  # facebook/dinov2-base, whose model has positions for 518 pixels
            {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
             "image_mean": [0.485, 0.456, 0.406], "image_processor_type": "BitImageProcessor", "resample": 3,
             "image_std": [0.229, 0.224, 0.225], "size": {"shortest_edge": 256}},
            Preprocess(resize=256, fit="shortest", resample="bicubic", **IMAGENET),
        ),
    ],
)  # fmt: skip
def test_published_preprocessing(settings, expected, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert hub.preprocessing(tmp_path) == expected


def test_fixtures_preprocessing_and_none():
    assert hub.preprocessing(FIXTURES / "ViTForImageClassification") == Preprocess(size=24, resize=24)
    teacher = hub.preprocessing(FIXTURES / "DeiTForImageClassificationWithTeacher")
    assert teacher == Preprocess(size=24, resize=28, fit="shortest", resample="bicubic", **IMAGENET)
    assert hub.preprocessing(FIXTURES / "DeiTModel") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "SamImageProcessor"}, "'SamImageProcessor' is not supported"),
        ({"do_rescale": False}, '"do_rescale" is False; only True is supported'),
        ({"rescale_factor": 0.5}, '"rescale_factor" is 0.5; only 1/255'),
        ({"size": {"height": 224}}, "it must be one number, height and width, or a shortest_edge"),
        ({"size": {"shortest_edge": 224}}, "so images would not be square"),
        ({"resample": 9}, '"resample" is 9; it is one of'),
        ({"crop_pct": 0.9}, '"crop_pct": 0.9 is an unknown setting'),
        ({"image_mean": 0.5}, '"image_mean" is 0.5; it must be a list'),
        ({"image_std": [0.5, 0.5, 0]}, "one number for each channel, std above 0"),
        ({"do_center_crop": True, "size": 200}, "preprocess.size is 224 and resize 200"),
    ],
)
def test_other_preprocessing_is_refused(settings, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=re.escape(message)):
        hub.preprocessing(tmp_path)


def test_a_snapshot_with_unknown_preprocessing_does_not_load_without_it(tmp_path):
    shutil.copytree(FIXTURES / "ViTForImageClassification", tmp_path / "vit")
    path = tmp_path / "vit" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor_type": "SamImageProcessor"}))
    with pytest.raises(InputError, match="SamImageProcessor"):
        transformer_jax.load(tmp_path / "vit")


def test_preprocessing_is_exported_for_the_model_that_it_fits(tmp_path):
    config, params, _ = hub.load(FIXTURES / "DeiTModel")
    with pytest.raises(InputError, match="makes images of 224 pixels and 3 channels; the model takes 24 and 3"):
        hub.export(tmp_path / "out", config, params, preprocess=Preprocess())
    for change in ({"fit": "fill"}, {"resample": "cubic"}):
        with pytest.raises(InputError, match="it is one of"):
            Preprocess(**change)
